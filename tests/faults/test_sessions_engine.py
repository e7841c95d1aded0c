"""The engine of sessions with a server: what heartbeats cost there, links that die under it, and how it ends.

Theory: a session lives by time, not by a connection, so a link that dies costs no hold; only silence does, and then the
holder is told while the server still has the session as alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgconcert import AsyncCoordinator, AsyncJobHold
from pgconcert.errors import SessionLost
from pgconcert.events import HeartbeatFailed, HeartbeatLate, LinkLost, NameGiveFailed
from pgconcert.testing import FaultProxy, eventually, eventually_async
from tests.faults.scenes import seen, session_of
from tests.postgres.jobscenes import expires, make_tables, row, until_marked, until_renewed
from tests.postgres.scenes import raw, until_idle
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]


@pytest.fixture
def tables(database: str) -> Iterator[str]:
    """The module's database, with our tables while the test runs."""
    make_tables(database)
    yield database
    with raw(database) as owner:
        until_idle(owner)
        owner.execute("drop schema pgconcert cascade")


def server_time(look: psycopg.Connection[Any]) -> float:
    found = look.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
    assert found is not None
    return float(found[0])


async def test_a_link_that_dies_costs_no_hold(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as c:
        lost = seen(c, LinkLost)
        hold = await c.job_lock(unique, ttl=60.0, interval=0.5).acquire()
        pid = session_of(c, "work")
        with raw(tables) as other:
            other.execute("select pg_terminate_backend(%s)", [pid])
        await eventually_async(lambda: any(event.role == "work" for event in lost), what="the link is lost")
        await until_renewed(tables, hold.session_id, 1.0)
        assert not hold.lost
        token = hold.token
        await hold.release()
        assert not hold.lost
        assert row(tables, unique)[:2] == (None, token)


async def test_a_renewal_that_was_carried_out_without_an_answer(
    server: Server, tables: str, proxy: FaultProxy, unique: str
) -> None:
    """The server has renewed it, nobody here knows: it is asked again on a fresh link, and nothing is lost."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(tables))) as c:
        failed = seen(c, HeartbeatFailed)
        hold = await c.job_lock(unique, ttl=60.0, interval=1.0).acquire()
        await until_renewed(tables, hold.session_id)
        proxy.pause("to_client")
        await until_renewed(tables, hold.session_id)
        (health,) = c.health().sessions
        assert health.trusted_for < 58.0
        await eventually_async(lambda: bool(failed), 20, what="it has waited long enough for the answer")
        low = c.health().sessions[0].trusted_for
        proxy.resume("to_client")
        await until_renewed(tables, hold.session_id, 1.0)
        await eventually_async(lambda: c.health().sessions[0].trusted_for > low, 20, what="it is trusted again")
        assert not hold.lost
        await hold.release()


async def test_in_silence_it_is_lost_before_others_may_have_it(
    server: Server, tables: str, proxy: FaultProxy, unique: str
) -> None:
    with raw(tables) as look:
        async with AsyncCoordinator(proxy.url(server.over_tcp(tables))) as far, AsyncCoordinator(tables) as near:
            over_at: list[float] = []
            trusted_at = 0.0

            async def hold_through_the_silence() -> None:
                nonlocal trusted_at
                async with far.job_lock(unique, ttl=5.0) as hold:
                    held.append(hold)
                    await until_marked(tables, unique)
                    proxy.pause()
                    try:
                        while True:
                            now = server_time(look)
                            if not hold.lost:
                                trusted_at = now
                            await asyncio.sleep(0.01)
                    finally:
                        over_at.append(expires(tables, hold.session_id))

            held: list[AsyncJobHold] = []
            holding = asyncio.create_task(hold_through_the_silence())
            await eventually_async(lambda: bool(held))
            waits = asyncio.create_task(near.job_lock(unique, ttl=60.0).acquire())
            with pytest.raises(SessionLost, match="no heartbeat of its session was answered"):
                await holding
            assert trusted_at < over_at[0]
            theirs = await waits
            assert theirs.token > held[0].token
            assert theirs.since >= over_at[0]
            await theirs.release()
        proxy.cut()
        proxy.resume()


async def test_who_releases_and_closes_at_once_has_woken_whoever_waits(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as near:
        patient = near.job_lock(unique, ttl=600.0)  # it would look again after minutes
        for _ in range(5):
            async with AsyncCoordinator(tables) as c:
                hold = await c.job_lock(unique, ttl=600.0).acquire()
                waits = asyncio.create_task(patient.acquire())
                await until_marked(tables, unique)
                await eventually_async(lambda: heard(near), what="it listens")
                await hold.release()
            await (await waits).release()


async def test_who_closes_while_it_holds_has_woken_whoever_waits(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as near:
        c = AsyncCoordinator(tables)
        await c.open()
        hold = await c.job_lock(unique, ttl=600.0, on_lost="report").acquire()
        waits = asyncio.create_task(near.job_lock(unique, ttl=600.0).acquire())
        await until_marked(tables, unique)
        await eventually_async(lambda: heard(near), what="it listens")
        await c.close()
        assert hold.reason == "the coordinator was closed"
        await (await waits).release()


def heard(c: AsyncCoordinator) -> bool:
    """Whether wake-ups reach it."""
    hearing = c.health().hearing
    return hearing is not None and hearing.proven


async def test_close_while_nothing_can_be_reached_ends_in_time_and_says_so(
    server: Server, tables: str, proxy: FaultProxy, unique: str
) -> None:
    c = AsyncCoordinator(proxy.url(server.over_tcp(tables)), network_timeout=2.0)
    await c.open()
    told = seen(c, NameGiveFailed)
    holds = [await c.job_lock(f"{unique}{number}", ttl=5.0, on_lost="report").acquire() for number in range(20)]
    proxy.pause()
    await c.close()
    assert all(hold.lost for hold in holds)
    assert [event.name for event in told] == [f"{unique}0 and 19 more"]
    proxy.cut()
    proxy.resume()
    async with AsyncCoordinator(tables) as near, near.job_lock(f"{unique}0", ttl=5.0) as hold:
        assert hold.token > holds[0].token


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_a_loop_that_is_blocked_delays_heartbeats_only_where_they_live(
    tables: str, unique: str, engine: str
) -> None:
    async with AsyncCoordinator(tables, engine="thread" if engine == "thread" else "loop", watchdog=True) as c:
        late = seen(c, HeartbeatLate)
        hold = await c.job_lock(unique, ttl=120.0, interval=1.0, on_lost="report").acquire()
        if engine == "thread":
            before = expires(tables, hold.session_id)
            eventually(lambda: expires(tables, hold.session_id) > before, 30, what="it beats on")  # the loop is blocked
        else:
            # the stack is looked at by another thread, which must have its turn while we sleep
            for _ in range(10):
                count = len(late)
                await until_renewed(tables, hold.session_id)
                before = expires(tables, hold.session_id)
                time.sleep(2.0)
                assert expires(tables, hold.session_id) == before
                await eventually_async(lambda: len(late) > count, what="the late heartbeat is told")  # noqa: B023
                if any("time.sleep(2.0)" in str(event.stack) for event in late):
                    break
            else:
                pytest.fail(f"no event says what blocked the loop: {late}")
        assert not hold.lost
        await hold.release()


async def test_no_listening_where_nobody_waits(tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as a, AsyncCoordinator(tables) as b:
        hold = await a.job_lock(unique).acquire()
        assert session_of(a, "listen") is None
        waits = asyncio.create_task(b.job_lock(unique).acquire())
        await eventually_async(lambda: heard(b), what="it listens while it waits")
        assert session_of(a, "listen") is None
        waits.cancel()
        await asyncio.wait([waits])
        await hold.release()
