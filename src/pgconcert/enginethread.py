"""The engine thread of the process, and a backend that lives on it.

One thread with one event loop per process, started when first needed and never at import; it ends when its last user
leaves. Requests cross by a deque and one wake-up of the loop for as many as there are; answers cross back the same way
to the loop of whoever asked. So a blocked event loop of the application delays its own callers only: links, heartbeats
and the watch over the network go on.

A backend does not know that it lives here. ``ThreadedBackend`` wraps its ports: every waiter is replaced by one that
settles the caller's future on the caller's loop. A claim that is granted while its caller leaves is undone as always,
because leaving is a message that crosses after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from .backend import Backend, Claim, Describer, Health, Holder, Locker
from .errors import CoordinatorClosed, Unavailable
from .hold import Grant, Waiter
from .keys import LockKey
from .offloop import off_loop

__all__ = ["EngineThread", "ThreadedBackend"]

T = TypeVar("T")


class _Crossing:
    """Calls that cross to one loop: many calls, one wake-up."""

    __slots__ = ("_calls", "_loop", "_on_the_way")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._on_the_way = False

    def post(self, call: Callable[[], object]) -> None:
        """Run ``call`` on the loop, in the order of posting. Nothing happens if the loop has ended."""
        self._calls.append(call)
        if not self._on_the_way:
            self._on_the_way = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                self._calls.clear()
                self._on_the_way = False

    def _run(self) -> None:
        # cleared before the deque is read: a call posted from here on wakes the loop again
        self._on_the_way = False
        calls = self._calls
        while calls:
            call = calls.popleft()
            try:
                call()
            except Exception as error:
                self._loop.call_exception_handler({"message": "pgconcert: a crossing call failed", "exception": error})


class EngineThread:
    """The one engine thread. ``join`` to use it, ``leave`` when done."""

    _current: EngineThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._users = 0
        self._pid = os.getpid()
        try:
            # made here and not on the thread, so that a failure reaches whoever asked
            self.loop = asyncio.new_event_loop()
        except OSError as error:
            raise Unavailable(f"the engine thread cannot be started: {error.strerror or error}") from error
        self.crossing = _Crossing(self.loop)
        self._thread = threading.Thread(target=self._run, name="pgconcert-engine", daemon=True)

    @classmethod
    def join(cls) -> EngineThread:
        """Use the engine thread of this process; start it, if it does not run."""
        with cls._lock:
            engine = cls._current
            if engine is None or engine._pid != os.getpid() or not engine._thread.is_alive():
                engine = cls()
                try:
                    engine._thread.start()
                except RuntimeError as error:
                    engine.loop.close()
                    raise Unavailable(f"the engine thread cannot be started: {error}") from error
                cls._current = engine
            engine._users += 1
            return engine

    def leave(self) -> None:
        """Use it no longer. The last user's leaving ends the thread and waits for its end."""
        with self._lock:
            self._users -= 1
            if self._users or self._pid != os.getpid():
                return
            if EngineThread._current is self:
                EngineThread._current = None
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            asyncio.set_event_loop(runner.get_loop())
            self.loop.run_forever()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine and wait for it here. A cancelled caller cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))


def _reset_after_fork() -> None:
    EngineThread._current = None
    EngineThread._lock = threading.Lock()


os.register_at_fork(after_in_child=_reset_after_fork)


class _CrossedWaiter(Generic[T]):
    """Stands for a caller's future on the engine's side."""

    __slots__ = ("_back", "_future", "_settled")

    def __init__(self, future: asyncio.Future[T], back: _Crossing) -> None:
        self._future = future
        self._back = back
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: T, /) -> None:
        self._settled = True
        self._back.post(lambda: None if self._future.done() else self._future.set_result(result))

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._back.post(lambda: None if self._future.done() else self._future.set_exception(exception))


class _CrossedLocker:
    """The port ``Locker`` of a backend on the engine thread."""

    def __init__(self, locker: Locker, there: _Crossing, back: _Crossing) -> None:
        self._locker = locker
        self._there = there
        self._back = back
        self.closed = False
        """Set before the closing crosses: whatever is asked later is answered here."""

    def acquire(self, claim: Claim) -> None:
        if self.closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        claim.waiter = self._crossed(claim.waiter)
        self._there.post(lambda: self._locker.acquire(claim))

    def withdraw(self, claim: Claim) -> None:
        self._there.post(lambda: self._locker.withdraw(claim))

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        if self.closed:
            if waiter is not None and not waiter.done():
                waiter.set_result(True)
            return
        crossed = None if waiter is None else self._crossed(waiter)
        self._there.post(lambda: self._locker.release(claim, crossed))

    def drop(self, claim: Grant) -> None:
        self._there.post(lambda: self._locker.drop(claim))

    def describe(self, key: LockKey, waiter: Describer) -> None:
        assert isinstance(waiter, asyncio.Future)
        if self.closed:
            waiter.set_result(None)
            return
        crossed: _CrossedWaiter[Holder | None] = _CrossedWaiter(waiter, self._back)
        self._there.post(lambda: self._locker.describe(key, crossed))

    def _crossed(self, waiter: Waiter) -> Waiter:
        assert isinstance(waiter, asyncio.Future)
        return _CrossedWaiter(waiter, self._back)


class ThreadedBackend:
    """Any backend, on the engine thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._engine: EngineThread | None = None
        self.locker: _CrossedLocker

    async def open(self) -> None:
        """Start or join the engine thread and open the backend there."""
        self._engine = EngineThread.join()
        try:
            await self._engine.run(self._backend.open())
        except BaseException:
            # it may have been opened all the same, if we were cancelled just then
            with contextlib.suppress(Exception):
                await self._engine.run(self._backend.close())
            await self._leave()
            raise
        back = _Crossing(asyncio.get_running_loop())
        self.locker = _CrossedLocker(self._backend.locker, self._engine.crossing, back)

    async def close(self) -> None:
        """Close the backend there and leave the thread."""
        if self._engine is None:
            return
        self.locker.closed = True
        try:
            await self._engine.run(self._backend.close())
        finally:
            await self._leave()

    def health(self) -> Health:
        """How it is now."""
        if self._engine is None:
            raise CoordinatorClosed("this backend is not open")
        return self._backend.health()

    async def _leave(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await off_loop(engine.leave)
