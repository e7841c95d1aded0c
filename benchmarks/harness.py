"""Turn-taking: every candidate lives in a process of its own and works only when it is its turn.

What may live here: the hosting of a candidate in a process, windows, rounds, paired ratios. No scenario, no target.

Theory. A machine's speed drifts from second to second, and other programs take their share, so absolute rates of two
candidates measured minutes apart say little. Here all candidates work in short windows, one after the other, in an
order that rotates every round; in each round a candidate's rate is divided by the yardstick's rate *of the same round*,
and the median of these paired ratios is the result. Processes of their own keep the event loops, garbage collectors and
threads of the candidates apart, and leave each event loop running between its turns, as in a real program.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from candidate import Address, AsyncCandidate, BlockingCandidate, Key, shares
from peers import CANDIDATES, loop_factory

KeyKind = Literal["text", "int"]
Round = dict[str, float]
"""Cycles per second of everybody who took part in one round, by name."""
YARDSTICK = "pgbench"
START_SECONDS = 30.0
THREADS = 8
"""Threads of a blocking candidate when many tasks are asked for: more only fight for the interpreter."""
HELD_PATIENCE = 5.0
"""Seconds without progress after which a candidate is said to hold no further lock."""


class Missing(Exception):
    """A candidate that is not installed; the text is what to install."""


@dataclass(frozen=True)
class Window:
    """What one candidate did in one window."""

    cycles: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.cycles / self.seconds


@dataclass(frozen=True)
class Exclusion:
    """What was found out about a candidate: do two objects of one name exclude, how many bits of a name count."""

    excludes: bool
    key_bits: int | None


@dataclass(frozen=True)
class Spread:
    """A sample, summed up by its order statistics; the median is the figure, the rest says how much to trust it."""

    least: float
    lower: float
    median: float
    upper: float
    most: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        if len(sample) == 1:
            return cls(*[sample[0]] * 5)
        lower, median, upper = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(min(sample), lower, median, upper, max(sample))


def ratios(rounds: Sequence[Round], mine: str, other: str) -> list[float]:
    """One ratio for every round in which both took part."""
    return [rates[mine] / rates[other] for rates in rounds if mine in rates and other in rates]


def key_maker(kind: KeyKind, first: int) -> Callable[[int], Key]:
    """Fresh keys: the number itself, or a short name that contains it."""
    if kind == "int":
        return lambda number: first + number
    return lambda number: f"lock:{first + number}"


class Guest:
    """One candidate in a process of its own; `ask` sends it a verb and waits for the answer.

    Raises `Missing` when the candidate is not installed and `RuntimeError` with the candidate's own error otherwise.
    `label` is its name in the tables, where one candidate takes part twice.
    """

    def __init__(self, name: str, address: Address, tasks: int, label: str | None = None) -> None:
        self.name = label or name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=host, args=(name, address, tasks, theirs), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.answer(START_SECONDS)
        except BaseException:
            self.process.terminate()
            self.process.join(5)
            raise

    def ask(self, verb: str, *arguments: object, patience: float = 60.0) -> Any:
        self.pipe.send((verb, *arguments))
        return self.answer(patience)

    def answer(self, patience: float) -> Any:
        if not self.pipe.poll(patience):
            raise RuntimeError(f"{self.name} gave no answer for {patience:g} s")
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} ended without an answer") from None
        if kind == "missing":
            raise Missing(value)
        if kind == "error":
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def close(self) -> None:
        try:
            self.ask("stop", patience=10.0)
        except (RuntimeError, OSError):
            pass
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def host(name: str, address: Address, tasks: int, pipe: Any) -> None:
    """The whole life of a candidate's process."""
    spec = CANDIDATES[name]
    try:
        candidate = spec.make()
        if isinstance(candidate, BlockingCandidate):
            host_blocking(candidate, address, tasks, pipe)
        else:
            with asyncio.Runner(loop_factory=loop_factory(spec.loop)) as runner:
                runner.run(host_async(candidate, address, tasks, pipe))
    except ImportError:
        pipe.send(("missing", spec.pip))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


async def host_async(candidate: AsyncCandidate, address: Address, tasks: int, pipe: Any) -> None:
    await candidate.open(address, tasks)
    pipe.send(("ok", None))
    held: list[Any] = []
    used = itertools.count()
    try:
        while True:
            verb, *arguments = await asyncio.to_thread(pipe.recv)
            match verb:
                case "window":
                    seconds, kind = arguments
                    value: Any = await window(candidate, tasks, key_maker(kind, 0), used, seconds, None)
                case "cycles":
                    cycles, kind = arguments
                    before = candidate.statements()
                    await window(candidate, tasks, key_maker(kind, 0), used, None, cycles)
                    after = candidate.statements()
                    value = None if before is None or after is None else after - before
                case "hold":
                    value = await hold(candidate, arguments[0], held)
                case "take":
                    token = await candidate.acquire(arguments[0])
                    held.append(token)
                    value = token is not None
                case "try":
                    token = await candidate.try_acquire(arguments[0])
                    if token is not None:
                        held.append(token)
                    value = token is not None
                case "drop":
                    while held:
                        await candidate.release(held.pop())
                    value = None
                case _:
                    break
            pipe.send(("ok", value))
    finally:
        await candidate.close()
    pipe.send(("ok", None))


async def window(
    candidate: AsyncCandidate,
    tasks: int,
    make: Callable[[int], Key],
    used: itertools.count[int],
    seconds: float | None,
    cycles: int | None,
) -> Window:
    """All tasks at once, for a time or for an exact number of cycles each."""
    cycle, clock = candidate.cycle, time.perf_counter
    started = clock()

    async def timed(deadline: float) -> int:
        done = 0
        while clock() < deadline:
            await cycle(make(next(used)))
            done += 1
        return done

    async def counted(share: int) -> int:
        for _ in range(share):
            await cycle(make(next(used)))
        return share

    if seconds is not None:
        work = [timed(started + seconds) for _ in range(tasks)]
    else:
        work = [counted(share) for share in shares(cycles or 0, tasks)]
    done = await asyncio.gather(*work) if tasks > 1 else [await work[0]]
    return Window(sum(done), clock() - started)


async def hold(candidate: AsyncCandidate, wanted: int, held: list[Any]) -> tuple[int, str | None]:
    for number in range(wanted):
        try:
            async with asyncio.timeout(HELD_PATIENCE):
                held.append(await candidate.acquire(f"held:{number}"))
        except Exception as error:
            return len(held), first_line(error)
    return len(held), None


def host_blocking(candidate: BlockingCandidate, address: Address, tasks: int, pipe: Any) -> None:
    candidate.open(address, tasks)
    pipe.send(("ok", None))
    width = min(tasks, THREADS)
    held: list[Any] = []
    used = itertools.count()
    # One task runs on the main thread: a pool would only add its own hand-over to the first and last cycle.
    pool = ThreadPoolExecutor(width) if width > 1 else None
    try:
        while True:
            verb, *arguments = pipe.recv()
            match verb:
                case "window":
                    seconds, kind = arguments
                    value: Any = window_blocking(candidate, pool, width, key_maker(kind, 0), used, seconds, None)
                case "cycles":
                    cycles, kind = arguments
                    window_blocking(candidate, pool, width, key_maker(kind, 0), used, None, cycles)
                    value = None
                case "hold":
                    value = hold_blocking(candidate, arguments[0], held)
                case "take" | "try":
                    token = candidate.acquire(*arguments) if verb == "take" else candidate.try_acquire(*arguments)
                    if token is not None:
                        held.append(token)
                    value = token is not None
                case "drop":
                    while held:
                        candidate.release(held.pop())
                    value = None
                case _:
                    break
            pipe.send(("ok", value))
    finally:
        if pool is not None:
            pool.shutdown()
        candidate.close()
    pipe.send(("ok", None))


def window_blocking(
    candidate: BlockingCandidate,
    pool: ThreadPoolExecutor | None,
    width: int,
    make: Callable[[int], Key],
    used: itertools.count[int],
    seconds: float | None,
    cycles: int | None,
) -> Window:
    cycle, clock = candidate.cycle, time.perf_counter
    ready = threading.Barrier(width)
    started = clock()

    def loop(share: int) -> int:
        if pool is not None:
            ready.wait()  # every thread of the pool takes exactly one share
        if seconds is None:
            for _ in range(share):
                cycle(make(next(used)))
            return share
        done = 0
        while clock() < started + seconds:
            cycle(make(next(used)))
            done += 1
        return done

    parts = shares(cycles or 0, width)
    if pool is None:
        return Window(loop(*parts), clock() - started)
    done = [future.result() for future in [pool.submit(loop, part) for part in parts]]
    return Window(sum(done), clock() - started)


def hold_blocking(candidate: BlockingCandidate, wanted: int, held: list[Any]) -> tuple[int, str | None]:
    for number in range(wanted):
        try:
            held.append(candidate.acquire(f"held:{number}"))
        except Exception as error:
            return len(held), first_line(error)
    return len(held), None


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:90] if lines else type(error).__name__


def take_turns(
    guests: Sequence[Guest], yardstick: Callable[[], float], count: int, seconds: float, kind: KeyKind
) -> tuple[list[Round], dict[str, str]]:
    """Let everybody work in turn, `count` times; the order rotates, the yardstick takes part in the rotation.

    Returns the rounds, and the errors of those who failed on the way and were sent home.
    """
    failed: dict[str, str] = {}
    played: list[Round] = []

    def turn(guest: Guest, length: float) -> float | None:
        try:
            done: Window = guest.ask("window", length, kind, patience=length + 60)
        except RuntimeError as error:
            failed[guest.name] = first_line(error)
            return None
        return done.rate

    for guest in guests:
        turn(guest, min(seconds, 0.2))  # prepares statements, fills pools
    turns: list[Guest | None] = [None, *guests]
    for number in range(count):
        rates: Round = {}
        shift = number % len(turns)
        for guest_or_yard in turns[shift:] + turns[:shift]:
            if guest_or_yard is None:
                rates[YARDSTICK] = yardstick()
            elif guest_or_yard.name not in failed:
                rate = turn(guest_or_yard, seconds)
                if rate is not None:
                    rates[guest_or_yard.name] = rate
        played.append(rates)
    return played, failed


def explore(guest: Guest, advisory_keys: Callable[[], list[int]]) -> Exclusion:
    """Find out whether two lock objects of one name exclude each other, and how many bits reach the server."""
    guest.ask("take", "same name")
    excludes = not guest.ask("try", "same name")
    guest.ask("drop")
    seen: list[int] = []
    for number in range(48):
        guest.ask("take", f"bits:{number}")
        seen += advisory_keys()
        guest.ask("drop")
    varying = 0
    for key in seen:
        varying |= (key ^ seen[0]) & (2**64 - 1)
    return Exclusion(excludes, varying.bit_count() if seen else None)
