"""A job that goes on although its lock is lost: what it writes late is refused.

By the guard, on the server, whether or not the holder knows of its loss; and by whoever compares tokens.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from pgconcert import AsyncCoordinator, transaction
from pgconcert.blocking import Coordinator
from pgconcert.blocking.jobs import JobHold
from pgconcert.errors import GuardRefused, SessionLost
from pgconcert.jobs import AsyncJobHold
from tests.postgres.jobscenes import make_tables
from tests.postgres.scenes import raw

QUICK: Any = {"ttl": 60.0, "interval": 0.5}
"""Learns soon of what others want, and is not lost when the machine is late."""
STILL = 600.0


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables, and one that a job writes."""
    make_tables(database)
    with raw(database) as owner:
        owner.execute("create table written (name text primary key, token bigint not null, by text not null)")
    return database


def written(url: str, name: str) -> list[str]:
    """Who has written."""
    with raw(url) as look:
        return [by for (by,) in look.execute("select by from written where name = %s", [name])]


async def write(connection: psycopg.AsyncConnection[Any], hold: AsyncJobHold, by: str) -> None:
    """What a careful job does."""
    async with connection.transaction():
        await transaction.guard(connection, hold)
        await connection.execute(
            "insert into written values (%s, %s, %s) on conflict (name) do update set by = excluded.by",
            [hold.key, hold.token, by],
        )


async def test_a_job_that_ignores_its_cancel_is_reported_and_cannot_write(tables: str, unique: str) -> None:
    async with (
        AsyncCoordinator(tables) as c,
        AsyncCoordinator(tables) as other,
        await psycopg.AsyncConnection.connect(tables, autocommit=True) as connection,
    ):
        refused = False

        async def stubborn(hold: AsyncJobHold) -> None:
            nonlocal refused
            await write(connection, hold, "in time")
            await other.job_lock(unique).revoke()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                async with other.job_lock(unique) as theirs:
                    assert theirs.token > hold.token
                    try:
                        await write(connection, hold, "too late")
                    except GuardRefused:
                        refused = True
                    await write(connection, theirs, "the next")

        with pytest.raises(SessionLost):
            await c.job_lock(unique, **QUICK).run(stubborn)
        assert refused
        assert written(tables, unique) == ["the next"]


async def test_the_server_refuses_before_the_holder_knows(tables: str, unique: str) -> None:
    async with (
        AsyncCoordinator(tables) as c,
        AsyncCoordinator(tables) as other,
        await psycopg.AsyncConnection.connect(tables, autocommit=True) as connection,
    ):
        lock = c.job_lock(unique, ttl=STILL)
        hold = await lock.acquire()
        await write(connection, hold, "in time")
        await other.job_lock(unique).revoke()
        theirs = await other.job_lock(unique).acquire()
        assert not hold.lost
        with pytest.raises(GuardRefused):
            await write(connection, hold, "too late")
        await theirs.release()
        with pytest.raises(GuardRefused):
            await write(connection, hold, "too late")
        assert written(tables, unique) == ["in time"]
        assert lock.state == "held"
        with pytest.raises(SessionLost, match="taken it away"):
            await hold.release()
        assert lock.state == "lost"


def test_a_thread_that_does_not_ask_cannot_write(tables: str, unique: str) -> None:
    with (
        Coordinator(tables) as c,
        Coordinator(tables) as other,
        psycopg.connect(tables) as connection,
    ):

        def job(hold: JobHold) -> None:
            with connection.transaction():
                transaction.guard(connection, hold)
            other.job_lock(unique).revoke()
            with pytest.raises(GuardRefused), connection.transaction():
                transaction.guard(connection, hold)
            hold.wait_lost()
            with pytest.raises(GuardRefused), connection.transaction():
                transaction.guard(connection, hold)

        with pytest.raises(SessionLost):
            c.job_lock(unique, **QUICK).run(job)


async def test_whoever_compares_tokens_needs_no_guard(tables: str, unique: str) -> None:
    """A store of another kind keeps the largest token that it has seen."""
    last = 0

    def accept(token: int) -> bool:
        nonlocal last
        if token < last:
            return False
        last = token
        return True

    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        hold = await c.job_lock(unique, ttl=STILL, on_lost="report").acquire()
        assert accept(hold.token)
        await other.job_lock(unique).revoke()
        async with other.job_lock(unique) as theirs:
            assert accept(hold.token)
            assert accept(theirs.token)
            assert not accept(hold.token)
            assert accept(theirs.token)
        with pytest.raises(SessionLost):
            await hold.release()
