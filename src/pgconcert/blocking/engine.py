"""How a thread asks the engine: it posts a message and waits on a raw lock of its own. The only waits of this package.

Theory. A ``Call`` is the waiter of one request, and its raw lock is held until the answer is there. The calling thread
never touches a link. An exception may come out of the wait at any instant (Ctrl-C): whoever waits then posts the
withdrawal and lets the exception go on; the engine, which alone sees the answer, undoes what the server may have
granted.

What is short and frequent is posted as a message; what takes several steps is a coroutine that runs on the engine.

In a program that gevent has patched, threads are greenlets of one thread, the engine is one of them, and the same words
hold: the lock of a ``Call`` is gevent's, so whoever waits lets the others run.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from ..crossing import EngineCrossing
from ..enginethread import EngineThread
from ..errors import ConfigurationError, CoordinatorClosed

__all__ = ["Call", "Engine", "not_in_a_loop"]

T = TypeVar("T")
V = TypeVar("V")

_LOOK: Final = 0.5
"""Seconds after which a main thread that waits looks for signals. The kernel may give a signal to any thread, and if it
is another one the wait of the main thread is not interrupted."""

_ALIVE: Final = 1.0
"""Seconds after which whoever waits for something that may never end looks whether the engine still runs."""


def _nothing(result: object) -> None:
    """Undo nothing."""


def _same(result: Any) -> Any:
    return result


class Call(Generic[T]):
    """Waits for one answer. Settled on the engine thread, once; waited for by one thread."""

    __slots__ = ("_answered", "error", "result", "settled")

    def __init__(self) -> None:
        # of threading and not of _thread, so that a program which has patched it gets its own
        self._answered = threading.Lock()
        self._answered.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None
        self.settled = False

    def done(self) -> bool:
        return self.settled

    def set_result(self, result: T, /) -> None:
        self.result = result
        self.settled = True
        self._answered.release()

    def set_exception(self, exception: BaseException, /) -> None:
        self.error = exception
        self.settled = True
        self._answered.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the answer; False if it did not come within ``timeout`` seconds."""
        if timeout is not None and timeout <= _LOOK:
            return self._answered.acquire(timeout=timeout) or self.settled
        if self._answered.acquire(timeout=_LOOK):
            return True
        end = None if timeout is None else time.monotonic() + timeout - _LOOK
        pause = _LOOK if threading.current_thread() is threading.main_thread() else threading.TIMEOUT_MAX
        while True:
            left = pause if end is None else min(pause, max(end - time.monotonic(), 0))
            if self._answered.acquire(timeout=left) or self.settled:
                return True
            if end is not None and time.monotonic() >= end:
                return False

    def answer(self) -> T:
        """The answer, which is there; an error is raised."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Engine:
    """One user's way to the engine thread, from ``join`` to ``leave``."""

    __slots__ = ("_last", "_thread", "crossing")

    def __init__(self) -> None:
        self._last: asyncio.Task[object] | None = None
        self._thread = EngineThread.join()
        self.crossing: EngineCrossing = self._thread.crossing

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the engine."""
        return self._thread.loop

    def run(
        self,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        undo: Callable[[T], None] = _nothing,
        then: Callable[[T], V] = _same,
    ) -> V:
        """Run a coroutine on the engine, wait for it, and return what ``then`` makes of its result, here.

        If that does not come to its end (Ctrl-C), it is cancelled there, and ``undo`` is called there with what it may
        have returned all the same.
        """
        call: Call[T] = Call()
        running: list[asyncio.Task[None]] = []

        async def carry() -> None:
            try:
                result = await work()
            except asyncio.CancelledError:
                call.set_exception(CoordinatorClosed("the engine thread has ended"))
                raise
            except BaseException as error:
                call.set_exception(error)
            else:
                call.set_result(result)

        def start() -> None:
            task = self.loop.create_task(carry())
            task.add_done_callback(ended)
            running.append(task)

        def ended(task: object) -> None:
            if not call.settled:  # the engine ended before its first step
                call.set_exception(CoordinatorClosed("the engine thread has ended"))

        def withdraw() -> None:
            if not call.settled:
                for task in running:
                    task.cancel()
                    task.add_done_callback(undone)
            else:
                undone(None)

        def undone(task: object) -> None:
            if call.error is None and call.settled:
                undo(call.answer())

        try:
            if not self.crossing.post(start):
                raise CoordinatorClosed("the engine thread has ended")
            call.wait()
            return then(call.answer())
        except BaseException as error:
            if error is not call.error:
                self.crossing.post(withdraw)
            raise

    def call(self, work: Callable[[], T]) -> T:
        """Run a quick function on the engine and return what it returns. It is run even if we are interrupted."""
        call: Call[T] = Call()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                call.set_exception(error)
            else:
                call.set_result(result)

        if not self.crossing.post(run):
            raise CoordinatorClosed("the engine thread has ended")
        call.wait()
        return call.answer()

    def follow(self, begin: Callable[[], asyncio.Future[Any]], timeout: float | None = None) -> bool:
        """Begin something on the engine that goes on whatever becomes of us, and wait for its end. False if that did
        not come within ``timeout`` seconds."""
        call: Call[bool] = Call()
        begun: list[asyncio.Future[Any]] = []

        def start() -> None:
            try:
                begun.append(begin())
            except BaseException as error:
                call.set_exception(error)
            else:
                begun[0].add_done_callback(told)

        def told(future: asyncio.Future[Any]) -> None:
            error = None if future.cancelled() else future.exception()
            if error is not None:
                call.set_exception(error)
            else:
                call.set_result(True)

        def leave() -> None:
            for future in begun:
                future.remove_done_callback(told)

        end = None if timeout is None else time.monotonic() + timeout
        try:
            if not self.crossing.post(start):
                raise CoordinatorClosed("the engine thread has ended")
            # nobody settles what nobody can end any more
            while not call.wait(_ALIVE if end is None else min(_ALIVE, max(end - time.monotonic(), 0))):
                if self.crossing.closed:
                    raise CoordinatorClosed("the engine thread has ended")
                if end is not None and time.monotonic() >= end:
                    self.crossing.post(leave)
                    return False
        except BaseException:
            self.crossing.post(leave)
            raise
        return call.answer()

    def finish(
        self, work: Callable[[], Coroutine[Any, Any, object]], timeout: float | None = None, wait: bool = True
    ) -> None:
        """Run a coroutine as the last one, wait for it, and leave; the last user's leaving ends the thread.

        Whoever is interrupted here, or loses patience after ``timeout`` seconds (``TimeoutError``), goes away; the
        work goes on to its end. Called again it waits for the same end. Without ``wait`` it is begun, and no more.
        """
        call: Call[object] = Call()

        def start() -> None:
            if self._last is None:
                self._last = self.loop.create_task(_outcome(work))
                self._last.add_done_callback(self._leave)
            self._last.add_done_callback(ended)

        def ended(task: asyncio.Task[object]) -> None:
            if not call.settled:
                call.set_result(None if task.cancelled() else task.result())

        if self.crossing.post(start) and wait and not call.wait(timeout):
            raise TimeoutError(f"the engine did not answer within {timeout:g} s")
        if wait and not self._thread._users:
            self._thread._thread.join()
        if isinstance(call.result, BaseException):
            raise call.result

    def _leave(self, task: object) -> None:
        """Here and not by whoever waits, who may be interrupted on the way."""
        with contextlib.suppress(RuntimeError):  # a thread does not wait for its own end
            self._thread.leave()


async def _outcome(work: Callable[[], Coroutine[Any, Any, object]]) -> object:
    try:
        return await work()
    except Exception as error:
        return error


def not_in_a_loop(twin: str) -> None:
    """Raise if an event loop runs in this thread: waiting here would stop it. ``twin`` is what to use instead."""
    # the underscore is of asyncio's making: this is its documented way to ask without an exception
    loop = asyncio._get_running_loop()
    if loop is not None and not _beside_the_engine(loop):
        raise ConfigurationError(
            f"this is the blocking twin, and it was called from a thread whose event loop is running, which it would "
            f"stop: use {twin} there, or asyncio.to_thread()"
        )


def _beside_the_engine(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop is the engine's and we are not: gevent has made greenlets of one thread of the two."""
    engine = EngineThread._current
    return engine is not None and loop is engine.loop and threading.current_thread() is not engine._thread
