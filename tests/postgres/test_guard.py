"""`transaction.guard` on connections of psycopg: what it lets commit, what it holds up, and what it does not.

Here live tests of `transaction/` and `postgres/guard.py`. Theory: the holds are real ones of a coordinator; what others
do to them meanwhile is done to the tables by another connection, or by another coordinator.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import DictRow, dict_row

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.errors import ConfigurationError, GuardRefused, SchemaMissing
from pgconcert.postgres.schemafiles import quoted
from pgconcert.store import Own, Refused, Renew, Take
from pgconcert.testing import rewrite
from pgconcert.transaction import guard
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import LONG, ask, expire, keeping, rows, sent, start, take
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server

LEVELS = list(psycopg.IsolationLevel)


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables and one of the test's."""
    with database_with_tables(server) as url:
        with raw(url) as owner:
            owner.execute("create table mine (n int)")
        yield url


def written(url: str) -> int:
    return int(rows(url, "select count(*) from mine")[0][0])


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
async def test_ours(tables: str, level: psycopg.IsolationLevel) -> None:
    """While it is ours, the transaction commits, on both kinds of connection, and at every level of isolation."""
    async with AsyncCoordinator(tables) as c, c.job_lock("a") as hold:
        with psycopg.Connection[DictRow].connect(tables, row_factory=dict_row) as conn:
            conn.isolation_level = level
            guard(conn, hold)
            conn.execute("insert into mine values (1)")
        async with await psycopg.AsyncConnection.connect(tables, autocommit=True) as other, other.transaction():
            await other.execute("insert into mine values (2)")
            await guard(other, hold)
    assert written(tables) == 2


SPOILED = {
    "taken": "update pgconcert.entry set session_id = session_id + 1, token = token + 1",
    "taken again": "update pgconcert.entry set token = token + 1",
    "revoked": "update pgconcert.entry set session_id = null",
    "forgotten": "delete from pgconcert.entry",
    "over": "update pgconcert.session set expires = clock_timestamp()",
    "ended": "update pgconcert.session set ended = clock_timestamp()",
    "purged": "delete from pgconcert.session",
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("level", LEVELS[1:3], ids=lambda level: level.name)
async def test_not_ours(tables: str, how: str, level: psycopg.IsolationLevel) -> None:
    """Once it is not ours, or not certainly, it is refused; the transaction is sound, and can be rolled back."""
    async with AsyncCoordinator(tables) as c:
        hold = await c.job_lock("a", ttl=LONG).acquire()
        with raw(tables) as rival:
            rival.execute(SPOILED[how].encode())
        with psycopg.connect(tables) as conn:
            conn.isolation_level = level
            conn.execute("insert into mine values (1)")
            with pytest.raises(
                GuardRefused, match="'a' was lost: somebody else has it, it was revoked, or its session"
            ):
                guard(conn, hold)
            assert conn.info.transaction_status == TransactionStatus.INTRANS
            conn.rollback()
        async with await psycopg.AsyncConnection.connect(tables) as other:
            with pytest.raises(GuardRefused):
                await guard(other, hold)
            await other.rollback()
    assert written(tables) == 0


async def test_changed_since_the_transaction_began(tables: str) -> None:
    """At repeatable read the server refuses what has changed hands since; that is a refusal as well."""
    async with AsyncCoordinator(tables) as c:
        hold = await c.job_lock("a", ttl=LONG).acquire()
        with psycopg.connect(tables) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            conn.execute("select 1")
            with raw(tables) as rival:
                rival.execute(SPOILED["taken"].encode())
            with pytest.raises(GuardRefused, match="it has changed hands since the transaction began"):
                guard(conn, hold)
            conn.rollback()


async def test_what_we_know_ourselves(tables: str) -> None:
    """A hold that was released, or lost, is refused without a word to the server."""
    async with AsyncCoordinator(tables) as c:
        async with c.job_lock("a") as hold:
            pass
        with psycopg.connect(tables) as conn:
            with pytest.raises(GuardRefused, match="'a' was lost: it was released"):
                guard(conn, hold)
            assert conn.info.transaction_status == TransactionStatus.IDLE
        lost = await c.job_lock("a").acquire()
    with psycopg.connect(tables) as conn, pytest.raises(GuardRefused, match="'a' was lost: the coordinator was closed"):
        guard(conn, lost)


async def test_a_guard_left_open(tables: str) -> None:
    """A zombie's open guard on one name of a dead session: that name is refused at once, others are taken at once,
    heartbeats go on; when it has ended, the name is taken too. Two guards at the same time do not mind each other."""
    async with AsyncCoordinator(tables) as c, keeping(tables) as store:
        first, second = await c.job_lock("a", ttl=LONG).acquire(), await c.job_lock("b", ttl=LONG).acquire()
        subjects = [owned.subject for owned in await ask(store, Own(first.session_id))]
        assert [subject.name for subject in subjects] == ["a", "b"]
        other = await start(store)
        with psycopg.connect(tables) as zombie, psycopg.connect(tables) as twin:
            guard(zombie, first)
            guard(twin, first)
            twin.rollback()
            assert await ask(store, Renew((first.session_id, other))) == {first.session_id: 0, other: 0}
            expire(tables, first.session_id)
            before = sent(store)
            assert await ask(store, Take(subject=subjects[0], session=other)) == Refused(retry_in=0.0)
            assert (await take(store, subjects[1], other)).token > second.token
            assert sent(store) - before == 2
            assert await ask(store, Renew((other,))) == {other: 0}
            zombie.execute("insert into mine values (1)")
            zombie.commit()
            with pytest.raises(GuardRefused):
                guard(zombie, second)
            zombie.rollback()
        assert (await take(store, subjects[0], other)).token > first.token
    assert written(tables) == 1


async def test_while_it_changes(tables: str) -> None:
    """While somebody is about to change it, the guard is refused at once: it never waits."""
    async with AsyncCoordinator(tables) as c:
        hold = await c.job_lock("a", ttl=LONG).acquire()
        with raw(tables) as rival, rival.transaction(force_rollback=True), psycopg.connect(tables) as conn:
            rival.execute("update pgconcert.entry set data = '1'")
            conn.execute("set local lock_timeout = 0")
            with pytest.raises(GuardRefused):
                guard(conn, hold)
            assert conn.execute("show lock_timeout").fetchone() == ("0",)
            conn.rollback()


async def test_every_hold_of_a_session(tables: str) -> None:
    """Leaderships and memberships guard as job locks do, and so do the holds of the blocking twin."""
    async with AsyncCoordinator(tables) as c:
        async with c.election("e").lead() as leadership, c.group("g").join(member_id="m") as membership:
            with psycopg.connect(tables) as conn:
                guard(conn, leadership)
                guard(conn, membership)
                conn.execute("insert into mine values (1)")

    def blocking() -> None:
        with Coordinator(tables) as c, c.job_lock("a") as hold, psycopg.connect(tables) as conn:
            guard(conn, hold)
            conn.execute("insert into mine values (2)")

    await asyncio.to_thread(blocking)
    assert written(tables) == 2


async def test_another_schema(server: Server) -> None:
    """Tables of another name are found, because the hold knows them; or others, if they are named."""
    odd = 'we "ird"; -- x\'y %s  $ z'
    with server.fresh_database() as url:
        async with AsyncCoordinator(url, schema=odd, migrate=True) as c, c.job_lock("a") as hold:
            with psycopg.connect(url) as conn:
                guard(conn, hold)
            with psycopg.connect(url) as conn:
                with pytest.raises(SchemaMissing, match='are missing or old in schema "pgconcert"'):
                    guard(conn, hold, schema="pgconcert")
                conn.rollback()


async def test_what_cannot_be_guarded(tables: str) -> None:
    """Autocommit, holds of connections, and strangers are refused with what to do."""
    async with AsyncCoordinator(tables) as c, c.job_lock("a") as hold, c.lock("a") as lock:
        with raw(tables) as conn:
            with pytest.raises(ConfigurationError, match="needs an open transaction, and this connection has none"):
                guard(conn, hold)
            with conn.transaction():
                guard(conn, hold)
            wrong: Any = lock
            with pytest.raises(ConfigurationError, match="Hold a job lock instead"):
                guard(conn, wrong)
        nothing: Any = object()
        with pytest.raises(ConfigurationError, match="knows connections of psycopg 3, asyncpg, SQLAlchemy and Django"):
            guard(nothing, hold)
        async with await psycopg.AsyncConnection.connect(tables, autocommit=True) as other:
            with pytest.raises(ConfigurationError, match="needs an open transaction"):
                await guard(other, hold)


async def test_no_rights(server: Server, tables: str, unique: str) -> None:
    """A role that may not read our tables is told which statements let it."""
    role = re.sub(r"\W", "_", unique)
    server.execute(f"create role {quoted(role)} login password 'x'")
    try:
        async with AsyncCoordinator(tables) as c, c.job_lock("a") as hold:
            with psycopg.connect(rewrite(server.over_tcp(tables), user=role, password="x")) as conn:
                with pytest.raises(ConfigurationError, match="grant usage on schema"):
                    guard(conn, hold)
                conn.rollback()
    finally:
        server.execute(f"drop role {quoted(role)}")
