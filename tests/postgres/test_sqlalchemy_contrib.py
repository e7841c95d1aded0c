"""Messages that follow a session of SQLAlchemy: sent after its commit, gone with whatever it takes back.

What a session does is said once, for sessions that block and for those that are awaited: ``run_sync`` plays the same
function on both. What was *not* sent is seen by what is heard next.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, exc, orm
from sqlalchemy.ext import asyncio as saio

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.contrib.sqlalchemy import publish_on_commit
from pgconcert.errors import ChannelInvalid, ConfigurationError, PayloadInvalid
from tests.postgres.callers import engine
from tests.postgres.ormscenes import LIMIT, Heard, Thing, tables


@pytest.fixture
def plain_engine(database: str) -> Iterator[sa.Engine]:
    with tables(database) as made:
        yield made


@pytest.fixture
def c(database: str) -> Iterator[Coordinator]:
    with Coordinator(database) as opened:
        yield opened


Say = Callable[[str], None]


def commit(session: orm.Session, say: Say) -> None:
    """Sent in order, equal ones too."""
    session.add(Thing(name="one"))
    say("a")
    say("a")
    say("b")
    session.commit()


def rollback(session: orm.Session, say: Say) -> None:
    session.add(Thing(name="one"))
    say("gone")
    session.rollback()
    say("kept")
    session.commit()


def before_it_begins(session: orm.Session, say: Say) -> None:
    """What is said before anything else belongs to the transaction that begins next."""
    say("gone")
    session.execute(sa.text("select 1"))
    session.rollback()
    say("kept")
    session.execute(sa.text("select 1"))
    session.commit()


def savepoints(session: orm.Session, say: Say) -> None:
    say("first")
    with session.begin_nested():
        say("released")
        inner = session.begin_nested()
        say("gone")
        inner.rollback()
        say("released too")
    outer = session.begin_nested()
    with session.begin_nested():
        say("released into what is rolled back")
    outer.rollback()
    session.commit()


def savepoint_and_rollback(session: orm.Session, say: Say) -> None:
    with session.begin_nested():
        say("gone")
    session.rollback()
    say("kept")
    session.commit()


def commit_from_within(session: orm.Session, say: Say) -> None:
    """A commit with savepoints open releases them first."""
    say("first")
    session.begin_nested()
    say("second")
    session.commit()


def failing_flush(session: orm.Session, say: Say) -> None:
    session.add(Thing(name="one"))
    session.flush()
    say("kept")
    with contextlib.suppress(exc.IntegrityError), session.begin_nested():
        say("gone")
        session.add(Thing(name="one"))
        session.flush()
    session.commit()


def closing(session: orm.Session, say: Say) -> None:
    session.add(Thing(name="one"))
    say("gone")
    session.close()
    session.commit()


def within_a_flush(session: orm.Session, say: Say) -> None:
    """A flush is a transaction of SQLAlchemy's, too, but owns nothing."""

    def flushed(session: orm.Session, *_: Any) -> None:
        say("first")
        with session.begin_nested():
            say("second")

    event.listen(session, "after_flush", flushed)
    session.add(Thing(name="one"))
    session.commit()


def begun_by_others(session: orm.Session, say: Say) -> None:
    """What somebody else's listener begins when a savepoint or a transaction ends owns nothing of what came before."""
    due = False

    def begin(session: orm.Session, ended: orm.SessionTransaction) -> None:
        nonlocal due
        if due:
            due = False
            (session.begin_nested if ended.nested else session.begin)()

    event.listen(session, "after_transaction_end", begin)  # it is called before ours
    session.execute(sa.text("select 1"))
    savepoint = session.begin_nested()
    say("released")
    due = True
    savepoint.commit()
    begun = session.get_nested_transaction()
    assert begun is not None
    say("gone")
    begun.rollback()
    say("last")
    due = True
    session.commit()
    assert session.in_transaction()


def two_transactions(session: orm.Session, say: Say) -> None:
    say("first")
    session.commit()
    session.commit()
    say("second")
    session.commit()


SCENES: dict[Callable[[orm.Session, Say], None], list[str]] = {
    commit: ["a", "a", "b"],
    rollback: ["kept"],
    before_it_begins: ["kept"],
    savepoints: ["first", "released", "released too"],
    savepoint_and_rollback: ["kept"],
    commit_from_within: ["first", "second"],
    failing_flush: ["kept"],
    closing: [],
    within_a_flush: ["first", "second"],
    begun_by_others: ["released", "last"],
    two_transactions: ["first", "second"],
}


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_sent_after_the_commit(
    scene: Callable[[orm.Session, Say], None], plain_engine: sa.Engine, c: Coordinator, unique: str
) -> None:
    with Heard(c, unique) as heard, orm.Session(plain_engine) as session:
        scene(session, lambda text: publish_on_commit(session, c, unique, text))
        assert heard.all() == SCENES[scene]


@pytest.mark.parametrize("scene", [commit, savepoints, failing_flush], ids=lambda scene: scene.__name__)
@pytest.mark.parametrize("kind", ["sqlalchemy-async", "sqlalchemy-asyncpg"])
async def test_awaited_sessions(
    scene: Callable[[orm.Session, Say], None],
    kind: str,
    plain_engine: sa.Engine,
    database: str,
    unique: str,
) -> None:
    """The same on an event loop."""
    made: saio.AsyncEngine = engine(kind, database)
    async with AsyncCoordinator(database) as ours, ours.subscribe(unique) as messages:
        async with saio.AsyncSession(made) as session:
            await session.run_sync(scene, lambda text: publish_on_commit(session, ours, unique, text))
        async with saio.AsyncSession(made) as session, session.begin():
            await session.run_sync(lambda inner: publish_on_commit(inner, ours, unique, json={"over": True}))
        texts = [(await messages.get(timeout=LIMIT)).text for _ in range(len(SCENES[scene]) + 1)]
        assert texts == [*SCENES[scene], '{"over":true}']
    await made.dispose()


def test_what_is_sent_is_what_was_said(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """Values that change afterwards, a registry of sessions, headers and an id."""
    sessions = orm.scoped_session(orm.sessionmaker(plain_engine))
    with c.subscribe(unique) as messages:
        value, headers = {"n": 1}, {"who": "ann"}
        publish_on_commit(sessions, c, unique, json=value, headers=headers, id="m1")
        value["n"], headers["who"] = 2, "ben"
        sessions.commit()
        message = messages.get(timeout=LIMIT)
        assert (message.json(), message.headers, message.id) == ({"n": 1}, {"who": "ann"}, "m1")
    sessions.remove()


def test_after_the_connection_was_given_back(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """A slow message keeps no connection of the pool: at the time it is sent, none is out."""
    pooled = sa.create_engine(plain_engine.url, pool_size=1)
    out: list[int] = []

    class Counting(Coordinator):
        def publish(self, *args: Any, **kwargs: Any) -> None:
            out.append(pooled.pool.checkedout())  # type: ignore[attr-defined]
            c.publish(*args, **kwargs)

    with Heard(c, unique) as heard, orm.Session(pooled) as session, session.begin():
        session.execute(sa.text("select 1"))
        publish_on_commit(session, Counting("null://"), unique, "x")
        assert pooled.pool.checkedout() == 1  # type: ignore[attr-defined]
        session.commit()
        assert (out, heard.all()) == ([0], ["x"])
    pooled.dispose()


def test_a_failure_is_logged(
    plain_engine: sa.Engine, database: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The data is committed, so the commit does not fail."""
    closed = Coordinator(database)
    closed.open()
    closed.close()
    with orm.Session(plain_engine) as session:
        session.add(Thing(name="kept"))
        publish_on_commit(session, closed, unique, "the secret")
        with caplog.at_level(logging.ERROR, "pgconcert.contrib.sqlalchemy"):
            session.commit()
        assert session.scalars(sa.select(Thing.name)).all() == ["kept"]
    (record,) = (record for record in caplog.records if record.name == "pgconcert.contrib.sqlalchemy")
    assert repr(unique) in record.getMessage()
    assert "is closed" in record.getMessage()
    assert "the secret" not in record.getMessage()


def test_a_session_that_is_dropped(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """A message that waits keeps neither its session nor the connection of the pool."""
    pooled = sa.create_engine(plain_engine.url, pool_size=1)
    session = orm.Session(pooled)
    session.execute(sa.text("select 1"))
    publish_on_commit(session, c, unique, "gone")
    assert pooled.pool.checkedout() == 1  # type: ignore[attr-defined]
    del session
    gc.collect()
    assert pooled.pool.checkedout() == 0  # type: ignore[attr-defined]
    pooled.dispose()


async def test_a_coordinator_of_another_loop(
    plain_engine: sa.Engine, database: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong after the commit, the session has committed, and the next message is sent."""

    async def elsewhere() -> None:
        made: saio.AsyncEngine = engine("sqlalchemy-asyncpg", database)
        async with saio.AsyncSession(made) as session, AsyncCoordinator(database) as own:
            session.add(Thing(name="kept"))
            publish_on_commit(session, ours, unique, "the secret")
            publish_on_commit(session, own, unique, "sent")
            await session.commit()
            assert (await session.scalars(sa.select(Thing.name))).all() == ["kept"]
        await made.dispose()

    async with AsyncCoordinator(database) as ours, ours.subscribe(unique) as messages:
        with caplog.at_level(logging.ERROR, "pgconcert.contrib.sqlalchemy"):
            await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert (await messages.get(timeout=LIMIT)).text == "sent"
    (record,) = (record for record in caplog.records if record.name == "pgconcert.contrib.sqlalchemy")
    assert repr(unique) in record.getMessage()
    assert "the secret" not in record.getMessage()


async def test_what_cannot_be(plain_engine: sa.Engine, database: str) -> None:
    """Everything wrong is said at once, and nothing will be sent."""
    blocking, awaited = Coordinator("null://"), AsyncCoordinator("null://")
    session = orm.Session(plain_engine)
    made = engine("sqlalchemy-asyncpg", database)
    anything: Any = publish_on_commit
    with pytest.raises(ConfigurationError, match="use AsyncCoordinator"):
        anything(saio.AsyncSession(made), blocking, "x")
    with pytest.raises(ConfigurationError, match="use Coordinator"):
        anything(session, awaited, "x")
    with pytest.raises(ConfigurationError, match="no event after its commit"):
        anything(plain_engine, blocking, "x")
    with pytest.raises(ConfigurationError, match="needs a coordinator, not 'x'"):
        anything(session, "x", "x")
    with pytest.raises(ConfigurationError, match="event loop is running"):
        anything(session, blocking, "x")  # nor could it send at the commit
    with pytest.raises(ChannelInvalid):
        anything(session, blocking, "x" * 64)
    with pytest.raises(PayloadInvalid):
        anything(session, blocking, "x", json=object())
    with pytest.raises(PayloadInvalid):
        anything(session, blocking, "x", headers={"a": 1})
    session.commit()  # with a coordinator that is not open, it would be logged
    await made.dispose()
