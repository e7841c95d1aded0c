"""Sessions and what hangs on them, in our tables, on the *work* link, by group commit: the port ``Store``.

Theory. Each kind of request has a desk (``desk.py``) and one statement, which carries many. What is under way when the
link dies is settled with ``Unavailable``, for nobody knows what became of it; whoever asked asks again, which every
request bears. While there is no link, requests wait for the attempt that is being made, and fail with it.

The server may be another one than a moment ago, on a link that has not even noticed (behind a transaction pooler), so
those statements that grant or renew find out themselves which incarnation of it carries them out. If that is not the
one that the row of ``epoch`` knows, they do nothing; then the store writes the new one down, once for all who wait, and
asks again. What was asked for is settled only after that.

Whoever starts and renews sessions also purges (``purge.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ..errors import CoordinatorClosed, GivenUp, PgconcertError, StatementFailed, Unavailable
from ..messenger import Answer
from ..store import (
    MAX_EPOCH,
    CreateGroup,
    DeleteGroup,
    EndSession,
    Give,
    Given,
    Look,
    LookAtSessions,
    Own,
    Renew,
    RequestRelease,
    Revoke,
    StartSession,
    Subject,
    Take,
    Terms,
    Unmark,
    Update,
)
from ..store import Request as Asked
from .desk import IN_THE_WAY, Desk, Request, explain, paired
from .groupcommit import Turns
from .keeper import Context, Keeper
from .link import Link, Rows, Statement
from .lookstatement import FILTERS, look_statement
from .probe import Proof
from .purge import Purge
from .schemafiles import NOT_PERMITTED, UNDEFINED, checked
from .sessionclauses import PLANS
from .sessionparameters import (
    any_number,
    apart,
    at_holder,
    claim_asked,
    claims,
    first,
    gives,
    names,
    renewals_asked,
    session_asked,
    sessions,
    starts,
    subject_asked,
    takes,
    terms,
    texts,
    updates,
)
from .sessionrows import (
    renewals,
    settle_found,
    settle_owned,
    settle_sessions,
    settle_terms,
    settle_told,
    taken_or_refused,
)
from .sessionstatements import session_statements

__all__ = ["PostgresSessionStore"]

T = TypeVar("T")
R = TypeVar("R", bound=Asked[Any])

_MOST_LOOKS: Final = 50
_STRANGERS: Final = 5
_TOO_LARGE: Final = "23514"
_ENDED: Final = {b"t": "deleted", b"f": "missing"}

Batch = Sequence[Request[R]]


class PostgresSessionStore:
    """Owns the work link. ``schema`` is where the tables are; raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        self._loop = context.loop
        self._schema = checked(schema)
        self._closed = False
        self._turns: Turns | None = None
        self._strangers: list[tuple[Desk[Any], Request[Any]]] = []
        self._sql = session_statements(schema)
        self._desks = self._make_desks()
        self._looks: dict[tuple[str, ...], Desk[Look]] = {}
        self._nudge: Desk[tuple[Subject, int | None]] = Desk(
            self, "request of release", self._sql.request_release, at_holder, self._from_holder, apart(first)
        )
        self._take_away: Desk[tuple[Subject, int | None]] = Desk(
            self, "revocation", self._sql.revoke, at_holder, self._taken_away, apart(first)
        )
        self.keeper = Keeper(context, "work", self)
        self.purge = Purge(self.keeper, self._loop, self._sql.purge)
        """Of what has been over for long."""

    @property
    def schema(self) -> str:
        """Where the tables are."""
        return self._schema

    @property
    def clock(self) -> None:
        """The machine's."""
        return None

    def ask(self, request: Asked[T], answer: Answer[T]) -> None:
        """Carry out a request. See the port."""
        if isinstance(request, (RequestRelease, Revoke)):
            desk = self._nudge if isinstance(request, RequestRelease) else self._take_away
            self._hand_in(desk, Request[tuple[Subject, int | None]]((request.subject, None), answer))
        elif isinstance(request, Look):
            self._hand_in(self._look_desk(request), Request(request, answer))
        else:
            self._hand_in(self._desks[type(request)], Request(request, answer))

    def bounce(self, reason: str) -> None:
        """Replace the link, if there is one. What is under way fails with ``Unavailable``."""
        if self.keeper.link is not None:
            self.keeper.bounce(self.keeper.link, reason, broken=True)

    async def close(self) -> None:
        """Close the link; whoever still waits is told."""
        self._closed = True
        await self.keeper.close()
        for desk in self._all():
            desk.give_up(CoordinatorClosed("the coordinator was closed"), all_of_them=True)

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""
        if link.named:
            link.send(PLANS, (), _ignore)
        self._turns = turns = Turns(link, self._loop)
        with turns.together():
            for desk in self._all():
                desk.up(turns)

    def link_down(self, reason: str) -> None:
        """What was under way is uncertain; what was not sent waits for the next link."""
        self._turns = None
        for desk in self._all():
            desk.down(reason)

    def connect_failed(self, error: PgconcertError) -> None:
        """Whoever waits is told."""
        hopeless = not isinstance(error, Unavailable) or isinstance(error, GivenUp)
        for desk in self._all():
            desk.give_up(error, all_of_them=hopeless)
        if self.keeper.link is None and not any(desk.waiting for desk in self._all()):
            self.keeper.unwant()

    # what the desks ask

    def wants_link(self, desk: Desk[Any], request: Request[Any]) -> None:
        """A request waits for a link."""
        self.keeper.want()

    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
        """Tables or rights are missing: say what to do."""
        explain(self.keeper.link, self._schema, error, batch)

    # the desks

    def _make_desks(self) -> dict[type[Any], Desk[Any]]:
        sql = self._sql
        desks: dict[type[Any], Desk[Any]] = {
            StartSession: self._desk("start of a session", sql.start, starts, self._started, any_number),
            Renew: self._desk("renewal", sql.renew, renewals_asked, self._renewed, any_number),
            EndSession: self._desk("end of a session", sql.end, sessions, self._done, apart(session_asked)),
            Take: self._desk("take", sql.take, takes, self._taken, apart(subject_asked)),
            Give: self._desk("release", sql.give, gives, self._given, apart(subject_asked), sql.waited, claims),
            Unmark: self._desk("withdrawal", sql.unmark, claims, self._done, apart(claim_asked)),
            Own: self._desk("look at a session", sql.own, sessions, settle_owned, any_number),
            Update: self._desk("update", sql.update, updates, self._done, apart(subject_asked)),
            CreateGroup: self._desk("group", sql.create_group, names, settle_told, apart(subject_asked)),
            DeleteGroup: self._desk("end of a group", sql.delete_group, names, self._deleted, apart(subject_asked)),
            LookAtSessions: self._desk(
                "look at sessions", sql.look_at_sessions, lambda _: (), settle_sessions, any_number
            ),
            Terms: self._desk("look at terms", sql.terms, terms, settle_terms, any_number),
        }
        return desks

    def _desk(
        self,
        kind: str,
        sent: Statement,
        parameters: Callable[[Any], Sequence[bytes]],
        answered: Callable[[Any, Rows], None],
        fit: Callable[[Any], int],
        after: Statement | None = None,
        parameters_after: Callable[[Any], Sequence[bytes]] | None = None,
    ) -> Desk[Any]:
        return Desk(self, kind, sent, parameters, answered, fit, after, parameters_after)

    def _look_desk(self, look: Look) -> Desk[Look]:
        given = tuple(column for column in FILTERS if getattr(look, column) is not None)
        desk = self._looks.get(given)
        if desk is None:
            sent = look_statement(given, self._schema)

            def parameters(batch: Batch[Look]) -> Sequence[bytes]:
                if not given:
                    return (texts([""] * len(batch)),)
                return [texts([getattr(request.what, column) for request in batch]) for column in given]

            desk = self._looks[given] = Desk(self, "look", sent, parameters, settle_found, lambda _: _MOST_LOOKS)
            if self._turns is not None:
                desk.up(self._turns)
        return desk

    def _all(self) -> list[Desk[Any]]:
        return [*self._desks.values(), self._nudge, self._take_away, *self._looks.values()]

    def _hand_in(self, desk: Desk[T], request: Request[T]) -> None:
        if self._closed:
            request.fail(CoordinatorClosed("the coordinator was closed"))
        else:
            desk.ask(request)

    # answers that are more than their rows

    def _started(self, batch: Batch[StartSession], rows: Rows) -> None:
        known, ids = rows[0]
        if known != b"t" or ids is None:
            self._strange(self._desks[StartSession], batch)
            return
        for request, (session,) in paired(batch, [(session,) for session in ids.strip(b"{}").split(b",")], 1):
            request.settle(int(session or 0))
        self.purge.now_and_then()

    def _renewed(self, batch: Batch[Renew], rows: Rows) -> None:
        if {session for request in batch for session in request.what.sessions} != {int(row[1] or 0) for row in rows}:
            raise ValueError("the answer to a renewal is about other sessions")
        if rows and rows[0][0] != b"t":
            self._strange(self._desks[Renew], batch)
            return
        found = renewals(rows)
        for request in batch:
            request.settle({session: found[session] for session in request.what.sessions if session in found})
        self.purge.now_and_then()

    def _taken(self, batch: Batch[Take], rows: Rows) -> None:
        answers = paired(batch, rows, 16)
        if rows[0][0] != b"t":
            self._strange(self._desks[Take], batch)
            return
        for request, row in answers:
            answer = taken_or_refused(row[1:])
            if row[6] is None or self._closed:
                request.settle(answer)
            else:
                # only then answered, so that whoever is told that it was refused knows that it was asked for
                asked = _Then(request, answer)
                self._nudge.ask(Request((request.what.subject, int(row[6])), asked))

    def _given(self, batch: Batch[Give], rows: Rows) -> None:
        for request, (busy, ours, waited) in paired(batch, rows, 3):
            if busy == b"t":
                self._desks[Give].busy(request)
            else:
                request.settle(Given(ours=ours == b"t", waited=waited == b"t"))

    def _deleted(self, batch: Batch[DeleteGroup], rows: Rows) -> None:
        for request, (busy, peopled, deleted) in paired(batch, rows, 3):
            if busy == b"t":
                self._desks[DeleteGroup].busy(request)
            else:
                request.settle("not empty" if peopled == b"t" else _ENDED[deleted or b"f"])

    def _done(self, batch: Sequence[Request[Any]], rows: Rows) -> None:
        self._settle_done(self._desks[type(batch[0].what)], batch, rows)

    def _from_holder(self, batch: Sequence[Request[Any]], rows: Rows) -> None:
        self._settle_done(self._nudge, batch, rows)

    def _taken_away(self, batch: Sequence[Request[Any]], rows: Rows) -> None:
        self._settle_done(self._take_away, batch, rows)

    def _settle_done(self, desk: Desk[Any], batch: Sequence[Request[Any]], rows: Rows) -> None:
        for request, (busy, done) in paired(batch, rows, 2):
            if busy == b"t":
                desk.busy(request)
            else:
                request.settle(done == b"t")

    # the incarnation of the server

    def _strange(self, desk: Desk[Any], batch: Sequence[Request[Any]]) -> None:
        """Nothing was done, because the server is not the one that was known. Have it known, then ask again."""
        first = not self._strangers
        self._strangers.extend((desk, request) for request in batch)
        if first and self._turns is not None:
            self._turns.link.send(self._sql.epoch, (), self._known)

    def _known(self, rows: Rows, error: Exception | None) -> None:
        strangers, self._strangers = self._strangers, []
        for desk, request in strangers:
            request.tries += 1
            if error is None and request.tries < _STRANGERS:
                desk.ask(request)
            elif error is None:
                request.fail(Unavailable(f"the {desk.kind} met another server {request.tries} times"))
            elif isinstance(error, StatementFailed) and error.sqlstate in IN_THE_WAY:
                desk.busy(request)
            elif not isinstance(error, StatementFailed):
                request.fail(Unavailable(f"the link died before the {desk.kind} was carried out: {error}"))
            elif error.sqlstate in UNDEFINED or error.sqlstate == NOT_PERMITTED:
                self.explain(error, [request])
            elif error.sqlstate == _TOO_LARGE:
                request.fail(_too_many_epochs(self._schema))
            else:
                request.fail(error)


class _Then:
    """An answer that is given whatever became of something else."""

    def __init__(self, request: Request[Any], answer: object) -> None:
        self._request = request
        self._answer = answer

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self._request.settle(self._answer)

    def set_exception(self, exception: Exception) -> None:
        self._request.settle(self._answer)


def _too_many_epochs(schema: str) -> Unavailable:
    return Unavailable(
        f"the epoch of tokens in schema {schema!r} would be above {MAX_EPOCH:,}: it has been promoted and "
        "restored that often. Tokens cannot grow any more: set up a new schema, and whatever compares tokens with it"
    )


def _ignore(rows: Rows, error: Exception | None) -> None:
    """Without it all is well too."""
