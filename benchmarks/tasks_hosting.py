"""Crews: processes that share the tasks of one queue, of one candidate, and what they have done.

What may live here: the process of a worker, the crew, what it has done. Who takes part stands in `tasks_peers.py`.

Theory. CLOCK_MONOTONIC is one clock for all processes of a machine. In its turn a crew is started, all of it works, and
what its tasks say counts in a window that begins when all have warmed up: starting and stopping cost nothing. The queue
is filled before, with more than the window needs; one that was emptied before the window was over is filled with three
times as much and worked at again. Everybody remembers the numbers of all tasks it ever did: what was done twice, and
what was enqueued, not done, and is not there any more, is counted when the crew is dismissed.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from candidate import Address, Spec, loop_factory
from tasks_peers import CHUNK, Worker
from turns import Guest, confessing

WARM_UP = 0.3
"""Seconds from when all processes of a crew work until its window begins."""
LEAST = 2000
"""How many tasks are there before a turn, at least."""
GAP = 0.05
"""Seconds between two tasks whose way is measured: the worker is idle when the next one comes."""


@dataclass(frozen=True)
class Worked:
    """What a process did in its turn: tasks in the window, and the numbers of all, before and after it too."""

    counted: int
    numbers: bytes


def host_worker(spec: Spec[Worker], address: Address, queue: str, pipe: Any) -> None:
    """The whole life of such a process."""
    with (
        confessing(pipe, spec.pip),
        asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner,
    ):
        runner.run(serve(spec.make(), address, queue, pipe))


async def serve(worker: Worker, address: Address, queue: str, pipe: Any) -> None:
    await worker.open(address, queue)
    pipe.send(("ok", None))
    numbers, times = array("q"), array("q")

    def handle(done: Sequence[int]) -> None:
        numbers.extend(done)
        times.extend([time.monotonic_ns()] * len(done))

    try:
        while True:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
            value: Any = None
            match verb:
                case "fill":
                    first, count = arguments
                    for start in range(first, first + count, CHUNK):
                        await worker.enqueue(range(start, min(start + CHUNK, first + count)))
                case "start":
                    await worker.start(arguments[0], handle)
                case "stop":
                    began, ended = arguments
                    await asyncio.sleep((ended - time.monotonic_ns()) / 1e9)
                    await worker.stop()
                    value = Worked(sum(began <= at < ended for at in times), numbers.tobytes())
                    del numbers[:], times[:]
                case "send":
                    for _ in range(arguments[0]):
                        await asyncio.sleep(GAP)
                        await worker.enqueue((time.monotonic_ns(),))
                case "ways":
                    async with asyncio.timeout(10):
                        while len(times) < arguments[0]:
                            await asyncio.sleep(0.01)
                    await worker.stop()
                    value = [at - sent for at, sent in zip(times, numbers, strict=True)]
                    del numbers[:], times[:]
                case _:
                    break
            pipe.send(("ok", value))
    finally:
        await worker.close()
    pipe.send(("ok", None))


@dataclass
class Crew:
    """Processes of one candidate, and what is known of its queue."""

    name: str
    guests: list[Guest]
    enqueued: int = 0
    done: set[int] = field(default_factory=set)
    twice: int = 0
    need: int = LEAST
    """How many tasks are there before a turn: twice what the fastest one so far would have done."""

    def turn(self, size: int, batch: int, seconds: float) -> float:
        """Tasks per second of `size` processes with this batch, in one window."""
        while True:
            if (missing := self.need - self.outstanding) > 0:
                self.guests[0].ask("fill", self.enqueued, missing, patience=300.0)
                self.enqueued += missing
            rate, drained = self.work(self.guests[:size], batch, seconds)
            wanted = int(rate * (seconds + 4 * WARM_UP) * 2) + LEAST
            self.need = max(self.need, 3 * self.need if drained else wanted)
            if not drained:
                return rate

    def work(self, guests: Sequence[Guest], batch: int, seconds: float) -> tuple[float, bool]:
        everybody(guests, "start", batch)
        began = time.monotonic_ns() + int(WARM_UP * 1e9)
        ended = began + int(seconds * 1e9)
        worked: list[Worked] = everybody(guests, "stop", began, ended, patience=seconds + 60.0)
        for one in worked:
            numbers = array("q")
            numbers.frombytes(one.numbers)
            before = len(self.done)
            self.done.update(numbers)
            self.twice += len(numbers) - (len(self.done) - before)
        return sum(one.counted for one in worked) / seconds, self.outstanding < size_of_a_tail(batch, len(guests))

    def ways(self, count: int) -> list[int]:
        """How long tasks are under way, in nanoseconds, that one process enqueues and another, idle one does."""
        worker, sender = self.guests[:2]
        worker.ask("start", 1)
        time.sleep(WARM_UP)
        sender.ask("send", count, patience=60.0 + count * GAP)
        ways: list[int] = worker.ask("ways", count)
        return ways

    @property
    def outstanding(self) -> int:
        return self.enqueued - len(self.done)

    def finish(self, size: int) -> int:
        """Do all that is left; how many tasks were never done."""
        deadline = time.monotonic() + 60.0
        while self.outstanding and time.monotonic() < deadline:
            left = self.outstanding
            self.work(self.guests[:size], 100, 0.5)
            if self.outstanding == left:
                break
        return self.outstanding

    def close(self) -> None:
        for guest in self.guests:
            guest.close()


def size_of_a_tail(batch: int, size: int) -> int:
    """With fewer tasks left than this somebody may have gone without."""
    return 4 * batch * size


def everybody(guests: Sequence[Guest], verb: str, *arguments: object, patience: float = 60.0) -> list[Any]:
    for guest in guests:
        guest.tell(verb, *arguments)
    return [guest.answer(patience) for guest in guests]
