"""Behind PgBouncer: in session mode a lock is a lock; in transaction mode none is given, and others notice nothing.

Theory: a transaction pooler gives the next transaction to any server session, so a lock taken there would belong to
somebody else a moment later. That must be found out by statements that leave no trace on sessions that others use next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import pytest

from pgconcert import AsyncCoordinator, LockLost, PoolerRefused
from pgconcert.events import LinkOpened
from pgconcert.testing import eventually_async, sessions
from tests.faults.scenes import holders, seen, session_of, until_free, waiter
from tests.poolers import PgBouncer
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.needs("pgbouncer")]

Pooler = Callable[..., PgBouncer]


async def test_session_mode_carries_locks(database: str, pgbouncer: Pooler, unique: str) -> None:
    pooler = pgbouncer("session", pool_size=12)
    async with AsyncCoordinator(pooler.url) as one, AsyncCoordinator(pooler.url) as two:
        opened = seen(one, LinkOpened)
        async with one.lock(unique) as hold:
            assert [event.through for event in opened] == ["session pooler"]
            assert len(holders(database, unique)) == 1
            assert await two.lock(unique).try_acquire() is None
            async with waiter(two, unique, database) as waiting:
                await hold.release()
                assert not (await waiting).lost
    await until_free(database)


async def test_session_mode_tells_of_a_loss(server: Server, database: str, pgbouncer: Pooler, unique: str) -> None:
    pooler = pgbouncer("session", pool_size=12)
    async with AsyncCoordinator(pooler.url) as one, AsyncCoordinator(pooler.url) as two:

        async def lose() -> None:
            async with one.lock(unique) as hold, waiter(two, unique, database) as waiting:
                (backend,) = holders(database, unique)
                assert server.kill_backend(backend)
                try:
                    await asyncio.sleep(30)
                finally:
                    assert hold.lost
                    await asyncio.wait([waiting])
                    assert not waiting.result().lost

        with pytest.raises(LockLost):
            await lose()
        async with one.lock(unique) as again:
            assert not again.lost
    await until_free(database)


async def test_session_mode_survives_the_end_of_the_pooler(database: str, pgbouncer: Pooler, unique: str) -> None:
    pooler = pgbouncer("session", pool_size=12)
    async with AsyncCoordinator(pooler.url) as c:
        hold = await c.lock(unique).acquire()
        await asyncio.to_thread(pooler.close)
        assert await hold.wait_lost()
        async with AsyncCoordinator(database) as near, near.lock(unique):
            pass


@pytest.mark.parametrize("pool_size", [1, 4])
async def test_transaction_mode_is_refused(database: str, pgbouncer: Pooler, unique: str, pool_size: int) -> None:
    pooler = pgbouncer("transaction", pool_size=pool_size)
    async with AsyncCoordinator(pooler.url) as c:
        with pytest.raises(PoolerRefused, match="direct_url"):
            await c.lock(unique).acquire()
        with pytest.raises(PoolerRefused, match="direct_url"):
            await c.lock(unique).try_acquire()
    await until_free(database)


async def test_direct_url_leads_around(database: str, pgbouncer: Pooler, unique: str) -> None:
    pooler = pgbouncer("transaction")
    async with (
        AsyncCoordinator(pooler.url, direct_url=database) as one,
        AsyncCoordinator(pooler.url, direct_url=database) as two,
    ):
        opened = seen(one, LinkOpened)
        hold = await one.lock(unique).acquire()
        async with waiter(two, unique, database) as waiting:
            await hold.release()  # wakes the other by a notification through the pooler
            assert not (await waiting).lost
            assert holders(database, unique) == [session_of(two)]
        # who waited may have looked again before the notification was sent
        through = {"lock": "direct", "publish": "transaction pooler"}
        await eventually_async(lambda: {event.role: event.through for event in opened} == through)
    await until_free(database)


async def test_settings_of_other_clients_stay_as_they_are(database: str, pgbouncer: Pooler, unique: str) -> None:
    """Every server session of the pool is looked at, before and after a coordinator has probed and published there."""
    pooler = pgbouncer("transaction", pool_size=3)

    def settings_of_all() -> dict[int, list[tuple[str, str]]]:
        found: dict[int, list[tuple[str, str]]] = {}
        clients = [psycopg.connect(pooler.url, prepare_threshold=None) for _ in range(3)]
        try:
            for client in clients:  # each stays in its transaction, so each has a session of its own
                rows = client.execute(
                    "select name, setting from pg_settings where name <> 'application_name' "
                    "union all select 'prepared', count(*)::text from pg_prepared_statements "
                    "union all select 'listening', count(*)::text from pg_listening_channels() order by 1"
                ).fetchall()
                found[client.info.backend_pid] = rows
        finally:
            for client in clients:
                client.close()
        return found

    def only_settings() -> set[tuple[tuple[str, str], ...]]:
        return {tuple(rows) for rows in settings_of_all().values()}

    before = await asyncio.to_thread(only_settings)
    behind = {session.pid for session in sessions(database)}
    async with (
        AsyncCoordinator(pooler.url) as refused,
        AsyncCoordinator(pooler.url, direct_url=database) as one,
        AsyncCoordinator(database) as two,
    ):
        with pytest.raises(PoolerRefused):
            await refused.lock(unique).acquire()
        hold = await one.lock(unique).acquire()
        async with waiter(two, unique, database) as waiting:
            await hold.release()
            await waiting
        # who waited may have looked again before the notification was sent
        await eventually_async(
            lambda: {link.role: link.through for link in one.health().links}["publish"] == "transaction pooler"
        )
    assert await asyncio.to_thread(only_settings) == before
    assert behind <= {session.pid for session in sessions(database)}, "the sessions looked at are the same"
