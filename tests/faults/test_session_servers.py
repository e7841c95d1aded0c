"""What hangs on a session when the server crashes, is replaced by its standby, or by another one under a living link.

The promises, one by one:

* a crash of the server, or of one of its processes, costs nobody anything who renews in time afterwards;
* after a promotion whoever was alive has one ttl of grace, though the new server knows only of old heartbeats: whoever
  comes back in it keeps what the new server knows of, and is told of the rest; whoever does not is replaced a ttl after
  the new server was first seen, when it has stopped trusting itself;
* tokens of the new server are above all of the old one, also those that it never heard of, and a guard that the old
  holder asks there is refused;
* through a pooler, whose server changes while its clients stay connected, all of that holds too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator, transaction
from pgconcert.errors import GuardRefused, SessionLost
from pgconcert.events import LinkLost
from pgconcert.jobs import AsyncJobHold
from pgconcert.store import COUNTER_BITS
from pgconcert.testing import FaultProxy, eventually, eventually_async, rewrite
from tests.faults.scenes import down, seen
from tests.needs import need
from tests.poolers import PgBouncer
from tests.postgres.jobscenes import expires, row, until_marked, until_renewed
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Cluster, OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

TTL = 12.0
EPOCH = "select epoch, extract(epoch from seen_at)::float8 from pgconcert.epoch"


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


def crash(url: str) -> None:
    """Kill one process of the server: all others are ended, and it recovers."""
    before = writer(url)
    assert before
    with raw(url) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            victim.execute("select 1")
    eventually(lambda: writer(url) not in ([], before), 30.0, what="the server has recovered")


def writer(url: str) -> list[tuple[object, ...]]:
    """A process that the server has while it lives, and replaces when it recovers; nothing while it lets nobody in."""
    try:
        return rows(url, "select pid from pg_stat_activity where backend_type = 'background writer'")
    except psycopg.OperationalError:
        return []


async def guarded(url: str, hold: AsyncJobHold) -> None:
    """A transaction that may commit only while this is held."""
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        connection.transaction(),
    ):
        await transaction.guard(connection, hold)


@pytest.mark.long
async def test_an_outage_that_is_shorter_than_the_trust_loses_nothing(
    own_server: OwnServer, tables: str, unique: str
) -> None:
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        async with c.job_lock(unique, ttl=60, interval=0.5) as hold:
            waits = asyncio.create_task(other.job_lock(unique, ttl=60, interval=0.5, check=0.5).acquire())
            await until_marked(tables, unique)
            before = expires(tables, hold.session_id)
            async with down(own_server, "immediate"):
                await asyncio.sleep(2)  # the outage itself
            await eventually_async(
                lambda: expires(tables, hold.session_id) > before, 25.0, what="its heart beats again"
            )
            assert not hold.lost
            assert not waits.done()
            found = row(tables, unique)
            assert (found.session, found.token) == (hold.session_id, hold.token)
        mine = await waits
        assert mine.token > hold.token
        await mine.release()


@pytest.mark.parametrize("commits", ["on", "off"])
async def test_a_crash_of_one_process_of_the_server_loses_nothing(
    own_server: OwnServer, tables: str, unique: str, commits: str
) -> None:
    name = str(conninfo_to_dict(tables)["dbname"])
    own_server.execute(f"alter database {name} set synchronous_commit = {commits}")
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        async with c.job_lock(unique, ttl=60, interval=0.5) as hold:
            waits = asyncio.create_task(other.job_lock(unique, ttl=60, interval=0.5, check=0.5).acquire())
            await until_marked(tables, unique)
            before = expires(tables, hold.session_id)
            await asyncio.to_thread(crash, tables)
            assert expires(tables, hold.session_id) >= before
            await until_renewed(tables, hold.session_id)
            assert not hold.lost
            assert not waits.done()
            found = row(tables, unique)
            assert (found.session, found.token) == (hold.session_id, hold.token)
            await guarded(tables, hold)
        mine = await waits
        assert mine.token > hold.token
        await mine.release()


def cut_off(standby: Cluster) -> None:
    """What the primary writes from now on does not arrive, and is not there after a promotion."""
    standby.catch_up()
    standby.execute("alter system set primary_conninfo = ''")
    standby.execute("select pg_reload_conf()")
    eventually(
        lambda: standby.execute("select count(*) from pg_stat_wal_receiver") == [(0,)], what="the standby is cut off"
    )


def promoted_url(standby: Cluster, url: str) -> str:
    """The same database on the standby."""
    return rewrite(standby.over_tcp(url), host="127.0.0.1", hostaddr=None, port=standby.port)


def both(standby: Cluster, server: Server, url: str) -> str:
    """An address that names both."""
    port = conninfo_to_dict(server.over_tcp(url))["port"]
    return rewrite(url, host="127.0.0.1,127.0.0.1", hostaddr=None, port=f"{standby.port},{port}")


@pytest.mark.long
async def test_a_holder_that_comes_back_in_time(
    own_server: OwnServer, tables: str, standby: Cluster, unique: str
) -> None:
    """It keeps what was replicated and is told of what was not, though its time is long over in the copy."""
    there = promoted_url(standby, tables)
    async with AsyncCoordinator(both(standby, own_server, tables)) as c, AsyncCoordinator(there) as other:
        kept = await c.job_lock(unique, ttl=TTL, interval=0.5).acquire()
        leads = await c.election(unique, ttl=TTL, interval=0.5).lead().acquire()
        member = await c.group(unique, ttl=TTL, interval=0.5).join(member_id="one").acquire()
        busy = await c.job_lock(f"{unique}:busy", ttl=TTL, interval=0.5).acquire()
        await busy.release()
        await asyncio.to_thread(cut_off, standby)
        # the standby hears neither of these, nor of any heartbeat
        late = await c.job_lock(f"{unique}:late", ttl=TTL, interval=0.5).acquire()
        drawn = 0
        for _ in range(10):
            async with c.job_lock(f"{unique}:busy", ttl=TTL, interval=0.5) as busy:
                assert busy.token > drawn
                drawn = busy.token
        await eventually_async(
            lambda: rows(there, "select every(expires < clock_timestamp()) from pgconcert.session") == [(True,)],
            TTL + 20,
            what="the time of the sessions is over in the copy",
        )
        assert not kept.lost
        async with down(own_server, "immediate"):
            await asyncio.to_thread(standby.promote)
            # nobody can have it, neither before its holder came back nor after it
            for _ in range(3):
                assert await other.job_lock(unique, ttl=TTL).try_acquire() is None
            await until_renewed(there, kept.session_id)
            for _ in range(3):
                assert await other.job_lock(unique, ttl=TTL).try_acquire() is None
            found = row(there, unique)
            assert (found.session, found.token) == (kept.session_id, kept.token)
            await guarded(there, kept)
            assert "taken away" in await late.wait_lost()
            with pytest.raises(GuardRefused):
                await guarded(there, late)
            assert [one.lost for one in (kept, leads, member)] == [False] * 3
            leader = await other.election(unique).leader()
            assert leader is not None
            assert (leader.token, leader.identity) == (leads.token, c.identity)
            assert await other.election(unique, ttl=TTL).lead().try_acquire() is None
            assert [one.member_id for one in await other.group(unique).members()] == ["one"]
            async with other.job_lock(f"{unique}:late", ttl=TTL) as mine:
                assert mine.token > late.token
            async with other.job_lock(f"{unique}:busy", ttl=TTL) as mine:
                assert mine.token > drawn
            [(epoch, _)] = rows(there, EPOCH)
            assert epoch == mine.token >> COUNTER_BITS == (drawn >> COUNTER_BITS) + 1
            await kept.release()
            await leads.release()
            async with other.job_lock(unique, ttl=TTL) as mine:
                assert mine.token > kept.token
            async with other.election(unique, ttl=TTL).lead() as next_one:
                assert next_one.token > leads.token
            await member.leave()
            assert await other.group(unique).members() == ()
            await c.close()


@pytest.mark.long
async def test_a_holder_that_does_not_come_back(
    own_server: OwnServer, tables: str, standby: Cluster, unique: str
) -> None:
    """It has stopped trusting itself when somebody else gets it: a ttl after the new server was first seen."""
    there = promoted_url(standby, tables)
    ttl = 3.0
    async with AsyncCoordinator(own_server.over_tcp(tables)) as c, AsyncCoordinator(there) as other:
        hold = await c.job_lock(unique, ttl=ttl).acquire()
        await asyncio.to_thread(cut_off, standby)
        await eventually_async(
            lambda: rows(there, "select every(expires < clock_timestamp()) from pgconcert.session") == [(True,)],
            20.0,
            what="the time of the session is over in the copy",
        )
        assert not hold.lost
        async with down(own_server, "immediate"):
            await asyncio.to_thread(standby.promote)
            mine = await other.job_lock(unique, ttl=ttl).acquire()
            assert hold.lost
            [(_, first_seen)] = rows(there, EPOCH)
            assert mine.since >= first_seen + ttl
            assert mine.token > hold.token
            await hold.release()
            with pytest.raises(SessionLost):
                hold.check()
            assert not mine.lost
            await mine.release()


@pytest.mark.long
@pytest.mark.needs("pgbouncer")
async def test_the_server_behind_a_pooler_changes(
    own_server: OwnServer,
    tables: str,
    standby: Cluster,
    unique: str,
    request: pytest.FixtureRequest,
) -> None:
    """The clients of the pooler stay connected and notice nothing; what the statements find out is enough."""
    with (
        FaultProxy.to(own_server.tcp_url) as switch,
        closing(
            PgBouncer(
                need(request.config, "pgbouncer"),
                Switched(own_server, switch),
                tables,
                "transaction",
                server_login_retry="0.1",
            )
        ) as pooler,
    ):
        there = promoted_url(standby, tables)
        async with AsyncCoordinator(pooler.url) as c, AsyncCoordinator(pooler.url) as other:
            kept = await c.job_lock(unique, ttl=TTL, interval=3).acquire()
            await asyncio.to_thread(cut_off, standby)
            late = await c.job_lock(f"{unique}:late", ttl=TTL, interval=3).acquire()
            refused = await other.job_lock(unique, ttl=TTL).try_acquire()
            assert refused is None
            await asyncio.to_thread(standby.promote)
            lost = seen(c, LinkLost)
            links = [link.server_pid for link in c.health().links]
            switch.target_host, switch.target_port = "127.0.0.1", standby.port
            switch.cut()
            await until_renewed(there, kept.session_id)
            assert "taken away" in await late.wait_lost()
            assert not kept.lost
            assert await other.job_lock(unique, ttl=TTL).try_acquire() is None
            found = row(there, unique)
            assert (found.session, found.token) == (kept.session_id, kept.token)
            async with other.job_lock(f"{unique}:late", ttl=TTL) as mine:
                assert mine.token > late.token
                assert mine.token >> COUNTER_BITS == (late.token >> COUNTER_BITS) + 1
            await guarded(there, kept)
            await kept.release()
            assert [event.role for event in lost if event.role == "work"] == []
            assert len(links) == len(c.health().links)


class Switched(Server):
    """A server whose clients are led through a proxy."""

    def __init__(self, server: Server, proxy: FaultProxy) -> None:
        super().__init__(server.name, server.url)
        self._through = server
        self._proxy = proxy

    def over_tcp(self, url: str) -> str:
        return self._proxy.url(self._through.over_tcp(url))
