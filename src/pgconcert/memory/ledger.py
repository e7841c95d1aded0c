"""Sessions of a world and what hangs on them: the rules of ``store.py``. Pure data: no thread, no loop, no clock.

Theory. A request is carried out from its beginning to its end before the next begins, at one time, ``now``. So nothing
is ever locked this instant, and a late renewal and a take-over come one after the other. Who is alive is the matter of
``sessionbook.py``; an entry may hang on a session that is over, and is free then. Of queues speaks ``tasks.py``.

Tokens come from one count for all entries: so they grow for each of them, and rows that nobody needs can be forgotten.
Their high bits are the epoch. What is kept for a while (members that left or were lost, terms that ended, sessions that
nobody has ended) is purged in passing, once a minute.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

from ..store import (
    COUNTER_BITS,
    CreateGroup,
    DeleteGroup,
    EndSession,
    Entry,
    Give,
    Given,
    Look,
    LookAtSessions,
    Own,
    Owned,
    Refused,
    Renew,
    Request,
    RequestRelease,
    Revoke,
    StartSession,
    Subject,
    Take,
    Taken,
    Term,
    Terms,
    Unmark,
    Update,
)
from .sessionbook import Session, SessionBook
from .tasks import TaskBook

__all__ = ["Ledger"]

T = TypeVar("T")

_PURGE_EVERY: Final = 60.0
_MEMBERS_FOR: Final = 600.0
_TERMS_FOR: Final = 3600.0


@dataclass(slots=True, eq=False)
class _Entry:
    """``held_until``: given back earlier, it is free only then. ``left``: when it was given back or taken away."""

    subject: Subject
    session: Session | None = None
    token: int = 0
    since: float | None = None
    held_until: float = 0.0
    data: str | None = None
    preferred: bool = False
    given: bool = False
    release_requested: bool = False
    left: float = 0.0


@dataclass(slots=True, eq=False)
class _Term:
    token: int
    session: Session
    data: str | None
    since: float
    ended: tuple[float, str] | None = None


class Ledger:
    """Everything about sessions in a world. ``wall`` is what the world's clock lacks to seconds since 1970."""

    def __init__(self, wall: float) -> None:
        self._wall = wall
        self._book = SessionBook(wall)
        self._entries: dict[Subject, _Entry] = {}
        self._marks: defaultdict[Subject, dict[Session, bool]] = defaultdict(dict)
        """Who waits for an entry, and whether it is preferred."""
        self._terms: defaultdict[Subject, list[_Term]] = defaultdict(list)
        self._tokens = 0
        self._purge_at = 0.0
        self._carry_out: dict[type[Request[Any]], Callable[[Any, float], Any]] = {
            Renew: self._book.renew,
            EndSession: self._end,
            Take: self._take,
            Give: self._give,
            Unmark: self._unmark,
            Own: self._own,
            Update: self._update,
            RequestRelease: self._request_release,
            Revoke: self._revoke,
            Look: self._look,
            LookAtSessions: lambda _, now: self._book.look(now),
            Terms: self._look_at_terms,
            CreateGroup: self._create_group,
            DeleteGroup: self._delete_group,
        }
        self._tasks = TaskBook(wall, self)
        self._carry_out |= self._tasks.requests

    def carry_out(self, request: Request[T], now: float, owner: object) -> T:
        """Do what is asked; the sessions that it starts belong to ``owner``."""
        self._purge(now)
        if isinstance(request, StartSession):
            return cast(T, self._book.start(request, now, owner))
        return cast(T, self._carry_out[type(request)](request, now))

    def expire(self, owner: object, now: float) -> None:
        """The time of all sessions of this owner is over."""
        self._book.expire(owner, now)

    def fail_over(self, now: float) -> None:
        """Another incarnation begins."""
        self._book.fail_over(now)

    def forget(self, now: float) -> None:
        """Keep nothing but the counts: everybody has left."""
        self._book.forget(now)
        for kept in (self._entries, self._marks, self._terms):
            kept.clear()
        self._tasks.forget()

    def empty(self, now: float) -> bool:
        """Whether no session is alive and no task is kept. Safe from any thread."""
        return self._book.empty(now) and self._tasks.empty

    # what queues want to know

    def lives(self, session: int, now: float) -> bool:
        """Whether a session is alive."""
        return self._book.living(session, now) is not None

    def bury(self, session: int, now: float) -> bool:
        """Whether a session is over; if only its time is, it is ended."""
        there = self._book.get(session)
        if there is None or self._book.alive(there, now):
            return there is None
        self._finish(there, now)
        return True

    def runners(self, runner: Subject, now: float) -> Iterator[int]:
        """The sessions of the living runners of this kind, namespace and name."""
        for entry in [*self._entries.values()]:
            holder = entry.session
            if entry.subject[:3] == runner[:3] and holder is not None and self._book.alive(holder, now):
                yield holder.id

    # sessions

    def _end(self, request: EndSession, now: float) -> bool:
        session = self._book.get(request.session)
        if session is None:
            return False
        was_alive = self._book.alive(session, now)
        self._finish(session, now)
        return was_alive

    def _finish(self, session: Session, now: float) -> None:
        self._book.end(session, now)
        for subject in [subject for subject, marks in self._marks.items() if session in marks]:
            self._drop_mark(subject, session)

    # entries

    def _take(self, request: Take, now: float) -> Taken | Refused:
        assert request.subject.kind != "group", request
        me = self._book.living(request.session, now)
        if me is None:
            return Refused(over=True)
        marks = self._marks.get(request.subject, {})
        marked = me in marks
        refused = self._in_the_way(request, me, marked, now)
        if refused is not None:
            if request.mark:
                self._marks[request.subject][me] = request.preferred
            return refused
        if not request.keep_mark:
            self._drop_mark(request.subject, me)
        # whoever it was taken from is over, unless it was ourselves
        self._end_term(request.subject, now, "released")
        entry = self._entries.setdefault(request.subject, _Entry(request.subject))
        self._tokens += 1
        entry.session, entry.since, entry.data = me, now, request.data
        entry.token = (self._book.epoch << COUNTER_BITS) + self._tokens
        entry.held_until = now + request.hold_at_least
        entry.preferred, entry.given, entry.release_requested = request.preferred, False, False
        if request.subject.kind == "election":
            self._terms[request.subject].append(_Term(entry.token, me, entry.data, now))
        return Taken(token=entry.token, since=now + self._wall)

    def _in_the_way(self, request: Take, me: Session, marked: bool, now: float) -> Refused | None:
        entry = self._entries.get(request.subject)
        holder = None if entry is None else entry.session
        if entry is not None and holder is not None and holder is not me:
            if self._book.alive(holder, now):
                if self._prefers(request) and not entry.preferred and not entry.release_requested:
                    self._want_back(entry, holder)
                info = self._book.info(holder, now)
                return Refused(holder=info, retry_in=info.expires_in, marked=marked)
            if holder.ended is None:
                self._finish(holder, now)
        if entry is not None and holder is None and entry.held_until > now:
            return Refused(retry_in=entry.held_until - now, marked=marked)
        if holder is not me and not self._prefers(request):
            # nobody can know who of the preferred will come first, but none does after its session is over
            waits = [self._book.over_at(one) - now for one in self._preferred(request.subject, now) if one is not me]
            if waits:
                return Refused(retry_in=max(waits), marked=marked)
        return None

    def _prefers(self, request: Take) -> bool:
        return request.preferred and request.subject.kind == "election"

    def _preferred(self, subject: Subject, now: float) -> Iterator[Session]:
        if subject.kind == "election":
            for session, preferred in self._marks.get(subject, {}).items():
                if preferred and self._book.alive(session, now):
                    yield session

    def _give(self, request: Give, now: float) -> Given:
        entry = self._ours(request.subject, request.session, request.token, now)
        if entry is not None:
            self._end_term(request.subject, now, request.how)
            entry.session, entry.given, entry.left, entry.release_requested = None, True, now, False
        marks = self._marks.get(request.subject, {})
        waited = any(one.id != request.session and self._book.alive(one, now) for one in marks)
        return Given(ours=entry is not None, waited=waited)

    def _unmark(self, request: Unmark, now: float) -> bool:
        session = self._book.get(request.session)
        return session is not None and self._drop_mark(request.subject, session)

    def _drop_mark(self, subject: Subject, session: Session) -> bool:
        marks = self._marks.get(subject, {})
        dropped = marks.pop(session, None) is not None
        if not marks:
            self._marks.pop(subject, None)
        return dropped

    def _own(self, request: Own, now: float) -> tuple[Owned, ...]:
        me = self._book.living(request.session, now)
        ours = (entry for entry in self._entries.values() if me is not None and entry.session is me)
        return tuple(sorted(Owned(entry.subject, entry.token, entry.release_requested) for entry in ours))

    def _update(self, request: Update, now: float) -> bool:
        entry = self._ours(request.subject, request.session, request.token, now)
        if entry is None:
            return False
        entry.data = request.data
        return True

    def _request_release(self, request: RequestRelease, now: float) -> bool:
        entry = self._entries.get(request.subject)
        if entry is None or entry.session is None or not self._book.alive(entry.session, now):
            return False
        self._want_back(entry, entry.session)
        return True

    def _want_back(self, entry: _Entry, holder: Session) -> None:
        entry.release_requested = True
        holder.revision += 1

    def _revoke(self, request: Revoke, now: float) -> bool:
        entry = self._entries.get(request.subject)
        if entry is None:
            return False
        entry.held_until = now
        holder = entry.session
        if holder is None or not self._book.alive(holder, now):
            return False
        self._end_term(request.subject, now, "revoked")
        entry.session, entry.given, entry.left, entry.release_requested = None, False, now, False
        holder.revision += 1
        return True

    def _ours(self, subject: Subject, number: int, token: int | None, now: float) -> _Entry | None:
        entry = self._entries.get(subject)
        me = self._book.living(number, now)
        if entry is None or me is None or entry.session is not me or token not in (None, entry.token):
            return None
        return entry

    def _end_term(self, subject: Subject, now: float, how: str) -> None:
        terms = self._terms.get(subject)
        if terms and terms[-1].ended is None:
            terms[-1].ended = self._term_end(terms[-1], now) or (now, how)

    def _term_end(self, term: _Term, now: float) -> tuple[float, str] | None:
        if term.ended is None and not self._book.alive(term.session, now):
            return (self._book.over_at(term.session), "lost")
        return term.ended

    # groups

    def _create_group(self, request: CreateGroup, now: float) -> bool:
        assert request.subject.kind == "group", request
        there = request.subject in self._entries
        self._entries.setdefault(request.subject, _Entry(request.subject, since=now))
        return not there

    def _delete_group(self, request: DeleteGroup, now: float) -> Literal["deleted", "missing", "not empty"]:
        assert request.subject.kind == "group", request
        if request.subject not in self._entries:
            return "missing"
        member = request.subject._replace(kind="member")
        for entry in self._entries.values():
            if entry.subject._replace(member="") == member and self._book.alive(entry.session, now):
                return "not empty"
        del self._entries[request.subject]
        return "deleted"

    # looking

    def _look(self, request: Look, now: float) -> tuple[Entry, ...]:
        wanted = (request.kind, request.namespace, request.name, request.member)
        found = [
            subject
            for subject in self._entries
            if all(want is None or want == is_ for want, is_ in zip(wanted, subject, strict=True))
        ]
        return tuple(self._entry(self._entries[subject], now) for subject in sorted(found))

    def _entry(self, entry: _Entry, now: float) -> Entry:
        holder = entry.session
        has_it = holder is not None and self._book.alive(holder, now)
        return Entry(
            subject=entry.subject,
            session=self._book.info(holder, now) if holder is not None and has_it else None,
            token=entry.token,
            since=None if entry.since is None else entry.since + self._wall,
            data=entry.data,
            given=entry.given,
            release_requested=has_it and entry.release_requested,
            waiting=sum(self._book.alive(one, now) for one in self._marks.get(entry.subject, {})),
        )

    def _look_at_terms(self, request: Terms, now: float) -> tuple[Term, ...]:
        terms = self._terms.get(request.subject, [])
        after = request.after
        wanted = terms[-1:] if after is None else [term for term in terms if term.token > after]
        return tuple(self._term(term, now) for term in wanted)

    def _term(self, term: _Term, now: float) -> Term:
        until, how = self._term_end(term, now) or (None, None)
        return Term(
            token=term.token,
            leader=self._book.info(term.session, now if until is None else self._book.over_at(term.session)),
            data=term.data,
            since=term.since + self._wall,
            until=None if until is None else until + self._wall,
            how=how,
        )

    # what is kept for a while

    def _purge(self, now: float) -> None:
        if now < self._purge_at:
            return
        self._purge_at = now + _PURGE_EVERY
        for session in self._book.stale(now):
            self._finish(session, now)
        for subject, entry in [*self._entries.items()]:
            left = entry.left if entry.session is None else self._book.over_at(entry.session)
            if subject.kind in ("member", "runner") and now > left + _MEMBERS_FOR:
                del self._entries[subject]
        for terms in self._terms.values():
            terms[:-1] = [
                term for term in terms[:-1] if (end := self._term_end(term, now)) is None or now <= end[0] + _TERMS_FOR
            ]
