"""Tokens grow, and what was answered is there, whatever becomes of the server and of its data.

Theory. A token is worth something only if it grows for ever, so each of these tests draws some, does to the server what
may make it forget, and draws again. The server is one of the test's own, whose flushes come so late that a commit which
did not wait for its own is lost in a crash (``control`` says so of a table of others).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Final

import psycopg
import pytest

from pgconcert.store import COUNTER_BITS, EndSession, Give, Own, Owned, Refused, Renew, Revoke, Take
from pgconcert.testing import eventually
from tests.needs import need
from tests.poolers import PgBouncer
from tests.postgres.scenes import raw
from tests.postgres.session_clusters import (
    LATE_FLUSH,
    OwnCluster,
    dumped,
    own_cluster,
    programs_of,
    restored,
    with_tables,
)
from tests.postgres.session_scenes import ask, expire, keeping, named, rows, start, take
from tests.servers import Server

pytestmark = [pytest.mark.long, pytest.mark.timeout(120)]

EPOCH: Final = "select epoch, base from pgconcert.epoch"
LIVES: Final = "select id, extract(epoch from expires)::float8 from pgconcert.session"
CONTROL: Final = "select coalesce(max(n), 0) from control"


def crash(cluster: OwnCluster, what: str) -> None:
    """Of the whole server, or of one of its processes, after which it recovers by itself."""
    if what == "server":
        cluster.restart("immediate")
        return
    with raw(cluster.url) as victim:
        os.kill(victim.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            victim.execute("select 1")
    eventually(lambda: answers(cluster.url), 30.0, what="the server has recovered")


def answers(url: str) -> bool:
    """Whether the server lets us in."""
    try:
        return rows(url, "select 1") == [(1,)]
    except psycopg.OperationalError:
        return False


def epoch_of(token: int) -> int:
    return token >> COUNTER_BITS


@pytest.fixture(params=["off", "local"])
def commits(request: pytest.FixtureRequest) -> str:
    """What the role says of commits."""
    return str(request.param)


@pytest.fixture
def cluster(server: Server, commits: str) -> Iterator[OwnCluster]:
    """A server of this test's own, whose flushes come late, and whose commits do not wait for them."""
    with own_cluster(server, **LATE_FLUSH) as running:
        running.execute("create table control (n int)")
        running.execute(f"alter role postgres set synchronous_commit = {commits}")
        yield running


@pytest.fixture(params=["direct", "pooled"])
def way(request: pytest.FixtureRequest, cluster: OwnCluster) -> Iterator[str]:
    """The URL that leads there: to a session that our settings hold for, or through a pooler, where they do not."""
    if request.param == "direct":
        yield cluster.url
        return
    with closing(PgBouncer(need(request.config, "pgbouncer"), cluster, cluster.url, "transaction")) as pooler:
        yield pooler.url


def write_until_unflushed(other: psycopg.Connection[tuple[object, ...]]) -> int:
    """Write rows of which at least the last is not on disk, though somebody flushes now and then: the last one."""
    last, unflushed = 19, False
    while last < 10_000 and not unflushed:
        last += 1
        other.execute("insert into control values (%s)", [last])
        ahead = other.execute("select pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()").fetchone()
        unflushed = ahead == (True,)
    return last


@pytest.mark.parametrize("what", ["server", "backend"])
async def test_what_was_answered_survives_a_crash(cluster: OwnCluster, way: str, what: str, commits: str) -> None:
    """Tokens drawn before a crash are below those drawn after it; a session lives as long as its last renewal said;
    what was given, ended or taken away stays so: whatever the role says of commits."""
    url = cluster.url
    async with keeping(way) as store:
        session, over, robbed = [await start(store) for _ in range(3)]
        tokens = [(await take(store, named(), session)).token for _ in range(20)]
        await take(store, named("given"), session)
        await take(store, named("robbed"), robbed)
        assert (await ask(store, Give(subject=named("given"), session=session))).ours
        assert await ask(store, EndSession(over))
        assert await ask(store, Revoke(named("robbed")))
        with raw(url) as other:
            tokens.append((await take(store, named(), session)).token)
            assert len(await ask(store, Renew((session, robbed)))) == 2
            lived = dict(other.execute(LIVES.encode()).fetchall())
            last = write_until_unflushed(other)
            await asyncio.to_thread(crash, cluster, what)
    if commits == "off":
        assert rows(url, CONTROL) < [(last,)], "nothing was lost, so nothing was tested"
    async with keeping(url) as store:
        assert dict(rows(url, LIVES)) == lived
        assert await ask(store, Own(session)) == (Owned(named(), tokens[-1], False),)
        assert await ask(store, Own(robbed)) == ()
        assert await ask(store, Renew((session, over, robbed))) == {session: 0, over: None, robbed: 1}
        tokens += [(await take(store, named(), session)).token for _ in range(5)]
        assert await start(store) not in lived
    assert tokens == sorted(set(tokens))


async def test_a_dump_in_another_cluster(server: Server) -> None:
    """It goes on above all tokens of the original, also those drawn after the dump. What was in the dump has a ttl of
    grace there; what was not is over; and numbers of sessions that the original gave later are not given again."""
    with own_cluster(server) as one, closing(OwnCluster("other", programs_of(server))) as two:
        async with keeping(one.url) as store:
            kept, silent = [await start(store) for _ in range(2)]
            await take(store, named(), kept)
            await take(store, named("silent"), silent)
            dump = await asyncio.to_thread(dumped, one, one.url)
            later = [(await take(store, named(), kept)).token for _ in range(5)]
            unknown = [await start(store) for _ in range(5)]
        url = await asyncio.to_thread(restored, two, dump, "copy")
        expire(url, silent, by="1 hour")
        async with keeping(url) as store:
            new = [await start(store) for _ in range(5)]
            assert not {*new} & {*unknown, kept, silent}
            assert await ask(store, Renew((kept, unknown[0]))) == {kept: 1, unknown[0]: None}
            assert isinstance(await ask(store, Take(subject=named("silent"), session=new[0])), Refused)
            with raw(url) as owner:
                owner.execute(b"update pgconcert.epoch set seen_at = seen_at - interval '1 hour'")
            assert (await take(store, named("silent"), new[0])).token > later[-1]
            assert (await take(store, named(), kept)).token > later[-1]
            assert rows(url, "select max(version) from pgconcert.version") == rows(
                one.url, "select max(version) from pgconcert.version"
            )
        # the original does not notice
        async with keeping(one.url) as store:
            assert await ask(store, Renew((kept,))) == {kept: 0}
            assert (await take(store, named(), kept)).token == later[-1] + 1


async def test_a_copy_of_a_copy(server: Server) -> None:
    """Every restore is another server: tokens of a copy are above those of what it was copied from, and so on."""
    with own_cluster(server) as cluster:
        url, tokens = cluster.url, list[int]()
        for copy in range(3):
            async with keeping(url) as store:
                session = await start(store)
                tokens += [(await take(store, named(), session)).token for _ in range(3)]
                assert rows(url, EPOCH) == [(copy + 1, copy)]
                await ask(store, Give(subject=named(), session=session))
                dump = await asyncio.to_thread(dumped, cluster, url)
                tokens.append((await take(store, named(), session)).token)
            url = await asyncio.to_thread(restored, cluster, dump, f"copy_{copy}")
        assert tokens == sorted(set(tokens))


async def test_two_copies_of_one_dump(server: Server) -> None:
    """What is restored, thrown away, and restored from the same dump again gives no token a second time."""
    with own_cluster(server) as cluster:
        async with keeping(cluster.url) as store:
            first = await take(store, named(), await start(store))
        dump = await asyncio.to_thread(dumped, cluster, cluster.url)
        tokens = [first.token]
        for copy in ("copy_of_it", "another_copy"):
            url = await asyncio.to_thread(restored, cluster, dump, copy)
            async with keeping(url) as store:
                tokens.append((await take(store, named("new"), await start(store))).token)
        assert tokens == sorted(set(tokens))


async def test_an_upgrade(server: Server) -> None:
    """``pg_upgrade`` begins with timeline 1 again, and with another identity of the server: tokens grow, and a session
    that was alive has a ttl of grace."""
    with own_cluster(server) as old, closing(OwnCluster("new", programs_of(server))) as new:
        await asyncio.to_thread(old.rise_again)
        await asyncio.to_thread(old.rise_again)
        async with keeping(old.url) as store:
            session = await start(store)
            before = await take(store, named(), session)
            assert epoch_of(before.token) == 3
        await asyncio.to_thread(new.become_upgrade_of, old)
        assert rows(new.url, "select substring(pg_walfile_name(pg_current_wal_lsn()), 1, 8)") == [("00000001",)]
        expire(new.url, session)
        async with keeping(new.url) as store:
            other = await start(store)
            assert isinstance(await ask(store, Take(subject=named(), session=other)), Refused)
            assert await ask(store, Renew((session,))) == {session: 1}
            expire(new.url, session)
            after = await take(store, named(), other)
            assert after.token > before.token
            assert epoch_of(after.token) == 4


async def test_timelines(server: Server) -> None:
    """Every promotion is an epoch of its own, and nothing else is."""
    with own_cluster(server) as cluster:
        tokens: list[int] = []
        for timeline in (1, 2, 3):
            for _ in range(2):
                async with keeping(cluster.url) as store:
                    session = await start(store)
                    tokens += [(await take(store, named(), session)).token for _ in range(3)]
                    await ask(store, Give(subject=named(), session=session))
                assert rows(cluster.url, EPOCH) == [(timeline, 0)]
                await asyncio.to_thread(cluster.restart)
            await asyncio.to_thread(cluster.rise_again)
        assert tokens == sorted(set(tokens))


async def test_a_dump_with_new_tables_beside_it(server: Server) -> None:
    """Tables that were made anew, without the rows of the old ones, are another server to those who were there: nobody
    is taken for somebody else."""
    with own_cluster(server) as cluster:
        async with keeping(cluster.url) as store:
            session = await start(store)
            await take(store, named(), session)
            with raw(cluster.url) as owner:
                owner.execute(b"drop schema pgconcert cascade")
            with_tables(cluster.url)
            assert await ask(store, Renew((session,))) == {session: None}
