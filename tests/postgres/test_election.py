"""Elections on a server: what observers and candidates cost, what they see without notifications, what is written down.

What is said of them in general is in the conformance suite (`electing`, `observing`). Theory: statements are counted,
time is not; a test looks at the rows with a connection of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator, SchemaMissing, Unavailable
from pgconcert.election import AsyncElection
from pgconcert.terms import LeaderChange
from pgconcert.testing import eventually_async
from pgconcert.watching import AsyncChanges
from tests.poolers import PgBouncer
from tests.postgres.jobscenes import listens, make_tables, until_quiet
from tests.postgres.scenes import Engine, both_engines, raw, role_pids, statements
from tests.servers import Server

STILL = 600.0
"""A ttl within which nothing is looked at or renewed by itself in a test that counts statements."""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


def still(c: AsyncCoordinator, name: str) -> AsyncElection:
    return c.election(name, ttl=STILL)


async def told(changes: AsyncChanges[LeaderChange], count: int) -> list[tuple[bool, int | None, str | None]]:
    return [
        (change.leader is not None, change.token, change.how) for change in [await changes.get() for _ in range(count)]
    ]


@both_engines
async def test_a_hundred_observers(tables: str, unique: str, engine: Engine) -> None:
    """Each is told everything, in order; together they cost a few statements for each change, for they look in one."""
    # so patient with the network that no look at a silent link is counted
    async with AsyncCoordinator(tables) as a, AsyncCoordinator(tables, engine=engine, network_timeout=60) as b:
        observers = [still(b, unique).observe() for _ in range(100)]
        await asyncio.gather(*(one.__aenter__() for one in observers))
        await eventually_async(lambda: listens(b), what="it listens")
        tokens: list[int] = []
        before = statements(b, "work")
        for _ in range(5):
            async with still(a, unique).lead() as leadership:
                tokens.append(leadership.token)
                for one in observers:
                    while (await one.get()).leader is None:
                        pass
        ends = await asyncio.gather(*(one.get() for one in observers))
        assert {(end.leader, end.token, end.how) for end in ends} == {(None, tokens[-1], "released")}
        # ten changes, each told by one notification: looks that are under way are waited for, then all look together
        assert statements(b, "work") - before <= 10 * 4
        await asyncio.gather(*(one.close() for one in observers))


async def test_nothing_is_sent_while_nothing_changes(tables: str, unique: str) -> None:
    """An observer that hears looks again only when it is told to, or `check` is over."""
    async with AsyncCoordinator(tables) as c:
        async with still(c, unique).observe() as changes:
            await changes.get()
            await eventually_async(lambda: listens(c), what="it listens")
            async with still(c, unique).lead():
                assert (await changes.get()).leader is not None
            assert (await changes.get()).leader is None
            await until_quiet(c)
            before = statements(c, "work")
            await asyncio.sleep(0.5)
            assert statements(c, "work") == before


async def test_terms_are_written_down(tables: str, unique: str) -> None:
    """How each term ended stands in the table, and observers who come later are told the last one only."""
    async with AsyncCoordinator(tables) as a, AsyncCoordinator(tables) as b:
        tokens: list[int] = []
        for end in ("released", "resigned", "revoked"):
            leadership = await a.election(unique, ttl=60, interval=0.5).lead(on_lost="report").acquire()
            tokens.append(leadership.token)
            if end == "released":
                await leadership.release()
            elif end == "resigned":
                await leadership.resign()
            else:
                await b.election(unique).revoke()
                await leadership.wait_lost()
        with raw(tables) as look:
            found = look.execute(
                "select token, how from pgconcert.term where name = %s order by token", [unique]
            ).fetchall()
        assert found == list(zip(tokens, ("released", "resigned", "revoked"), strict=True))
        async with b.election(unique).observe() as changes:
            assert await told(changes, 1) == [(False, tokens[-1], "revoked")]


@pytest.mark.needs("pgbouncer")
async def test_without_notifications(tables: str, unique: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Through a transaction pooler nothing is heard: observers look every `check` seconds, and miss nothing."""
    pooled = pgbouncer("transaction")
    async with AsyncCoordinator(pooled.url) as a, AsyncCoordinator(pooled.url) as b:
        election = a.election(unique, ttl=60, interval=0.5, check=0.2)
        async with b.election(unique, ttl=60, interval=0.5, check=0.2).observe() as changes:
            assert await told(changes, 1) == [(False, None, None)]
            expected: list[tuple[bool, int | None, str | None]] = []
            for _ in range(3):
                async with election.lead() as leadership:
                    expected.append((True, leadership.token, None))
                expected.append((False, expected[-1][1], "released"))
            assert await told(changes, 6) == expected
            first = await election.lead().acquire()
            waits = asyncio.create_task(b.election(unique, ttl=60, interval=0.5, check=0.2).lead().acquire())
            await first.resign()
            second = await waits
            assert second.token > first.token
            await second.release()


@both_engines
async def test_a_backend_that_dies(tables: str, server: Server, unique: str, engine: Engine) -> None:
    """An observer and a leader whose server processes are killed again and again: nothing is lost, nothing invented."""
    async with AsyncCoordinator(tables, engine=engine) as a, AsyncCoordinator(tables, engine=engine) as b:
        leadership = await a.election(unique, ttl=120, interval=5).lead().acquire()

        async def reachable() -> bool:
            with contextlib.suppress(Unavailable):
                return None not in [await c.election(unique).leader() for c in (a, b)]
            return False

        async with b.election(unique, ttl=120, interval=5, check=0.3).observe() as changes:
            assert await told(changes, 1) == [(True, leadership.token, None)]
            for _ in range(5):
                for c in (a, b):
                    for role in ("work", "listen"):
                        for pid in role_pids(c, role):
                            server.kill_backend(pid)
                await eventually_async(reachable, 60, what="both are connected again")
                assert not leadership.lost
            with pytest.raises(TimeoutError):
                await changes.get(0)
            await leadership.release()
            assert await told(changes, 1) == [(False, leadership.token, "released")]


async def test_candidates_of_many_processes_take_turns(tables: str, unique: str) -> None:
    """Ten coordinators, each resigning as soon as another waits: every one of them leads."""
    led: list[str] = []

    async def candidate(c: AsyncCoordinator) -> None:
        async with c.election(unique, ttl=60, interval=2.5, check=5).lead() as leadership:
            led.append(leadership.identity)

    coordinators = [AsyncCoordinator(tables) for _ in range(10)]
    await asyncio.gather(*(c.open() for c in coordinators))
    await asyncio.gather(*(candidate(c) for c in coordinators))
    assert sorted(led) == sorted(c.identity for c in coordinators)
    await asyncio.gather(*(c.close() for c in coordinators))


async def test_what_is_missing_is_said_with_the_command(server: Server) -> None:
    with server.fresh_database() as url:
        async with AsyncCoordinator(url) as c:
            election, group = c.election("x"), c.group("x")
            for ask in (
                election.lead().acquire,
                election.lead().try_acquire,
                election.leader,
                election.revoke,
                election.request_release,
                election.observe().__aenter__,
                group.create,
                group.delete,
                group.exists,
                group.members,
                group.join().acquire,
                group.watch().__aenter__,
                c.groups,
            ):
                with pytest.raises(SchemaMissing, match="pgconcert schema apply"):
                    await ask()
