"""The engine thread of the process, and a backend that lives on it.

One thread with one event loop per process, started when first needed and never at import; it ends when its last user
leaves. Requests cross to it, and answers cross back to the loop of whoever asked (``crossing.py``). So a blocked event
loop of the application delays its own callers only: links, heartbeats and the watch over the network go on.

A backend does not know that it lives here: ``ThreadedBackend`` opens it there and wraps its ports (``crossed.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .backend import Backend, Capability, Health
from .crossed import CrossedLocker, CrossedMessenger, CrossedWaiter
from .crossing import Crossing, EngineCrossing
from .errors import Unavailable
from .events import EventStream
from .offloop import off_loop

__all__ = ["EngineThread", "ThreadedBackend"]

T = TypeVar("T")
W = TypeVar("W")


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
                while not self._run_until_stopped():
                    pass
            finally:
                self.crossing.close()

    def _run_until_stopped(self) -> bool:
        """What raises ``SystemExit`` here, somebody's filter or codec, ends its own call and not everybody's links."""
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            message = "pgconcert: something that ran on the engine thread wanted to end it"
            self.loop.call_exception_handler({"message": message, "exception": error})
            return False
        return True

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


class ThreadedBackend:
    """Any backend, on the engine thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._engine: EngineThread | None = None
        self.locker: CrossedLocker
        self.messenger: CrossedMessenger | None = None
        self.store = None
        """Spoken to on the engine thread alone, by whatever was built there."""

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
        self.locker = CrossedLocker(self._backend.locker, self._engine.crossing, back)
        if "messages" in self.capabilities and (messenger := self._backend.messenger) is not None:
            self.messenger = CrossedMessenger(messenger, self._engine.crossing, back)

    async def build(self, make: Callable[[Backend], T], wrap: Callable[[T, Crossing, Crossing], W]) -> tuple[T, W]:
        """Make something on the engine thread out of the backend there, and what stands for it here."""
        assert self._engine is not None

        async def made() -> T:
            return make(self._backend)

        there = await self._engine.run(made())
        return there, wrap(there, self._engine.crossing, Crossing(asyncio.get_running_loop()))

    async def there(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the engine, behind all that has crossed so far, and wait for it."""
        assert self._engine is not None
        await self._passed()
        return await self._engine.run(work())

    async def close(self) -> None:
        """Close the backend there and leave the thread."""
        if self._engine is None:
            return
        self.locker.closed = True
        if self.messenger is not None:
            self.messenger.closed = True
        try:
            await self._passed()
            await self._engine.run(self._backend.close())
        finally:
            await self._leave()

    async def _passed(self) -> None:
        """Return when all that has crossed so far has arrived: what was asked before the end is not refused by it."""
        assert self._engine is not None
        arrived: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        crossed = CrossedWaiter(arrived, Crossing(asyncio.get_running_loop()))
        if self._engine.crossing.post(lambda: crossed.set_result(True)):
            await arrived

    def health(self) -> Health:
        """How it is now."""
        return self._backend.health()

    async def _leave(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await off_loop(engine.leave)
