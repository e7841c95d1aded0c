"""The backend ``null://``: everything is granted at once and nothing is kept apart, not even inside the process.

For programs that run alone, and for tests of what happens under a lock rather than of the lock. Whatever is held is
noted all the same, so that ``health``, the events and the end of a coordinator are those of any backend.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import weakref
from collections.abc import Sequence
from functools import partial
from time import monotonic

from ..backend import DONE, GRANTED, WAITING, Capability, Claim, Describer, Health, Options
from ..errors import CoordinatorClosed
from ..events import EventStream, HoldBroken, HoldDropped, LockAcquired, LockReleased
from ..hold import Grant, Waiter
from ..keys import LockKey

__all__ = ["NullBackend", "NullLocker", "make"]


class NullLocker:
    """The port ``Locker`` that says yes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: EventStream) -> None:
        self.held: dict[Claim, None] = {}
        self.closed = False
        self._loop = loop
        self._events = events
        self._count = itertools.count()

    def acquire(self, claim: Claim) -> None:
        """Grant a claim. The permits of semaphores go round."""
        if self.closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        if claim.key.permits:
            claim.permit = next(self._count) % claim.key.permits
        self.held[claim] = None
        claim.grant()
        self._events.tally.locks.acquired += 1
        if self._events.readers and self._events.wants(LockAcquired):
            self._events.emit(LockAcquired(key=claim.key.name, waited=monotonic() - claim.since))

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        """Grant several claims."""
        for claim in claims:
            self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        """Take a claim back."""
        if claim.state == WAITING:
            claim.state = DONE
        elif claim.state == GRANTED:
            claim.over = True
            self.release(claim, None)

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        """Release a claim."""
        self.release_all((claim,), waiter)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        """Release several claims."""
        for claim in claims:
            assert isinstance(claim, Claim)
            if claim not in self.held:
                continue
            del self.held[claim]
            claim.state = DONE
            self._events.tally.locks.released += 1
            if self._events.readers and self._events.wants(LockReleased):
                self._events.emit(LockReleased(key=claim.key.name, wanted=False))
        if waiter is not None and not waiter.done():
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None:
        """Release a claim whose hold was thrown away."""
        if not self.closed:
            try:
                self._loop.call_soon_threadsafe(self._drop, claim)
            except RuntimeError:
                pass  # the loop has ended, and nobody is kept out by what is left

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """Nobody is ever in the way."""
        waiter.set_result(())

    def close(self) -> None:
        """Whatever is still out is lost."""
        self.closed = True
        held, self.held = [*self.held], {}
        for claim in held:
            claim.state = DONE
            claim.lose("the coordinator was closed", partial(self._broken, claim))

    def forked(self) -> None:
        """In a forked child: nothing is ours any more."""
        self.closed = True
        for claim in self.held:
            claim.forked()

    def _drop(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        self.release(claim, None)
        self._events.emit(HoldDropped(key=claim.key.name))

    def _broken(self, claim: Claim) -> None:
        self._events.tally.locks.lost += 1
        self._events.emit(HoldBroken(key=claim.key.name, reason=claim.reason or ""))


class NullBackend:
    """The port ``Backend`` that excludes nobody. ``max_locks`` and time-outs mean nothing to it."""

    def __init__(self) -> None:
        self._locker: NullLocker | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The interface of shared locks and semaphores, and no exclusion."""
        return frozenset(("shared", "semaphores"))

    @property
    def messenger(self) -> None:
        """It carries no messages."""
        return None

    @property
    def store(self) -> None:
        """It keeps no sessions."""
        return None

    @property
    def locker(self) -> NullLocker:
        """The port for locks."""
        if self._locker is None:
            raise CoordinatorClosed("this backend is not open")
        return self._locker

    async def open(self, events: EventStream) -> None:
        """Make ready."""
        self._locker = NullLocker(asyncio.get_running_loop(), events)
        _living.add(self._locker)

    async def close(self) -> None:
        """Lose what is still held."""
        if self._locker is not None:
            self._locker.close()

    def health(self) -> Health:
        """It is always well."""
        return Health(ready=True, links=(), locks_held=len(self.locker.held), locks_waited_for=0, lock_budget=None)


def make(address: str, options: Options) -> NullBackend:
    """The backend for ``null://``; what follows that means nothing."""
    return NullBackend()


_living: weakref.WeakSet[NullLocker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for locker in [*_living]:
        locker.forked()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
