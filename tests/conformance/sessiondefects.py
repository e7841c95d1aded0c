"""A ledger of a `memory://` world with nothing wrong, and many that get one thing wrong.

Here live the mistakes, for `test_session_defects.py`, which says which case finds them.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pgconcert.memory.ledger import Ledger
from pgconcert.memory.sessionbook import Session, SessionBook
from pgconcert.store import (
    DeleteGroup,
    EndSession,
    Give,
    Given,
    Look,
    Own,
    Refused,
    Renew,
    Request,
    RequestRelease,
    Revoke,
    Subject,
    Take,
    Terms,
    Unmark,
    Update,
)


class Sound(Ledger):
    """Nothing is wrong with it. A defect overrides something."""

    book: type[SessionBook] = SessionBook

    def __init__(self, wall: float = 0.0) -> None:
        super().__init__(wall)
        self._book = self.book(wall)
        self._carry_out[Renew] = self._book.renew
        self.tellings = 0

    def carry_out(self, request: Any, now: float, owner: object) -> Any:
        changed = self.asked(request)
        return self.told(request, super().carry_out(changed, now, owner), now)

    def asked(self, request: Any) -> Any:
        return request

    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer

    def then(self, request: Request[Any], now: float) -> Any:
        return super().carry_out(request, now, None)


# how long sessions live


class NeverOver(SessionBook):
    def over_at(self, session: Session) -> float:
        return super().over_at(session) + (3600 if session.ended is None else 0)


class RevivesTheDead(SessionBook):
    def renew(self, request: Renew, now: float) -> dict[int, int | None]:
        for number in request.sessions:
            session = self.get(number)
            if session is not None:
                session.until = now + session.asked.ttl
        return super().renew(request, now)


class RenewsNothing(SessionBook):
    def renew(self, request: Renew, now: float) -> dict[int, int | None]:
        return {number: session.revision for number in request.sessions if (session := self.living(number, now))}


class LivesForTwice(SessionBook):
    def renew(self, request: Renew, now: float) -> dict[int, int | None]:
        revisions = super().renew(request, now)
        for number in request.sessions:
            if (session := self.get(number)) is not None:
                session.until += session.asked.ttl
        return revisions


class RenewsOneOfMany(Sound):
    def asked(self, request: Any) -> Any:
        return Renew(request.sessions[:1]) if isinstance(request, Renew) else request


class EndsNothing(Sound):
    def asked(self, request: Any) -> Any:
        return Renew(()) if isinstance(request, EndSession) else request

    def told(self, request: Any, answer: Any, now: float) -> Any:
        return True if isinstance(request, EndSession) else answer


class EndsTwice(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return True if isinstance(request, EndSession) else answer


# who has it


class GivesToEverybody(Sound):
    def _in_the_way(self, request: Take, me: Session, marked: bool, now: float) -> None:
        return None


class RefusesItsHolder(Sound):
    def _in_the_way(self, request: Take, me: Session, marked: bool, now: float) -> Refused | None:
        has_it = any(one.subject == request.subject for one in self.then(Own(me.id), now))
        return Refused(retry_in=1) if has_it else super()._in_the_way(request, me, marked, now)


class TakesForTheDead(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, over=False) if isinstance(answer, Refused) else answer


class KnowsNoHolder(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, holder=None) if isinstance(answer, Refused) else answer


class LeavesTheDeadTheirNames(Sound):
    def _in_the_way(self, request: Take, me: Session, marked: bool, now: float) -> Refused | None:
        entry = self._entries.get(request.subject)
        holder = None if entry is None else entry.session
        if holder is not None and holder is not me and holder.ended is None:
            return Refused(retry_in=1, marked=marked)
        return super()._in_the_way(request, me, marked, now)


class TokensStandStill(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        self._tokens = 0
        return answer


class NoEpoch(Sound):
    def __init__(self) -> None:
        super().__init__()
        self._book.epoch = 0


class GivesForAnybody(Sound):
    def asked(self, request: Any) -> Any:
        entry = self._entries.get(request.subject) if isinstance(request, Give) else None
        if entry is not None and entry.session is not None:
            return dataclasses.replace(request, session=entry.session.id)
        return request


class LooksAtNoToken(Sound):
    def _ours(self, subject: Subject, number: int, token: int | None, now: float) -> Any:
        return super()._ours(subject, number, None, now)


class AlwaysOurs(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, ours=True) if isinstance(answer, Given) else answer


class ConfusesBatches(Sound):
    last: Any = None

    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, Take):
            self.last, answer = answer, self.last or answer
        return answer


# who wants it


class ForgetsMarks(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, mark=False) if isinstance(request, Take) else request


class KeepsMarks(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, keep_mark=True) if isinstance(request, Take) else request


class DropsMarks(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, keep_mark=False) if isinstance(request, Take) else request


class IsMarkedAtOnce(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, marked=request.mark) if isinstance(answer, Refused) else answer


class TellsOfItsOwnMark(Sound):
    def _give(self, request: Give, now: float) -> Given:
        given = super()._give(request, now)
        return dataclasses.replace(given, waited=bool(self._marks.get(request.subject)))


class TellsNobodyWaits(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return dataclasses.replace(answer, waited=False) if isinstance(answer, Given) else answer


class MarksStay(Sound):
    def asked(self, request: Any) -> Any:
        return Renew(()) if isinstance(request, Unmark) else request

    def told(self, request: Any, answer: Any, now: float) -> Any:
        return True if isinstance(request, Unmark) else answer


class RaisesNoRevision(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, RequestRelease | Revoke):
            for session in self._book._sessions.values():
                session.revision = 0
        return answer


class RevokesForNobody(Sound):
    def asked(self, request: Any) -> Any:
        return RequestRelease(request.subject) if isinstance(request, Revoke) else request


class KeepsRequests(Sound):
    def _take(self, request: Take, now: float) -> Any:
        entry = self._entries.get(request.subject)
        requested = entry is not None and entry.since is not None and self.tellings > 0
        answer = super()._take(request, now)
        if requested:
            self._entries[request.subject].release_requested = True
        return answer

    def told(self, request: Any, answer: Any, now: float) -> Any:
        self.tellings += isinstance(request, RequestRelease)
        return answer


class KeepsTheLeastTimeAfterARevoke(Sound):
    def _revoke(self, request: Revoke, now: float) -> bool:
        entry = self._entries.get(request.subject)
        until = entry.held_until if entry is not None else 0.0
        answer = super()._revoke(request, now)
        if entry is not None:
            entry.held_until = until
        return answer


class ForgetsTheLeastTime(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, hold_at_least=0) if isinstance(request, Take) else request


class PrefersNobody(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, preferred=False) if isinstance(request, Take) else request


class AsksThePreferredToo(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(answer, Refused) and request.preferred:
            self.then(RequestRelease(request.subject), now)
        return answer


class TheFirstWordOfAMarkCounts(Sound):
    def _take(self, request: Take, now: float) -> Any:
        for session, wish in self._marks.get(request.subject, {}).items():
            if session.id == request.session:
                request = dataclasses.replace(request, preferred=wish)
        return super()._take(request, now)


class ThePreferredNeverDie(Sound):
    def _in_the_way(self, request: Take, me: Session, marked: bool, now: float) -> Refused | None:
        self.tellings += request.preferred
        refused = super()._in_the_way(request, me, marked, now)
        return refused or (Refused(retry_in=1) if self.tellings and not request.preferred else None)


# what is shown


class FoldsNames(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Take):
            subject = request.subject._replace(name=request.subject.name.strip().lower())
            return dataclasses.replace(request, subject=subject)
        return request


class CutsOffNames(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Take):
            return dataclasses.replace(request, subject=request.subject._replace(name=request.subject.name[:255]))
        return request


class OneNamespace(Sound):
    def asked(self, request: Any) -> Any:
        subject = getattr(request, "subject", None)
        return request if subject is None else dataclasses.replace(request, subject=subject._replace(namespace=""))


class OneKind(Sound):
    def asked(self, request: Any) -> Any:
        subject = getattr(request, "subject", None)
        if subject is None or subject.kind == "group":
            return request
        return dataclasses.replace(request, subject=subject._replace(kind="job", member=""))


class UnderstandsData(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Take | Update) and request.data is not None:
            return dataclasses.replace(request, data=json.dumps(json.loads(request.data), sort_keys=True))
        return request


class UpdatesForAnybody(Sound):
    def _update(self, request: Update, now: float) -> bool:
        entry = self._entries.get(request.subject)
        if entry is not None:
            entry.data = request.data
        return super()._update(request, now)


class LooksBackwards(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        return answer[::-1] if isinstance(request, Look) else answer


class LooksPastTheMember(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, member=None) if isinstance(request, Look) else request


class ShowsTheDeadAsHolders(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, Look):
            sessions = [self._entries[entry.subject].session for entry in answer]
            return tuple(
                dataclasses.replace(entry, session=session and self._book.info(session, now))
                for entry, session in zip(answer, sessions, strict=True)
            )
        return answer


class TheLostHaveLeft(Sound):
    def told(self, request: Any, answer: Any, now: float) -> Any:
        if isinstance(request, Look):
            return tuple(dataclasses.replace(entry, given=entry.session is None) for entry in answer)
        return answer


class DeletesGroupsWithMembers(Sound):
    def _delete_group(self, request: DeleteGroup, now: float) -> Any:
        there = self._entries.pop(request.subject, None)
        return "missing" if there is None else "deleted"


class TermsOfEverything(Sound):
    def asked(self, request: Any) -> Any:
        if isinstance(request, Terms):
            subject = next((one for one in self._terms if one.name == request.subject.name), request.subject)
            return dataclasses.replace(request, subject=subject)
        return request


class ForgetsHowItEnded(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, how="released") if isinstance(request, Give) else request


class TermsOfTheDeadGoOn(Sound):
    def _term_end(self, term: Any, now: float) -> Any:
        return term.ended


class TellsOldTermsAgain(Sound):
    def asked(self, request: Any) -> Any:
        return dataclasses.replace(request, after=0) if isinstance(request, Terms) else request


class ThroughTheConnection(Sound):
    """Sessions die with it; see ``place``."""
