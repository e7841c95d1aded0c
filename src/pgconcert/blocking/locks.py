"""Locks and semaphores for threads: the twins of those in ``pgconcert.locks``."""

from __future__ import annotations

from ..backend import Claim
from ..keys import LockKey
from .acquiring import Acquirable, Register
from .hold import Hold

__all__ = ["Lock", "Semaphore"]


class Lock(Acquirable):
    """A lock by name, for all processes that use the same database. Made by ``Coordinator.lock``.

    ``with lock as hold:`` waits, runs the body while the lock is held, and releases it; if the lock is lost
    meanwhile ``LockLost`` is raised at its end. The object itself holds nothing: it may be shared by threads,
    and two lock objects with one name exclude each other. It is not re-entrant.

    A *shared* lock excludes exclusive ones only: any number of readers, or one writer. The first writer that waits
    keeps new readers outside, so it waits for those who are inside and for nobody else. A reader cannot become a
    writer: release, acquire, and look again at what was read.
    """

    __slots__ = ("_key", "_shared")

    def __init__(self, register: Register, key: LockKey, timeout: float | None, shared: bool) -> None:
        super().__init__(register, timeout)
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

    def try_acquire(self) -> Hold | None:
        """Return a ``Hold``, or ``None`` at once if somebody else has the lock. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""
        return self._register.claim(self._key, self._shared, 0, self._hold, _refused)

    def _acquire(self, timeout: float | None) -> Hold:
        return self._register.claim(self._key, self._shared, timeout, self._hold, self._expired)

    def _expired(self, timeout: float) -> Hold:
        raise self._register.timed_out(self._key, self._what(), timeout)

    def _hold(self, claim: Claim) -> Hold:
        register = self._register
        hold = Hold(claim, register.release, register.drop, register.scoped)
        if claim.reason is not None:
            hold.check()
        return hold

    def _what(self) -> str:
        return repr(self.key)


class Semaphore(Lock):
    """A number of permits by name, for all processes that use one database. Made by ``Coordinator.semaphore``.

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


def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""
