"""Payloads too large for a notification, and claims of messages: our tables, on the *payload* link, by group commit.

Theory. A request of one of three kinds (*spill*, *fetch*, *claim*) is on its way as ``desk.py`` says. Spills and claims
under way at a death are not asked again: the spilled row, if it is there, is garbage until its time is over, because
nothing has announced it; and the claim may be ours, so that for everybody else it is taken. A fetch is asked again,
until ``network_timeout`` after the call. The link is not that of sessions: a heartbeat must not stand behind a payload.

Whoever uses the tables also purges them (``purge.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import CoordinatorClosed, GivenUp, PgconcertError, StatementFailed, Unavailable
from ..messenger import Answer
from .desk import Desk, Request, explain, paired
from .groupcommit import Turns
from .keeper import Context, Keeper
from .link import Link, Rows
from .probe import Proof
from .purge import Purge
from .schemafiles import checked
from .storestatements import array, bytes_of, element, name_of, packed, store_statements

__all__ = ["Store"]

T = TypeVar("T")

_MOST_BYTES: Final = 1 << 20
_MOST_FETCHED: Final = 8
_MOST_CLAIMED: Final = 500
_MAX_NUMBER: Final = 2**63 - 1


class _Spill(NamedTuple):
    payload: bytes
    ttl: bytes


class _Claim(NamedTuple):
    scope: bytes
    message_id: bytes


class Store:
    """Owns the payload link. ``schema`` is where the tables are; raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        self._context = context
        self._loop = context.loop
        self._schema = checked(schema)
        self._closed = False
        sql = store_statements(schema)
        self._spills = Desk[_Spill](self, "spill", sql.spill, _spill_parameters, self._spilled, _few_bytes)
        self._fetches = Desk[bytes](self, "fetch", sql.fetch, _fetch_parameters, _fetched, lambda _: _MOST_FETCHED)
        self._claims = Desk[_Claim](self, "claim", sql.claim, _claim_parameters, self._claimed, lambda _: _MOST_CLAIMED)
        self._desks: tuple[Desk[Any], ...] = (self._spills, self._fetches, self._claims)
        self.keeper = Keeper(context, "payload", self)
        self.purge = Purge(self.keeper, self._loop, sql.purge, at_once=1.0)
        """Of payloads and claims whose time is over."""

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        """Keep a payload for ``ttl`` seconds: its number, once it is committed. See ``Messenger``."""
        self._ask(self._spills, Request(_Spill(packed(payload), repr(float(ttl)).encode()), answer))

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Get a kept payload; ``None`` when it is gone, or its time is over. See ``Messenger``."""
        if not 0 < number <= _MAX_NUMBER:  # it comes from others, and no row can have it
            answer.set_result(None)
            return
        until = self._loop.time() + self._context.network_timeout
        self._ask(self._fetches, Request(str(number).encode(), answer, until))

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        """Be the one that handles a message: ``True`` for exactly one. See ``Messenger``."""
        self._ask(self._claims, Request(_Claim(name_of(scope), name_of(message_id)), answer))

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

    def wants_link(self, desk: Desk[Any], request: Request[Any]) -> None:
        """A request waits for a link."""
        if request.until is not None:
            self._loop.call_at(request.until, self._too_late, desk, request)
        self.keeper.want()

    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
        """Tables or rights are missing: say what to do."""
        explain(self.keeper.link, self._schema, error, batch)

    def _ask(self, desk: Desk[T], request: Request[T]) -> None:
        if self._closed:
            request.fail(CoordinatorClosed("the coordinator was closed"))
        else:
            desk.ask(request)

    def _too_late(self, desk: Desk[Any], request: Request[Any]) -> None:
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

    def _spilled(self, batch: Sequence[Request[_Spill]], rows: Rows) -> None:
        for request, (number,) in paired(batch, rows, 1):
            request.settle(int(number or 0))
        self.purge.now_and_then()

    def _claimed(self, batch: Sequence[Request[_Claim]], rows: Rows) -> None:
        won = set(rows)
        for request in batch:
            # of two in one statement the first has it
            request.settle(request.what in won)
            won.discard(request.what)
        self.purge.now_and_then()


def _few_bytes(queue: Sequence[Request[_Spill]]) -> int:
    room = _MOST_BYTES
    for place, request in enumerate(queue):
        room -= len(request.what.payload)
        if room < 0:
            return max(1, place)
    return len(queue)


def _spill_parameters(batch: Sequence[Request[_Spill]]) -> tuple[bytes, bytes]:
    return array([request.what.payload for request in batch]), array([request.what.ttl for request in batch])


def _fetch_parameters(batch: Sequence[Request[bytes]]) -> tuple[bytes]:
    return (array([request.what for request in batch]),)


def _fetched(batch: Sequence[Request[bytes]], rows: Rows) -> None:
    found = {row[0]: row[1] for row in rows}
    for request in batch:
        request.settle(bytes_of(found[request.what]) if request.what in found else None)


def _claim_parameters(batch: Sequence[Request[_Claim]]) -> tuple[bytes, bytes]:
    claims = [request.what for request in batch]
    return array([element(claim.scope) for claim in claims]), array([element(claim.message_id) for claim in claims])
