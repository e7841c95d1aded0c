"""The heartbeat: one statement for all sessions of this process, and what its answers and their absence mean.

Theory. There is one session for each (ttl, interval) that somebody uses, and one for whoever wants it apart. When one
of them is due, all are renewed in one request, so the process pays one statement per (shortest) interval, however much
hangs on them. At most one renewal is under way. What can come of it:

* *renewed*: the session is trusted until send time + ttl - margin. Its revision may have moved: then somebody has taken
  something from it, or wants something; what is still ours is read (``Own``), and the rest is lost. An answer that
  finds the trust ended already changes nothing: what was lost stays lost.
  The same is read while something may be carried out late, that was asked on a connection which has died since.
* *over*: the server says that its time is over, or that it was ended. All that hangs on it is lost, at once.
* *missing* in the answer, *no answer* within ``timeout``, or an error: nobody knows. That neither extends nor ends. It
  is tried again after a pause, a quarter of the interval, jittered; without an answer on a fresh connection.

When a session's trust ends before an answer comes, all that hangs on it is lost, which is ``margin`` before others may
take over. Only when that margin is over too is the session ended on the server: until then whoever has just learned of
the loss may be at work. A session on which nothing hangs for a ttl is ended, and its renewals with it.

The event loop may be blocked while a heartbeat is due. That is noticed when the loop goes on, by the delay.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from ..backend import Claim
from ..clock import Clock
from ..errors import CoordinatorClosed
from ..events import EventStream, HeartbeatFailed, HeartbeatLate, SessionEnded, SessionLost, SessionStarted
from ..messenger import Answer
from ..store import EndSession, Own, Owned, Renew, Request, StartSession, Store
from .alarm import Alarm
from .answers import Gathering, Told, ignore
from .session import Session, Who
from .timing import Timing
from .watchdog import Watchdog

__all__ = ["Heart", "HeartOwner"]

_LATE: Final = 0.1
_LATE_SHARE: Final = 0.25
_RETRY_SHARE: Final = 0.25
_SOON: Final = 0.05
_MOST_DOUBLINGS: Final = 16
_SPACED: Final = 1.0
_SPACED_SHARE: Final = 0.1
_OVER: Final = "the server says that its time is over, or that it was ended"


class HeartOwner(Protocol):
    """Whoever has names on the sessions."""

    def session_over(self, session: Session, reason: str) -> None:
        """Everything that hangs on it is lost."""

    def session_read(self, session: Session, judged: frozenset[Claim], owned: tuple[Owned, ...]) -> None:
        """What hangs on it by the store; ``judged`` are the claims that were granted before it was asked."""


class Heart:
    """Owns the sessions of one coordinator."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        who: Who,
        owner: HeartOwner,
        watchdog: Watchdog | None,
    ) -> None:
        self.store = store
        self._clock = clock
        self._loop = loop
        self._events = events
        self._who = who
        self._owner = owner
        self._watchdog = watchdog
        self._sessions: dict[tuple[float, float, str], Session] = {}
        self._beat = Alarm(clock, loop)
        self._deadline = Alarm(clock, loop)
        self._patience = Alarm(clock, loop)
        self._sent: float | None = None
        """When the renewal that is under way was sent."""
        self._limit = 0.0
        """For how long it has no answer at the most."""
        self._renewal = 0
        self._failures = 0
        self._unknown = 0
        """How many renewals in a row have left a session unknown."""
        self._retry_at: float | None = None
        self._soon_from = 0.0
        """Before this nobody brings the next renewal forward."""
        self._dying: dict[Session, Alarm] = {}
        """Sessions that we trust no longer, until the server is told that they have ended."""
        self._ends = Gathering()
        self._closed = False

    @property
    def sessions(self) -> list[Session]:
        """Those that are alive or about to be."""
        return [*self._sessions.values()]

    def session(self, timing: Timing) -> Session:
        """The session for a timing; started, if there is none."""
        place = timing.place
        session = self._sessions.get(place)
        if session is None:
            session = self._sessions[place] = Session(self._clock, timing, self._clock.now(), self.store.schema)
            # in a turn of its own, so that whoever asks can wait for it, also when it fails at once
            self._loop.call_soon(self._start, session)
        elif timing.timeout < session.timing.timeout:
            session.timing = timing  # whoever wants to know sooner decides
        return session

    def distrusted(self, session: Session) -> None:
        """The trust of a session has ended: what hangs on it is lost. It is ended when its margin is over, too."""
        if not self._lose(session, session.untrusted()) or self._closed:
            return
        alarm = self._dying[session] = Alarm(self._clock, self._loop)
        alarm.set(session.trusted_until + session.timing.margin, lambda: self._bury(session))

    def ended(self, session: Session) -> None:
        """The server says that it is over: what hangs on it is lost."""
        if self._lose(session, _OVER) and not self._closed:
            self._end(session)  # for others to whom its time does not look over yet

    def left(self, number: int) -> None:
        """Its owner ends this session: it is renewed no more, and what may still hang on it is lost."""
        for session in self._alive():
            if session.id == number and self._forget(session, "ended", "its owner has ended it"):
                self._events.emit(SessionEnded(session=number))
                self._owner.session_over(session, "its owner has ended it")

    def beat_soon(self) -> None:
        """Renew at once, or as soon as the renewal under way is answered: something may have changed.

        Not so soon if that was asked for a moment ago, so that many changes of others cost us little."""
        if not self._closed and self._alive():
            self._hasten(max(self._clock.now(), self._soon_from))

    def close(self) -> Gathering:
        """End all sessions. What comes back are the answers."""
        self._closed = True
        for alarm in (self._beat, self._deadline, self._patience):
            alarm.stop()
        if self._watchdog is not None:
            self._watchdog.close()
        for session in [*self._dying]:
            self._bury(session)
        for session in self.sessions:
            started = session.state == "alive"
            self._forget(session, "ended", "the coordinator was closed")
            if started:
                self._end(session)
            else:
                session.ending = self._ends.one()
                self._tell_waiting(session, CoordinatorClosed("the coordinator was closed"))
        return self._ends

    # the start

    def _start(self, session: Session) -> None:
        if session.state != "starting":
            if session.ending is not None:
                session.ending.set_result(None)
            return
        who = self._who
        start = StartSession(
            uuid=who.uuid,
            ttl=session.timing.ttl,
            host=who.host,
            pid=who.pid,
            application=who.application,
            data=who.data,
        )
        self._ask(start, lambda number: self._started(session, number), lambda error: self._not_started(session, error))

    def _started(self, session: Session, number: int) -> None:
        session.id = number
        if session.state != "starting":
            self._end(session)
            return
        if session.distrust() is not None:
            self._lose(session, session.untrusted())
            self._end(session)
            self._tell_waiting(session, None)
            return
        session.state = "alive"
        session.idle_since = self._clock.now()
        timing = session.timing
        self._events.emit(SessionStarted(session=number, ttl=timing.ttl, interval=timing.interval))
        self._set()
        self._tell_waiting(session, None)

    def _not_started(self, session: Session, error: Exception) -> None:
        if self._forget(session, "over", str(error)):
            self._tell_waiting(session, error)
        elif session.ending is not None:
            session.ending.set_exception(error)

    def _tell_waiting(self, session: Session, error: Exception | None) -> None:
        waiting, session.waiting = session.waiting, []
        for told in waiting:
            told(error)

    # the beat

    def _alive(self) -> list[Session]:
        return [session for session in self._sessions.values() if session.state == "alive"]

    def _set(self) -> None:
        """Set the alarms by what is known now."""
        alive = self._alive()
        if self._closed or not alive:
            self._beat.stop()
            self._deadline.stop()
            if self._watchdog is not None:
                self._watchdog.expect(None)
            return
        self._deadline.set(min(session.trusted_until for session in alive), self._look_at_trust)
        if self._sent is not None:
            self._beat.stop()
            if self._watchdog is not None:
                self._watchdog.expect(None)
            return
        due = min(session.sent + session.timing.interval for session in alive)
        if self._retry_at is not None:
            due = min(due, self._retry_at) if not self._failures else self._retry_at
        self._beat.set(due, self._due)
        if self._watchdog is not None:
            self._watchdog.expect(due + self._slack(alive) - self._clock.now())

    def _hasten(self, at: float) -> None:
        """Renew then, if not sooner."""
        if self._retry_at is None or at < self._retry_at:
            self._retry_at = at
        self._set()

    def _slack(self, alive: list[Session]) -> float:
        return max(_LATE, min(session.timing.interval for session in alive) * _LATE_SHARE)

    def _due(self) -> None:
        now = self._clock.now()
        alive = self._alive()
        if not alive or self._sent is not None:
            return
        stack = self._watchdog.seen() if self._watchdog is not None else None
        due = min(session.sent + session.timing.interval for session in alive)
        if now < due and not self._failures:
            self._soon_from = now + min(_SPACED, _SPACED_SHARE * min(session.timing.interval for session in alive))
        if self._retry_at is not None:
            due = max(due, self._retry_at) if self._failures else due
        if now - due > self._slack(alive):
            trusted = min(session.trusted_until for session in alive) - now
            self._events.emit(HeartbeatLate(delay=now - due, trusted_for=trusted, stack=stack))
        self._look_at_trust()
        self._end_idle(now)
        if alive := self._alive():
            self._renew(alive, now)

    def _renew(self, alive: list[Session], now: float) -> None:
        self._retry_at = None
        self._sent = now
        self._renewal += 1
        renewal = self._renewal
        for session in alive:
            session.sent = now
        numbers = tuple(sorted(session.id for session in alive if session.id is not None))
        self._limit = min(session.timing.timeout for session in alive)
        self._patience.set(now + self._limit, self._impatient)
        self._set()
        self._ask(
            Renew(numbers),
            lambda answer: self._renewed(renewal, alive, now, answer),
            lambda error: self._not_renewed(renewal, str(error)),
        )

    def _renewed(self, renewal: int, alive: list[Session], sent: float, answer: Mapping[int, int | None]) -> None:
        # also when it comes late: what it says of the time at which it was sent is true
        self._look_at_trust()
        unknown: list[Session] = []
        moved: list[tuple[Session, int]] = []
        for session in alive:
            if session.state != "alive" or session.id is None:
                continue
            if session.id not in answer:
                unknown.append(session)
            elif (revision := answer[session.id]) is None:
                self.ended(session)
            else:
                session.answered(sent)
                if revision > session.revision or sent < session.suspect_until:
                    moved.append((session, revision))
        if renewal == self._renewal:
            self._settled()
            self._unknown = self._unknown + 1 if unknown else 0
            if unknown:
                pause = self._pause(unknown, _SOON * 2 ** min(self._unknown - 1, _MOST_DOUBLINGS))
                self._retry_at = self._clock.now() + pause
            else:
                self._failures = 0
        for session, revision in moved:
            self._read(session, revision)
        self._set()

    def _not_renewed(self, renewal: int, why: str) -> None:
        if renewal != self._renewal or self._sent is None or self._closed:
            return  # given up before
        self._settled()
        alive = self._alive()
        if not alive:
            return
        self._failures += 1
        now = self._clock.now()
        pause = self._pause(alive)
        self._retry_at = now + pause
        trusted = min(session.trusted_until for session in alive) - now
        self._events.emit(HeartbeatFailed(error=why, failures=self._failures, retry_in=pause, trusted_for=trusted))
        self._set()

    def _settled(self) -> None:
        self._sent = None
        self._patience.stop()

    def _pause(self, sessions: list[Session], most: float = 86400.0) -> float:
        interval = min(session.timing.interval for session in sessions)
        return min(interval * _RETRY_SHARE, most) * random.uniform(0.75, 1.25)

    def _impatient(self) -> None:
        """The renewal has no answer in time: perhaps the connection is dead and nobody knows."""
        if self._sent is None:
            return
        why = f"no answer to a heartbeat within timeout={self._limit:g} s"
        renewal = self._renewal
        self.store.bounce(why)
        self._not_renewed(renewal, why)

    # what hangs on it

    def _read(self, session: Session, revision: int) -> None:
        assert session.id is not None
        judged = frozenset(session.claims)

        def read(owned: tuple[Owned, ...]) -> None:
            if session.state == "alive":
                session.revision = max(revision, session.revision)
                self._owner.session_read(session, judged, owned)

        def failed(_: Exception) -> None:
            # the next heartbeat tells of the same revision again
            if not self._closed and session.state == "alive":
                self._hasten(self._clock.now() + self._pause([session]))

        self._ask(Own(session.id), read, failed)

    # the end

    def _look_at_trust(self) -> None:
        now = self._clock.now()
        for session in self._alive():
            if now >= session.trusted_until:
                self.distrusted(session)
        self._set()

    def _end_idle(self, now: float) -> None:
        for session in self._alive():
            if session.claims or session.users:
                session.idle_since = None
            elif session.idle_since is None:
                session.idle_since = now
            elif now - session.idle_since >= session.timing.ttl:
                assert session.id is not None
                self._forget(session, "ended", "nothing hung on it")
                self._events.emit(SessionEnded(session=session.id))
                self._end(session)

    def _lose(self, session: Session, reason: str) -> bool:
        if not self._forget(session, "over", reason):
            return False
        if session.id is not None:
            self._events.emit(SessionLost(session=session.id, holds=len(session.claims), reason=reason))
        self._owner.session_over(session, reason)
        return True

    def _bury(self, session: Session) -> None:
        self._dying.pop(session).stop()
        self._end(session)

    def _end(self, session: Session) -> None:
        assert session.id is not None
        answer = session.ending or (self._ends.one() if self._closed else Told(ignore, ignore))
        self.store.ask(EndSession(session.id), answer)

    def _forget(self, session: Session, state: Any, reason: str) -> bool:
        place = session.timing.place
        if self._sessions.get(place) is not session:
            return False
        del self._sessions[place]
        session.state = state
        session.reason = reason
        self._set()
        return True

    def _ask(self, request: Request[Any], told: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        answer: Answer[Any] = Told(told, failed)
        self.store.ask(request, answer)
