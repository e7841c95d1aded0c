"""``ChannelLock`` for threads: the twin of ``AsyncChannelLock``, which does its work on the engine.

Theory. The lock itself, its worker and its transitions are those of asyncio (``pgconcert.channel_lock``) and live on
the engine thread. What stands here asks it, and waits for the answer. A caller that is interrupted leaves; what it
asked for is cancelled there, and the lock is what ``is_acquired`` says. Handlers run on threads of their own, because
the engine must never wait for anybody.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from ..channel_lock import AsyncChannelLock, ChannelLockOptions, Handler
from ..errors import CoordinatorClosed
from ..events import EventStream, HandlerFailed
from ..keys import KeySpace
from ..offloop import off_loop
from .acquiring import Register
from .engine import Engine, not_in_a_loop
from .handlers import check_plain

__all__ = ["ChannelLock"]

T = TypeVar("T")


class _OnEngine(AsyncChannelLock):
    """The lock itself. Touched on the engine only, but for what tells of it."""

    _instances: ClassVar[weakref.WeakSet[AsyncChannelLock]] = weakref.WeakSet()

    def __init__(
        self, register: Register, keys: KeySpace, events: EventStream, channel: str, acquire_interval: float
    ) -> None:
        super().__init__(register.on_engine, keys, events, channel, acquire_interval)
        self.engine = register.engine

    async def _call(self, handler: Handler) -> None:
        def call() -> BaseException | None:
            try:
                handler(self.channel)
            except BaseException as error:  # what would end a thread must not end the engine's
                return error
            return None

        failure = await off_loop(call)
        if failure is not None:
            self._events.emit(HandlerFailed(channel=self.channel, error=failure))


class ChannelLock:
    """The right to handle a channel, for one process at a time. Made by ``Coordinator.channel_lock``.

    ``init`` makes this process a standby, ``acquire`` asks for the right at once, ``on_release`` learns of a take-over,
    and ``destroy`` ends it all. ``with`` calls ``init`` and ``destroy``.

    Two objects for one channel exclude each other, in one process too; with another namespace they do not. The key of
    the lock is ``pgconcert:channel:`` and the name, so the longest name of a channel will do.
    """

    def __init__(
        self, register: Register, keys: KeySpace, events: EventStream, channel: str, acquire_interval: float
    ) -> None:
        self._lock = _OnEngine(register, keys, events, channel, acquire_interval)

    @property
    def channel(self) -> str:
        """The name of the channel."""
        return self._lock.channel

    @property
    def options(self) -> ChannelLockOptions:
        """With what it was made."""
        return self._lock.options

    @property
    def schema_name(self) -> None:
        """``None``: the lock is an advisory lock, which needs no table and so no schema."""
        return

    @property
    def is_acquired(self) -> bool:
        """Whether this object has the lock now. False at once when the connection that carried it dies."""
        return self._lock.is_acquired

    def init(self) -> None:
        """Stand by from now on, until ``destroy``; again, it does nothing.

        A lock that another has is waited for at once. One that nobody has is left alone for ``acquire_interval``
        seconds, for somebody's ``acquire``, and then taken. A lock that is lost is waited for again. Does not wait for
        a connection; while there is none, it is tried every ``acquire_interval`` seconds. Raises ``CoordinatorClosed``
        after ``destroy``.
        """
        _run(self._lock.engine, self._lock.init)

    def acquire(self) -> bool:
        """Try to have the lock, at once; True if it is ours, also when it was before.

        False: another has it; after ``init`` it is waited for from now on. Raises ``Unavailable`` while there is no
        connection, what ``Lock.try_acquire`` raises, and ``CoordinatorClosed`` after ``destroy``.
        """
        return _run(self._lock.engine, self._lock.acquire)

    def release(self) -> None:
        """Give the lock back; when this returns, the server has freed it. Without it, does nothing.

        After ``init`` this process goes on standing by: it waits for the lock as soon as another has it, and takes it
        if nobody did within ``acquire_interval`` seconds.
        """
        _run(self._lock.engine, self._lock.release)

    def on_release(self, handler: Handler) -> Callable[[], None]:
        """Call ``handler(channel)`` whenever the lock has become ours by waiting, and return the way to stop that.

        The holder has released it, or has died, or this process has lost it and has it again; ``acquire`` called by
        the handler is then True. What ``acquire`` itself gets is not told. Several handlers are all called; each runs
        in a thread of its own and is not interrupted by ``destroy``. One that raises is an event, ``HandlerFailed``.
        Raises ``CoordinatorClosed`` after ``destroy``.
        """
        check_plain(handler, "a handler of releases")
        return self._lock.on_release(handler)

    def destroy(self) -> None:
        """Stand by no longer, give the lock back, and forget the handlers. Idempotent.

        Interrupted, it leaves; called again, it does the rest.
        """
        _destroy(self._lock)

    @classmethod
    def destroy_all(cls) -> None:
        """Destroy every such lock that this process has made; if some fail, the others are destroyed all the same."""
        failure: Exception | None = None
        for lock in [*_OnEngine._instances]:
            assert isinstance(lock, _OnEngine)
            try:
                _destroy(lock)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    @classmethod
    def has_instances(cls) -> bool:
        """Whether this process has made such locks that live and are not destroyed."""
        return _OnEngine.has_instances()

    def __enter__(self) -> Self:
        self.init()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.destroy()

    def __repr__(self) -> str:
        return repr(self._lock).replace(_OnEngine.__name__, type(self).__name__, 1)


def _run(engine: Engine, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    not_in_a_loop("AsyncCoordinator")
    return engine.run(work)


def _destroy(lock: _OnEngine) -> None:
    try:
        _run(lock.engine, lock.destroy)
    except CoordinatorClosed:
        # the engine has ended, and everything with it
        lock._destroyed = True
        _OnEngine._instances.discard(lock)


os.register_at_fork(after_in_child=_OnEngine._instances.clear)
