"""Versions of the tables side by side: a program that knows version n works beside n-1, and while it becomes n.

Theory. A deployment rolls: tables are made by the first who comes, or before all, or behind all, and programs of both
versions run meanwhile. So what a feature needs is there from the version on that made it, whatever came after; what is
missing is asked for again when it is there; and a version that is applied takes nothing from those who are at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, QueueTasks, Task
from pgconcert.errors import SchemaMissing
from pgconcert.postgres.schema import apply, look, visit
from pgconcert.postgres.schemafiles import script, versions
from tests.postgres.scenes import context, raw
from tests.servers import Server

LARGE = b"x" * 20_000
ALL = tuple(versions())


@pytest.fixture
def old(server: Server) -> Iterator[str]:
    """A database with version 1."""
    with server.fresh_database() as url:
        with raw(url) as owner:
            owner.execute(script(version=1).encode())
        yield url


async def applied(url: str) -> tuple[int, ...]:
    async with visit(context(url)) as link:
        return await apply(link, "pgconcert")


async def heard(c: AsyncCoordinator) -> bytes:
    """What of a large message comes back."""
    async with c.subscribe("orders") as messages:
        await c.publish("orders", LARGE)
        async with asyncio.timeout(20):
            return (await anext(messages)).payload


async def test_messages_need_no_more_than_version_1(old: str, unique: str) -> None:
    async with visit(context(old)) as link:
        found = await look(link, "pgconcert")
        assert (found.verdict, found.missing) == ("old", ALL[1:])
    async with AsyncCoordinator(old) as c:
        assert await heard(c) == LARGE
        with pytest.raises(SchemaMissing, match=r"missing or old.*pgconcert schema apply"):
            await c.job_lock(unique).acquire()


async def test_ten_at_once_make_what_is_missing_under_those_who_are_at_work(old: str, unique: str) -> None:
    async with AsyncCoordinator(old) as c:
        assert await heard(c) == LARGE
        assert sorted(await asyncio.gather(*(applied(old) for _ in range(10)))) == [()] * 9 + [ALL[1:]]
        assert await heard(c) == LARGE
        async with c.job_lock(unique) as hold:
            assert not hold.lost


async def test_sessions_need_no_more_than_version_2(old: str, unique: str) -> None:
    """What hangs on a session works without the tables for tasks; what shares tasks says what is missing."""
    with raw(old) as owner:
        owner.execute(script(version=2).encode())
    async with AsyncCoordinator(old) as c:
        async with c.job_lock(unique) as hold:
            assert not hold.lost
        with pytest.raises(SchemaMissing, match=r"missing or old.*pgconcert schema apply"):
            await c.queue(unique).enqueue(b"a task")
        with pytest.raises(SchemaMissing, match=r"missing or old.*pgconcert schema apply"):
            await c.runner("crew", lambda tasks: None, QueueTasks(unique)).start()
        await applied(old)
        assert await c.queue(unique).enqueue(b"a task")


async def test_a_coordinator_that_may_brings_them_up_to_date(old: str, unique: str) -> None:
    async with AsyncCoordinator(old, migrate=True) as c, c.job_lock(unique) as hold:
        assert not hold.lost
        assert await heard(c) == LARGE


async def test_what_a_later_version_adds_is_in_nobodys_way(old: str, unique: str) -> None:
    """As an older library sees it when a newer one has been here."""
    await applied(old)
    with raw(old) as newer:
        newer.execute(b"alter table pgconcert.session add column later text not null default ''")
        newer.execute(b"alter table pgconcert.entry add column later jsonb")
        newer.execute(b"alter table pgconcert.waiting add column later integer not null default 7")
        newer.execute(b"alter table pgconcert.term add column later text")
        newer.execute(b"alter table pgconcert.epoch add column later text")
        newer.execute(b"alter table pgconcert.task add column later text not null default ''")
        newer.execute(b"alter table pgconcert.task_finished add column later integer not null default 7")
        newer.execute(b"create table pgconcert.later (id bigint primary key)")
        newer.execute(b"insert into pgconcert.version (version) values (%s)", [max(ALL) + 1])
    async with visit(context(old)) as link:
        assert (await look(link, "pgconcert")).verdict == "newer"
    async with AsyncCoordinator(old, migrate=True) as c, AsyncCoordinator(old) as other:
        async with c.job_lock(unique) as hold:
            waits = asyncio.create_task(other.job_lock(unique).acquire())
            assert await other.job_lock(unique).holder() is not None
        mine = await waits
        assert mine.token > hold.token
        await mine.release()
        async with c.election(unique).lead() as leadership, other.election(unique).observe() as changes:
            assert (await changes.get(20)).token == leadership.token
        async with c.group(unique).join(member_id="one"):
            (member,) = await other.group(unique).members()
            assert member.member_id == "one"
        done = asyncio.Queue[bytes]()
        kept = QueueTasks(unique, retention=60)

        async def work(tasks: list[Task]) -> None:
            done.put_nowait(tasks[0].payload)

        async with c.runner("crew", work, kept):
            await other.queue(unique).enqueue(b"a task")
            assert await asyncio.wait_for(done.get(), 20) == b"a task"
        assert (await other.queue(unique).statistics()).finished == 1
