"""One run of a runner, from its start to its end: the loop that asks a shift and calls the tasker.

Theory. One task drives it. It asks one thing at a time, so what calls of the tasker come to while a turn is under way
leaves with the next one: that is the group commit. Calls (``calls.py``) tell the loop when they have ended. States::

    opening --a session is there--> running --stop--> stopping --the session has ended--> ended
       \\------- it cannot be had, or stop ----------------------------------------------/

*Loss.* When the shift is lost, calls that have its tasks are cancelled at once (a thread is told when it asks). Another
shift begins at once; one that is lost before it answered anything counts as a failure, so nothing spins.

*Ticks.* At a tick the share is looked at also while all calls are busy: what the dead had is taken over, to be begun
later, or by whoever is idle then. Not so if all places are held by calls that have lost their tasks: who knows when
they end.

*Moves.* The finder is asked at each tick, but not at the first of a shift, which stands where it has just said: so one
that never says the same twice costs a session per tick, and its tasks are done. While it fails nothing is begun, and
what was done is reported all the same. ``stop`` does not wait for it.

*Failure* of a turn, a finder, or a start is an event, and is tried again after a pause; the shift keeps what it was
told. Only the first start raises. A coordinator that is closed ends it.

*The end.* What a turn gave that was under way when ``stop`` came is released, and reaches no tasker. Calls that are
under way have until the deadline. Then they are cancelled, and have a moment to come to their end. Then the session
ends. Whoever cancels the task that drives this hastens the end, and does not prevent it. What ends a program
(``KeyboardInterrupt``, ``SystemExit`` in a tasker) ends the run, and is its ``failure``.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable
from functools import partial
from typing import Final, TypeVar

from ..acquiring import Register
from ..errors import CoordinatorClosed, SessionLost, Stopped
from ..events.tasks import (
    RunnerFailed,
    RunnerSessionEnded,
    RunnerSessionLost,
    RunnerSessionStarted,
    RunnerStep,
    TaskDied,
)
from ..sessions.register import SessionRegister
from .calls import Calls, Tally
from .opening import Opened, Opening
from .pace import Pace
from .shift import Handed, Shift
from .tasker import Call, Work, shown

__all__ = ["Engine"]

T = TypeVar("T")

_CLEANUP: Final = 2.0
"""Seconds that calls have for their end after they were cancelled by ``stop``."""
_LAST: Final = 5.0
"""Seconds that the source has for the last answer."""


class Engine:
    """See the module. ``size`` and ``concurrency``: how many tasks a call gets, and how many calls there are, at most.
    All calls belong to the loop of the register."""

    def __init__(
        self,
        of: SessionRegister[Register],
        name: str,
        opening: Opening,
        work: Work,
        tally: Tally,
        *,
        tick: float,
        jitter: float,
        size: int,
        concurrency: int,
    ) -> None:
        self._of = of
        self._loop = of.register.loop
        self._events = of.events
        self._name = name
        self._opening = opening
        self._tally = tally
        self._pace = Pace(tick, jitter)
        self._calls = Calls(
            name,
            work,
            tally,
            of.events,
            tick=tick,
            size=size,
            most=concurrency,
            ended=self._call_ended,
            fatal=self._fail,
        )
        self._hint = asyncio.Event()
        self._opened: Opened | None = None
        self._moving = False
        """Whether the tasks are elsewhere now, and calls are under way for what was here."""
        self._leaving = False
        self._fresh = self._looking = False
        """Whether the shift has been asked nothing yet; whether the finder is asked."""
        self._lost: Shift | None = None
        """The shift whose loss was told last."""
        self._watch: object = None
        self._owes = False
        """Whether the shift has something to say again."""
        self._more = False
        self._limit: asyncio.Timeout | None = None
        self._deadline = math.inf
        self._pid = os.getpid()
        self.started: asyncio.Future[None] = self._loop.create_future()
        """Settled when the first session is there, or cannot be had."""
        self.stopping = False
        self.failure: BaseException | None = None
        """What ended it, if that was neither ``stop`` nor the end of the coordinator."""

    @property
    def session(self) -> int | None:
        """The number of the session, if it has one. From any thread."""
        opened = self._opened
        return None if opened is None or opened.shift.lost is not None else opened.shift.session

    @property
    def running(self) -> int:
        """How many tasks are in the hands of the tasker. From any thread."""
        return self._calls.running

    def has(self, call: Call) -> bool:
        """Whether this call is under way here."""
        return call in self._calls

    def wake(self) -> None:
        """There may be new tasks."""
        self._pace.woken(self._loop.time())
        self._hint.set()

    def stop(self, limit: float | None) -> None:
        """No new task from now on; calls under way have ``limit`` seconds (``None``: any time). Of several deadlines
        the first counts."""
        deadline = math.inf if limit is None else self._loop.time() + limit
        if self.stopping and deadline >= self._deadline:
            return
        self.stopping = True
        self._deadline = deadline
        self._hint.set()
        # what is begun for nothing ends now; a turn may still say what was done
        self._cut(0 if self._opened is None or self._looking else deadline + _CLEANUP + _LAST)

    async def live(self) -> None:
        """The whole of it."""
        try:
            await self._open()
            await self._serve()
        except asyncio.CancelledError:
            self.stop(0)
        except BaseException as error:
            self._fail(error)
        if self._pid != os.getpid():
            return  # all of it is the parent's
        try:
            await self._end()
        finally:
            if not self.started.done():
                self.started.set_exception(Stopped(f"runner {self._name!r} was stopped before it had a session"))
                self.started.exception()  # nobody may be left to look at it

    # the loop

    async def _serve(self) -> None:
        while not self._done():
            now = self._loop.time()
            opened = self._opened
            if opened is None:
                await (self._rest(self._pace.retry_at) if now < self._pace.retry_at else self._open())
            elif (reason := opened.shift.lost) is not None:
                self._lose(opened.shift, reason)
                await self._leave(opened)
            elif self._lost is opened.shift or (self._moving and not self._calls):
                await self._leave(opened)
            else:
                await self._step(opened, now)

    def _done(self) -> bool:
        if self._pid != os.getpid():
            return True
        over = not self._calls or self._opened is None or self._loop.time() >= self._deadline
        return self.stopping and over

    async def _step(self, opened: Opened, now: float) -> None:
        """The next turn, if it is due; else wait for what comes."""
        pace = self._pace
        takes = not (self.stopping or self._moving)
        room = self._calls.room if takes else 0
        says = self._owes or self._calls.to_report
        due = math.inf
        if room:
            due = pace.due()
        elif takes and self._calls.working:
            due = pace.tick_due()
        if says and now >= pace.retry_at:
            await self._turn(opened, 0 if pace.paused(now) else room)
        elif now >= due:
            await self._turn(opened, room)
        else:
            await self._rest(min(due, pace.retry_at if says else math.inf, self._deadline))

    async def _rest(self, until: float) -> None:
        """Until then, or until something has happened."""
        timer = self._loop.call_at(until, self._hint.set) if until < math.inf else None
        try:
            await self._hint.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._hint.clear()

    async def _turn(self, opened: Opened, room: int) -> None:
        pace, shift = self._pace, opened.shift
        now = self._loop.time()
        ticks = not self.stopping and not self._moving and pace.ticks(now) and (room > 0 or self._calls.working)
        if ticks and not self._fresh and not await self._look(opened):
            if not (self._owes or self._calls.to_report):
                return
            room, ticks = 0, False
        try:
            if self.stopping:
                room = 0
            pick = not self.stopping and (ticks or (room > 0 and not self._more))
            pace.turn_begins(now, picks=room > 0)
            report = self._calls.report()
            self._tally.turns += 1
            self._owes = True
            self._fresh = False
            handed = await self._within(shift.turn(report, room, pick=pick))
        except SessionLost as error:
            self._lose(shift, shift.lost or error.reason)
        except CoordinatorClosed:
            self.stop(0)
        except _CutShort:
            pass  # it is lost, or the time for an orderly end is over
        except Exception as error:
            step: RunnerStep = getattr(shift, "step", "get work")
            self._tell_failure(step, shown(error), pace.failed(self._loop.time()))
        else:
            opened.answered = True
            self._owes = False
            self._more = handed.more
            pace.turn_ended(now, picked=pick, short=len(handed.tasks) < room, next_in=handed.next_in)
            self._take(opened, handed)

    async def _look(self, opened: Opened) -> bool:
        """Whether the tasks are still here, as far as anybody can say."""
        self._looking = True
        try:
            self._moving = await self._within(self._opening.has_moved(opened))
            return not self._moving
        except _CutShort:
            pass  # the shift is lost, or nothing is begun any more
        except Exception as error:
            self._tell_failure("find source", shown(error), self._pace.failed(self._loop.time()))
        finally:
            self._looking = False
        return False

    def _take(self, opened: Opened, handed: Handed) -> None:
        """What a turn gave."""
        self._tally.sessions, self._tally.share = handed.sessions, handed.share
        self._learn(opened.shift, handed)
        if not handed.tasks or opened.shift.lost is not None:
            return
        if self.stopping:
            self._calls.release(handed.tasks)
        else:
            self._calls.begin(opened.shift, opened.make, handed.tasks)

    def _call_ended(self, completed: int | None) -> None:
        if completed is not None:
            self._pace.call_ended(self._loop.time(), completed)
        self._pace.eager = True
        self._hint.set()

    def _lose(self, shift: Shift, reason: str) -> None:
        """A shift is lost: those who work for it are to end."""
        if self._opened is None or self._opened.shift is not shift or self._lost is shift:
            return
        self._lost = shift
        self._tally.lost_sessions += 1
        tasks = self._calls.lose(shift, reason)
        self._events.emit(RunnerSessionLost(runner=self._name, session=shift.session, tasks=tasks, reason=reason))
        if not self._leaving:
            self._cut(0)
        self._hint.set()

    # the shifts

    async def _open(self) -> None:
        """Begin a shift."""
        began = self._loop.time()
        try:
            self._opened = opened = await self._within(self._opening.begin())
        except _CutShort:
            return
        except Exception as error:
            if not self.started.done():
                self.started.set_exception(error)
                self.stop(0)
            elif isinstance(error, CoordinatorClosed):
                self.stop(0)
            else:
                self._tell_failure(self._opening.step, shown(error), self._pace.failed(self._loop.time()))
            return
        shift = opened.shift
        self._calls.shift = shift
        self._fresh = True
        self._pace.anew()
        if opened.wakes is not None:
            self._watch = self._of.sessions.watch(opened.wakes, self.wake)
        self._events.emit(
            RunnerSessionStarted(runner=self._name, session=shift.session, duration=self._loop.time() - began)
        )
        if not self.started.done():
            self.started.set_result(None)
        shift.when_lost(partial(self._lose, shift))

    async def _leave(self, opened: Opened) -> None:
        """End a shift."""
        shift = opened.shift
        began = self._loop.time()
        self._leaving = True
        try:
            self._learn(shift, await self._within(shift.end(self._calls.report())))
        except CoordinatorClosed:
            self.stop(0)
        except SessionLost as error:
            self._lose(shift, error.reason)
        except _CutShort:
            self._tell_failure("end session", f"no answer within {self._loop.time() - began:.1f} s", 0.0)
        except Exception as error:
            self._tell_failure("end session", shown(error), 0.0)
        else:
            if self._lost is not shift:
                duration = self._loop.time() - began
                self._events.emit(RunnerSessionEnded(runner=self._name, session=shift.session, duration=duration))
        finally:
            self._opened = self._calls.shift = None
            self._leaving = False
            self._owes = self._more = self._moving = False
            watch, self._watch = self._watch, None
            if watch is not None:
                self._of.sessions.unwatch(watch)
            if self._lost is shift and not opened.answered:
                self._pace.failed(self._loop.time())

    async def _end(self) -> None:
        """The end of everything."""
        await self._calls.end(_CLEANUP)
        self._deadline = self._loop.time()
        if self._opened is not None:
            await self._leave(self._opened)

    async def _within(self, doing: Awaitable[T]) -> T:
        """What somebody else does, unless that is cut short."""
        ends = self._deadline + _CLEANUP + _LAST  # endless while nobody stops it
        limit = asyncio.timeout_at(None if math.isinf(ends) else ends)
        try:
            async with limit:
                self._limit = limit
                return await doing
        except TimeoutError:
            if limit.expired():
                raise _CutShort from None
            raise
        finally:
            self._limit = None

    def _cut(self, when: float) -> None:
        if self._limit is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._limit.reschedule(None if math.isinf(when) else when)

    def _fail(self, error: BaseException) -> None:
        if not self.started.done():
            self.started.set_exception(error)
        self.failure = self.failure or error
        self.stop(0)

    # what is told

    def _learn(self, shift: Shift, handed: Handed) -> None:
        self._tally.completed -= len(handed.refused)
        self._calls.refuse(shift, handed.refused)
        for task in handed.died:
            self._events.emit(TaskDied(runner=self._name, task=task))

    def _tell_failure(self, step: RunnerStep, error: str, retry_in: float) -> None:
        self._events.emit(
            RunnerFailed(runner=self._name, code=step, error=error, retry_in=retry_in, session=self.session)
        )


class _CutShort(Exception):
    """There is no time left for what is under way, or no use for it."""
