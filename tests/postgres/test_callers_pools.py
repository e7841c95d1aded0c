"""The application's own pools: they are never used up by us, and nothing of ours stays on what they lend.

Theory. Of a pool or an engine a coordinator takes the address alone, so a pool of one connection is as good as any: it
may be lent out, or waited for, and locks, messages and heartbeats go on. The verbs of `transaction` do use a pooled
connection; whatever they leave on it would be met by a stranger who gets it next, so after the transaction the session
of the server and the object of the driver are compared with what they were before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import psycopg_pool
import pytest
import sqlalchemy as sa
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from pgconcert import AcquireTimeout, AsyncCoordinator, transaction
from pgconcert.testing import eventually_async
from tests.postgres.callers import AWAITED, asyncpg_parts, engine, kinds, own_thread

POOLS: Final = ("psycopg", "psycopg-async", "asyncpg", "sqlalchemy", "sqlalchemy-asyncpg")
SHORT: Final = 0.05
"""Seconds that a lock is waited for that is not given."""

PATIENT: Final = 30.0
"""Seconds that the application waits for a connection of its own pool."""

Say = Callable[..., Awaitable[Any]]


class OnePool:
    """A pool of one connection. `lend` gives it, and what calls a function where it may be used."""

    def __init__(self, source: Any, lend: Callable[[], Any], address: Any) -> None:
        self.source = source
        self.lend = lend
        self.address = address
        """What a coordinator is given."""


@asynccontextmanager
async def one_pool(kind: str, url: str) -> AsyncGenerator[OnePool]:
    """A pool of the size one, of each library that has one."""
    if kind == "psycopg":
        with psycopg_pool.ConnectionPool(url, min_size=1, max_size=1, timeout=PATIENT, open=True) as blocking:
            yield OnePool(blocking, lambda: _in_thread(blocking.connection), blocking)
    elif kind == "psycopg-async":
        async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=1, timeout=PATIENT, open=False) as pool:
            yield OnePool(pool, lambda: _awaited(pool.connection()), pool)
    elif kind == "asyncpg":
        async with asyncpg.create_pool(**asyncpg_parts(url), min_size=1, max_size=1) as lender:
            yield OnePool(lender, lambda: _awaited(lender.acquire(timeout=PATIENT)), url)
    elif kind in AWAITED:
        made = engine(kind, url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=PATIENT)
        try:
            yield OnePool(made, lambda: _awaited(made.connect()), made)
        finally:
            await made.dispose()
    else:
        made = engine(kind, url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=PATIENT)
        try:
            yield OnePool(made, lambda: _in_thread(made.connect), made)
        finally:
            made.dispose()


@asynccontextmanager
async def _in_thread(lend: Callable[[], Any]) -> AsyncGenerator[tuple[Any, Say]]:
    async with own_thread() as run:
        lent = await run(lend)
        conn = await run(lent.__enter__)
        try:
            yield conn, run
        finally:
            await run(lent.__exit__, None, None, None)


@asynccontextmanager
async def _awaited(lent: Any) -> AsyncGenerator[tuple[Any, Say]]:
    async def run(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await fn(*args, **kwargs)

    async with lent as conn:
        yield conn, run


async def rows(kind: str, conn: Any, run: Say, statement: str) -> list[tuple[Any, ...]]:
    """What a statement brings, said as the application says it."""
    if kind == "asyncpg":
        return [tuple(row) for row in await run(conn.fetch, statement)]
    answer = await run(conn.execute, sa.text(statement) if kind.startswith("sqlalchemy") else statement.encode())
    found = answer.fetchall() if kind != "psycopg-async" else await answer.fetchall()
    return [tuple(row) for row in found]


EXPIRES: Final = "select max(expires)::text from pgconcert.session"


@kinds("psycopg-async", "sqlalchemy", among=POOLS)
async def test_all_goes_on_while_the_only_connection_is_lent(tables: str, unique: str, kind: str) -> None:
    """A6: locks are held, messages heard and heartbeats sent while the pool of the application has nothing left; and
    its own queries run while locks are held."""

    async def asks() -> list[tuple[Any, ...]]:
        async with pool.lend() as (conn, run):
            return await rows(kind, conn, run, "select 1")

    async with one_pool(kind, tables) as pool, AsyncCoordinator(pool.address) as c:
        async with c.lock(f"{unique} a"), c.lock(f"{unique} b"), c.subscribe("news") as news:
            async with c.job_lock(f"{unique} job", ttl=60.0, interval=0.1) as job, pool.lend() as (conn, run):
                waiting = asyncio.create_task(asks())
                async with c.lock(f"{unique} c", timeout=PATIENT):
                    await c.publish("news", b"from within")
                assert (await news.get(timeout=PATIENT)).payload == b"from within"
                (first,) = await rows(kind, conn, run, EXPIRES)

                async def renewed() -> bool:
                    return await rows(kind, conn, run, EXPIRES) != [first]

                await eventually_async(renewed, PATIENT)
                assert not job.lost
                assert not waiting.done()
            assert await waiting == [(1,)]


STATE: Final = {
    "channels": "select * from pg_listening_channels()",
    "locks": "select classid, objid, mode from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
    "settings": "select name, setting from pg_settings order by name",
}


async def state(kind: str, pool: OnePool) -> dict[str, Any]:
    """All that could stay on the connection: of the server's session, and of the driver's object."""
    async with pool.lend() as (conn, run):
        found: dict[str, Any] = {name: await rows(kind, conn, run, text) for name, text in STATE.items()}
        found["pid"] = await rows(kind, conn, run, "select pg_backend_pid()")
        raw = conn
        if kind.startswith("sqlalchemy"):
            raw = await run(conn.get_raw_connection) if kind in AWAITED else conn.connection
            raw = raw.driver_connection
        elif kind == "asyncpg":
            raw = conn._con
        for handlers in ("_notify_handlers", "_notice_handlers", "_listeners", "_log_listeners", "_query_loggers"):
            found[handlers] = len(getattr(raw, handlers, ()))
        return found


async def in_transaction(
    kind: str, pool: OnePool, say: Callable[[Say, Any], Awaitable[None]], *, commit: bool = True
) -> None:
    """Say something in a transaction of a pooled connection, and end it."""
    async with pool.lend() as (conn, run):
        if kind == "asyncpg":
            begun = conn.transaction()
            await begun.start()
            await say(run, conn)
            await (begun.commit() if commit else begun.rollback())
        else:
            await say(run, conn)
            await run(conn.commit if commit else conn.rollback)


@kinds("psycopg", "sqlalchemy-asyncpg", among=POOLS)
@pytest.mark.parametrize("commit", [True, pytest.param(False, marks=pytest.mark.long)], ids=["commit", "rollback"])
async def test_nothing_of_ours_stays_on_a_pooled_connection(tables: str, unique: str, kind: str, commit: bool) -> None:
    """A8: no LISTEN, no advisory lock, no changed setting, no handler; also after a wait that was over."""
    async with one_pool(kind, tables) as pool, AsyncCoordinator(tables) as c, c.lock(f"{unique} held"):
        before = await state(kind, pool)

        async def say(run: Say, conn: Any) -> None:
            await run(transaction.publish, conn, "news", b"x", unique=True)
            await run(transaction.publish, conn, "news", b"y" * 20_000)
            await run(transaction.lock, conn, unique)
            await run(transaction.lock, conn, (7000, 1), shared=True)
            await run(transaction.lock, conn, f"{unique} in time", timeout=5)
            assert not await run(transaction.try_lock, conn, f"{unique} held")
            with pytest.raises(AcquireTimeout):
                await run(transaction.lock, conn, f"{unique} held", timeout=SHORT)
            await run(transaction.enqueue, conn, "mail", b"x")
            assert len(await rows(kind, conn, run, STATE["locks"])) >= 3

        await in_transaction(kind, pool, say, commit=commit)
        assert await state(kind, pool) == before


@kinds("asyncpg", among=POOLS)
async def test_nothing_stays_after_a_run(tables: str, unique: str, kind: str) -> None:
    """A8, with `transaction.run` over the pool itself, which begins and ends by itself."""
    async with one_pool(kind, tables) as pool:
        before = await state(kind, pool)
        blocks = kind in ("psycopg", "sqlalchemy")

        def locked(conn: Any) -> None:
            transaction.lock(conn, unique, timeout=5)
            transaction.publish(conn, "news", b"x")

        async def locked_too(conn: Any) -> None:
            await transaction.lock(conn, unique, timeout=5)
            await transaction.publish(conn, "news", b"x")

        if blocks:
            async with own_thread() as run:
                await run(transaction.run, pool.source, locked, isolation="serializable")
        else:
            await transaction.run(pool.source, locked_too, isolation="serializable")
        assert await state(kind, pool) == before
