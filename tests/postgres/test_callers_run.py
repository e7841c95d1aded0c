"""`transaction.run` and `rollback_quietly` on connections of every kind: what is committed, and what never is.

Here live tests of `transaction/running.py`, `driving.py` and of what each driver does for them; pools and retries stand
in `test_callers_lenders.py`. Theory: what a transaction has left is looked at by another connection, and what has gone
wrong is done to the server process, by its id. Quick are, of each question, the kinds that answer it in code of their
own.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pgconcert import ConfigurationError, TransactionAborted
from pgconcert.transaction import rollback_quietly, run
from tests.postgres.callers import Caller, caller, kinds
from tests.postgres.scenes import raw
from tests.servers import Server


@pytest.fixture(scope="module")
def mine(server: Server) -> Iterator[str]:
    """The URL of a database with two tables: `mine`, and `late`, whose foreign key is looked at when one commits."""
    with server.fresh_database() as url:
        with raw(url) as conn:
            conn.execute("create table mine (n int primary key)")
            conn.execute("create table late (n int references mine deferrable initially deferred)")
        yield url


@pytest.fixture
def url(mine: str) -> str:
    """The same, with nothing in the tables."""
    with raw(mine) as conn:
        conn.execute("truncate mine, late")
    return mine


def written(url: str) -> list[int]:
    with raw(url) as conn:
        return [row[0] for row in conn.execute("select n from mine order by n").fetchall()]


def killed(url: str) -> None:
    """End every other session of the database, and see that they have ended."""
    with raw(url) as conn:
        conn.execute(
            "select pg_terminate_backend(pid, 60000) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )


class Said(Exception):
    """What a function of these tests raises."""


class End(BaseException):
    """What ends a program."""


async def ran(one: Caller, *steps: Callable[[Any], Any] | str | BaseException, **options: Any) -> Any:
    """`transaction.run` with a function that does the steps in turn: says a statement, raises, or calls."""

    def blocking(conn: Any) -> Any:
        value = None
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            value = sql(conn, step) if isinstance(step, str) else step(conn)
        return value

    async def awaited(conn: Any) -> Any:
        value = None
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            value = sql(conn, step) if isinstance(step, str) else step(conn)
            value = await value if inspect.isawaitable(value) else value
        return value

    return await one.say(run, blocking if one.blocks else awaited, **options)


def sql(conn: Any, text: str) -> Any:
    """Say a statement on whatever a function was given."""
    if hasattr(conn, "cursor") and not hasattr(conn, "execute"):  # Django's
        with conn.cursor() as cursor:
            return cursor.execute(text)
    if type(conn).__module__.startswith("sqlalchemy"):
        import sqlalchemy

        return conn.execute(sqlalchemy.text(text))
    return conn.execute(text)


async def usable(one: Caller, url: str, n: int = 99) -> None:
    """The connection takes a next transaction, which is committed."""
    await ran(one, f"insert into mine values ({n})")
    assert n in written(url)


@kinds(
    "psycopg",
    "psycopg-async",
    "asyncpg",
    "sqlalchemy",
    "sqlalchemy-session",
    "sqlalchemy-async-session",
    "django-alias",
)
async def test_committed_or_not(url: str, kind: str) -> None:
    """Committed when the function returns; gone when it raises; its value and its error are passed on as they are."""
    async with caller(kind, url) as one:
        assert await ran(one, "insert into mine values (1)", lambda _: "value") == "value"
        assert written(url) == [1]
        error = Said()
        with pytest.raises(Said) as raised:
            await ran(one, "insert into mine values (2)", error)
        assert raised.value is error
        assert not hasattr(error, "__notes__")
        with pytest.raises(Exception, match="mine_pkey"):
            await ran(one, "insert into mine values (3)", "insert into mine values (1)")
        with pytest.raises(End):
            await ran(one, "insert into mine values (4)", End())
        assert written(url) == [1]
        await usable(one, url)


@kinds(
    "psycopg",
    "psycopg-async",
    "asyncpg",
    "sqlalchemy-session",
    "sqlalchemy-psycopg2",
    "sqlalchemy-pg8000",
    "sqlalchemy-asyncpg",
    "django",
)
async def test_what_cannot_be_committed(url: str, kind: str) -> None:
    """The driver's own error at the commit; and a function that keeps the error of a statement to itself does not make
    the server drop everything silently."""
    async with caller(kind, url) as one:
        with pytest.raises(Exception, match="late_n_fkey"):
            await ran(one, "insert into mine values (1)", "insert into late values (7)")
        assert written(url) == []

        def fails(conn: Any) -> Any:
            if not one.blocks:
                return fails_awaited(conn)
            with pytest.raises(Exception, match="division"):
                sql(conn, "select 1/0")
            return None

        async def fails_awaited(conn: Any) -> None:
            with pytest.raises(Exception, match="division"):
                await sql(conn, "select 1/0")

        with pytest.raises(TransactionAborted, match="Nothing was committed"):
            await ran(one, "insert into mine values (1)", fails)
        assert written(url) == []
        await usable(one, url)


@kinds("psycopg", "asyncpg", "sqlalchemy", "sqlalchemy-session", "django")
async def test_ended_by_the_function(url: str, kind: str) -> None:
    """A transaction that is over already is fine, whether the function returns or raises."""
    async with caller(kind, url) as one:
        for word in ("commit", "rollback"):

            def end(conn: Any, word: str = word) -> Any:
                own = (
                    None if kind.startswith("django") else getattr(conn, word, None)
                )  # Django refuses it inside atomic()
                return sql(conn, word) if own is None else own()

            await ran(one, f"insert into mine values ({len(word)})", end)
            with pytest.raises(Said):
                await ran(one, f"insert into mine values (1{len(word)})", end, Said())
        assert written(url) == [6, 16]
        await usable(one, url)


@kinds("psycopg-async", "asyncpg", "sqlalchemy", "sqlalchemy-async-session", "django")
async def test_inside_an_open_transaction(url: str, kind: str) -> None:
    """It is a savepoint there: what failed inside is gone, and the transaction around it is as good as before."""
    async with caller(kind, url) as one:
        await one.begin()
        await one.execute("insert into mine values (1)")
        await ran(one, "insert into mine values (2)")
        with pytest.raises(Said):
            await ran(one, "insert into mine values (3)", Said(), retries=3)
        with pytest.raises(Exception, match="mine_pkey"):
            await ran(one, "insert into mine values (1)")
        with pytest.raises(Exception, match="late_n_fkey"):
            await ran(one, "set constraints all immediate", "insert into late values (7)")
        with pytest.raises(ConfigurationError, match="isolation='serializable' is for a transaction that begins"):
            await ran(one, isolation="serializable")
        await ran(one, lambda conn: one.kind)
        assert written(url) == []
        await one.commit()
        assert written(url) == [1, 2]
        await usable(one, url)


@kinds("psycopg", "asyncpg", "sqlalchemy-session", "django")
async def test_isolation(url: str, kind: str) -> None:
    """For this one transaction; the connection keeps its own level."""
    read = "insert into mine select {} where current_setting('transaction_isolation') = '{}'"
    async with caller(kind, url) as one:
        for n, level in enumerate(("repeatable read", "serializable", "read committed")):
            await ran(one, read.format(n, level), isolation=level)
        await ran(one, read.format(3, "read committed"))
    assert written(url) == [0, 1, 2, 3]


@kinds("psycopg", "asyncpg", "sqlalchemy-asyncpg", "sqlalchemy-pg8000", "django")
async def test_the_connection_dies_in_the_function(url: str, kind: str) -> None:
    """The function's own error is raised, with that of the rollback, which found the connection dead. Django looks
    whether it is, and says nothing."""
    async with caller(kind, url) as one:
        with pytest.raises(Said) as raised:
            await ran(one, "insert into mine values (1)", lambda _: killed(url), Said("first"))
        assert str(raised.value) == "first"
        notes = getattr(raised.value, "__notes__", [])
        text = "".join(traceback.format_exception(raised.value))
        if kind.startswith("django"):
            assert notes == []
        else:
            (note,) = notes
            assert note.startswith("the rollback failed too, and the connection was closed: ")
            assert "The above exception was" in text or "During handling of the above exception" in text
        assert written(url) == []


@kinds("psycopg-async", "asyncpg", "sqlalchemy", "sqlalchemy-session", "django-alias")
async def test_quietly(url: str, kind: str) -> None:
    """Everything open is gone, with its savepoints; nothing open, or nothing there any more, is fine as well."""
    async with caller(kind, url) as one:
        await one.begin()
        await one.execute("insert into mine values (1)")
        await one.savepoint("inside")
        await one.execute("insert into mine values (2)")
        with pytest.raises(Exception, match="division"):
            await one.execute("select 1/0")
        error = Said()
        await one.say(rollback_quietly, error)
        assert not hasattr(error, "__notes__")
        if kind.startswith("django"):  # inside atomic(), which rolls back at its end
            await one.commit()
        assert written(url) == []
        await one.say(rollback_quietly)
        await usable(one, url, 3)
        await one.begin()
        await one.execute("insert into mine values (4)")
        killed(url)
        await one.say(rollback_quietly, error)
        await one.say(rollback_quietly, error)
        assert len(getattr(error, "__notes__", [])) == (0 if kind.startswith("django") else 1)
        assert written(url) == [3]
