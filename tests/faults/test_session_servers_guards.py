"""A guarded transaction that never ends: what it holds up, and what it does not.

Theory. A guard locks the row of one name and nothing else. So while a process stands still with its guard open, that
name stays with it, though its session is over; all else that hung on the session is taken over in time, everybody's
heart beats on, and whoever looks sees everything. When the transaction ends, in whatever way, the name is free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import Unavailable
from pgconcert.testing import eventually_async
from tests.faults.test_job_locks import said, stop
from tests.postgres.jobscenes import make_tables, row, until_marked, until_renewed
from tests.postgres.scenes import raw, statements
from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

TTL = 1.0
STILL = 60.0

ZOMBIE = """
import asyncio, sys
import psycopg
from pgconcert import AsyncCoordinator, transaction
from pgconcert.errors import GuardRefused

async def main():
    url, name, ttl = sys.argv[1], sys.argv[2], float(sys.argv[3])
    async with AsyncCoordinator(url) as c:
        with psycopg.connect(url, application_name="zombie") as connection:
            while True:
                guarded = await c.job_lock(name, ttl=ttl).acquire()
                other = await c.job_lock(name + ":other", ttl=ttl).acquire()
                try:
                    transaction.guard(connection, guarded)
                    if other.session_id == guarded.session_id:
                        break
                except GuardRefused:
                    pass  # it was so slow that its session is over
                connection.rollback()
                await guarded.release()
                await other.release()
            connection.execute("insert into written values (%s, %s)", [name, guarded.token])
            print("guards", guarded.token, other.token, guarded.session_id, flush=True)
            sys.stdin.readline()
        print("written", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables, and one that holders write."""
    make_tables(database)
    with raw(database) as owner:
        owner.execute("create table written (name text, token bigint)")
    return database


@pytest.mark.parametrize(
    "end",
    [
        "commits",
        pytest.param("is killed", marks=pytest.mark.long),
        pytest.param("is ended by the server", marks=pytest.mark.long),
    ],
)
async def test_a_guard_that_is_left_open(tables: str, worker: Callable[..., Worker], unique: str, end: str) -> None:
    zombie = worker(ZOMBIE, tables, unique, str(TTL))
    token, other_token, session = await said(zombie, "guards")
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as stranger:
        bystander = await c.job_lock(f"{unique}:bystander", ttl=STILL, interval=0.25).acquire()
        waits = asyncio.create_task(c.job_lock(unique, ttl=STILL, check=0.4).acquire())
        await until_marked(tables, unique)
        await stop(zombie)
        # the other name of the same session is taken over, and that ends the session
        async with stranger.job_lock(f"{unique}:other", ttl=STILL) as mine:
            assert mine.token > int(other_token)
            assert not waits.done()
            # the guarded name stays where it is, whoever asks for it, and however
            assert await stranger.job_lock(unique, ttl=STILL).try_acquire() is None
            with pytest.raises(TimeoutError):
                await stranger.job_lock(unique, ttl=STILL).acquire(timeout=0.3)
            found = row(tables, unique)
            assert (found.session, found.token) == (int(session), int(token))
            # who looks and who renews is not held up
            assert await stranger.job_lock(unique).holder() is None
            assert int(session) not in {one.id for one in await stranger.sessions()}
            before, began = statements(c, "work"), time.monotonic()
            for _ in range(3):
                await until_renewed(tables, bystander.session_id)
            # and who waits for it does not go round and round: beats of two sessions, and a try now and then
            assert statements(c, "work") - before < 20 + 30 * (time.monotonic() - began)
            assert not waits.done()
            assert not mine.lost
        if end == "is ended by the server":
            with raw(tables) as owner:
                owner.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'zombie'"
                )
        elif end == "commits":
            zombie.send("commit")
            zombie.cont()
            await said(zombie, "written")
        else:
            zombie.kill()
        next_one = await waits
        assert next_one.token > int(token)
        with raw(tables) as look:
            written = look.execute("select token from written where name = %s", [unique]).fetchall()
        assert written == ([(int(token),)] if end == "commits" else [])
        assert not bystander.lost
        await next_one.release()
        await bystander.release()


async def test_a_guard_of_a_living_holder_holds_up_its_revocation_and_no_more(tables: str, unique: str) -> None:
    """Who wants to take it away is told that it cannot be now; the holder's heart beats on; then it is taken away."""
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        hold = await c.job_lock(unique, ttl=STILL, interval=0.3).acquire()
        with raw(tables) as connection, connection.transaction():
            connection.execute("select from pgconcert.entry where name = %s for share", [unique])
            with pytest.raises(Unavailable, match="locked by others"):
                await other.job_lock(unique).revoke()
            await until_renewed(tables, hold.session_id)
            assert not hold.lost
        assert await other.job_lock(unique).revoke()
        assert "taken away" in await hold.wait_lost()
        await eventually_async(lambda: row(tables, unique).session is None)
