"""The sessions of a world: who is alive, and until when. Pure data: no thread, no loop, no clock.

Theory. What a session is::

    alive --its time passes--> stale --somebody takes what hangs on it, or it is purged--> ended
      |                                                                                      ^
      +--EndSession--------------------------------------------------------------------------+

Only who is alive is renewed, and what is stale or ended looks the same from outside: over. A session that has ended is
not in the book any more; who still has it in hand sees that by ``ended``.

Another *incarnation* raises the epoch; whoever was renewed only under an earlier one has one ttl of grace, counted from
its own end or from the beginning of the incarnation, whichever is later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..store import Renew, SessionInfo, StartSession

__all__ = ["Session", "SessionBook"]

_STALE_FOR: Final = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """``until``: when it will be over, without grace. ``ended``: when it did. Times of the world's clock."""

    id: int
    asked: StartSession
    owner: object
    started: float
    until: float
    incarnation: int
    revision: int = 0
    ended: float | None = None


class SessionBook:
    """All sessions that have not ended. ``wall`` is what the world's clock lacks to seconds since 1970."""

    def __init__(self, wall: float) -> None:
        self.epoch = 1
        """The number of the incarnation."""
        self._since = 0.0
        """When it began."""
        self._wall = wall
        self._sessions: dict[int, Session] = {}
        self._numbers = 0

    def start(self, request: StartSession, now: float, owner: object) -> int:
        """Start a session: its number."""
        self._numbers += 1
        until = now + request.ttl
        self._sessions[self._numbers] = Session(
            id=self._numbers, asked=request, owner=owner, started=now, until=until, incarnation=self.epoch
        )
        return self._numbers

    def renew(self, request: Renew, now: float) -> dict[int, int | None]:
        """Let them live on: the revision of each that is alive."""
        revisions: dict[int, int | None] = {}
        for number in request.sessions:
            session = self.living(number, now)
            if session is not None:
                # whoever comes from an earlier incarnation looks at what it still has
                session.revision += session.incarnation != self.epoch
                session.until, session.incarnation = now + session.asked.ttl, self.epoch
            revisions[number] = None if session is None else session.revision
        return revisions

    def get(self, number: int) -> Session | None:
        """A session that has not ended, alive or stale."""
        return self._sessions.get(number)

    def living(self, number: int, now: float) -> Session | None:
        """A session, if it is alive."""
        session = self._sessions.get(number)
        return session if session is not None and self.alive(session, now) else None

    def alive(self, session: Session | None, now: float) -> bool:
        """Whether it is. Nobody is not."""
        return session is not None and session.ended is None and now < self.over_at(session)

    def over_at(self, session: Session) -> float:
        """When it was over, or will be if nobody renews it."""
        if session.ended is not None:
            return session.ended
        if session.incarnation == self.epoch:
            return session.until
        return max(session.until, self._since) + session.asked.ttl

    def end(self, session: Session, now: float) -> None:
        """It has ended; if it was over before, then."""
        session.ended = min(now, self.over_at(session))
        del self._sessions[session.id]

    def stale(self, now: float) -> Iterator[Session]:
        """Those that are over, and that nobody has ended for long."""
        for session in [*self._sessions.values()]:
            if now > self.over_at(session) + _STALE_FOR:
                yield session

    def expire(self, owner: object, now: float) -> None:
        """The time of all that this owner has started is over."""
        for session in self._sessions.values():
            if session.owner is owner and self.alive(session, now):
                session.until, session.incarnation = now, self.epoch

    def fail_over(self, now: float) -> None:
        """Another incarnation begins."""
        self.epoch += 1
        self._since = now

    def forget(self, now: float) -> None:
        """End all."""
        for session in [*self._sessions.values()]:
            self.end(session, now)

    def empty(self, now: float) -> bool:
        """Whether none is alive. Safe from any thread."""
        return not any(self.alive(session, now) for session in [*self._sessions.values()])

    def look(self, now: float) -> tuple[SessionInfo, ...]:
        """All that are alive, by number."""
        return tuple(self.info(session, now) for session in self._sessions.values() if self.alive(session, now))

    def info(self, session: Session, now: float) -> SessionInfo:
        """A session as anybody may see it."""
        asked = session.asked
        return SessionInfo(
            id=session.id,
            uuid=asked.uuid,
            host=asked.host,
            pid=asked.pid,
            application=asked.application,
            data=asked.data,
            ttl=asked.ttl,
            started=session.started + self._wall,
            expires_in=self.over_at(session) - now,
        )
