"""Terms of an election, and what is seen of them: who leads, and how that changes. Pure.

Theory. A *term* is one leadership. Its token is larger than that of every term before, so two terms of one leader are
never taken for one. The store writes down how terms begin and end, and keeps those that have ended for about an hour.
An observer asks for all terms from the one that it told last, so what happens between two looks is not missed:

* that term is over, or the time of its session is: nobody leads;
* there are newer ones: each leader leads, and nobody does after those that have ended already;
* it is gone, because a server has come that lost the end of its data: the present state is told, if it is another one.

A leader whose time was over may be back on such a server; then it is told again, with the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .sessions.register import from_json
from .store import Entry, SessionInfo, Subject, Term, Terms

__all__ = ["Leader", "LeaderChange", "TermView", "leader_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads. ``identity`` is the uuid and host of its coordinator, ``token`` that of its term, ``data`` what it
    gave to ``lead``; ``since``: the server's clock, in seconds since 1970; ``mine``: it is the one that was asked."""

    identity: str
    host: str
    pid: int
    application: str
    data: Any
    token: int
    since: float
    mine: bool

    def __str__(self) -> str:
        return f"{self.application or 'an unnamed program'} (pid {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChange:
    """Somebody leads from now on, or (``leader`` is ``None``) nobody does.

    ``token`` is that of the term which has begun or ended; ``None`` if there never was one. ``at``: when, by the
    server's clock in seconds since 1970; ``None`` when that is not known. ``how`` it ended: ``released``, ``resigned``,
    ``revoked`` or ``lost``; ``None`` while it lasts.
    """

    leader: Leader | None
    token: int | None
    at: float | None
    how: str | None


class TermView:
    """What an observer knows. Pure; see the theory of the module, and ``watching.View``."""

    def __init__(self, subject: Subject, identity: str) -> None:
        self._subject = subject
        self._identity = identity
        self._told: LeaderChange | None = None
        self._after: int | None = None

    def request(self) -> Terms:
        """The terms from the one that was told last; the latest, if none was."""
        return Terms(subject=self._subject, after=self._after)

    def seen(self, terms: Sequence[Term]) -> tuple[list[LeaderChange], float | None]:
        """What has changed, and in how many seconds the time of the present leader is over."""
        changes: list[LeaderChange] = []
        told = self._told
        known = told.token if told is not None else None
        if known is not None and self._after is not None and not (terms and terms[0].token == known):
            # what was told last is there no more
            self._tell(changes, LeaderChange(leader=None, token=known, at=None, how="lost"))
            if not terms:
                self._after = None
                return changes, 0.0
        if not terms and self._after is None:
            self._told = LeaderChange(leader=None, token=None, at=None, how=None)
            if told is None:
                changes.append(self._told)
        for term in terms:
            self._learn(changes, term, new=self._after is not None)
        token = self._told.token if self._told is not None else None
        self._after = -1 if token is None else token - 1
        leads = self._told is not None and self._told.leader is not None
        return changes, max(terms[-1].leader.expires_in, 0.0) if leads and terms else None

    def _learn(self, changes: list[LeaderChange], term: Term, new: bool) -> None:
        change = self._change(term)
        told = self._told
        if told is not None and told.token != term.token:
            # its end stands in its own term, so this is for one that the store has forgotten
            self._tell(changes, LeaderChange(leader=None, token=told.token, at=term.since, how="lost"))
            if new and change.leader is None:
                self._tell(changes, LeaderChange(leader=self._leader(term), token=term.token, at=term.since, how=None))
        self._tell(changes, change)

    def _change(self, term: Term) -> LeaderChange:
        if term.until is not None:
            return LeaderChange(leader=None, token=term.token, at=term.until, how=term.how)
        if term.leader.expires_in <= 0:
            return LeaderChange(leader=None, token=term.token, at=None, how="lost")
        return LeaderChange(leader=self._leader(term), token=term.token, at=term.since, how=None)

    def _leader(self, term: Term) -> Leader:
        return leader_of(term.leader, self._identity, token=term.token, since=term.since, data=term.data)

    def _tell(self, changes: list[LeaderChange], change: LeaderChange) -> None:
        """Tell it, unless nothing has changed by it."""
        told = self._told
        self._told = change
        if told is None or (told.leader is None) != (change.leader is None):
            changes.append(change)


def leader_in(entries: Sequence[Entry], identity: str) -> Leader | None:
    """Who leads, from the entries of one election; ``identity`` asks."""
    for entry in entries:
        if entry.session is not None and entry.since is not None:
            return leader_of(entry.session, identity, token=entry.token, since=entry.since, data=entry.data)
    return None


def leader_of(session: SessionInfo, identity: str, *, token: int, since: float, data: str | None) -> Leader:
    """A session as a leader; ``identity`` asks."""
    return Leader(
        identity=session.identity,
        host=session.host,
        pid=session.pid,
        application=session.application,
        data=from_json(data),
        token=token,
        since=since,
        mine=session.identity == identity,
    )
