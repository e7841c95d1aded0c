"""One name for which claims of this process compete: who is next, when the store is asked, what its answers mean.

Theory. Claims of one process queue here in their order; the store hears of the first one only, and of one thing at a
time. States of a name::

    idle       nobody wants it; it is forgotten
    starting   its session is being started
    asking     a Take, a Give or an Unmark is under way; what happens meanwhile is looked at when it is answered
    held       a claim has it
    waiting    others have it: until a wake-up, a time that the store has told, or ``check``
    courteous  it was given back, and others wait: they have their chance before this process waits for it again, unless
               that is preferred

A try (a claim that does not wait) never waits for others: with the first answer that is no success it is refused.

*A lost answer.* A Take without an answer may have succeeded. Taking again what our session has is allowed, so it is
simply asked again; if nobody wants it any more, or whoever is next has another session, we look whether our session has
it, and give it back. A Give without an answer is asked again (``debts.py``); that it was not ours the second time says
nothing, so whoever waits is woken all the same. Either may be carried out *late*, when others were answered long ago: a
Give does no harm then, because it has a token; a Take leaves a name to our session of which nobody knows, so heartbeats
look for such (``found``).

*Wake-ups.* Who is refused has left a mark by that very statement, and asks again at once: only then can no release be
missed. Who gives back learns whether other sessions wait, wakes them, and is courteous. The last claim that leaves
takes the mark away; so does one of another session, before it asks.

*Pauses.* An answer that was for nothing (somebody was at it this instant, our session was over) is asked for again at
once, then after longer and longer pauses, at most ``check``.

*Trust.* A Taken that comes when its session is trusted no longer grants nothing; the session is over, so the name will
be free, and the claim goes on with the next session.
"""

from __future__ import annotations

import random
import time
from typing import Final

from ..backend import WAITING
from ..errors import PgconcertError, Unavailable
from ..events import HoldBroken, NameTaken
from ..hold import Waiter
from ..store import Refused, Subject, Take, Taken
from .alarm import Alarm
from .answers import Told, settle
from .claims import SessionClaim
from .giving import Giver
from .office import Office
from .session import Session

__all__ = ["Name"]

_TRIES: Final = 3
_FIRST_PAUSE: Final = 0.01
_RETRY: Final = 0.2
_MOST_DOUBLINGS: Final = 16
_JITTER: Final = 0.02


class Name(Giver):
    """See the module. Made by the engine, and forgotten by it when idle."""

    __slots__ = ("_alarm", "_vain", "holder")

    def __init__(self, office: Office, subject: Subject) -> None:
        super().__init__(office, subject)
        self._alarm = Alarm(office.clock, office.loop)
        self._vain = 0
        self.holder: SessionClaim | None = None

    # what claims want

    def ask(self, claim: SessionClaim) -> None:
        """A claim comes."""
        if not claim.wait and (self.holder is not None or (self._courteous and self._queue)):
            claim.refuse()
            return
        self._queue.add(claim)
        preferred = claim.key.preferred and self._queue.first is claim
        if self.holder is not None:
            if preferred and not self.holder.key.preferred and not self.holder.release_requested:
                self._office.request_release(self.holder)
        elif not self._asking and (not claim.wait or preferred or (len(self._queue) == 1 and not self._courteous)):
            self._step()

    def withdraw(self, claim: SessionClaim) -> None:
        """A claim leaves the queue."""
        if not self._queue.remove(claim) or self._asking or self.holder is not None:
            return
        if claim.key.preferred and not self._courteous:
            self._step()  # the mark is to say what the next one is
        else:
            self._rest()

    def release(self, claim: SessionClaim, waiter: Waiter | None) -> None:
        """What a claim has is given back."""
        session = claim.session
        if self.holder is not claim or session is None:
            settle(waiter)
            return
        self.holder = None
        session.claims.discard(claim)
        self._give(session, claim, waiter, claim.token)

    # what the engine says

    def wake(self) -> None:
        """Something has happened to it elsewhere."""
        if self._asking:
            self._again = True
        elif self.holder is None and self._queue:
            self._vain = 0
            self._step()

    def found(self, session: Session) -> None:
        """The store says that this session has it; perhaps a Take was carried out late."""
        if self.holder is None and not self._asking and session.state == "alive":
            self._uncertain = session
            session.users.add(self)
            self._step()

    def session_over(self, session: Session, reason: str) -> None:
        """The session is over: what hung on it is lost, and what it owes need not be paid."""
        if self._marked is session:
            self._unmark()
        if self._uncertain is session:
            self._uncertain = None
        holder = self.holder
        if holder is not None and holder.session is session:
            self._lose(holder, reason)
        if self._debt is not None and self._debt.session is session:
            self._debt.forgive()
        else:
            self._step()

    def taken_away(self, reason: str) -> None:
        """What is held here is not ours any more, though our session lives."""
        holder = self.holder
        if holder is not None and holder.session is not None:
            holder.session.claims.discard(holder)
            self._lose(holder, reason)
            self._step()

    def close(self, error: PgconcertError) -> None:
        """Whoever waits is told, and nothing more is asked."""
        self._alarm.stop()
        self._queue.fail_all(error)
        if self._debt is not None and self._debt.resting:
            self._debt.forgive()

    # the steps

    def _step(self) -> None:
        """Do what is to be done now: pay what an earlier session owes, ask for the first claim, or be forgotten."""
        self._alarm.stop()
        self._courteous = False
        if self._asking or self.holder is not None:
            return
        claim = self._queue.first
        session = None if claim is None else self._office.heart.session(claim.key.timing)
        if self._pays_back(session):
            return
        if claim is None or session is None:
            self._office.forget(self)
            return
        self._asking = True
        session.users.add(self)
        if session.state == "starting":
            starting = session
            session.waiting.append(lambda error: self._started(starting, error))
        else:
            self._take(claim, session)

    def _rest(self) -> None:
        """Nothing is under way: go on, unless it is time that somebody waits for."""
        if self._alarm.due is None or not (self._queue or self._courteous):
            self._step()

    def _pause(self, seconds: float) -> None:
        self._alarm.set(self._office.clock.now() + seconds, self._step)

    def _in_vain(self, claim: SessionClaim) -> None:
        """That was for nothing: again at once, later after a while."""
        self._vain += 1
        if self._vain == 1 or not self._queue:
            self._step()
        else:
            self._pause(min(claim.key.timing.check, _FIRST_PAUSE * 2 ** min(self._vain - 2, _MOST_DOUBLINGS)))

    def _started(self, session: Session, error: Exception | None) -> None:
        self._asking = False
        session.users.discard(self)
        if error is None:
            self._office.ever_answered = True
            self._step()
        else:
            self._failed(error)

    # the take

    def _take(self, claim: SessionClaim, session: Session) -> None:
        assert session.id is not None
        key = claim.key
        waits = self._queue.waits
        take = Take(
            subject=self.subject,
            session=session.id,
            mark=waits,
            keep_mark=self._queue.others_wait,
            preferred=key.preferred,
            hold_at_least=key.hold_at_least,
            data=key.data,
        )
        self._again = False
        if waits:
            self._marked = session
            self._preferred = self._preferred or key.preferred
        self._office.store.ask(
            take,
            Told(
                lambda answer: self._answered(claim, session, take, answer),
                lambda error: self._unanswered(session, error),
            ),
        )

    def _answered(self, claim: SessionClaim, session: Session, take: Take, answer: Taken | Refused) -> None:
        self._asking = False
        self._uncertain = None  # it was this session, if any
        if isinstance(answer, Refused):
            self._unuse(session)
            self._refused(claim, session, take, answer)
            return
        if not take.keep_mark:
            self._unmark()
        self._unuse(session)
        if session.distrust() is not None:
            self._office.heart.distrusted(session)
            self._in_vain(claim)
            return
        if claim.state != WAITING:
            self._give(session, None, None, answer.token)
            return
        self._queue.remove(claim)
        self._vain = 0
        claim.session = session
        claim.token = answer.token
        claim.taken_at = answer.since
        session.claims.add(claim)
        self.holder = claim
        events, subject = self._office.events, self.subject
        waited = time.monotonic() - claim.since
        counts = events.tally.names
        counts.acquired += 1
        if claim.since < self._taken_at:
            counts.waited += 1
            counts.seconds_waited += waited
        if events.wants(NameTaken):
            events.emit(NameTaken(kind=subject.kind, name=subject.name, token=answer.token, waited=waited))
        self._office.wakes.changed(subject)
        claim.grant()
        self._queue.refuse_tries()
        self._office.wakes.unlisten(self)

    def _refused(self, claim: SessionClaim, session: Session, take: Take, answer: Refused) -> None:
        if answer.over:
            self._office.heart.ended(session)
            self._in_vain(claim)
            return
        self._taken_at = time.monotonic()
        if answer.retry_in == 0 and self._vain < _TRIES:
            self._in_vain(claim)
            return
        self._queue.refuse_tries()
        first = self._queue.first
        if first is None:
            self._rest()
            return
        self._office.wakes.listen(self)
        self._sure = answer.marked
        if self._again:
            self._step()
        elif answer.retry_in == 0 or not answer.marked or take.preferred != first.key.preferred:
            self._in_vain(first)
        else:
            self._vain = 0
            check = first.key.timing.check * random.uniform(0.75, 1.0)
            soon = check if answer.retry_in is None else answer.retry_in + random.random() * _JITTER
            self._pause(min(check, soon))

    def _unanswered(self, session: Session, error: Exception) -> None:
        """Nobody knows whether it was taken."""
        self._asking = False
        if isinstance(error, Unavailable) and session.state == "alive":
            self._uncertain = session
            session.suspect()
        self._unuse(session)
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, Unavailable) or not self._office.ever_answered:
            self._queue.fail_all(error)
        self._queue.fail_tries(error)
        first = self._queue.first
        if first is None:
            self._rest()
        else:
            pause = _RETRY * 2 ** min(self._vain, 5) * random.uniform(0.8, 1.0)
            self._pause(min(first.key.timing.check, pause))
            self._vain += 1

    def _lose(self, holder: SessionClaim, reason: str) -> None:
        self.holder = None
        events = self._office.events

        def noted() -> None:
            events.tally.names.lost += 1
            events.emit(HoldBroken(key=self.subject.name, reason=reason))

        holder.lose(reason, noted)

    def __repr__(self) -> str:
        state = "held" if self.holder else "asking" if self._asking else "waiting" if self._queue else "idle"
        return f"<Name {self.subject.kind} {self.subject.name!r} {state}, {len(self._queue)} waiting>"
