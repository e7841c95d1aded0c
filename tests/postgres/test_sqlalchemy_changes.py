"""``publish_changes``: what a flush of SQLAlchemy's objects wrote is told in its transaction, or taken back."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.ext import asyncio as saio

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.contrib.sqlalchemy import publish_changes
from pgconcert.errors import ConfigurationError
from tests.postgres.callers import engine
from tests.postgres.ormscenes import LIMIT, Heard, Pair, Thing, Toy, tables


@pytest.fixture
def plain_engine(database: str) -> Iterator[sa.Engine]:
    with tables(database) as made:
        yield made


@pytest.fixture
def c(database: str) -> Iterator[Coordinator]:
    with Coordinator(database) as opened:
        yield opened


@contextlib.contextmanager
def told_of(mapped: type[Any], channel: str) -> Iterator[None]:
    stop = publish_changes(mapped, channel)
    try:
        yield
    finally:
        stop()


def test_changes(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """One message for each flush, with all that it wrote, and none for what was not written; derived classes too."""
    with Heard(c, unique) as heard, told_of(Thing, unique), orm.Session(plain_engine) as session:
        session.add_all([Thing(id=1, name="one"), Toy(id=2, name="two")])
        session.commit()
        first, second = session.get_one(Thing, 1), session.get_one(Thing, 2)
        first.name = "other"
        second.name = second.name  # not written
        session.flush()
        session.delete(second)
        session.add(Thing(id=3, name="three"))
        session.commit()
        assert heard.all() == [
            '{"table":"thing","inserted":[1,2],"updated":[],"deleted":[]}',
            '{"table":"thing","inserted":[],"updated":[1],"deleted":[]}',
            '{"table":"thing","inserted":[3],"updated":[],"deleted":[2]}',
        ]


def _refuse(*_: object) -> None:
    raise ValueError("not this one")


def test_changes_that_are_taken_back(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """With the transaction, with a savepoint, and with a flush that fails half way."""
    with Heard(c, unique) as heard, told_of(Thing, unique), orm.Session(plain_engine) as session:
        session.add(Thing(id=1, name="one"))
        session.flush()
        session.rollback()
        session.add(Thing(id=2, name="two"))
        session.commit()
        with session.begin_nested() as savepoint:
            session.add(Thing(id=3, name="three"))
            session.flush()
            savepoint.rollback()
        session.delete(session.get_one(Thing, 2))
        session.add(Thing(id=4, name="four"))
        event.listen(Thing, "before_delete", _refuse)
        try:
            with pytest.raises(ValueError, match="not this one"):
                session.flush()
        finally:
            event.remove(Thing, "before_delete", _refuse)
        session.rollback()
        session.add(Thing(id=6, name="six"))
        session.commit()
        assert heard.all() == [
            '{"table":"thing","inserted":[2],"updated":[],"deleted":[]}',
            '{"table":"thing","inserted":[6],"updated":[],"deleted":[]}',
        ]


def test_many_changes_fit(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    """More than a notification holds comes in several, without any table of ours, and every key comes once."""
    day = dt.date(2024, 2, 29)
    with c.subscribe(unique) as messages, told_of(Pair, unique), orm.Session(plain_engine) as session:
        session.add_all([Pair(left=f"ä{n}" * 9, right=day) for n in range(400)])
        session.commit()
        keys: list[Any] = []
        sent = 0
        while len(keys) < 400:
            keys += messages.get(timeout=LIMIT).json()["inserted"]
            sent += 1
        assert sorted(keys) == sorted([f"ä{n}" * 9, "2024-02-29"] for n in range(400))
        assert 3 <= sent <= 6


def test_changes_are_told_until_stopped(plain_engine: sa.Engine, c: Coordinator, unique: str) -> None:
    with Heard(c, unique) as heard, orm.Session(plain_engine) as session:
        with told_of(Thing, unique):
            session.add(Thing(id=1, name="one"))
            session.commit()
        session.add(Thing(id=2, name="two"))
        session.commit()
        assert heard.all() == ['{"table":"thing","inserted":[1],"updated":[],"deleted":[]}']


async def test_changes_of_awaited_sessions(plain_engine: sa.Engine, database: str, unique: str) -> None:
    made: saio.AsyncEngine = engine("sqlalchemy-async-session", database)
    async with AsyncCoordinator(database) as ours, ours.subscribe(unique) as messages:
        with told_of(Thing, unique):
            async with saio.AsyncSession(made) as session, session.begin():
                session.add(Thing(id=1, name="one"))
        assert (await messages.get(timeout=LIMIT)).json()["inserted"] == [1]
    await made.dispose()


def test_what_has_no_changes() -> None:
    with pytest.raises(ConfigurationError, match="a mapped class, not"):
        publish_changes(int, "x")
    with pytest.raises(ConfigurationError, match="schema"):
        publish_changes(Thing, "x", schema="")
