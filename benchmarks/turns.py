"""Turn-taking: every candidate lives in a process of its own and works only when it is its turn.

What may live here: processes for candidates, windows, rounds, paired ratios. No candidate, no scenario, no target.

Theory. A machine's speed drifts from second to second, and other programs take their share, so absolute rates of two
candidates measured minutes apart say little. Here all candidates work in short windows, one after the other, in an
order that rotates every round; in each round a candidate's rate is divided by the yardstick's rate *of the same round*,
and the median of these paired ratios is the result. Processes of their own keep the event loops, garbage collectors and
threads of the candidates apart, and leave each event loop running between its turns, as in a real program.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from candidate import AsyncCandidate, BlockingCandidate, Key, shares

Round = dict[str, float]
"""What everybody who took part in one round achieved, by name: mostly cycles per second."""
Make = Callable[[int], Key]
"""Makes the key of a cycle from its number."""
YARDSTICK = "pgbench"
START_SECONDS = 30.0
THREADS = 8
"""Threads of a blocking candidate when many tasks are asked for: more only fight for the interpreter."""


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

    def cells(self) -> tuple[str, ...]:
        return tuple(f"{value:.3f}" for value in (self.least, self.lower, self.median, self.upper, self.most))


def ratios(rounds: Sequence[Round], mine: str, other: str) -> list[float]:
    """One ratio for every round in which both took part."""
    return [rates[mine] / rates[other] for rates in rounds if mine in rates and rates.get(other)]


def median_ratio(rounds: Sequence[Round], mine: str, other: str) -> float:
    """The median of the paired ratios; 0 where the two never met."""
    sample = ratios(rounds, mine, other)
    return statistics.median(sample) if sample else 0.0


class Guest:
    """One candidate in a process of its own; `ask` sends it a verb and waits for the answer.

    `host` is the whole life of that process: it gets what the candidate is, the rest of the arguments, and last the
    pipe, on which it says ("ok", value), ("missing", what to install) or ("error", text). Raises `Missing` when the
    candidate is not installed and `RuntimeError` with the candidate's own error otherwise.
    """

    def __init__(self, name: str, host: Callable[..., None], *arguments: object) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=host, args=(*arguments, theirs), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.answer(START_SECONDS)
        except BaseException:
            self.process.terminate()
            self.process.join(5)
            raise

    def ask(self, verb: str, *arguments: object, patience: float = 60.0) -> Any:
        self.tell(verb, *arguments)
        return self.answer(patience)

    def tell(self, verb: str, *arguments: object) -> None:
        """Send a verb whose answer is fetched later, with `answer`."""
        self.pipe.send((verb, *arguments))

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
        except (Missing, RuntimeError, OSError):
            pass
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


@contextlib.contextmanager
def confessing(pipe: Any, pip: str) -> Iterator[None]:
    """The life of a candidate's process: what ends it early is told to the other end of the pipe."""
    try:
        yield
    except ModuleNotFoundError:
        pipe.send(("missing", pip))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))


async def window(
    candidate: AsyncCandidate,
    tasks: int,
    make: Make,
    used: itertools.count[int],
    seconds: float | None,
    cycles: int | None,
) -> Window:
    """All tasks at once, for a time or for an exact number of cycles in all."""
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


def window_blocking(
    candidate: BlockingCandidate,
    pool: ThreadPoolExecutor | None,
    width: int,
    make: Make,
    used: itertools.count[int],
    seconds: float | None,
    cycles: int | None,
) -> Window:
    """As `window`, with `width` threads of a pool; without a pool on this thread."""
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


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    before, fatal, after = lines[0].partition("FATAL:")  # the server's own words stand behind a long address
    return (after.strip() if fatal else before)[:90]


def rotations(names: Sequence[str], count: int) -> Iterator[list[str]]:
    """The order of every round: each begins one further on."""
    for number in range(count):
        shift = number % max(1, len(names))
        yield [*names[shift:], *names[:shift]]


def take_turns(
    guests: Sequence[Guest], yardsticks: Mapping[str, Callable[[], float]], count: int, seconds: float, *work: object
) -> tuple[list[Round], dict[str, str]]:
    """Let everybody work in turn, `count` times; the order rotates, the yardsticks take part in the rotation.

    A guest is asked for a "window" with the length and `work`, and answers with a `Window`. Returns the rounds, and the
    errors of those who failed on the way and were sent home.
    """
    failed: dict[str, str] = {}
    played: list[Round] = []
    present = {guest.name: guest for guest in guests}

    def turn(guest: Guest, length: float) -> float | None:
        try:
            done: Window = guest.ask("window", length, *work, patience=length + 60)
        except RuntimeError as error:
            failed[guest.name] = first_line(error)
            return None
        return done.rate

    for guest in guests:
        turn(guest, min(seconds, 0.2))  # prepares statements, fills pools
    for order in rotations([*yardsticks, *present], count):
        rates: Round = {}
        for name in order:
            if name in yardsticks:
                rates[name] = yardsticks[name]()
            elif name not in failed and (rate := turn(present[name], seconds)) is not None:
                rates[name] = rate
        played.append(rates)
    return played, failed
