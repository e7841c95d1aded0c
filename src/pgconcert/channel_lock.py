"""The lock of a channel: of all processes that could handle it, one does, and another takes over when it goes.

Here lives ``AsyncChannelLock`` and nothing else. It is a lock by name (``locks.py``) with an owner of its own: a worker
that waits for it, notices its loss, and tells handlers. The server frees the lock the instant its holder's connection
dies, so there is no row to be left behind and no time to live.

States, once ``init`` was called, and who moves them::

    resting --a look finds that another has it, or acquire_interval is over--> waiting --granted--> held
    held --lost--> waiting        held --release()--> resting        any --acquire()--> held, or waiting if refused
    any --destroy(), or the coordinator is closed--> ended

Waiting is that of every lock: a release wakes whoever waits, and a holder that was killed is noticed at the next
re-check, within a second. Resting is for those who do not want it now: a free lock stays free for ``acquire_interval``,
so that ``init`` takes nothing away from the ``acquire`` of another, nor ``release`` from whoever is next. Looking
meanwhile is what makes a resting process stand by as soon as there is somebody to stand by for.

The worker is one task, and is replaced at each transition: whoever replaces it waits for its end first, and one
transition is made at a time. A wait that succeeds just then leaves its hold behind, or gives it back. Handlers run in
tasks of their own, so that they may call everything here.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Final, Self

from .acquiring import Register
from .backend import Holder
from .errors import ConfigurationError, CoordinatorClosed, HoldLost, PgconcertError, given
from .events import ActiveChanged, EventStream, HandlerFailed
from .events.stream import GOES_ON
from .hold import AsyncHold
from .keys import KeySpace
from .locks import AsyncLock
from .pubsub.channels import HANDLER_KEY, check_channel

__all__ = ["AsyncChannelLock", "ChannelLockOptions", "Handler"]

Handler = Callable[[str], object]
"""Called with the name of a channel."""

_BESIDE: Final = "pgconcert:channels"
"""A key that is only ever shared: having it proves that there is a connection, and excludes nobody."""

_DAY: Final = 86400
_LEAST: Final = 0.01
_LOOK: Final = 1.0
_LOOKS: Final = 30
"""A rest is divided into at least so many looks."""
_ASK_HOLDER: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelLockOptions:
    """With what a channel lock was made. ``acquire_interval`` is in seconds."""

    acquire_interval: float


class AsyncChannelLock:
    """The right to handle a channel, for one process at a time. Made by ``AsyncCoordinator.channel_lock``.

    ``init`` makes this process a standby, ``acquire`` asks for the right at once, ``on_release`` learns of a take-over,
    and ``destroy`` ends it all. ``async with`` calls ``init`` and ``destroy``.

    Two objects for one channel exclude each other, in one process too; with another namespace they do not. The key of
    the lock is ``pgconcert:channel:`` and the name, so the longest name of a channel will do.
    """

    _instances: ClassVar[weakref.WeakSet[AsyncChannelLock]] = weakref.WeakSet()

    def __init__(
        self, register: Register, keys: KeySpace, events: EventStream, channel: str, acquire_interval: float
    ) -> None:
        channel = check_channel(channel).decode()
        seconds: object = acquire_interval
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not _LEAST <= seconds <= _DAY:
            raise ConfigurationError(f"acquire_interval must be {_LEAST} to {_DAY} seconds, not {given(seconds)}")
        self._channel = channel
        self._options = ChannelLockOptions(acquire_interval=float(seconds))
        self._register = register
        self._events = events
        self._lock = AsyncLock(register, keys.key(HANDLER_KEY + channel), None, "report", False)
        self._beside = AsyncLock(register, keys.key(_BESIDE), None, "report", True)
        self._handlers: dict[object, Handler] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._worker: asyncio.Task[None] | None = None
        self._hold: AsyncHold | None = None
        self._stands_by = False
        self._destroyed = False
        self._instances.add(self)

    @property
    def channel(self) -> str:
        """The name of the channel."""
        return self._channel

    @property
    def options(self) -> ChannelLockOptions:
        """With what it was made."""
        return self._options

    @property
    def schema_name(self) -> None:
        """``None``: the lock is an advisory lock, which needs no table and so no schema."""
        return

    @property
    def is_acquired(self) -> bool:
        """Whether this object has the lock now. False at once when the connection that carried it dies."""
        hold = self._hold
        return hold is not None and not hold.lost

    async def init(self) -> None:
        """Stand by from now on, until ``destroy``; again, it does nothing.

        A lock that another has is waited for at once. One that nobody has is left alone for ``acquire_interval``
        seconds, for somebody's ``acquire``, and then taken. A lock that is lost is waited for again. Does not wait for
        a connection; while there is none, it is tried every ``acquire_interval`` seconds. Raises ``CoordinatorClosed``
        after ``destroy``.
        """
        self._register.here()
        async with self._turn:
            self._usable()
            if not self._stands_by:
                self._stands_by = True
                if self._worker is None or self._worker.done():
                    self._resume(rest=True)

    async def acquire(self) -> bool:
        """Try to have the lock, at once; True if it is ours, also when it was before.

        False: another has it; after ``init`` it is waited for from now on. Raises ``Unavailable`` while there is no
        connection, what ``AsyncLock.try_acquire`` raises, and ``CoordinatorClosed`` after ``destroy``.
        """
        self._register.here()
        async with self._turn:
            self._usable()
            if self.is_acquired:
                return True
            try:
                await self._halt()
                if not self.is_acquired:  # else the wait has succeeded in this instant
                    self._note_loss()
                    self._hold = await self._lock.try_acquire()
                    if self._hold is not None:
                        self._changed(True, "it was free")
            finally:
                self._resume(rest=False)
            return self.is_acquired

    async def release(self) -> None:
        """Give the lock back; when this returns, the server has freed it. Without it, does nothing.

        After ``init`` this process goes on standing by: it waits for the lock as soon as another has it, and takes it
        if nobody did within ``acquire_interval`` seconds.
        """
        self._register.here()
        async with self._turn:
            if self._hold is None:
                return
            try:
                await self._halt()
                await self._give_back()
            finally:
                self._resume(rest=True)

    def on_release(self, handler: Handler) -> Callable[[], None]:
        """Call ``handler(channel)`` whenever the lock has become ours by waiting, and return the way to stop that.

        The holder has released it, or has died, or this process has lost it and has it again; ``acquire`` called by
        the handler is then True. What ``acquire`` itself gets is not told. Several handlers are all called; each runs
        by itself, may be a plain function or a coroutine function, and is not interrupted by ``destroy``. One that
        raises is an event, ``HandlerFailed``. Raises ``CoordinatorClosed`` after ``destroy``.
        """
        self._usable()
        if not callable(handler):
            raise ConfigurationError(f"a handler of releases must be callable, not {given(handler)}")
        place = object()
        self._handlers[place] = handler

        def remove() -> None:
            self._handlers.pop(place, None)

        return remove

    async def destroy(self) -> None:
        """Stand by no longer, give the lock back, and forget the handlers. Idempotent.

        Cancelled, it leaves; called again, it does the rest.
        """
        self._register.here()
        self._destroyed = True
        self._stands_by = False
        self._handlers.clear()
        self._instances.discard(self)
        async with self._turn:
            await self._halt()
            await self._give_back()

    @classmethod
    async def destroy_all(cls) -> None:
        """Destroy every such lock that this process has made; if some fail, the others are destroyed all the same."""
        here = asyncio.get_running_loop()
        ends: list[Awaitable[None]] = []
        for lock in [*cls._instances]:
            loop = lock._register.loop
            if loop is here:
                ends.append(lock.destroy())
            elif loop.is_running():
                ends.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(lock.destroy(), loop)))
            else:
                cls._instances.discard(lock)
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            if outcome is not None:
                raise outcome

    @classmethod
    def has_instances(cls) -> bool:
        """Whether this process has made such locks that live and are not destroyed."""
        return bool(cls._instances)

    async def __aenter__(self) -> Self:
        await self.init()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.destroy()

    def _usable(self) -> None:
        if self._destroyed:
            raise CoordinatorClosed(f"the lock of channel {self._channel!r} was destroyed; make another")

    async def _halt(self) -> None:
        """End the worker and wait for its end."""
        worker = self._worker
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
            self._worker = None

    def _resume(self, rest: bool) -> None:
        if not self._destroyed and (self._stands_by or self._hold is not None):
            name = f"pgconcert lock of channel {self._channel}"
            self._worker = self._register.loop.create_task(self._work(rest), name=name)

    async def _work(self, rest: bool) -> None:
        interval = self._options.acquire_interval
        try:
            while True:
                if self._hold is not None:
                    await self._hold.wait_lost()
                    self._note_loss()
                    rest = False
                if not self._stands_by:
                    return
                if rest:
                    await self._rest()
                    rest = False
                try:
                    self._hold = await self._lock.acquire()
                except CoordinatorClosed:
                    raise
                except HoldLost:
                    continue  # lost on its way to us
                except PgconcertError as error:
                    self._changed(False, f"it cannot be waited for ({error}); again in {interval:g} s")
                    await asyncio.sleep(interval)
                    continue
                self._changed(True, "it was waited for")
                self._tell()
        except CoordinatorClosed:
            return

    async def _rest(self) -> None:
        """Leave a free lock to others, until the time is over or somebody has it."""
        loop = self._register.loop
        interval = self._options.acquire_interval
        end = loop.time() + interval
        look = max(_LEAST, min(_LOOK, interval / _LOOKS))
        while (left := end - loop.time()) > 0:
            if await self._taken():
                return
            await asyncio.sleep(min(look, left))

    async def _taken(self) -> bool:
        """Whether anybody has the lock. False also when that cannot be found out now."""
        try:
            beside = await self._beside.try_acquire()
            if beside is not None:
                await beside.release()
        except CoordinatorClosed:
            raise
        except PgconcertError:
            return False
        known: asyncio.Future[Sequence[Holder]] = self._register.loop.create_future()
        self._register.locker.describe(self._lock._key, known)
        await asyncio.wait([known], timeout=_ASK_HOLDER)
        if not known.done():
            known.cancel()
            return False
        return bool(known.result())

    async def _give_back(self) -> None:
        self._note_loss()
        hold, self._hold = self._hold, None
        if hold is not None:
            self._changed(False, "it was released")
            await hold.release()

    def _note_loss(self) -> None:
        hold = self._hold
        if hold is not None and hold.lost:
            self._hold = None
            self._changed(False, hold.reason or "")

    def _changed(self, active: bool, reason: str) -> None:
        self._events.emit(ActiveChanged(channel=self._channel, active=active, reason=reason))

    def _tell(self) -> None:
        for handler in [*self._handlers.values()]:
            call = self._register.loop.create_task(self._contained(handler), name=f"pgconcert release {self._channel}")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _contained(self, handler: Handler) -> None:
        try:
            await self._call(handler)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._events.emit(HandlerFailed(channel=self._channel, error=error))
        except GOES_ON:
            raise
        except BaseException as error:
            self._events.emit(HandlerFailed(channel=self._channel, error=error))

    async def _call(self, handler: Handler) -> None:
        result = handler(self._channel)
        if isinstance(result, Awaitable):
            await result

    def __repr__(self) -> str:
        state = (
            "destroyed"
            if self._destroyed
            else "acquired"
            if self.is_acquired
            else "standing by"
            if self._stands_by
            else "not acquired"
        )
        return f"<{type(self).__name__} {self._channel!r} {state}>"


os.register_at_fork(after_in_child=AsyncChannelLock._instances.clear)
