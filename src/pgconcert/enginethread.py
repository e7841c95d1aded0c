"""The engine thread of the process, and a backend that lives on it.

One thread with one event loop per process, started when first needed and never at import; it ends when its last user
leaves. Requests cross to it, and answers cross back to the loop of whoever asked (``crossing.py``). So a blocked event
loop of the application delays its own callers only: links, heartbeats and the watch over the network go on.

A backend does not know that it lives here. ``ThreadedBackend`` wraps its ports: every waiter is replaced by one that
settles the caller's future on the caller's loop. A claim that is granted while its caller leaves is undone as always,
because leaving is a message that crosses after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

from .backend import Backend, Capability, Claim, Describer, Health, Holder, Locker
from .crossing import Crossing, EngineCrossing
from .errors import CoordinatorClosed, Unavailable
from .events import EventStream
from .hold import Grant, Waiter
from .keys import LockKey
from .offloop import off_loop

__all__ = ["EngineThread", "ThreadedBackend"]

T = TypeVar("T")


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
            try:
                self.crossing = EngineCrossing(self.loop)
            except BaseException:
                self.loop.close()
                raise
        except OSError as error:
            raise Unavailable(f"the engine thread cannot be started: {error.strerror or error}") from error
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
                    engine.crossing.close()
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
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        # Ctrl-C that the kernel gave to this thread would leave the main thread, which waits, uninterrupted
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            asyncio.set_event_loop(runner.get_loop())
            try:
                self.loop.run_forever()
            finally:
                self.crossing.close()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the engine and wait for it here. A cancelled caller cancels it there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))


_inherited: list[EngineThread] = []
"""In a forked child: kept for ever, because closing its loop would empty the selector that the parent uses."""


def _reset_after_fork() -> None:
    engine, EngineThread._current = EngineThread._current, None
    EngineThread._lock = threading.Lock()
    if engine is not None:
        engine.crossing.abandon()
        _inherited.append(engine)


os.register_at_fork(after_in_child=_reset_after_fork)


class _CrossedWaiter(Generic[T]):
    """Stands for a caller's future on the engine's side."""

    __slots__ = ("_back", "_future", "_settled")

    def __init__(self, future: asyncio.Future[T], back: Crossing) -> None:
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

    def __init__(self, locker: Locker, there: Crossing, back: Crossing) -> None:
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

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        if self.closed:
            for claim in claims:
                claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        for claim in claims:
            claim.waiter = self._crossed(claim.waiter)
        self._there.post(lambda: self._locker.acquire_all(claims))

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        self._give_back(waiter, lambda crossed: self._locker.release(claim, crossed))

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        self._give_back(waiter, lambda crossed: self._locker.release_all(claims, crossed))

    def _give_back(self, waiter: Waiter | None, ask: Callable[[Waiter | None], None]) -> None:
        if self.closed:
            if waiter is not None and not waiter.done():
                waiter.set_result(True)
            return
        crossed = None if waiter is None else self._crossed(waiter)
        self._there.post(lambda: ask(crossed))

    def drop(self, claim: Grant) -> None:
        self._there.post(lambda: self._locker.drop(claim))

    def describe(self, key: LockKey, waiter: Describer) -> None:
        assert isinstance(waiter, asyncio.Future)
        if self.closed:
            waiter.set_result(())
            return
        crossed: _CrossedWaiter[Sequence[Holder]] = _CrossedWaiter(waiter, self._back)
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

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the backend can do."""
        return self._backend.capabilities

    async def open(self, events: EventStream) -> None:
        """Start or join the engine thread and open the backend there."""
        self._engine = EngineThread.join()
        try:
            await self._engine.run(self._backend.open(events))
        except BaseException:
            # it may have been opened all the same, if we were cancelled just then
            with contextlib.suppress(Exception):
                await self._engine.run(self._backend.close())
            await self._leave()
            raise
        back = Crossing(asyncio.get_running_loop())
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
