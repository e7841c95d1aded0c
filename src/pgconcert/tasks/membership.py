"""The session of a runner, and its entry: by them it is counted among those that share, and its tasks are its own.

Theory. Each shift has a session of its own, so that its end frees the tasks and nothing else. The entry hangs on it, of
kind *runner*, under an id that nobody else has; so it is never waited for. Who leaves ends the session, which the
engine then renews no more, whether or not anybody answers. Where the *trust* ended, nothing is asked: the engine ends
the session when the margin is over, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from ..acquiring import Register
from ..errors import Unavailable
from ..sessions.answers import Told, ignore
from ..sessions.claims import SessionClaim, session_key
from ..sessions.register import SessionRegister, as_json, subject_of
from ..sessions.timing import Timing
from ..store import EndSession
from ..watching import ask

__all__ = ["Membership", "join"]

_TRIES: Final = 5
_PAUSE: Final = 0.05


class Membership:
    """See the module."""

    __slots__ = ("_claim", "_of", "number", "subject")

    def __init__(self, of: SessionRegister[Register], claim: SessionClaim) -> None:
        session = claim.session
        assert session is not None
        assert session.id is not None
        self._of = of
        self._claim = claim
        self.number = session.id
        """The number of the session."""
        self.subject = claim.key.subject
        """Our entry."""

    @property
    def lost(self) -> str | None:
        """Why it is lost, if it is. Looks at the clock; from any thread."""
        return self._claim.reason

    def watch(self, told: Callable[[str], None]) -> None:
        """Call ``told``, on our loop, when it is lost; perhaps twice, and at once if it is."""
        claim, loop = self._claim, self._of.register.loop

        def tell() -> None:
            told(claim.reason or "its session is over")

        def post() -> None:
            try:
                loop.call_soon_threadsafe(tell)
            except RuntimeError:
                return  # the loop has ended

        if claim.reason is None:
            claim.watch(post)
        else:
            tell()

    async def end(self) -> None:
        """End the session. Raises ``Unavailable`` if nobody answered: then others wait until its time is over."""
        self._claim.over = True
        await ask(self._of, EndSession(self.number))

    def abandon(self) -> None:
        """Let it end, and wait for nothing."""
        session = self._claim.session
        assert session is not None
        if session.state == "alive" and session.distrust() is None:
            self._of.sessions.ask(EndSession(self.number), Told[Any](ignore, ignore))
        self._claim.over = True


async def join(of: SessionRegister[Register], name: str, member: str, timing: Timing, source: str) -> Membership:
    """Start a session and put our entry there. ``member`` is an id that nobody else has; asked again with the same one
    after a failure, it goes on with what that has left. ``source`` is told to all.

    Raises ``Unavailable``, ``SchemaMissing``, ``ConfigurationError``, ``CoordinatorClosed``. Cancelled, it leaves.
    """
    key = session_key(
        of.keys,
        subject_of("runner", of.keys, name, member),
        replace(timing, apart=member),
        data=as_json({"source": source}, "the source of a runner"),
    )
    register = of.register
    for _ in range(_TRIES):
        waiter: asyncio.Future[bool] = register.loop.create_future()
        claim = SessionClaim(key, waiter, wait=False)
        register.locker.acquire(claim)
        try:
            granted = await waiter
        except BaseException:
            register.locker.withdraw(claim)
            if claim.session is not None:
                Membership(of, claim).abandon()
            raise
        if granted:
            return Membership(of, claim)
        await asyncio.sleep(_PAUSE)
    raise Unavailable(f"the row of runner {name!r} is locked by somebody; try again")
