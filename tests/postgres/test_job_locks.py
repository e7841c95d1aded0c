"""Job locks on a server: what stands in the tables, what is sent, and what a job may do to its pool.

What is said of them in general is in the conformance suite (`jobs`, `running`). Theory: statements are counted, time is
not; a test looks at the rows with a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg.conninfo import make_conninfo

from pgconcert import AsyncCoordinator, SchemaMissing
from pgconcert.blocking import Coordinator
from pgconcert.events import JobFailed
from pgconcert.jobs import AsyncJobHold
from pgconcert.testing import eventually, eventually_async
from tests.poolers import PgBouncer
from tests.postgres.jobscenes import beats, listens, make_tables, row, until_marked, until_renewed
from tests.postgres.scenes import both_engines, seen, statements
from tests.servers import Server

QUICK: Any = {"ttl": 60.0, "interval": 0.25}
"""Renewed often, and not lost when the machine is late."""
STILL = 600.0
"""A ttl whose heartbeat does not beat within a test that counts statements."""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


@both_engines
async def test_its_row_hangs_on_a_session_while_it_is_held(tables: str, unique: str, engine: Any) -> None:
    async with AsyncCoordinator(tables, engine=engine) as c:
        tokens = []
        for _ in range(3):
            async with c.job_lock(unique) as hold:
                found = row(tables, unique)
                assert (found.session, found.token) == (hold.session_id, hold.token)
                assert found.since == pytest.approx(hold.since, abs=1e-3)
                tokens.append(hold.token)
            found = row(tables, unique)
            assert found.session is None, "when the block has ended the server has freed it"
        assert tokens == sorted(set(tokens))


async def test_run_has_released_when_it_returns(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as c:

        async def job(hold: AsyncJobHold) -> int:
            return hold.token

        for _ in range(10):
            token = await c.job_lock(unique).run(job)
            found = row(tables, unique)
            assert (found.session, found.token) == (None, token)


def test_a_blocking_run_has_released_when_it_returns(tables: str, unique: str) -> None:
    with Coordinator(tables) as c:
        for _ in range(10):
            token = c.job_lock(unique).run(lambda hold: hold.token)
            found = row(tables, unique)
            assert (found.session, found.token) == (None, token)


async def test_what_one_lock_costs(tables: str, unique: str) -> None:
    """One statement to take it, one to give it back and one to see who waits; one for a try in vain."""
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        for coordinator in (c, other):
            async with coordinator.job_lock(f"{unique} before", ttl=STILL):
                pass
        before = statements(c, "work")
        async with c.job_lock(unique, ttl=STILL):
            assert statements(c, "work") - before <= 1
            in_vain = statements(other, "work")
            assert await other.job_lock(unique, ttl=STILL).try_acquire() is None
            assert statements(other, "work") - in_vain <= 1
        assert statements(c, "work") - before <= 3


async def test_one_heartbeat_renews_them_all(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as c:
        async with c.job_lock(unique, **QUICK) as first:
            holds = await asyncio.gather(*(c.job_lock(f"{unique} {n}", **QUICK).acquire() for n in range(200)))
            sent, due = await beats(c, tables, first.session_id, QUICK["interval"])
            assert 1 <= sent <= due + 2
            assert {hold.session_id for hold in holds} == {first.session_id}
            assert not any(hold.lost for hold in holds)
        await asyncio.gather(*(hold.release() for hold in holds))


async def test_many_waiters_cost_no_more_than_one(tables: str, unique: str) -> None:
    """A hand-over to a process with many waiters: three statements there, however many they are."""
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        hold = await c.job_lock(unique, ttl=STILL).acquire()
        lock = other.job_lock(unique, ttl=STILL)
        waiting = [asyncio.create_task(lock.acquire()) for _ in range(100)]
        await until_marked(tables, unique)
        await eventually_async(lambda: listens(other))
        for n in range(3):
            async with other.job_lock(f"{unique} fence {n}", ttl=STILL):
                pass
        before = statements(other, "work")
        await hold.release()
        first, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert statements(other, "work") - before <= 3
        (mine,) = first
        assert mine.result().token > hold.token
        await lock.stop()
        await asyncio.gather(*waiting, return_exceptions=True)
        await other.close()


async def test_what_is_missing_is_said_with_the_command(server: Server) -> None:
    async def job(hold: AsyncJobHold) -> None:
        raise AssertionError("it ran")

    with server.fresh_database() as url:
        async with AsyncCoordinator(url) as c:
            lock = c.job_lock("job")
            asked: list[Callable[[], Any]] = [
                lock.acquire,
                lock.try_acquire,
                lock.holder,
                lock.revoke,
                lambda: lock.run(job),
                lambda: c.run_in_job_lock("job", job),
            ]
            for ask in asked:
                with pytest.raises(SchemaMissing, match="pgconcert schema apply"):
                    await ask()


async def test_a_job_may_exhaust_its_pool(tables: str, unique: str) -> None:
    """Heartbeats have a connection of their own."""
    async with (
        AsyncCoordinator(tables) as c,
        psycopg_pool.AsyncConnectionPool(tables, min_size=1, max_size=1, open=False) as pool,
    ):

        async def job(hold: AsyncJobHold) -> bool:
            async with pool.connection():
                for _ in range(4):
                    await until_renewed(tables, hold.session_id)
            return hold.lost

        assert await c.job_lock(unique, **QUICK).run(job) is False


async def test_a_job_may_exhaust_the_connections_of_its_role(tables: str, unique: str) -> None:
    connections: list[psycopg.AsyncConnection[Any]] = []
    role = f"limited_{unique[-12:]}"
    async with await psycopg.AsyncConnection.connect(tables, autocommit=True) as owner:
        for right in (
            f"create role {role} login connection limit 4",
            f"grant usage on schema pgconcert to {role}",
            f"grant all on all tables in schema pgconcert to {role}",
            f"grant all on all sequences in schema pgconcert to {role}",
        ):
            await owner.execute(right.encode())
        try:
            limited = make_conninfo(tables, user=role)
            async with AsyncCoordinator(limited) as c:

                async def job(hold: AsyncJobHold) -> bool:
                    with contextlib.suppress(psycopg.OperationalError):
                        while True:
                            connections.append(await psycopg.AsyncConnection.connect(limited))
                    for _ in range(4):
                        await until_renewed(tables, hold.session_id)
                    return hold.lost

                assert await c.job_lock(unique, **QUICK).run(job) is False
        finally:
            for connection in connections:
                await connection.close()
            await owner.execute(f"drop owned by {role}".encode())
            await owner.execute(f"drop role {role}".encode())


async def test_a_job_that_ends_at_once_pauses_and_is_never_kept_waiting(tables: str, unique: str) -> None:
    """Five runs and their pauses, with a `check` that none of them may ever wait for; and few statements."""
    async with AsyncCoordinator(tables) as c:
        failures = seen(c, JobFailed)
        runs = 0

        async def job(hold: AsyncJobHold) -> None:
            nonlocal runs
            runs += 1
            if runs % 2:
                raise ValueError(runs)

        async with c.job_lock(f"{unique} before", ttl=STILL):
            before = statements(c, "work")
        keeping = asyncio.create_task(c.run_in_job_lock(unique, job, ttl=STILL, check=STILL / 2))
        await eventually_async(lambda: runs >= 5, what="it has run five times")
        keeping.cancel()
        await asyncio.wait([keeping])
        assert statements(c, "work") - before <= 3 * runs + 2
        assert [failure.error.args for failure in failures] == [(1,), (3,), (5,)][: len(failures)]
        assert all(failure.retry_in <= 0.1 * 2 ** (2 * n) * 1.25 for n, failure in enumerate(failures))


async def test_others_get_their_turn(tables: str, unique: str) -> None:
    """Three processes keep a job running that returns at once: none starves."""
    turns = [0, 0, 0]

    async def keep(number: int) -> None:
        async def job(hold: AsyncJobHold) -> None:
            turns[number] += 1

        async with AsyncCoordinator(tables) as c:
            await c.run_in_job_lock(unique, job, ttl=STILL)

    keeping = [asyncio.create_task(keep(number)) for number in range(3)]
    await eventually_async(lambda: min(turns) >= 2, 60.0, what="each has had two turns")
    for keeper in keeping:
        keeper.cancel()
    await asyncio.wait(keeping)


async def test_through_a_transaction_pooler(tables: str, unique: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """No connection is ours there: it is renewed again and again, handed over by looking, and heartbeats go on."""
    pooler = pgbouncer("transaction", pool_size=2)
    async with AsyncCoordinator(pooler.url) as c, AsyncCoordinator(pooler.url) as other:
        hold = await c.job_lock(unique, **QUICK).acquire()
        waits = asyncio.create_task(other.job_lock(unique, **QUICK, check=0.25).acquire())
        await until_marked(tables, unique)
        for _ in range(4):
            await until_renewed(tables, hold.session_id)
        assert not hold.lost
        assert not waits.done()
        await hold.release()
        taken = await waits
        assert taken.token > hold.token
        await taken.release()


def test_threads_share_one_session(tables: str, unique: str) -> None:
    with Coordinator(tables) as c:
        holds = [c.job_lock(f"{unique} {n}").acquire() for n in range(5)]
        assert len({hold.session_id for hold in holds}) == 1
        for hold in holds:
            hold.release()
        eventually(lambda: c.job_lock(unique).holder() is None)
