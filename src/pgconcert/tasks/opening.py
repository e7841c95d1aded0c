"""From what an application says of its source to a shift there.

Theory. A *finder* is asked anew at each tick and each heartbeat. A shift over a ``TaskSource`` asks it itself, and goes
on with whatever it says: a session that is not known there is over. A queue or a table is a place of our own store; if
the finder names another place, the shift ends here and one begins there, when the calls under way have ended.

An attempt that failed may have left a session without an entry, or an entry of which nobody knows. The next attempt
uses the same id, so it finds both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from uuid import uuid4

from ..acquiring import Register
from ..errors import ConfigurationError, Unavailable, given
from ..events.tasks import RunnerAdvised, RunnerStep
from ..sessions.register import SessionRegister
from ..sessions.timing import Timing
from ..store import Subject
from ..taskstore import CheckPlace, Place, QueuePlace, TablePlace, wake_subject
from ..watching import ask
from . import sourceshift
from .calling import Caller
from .functions import FunctionSource
from .membership import join
from .newtask import queue_place
from .pace import rest
from .shift import Shift
from .sources import Finder, FunctionTasks, QueueTasks, Source, TableTasks, TaskSource
from .storeshift import StoreShift
from .tasker import Make

__all__ = ["Opened", "Opening", "check_source"]

_WHAT: Final = "QueueTasks, TableTasks, FunctionTasks or a TaskSource"
_LEAST_SHARE: Final = 0.5
_SEARCH: Final = 30.0
"""Seconds that a finder has."""


@dataclass(slots=True)
class Opened:
    """A shift, and what it is of. ``place``: in our own store, ``None``: elsewhere. ``wakes``: who is woken when there
    is something new. ``answered``: whether it ever answered a turn."""

    shift: Shift
    place: Place | None
    wakes: Subject | None
    make: Make | None
    answered: bool = False


class Opening:
    """See the module. ``moved`` is told of tasks that moved here."""

    def __init__(
        self,
        of: SessionRegister[Register],
        name: str,
        source: Source | Finder,
        timing: Timing,
        *,
        most: int | None,
        tick: float,
        jitter: float,
        moved: Callable[[int], None],
    ) -> None:
        self._of = of
        self._name = name
        self._timing = timing
        self._most = most
        self._tick = tick
        self._every = tick * max(1 - jitter, _LEAST_SHARE) * 0.99
        self._moved = moved
        self._given: Any = source
        self._finder = check_source(source)
        self._caller = Caller()
        self._latest: Source | None = None
        self._advised: Place | None = None
        """For which place it was told what would make it faster."""
        self._moved_to: Source | None = None
        """Found by a tick, to be begun at: who is asked once more might say something else."""
        self._elsewhere: TaskSource | None = None
        self._functions: tuple[FunctionTasks, FunctionSource] | None = None
        self._member = uuid4().hex
        self.step: RunnerStep = "find source"
        """What ``begin`` does at the moment, or did when it raised."""

    async def begin(self) -> Opened:
        """Find the source and start a session there. Raises what that raises; then nothing is left running."""
        self.step = "find source"
        moved_to, self._moved_to = self._moved_to, None
        source = moved_to or await self._find()
        self.step = "start session"
        place = self._place(source)
        if place is None:
            self._stay(source)
            shift = await sourceshift.begin(
                self._find_elsewhere,
                runner=self._name,
                most=self._most,
                clock=self._of.sessions.clock,
                events=self._of.events,
            )
            return Opened(shift, None, None, None)
        advice = await ask(self._of, CheckPlace(place))
        if place != self._advised:
            self._advised = place
            for sentence in advice:
                self._of.events.emit(RunnerAdvised(runner=self._name, advice=sentence))
        membership = await join(self._of, self._name, self._member, self._timing, _shown(place))
        self._member = uuid4().hex
        ours = StoreShift(
            self._of,
            place,
            membership,
            most=self._most,
            every=self._every,
            rest=partial(rest, self._tick),
            moved=self._moved,
        )
        make = source.make if isinstance(source, TableTasks) else None
        return Opened(ours, place, wake_subject(place, self._of.keys.namespace), make)

    async def has_moved(self, opened: Opened) -> bool:
        """Ask the finder, if there is one, whether the tasks are at another place now. Raises what it raises."""
        if not self._finder:
            return False
        source = self._latest if opened.place is None else await self._find()
        assert source is not None
        if isinstance(source, TableTasks):
            opened.make = source.make  # a function that is made anew each time moves nothing
        self._moved_to = None if self._place(source) == opened.place else source
        return self._moved_to is not None

    async def _find(self) -> Source:
        found: object = await self._search() if self._finder else self._given
        if not _is_source(found):
            raise ConfigurationError(
                f"the source of runner {self._name!r} was looked for and is {given(found)}, not {_WHAT}"
            )
        self._latest = source = cast("Source", found)
        return source

    async def _search(self) -> object:
        limit = asyncio.timeout(_SEARCH)
        try:
            async with limit:
                return await self._caller.call(self._given)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Unavailable(
                f"the function that finds the source of runner {self._name!r} has not answered within {_SEARCH:g} s"
            ) from error

    async def _find_elsewhere(self) -> TaskSource:
        return self._stay(await self._find())

    def _stay(self, source: Source) -> TaskSource:
        """Where the tasks are elsewhere, by what was found now or, if that is in our own store, before."""
        if isinstance(source, FunctionTasks):
            if self._functions is None or self._functions[0] != source:
                self._functions = source, FunctionSource(self._of, source)
            self._elsewhere = self._functions[1]
        elif not isinstance(source, QueueTasks | TableTasks):
            self._elsewhere = source
        # what has moved to our own store ends where it was
        assert self._elsewhere is not None
        return self._elsewhere

    def _place(self, source: Source) -> Place | None:
        if isinstance(source, QueueTasks):
            return queue_place(self._of.keys, source)
        if isinstance(source, TableTasks):
            return TablePlace(source.table, source.id, source.where, source.order_by, source.finish, source.session)
        return None


def check_source(source: object) -> bool:
    """Whether this is a finder; raises ``ConfigurationError`` if it is no source either."""
    if _is_source(source):
        return False
    if not callable(source) or source in (QueueTasks, TableTasks, FunctionTasks):
        raise ConfigurationError(
            f"the source of a runner is {_WHAT}, or a function that returns one, not {given(source)}"
        )
    return True


def _is_source(source: object) -> bool:
    return not isinstance(source, type) and isinstance(source, QueueTasks | TableTasks | FunctionTasks | TaskSource)


def _shown(place: Place) -> str:
    return f"queue {place.name}" if isinstance(place, QueuePlace) else f"table {place.table}"
