"""What ``stop`` of a job lock or an election does: it ends the waits, the bodies and the holds of that one object.

Theory. The object does not speak to the engine of sessions itself. A ``Stoppable`` stands between, which is a
``Locker`` too: it notes every claim from the request until the server has answered its release, and hands all on.
States of a claim here, and what ``stop`` does to it::

    asked for     its waiter gets ``Stopped``, and the claim is withdrawn
    held          inside a scope: it is *lost on our side*, so the body is cancelled (a thread finds out when it asks),
                  and the exit gives it back; outside of any: it is lost likewise, and given back here
    given back    its answer is waited for

Lost on our side means that nobody may rely on it any more, while on the server it is ours until it is given back: so a
body that takes its time to end excludes others until then. ``stop`` ends when nothing is noted any more, but for the
scopes of the task or thread that calls it, which would wait for itself.

All calls belong to the loop of the register, except ``drop`` and what ends a claim, which may come from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

from ..backend import GRANTED, Claim, Describer, Locker
from ..deadlock import Actor, Scopes
from ..errors import Stopped
from ..hold import Grant, Waiter
from ..keys import LockKey
from .claims import SessionClaim

__all__ = ["STOPPED", "Stoppable", "StoppableClaim"]

STOPPED: Final = "its stop() was called here"
"""Why a hold is lost that ``stop`` has ended."""


class StoppableClaim(SessionClaim):
    """A claim that may be lost on our side alone."""

    __slots__ = ("ended", "giving", "stopped")

    def __init__(self, key: LockKey, waiter: Waiter, *, wait: bool, shared: bool = False) -> None:
        self.ended: Callable[[StoppableClaim], None] | None = None
        """Told when nothing of it is left."""
        self.giving = False
        """Whether its release was handed in."""
        self.stopped = False
        """Whether it is lost on our side."""
        super().__init__(key, waiter, wait=wait, shared=shared)

    @property
    def remains(self) -> bool:
        """Whether there is something left to be given back."""
        return self.stopped

    def stop(self, reason: str = STOPPED) -> None:
        """Lose it on our side. Does nothing if it is lost or given back."""
        if not self.over and self.reason is None:
            self.stopped = True
            self.lose(reason)

    def fail(self, error: Exception) -> None:
        """As ``Claim.fail``."""
        super().fail(error)
        self._end()

    def refuse(self) -> None:
        """As ``Claim.refuse``."""
        super().refuse()
        self._end()

    def lose(self, reason: str, noted: Callable[[], None] | None = None) -> bool:
        """As ``SessionClaim.lose``."""
        lost = super().lose(reason, noted)
        if not self.stopped:
            self._end()
        return lost

    def _end(self) -> None:
        if self.ended is not None:
            self.ended(self)


class Stoppable:
    """See the module. ``what`` it is, in the words of an error."""

    __slots__ = ("_claims", "_ends", "_locker", "_loop", "_scopes", "_what", "stopped")

    def __init__(self, locker: Locker, loop: asyncio.AbstractEventLoop, scopes: Scopes, what: str) -> None:
        self._locker = locker
        self._loop = loop
        self._scopes = scopes
        self._what = what
        self._claims: dict[StoppableClaim, Waiter] = {}
        """From the request to the end, with whoever waits at first."""
        self._ends: set[asyncio.Future[None]] = set()
        self.stopped = False
        """Whether ``stop`` was called. It stays so."""

    def check(self) -> None:
        """Raise ``Stopped`` if it was."""
        if self.stopped:
            raise self._error()

    async def stop(self, me: Actor) -> None:
        """End everything, and wait for the end. ``me`` calls; its own scopes are not waited for."""
        self.stopped = True
        inside = {id(claim): actor for actor, claims in self._scopes.held.items() for claim in claims}
        for claim, waiter in [*self._claims.items()]:
            if claim.state == GRANTED:
                claim.stop()
                if claim.stopped and id(claim) not in inside:
                    self._give_back(claim)
            else:
                if not waiter.done():
                    waiter.set_exception(self._error())
                self.withdraw(claim)
        await self.ended(*(claim for claim in [*self._claims] if me is None or inside.get(id(claim)) is not me))

    async def ended(self, *claims: StoppableClaim) -> None:
        """Wait until nothing of these is left."""
        while True:
            end: asyncio.Future[None] = self._loop.create_future()
            # before the look, because claims may end on another thread
            self._ends.add(end)
            try:
                if not any(claim in self._claims for claim in claims):
                    return
                await end
            finally:
                self._ends.discard(end)

    # the port Locker

    def acquire(self, claim: Claim) -> None:
        asked = _ours(claim)
        if self.stopped:
            claim.fail(self._error())
            return
        self._claims[asked] = asked.waiter
        asked.ended = self._end
        self._locker.acquire(claim)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        asked = _ours(claim)
        if asked.state == GRANTED:
            self._give_back(asked)
        else:
            self._locker.withdraw(asked)
            self._end(asked)

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        given = _ours(claim)
        if given.giving:
            self._locker.release(given, waiter)
        else:
            given.giving = True
            self._locker.release(given, self._answered(given, waiter))

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        for claim in claims[:-1]:
            self.release(claim, None)
        self.release(claims[-1], waiter)

    def drop(self, claim: Grant) -> None:
        self._locker.drop(claim)
        self._end(_ours(claim))

    def describe(self, key: LockKey, waiter: Describer) -> None:
        self._locker.describe(key, waiter)

    def _give_back(self, claim: StoppableClaim) -> None:
        if not claim.giving:
            claim.over = True
            self.release(claim, None)

    def _answered(self, claim: StoppableClaim, waiter: Waiter | None) -> asyncio.Future[bool]:
        """A waiter of ours, who tells theirs. Theirs may leave before the answer."""
        answer: asyncio.Future[bool] = self._loop.create_future()

        def told(answer: asyncio.Future[bool]) -> None:
            self._end(claim)
            error = answer.exception()
            if waiter is None or waiter.done():
                return
            if isinstance(error, Exception):
                waiter.set_exception(error)
            else:
                waiter.set_result(True)

        answer.add_done_callback(told)
        return answer

    def _error(self) -> Stopped:
        return Stopped(f"stop() was called on this {self._what}; make another")

    def _end(self, claim: StoppableClaim) -> None:
        self._claims.pop(claim, None)
        if self._ends:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waited there
                self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        for end in [*self._ends]:
            if not end.done():
                end.set_result(None)


def _ours(grant: Grant) -> StoppableClaim:
    assert isinstance(grant, StoppableClaim)
    return grant
