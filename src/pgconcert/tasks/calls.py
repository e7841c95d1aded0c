"""The calls of a tasker that are under way, and what is to be reported of those that have ended.

Theory. A task in hand is with a call, from the turn that gave it to the report of what became of it. There is one shift
at a time; what a call that worked for an earlier one completes is *refused*, and told. A call that was told to end
keeps its place until it has ended, for it may still be at work.

By its end a call is one of: *done* (what it completed is finished, the rest has failed), *cancelled by stop* (all is
released), *late* (its shift is lost, or its tasks were released because it did not end in time: refused). Results wait
here for the next turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..events import EventStream
from ..events.stream import GOES_ON
from ..events.tasks import RunnerFailed, TasksBegun, TasksDone, TasksRefused
from .pace import rest
from .shift import NotDone, Report, Shift
from .task import Task
from .tasker import Call, Make, Outcome, Work, shown

__all__ = ["Calls", "Tally"]

_TOLD: Final = 100
"""How many ids an event names."""
_CANCELLED: Final = "its work was cancelled by somebody else"
_STOPPED: Final = "its runner was stopped"


@dataclass(slots=True)
class Tally:
    """What is counted of a runner."""

    sessions: int = 0
    share: int = 0
    turns: int = 0
    handed: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    moved: int = 0
    lost_sessions: int = 0


class Calls:
    """See the module. ``size``: how many tasks one call gets at most, ``most``: how many calls there are at a time.

    ``ended`` is told when a call has ended, and how many tasks it completed (``None``: it says nothing, for they were
    not ours any more); ``fatal`` what ends a program, and was raised by a tasker.
    """

    def __init__(
        self,
        runner: str,
        work: Work,
        tally: Tally,
        events: EventStream,
        *,
        tick: float,
        size: int,
        most: int,
        ended: Callable[[int | None], None],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._runner = runner
        self._work = work
        self._tally = tally
        self._events = events
        self._tick = tick
        self._size = size
        self._most = most
        self._tell_ended = ended
        self._tell_fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._calls: set[Call] = set()
        self._finished: list[Task] = []
        self._failed: list[NotDone] = []
        self._released: list[Task] = []
        self.shift: Shift | None = None
        """For whom is worked."""
        self.ending = False
        """Whether what is cancelled is released."""

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, call: Call) -> bool:
        return call in self._calls

    @property
    def running(self) -> int:
        """How many tasks are in hand. From any thread."""
        return sum(len(call.tasks) for call in [*self._calls])

    @property
    def room(self) -> int:
        """How many tasks could be taken now."""
        return (self._most - len(self._calls)) * self._size

    @property
    def working(self) -> bool:
        """Whether a place will be free in time: some are held by those who work for the present shift."""
        return any(call.shift is self.shift for call in self._calls)

    @property
    def to_report(self) -> bool:
        """Whether there are results."""
        return bool(self._finished or self._failed or self._released)

    def report(self) -> Report:
        """The results, which are the caller's from now on."""
        report = Report(tuple(self._finished), tuple(self._failed), tuple(self._released))
        self._finished, self._failed, self._released = [], [], []
        return report

    def begin(self, shift: Shift, make: Make | None, tasks: tuple[Task, ...]) -> None:
        """Hand out tasks, not more than there is room for, evenly to those who have nothing to do."""
        free = self._most - len(self._calls)
        size = min(self._size, -(-len(tasks) // free))
        for first in range(0, len(tasks), size):
            self._begin(Call(next(self._numbers), shift, tasks[first : first + size], make, self._loop.time()))

    def release(self, tasks: tuple[Task, ...]) -> None:
        """Give back what was not handed out."""
        self._released += tasks

    def lose(self, shift: Shift, reason: str) -> int:
        """Those who work for a shift are to end: how many tasks they have."""
        calls = [call for call in self._calls if call.shift is shift]
        for call in calls:
            call.cancel(reason)
        return sum(len(call.tasks) for call in calls)

    async def end(self, limit: float) -> None:
        """All are to end, within a limit; what those have who do not is released. Whoever cancels this hastens it."""
        self.ending = True
        for call in self._calls:
            call.cancel(_STOPPED)
        ending = [call.task for call in self._calls if call.task is not None and not call.in_thread]
        if ending:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(ending, timeout=limit)
        for call in self._calls:
            call.released = True
            if call.shift is self.shift:
                self._released += call.tasks

    def refuse(self, shift: Shift, tasks: tuple[Task, ...]) -> None:
        """These were completed for a shift, and are not ours to finish."""
        if tasks:
            self._tally.refused += len(tasks)
            ids = tuple(task.id for task in tasks[:_TOLD])
            self._events.emit(TasksRefused(runner=self._runner, session=shift.session, tasks=len(tasks), ids=ids))

    def _begin(self, call: Call) -> None:
        self._calls.add(call)
        tasks = len(call.tasks)
        self._tally.handed += tasks
        if self._events.wants(TasksBegun):
            begun = TasksBegun(runner=self._runner, session=call.shift.session, work=call.number, tasks=tasks)
            self._events.emit(begun)
        call.task = self._loop.create_task(self._work.do(call), name=f"pgconcert tasks of runner {self._runner!r}")
        call.task.add_done_callback(partial(self._ended, call))

    def _ended(self, call: Call, task: asyncio.Task[Outcome]) -> None:
        self._calls.discard(call)
        outcome = Outcome(cancelled=True) if task.cancelled() else task.result()
        self._tell(call, outcome)
        says: int | None = None
        if call.released or call.shift is not self.shift or call.shift.lost is not None:
            self.refuse(call.shift, outcome.completed)
        elif outcome.cancelled and self.ending:
            self._released += call.tasks
        else:
            says = len(outcome.completed)
            self._keep(call, outcome)
        if isinstance(outcome.error, GOES_ON):
            self._tell_fatal(outcome.error)
        self._tell_ended(says)

    def _keep(self, call: Call, outcome: Outcome) -> None:
        """Keep the results, to be reported."""
        failed = tuple((task, _CANCELLED) for task in call.tasks) if outcome.cancelled else outcome.failed
        undone = [NotDone(task, why, rest(self._tick, task.attempt)) for task, why in failed]
        self._finished += outcome.completed
        self._failed += undone
        self._tally.completed += len(outcome.completed)
        self._tally.failed += len(undone)
        error = outcome.spoilt if outcome.error is None else shown(outcome.error)
        if error is not None:
            again = min(one.retry_in for one in undone)
            session = call.shift.session
            self._events.emit(
                RunnerFailed(runner=self._runner, code="run tasks", error=error, retry_in=again, session=session)
            )

    def _tell(self, call: Call, outcome: Outcome) -> None:
        if self._events.wants(TasksDone):
            self._events.emit(
                TasksDone(
                    runner=self._runner,
                    session=call.shift.session,
                    work=call.number,
                    tasks=len(call.tasks),
                    completed=len(outcome.completed),
                    duration=self._loop.time() - call.began,
                    error=None if outcome.error is None else shown(outcome.error),
                )
            )
