"""Several processes and one lock: hand-over latency, and the judgement of a contended history.

What may live here: the members of a group of processes, what they record, and the pure functions that judge it.

Theory. CLOCK_MONOTONIC is one clock for all processes of a machine. A release is stamped before it is asked for, an
acquisition after it is granted, so intervals of a right lock never overlap, and the time between the two stamps is the
whole hand-over as its users see it. In the hand-over test the holder lets go only when the other is known to wait, and
asks again only when the other has taken the lock: strict alternation, the same for every candidate. In the contended
test everybody asks again at once. A wake-up counts as lost when the lock stood free for more than `LOST_NS` although
somebody who had begun to wait before the release was still waiting: the re-check repairs this later, and must not be
needed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from candidate import Address, AsyncCandidate, BlockingCandidate, Candidate, Key, Spec, loop_factory, shares
from peers import CANDIDATES
from turns import confessing

LOST_NS = 300_000_000
KNOWN_WAITING_NS = 20_000_000
"""Who asked this long before a release is taken to be waiting in earnest: refused, marked and asleep."""
SETTLE = 0.003
"""Seconds between seeing that the other has asked and letting go, so that its request has reached the server."""
POLL = 0.002
"""Seconds between looks at the other's state; uvloop turns half a millisecond into no pause at all."""
LONG_HOLD = 0.001
LONG_EVERY = 4
"""Every fourth contended hold lasts longer than a round trip: between the shortest ones no overlap could be seen."""
OWNER, RELEASER, RELEASED_AT, WAITING = 0, 1, 2, 3
NOBODY = -1


@dataclass(frozen=True)
class AsyncHold:
    """One hold of a contended run; times in nanoseconds of CLOCK_MONOTONIC."""

    process: int
    key: int
    asked: int
    taken: int
    released: int


@dataclass(frozen=True)
class Judgement:
    """What a contended history shows. `gaps` are the hand-overs between processes, in nanoseconds."""

    holds: int
    overlaps: int
    lost: int
    gaps: tuple[int, ...]

    def slower_than(self, nanoseconds: int) -> int:
        return sum(gap > nanoseconds for gap in self.gaps)


def judge(holds: Iterable[AsyncHold]) -> Judgement:
    """Find overlaps, lost wake-ups and the hand-overs between processes in the holds of a run."""
    by_key: dict[int, list[AsyncHold]] = {}
    for hold in holds:
        by_key.setdefault(hold.key, []).append(hold)
    total = overlaps = lost = 0
    gaps: list[int] = []
    for history in by_key.values():
        history.sort(key=lambda hold: hold.taken)
        total += len(history)
        free_since = history[0].released
        previous = history[0]
        for position, hold in enumerate(history[1:], start=1):
            gap = hold.taken - free_since
            if gap < 0:
                overlaps += 1
            else:
                if hold.process != previous.process and hold.asked < free_since:
                    gaps.append(gap)
                if gap > LOST_NS and any(h.asked + KNOWN_WAITING_NS < free_since for h in history[position:]):
                    lost += 1
            if hold.released > free_since:
                free_since, previous = hold.released, hold
    return Judgement(total, overlaps, lost, tuple(sorted(gaps)))


class Inline(AsyncCandidate):
    """A blocking candidate under the members' loop: its calls are made directly and block it."""

    def __init__(self, blocking: BlockingCandidate) -> None:
        self.blocking = blocking

    async def open(self, address: Address, tasks: int) -> None:
        self.blocking.open(address, tasks)

    async def acquire(self, key: Key) -> Any:
        return self.blocking.acquire(key)

    async def release(self, token: Any) -> None:
        self.blocking.release(token)

    async def close(self) -> None:
        self.blocking.close()


class Group:
    """`size` processes that use one candidate on the same keys, at the same time: the one that has this name in the
    benchmark of locks, or `spec`.

    Raises `RuntimeError` with the member's own error, `ModuleNotFoundError` if the candidate is not installed.
    """

    def __init__(self, name: str, address: Address, size: int, tasks: int, spec: Spec[Candidate] | None = None) -> None:
        spec = spec or CANDIDATES[name]
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.shared = context.RawArray("q", WAITING + size)
        self.pipes: list[Any] = []
        self.members: list[Any] = []
        for index in range(size):
            pipe, theirs = context.Pipe()
            arguments = (spec, address, index, tasks, self.shared, theirs)
            process = context.Process(target=member, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(pipe)
            self.members.append(process)
        try:
            self.answers(30.0)
        except BaseException:
            self.close()
            raise

    def ask(self, verb: str, *arguments: object, patience: float) -> list[Any]:
        """Send one verb to all members and wait for all answers."""
        for pipe in self.pipes:
            pipe.send((verb, *arguments))
        return self.answers(patience)

    def answers(self, patience: float) -> list[Any]:
        values = []
        for pipe in self.pipes:
            if not pipe.poll(patience):
                raise RuntimeError(f"{self.name}: a process gave no answer for {patience:g} s")
            try:
                kind, value = pipe.recv()
            except EOFError:
                raise RuntimeError(f"{self.name}: a process ended without an answer") from None
            if kind == "missing":
                raise ModuleNotFoundError(value)
            if kind == "error":
                raise RuntimeError(f"{self.name}: {value}")
            values.append(value)
        return values

    def alternate(self, seconds: float, settle: float = SETTLE) -> list[int]:
        """Two members hand one lock back and forth; the latencies in nanoseconds."""
        self.shared[:] = [NOBODY, NOBODY, *[0] * (len(self.shared) - 2)]
        stop = time.monotonic_ns() + int(seconds * 1e9)
        first, second = self.ask("alternate", stop, settle, patience=seconds + 30)
        return [*first, *second]

    def contend(self, cycles: int, keys: int, patience: float) -> list[AsyncHold]:
        """All tasks of all members ask for a few keys, `cycles` times in total; the whole history."""
        holds: list[AsyncHold] = []
        for pipe, share in zip(self.pipes, shares(cycles, len(self.members)), strict=True):
            pipe.send(("contend", share, keys))
        for process, packed in enumerate(self.answers(patience)):
            flat = array("q", packed)
            holds += [AsyncHold(process, *flat[at : at + 4]) for at in range(0, len(flat), 4)]
        return holds

    def close(self) -> None:
        for pipe in self.pipes:
            try:
                pipe.send(("stop",))
            except OSError:
                pass
        for process in self.members:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()


def member(spec: Spec[Candidate], address: Address, index: int, tasks: int, shared: Any, pipe: Any) -> None:
    """The whole life of one process of a group."""
    with confessing(pipe, spec.pip):
        made = spec.make()
        candidate = Inline(made) if isinstance(made, BlockingCandidate) else made
        with asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
            runner.run(serve(candidate, address, index, tasks, shared, pipe))


async def serve(candidate: AsyncCandidate, address: Address, index: int, tasks: int, shared: Any, pipe: Any) -> None:
    await candidate.open(address, tasks)
    try:
        pipe.send(("ok", None))
        while True:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
            match verb:
                case "alternate":
                    pipe.send(("ok", await alternate(candidate, index, shared, *arguments)))
                case "contend":
                    pipe.send(("ok", await contend(candidate, tasks, *arguments)))
                case _:
                    break
    finally:
        await candidate.close()


async def alternate(candidate: AsyncCandidate, index: int, shared: Any, stop: int, settle: float) -> list[int]:
    clock, other = time.monotonic_ns, 1 - index
    latencies: list[int] = []
    while clock() < stop:
        shared[WAITING + index] = 1
        token = await candidate.acquire("handover")
        taken = clock()
        shared[WAITING + index] = 0
        if shared[RELEASER] == other:
            latencies.append(taken - shared[RELEASED_AT])
        shared[OWNER] = index
        while not shared[WAITING + other] and clock() < stop:
            await asyncio.sleep(POLL)
        await asyncio.sleep(settle)
        awaited = bool(shared[WAITING + other])
        shared[RELEASER] = index if awaited else NOBODY
        shared[RELEASED_AT] = clock()
        await candidate.release(token)
        while awaited and shared[OWNER] == index and clock() < stop + 1_000_000_000:
            await asyncio.sleep(POLL)
    return latencies


async def contend(candidate: AsyncCandidate, tasks: int, cycles: int, keys: int) -> bytes:
    clock = time.monotonic_ns
    log = array("q")

    async def one(number: int, share: int) -> None:
        for cycle in range(share):
            key = (number + cycle) % keys
            asked = clock()
            token = await candidate.acquire(f"contended:{key}")
            taken = clock()
            await asyncio.sleep(LONG_HOLD if cycle % LONG_EVERY == 0 else 0)
            log.extend((key, asked, taken, clock()))
            await candidate.release(token)

    await asyncio.gather(*(one(number, share) for number, share in enumerate(shares(cycles, tasks))))
    return log.tobytes()
