"""`transaction.run` with what lends connections: nothing in doubt goes back, and what the server gave up is done again.

Here live tests of `transaction/driving.py` and `failing.py` on pools of psycopg and asyncpg, engines and makers of
sessions. Theory: the pools have room for one connection, so one that was not given back is noticed by the next
transaction, which has no connection then.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import traceback
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as saio
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from pgconcert import TransactionAborted
from pgconcert.testing import eventually
from pgconcert.transaction import run
from pgconcert.transaction.driving import run_awaited, run_blocking
from pgconcert.transaction.lending import lender_of
from tests.postgres.callers import asyncpg_parts, engine
from tests.postgres.scenes import raw
from tests.postgres.test_callers_run import Said, killed, sql
from tests.servers import Server

AWAITED = ("psycopg", "asyncpg", "engine", "sessionmaker")
BLOCKING = ("psycopg", "engine", "sessionmaker")


@pytest.fixture(scope="module")
def mine(server: Server) -> Iterator[str]:
    """The URL of a database with a table of two rows, whose deadlocks are found soon."""
    with server.fresh_database() as url:
        with raw(url) as conn:
            conn.execute("create table mine (n int primary key, value int not null)")
            conn.execute(f"alter database {conn.info.dbname} set deadlock_timeout = '20ms'".encode())
        yield url


@pytest.fixture
def url(mine: str) -> str:
    """The same, with both values 0."""
    with raw(mine) as conn:
        conn.execute("truncate mine; insert into mine values (1, 0), (2, 0)")
    return mine


def values(url: str) -> list[int]:
    with raw(url) as conn:
        return [row[0] for row in conn.execute("select value from mine order by n").fetchall()]


@contextmanager
def blocking(kind: str, url: str) -> Generator[Any]:
    """What lends one connection at a time, and waits seconds for it."""
    if kind == "psycopg":
        with psycopg_pool.ConnectionPool(url, min_size=1, max_size=1, timeout=30, open=True) as pool:
            yield pool
        return
    made = engine("sqlalchemy", url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=30)
    yield orm.sessionmaker(made) if kind == "sessionmaker" else made
    made.dispose()


@asynccontextmanager
async def awaited(kind: str, url: str) -> AsyncGenerator[Any]:
    """The same, awaited."""
    if kind == "psycopg":
        async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=1, timeout=30, open=False) as pool:
            yield pool
    elif kind == "asyncpg":
        async with asyncpg.create_pool(**asyncpg_parts(url), min_size=1, max_size=1) as lender:
            yield lender
    else:
        options: dict[str, Any] = {"poolclass": AsyncAdaptedQueuePool, "pool_size": 1, "max_overflow": 0}
        made = engine("sqlalchemy-asyncpg", url, pool_timeout=30, **options)
        yield saio.async_sessionmaker(made) if kind == "sessionmaker" else made
        await made.dispose()


def add(conn: Any, n: int = 1, by: int = 1) -> Any:
    return sql(conn, f"update mine set value = value + {by} where n = {n}")


@pytest.mark.parametrize("kind", BLOCKING)
def test_lent_and_given_back(url: str, kind: str) -> None:
    """After every end the one connection is there for the next transaction, and nothing is open on the server."""
    with blocking(kind, url) as pool:

        def fails(conn: Any) -> None:
            add(conn)
            raise Said

        def forgives(conn: Any) -> None:
            with pytest.raises(Exception, match="division"):
                sql(conn, "select 1/0")

        def interrupted(conn: Any) -> None:
            add(conn)
            raise KeyboardInterrupt

        def dies(conn: Any) -> None:
            add(conn)
            killed(url)
            raise Said("first")

        run(pool, add)
        wrongs = (fails, Said), (interrupted, KeyboardInterrupt), (forgives, TransactionAborted), (dies, Said)
        for wrong, error in wrongs:
            with pytest.raises(error) as raised:
                run(pool, wrong)
            run(pool, add)
            if wrong is dies:
                both_are_told(raised.value)
        nothing_is_open(url)
    assert values(url) == [5, 0]


@pytest.mark.parametrize("kind", AWAITED)
async def test_lent_and_given_back_awaited(url: str, kind: str) -> None:
    async with awaited(kind, url) as pool:

        async def fails(conn: Any) -> None:
            await add(conn)
            raise Said

        async def forgives(conn: Any) -> None:
            with pytest.raises(Exception, match="division"):
                await sql(conn, "select 1/0")

        async def cancelled(conn: Any) -> None:
            await add(conn)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(3600)  # a statement would go on if the driver's request to cancel it came too early

        async def dies(conn: Any) -> None:
            await add(conn)
            killed(url)
            raise Said("first")

        await run(pool, add)
        wrongs = (fails, Said), (cancelled, asyncio.CancelledError), (forgives, TransactionAborted), (dies, Said)
        for wrong, error in wrongs:
            with pytest.raises(error) as raised:
                await asyncio.create_task(run(pool, wrong))
            await run(pool, add)
            if wrong is dies:
                both_are_told(raised.value)
        nothing_is_open(url)
    assert values(url) == [5, 0]


def both_are_told(error: BaseException) -> None:
    """The traceback of an error has that of the rollback as well."""
    (note,) = error.__notes__
    told, _, what = note.partition(": ")
    assert told == "the rollback failed too, and the connection was closed"
    assert what in "".join(traceback.format_exception(error.__context__))


def nothing_is_open(url: str) -> None:
    """Soon: the server learns of a connection that was closed when it next looks."""
    with raw(url) as conn:

        def found() -> list[Any]:
            return conn.execute(
                "select pid, state, query from pg_stat_activity where datname = current_database() "
                "and pid <> pg_backend_pid() and state <> 'idle' and backend_type = 'client backend'"
            ).fetchall()

        eventually(lambda: not found(), 30, what=f"nothing is open but {found()}")


# --- tried again ---


def test_a_serialization_failure_is_tried_again(url: str) -> None:
    """With a fresh call of the function on a fresh snapshot, after a pause in which the connection is the pool's."""
    with blocking("psycopg", url) as pool:
        seen: list[int] = []
        pauses: list[float] = []

        def count(conn: Any) -> int:
            (value,) = conn.execute("select value from mine where n = 1").fetchone()
            seen.append(value)
            if len(seen) < 4:
                with raw(url) as other:
                    add(other, by=10)
            add(conn)
            return len(seen)

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            assert pool.get_stats()["pool_available"] == 1

        lender: Any = lender_of(pool, "a test")
        assert run_blocking(lender, count, "repeatable read", 3, pause) == 4
        assert seen == [0, 10, 20, 30]
        assert [0.025 <= pauses[0] <= 0.05, 0.05 <= pauses[1] <= 0.1, 0.1 <= pauses[2] <= 0.2] == [True] * 3
        assert values(url) == [31, 0]

        seen.clear()
        with pytest.raises(psycopg.errors.SerializationFailure) as raised:
            run_blocking(lender, count, "repeatable read", 2, pause)
        assert raised.value.__notes__ == ["transaction.run had tried it 3 times"]
        assert len(seen) == 3

        seen.clear()
        with pytest.raises(psycopg.errors.SerializationFailure):
            run(pool, count, isolation="serializable")
        assert len(seen) == 1


@pytest.mark.parametrize("kind", AWAITED)
async def test_a_deadlock_is_tried_again(url: str, kind: str) -> None:
    """Two that wait for each other's row: the server gives one up, and it is done after the other, awaited or not."""
    together = threading.Barrier(2)
    tries: list[str] = []

    def one(conn: Any) -> None:
        tries.append("one")
        add(conn, 1)
        if tries.count("one") == 1:
            together.wait(20)
        add(conn, 2)

    async def other(conn: Any) -> None:
        tries.append("other")
        await add(conn, 2)
        if tries.count("other") == 1:
            await asyncio.to_thread(together.wait, 20)
        await add(conn, 1)

    with blocking("psycopg", url) as pool:
        async with awaited(kind, url) as others, asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(run, pool, one, retries=9))
            group.create_task(run(others, other, retries=9))
    assert values(url) == [2, 2]
    assert len(tries) >= 3


@pytest.mark.parametrize("kind", ["engine", "sessionmaker"])
def test_wrapped_and_at_the_commit(url: str, kind: str) -> None:
    """Write skew, which the server finds at the commit; and an application that raises an error of its own."""
    with blocking(kind, url) as pool:
        tries: list[int] = []

        def skewed(conn: Any) -> None:
            tries.append(1)
            sql(conn, "select value from mine").all()
            add(conn)
            if len(tries) == 1:
                with raw(url) as other:
                    other.execute("begin isolation level serializable; select value from mine")
                    other.execute("update mine set value = 5 where n = 2; commit")
            if len(tries) == 2:
                raise Said("ours") from ExceptionGroup("all", [KeyError(), psycopg.errors.DeadlockDetected("x")])

        run(pool, skewed, isolation="serializable", retries=5)
        assert len(tries) == 3
    assert values(url) == [1, 5]


async def test_what_is_not_tried_again(url: str) -> None:
    """Other errors, those that the caller was handling before, and those inside a transaction that is open already."""
    tries: list[int] = []

    def other(conn: Any) -> None:
        tries.append(1)
        raise Said

    def conflict(conn: Any) -> None:
        tries.append(1)
        raise psycopg.errors.SerializationFailure("x")

    async def other_awaited(conn: Any) -> None:
        other(conn)

    with psycopg.connect(url) as conn:
        with pytest.raises(Said):
            run(conn, other, retries=5)
        conn.execute("select 1")
        with pytest.raises(psycopg.errors.SerializationFailure):
            run(conn, conflict, retries=5)
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        conn.rollback()
        async with awaited("psycopg", url) as pool:
            try:
                raise psycopg.errors.SerializationFailure("before")
            except psycopg.Error:
                with pytest.raises(Said):
                    run(conn, other, retries=5)
                with pytest.raises(Said):
                    await run(pool, other_awaited, retries=5)
    assert len(tries) == 4


async def test_not_tried_again_on_a_connection_that_is_lost(url: str) -> None:
    """A next try would fail because the connection is closed, and hide why."""

    def conflict(conn: Any) -> None:
        conn.execute("select 1")
        killed(url)
        raise psycopg.errors.SerializationFailure("x")

    async def conflict_awaited(conn: Any) -> None:
        await conn.execute("select 1")
        killed(url)
        raise psycopg.errors.SerializationFailure("x")

    with psycopg.connect(url) as conn, pytest.raises(psycopg.errors.SerializationFailure) as raised:
        run(conn, conflict, retries=5)
    both_are_told(raised.value)
    async with await psycopg.AsyncConnection.connect(url) as other:
        with pytest.raises(psycopg.errors.SerializationFailure) as raised:
            await run(other, conflict_awaited, retries=5)
    both_are_told(raised.value)


async def test_the_session_of_the_task_in_which_it_runs(url: str) -> None:
    """A registry has a session for each task: begun and committed is the one that the function uses."""
    async with awaited("sessionmaker", url) as maker:
        sessions = saio.async_scoped_session(maker, scopefunc=asyncio.current_task)

        async def added(n: int) -> None:
            try:
                await coroutines[n]
            finally:
                await sessions.remove()

        coroutines = {n: run(sessions, functools.partial(add, n=n)) for n in (1, 2)}
        await asyncio.gather(added(1), added(2))
    assert values(url) == [1, 1]


async def test_cancelled_in_the_pause(url: str) -> None:
    """Whoever is cancelled between two tries leaves; nothing is lent meanwhile."""
    async with awaited("psycopg", url) as pool:
        paused = asyncio.Event()

        async def conflict(conn: Any) -> None:
            raise psycopg.errors.DeadlockDetected("x")

        async def pause(seconds: float) -> None:
            assert pool.get_stats()["pool_available"] == 1
            paused.set()
            await asyncio.sleep(3600)

        lender: Any = lender_of(pool, "a test")
        task = asyncio.create_task(run_awaited(lender, conflict, None, 9, pause))
        await paused.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
