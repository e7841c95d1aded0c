"""Runners for threads: the twins of ``pgconcert.tasks.runner`` and ``group``, whose loops run on the engine.

Theory. Sessions, turns, shares and reports are those of asyncio and go on whatever the application's threads do. What
runs on a thread is the tasker and nothing else: on the threads of the coordinator (``handlers.py``), of which a runner
uses as many as ``concurrency`` says; they end with the last runner. A thread cannot be cancelled. When the session is
lost, or ``stop`` has lost its patience, ``task.check()`` raises, the tasks are for others, and the tasker keeps its
place until it returns; what it returns then is refused, and told.

Whoever is interrupted in ``start`` leaves at once, and what was begun is stopped on the engine. In ``run`` an
interrupt stops the runner as ``stop`` does; another one ends the waiting, and the runner ends without any patience.

A tasker that stops its own runner would wait for itself. Whether a stop comes from inside of one is seen by the
context of the caller (``AsyncRunner.inside``), so the stop runs on the engine in a copy of that.
"""

from __future__ import annotations

import asyncio
import contextvars
import warnings
from collections.abc import Callable, Coroutine
from functools import wraps
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ..acquiring import check_timeout
from ..errors import ConfigurationError, CoordinatorClosed, given
from ..sessions.register import SessionRegister
from ..sessions.timing import Timing
from ..statistics import RunnerStatistics
from ..tasks.group import AsyncRunnerGroup
from ..tasks.runner import AsyncRunner, RunnerState
from ..tasks.sources import Finder, Source
from ..tasks.tasker import Tasker
from .acquiring import Register
from .engine import Engine, not_in_a_loop
from .handlers import HandlerThreads, check_plain, not_awaitable
from .watching import on_engine

__all__ = ["Runner", "RunnerGroup"]

_TWIN: Final = "AsyncCoordinator"
_PATIENCE: Final = 30.0

Work = Callable[[], Coroutine[Any, Any, None]]

_alone: set[asyncio.Task[None]] = set()
"""What runs on the engine and nobody waits for."""


class _Runs(Protocol):
    """What runs on the engine: a runner, or several."""

    async def start(self) -> None: ...
    async def run(self) -> None: ...
    async def stop(self, timeout: float | None = ...) -> None: ...


class _Driver:
    """Drives from threads what runs on the engine."""

    __slots__ = ("_engine", "_runners", "_runs", "_threads", "failure")

    def __init__(self, engine: Engine, threads: HandlerThreads, runs: _Runs, *runners: AsyncRunner) -> None:
        self._engine = engine
        self._runs = runs
        self._runners = runners
        self._threads = threads
        self.failure: BaseException | None = None
        """What a tasker has raised that ends programs; known when it was stopped."""

    def start(self) -> None:
        not_in_a_loop(_TWIN)
        self._engine.run(self._start, undo=self._stop_alone)

    def run(self) -> None:
        try:
            outcome = self._follow(lambda: self._with_threads(self._runs.run))
        except CoordinatorClosed:
            raise
        except BaseException:
            self.stop(_PATIENCE)
            raise
        if outcome is not None:
            raise outcome

    def stop(self, timeout: float | None) -> None:
        context = contextvars.copy_context()
        try:
            outcome = self._follow(lambda: self._stop(timeout), context)
        except CoordinatorClosed:
            return  # and all of it has ended with the engine
        except BaseException:
            self.abandon()
            raise
        if outcome is not None:
            raise outcome

    def leave(self, error: BaseException | None) -> None:
        """The end of a block, which has raised ``error``."""
        self.stop(_PATIENCE)
        if self.failure is not None and error is None:
            raise self.failure

    def abandon(self) -> bool:
        """Stop, and wait for nothing. False if the engine has ended."""
        return self._engine.crossing.post(self._stop_alone)

    def _follow(self, work: Work, context: contextvars.Context | None = None) -> BaseException | None:
        """Run on the engine what goes on whatever becomes of us: what it raised. Raises what comes out of our wait for
        it, and ``CoordinatorClosed`` if the engine has ended."""
        not_in_a_loop(_TWIN)
        outcome: list[BaseException] = []

        async def carry() -> None:
            try:
                await work()
            except asyncio.CancelledError:
                outcome.append(CoordinatorClosed("the engine thread has ended"))
            except BaseException as error:  # what would end a thread must not end the engine
                outcome.append(error)

        self._engine.follow(lambda: self._engine.loop.create_task(carry(), context=context))
        return outcome[0] if outcome else None

    # on the engine

    async def _start(self) -> None:
        self._threads.join()
        try:
            await self._runs.start()
        except BaseException:
            self._threads.leave()
            raise
        _on_its_own(self._leave_at_the_end())

    async def _leave_at_the_end(self) -> None:
        try:
            for runner in self._runners:
                _ = await runner.ended()
        finally:
            self._threads.leave()

    async def _stop(self, timeout: float | None) -> None:
        await self._runs.stop(timeout)
        for runner in self._runners:
            if runner.state == "stopped":
                self.failure = self.failure or await runner.ended()

    async def _with_threads(self, work: Work) -> None:
        self._threads.join()
        try:
            await work()
        finally:
            self._threads.leave()

    def _stop_alone(self, started: None = None) -> None:
        _on_its_own(self._runs.stop(0.0))


def _on_its_own(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.get_running_loop().create_task(work)
    _alone.add(task)
    task.add_done_callback(_alone.discard)


def _plainly(tasker: Tasker) -> Tasker:
    """The same, which fails if it returns something to be awaited."""
    wrong: object = tasker
    if not callable(wrong):
        return tasker  # and it is refused

    function: Callable[[Any], Any] = tasker

    @wraps(function, updated=())
    def call(tasks: Any) -> Any:
        return not_awaitable(function(tasks), "tasker")

    return call


class Runner:
    """Works on the tasks that are this process's share. Made by ``Coordinator.runner``, which explains the parameters.

    ``runner.run()`` works until ``stop`` is called or the caller is interrupted; ``with runner:`` works while the block
    runs. On each tick, and whenever there is something new, it takes its fair share of the tasks, hands them to the
    tasker, finishes what that has completed, and goes on until nothing is left. Every task is run at least once, and
    finished only by the runner to which it belongs. If the session of the runner is lost, ``task.check()`` raises in
    the calls under way, their tasks are for others, and it goes on with another session.

    Any thread may use it. What ends a program (``KeyboardInterrupt``, ``SystemExit``) and is raised by a tasker, ends
    the runner, and is raised by ``run``, or at the end of the block. Entered by ``with`` and dropped without its exit
    (an interrupt came in between), it is stopped with a ``ResourceWarning``.
    """

    def __init__(
        self,
        of: SessionRegister[Register],
        threads: HandlerThreads,
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
    ) -> None:
        check_plain(tasker, "a tasker")
        if callable(source):
            check_plain(source, "a function that finds the source")
        self._inner = AsyncRunner(
            on_engine(of),
            name,
            _plainly(tasker),
            source,
            tick=tick,
            jitter=jitter,
            tasks_per_session=tasks_per_session,
            batch=batch,
            concurrency=concurrency,
            per_task=per_task,
            timing=timing,
            in_thread=threads.run,
        )
        self._engine = of.register.engine
        self._entered = False
        self._driver = _Driver(self._engine, threads, self._inner, self._inner)

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._inner.name

    @property
    def state(self) -> RunnerState:
        """How it is with it."""
        return self._inner.state

    @property
    def session_id(self) -> int | None:
        """The number of its session; ``None`` while it has none."""
        return self._inner.session_id

    @property
    def inside(self) -> bool:
        """Whether the caller is a call of the tasker that is under way, or was begun by one."""
        return self._inner.inside

    def statistics(self) -> RunnerStatistics:
        """What it has done so far. From any thread."""
        return self._inner.statistics()

    def start(self) -> None:
        """Start working. Returns when it has a session; the first tasks are looked for at once.

        Raises ``ConfigurationError`` (a table without its column, say), ``SchemaMissing``, ``Unavailable`` while there
        is no connection, ``CoordinatorClosed``, what the source raises, and ``Stopped`` after ``stop``. If it raises,
        nothing is left running, and it may be started again. Interrupted, it leaves at once, and the runner is stopped
        for good. What goes wrong later is an event (``RunnerFailed``), and tried again.
        """
        self._driver.start()

    def run(self) -> None:
        """Work until ``stop`` is called, or the coordinator is closed. Raises what ``start`` raises.

        Interrupted (Ctrl-C), it stops as with ``stop()`` before it leaves; interrupted again, it leaves at once, and
        the end goes on as with ``stop(0)``. After ``stop`` it returns at once.
        """
        self._driver.run()

    def stop(self, timeout: float | None = 30.0) -> None:
        """Stop working, for good. When this returns, its session has ended and its tasks are for others.

        No task is begun any more. Calls of the tasker that are under way have ``timeout`` seconds (``None``: any time)
        to end; then they are left behind, their tasks are released, and ``task.lost`` is true. While the server cannot
        be reached this takes some seconds more, and then the tasks are for others when the time of the session is over.

        Idempotent, in any state, from any thread; the shortest of several limits counts. Called by the tasker itself it
        returns at once and the end goes on; if the caller is interrupted, it goes on as with ``stop(0)``.
        """
        self._driver.stop(timeout)

    def ended(self, timeout: float | None = None) -> bool:
        """Return when it has stopped; at once if it was not started. Raises what has ended it, as ``run`` does. False
        after ``timeout`` seconds. Interrupted, it leaves, and nothing else happens."""
        not_in_a_loop(_TWIN)
        seconds = check_timeout(timeout)
        inner = self._inner

        async def wait() -> tuple[bool, BaseException | None]:
            try:
                async with asyncio.timeout(seconds):
                    return True, await inner.ended()
            except TimeoutError:
                return False, None

        outcome: tuple[bool, BaseException | None] = self._engine.run(wait)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def wake(self) -> None:
        """Look for tasks now, instead of at the next tick. From any thread; does nothing if it does not run."""
        self._engine.crossing.post(self._inner.wake)

    def __enter__(self) -> Self:
        self.start()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._driver.leave(error)

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and self.state == "running":
            _dropped(self, self._driver)

    def __repr__(self) -> str:
        return repr(self._inner).replace(type(self._inner).__name__, type(self).__name__, 1)


class RunnerGroup:
    """Runners that start in the order given and stop together. Made by ``Coordinator.runners``."""

    def __init__(self, of: SessionRegister[Register], threads: HandlerThreads, *runners: Runner) -> None:
        for runner in runners:
            wrong: object = runner
            if not isinstance(wrong, Runner):
                raise ConfigurationError(f"a group is made of runners of Coordinator.runner, not {given(wrong)}")
        self._entered = False
        self._runners = runners
        self._inner = AsyncRunnerGroup(*(runner._inner for runner in runners))
        self._driver = _Driver(of.register.engine, threads, self._inner, *self._inner.runners)

    @property
    def runners(self) -> tuple[Runner, ...]:
        """The runners, in their order."""
        return self._runners

    def start(self) -> None:
        """Start them, one after the other. If one raises, those that run are stopped, for good, and then it is raised.
        Interrupted, it leaves at once, and all of them are stopped, for good."""
        self._driver.start()

    def run(self) -> None:
        """Start them, and work until all are stopped. Interrupted (Ctrl-C), it stops them as with ``stop()`` before it
        leaves; interrupted again, it leaves at once, and the end goes on as with ``stop(0)``."""
        self._driver.run()

    def stop(self, timeout: float | None = 30.0) -> None:
        """Stop all of them, at the same time. ``timeout`` as for ``Runner.stop``. Idempotent, in any state."""
        self._driver.stop(timeout)

    def __enter__(self) -> Self:
        self.start()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._driver.leave(error)

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and any(runner.state == "running" for runner in self._runners):
            _dropped(self, self._driver)

    def __repr__(self) -> str:
        return repr(self._inner).replace(type(self._inner).__name__, type(self).__name__, 1)


def _dropped(runs: Runner | RunnerGroup, driver: _Driver) -> None:
    shown = repr(runs)
    if driver.abandon():
        warnings.warn(f"{shown} was dropped without stop", ResourceWarning, stacklevel=3)
