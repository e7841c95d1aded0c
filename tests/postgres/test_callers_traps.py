"""What a connection of the caller's may be set to, and what may lie in its search path: none of it changes what a verb
says, and none of it is changed.

Here live tests of `transaction/` on connections that are odd, or go through a pooler. Theory: what a driver makes of a
statement two verbs show for all, `guard`, which only looks, and `enqueue`, which writes text and bytes and notifies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from pgconcert import AsyncCoordinator
from pgconcert.errors import AcquireTimeout, ConfigurationError, GuardRefused, PayloadTooLarge
from pgconcert.testing import advisory_locks, eventually_async
from pgconcert.transaction import enqueue, guard, lock, publish, run, try_lock
from pgconcert.transaction.connections import driver_of
from tests.needs import need
from tests.poolers import PgBouncer
from tests.postgres.callers import AWAITED, KINDS, Asyncpg, Caller, asyncpg_parts, caller, engine, kinds
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import LONG, rows
from tests.servers import Server

WAITING = "select queue, payload from pgconcert.task order by id"
NAME = "it's \\ 100%s ü"
BYTES = b"\\x00'\x00\xff%s"

TRAPS = """
    create schema traps;
    create function traps.pg_notify(text, text) returns text language sql as $$select 'trap'$$;
    create function traps.clock_timestamp() returns timestamptz language sql as $$select 'infinity'::timestamptz$$;
    create function traps.to_timestamp(float8) returns timestamptz language sql as $$select 'infinity'::timestamptz$$;
    create function traps.always(anyelement, anyelement) returns bool language sql as $$select true$$;
    create table traps.task (like pgconcert.task);
    create table traps.entry (like pgconcert.entry);
    create table traps.session (like pgconcert.session);
    create domain traps.text as pg_catalog.varchar(1);
    create domain traps.bytea as pg_catalog.bytea check (false);
    create domain traps.int8 as pg_catalog.int8 check (false);
    create function traps.never(timestamptz, interval) returns timestamptz
        language sql as $$select timestamptz '-infinity'$$;
    create operator traps.+ (leftarg = timestamptz, rightarg = interval, function = traps.never);
"""
LIES = """
    create function traps.lies_{0}({1}, {1}) returns bool language sql as $$select {3}$$;
    create operator traps.{2} (leftarg = {1}, rightarg = {1}, function = traps.lies_{0});
"""
COMPARED = (
    *((name, "=", "true") for name in ("text", "int8", "name", "oid", "int2", "int4", '"char"')),
    ("int4", "<>", "false"),
    ("timestamptz", ">", "true"),
)


def said(conn: psycopg.Connection[Any], hold: Any) -> None:
    """Both verbs, in a transaction of the connection's."""
    guard(conn, hold)
    enqueue(conn, NAME, BYTES)
    conn.commit()


def fails_then_guards(conn: psycopg.Connection[Any], hold: Any) -> None:
    """The error of the first may be told by the second, or at once."""
    conn.execute("select 1/0")
    guard(conn, hold)


@kinds("psycopg", "sqlalchemy-psycopg2")
async def test_a_hostile_search_path(emptied: str, kind: str) -> None:
    """Tables, functions, types and operators that have the names of what we use are not used, and the path stays."""
    with raw(emptied) as owner:
        owner.execute("drop schema if exists traps cascade")
        owner.execute(TRAPS.encode())
        for number, (of, operator, answer) in enumerate(COMPARED):
            owner.execute(LIES.format(number, of, operator, answer).encode())
        async with AsyncCoordinator(emptied) as c, caller(kind, emptied) as one:
            hold, revoked = [await c.job_lock(name, ttl=LONG).acquire() for name in ("a", "b")]
            owner.execute("update pgconcert.entry set session_id = null where name = 'b'")
            with psycopg.connect(emptied, application_name="the holder") as holder, psycopg.connect(emptied) as other:
                lock(holder, "a")
                lock(other, "b")
                await one.begin()
                await one.execute("set local search_path = traps, pg_catalog")
                await one.say(guard, hold)
                await one.say(enqueue, NAME, BYTES)
                await one.say(publish, "orders", BYTES * 2000)
                with pytest.raises(PayloadTooLarge):
                    await one.say(publish, "orders", BYTES * 2000, schema="traps")
                assert await one.say(try_lock, "c")
                for timeout in (0, 0.01):
                    with pytest.raises(AcquireTimeout, match=r"it is held by the holder \(pid \d+\)$"):
                        await one.say(lock, "a", timeout=timeout)
                with pytest.raises(GuardRefused):
                    await one.say(guard, revoked)
                assert await one.value("show search_path") == "traps, pg_catalog"
                await one.commit()
    assert rows(emptied, WAITING) == [(NAME, BYTES)]
    soon = "select run_at > now() - interval '1 min' from pgconcert.task"
    assert rows(emptied, f"{soon} union all select expires > now() from pgconcert.message_payload") == [(True,)] * 2


@kinds("sqlalchemy-psycopg2", "sqlalchemy-pg8000", "django")
async def test_without_standard_strings(emptied: str, kind: str) -> None:
    """Backslashes are themselves though the connection takes them for escapes; and what the role may only read is an
    error of the driver's."""
    async with caller(kind, emptied) as one:
        await one.begin()
        await one.execute("set standard_conforming_strings = off")
        await one.execute("set escape_string_warning = off")
        await one.commit()
        await one.begin()
        await one.say(enqueue, NAME, BYTES)
        await one.commit()
        await one.begin()
        await one.execute("set transaction read only")
        with pytest.raises(Exception, match="read-only transaction"):
            await one.say(enqueue, "q")
        await one.rollback()
    assert rows(emptied, WAITING) == [(NAME, BYTES)]


SETTINGS: dict[str, dict[str, Any]] = {
    "dictionaries": {"row_factory": dict_row},
    "client cursors": {"cursor_factory": psycopg.ClientCursor},
    "never prepared": {"prepare_threshold": None},
    "always prepared": {"prepare_threshold": 0},
    "latin1": {"client_encoding": "latin1"},
    "sql_ascii": {"client_encoding": "sql_ascii"},
}


async def test_settings_of_psycopg(emptied: str) -> None:
    async with AsyncCoordinator(emptied) as c, c.job_lock("a", ttl=LONG) as hold:
        for settings in SETTINGS.values():
            with psycopg.connect(emptied, **settings) as conn:
                for _ in range(2):
                    said(conn, hold)
    assert rows(emptied, WAITING) == [(NAME, BYTES)] * 2 * len(SETTINGS)


async def test_a_pipeline_of_psycopg(emptied: str) -> None:
    """In pipeline mode what a verb says is answered when it returns, after what was sent before it; a refusal and an
    error of the server leave the pipeline usable; in autocommit mode a pipeline is no transaction."""
    with raw(emptied) as owner:
        owner.execute("create table mine (n int)")
        async with AsyncCoordinator(emptied) as c, c.job_lock("a", ttl=LONG) as hold:
            with psycopg.connect(emptied) as conn, conn.pipeline():
                conn.execute("insert into mine values (1)")
                said(conn, hold)
                with pytest.raises(psycopg.errors.DivisionByZero):
                    fails_then_guards(conn, hold)
                conn.rollback()
                with pytest.raises(ConfigurationError, match="are missing or old"):
                    guard(conn, hold, schema="nowhere")
                assert conn.info.transaction_status == TransactionStatus.INERROR
                conn.rollback()
                said(conn, hold)

                def fails(conn: Any) -> None:
                    with contextlib.suppress(psycopg.errors.DivisionByZero):
                        conn.execute("select 1/0")
                    raise KeyError

                with pytest.raises(KeyError) as caught:
                    run(conn, fails)
                assert getattr(caught.value, "__notes__", []) == []
                said(conn, hold)
            async with await psycopg.AsyncConnection.connect(emptied, autocommit=True) as other, other.pipeline():
                for begun in (False, True, False):
                    assert await driver_of(other, "a test").in_transaction() is begun  # type: ignore[misc]
                    await other.execute("commit" if begun else "begin")
                    if not begun:
                        await (await other.execute("select 1")).fetchone()
            async with await psycopg.AsyncConnection.connect(emptied) as other, other.pipeline():
                await other.execute("insert into mine values (2)")
                await guard(other, hold)
                await enqueue(other, NAME, BYTES)
            with raw(emptied) as conn, conn.pipeline():
                conn.execute("insert into mine values (3)")
                with pytest.raises(ConfigurationError, match="needs an open transaction"):
                    guard(conn, hold)
    assert rows(emptied, "select n from mine order by n") == [(1,), (2,), (3,)]
    assert rows(emptied, WAITING) == [(NAME, BYTES)] * 4


async def test_settings_of_asyncpg(emptied: str) -> None:
    """No cache of statements, rows of a class of its own, codecs of its own for the types we send and get."""

    class Odd(asyncpg.Record):  # type: ignore[misc]
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError("not this one")

        def __iter__(self) -> Any:
            raise AssertionError("not these")

    settings: list[dict[str, Any]] = [{"statement_cache_size": 0}, {"record_class": Odd}]
    async with AsyncCoordinator(emptied) as c, c.job_lock("a", ttl=LONG) as hold:
        for more in settings:
            conn: Any = await asyncpg.connect(**asyncpg_parts(emptied), **more)
            try:
                async with conn.transaction():
                    await guard(conn, hold)
                    await enqueue(conn, NAME, BYTES)
            finally:
                await conn.close()
        async with asyncpg.create_pool(**asyncpg_parts(emptied), min_size=1, max_size=1) as pool:
            async with pool.acquire() as lent, lent.transaction():
                await guard(lent, hold)
                await enqueue(lent, NAME, BYTES)
    assert rows(emptied, WAITING) == [(NAME, BYTES)] * 3


@pytest.mark.parametrize("kind", ["sqlalchemy", "sqlalchemy-psycopg2"])
def test_streams_of_sqlalchemy(emptied: str, kind: str) -> None:
    """A connection that streams makes cursors of the server for whatever it is asked; for ours it does not."""
    made = engine(kind, emptied, execution_options={"stream_results": True, "yield_per": 10})
    with made.connect() as conn:
        enqueue(conn, NAME, BYTES)
        with conn.execute(sa.text("select 1")) as result:
            assert result.context._is_server_side
        conn.commit()
    made.dispose()
    assert rows(emptied, WAITING) == [(NAME, BYTES)]


@kinds("psycopg-async", "sqlalchemy-asyncpg", among=AWAITED)
async def test_a_cancelled_verb(emptied: str, kind: str) -> None:
    """Who is cancelled while the server waits rolls back, and nothing stays: no task, no transaction, no lock; the
    connection can be used again."""
    waits = "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    with raw(emptied) as owner, psycopg.connect(emptied) as rival:
        owner.execute("create table mine (n int)")
        rival.execute("lock table pgconcert.task in access exclusive mode")
        async with caller(kind, emptied) as one:
            await one.begin()
            await one.execute("insert into mine values (1)")
            task = asyncio.create_task(one.say(enqueue, "q"))
            await eventually_async(lambda: rows(emptied, waits), what="the verb waits")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await one.rollback()
            await eventually_async(lambda: not rows(emptied, waits), what="nobody waits")
            rival.rollback()
            await one.begin()
            await one.say(enqueue, "q", b"again")
            await one.commit()
    assert rows(emptied, WAITING) == [("q", b"again")]
    assert rows(emptied, "select n from mine") == []


@pytest.mark.long
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("kind", KINDS)
async def test_behind_a_pooler(server: Server, tables: str, request: pytest.FixtureRequest, kind: str) -> None:
    """In transaction mode each transaction may run on another connection of the server, and every verb is part of one;
    the one connection that there is serves the next client as it was."""
    pooler = PgBouncer(need(request.config, "pgbouncer"), server, tables, "transaction", pool_size=1)
    with contextlib.closing(pooler):
        async with AsyncCoordinator(tables) as c, c.job_lock("a", ttl=LONG) as hold, c.subscribe("orders") as heard:
            for _ in range(3):
                async with _pooled(kind, pooler.url) as one:
                    await _all_verbs(one, tables, hold)
            for _ in range(6):
                assert [len((await heard.get(20)).payload) for _ in range(2)] == [1, 9000]
    assert rows(tables, WAITING) == [(NAME, BYTES), ("run", b"1")] * 6
    assert advisory_locks(tables) == []


@contextlib.asynccontextmanager
async def _pooled(kind: str, url: str) -> AsyncIterator[Caller]:
    """A caller that prepares nothing on the server, as a pooler of this mode wants it."""
    if kind == "asyncpg":
        conn: Any = await asyncpg.connect(**asyncpg_parts(url), statement_cache_size=0)
        try:
            yield Asyncpg(kind, conn, False, asyncio.to_thread)
        finally:
            await conn.close()
        return
    async with caller(kind, url) as one:
        if kind in ("psycopg", "psycopg-async", "sqlalchemy", "sqlalchemy-async"):  # a session has a new one each time
            lent = getattr(one.conn, "sync_connection", one.conn)
            getattr(getattr(lent, "connection", None), "driver_connection", lent).prepare_threshold = None
        yield one


async def _all_verbs(one: Caller, url: str, hold: Any) -> None:
    for _ in range(2):
        with psycopg.connect(url) as holder:
            lock(holder, "taken")
            await one.begin()
            await one.say(guard, hold)
            await one.say(enqueue, NAME, BYTES)
            await one.say(lock, "free", timeout=5)
            with pytest.raises(AcquireTimeout):
                await one.say(lock, "taken", timeout=0.01)
            assert not await one.say(try_lock, "taken")
            for size in (1, 9000):
                await one.say(publish, "orders", "x" * size)
            assert await one.value("show lock_timeout") == "0"
            await one.commit()
        if one.blocks:
            await one.say(run, lambda conn: enqueue(conn, "run", b"1"), isolation="serializable")
        else:
            await one.say(run, _put, isolation="serializable")


async def _put(conn: Any) -> Any:
    answer: Any = enqueue(conn, "run", b"1")
    return await answer
