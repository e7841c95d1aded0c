"""A shift over a ``TaskSource``: functions of go-session-lock, and whatever the application writes.

Theory. The source knows sessions and tasks; everything else is known here, of every task that the source last said is
ours, in one of these states::

    waiting --handed out--> in hand --finished--> unsaid --the source has answered--> gone, or refused
       ^  ^                  |  |
       |  +---- released ----+  +---- failed ---> waiting, and resting until its time

``get_work`` returns all that the session has, so what it names and is neither in hand nor unsaid is waiting, and what
waited and is not named any more is forgotten. Nothing is handed out twice by that, whatever the source repeats.

What was reported as finished stays unsaid until the source has answered; every turn says it again. If it was said
before, an answer that leaves it out means that the first time was heard, because a task of a session that lives goes to
nobody else: it counts as finished. Only what was said for the first time can be *refused*.

The session is trusted until the send time of its last answered start or bump, plus ttl, less the margin of
``sessions/timing.py``. The source is looked for anew by each turn that needs it and by each bump, which leaves every
quarter of the ttl. A bump that fails, or has no answer within half of that pause, changes nothing: it is told
(``RunnerFailed``) and tried again soon. The shift is *lost* when the source says ``SessionNotFound``, to whatever; when
the trust ends; or when a source of another kind is found, or functions in another schema, where the number of our
session may be that of somebody else's. It is lost for good: no later answer revives it, nobody is asked any more, and
what is unsaid is handed back by ``end`` as refused.

A turn that is cancelled, or raises, has changed at most the source: its report is kept, and what the source assigned
meanwhile is in the next answer. From the first call of ``end`` on no bump leaves, so a session whose end nobody
answered is over when its time is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..clock import Clock
from ..errors import ConfigurationError, SessionLost, SessionNotFound, Unavailable, given
from ..events import EventStream
from ..events.tasks import RunnerFailed, RunnerStep
from ..sessions.alarm import Alarm
from ..sessions.timing import Timing, timing
from .calling import Caller
from .functions import FunctionSource
from .shift import Handed, Report
from .sources import TaskSource
from .task import Task
from .tasker import shown

__all__ = ["Find", "SourceShift", "begin"]

Find = Callable[[], Awaitable[TaskSource]]
"""Finds the source. Asked by each turn that needs it, and by each bump."""

_RETRY_SHARE: Final = 0.25
_NOT_FOUND: Final = "the source says that its session is over, or was never there"
_ENDED: Final = "its session was ended"


async def begin(find: Find, *, runner: str, most: int | None, clock: Clock, events: EventStream) -> SourceShift:
    """Start a session at the source that is found: the shift, whose heartbeat goes on until it is lost or ended.

    ``most`` is the cap that the source is given, ``runner`` the name in events. Raises what the finder and the source
    raise, and ``Unavailable`` if the start took longer than the session is trusted. If it raises or is cancelled,
    nothing is left running; a session that a plain ``start_session`` starts after that is ended.
    """
    source = await find()
    times = _times(source)
    caller = Caller()
    sent = clock.now()
    session = await caller.call(source.start_session, unclaimed=_ending(source))
    if not isinstance(session, int) or isinstance(session, bool):
        raise TypeError(f"start_session of a source returns a whole number, not {given(session)}")
    took = clock.now() - sent
    if took >= times.ttl - times.margin:
        with contextlib.suppress(Exception):  # it is over by itself, a little later
            async with asyncio.timeout(times.timeout):
                await caller.call(source.end_session, session)
        raise Unavailable(f"starting session {session} took {took:.1f} s, and its ttl is only {times.ttl:g} s")
    return SourceShift(session, times, sent, source, caller, find, runner=runner, most=most, clock=clock, events=events)


class SourceShift:
    """One session at a source. Made by ``begin``; see the module, and ``Shift`` for the methods."""

    def __init__(
        self,
        session: int,
        times: Timing,
        sent: float,
        source: TaskSource,
        caller: Caller,
        find: Find,
        *,
        runner: str,
        most: int | None,
        clock: Clock,
        events: EventStream,
    ) -> None:
        self._session = session
        self._source = source
        self._call = caller.call
        self._find = find
        self._runner = runner
        self._most = most
        self._clock = clock
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, Task] = {}
        self._in_hand: dict[str, Task] = {}
        self._unsaid: dict[str, Task] = {}
        self._doubtful: set[str] = set()
        """Of what is unsaid, what was said without an answer."""
        self._refused: list[Task] = []
        """What the source has refused, until a turn tells."""
        self._resting: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._reason: str | None = None
        self._told: list[Callable[[str], None]] = []
        self._bumping: asyncio.Task[None] | None = None
        self._beat = Alarm(clock, self._loop)
        self._deadline = Alarm(clock, self._loop)
        self.step: RunnerStep = "start session"
        """What a turn, or the end, does at the moment, or did when it raised."""
        self._trust(sent, times)

    @property
    def session(self) -> int:
        """The number of the session."""
        return self._session

    @property
    def lost(self) -> str | None:
        """Why it is lost, or that it was ended. Looks at the clock; from any thread."""
        if self._reason is None and self._clock.now() >= self._trusted_until:
            return self._untrusted()
        return self._reason

    def when_lost(self, told: Callable[[str], None]) -> None:
        """Call ``told`` once, as soon as it is known to be lost; at once if it is. Not for an end that was asked."""
        reason = self.lost
        if reason is None:
            self._told.append(told)
        else:
            told(reason)

    async def turn(self, report: Report, room: int, *, pick: bool) -> Handed:
        """Report, and get at most ``room`` tasks. ``pick``: ``get_work`` is asked, else nothing new comes. Raises
        ``SessionLost``, and what the finder and the source raise; ``step`` says where."""
        self._note(report)
        self._check()
        if self._unsaid or pick:
            source = await self._found()
            await self._say(source)
            if pick:
                await self._get_work(source)
        self._check()
        return self._hand_out(room)

    async def end(self, report: Report) -> Handed:
        """Report and end the session. What cannot be reported, tried twice, is an event, and refused; the session ends
        all the same. If the shift is lost nobody is asked. Otherwise raises what the finder and the source raise where
        the session is ended; it may be called again."""
        self._note(report)
        self._stop_beating()
        if self.lost is None:
            try:
                source = await self._found()
                await self._say_at_last(source)
                self.step = "end session"
                await self._call(source.end_session, self._session)
            except (SessionLost, SessionNotFound):
                pass  # then there is nothing to end
            self._reason = self._reason or _ENDED
        self._deadline.stop()
        self._told.clear()
        refused = (*self._take_refused(), *self._unsaid.values())
        for of in (self._waiting, self._in_hand, self._unsaid, self._resting, self._attempts):
            of.clear()
        self._doubtful.clear()
        return Handed(refused=refused)

    # what is known of tasks

    def _note(self, report: Report) -> None:
        for task in report.finished:
            if self._in_hand.pop(task.id, None) is not None:
                self._unsaid[task.id] = task
        for task, _, retry_in in report.failed:
            if self._put_back(task):
                self._resting[task.id] = self._clock.now() + retry_in
        for task in report.released:
            if self._put_back(task):
                self._attempts[task.id] -= 1

    def _put_back(self, task: Task) -> bool:
        if self._in_hand.pop(task.id, None) is None:
            return False
        self._waiting[task.id] = task
        return True

    def _hand_out(self, room: int) -> Handed:
        now = self._clock.now()
        tasks: list[Task] = []
        more = False
        for name, task in self._waiting.items():
            if self._resting.get(name, now) > now:
                continue
            if len(tasks) >= room:
                more = True
                break
            tasks.append(task)
        for task in tasks:
            self._in_hand[task.id] = self._waiting.pop(task.id)
            self._resting.pop(task.id, None)
            self._attempts[task.id] = attempt = self._attempts.get(task.id, 0) + 1
            task.attempt = max(attempt, task.attempt)
            task._lost = lambda: self.lost
        rest = min(self._resting.values(), default=None)
        return Handed(
            tasks=tuple(tasks),
            refused=self._take_refused(),
            more=more,
            next_in=None if rest is None else max(0.0, rest - now),
        )

    def _take_refused(self) -> tuple[Task, ...]:
        refused, self._refused = self._refused, []
        return tuple(refused)

    # what the source is asked

    async def _found(self) -> TaskSource:
        self.step = "find source"
        return self._same(await self._find())

    def _same(self, source: TaskSource) -> TaskSource:
        moved = type(source) is not type(self._source)
        if moved or (isinstance(source, FunctionSource) and source != self._source):
            self._lose(f"its tasks are elsewhere now: {source!r}")
            raise SessionLost(f"session {self._session}", self._reason or _NOT_FOUND)
        return source

    async def _say(self, source: TaskSource) -> None:
        if not self._unsaid:
            return
        self.step = "finish tasks"
        tasks = tuple(self._unsaid.values())
        again = frozenset(self._doubtful)
        self._doubtful.update(task.id for task in tasks)
        answer = await self._asked(source.finish_tasks, tasks)
        finished = again.union(task.id for task in tasks) if answer is None else again.union(_ids(answer))
        for task in tasks:
            del self._unsaid[task.id]
            self._doubtful.discard(task.id)
            self._attempts.pop(task.id, None)
        self._refused += [task for task in tasks if task.id not in finished]

    async def _say_at_last(self, source: TaskSource) -> None:
        for attempt in (1, 2):
            try:
                await self._say(source)
            except (SessionLost, SessionNotFound):
                raise
            except Exception as error:
                if attempt == 2:  # it was the last chance
                    why = shown(error)
                    self._events.emit(
                        RunnerFailed(
                            runner=self._runner, code="finish tasks", error=why, retry_in=0.0, session=self._session
                        )
                    )

    async def _get_work(self, source: TaskSource) -> None:
        self.step = "get work"
        answer = await self._asked(source.get_work, self._most)
        if not isinstance(answer, tuple) or not all(isinstance(task, Task) for task in answer):
            raise TypeError(f"get_work of a source returns Task objects, not {given(answer)}")
        waiting: dict[str, Task] = {}
        for task in answer:
            if task.id not in self._in_hand and task.id not in self._unsaid:
                waiting.setdefault(task.id, task)
        self._waiting = waiting
        self._resting = {name: due for name, due in self._resting.items() if name in waiting}
        self._attempts = {
            name: count for name, count in self._attempts.items() if name in waiting or name in self._in_hand
        }

    async def _asked(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await self._call(method, self._session, *arguments, read=True)
        except SessionNotFound as error:
            self._lose(str(error) or _NOT_FOUND)
            raise SessionLost(f"session {self._session}", self._reason or _NOT_FOUND) from error

    # the trust

    def _trust(self, sent: float, times: Timing) -> None:
        self._sent = sent
        self._times = times
        self._trusted_until = sent + times.ttl - times.margin
        self._deadline.set(self._trusted_until, lambda: self._lose(self._untrusted()))
        self._beat.set(sent + times.interval, self._begin_bump)

    def _untrusted(self) -> str:
        return (
            f"it was not renewed for {self._clock.now() - self._sent:.1f} s, and its ttl is {self._times.ttl:g} s, "
            f"of which {self._times.margin:g} s are a margin"
        )

    def _begin_bump(self) -> None:
        if self.lost is None:
            self._bumping = self._loop.create_task(
                self._bump(), name=f"pgconcert heartbeat of session {self._session} of runner {self._runner!r}"
            )

    async def _bump(self) -> None:
        step: RunnerStep = "find source"
        try:
            async with asyncio.timeout(self._times.timeout):
                source = self._same(await self._find())
                step = "bump session"
                times = _times(source)
                sent = self._clock.now()
                await self._asked(source.bump_session)
        except SessionLost:
            return  # and everybody has been told
        except Exception as error:
            if self.lost is None:
                self._bump_again(step, error)
        else:
            # an answer that finds the trust ended already changes nothing
            if self.lost is None:
                self._trust(sent, times)

    def _bump_again(self, step: RunnerStep, error: Exception) -> None:
        pause = self._times.interval * _RETRY_SHARE * random.uniform(0.5, 1.0)
        self._beat.set(self._clock.now() + pause, self._begin_bump)
        why = f"no answer within {self._times.timeout:g} s" if isinstance(error, TimeoutError) else ""
        self._events.emit(
            RunnerFailed(
                runner=self._runner,
                code=step,
                error=str(error) or why or type(error).__name__,
                retry_in=pause,
                session=self._session,
            )
        )

    def _check(self) -> None:
        reason = self.lost
        if reason is not None:
            self._lose(reason)
            raise SessionLost(f"session {self._session}", reason)

    def _lose(self, reason: str) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        self._stop_beating()
        self._deadline.stop()
        told, self._told = self._told, []
        for tell in told:
            tell(reason)

    def _stop_beating(self) -> None:
        self._beat.stop()
        bumping, self._bumping = self._bumping, None
        if bumping is not None and bumping is not asyncio.current_task():
            bumping.cancel()


def _ending(source: TaskSource) -> Callable[[Any], object] | None:
    """How to end a session of which nobody learns, from a thread; ``None`` if only a loop can do it."""
    return None if inspect.iscoroutinefunction(source.end_session) else source.end_session


def _times(source: TaskSource) -> Timing:
    try:
        return timing(source.ttl)
    except ConfigurationError as error:
        raise ConfigurationError(f"the ttl of {type(source).__name__} cannot be used: {error}") from None


def _ids(answer: Any) -> list[str]:
    if isinstance(answer, tuple) and all(isinstance(one, (Task, str)) for one in answer):
        return [one.id if isinstance(one, Task) else one for one in answer]
    raise TypeError(f"finish_tasks of a source returns tasks or ids that were finished, or None, not {given(answer)}")
