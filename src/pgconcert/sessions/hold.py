"""What you have when something hangs on a session of yours, in the words of both worlds."""

from __future__ import annotations

import asyncio
import contextlib

from ..errors import SessionLost
from ..hold import AsyncHold, Held
from .claims import of_session

__all__ = ["AsyncSessionHold", "SessionHeld"]


class SessionHeld(Held):
    """What every hold that hangs on a session tells, with asyncio and in the blocking twin."""

    __slots__ = ()

    _lost_error = SessionLost

    @property
    def token(self) -> int:
        """The fencing token: larger than that of everybody who held this name before, over restarts, promotions, dump
        and restore. Hand it to whatever must refuse the late writes of an earlier holder. It fits a ``bigint``."""
        token = of_session(self._grant).token
        assert token is not None
        return token

    @property
    def since(self) -> float:
        """When it was taken, by the server's clock, in seconds since 1970."""
        taken_at = of_session(self._grant).taken_at
        assert taken_at is not None
        return taken_at

    @property
    def session_id(self) -> int:
        """The number of the session on which it hangs: what ``transaction.guard`` looks at, and a column of yours may
        keep."""
        session = of_session(self._grant).session
        assert session is not None
        assert session.id is not None
        return session.id

    @property
    def release_requested(self) -> bool:
        """Whether somebody has asked for it to be given back. It is ours until we do."""
        return of_session(self._grant).release_requested


class AsyncSessionHold(SessionHeld, AsyncHold):
    """What you hold while a session of this process lives. See ``AsyncHold`` for what it is in a block."""

    __slots__ = ()

    async def wait_release_requested(self) -> None:
        """Wait until somebody asks for it to be given back. Waits for ever if nobody does, or it is lost first."""
        self._here()
        grant = of_session(self._grant)
        if grant.release_requested:
            return
        loop = self._loop
        waiter: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody is left to be told
                loop.call_soon_threadsafe(settle)

        grant.request_watchers.append(tell)
        if grant.release_requested:
            tell()
        try:
            await waiter
        finally:
            grant.request_watchers.remove(tell)
