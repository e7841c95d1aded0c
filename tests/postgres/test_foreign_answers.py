"""Answers that belong to somebody else, and what keeps them away: one Sync at a time behind a pooler.

Here live tests of `postgres/link.py`, `postgres/desk.py` and `postgres/probe.py` with answers that have not the shape
of what was asked. Theory: nothing of such an answer may be believed, whoever waits is told, and the next link works. To
get one from a real server, another statement is sent than the one that the reader expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest

from pgconcert.errors import LinkLost, PublishUncertain, StatementFailed, Unavailable
from pgconcert.messenger import Answer
from pgconcert.postgres import probe
from pgconcert.postgres.desk import Desk, Request
from pgconcert.postgres.groupcommit import Turns
from pgconcert.postgres.link import Link, Rows, statement
from pgconcert.postgres.messages import Publisher
from pgconcert.postgres.sessionparameters import texts
from pgconcert.postgres.sessionrows import settle_told
from pgconcert.store import (
    CreateGroup,
    DeleteGroup,
    EndSession,
    Give,
    Renew,
    RequestRelease,
    Revoke,
    StartSession,
    Take,
    Unmark,
    Update,
)
from pgconcert.store import Request as Asked
from pgconcert.testing import eventually_async
from tests.postgres.scenes import ask as ask_link
from tests.postgres.scenes import context, link_to
from tests.postgres.session_scenes import ask, keeping, named
from tests.postgres.store_scenes import spill, storing


@pytest.fixture
def complaints() -> Callable[[], list[BaseException]]:
    """What the running loop is told of exceptions that nobody caught."""
    told: list[BaseException] = []

    def listen() -> list[BaseException]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, known: told.append(known["exception"]))
        return told

    return listen


# one Sync at a time


@pytest.mark.both_loops
@pytest.mark.parametrize("named", [True, False])
async def test_one_at_a_time_where_sessions_are_shared(database: str, named: bool) -> None:
    """Behind a pooler of transactions a statement leaves when the one before is answered, in the order in which they
    were handed in; else at once. Each gets its own answer or its own error."""
    link, _ = await link_to(database)
    link.named = named
    told: list[bytes | str | None] = []
    under_way: list[int] = []

    def answered(rows: Rows, error: Exception | None) -> None:
        under_way.append(link.statements - link.answers)
        told.append(error.sqlstate if isinstance(error, StatementFailed) else rows[0][0])
        if len(told) == 1:
            link.send(statement("select $1::text"), [b"asked in between"], answered)

    divide = statement("select 60 / $1::int4")
    for number in range(4):
        link.send(divide, [b"%d" % number], answered)
    assert (link.statements, link.unanswered) == (4 if named else 1, 4)
    if not named:
        link.send_together([(divide, [b"6"]), (divide, [b"5"])], answered)
    await eventually_async(lambda: not link.unanswered)
    assert told == ["22012", b"60", b"30", b"20", *([] if named else [b"12"]), b"asked in between"]
    if not named:
        assert max(under_way) <= 2, "no more than one, or the two of one transaction"
    link.close()


async def test_death_with_statements_that_were_not_sent(database: str) -> None:
    """Who waits behind a statement under way is told as well, in order, before the owner."""
    link, ear = await link_to(database)
    link.named = False
    order: list[object] = []
    ear.link_lost = lambda link, reason: order.append("owner")  # type: ignore[method-assign]

    def lost(number: int, rows: Rows, error: Exception | None) -> None:
        assert isinstance(error, LinkLost)
        order.append(number)

    for number in range(3):
        link.send(statement("select pg_sleep(0.1)"), (), partial(lost, number))
    link.close("enough")
    assert order == [0, 1, 2, "owner"]
    assert (link.lost_answers, link.unanswered, link.statements) == (3, 0, 1)


# the link


@pytest.mark.parametrize(
    "sql", ["select 1 into temp table foreign_answer", "WITH a AS (SELECT 1) INSERT INTO t TABLE a"]
)
@pytest.mark.parametrize("named", [True, False])
async def test_no_rows_where_there_are_some(database: str, sql: str, named: bool) -> None:
    """What has rows, and is answered with the word that something was done, ends the link; nobody is answered."""
    link, ear = await link_to(database)
    await ask_link(link, "create temp table t (n int)")
    link.named = named
    answers = [link.execute(statement(sql)), link.execute(statement("select 1"))]
    for answer in answers:
        with pytest.raises(LinkLost, match="an answer without rows came for a statement that has some"):
            await answer
    assert len(ear.lost) == 1


@pytest.mark.parametrize("sql", ["set application_name = 'a'", "listen x", "", "insert into t values (1)"])
async def test_what_has_no_rows(database: str, sql: str) -> None:
    """What has none is answered with none."""
    link, _ = await link_to(database)
    await ask_link(link, "create temp table t (n int)")
    assert await ask_link(link, sql) == []
    assert await ask_link(link, "insert into t select 1 where false returning n") == []
    link.close()


async def test_a_reader_that_raises(database: str, complaints: Callable[[], list[BaseException]]) -> None:
    """Its link dies, the others on it are told, and so is whoever looks after the program."""
    told = complaints()
    link, ear = await link_to(database)

    def read(rows: Rows, error: Exception | None) -> None:
        assert rows[1] == (b"1",)

    link.send(statement("select 1"), (), read)
    later = link.execute(statement("select 2"))
    with pytest.raises(LinkLost, match=r"an answer could not be read \(IndexError\)"):
        await later
    assert [type(error) for error in told] == [IndexError]
    assert ear.lost == [link.dead]


# desks


class Owner:
    """Whoever has a link for one desk."""

    def wants_link(self, desk: Desk[Any], request: Request[Any]) -> None:
        """It waits."""

    def explain(self, error: StatementFailed, batch: object) -> None:
        """Nothing is missing here."""


_ROWS: Final = "select $1::text is null from generate_series(1, {})"


@pytest.mark.parametrize(
    "sql",
    [_ROWS.format(0), _ROWS.format(1), _ROWS.format(3), "select 't', $1::text from generate_series(1, 2)"],
    ids=["no rows", "too few", "too many", "too wide"],
)
@pytest.mark.parametrize("again", [False, True])
async def test_nothing_is_believed(
    database: str, complaints: Callable[[], list[BaseException]], sql: str, again: bool
) -> None:
    """Two requests in one statement: neither is answered with what came. They fail, or wait for the next link."""
    told = complaints()
    loop = asyncio.get_running_loop()
    link, ear = await link_to(database)
    desk: Desk[str] = Desk(
        Owner(),
        "thing",
        statement(sql),
        lambda batch: (texts([request.what for request in batch]),),
        settle_told,
        len,
    )
    ear.link_lost = lambda link, reason: desk.down(reason)  # type: ignore[method-assign]
    answers: list[asyncio.Future[bool]] = [loop.create_future() for _ in range(2)]
    for answer in answers:
        desk.ask(Request("x", answer, loop.time() + 60 if again else None))
    turns = Turns(link, loop)
    with turns.together():
        desk.up(turns)
    await eventually_async(lambda: link.dead)
    assert [type(error) for error in told] == [ValueError]
    if again:
        assert not any(answer.done() for answer in answers)
        assert [request.what for request in desk.waiting] == ["x", "x"]
    for answer in answers if not again else ():
        with pytest.raises(Unavailable, match="the link died before the server confirmed the thing: an answer could"):
            await answer


async def test_what_was_settled_is_not_asked_again(
    database: str, complaints: Callable[[], list[BaseException]]
) -> None:
    """A reader that gets as far as the first of two, and raises then."""
    complaints()
    loop = asyncio.get_running_loop()
    link, ear = await link_to(database)

    def read(batch: Any, rows: Rows) -> None:
        batch[0].settle("read")
        raise IndexError

    desk: Desk[str] = Desk(Owner(), "thing", statement("select $1::text"), lambda batch: (b"{}",), read, len)
    ear.link_lost = lambda link, reason: desk.down(reason)  # type: ignore[method-assign]
    answers: list[asyncio.Future[str]] = [loop.create_future() for _ in range(2)]
    for answer in answers:
        desk.ask(Request("x", answer, loop.time() + 60))
    turns = Turns(link, loop)
    with turns.together():
        desk.up(turns)
    assert await answers[0] == "read"
    await eventually_async(lambda: link.dead)
    assert [request.answer for request in desk.waiting] == [answers[1]]


_ASKED: Final[list[Asked[Any]]] = [
    StartSession(uuid="u", ttl=9.0, host="h", pid=1, application="a"),
    Renew((1,)),
    EndSession(1),
    Take(subject=named(), session=1),
    Give(subject=named(), session=1),
    Unmark(named(), 1),
    Update(subject=named(), session=1, token=1, data="1"),
    RequestRelease(named()),
    Revoke(named()),
    CreateGroup(named("g", "group")),
    DeleteGroup(named("g", "group")),
]


@pytest.mark.parametrize("asked", _ASKED, ids=lambda asked: type(asked).__name__)
async def test_whoever_asks_about_sessions(
    tables: str, complaints: Callable[[], list[BaseException]], asked: Asked[Any]
) -> None:
    """Without the row that every answer has, it is told that the link died; asked again, it is answered."""
    told = complaints()
    async with keeping(tables) as store:
        (desk,) = [
            desk
            for desk in store._all()
            if desk is (store._nudge if isinstance(asked, RequestRelease) else None)
            or desk is (store._take_away if isinstance(asked, Revoke) else None)
            or desk is store._desks.get(type(asked))
        ]
        right = desk.verb.one
        what = (asked.subject, None) if isinstance(asked, (RequestRelease, Revoke)) else asked
        count = len(desk.verb.parameters_one(Request(what, _nobody())))
        desk.verb.one = statement(
            "select 't', 't', 't' where " + " and ".join(f"${n}::text is null" for n in range(1, 1 + count))
        )
        with pytest.raises(Unavailable, match="an answer could not be read"):
            await ask(store, asked)
        assert len(told) == 1
        desk.verb.one = right
        await ask(store, asked)


def _nobody() -> Answer[Any]:
    return asyncio.get_running_loop().create_future()


async def test_a_spill(tables: str, complaints: Callable[[], list[BaseException]]) -> None:
    """A payload of which nobody knows whether it is kept."""
    complaints()
    async with storing(tables) as store:
        right = store._spills.verb.one
        store._spills.verb.one = statement("select $1::text where $2::text is null")
        with pytest.raises(Unavailable, match="an answer could not be read"):
            await spill(store, b"x")
        store._spills.verb.one = right
        assert await spill(store, b"x") > 0


async def test_a_message(database: str, complaints: Callable[[], list[BaseException]]) -> None:
    """If those who are answered raise in the middle, all others of the run are told."""
    complaints()
    publisher = Publisher(context(database))

    class Raising:
        def done(self) -> bool:
            return False

        def set_result(self, result: object) -> None:
            raise RuntimeError("a defect")

        def set_exception(self, error: Exception) -> None:
            """It has had its chance."""

    last: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    publisher.publish(b"x", b"1", Raising())
    publisher.publish(b"x", b"2", last)
    with pytest.raises(PublishUncertain, match="an answer could not be read"):
        await last
    await publisher.close()


# the probe


@pytest.mark.parametrize("name", ["PROBE", "INCARNATION"])
async def test_a_probe(database: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells what the server is must have told it: the attempt fails, and its link is closed."""
    monkeypatch.setattr(probe, name, statement("select 1, 2, 3"))
    link, _ = await link_to(database)

    async def no_other() -> Link:
        raise Unavailable("nobody asks for one")

    with pytest.raises(Unavailable, match="something else came: what stands in between mixes up answers"):
        await probe.prove(link, no_other)
    assert link.dead
