"""What a case is, where it is played, and how: on a loop of its own, in bounded time, with nothing left at the end.

Here lives the machinery; the cases stand in the rooms beside, one for each subject. It needs no test framework.

Theory. A case sees a backend as its users do: through coordinators that share a world. It may not look at a clock, for
a backend may be a server far away and busy. That something *happens* is awaited, and only the limit of the whole case
ends that wait. That something does *not* happen is shown by a fence: another request is sent the same way and
answered, several times, with turns of the loop between; what could have happened has happened by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import secrets
import traceback
import types
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, Self, TypeVar

from ... import AsyncCoordinator, AsyncHold, LockLost
from ...acquiring import Acquirable
from ...backend import Capability, Health
from ..leaks import eventually_async

__all__ = ["Case", "Fault", "Need", "Place", "Skipped", "Stage", "Venue", "cancelled_everywhere", "case", "run"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

Fault = Literal["lose"]
"""What a venue can do to a backend: *lose* breaks the connection of one coordinator, as if it had been cut."""

Need = Capability | Fault
"""What a case may need."""

_ROUNDS: Final = 3
_TURNS: Final = 8


class Skipped(unittest.SkipTest):
    """The case needs what the backend, by its own word, cannot do. pytest and unittest report it as skipped."""


class Venue(Protocol):
    """Where cases are played: a world, and how one gets into it. ``Place`` is one; write your own if it does not do."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the backend says of itself."""
        ...

    @property
    def faults(self) -> frozenset[Fault]:
        """What can be done to it here."""
        ...

    def coordinator(self, **options: Any) -> AsyncCoordinator:
        """A new coordinator, not yet open, in the world that all of this venue share; each stands for a process.

        The options are those of ``AsyncCoordinator``. ``name`` must reach the backend, since others are told who holds
        a lock; ``max_locks`` must if it keeps a budget.
        """
        ...

    async def lose(self, coordinator: AsyncCoordinator) -> None:
        """Break the connection of this one. It may connect again at once."""
        ...


class Place:
    """A venue made of functions.

    :param coordinator: as ``Venue.coordinator``.
    :param lose: breaks the connection of the coordinator it is given; plain or async. Without it what needs it is
        skipped.
    """

    def __init__(
        self,
        coordinator: Callable[..., AsyncCoordinator],
        lose: Callable[[AsyncCoordinator], Awaitable[object] | object] | None = None,
    ) -> None:
        self.coordinator = coordinator
        self._lose = lose

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Asked of the backend."""
        return self.coordinator().backend.capabilities

    @property
    def faults(self) -> frozenset[Fault]:
        """What it was given."""
        return frozenset(() if self._lose is None else ("lose",))

    async def lose(self, coordinator: AsyncCoordinator) -> None:
        """Call the function."""
        assert self._lose is not None
        done = self._lose(coordinator)
        if inspect.isawaitable(done):
            await done


class Stage:
    """What a case has: coordinators in a name space of its own, the fence, and the means to break things."""

    def __init__(self, venue: Venue, engine: str) -> None:
        self._venue = venue
        self.engine = engine
        self._namespace = secrets.token_hex(8)
        self._made: list[AsyncCoordinator] = []
        self._fences = 0
        self.capabilities = venue.capabilities

    def new(self, **options: Any) -> AsyncCoordinator:
        """A coordinator that is not open yet."""
        made = self._venue.coordinator(**{"namespace": self._namespace, "engine": self.engine, **options})
        self._made.append(made)
        return made

    async def open(self, **options: Any) -> AsyncCoordinator:
        """A coordinator that is open."""
        made = self.new(**options)
        await made.open()
        return made

    async def lose(self, coordinator: AsyncCoordinator) -> None:
        """Break its connection. When this returns the coordinator has noticed, and can lock again. That it hears again
        is told to its subscribers."""
        await self._venue.lose(coordinator)
        await self.settle()

    def number(self) -> int:
        """An int key that nobody else uses: those know no namespace."""
        return secrets.randbits(63)

    def channel(self) -> str:
        """A channel that nobody else uses: those know no namespace."""
        return secrets.token_hex(12)

    async def settle(self) -> None:
        """The fence: when it returns, whatever follows from what was done so far has followed."""
        for _ in range(_ROUNDS):
            for coordinator in self._made:
                if _health(coordinator) is not None:
                    self._fences += 1
                    with contextlib.suppress(LockLost):  # by a fault of the case
                        await (await coordinator.lock(f"fence {self._fences}").acquire()).release()
            await turns(_TURNS)

    async def waiting(self, what: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task for what must wait; it is shown that it does."""
        task = asyncio.create_task(what)
        await self.settle()
        assert not task.done(), f"this was to wait, and it has ended: {task}"
        return task

    async def free(self, wanted: Acquirable) -> None:
        """Show that it can be had, and leave it free. Waits until it can, up to the limit of the case."""
        await (await wanted.acquire()).release()

    async def close(self) -> None:
        """Close everything that was made."""
        for coordinator in self._made:
            await coordinator.close()

    async def nothing_left(self) -> None:
        """Wait until no coordinator that is open holds or waits for anything. AssertionError, if one does for long."""
        for coordinator in self._made:

            def idle(coordinator: AsyncCoordinator = coordinator) -> bool:
                health = _health(coordinator)
                return health is None or not (health.locks_held or health.locks_waited_for)

            await eventually_async(
                idle, what="at the end of the case its coordinators hold nothing and wait for nothing"
            )


Play = Callable[[Stage], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One guarantee: ``title`` says it, ``play`` shows it, ``needs`` are the capabilities and faults it takes."""

    room: str
    play: Play
    needs: frozenset[Need]

    @property
    def title(self) -> str:
        """The guarantee, a sentence."""
        return " ".join((self.play.__doc__ or "").split())

    def __str__(self) -> str:
        return f"{self.room}.{self.play.__name__}"


ALL: Final[list[Case]] = []
"""Every case, in the order in which it was written."""


def case(*needs: Need) -> Callable[[Play], Play]:
    """Register a case. Its docstring is the guarantee."""

    def add(play: Play) -> Play:
        ALL.append(Case(play.__module__.rpartition(".")[2], play, frozenset(needs)))
        return play

    return add


def run(
    case: Case,
    venue: Venue,
    *,
    engine: Literal["loop", "thread"] = "loop",
    limit: float = 30.0,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Play one case on a new event loop.

    :param engine: the ``engine`` of its coordinators.
    :param limit: seconds for the whole case.

    Raises ``Skipped`` if the venue lacks what it needs, ``AssertionError`` if the guarantee is broken, the case does
    not end in time, or something is left behind: a hold, a waiter, a task. What the backend raises goes through.
    """
    if not __debug__:
        raise RuntimeError("the conformance suite is made of assertions, and python -O leaves them out")
    missing = case.needs - venue.capabilities - venue.faults
    if missing:
        raise Skipped(f"needs {', '.join(sorted(missing))}: {case.title}")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_played(case, venue, engine, limit))


async def _played(case: Case, venue: Venue, engine: str, limit: float) -> None:
    tasks = asyncio.all_tasks()
    stage = Stage(venue, engine)
    try:
        try:
            await _within(limit, case.play(stage), f"{case} has not ended")
        except AssertionError as broken:
            broken.add_note(f"What is broken, {case}: {case.title}")
            raise
        await stage.nothing_left()
    finally:
        await _within(limit, stage.close(), f"after {case} the coordinators are not closed")
    await eventually_async(
        lambda: not (asyncio.all_tasks() - tasks),
        min(limit, 10.0),
        what=f"no task is left behind by {case}: {_names(tasks)}",
    )


async def _within(limit: float, work: Coroutine[Any, Any, None], failure: str) -> None:
    within = asyncio.timeout(limit)
    try:
        async with within:
            await work
    except TimeoutError as late:
        if not within.expired():
            raise
        raise AssertionError(f"{failure} within {limit:g} s{_waiting_at(late.__cause__)}") from None


def _waiting_at(cancelled: BaseException | None) -> str:
    """The line of a case at which it was still waiting."""
    here = Path(__file__)
    frames = [] if cancelled is None else traceback.extract_tb(cancelled.__traceback__)
    for frame in frames:
        path = Path(frame.filename)
        if path.parent == here.parent and path != here:
            return f": it waits in line {frame.lineno} of {path.name}, {frame.line}"
    return ""


def _names(before: set[asyncio.Task[Any]]) -> str:
    return ", ".join(sorted(task.get_name() for task in asyncio.all_tasks() - before))


def _health(coordinator: AsyncCoordinator) -> Health | None:
    return coordinator.health() if coordinator._register is not None else None


async def turns(count: int) -> None:
    """Let the event loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


class raises(Generic[E]):  # noqa: N801 - reads as a verb
    """A block that must raise one kind of error, with these parts in its message; the error is in ``error`` then."""

    def __init__(self, kind: type[E], *parts: str) -> None:
        self._kind = kind
        self._parts = parts
        self.error: E

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert error is not None, f"{self._kind.__name__} was to be raised, and nothing was"
        if not isinstance(error, self._kind):
            return False
        for part in self._parts:
            assert part in str(error), f"{part!r} is missing in: {error}"
        self.error = error
        return True


def got(hold: AsyncHold | None) -> AsyncHold:
    """The hold of a try that must have succeeded."""
    assert hold is not None, "try_acquire() gave None, and nothing is in the way"
    return hold


async def cancelled_everywhere(make: Callable[[], Coroutine[Any, Any, T]]) -> AsyncIterator[T | None]:
    """Run what ``make`` makes again and again, cancelled at each of its awaits in turn: while it waits there, and in
    the instant in which its wait is over. Yields what came of each run, ``None`` if the cancel did."""
    at = 0
    reached = True
    while reached:
        at += 1
        for late in (False, True):
            task = asyncio.create_task(_disturbed(make(), at, late))
            try:
                result, reached = await task
            except asyncio.CancelledError:
                yield None
            else:
                yield result


async def _disturbed(coroutine: Coroutine[Any, Any, T], at: int, late: bool) -> tuple[T, bool]:
    return await _cancelled_at(coroutine, at, late)


@types.coroutine
def _cancelled_at(coroutine: Coroutine[Any, Any, T], at: int, late: bool) -> Generator[Any, Any, tuple[T, bool]]:
    task = asyncio.current_task()
    assert task is not None
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    awaits = 0
    while True:
        try:
            awaited = step(value)
        except StopIteration as end:
            return end.value, awaits >= at
        awaits += 1
        if awaits == at:
            if late and awaited is not None:
                # it comes before the task's own callback, so the task is cancelled with its answer under way
                awaited.add_done_callback(lambda _: task.cancel())
            else:
                task.cancel()
        try:
            value, step = (yield awaited), coroutine.send
        except BaseException as error:
            value, step = error, coroutine.throw


def cases() -> Sequence[Case]:
    """All cases, for ``pytest.mark.parametrize("case", cases(), ids=str)``."""
    return tuple(ALL)
