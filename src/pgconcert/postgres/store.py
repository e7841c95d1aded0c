"""Payloads too large for a notification, and claims of messages: our tables, on the *work* link, by group commit.

Theory. A request of one of three kinds (*spill*, *fetch*, *claim*) is with the store in one of these states, and is
settled once, when it leaves the last::

    waiting (for a link) --link_up--> queued --> under way --answered--> settled
       ^                                 |            |
       |--- the link died: never sent ---+            +-- the link died: a fetch waits again, until network_timeout
       |                                              |   after the call; a spill or claim is settled: Unavailable
       +-- with it                                    +-- the server said no: asked again alone (see below)

A statement that failed has left nothing behind, so its requests are asked again one by one, and only the guilty one
gets the error. Where the server says that somebody was in the way (a lock, a deadlock, a serialisation failure), a
request is asked again some times, first with its neighbours, then settled with ``Unavailable``; one that lacks tables
or rights is settled at once. Spills and claims under way at a death are not asked again: the spilled row, if it is
there, is garbage until its time is over, because nothing has announced it; and the claim may be ours, so that for
everybody else it is taken.

Whoever uses the tables also purges them: a run at most once a minute, jittered, of small statements that skip what
others have locked; between two of them, others have as much of the link as the last one took. An error of the purge
concerns nobody: the next run follows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from ..errors import CoordinatorClosed, GivenUp, PgconcertError, StatementFailed, Unavailable
from ..messenger import Answer
from .groupcommit import Group, Turns, Verb
from .keeper import Context, Keeper
from .link import Link, Rows, Statement, statement
from .probe import Proof
from .schemafiles import NOT_PERMITTED, UNDEFINED, checked, missing_tables, not_permitted
from .storestatements import array, bytes_of, element, name_of, packed, store_statements

__all__ = ["Store"]

T = TypeVar("T")

_MOST_BYTES: Final = 1 << 20
_MOST_FETCHED: Final = 8
_MOST_CLAIMED: Final = 500
_TRIES: Final = 5
_PURGE_EVERY: Final = 60.0
_MAX_NUMBER: Final = 2**63 - 1
# lock_not_available, deadlock_detected, serialization_failure: nothing was done, and a moment later it may be
_IN_THE_WAY: Final = frozenset(("55P03", "40P01", "40001"))
_ROLE: Final = statement("select current_user")


class _Request(Generic[T]):
    """What somebody asked. ``until``: it may be asked again after a death until then; ``None``: never."""

    __slots__ = ("alone", "answer", "tries", "until", "what")

    def __init__(self, what: T, answer: Answer[Any], until: float | None = None) -> None:
        self.what = what
        self.answer = answer
        self.until = until
        self.alone = False
        self.tries = 0

    def settle(self, result: Any) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Spill(NamedTuple):
    payload: bytes
    ttl: bytes


class _Claim(NamedTuple):
    scope: bytes
    message_id: bytes


class _Desk(Generic[T]):
    """Where requests of one kind are: those that wait for a link here, the others in the group."""

    def __init__(
        self,
        store: Store,
        kind: Literal["spill", "fetch", "claim"],
        sent: Statement,
        parameters: Callable[[Sequence[_Request[T]]], Sequence[bytes]],
        answered: Callable[[Sequence[_Request[T]], Rows], None],
        fit: Callable[[Sequence[_Request[T]]], int],
    ) -> None:
        self._store = store
        self.kind = kind
        self.group: Group[_Request[T]] | None = None
        self.waiting: list[_Request[T]] = []
        self.verb = Verb(
            kind,
            one=sent,
            parameters_one=lambda request: parameters([request]),
            many=sent,
            parameters_many=parameters,
            answered=answered,
            failed=self._failed,
            fit=lambda queue: _until_alone(queue[: fit(queue)]),
        )

    def ask(self, request: _Request[T]) -> None:
        """Send it, or keep it until there is a link."""
        if self.group is not None:
            self.group.ask(request)
        else:
            self.waiting.append(request)
            self._store.wants_link(self, request)

    def up(self, turns: Turns) -> None:
        """Send what has waited."""
        self.group = turns.group(self.verb)
        waiting, self.waiting = self.waiting, []
        for request in waiting:
            self.group.ask(request)

    def down(self, reason: str) -> None:
        """Settle what cannot be asked again; keep the rest."""
        if self.group is None:
            return
        sent, unsent = self.group.take_back()
        self.group = None
        for request in sent:
            if request.until is None:
                request.fail(Unavailable(f"the link died before the server confirmed the {self.kind}: {reason}"))
            else:
                self.ask(request)
        for request in unsent:
            self.ask(request)

    def give_up(self, error: Exception, *, all_of_them: bool) -> None:
        """Settle what waits; unless ``all_of_them``, without those that may be asked again."""
        waiting, self.waiting = self.waiting, []
        settled: list[_Request[T]] = []
        for request in waiting:
            (settled if all_of_them or request.until is None else self.waiting).append(request)
        for request in settled:
            request.fail(error)

    def _failed(self, batch: Sequence[_Request[T]], error: Exception) -> None:
        assert isinstance(error, StatementFailed)  # the group keeps the death of a link to itself
        if error.sqlstate in UNDEFINED or error.sqlstate == NOT_PERMITTED:
            self._store.explain(error, batch)
            return
        in_the_way = error.sqlstate in _IN_THE_WAY
        for request in batch:
            request.tries += 1
            if (in_the_way and request.tries < _TRIES) or len(batch) > 1:
                # whoever was in the way is mostly gone a moment later, and many alone take as many round trips
                request.alone = not in_the_way or request.tries > 1
                self.ask(request)
            elif in_the_way:
                request.fail(
                    Unavailable(f"the {self.kind} was tried {request.tries} times, and others were in the way: {error}")
                )
            else:
                request.fail(error)


class Store:
    """Owns the work link. ``schema`` is where the tables are; raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        self._context = context
        self._loop = context.loop
        self._schema = checked(schema)
        self._closed = False
        self._purge_at = 0.0
        self.purging = False
        """Whether a run of the purge is under way."""
        sql = store_statements(schema)
        self._purge_statement = sql.purge
        self._spills = _Desk[_Spill](self, "spill", sql.spill, _spill_parameters, self._spilled, _few_bytes)
        self._fetches = _Desk[bytes](self, "fetch", sql.fetch, _fetch_parameters, _fetched, lambda _: _MOST_FETCHED)
        self._claims = _Desk[_Claim](
            self, "claim", sql.claim, _claim_parameters, self._claimed, lambda _: _MOST_CLAIMED
        )
        self._desks: tuple[_Desk[Any], ...] = (self._spills, self._fetches, self._claims)
        self.keeper = Keeper(context, "work", self)

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        """Keep a payload for ``ttl`` seconds: its number, once it is committed. See ``Messenger``."""
        self._ask(self._spills, _Request(_Spill(packed(payload), repr(float(ttl)).encode()), answer))

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Get a kept payload; ``None`` when it is gone, or its time is over. See ``Messenger``."""
        if not 0 < number <= _MAX_NUMBER:  # it comes from others, and no row can have it
            answer.set_result(None)
            return
        until = self._loop.time() + self._context.network_timeout
        self._ask(self._fetches, _Request(str(number).encode(), answer, until))

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        """Be the one that handles a message: ``True`` for exactly one. See ``Messenger``."""
        self._ask(self._claims, _Request(_Claim(name_of(scope), name_of(message_id)), answer))

    async def close(self) -> None:
        """Close the link; whoever still waits is told."""
        self._closed = True
        await self.keeper.close()
        for desk in self._desks:
            desk.give_up(CoordinatorClosed("the coordinator was closed"), all_of_them=True)

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""
        turns = Turns(link, self._loop)
        with turns.together():
            for desk in self._desks:
                desk.up(turns)

    def link_down(self, reason: str) -> None:
        """What was under way is uncertain; what was not sent waits for the next link."""
        for desk in self._desks:
            desk.down(reason)

    def connect_failed(self, error: PgconcertError) -> None:
        """Whoever waits is told, but fetches, which have a time of their own, wait on if it can get better."""
        hopeless = not isinstance(error, Unavailable) or isinstance(error, GivenUp)
        for desk in self._desks:
            desk.give_up(error, all_of_them=hopeless)
        self._rest()

    # what the desks ask

    def wants_link(self, desk: _Desk[Any], request: _Request[Any]) -> None:
        """A request waits for a link."""
        if request.until is not None:
            self._loop.call_at(request.until, self._too_late, desk, request)
        self.keeper.want()

    def explain(self, error: StatementFailed, batch: Sequence[_Request[Any]]) -> None:
        """Tables or rights are missing: say what to do."""
        if error.sqlstate in UNDEFINED:
            for request in batch:
                request.fail(missing_tables(self._schema, str(error)))
            return

        def tell(rows: Rows, unknown: Exception | None) -> None:
            role = "your_role" if unknown is not None else (rows[0][0] or b"").decode(errors="replace")
            for request in batch:
                request.fail(not_permitted(self._schema, role, error))

        link = self.keeper.link
        if link is None:
            tell([], error)
        else:
            link.send(_ROLE, (), tell)

    def _ask(self, desk: _Desk[T], request: _Request[T]) -> None:
        if self._closed:
            request.fail(CoordinatorClosed("the coordinator was closed"))
        else:
            desk.ask(request)

    def _too_late(self, desk: _Desk[Any], request: _Request[Any]) -> None:
        if request not in desk.waiting:
            return
        desk.waiting.remove(request)
        why = self.keeper.trouble or "there is no connection yet"
        request.fail(Unavailable(f"no {desk.kind} within network_timeout={self._context.network_timeout:g} s: {why}"))
        self._rest()

    def _rest(self) -> None:
        if self.keeper.link is None and not any(desk.waiting for desk in self._desks):
            self.keeper.unwant()

    # what the groups tell

    def _spilled(self, batch: Sequence[_Request[_Spill]], rows: Rows) -> None:
        for request, row in zip(batch, rows, strict=True):
            request.settle(int(row[0] or 0))
        self._purge()

    def _claimed(self, batch: Sequence[_Request[_Claim]], rows: Rows) -> None:
        won = set(rows)
        for request in batch:
            # of two in one statement the first has it
            request.settle(request.what in won)
            won.discard(request.what)
        self._purge()

    # the purge

    def _purge(self) -> None:
        link = self.keeper.link
        now = self._loop.time()
        if link is None or now < self._purge_at:
            return
        self._purge_at = now + _PURGE_EVERY * random.uniform(1.0, 1.5)
        if not self.purging:
            self.purging = True
            self._purge_some(link)

    def _purge_some(self, link: Link) -> None:
        began = self._loop.time()

        def purged(rows: Rows, error: Exception | None) -> None:
            if error is None and rows[0][0] == b"t":
                self._loop.call_later(self._loop.time() - began, self._purge_some, link)
            else:
                self.purging = False

        link.send(self._purge_statement, (), purged)


def _until_alone(queue: Sequence[_Request[Any]]) -> int:
    """How many may leave together, when some must leave alone."""
    if queue[0].alone:
        return 1
    return next((place for place, request in enumerate(queue) if request.alone), len(queue))


def _few_bytes(queue: Sequence[_Request[_Spill]]) -> int:
    room = _MOST_BYTES
    for place, request in enumerate(queue):
        room -= len(request.what.payload)
        if room < 0:
            return max(1, place)
    return len(queue)


def _spill_parameters(batch: Sequence[_Request[_Spill]]) -> tuple[bytes, bytes]:
    return array([request.what.payload for request in batch]), array([request.what.ttl for request in batch])


def _fetch_parameters(batch: Sequence[_Request[bytes]]) -> tuple[bytes]:
    return (array([request.what for request in batch]),)


def _fetched(batch: Sequence[_Request[bytes]], rows: Rows) -> None:
    found = {row[0]: row[1] for row in rows}
    for request in batch:
        request.settle(bytes_of(found[request.what]) if request.what in found else None)


def _claim_parameters(batch: Sequence[_Request[_Claim]]) -> tuple[bytes, bytes]:
    claims = [request.what for request in batch]
    return array([element(claim.scope) for claim in claims]), array([element(claim.message_id) for claim in claims])
