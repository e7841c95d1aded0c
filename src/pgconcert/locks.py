"""Locks and semaphores: what is said to a ``Locker``, and how its answer becomes a hold. No backend stands here."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from .acquiring import Acquirable, Register
from .backend import Claim
from .hold import AsyncHold, OnLost
from .keys import LockKey

__all__ = ["AsyncLock", "AsyncSemaphore"]


class AsyncLock(Acquirable):
    """A lock by name, for all processes that use the same database. Made by ``AsyncCoordinator.lock``.

    ``async with lock as hold:`` waits, runs the body while the lock is held, and releases it; if the lock is lost
    meanwhile the body is cancelled and ``LockLost`` raised. The object itself holds nothing: it may be shared by tasks,
    and two lock objects with one name exclude each other. It is not re-entrant.

    A *shared* lock excludes exclusive ones only: any number of readers, or one writer. The first writer that waits
    keeps new readers outside, so it waits for those who are inside and for nobody else. A reader cannot become a
    writer: release, acquire, and look again at what was read.
    """

    __slots__ = ("_key", "_shared")

    def __init__(self, register: Register, key: LockKey, timeout: float | None, on_lost: OnLost, shared: bool) -> None:
        super().__init__(register, timeout, on_lost)
        self._key = key
        self._shared = shared

    @property
    def key(self) -> int | str:
        """The key, as the caller wrote it."""
        return self._key.name

    @property
    def shared(self) -> bool:
        """Whether it is shared with other readers."""
        return self._shared

    async def try_acquire(self) -> AsyncHold | None:
        """Return an ``AsyncHold``, or ``None`` at once if somebody else has the lock. Raises what ``acquire`` raises,
        and ``Unavailable`` while there is no connection."""
        register = self._register
        register.here()
        future: asyncio.Future[bool] = register.loop.create_future()
        claim = register.make(self._key, future, wait=False, shared=self._shared)
        register.locker.acquire(claim)
        try:
            granted = await future
        except BaseException:
            register.locker.withdraw(claim)
            raise
        return self._hold(claim) if granted else None

    def _acquire(self, timeout: float | None) -> Coroutine[Any, Any, AsyncHold]:
        return self._register.claim(self._key, self._shared, timeout, self._hold, self._expired)

    async def _expired(self, timeout: float) -> AsyncHold:
        raise await self._register.timed_out(self._key, self._what(), timeout)

    def _hold(self, claim: Claim) -> AsyncHold:
        register = self._register
        locker = register.locker
        hold = AsyncHold(claim, register.loop, locker.release, locker.drop, self._on_lost, register.scoped)
        if claim.reason is not None:
            hold.check()
        return hold

    def _what(self) -> str:
        return repr(self.key)


class AsyncSemaphore(AsyncLock):
    """A number of permits by name, for all processes that use one database. Made by ``AsyncCoordinator.semaphore``.

    Acquired like a lock; ``hold.permit`` tells which of the permits it is. All who use one semaphore at a time must
    give it the same number of permits; whoever comes with another gets ``PermitsDisagree``. Its name is not that of a
    lock: a semaphore and a lock with one name have nothing to do with each other.
    """

    __slots__ = ()

    @property
    def permits(self) -> int:
        """How many may hold it at a time."""
        return self._key.permits

    def _kind(self) -> str:
        return "semaphore"

    def _what(self) -> str:
        return f"a permit of {self.key!r}"
