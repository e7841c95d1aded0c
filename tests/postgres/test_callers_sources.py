"""What a verb takes for a connection, what `transaction.run` takes for a source of one, and what both refuse.

Here live tests of `transaction/connections.py` and `lending.py`, and what Django alone does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext import asyncio as saio

from pgconcert.errors import ConfigurationError, TransactionAborted
from pgconcert.transaction import enqueue
from pgconcert.transaction.connections import driver_of
from pgconcert.transaction.django import Django
from pgconcert.transaction.lending import lender_of
from tests.djangosettings import alias, setup_django
from tests.postgres.callers import asyncpg_parts, caller, engine
from tests.postgres.session_scenes import rows

QUEUES = "select queue from pgconcert.task order by id"


@asynccontextmanager
async def sources(url: str) -> AsyncIterator[dict[str, Any]]:
    """Everything a connection can be had from. Pools have one connection."""
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(psycopg_pool.ConnectionPool(url, min_size=1, max_size=1, open=True))
        waiting = await stack.enter_async_context(psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=1))
        others = await stack.enter_async_context(asyncpg.create_pool(**asyncpg_parts(url), min_size=1, max_size=1))
        made, awaited = engine("sqlalchemy", url), engine("sqlalchemy-asyncpg", url)
        stack.callback(made.dispose)
        stack.push_async_callback(awaited.dispose)
        sessions, tasks = orm.scoped_session(orm.sessionmaker(made)), asyncio.current_task
        awaited_sessions = saio.async_scoped_session(saio.async_sessionmaker(awaited), scopefunc=tasks)
        stack.callback(sessions.remove)
        stack.push_async_callback(awaited_sessions.remove)
        yield {
            "psycopg_pool": pool,
            "psycopg_pool, async": waiting,
            "asyncpg": others,
            "engine": made,
            "async engine": awaited,
            "sessionmaker": orm.sessionmaker(made),
            "async_sessionmaker": saio.async_sessionmaker(awaited),
            "scoped_session": sessions,
            "async_scoped_session": awaited_sessions,
            "connection": stack.enter_context(psycopg.connect(url)),
        }


async def test_sources(emptied: str) -> None:
    """Those of a scope lend what a verb takes, again and again, and after a connection that was thrown away too; what
    was not committed is gone. The others: test_callers_lenders.py."""
    names = ("scoped_session", "async_scoped_session")
    async with sources(emptied) as all_of_them:
        for name in names:
            source = all_of_them[name]
            lender: Any = lender_of(source, "the test")
            for end in ("commit", "none", "discard", "commit"):
                if lender.blocks:
                    with lender.lend() as (connection, driver):
                        begun = driver.begin(None)
                        assert isinstance(enqueue(connection, f"{name} {end}"), str)
                        if end == "none":
                            driver.rollback(begun)
                        else:
                            getattr(driver, end)(*([begun] if end == "commit" else []))
                else:
                    async with lender.lend() as (connection, driver):
                        begun = await driver.begin(None)
                        assert isinstance(await enqueue(connection, f"{name} {end}"), str)
                        if end == "none":
                            await driver.rollback(begun)
                        else:
                            await getattr(driver, end)(*([begun] if end == "commit" else []))
        assert rows(emptied, QUEUES) == [(f"{name} commit",) for name in names for _ in range(2)]


async def test_what_is_no_connection(database: str) -> None:
    """A pool, an engine, a cursor: told apart, and told what to give instead. Nothing is sent."""
    refused: dict[str, Callable[[dict[str, Any]], Any]] = {
        "this is a pool: give what pool.connection": lambda have: have["psycopg_pool"],
        "this is a pool: give what pool.acquire": lambda have: have["asyncpg"],
        "this is a engine: give what engine.connect": lambda have: have["engine"],
        "this is a sessionmaker: give a session that it has made": lambda have: have["sessionmaker"],
        "this is a cursor: give its connection": lambda have: have["connection"].cursor(),
        "one of sqlite": lambda _: sa.create_engine("sqlite://").connect(),
        "bound to no engine of its own": lambda _: orm.Session(),
        "no alias of Django's DATABASES: there are": lambda _: "nowhere",
        "knows connections of psycopg 3, asyncpg, SQLAlchemy and Django": lambda _: 7,
    }
    setup_django()
    async with sources(database) as have:
        for words, make in refused.items():
            made = make(have)
            with pytest.raises(ConfigurationError, match=words):
                enqueue(made, "q")
            if "pool" not in words and "engine:" not in words and "sessionmaker" not in words:
                with pytest.raises(ConfigurationError, match=words):
                    lender_of(made, "transaction.run")
            if hasattr(made, "close") and not hasattr(made, "acquire") and made is not have["psycopg_pool"]:
                made.close()


async def test_django_and_its_proxy(emptied: str) -> None:
    """`django.db.connection` stands for the connection of the thread; another database is refused with its name."""
    from django.db import connections
    from django.utils.connection import ConnectionProxy

    setup_django()

    def said() -> None:
        with alias(emptied) as name:
            proxy: Any = ConnectionProxy(connections, name)
            enqueue(proxy, "proxy")
            enqueue(connections[name], "connection")
            with lender_of(name, "the test").lend() as (lent, _):  # type: ignore[union-attr]
                assert lent is connections[name]
        with alias(emptied, ENGINE="django.db.backends.sqlite3", NAME=":memory:") as other:
            with pytest.raises(ConfigurationError, match=f"'{other}' is SQLite"):
                enqueue(other, "q")

    await asyncio.to_thread(said)
    assert rows(emptied, QUEUES) == [("proxy",), ("connection",)]


async def test_blocks_and_hooks_of_django(emptied: str) -> None:
    """What was given to on_commit runs after the commit, and is dropped with a rollback; blocks of atomic nest in ours;
    a block that Django would roll back in any case is not committed; without its AUTOCOMMIT it is the same."""
    from django.db import connections, transaction

    done: list[str] = []

    def said(name: str) -> None:
        connection = connections[name]
        driver = Django(connection)

        def put(queue: str) -> None:
            enqueue(name, queue)
            if connection.in_atomic_block:
                transaction.on_commit(lambda: done.append(queue), using=name)

        begun = driver.begin("repeatable read")
        put("a")
        block: Any = transaction.atomic(using=name)
        with block:
            put("gone with the inner block")
            transaction.set_rollback(True, using=name)
        inner = driver.begin(None)
        assert driver.nested(inner)
        put("gone with the savepoint")
        driver.rollback(inner)
        driver.commit(begun)
        begun = driver.begin(None)
        put("gone")
        driver.rollback(begun)
        begun = driver.begin(None)
        put("gone too")
        driver.rollback_all()
        if connection.in_atomic_block:
            with pytest.raises(TransactionAborted):
                driver.commit(begun)
        driver.rollback(begun)
        begun = driver.begin(None)
        put("b")
        driver.commit(begun)
        assert not connection.in_atomic_block

    def both() -> None:
        for autocommit in (True, False):
            with alias(emptied, AUTOCOMMIT=autocommit) as name:
                said(name)

    await asyncio.to_thread(both)
    assert rows(emptied, QUEUES) == [("a",), ("b",)] * 2
    assert done == ["a", "b"]


@pytest.mark.parametrize("kind", ["sqlalchemy-session", "sqlalchemy-async-session"])
async def test_a_session_after_a_failed_flush(database: str, kind: str) -> None:
    """A session whose flush has failed wants a rollback: that is not committed either."""

    class Base(orm.DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = f"thing_{kind.replace('-', '_')}"
        n: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    async with caller(kind, database) as one:
        await one.execute(f"create table {Thing.__tablename__} (n int primary key check (n > 0))")
        await one.commit()
        driver: Any = await one.say(driver_of, "the test")
        begun = await one.call(driver.begin, None)
        one.conn.add(Thing(n=-1))
        with pytest.raises(IntegrityError):
            await one.call(one.conn.flush)
        with pytest.raises(TransactionAborted):
            await one.call(driver.commit, begun)
        await one.call(driver.rollback, begun)
        begun = await one.call(driver.begin, None)
        one.conn.add(Thing(n=1))
        await one.call(driver.commit, begun)
    assert rows(database, f"select n from {Thing.__tablename__}") == [(1,)]
