"""``AsyncRunner``: this process's fair share of the tasks of a source, handed to a function on every tick.

Here live what is said of a runner and what is told of it; what it does stands in ``engine.py``. States::

    "" --start, and it has a session--> running --stop, or its end--> stopping --> stopped
     \\-- stop -----------------------------------------------------------------------/

Whoever waits for something here leaves when cancelled, and what was begun goes on to its end: only ``start`` and
``run`` take back what they began. There is one run in the life of a runner; a start that failed was none.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from ..acquiring import Register, check_timeout, is_number
from ..errors import ConfigurationError, Stopped, given
from ..events.stream import goes_on
from ..offloop import off_loop
from ..sessions.register import SessionRegister, subject_of
from ..sessions.timing import Timing
from ..statistics import RunnerStatistics
from .calls import Tally
from .engine import Engine
from .newtask import queue_place
from .opening import Opening, check_source
from .sources import Finder, QueueTasks, Source
from .tasker import InThread, Tasker, Work, inside

__all__ = ["AsyncRunner", "RunnerState"]

_LEAST_TICK: Final = 0.05
_MOST_TICK: Final = 86_400.0
_MOST_TASKS: Final = 1_000_000
_MOST_CALLS: Final = 10_000

_live: set[asyncio.Task[None]] = set()
"""Those that run, for event loops do not keep tasks alive."""


class RunnerState(enum.StrEnum):
    """How it is with a runner; the text is empty before it has started."""

    NEW = ""
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class AsyncRunner:
    """Works on the tasks that are this process's share. Made by ``AsyncCoordinator.runner``, which explains the
    parameters.

    ``await runner.run()`` works until ``stop`` is called or the caller is cancelled; ``async with runner:`` works while
    the block runs. On each tick, and whenever there is something new, it takes its fair share of the tasks, hands them
    to the tasker, finishes what that has completed, and goes on until nothing is left. Every task is run at least once,
    and finished only by the runner to which it belongs. If the session of the runner is lost, the calls under way are
    cancelled (a plain function asks ``task.lost``), their tasks are for others, and it goes on with another session.
    """

    def __init__(
        self,
        of: SessionRegister[Register],
        name: str,
        tasker: Tasker,
        source: Source | Finder,
        *,
        tick: float,
        jitter: float,
        tasks_per_session: int | None,
        batch: int,
        concurrency: int,
        per_task: bool,
        timing: Timing,
        in_thread: InThread = off_loop,
        unclaimed: Callable[[BaseException], None] = goes_on,
    ) -> None:
        """``in_thread`` runs plain taskers; ``unclaimed`` gets what has to be raised, if nobody waits for the end."""
        if not is_number(tick) or not _LEAST_TICK <= tick <= _MOST_TICK:
            raise ConfigurationError(
                f"tick is a number of seconds from {_LEAST_TICK} to {_MOST_TICK:g}, not {given(tick)}"
            )
        if not is_number(jitter) or not 0 <= jitter <= 1:
            raise ConfigurationError(f"jitter is the share of a tick by which ticks vary, 0 to 1, not {given(jitter)}")
        if tasks_per_session is not None:
            _check_count("tasks_per_session", tasks_per_session, 0, _MOST_TASKS)
        _check_count("batch", batch, 1, _MOST_TASKS)
        _check_count("concurrency", concurrency, 1, _MOST_CALLS)
        if per_task is not True and per_task is not False:
            raise ConfigurationError(f"per_task must be True or False, not {given(per_task)}")
        if not check_source(source) and isinstance(source, QueueTasks):
            queue_place(of.keys, source)
        self._of = of
        self._name = subject_of("runner", of.keys, name).name
        self._work = Work(tasker, per_task=per_task, in_thread=in_thread)
        self._source = source
        self._timing = timing
        self._tick = float(tick)
        self._jitter = float(jitter)
        self._most = tasks_per_session
        self._size = 1 if per_task else batch
        self._concurrency = concurrency
        self._unclaimed = unclaimed
        self._tally = Tally()
        self._engine: Engine | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self._stopped = False
        self._waiting = 0
        """How many wait for the end, and would raise what has ended it."""
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._name

    @property
    def state(self) -> RunnerState:
        """How it is with it."""
        task, engine = self._task, self._engine
        if task is None or engine is None or (task.done() and not self._started):
            return RunnerState.STOPPED if self._stopped else RunnerState.NEW
        if task.done():
            return RunnerState.STOPPED
        if engine.stopping:
            return RunnerState.STOPPING
        return RunnerState.RUNNING if self._started else RunnerState.NEW

    @property
    def session_id(self) -> int | None:
        """The number of its session; ``None`` while it has none."""
        return None if self._engine is None else self._engine.session

    @property
    def inside(self) -> bool:
        """Whether the caller is a call of the tasker that is under way, or was begun by one."""
        engine = self._engine
        return engine is not None and any(engine.has(call) for call in inside())

    def statistics(self) -> RunnerStatistics:
        """What it has done so far. From any thread."""
        tally, engine = self._tally, self._engine
        return RunnerStatistics(
            name=self._name,
            session_id=self.session_id,
            sessions=tally.sessions,
            share=tally.share,
            running=0 if engine is None else engine.running,
            turns=tally.turns,
            handed=tally.handed,
            completed=tally.completed,
            failed=tally.failed,
            refused=tally.refused,
            moved=tally.moved,
            lost_sessions=tally.lost_sessions,
        )

    async def start(self) -> None:
        """Start working. Returns when it has a session; the first tasks are looked for at once.

        Raises ``ConfigurationError`` (a table without its column, say), ``SchemaMissing``, ``Unavailable`` while there
        is no connection, ``CoordinatorClosed``, what the source raises, and ``Stopped`` after ``stop``. If it raises or
        is cancelled, nothing is left running, and it may be started again. What goes wrong later is an event
        (``RunnerFailed``), and tried again.
        """
        self._of.register.here()
        if self._stopped:
            raise Stopped(f"runner {self._name!r} was stopped; make another")
        if self._task is not None and (self._started or not self._task.done()):
            raise RuntimeError(f"runner {self._name!r} was started already")
        engine, task = self._engine, self._task = self._begin()
        try:
            await engine.started
        except BaseException:
            engine.stop(0)
            await asyncio.wait([task])
            if not self._stopped:
                self._engine = self._task = None
            raise
        self._started = True

    async def run(self) -> None:
        """Work until ``stop`` is called, or the coordinator is closed. Raises what ``start`` raises.

        Cancelled, it stops as with ``stop(0)`` before it leaves. After ``stop`` it returns at once. What ends a program
        (``KeyboardInterrupt``, ``SystemExit``) and is raised by a tasker, is raised here when all has ended.
        """
        if self._stopped:
            return
        try:
            await self.start()
        except Stopped:
            return
        try:
            failure = await self.ended()
        except asyncio.CancelledError:
            await self.stop(0)
            raise
        if failure is not None:
            raise failure

    async def stop(self, timeout: float | None = 30.0) -> None:
        """Stop working, for good. When this returns, its session has ended and its tasks are for others.

        No task is begun any more. Calls of the tasker that are under way have ``timeout`` seconds (``None``: any time)
        to end; then async ones are cancelled, and after two seconds more left behind, plain ones left behind at once;
        their tasks are released, and ``task.lost`` is true. While the server cannot be reached this takes some seconds
        more, and then the tasks are for others when the time of the session is over.

        Idempotent, in any state; the shortest of several limits counts. Called by the tasker itself, or by the source,
        it returns at once and the end goes on, and so it does if the caller is cancelled.
        """
        limit = check_timeout(timeout)
        self._stopped = True
        engine, task = self._engine, self._task
        if engine is None or task is None or task.done() or self._pid != os.getpid():
            return
        self._of.register.here()
        engine.stop(limit)
        if not self.inside and asyncio.current_task() is not task:
            await asyncio.wait([task])

    async def ended(self) -> BaseException | None:
        """Return when it has stopped; at once if it was not started. What comes back is what has ended it, if that has
        to be raised. Cancelled, it leaves, and nothing else happens."""
        task, engine = self._task, self._engine
        if task is None or engine is None:
            return None
        self._waiting += 1
        try:
            await asyncio.wait([task])
        finally:
            self._waiting -= 1
        return engine.failure

    def wake(self) -> None:
        """Look for tasks now, instead of at the next tick. Belongs to the event loop; does nothing if it does not
        run."""
        if self._engine is not None:
            self._engine.wake()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _opening(self) -> Opening:
        return Opening(
            self._of,
            self._name,
            self._source,
            self._timing,
            most=self._most,
            tick=self._tick,
            jitter=self._jitter,
            moved=self._moved,
        )

    def _begin(self) -> tuple[Engine, asyncio.Task[None]]:
        engine = Engine(
            self._of,
            self._name,
            self._opening(),
            self._work,
            self._tally,
            tick=self._tick,
            jitter=self._jitter,
            size=self._size,
            concurrency=self._concurrency,
        )
        task = self._of.register.loop.create_task(self._live(engine), name=f"pgconcert runner {self._name!r}")
        _live.add(task)
        task.add_done_callback(_live.discard)
        return engine, task

    async def _live(self, engine: Engine) -> None:
        await engine.live()
        self._stopped = self._stopped or self._started
        if engine.failure is not None and self._started and not self._waiting:
            self._unclaimed(engine.failure)

    def _moved(self, tasks: int) -> None:
        self._tally.moved += tasks

    def __repr__(self) -> str:
        session = "" if self.session_id is None else f", session {self.session_id}"
        return f"<{type(self).__name__} {self._name!r} {self.state or 'not started'}{session}>"


def _check_count(what: str, count: object, least: int, most: int) -> None:
    if type(count) is not int or not least <= count <= most:
        raise ConfigurationError(f"{what} is a whole number from {least} to {most:,}, not {given(count)}")
