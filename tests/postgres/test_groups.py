"""Groups on a server: many members at the price of one, what stays in the tables, what is seen without notifications.

What is said of them in general is in the conformance suite (`grouping`). Theory: statements are counted, time is not; a
test looks at the rows with a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator, MemberExists
from pgconcert.members import MemberChange
from pgconcert.testing import eventually_async
from pgconcert.watching import AsyncChanges
from tests.poolers import PgBouncer
from tests.postgres.jobscenes import beats, listens, make_tables, until_quiet
from tests.postgres.scenes import Engine, both_engines, raw, statements

STILL = 600.0
"""A ttl within which nothing is looked at or renewed by itself in a test that counts statements."""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


async def told(changes: AsyncChanges[MemberChange], count: int) -> list[tuple[str, str]]:
    return [(change.kind, change.member.member_id) for change in [await changes.get(60) for _ in range(count)]]


@both_engines
@pytest.mark.long
async def test_many_members(tables: str, unique: str, engine: Engine) -> None:
    """A thousand memberships of one process are renewed by one statement, and seen by one look."""
    async with (
        AsyncCoordinator(tables, engine=engine, namespace=unique) as a,
        AsyncCoordinator(tables, namespace=unique) as b,
    ):
        group = a.group(unique, ttl=60, interval=0.5)
        joins = (group.join(member_id=f"{number:04}", capabilities=number) for number in range(1000))
        memberships = await asyncio.gather(*(join.acquire() for join in joins))
        assert await b.groups() == [unique]  # it is connected
        sent, due = await beats(a, tables, memberships[0].session_id, 0.5)
        assert 1 <= sent <= due + 2
        seen = statements(b, "work")
        members = await b.group(unique).members()
        assert statements(b, "work") - seen == 1
        assert [member.capabilities for member in members] == [*range(1000)]
        assert not any(membership.lost for membership in memberships)
        await asyncio.gather(*(membership.leave() for membership in memberships))
        assert await b.group(unique).members() == ()


async def test_a_watcher_is_told_by_notification(tables: str, unique: str) -> None:
    """With `check` far away every change is seen at once, and nothing is sent while nothing changes."""
    async with AsyncCoordinator(tables) as a, AsyncCoordinator(tables) as b:
        group = a.group(unique, ttl=STILL)
        async with b.group(unique, ttl=STILL).watch() as changes:
            await eventually_async(lambda: listens(b), what="it listens")
            for number in range(5):
                async with group.join(member_id=f"m{number}") as membership:
                    assert await told(changes, 1) == [("joined", f"m{number}")]
                    await membership.update_capabilities(number)
                    assert await told(changes, 1) == [("updated", f"m{number}")]
                assert await told(changes, 1) == [("left", f"m{number}")]
            await until_quiet(b)
            before = statements(b, "work")
            await asyncio.sleep(0.5)
            assert statements(b, "work") == before


@pytest.mark.needs("pgbouncer")
async def test_without_notifications(tables: str, unique: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Through a transaction pooler nothing is heard: watchers look every `check` seconds."""
    pooled = pgbouncer("transaction")
    async with AsyncCoordinator(pooled.url) as a, AsyncCoordinator(pooled.url) as b:
        async with b.group(unique, ttl=60, check=0.2).watch() as changes:
            async with a.group(unique, ttl=60).join(member_id="m") as membership:
                assert await told(changes, 1) == [("joined", "m")]
                with pytest.raises(MemberExists):
                    await b.group(unique, ttl=60).join(member_id="m").acquire()
                await membership.update_capabilities({"gpu": 1})
                assert await told(changes, 1) == [("updated", "m")]
            assert await told(changes, 1) == [("left", "m")]


async def test_a_locked_row_is_no_member(tables: str, unique: str) -> None:
    """The row of a member who went, locked by a transaction, is waited for and is not taken for a member."""
    async with AsyncCoordinator(tables) as a:
        group = a.group(unique, ttl=60)
        async with group.join(member_id="m"):
            pass
        with raw(tables) as somebody:
            somebody.execute("begin")
            somebody.execute("select from pgconcert.entry where name = %s and member = 'm' for share", [unique])
            joins = asyncio.create_task(group.join(member_id="m").acquire())
            done, _ = await asyncio.wait([joins], timeout=0.02)
            assert not done
            somebody.execute("commit")
        membership = await joins
        await membership.leave()


async def test_a_group_without_a_row(tables: str, unique: str) -> None:
    """A group that was deleted while somebody joined is there as long as it has members."""
    async with AsyncCoordinator(tables, namespace=unique) as c:
        async with c.group("g").join():
            with raw(tables) as somebody:
                somebody.execute("delete from pgconcert.entry where kind = 'group' and namespace = %s", [unique])
            assert await c.groups() == ["g"]
            assert await c.group("g").exists()
        assert await c.groups() == []


async def test_names_that_are_odd(tables: str, unique: str) -> None:
    """Groups whose names are parts of others, or have wildcards, are kept apart."""
    async with AsyncCoordinator(tables, namespace=unique) as c:
        names = sorted(["a", "ab", "a_", "a%", "a\\", "A", "ä", "a b", 'a"', "a'", "{a,b}", "NULL"])
        for name in names:
            assert await c.group(name).create()
        assert await c.groups() == names
        async with c.group("a%").join(member_id="m%"), c.group("ab").join(member_id="m_"):
            assert [member.member_id for member in await c.group("a%").members()] == ["m%"]
            assert await c.group("a_").members() == ()
        for name in names:
            assert await c.group(name).delete()
        assert await c.groups() == []
