"""Publishing through PgBouncer in transaction mode, listening around it: twenty coordinators on two server connections.

Theory: a transaction pooler gives every transaction another session. A notification is one transaction, and so are a
large payload and a claim; only LISTEN needs a session of its own. Nothing of ours may stay behind on sessions that
others use next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgconcert import AsyncCoordinator, PoolerRefused, PublishUncertain, Unavailable
from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually_async, sessions
from tests.poolers import PgBouncer
from tests.postgres.scenes import raw, until_idle

pytestmark = [pytest.mark.faults, pytest.mark.needs("pgbouncer"), pytest.mark.timeout(90)]

Pooler = Callable[..., PgBouncer]
COORDINATORS = 20
MESSAGES = 30


@pytest.fixture
def tables(database: str) -> Iterator[str]:
    """The module's database, with our tables while the test runs."""
    with raw(database) as owner:
        owner.execute(script().encode())
    yield database
    with raw(database) as owner:
        until_idle(owner)
        owner.execute("drop schema pgconcert cascade")


def left_behind(pooler: PgBouncer, count: int) -> set[tuple[int, int]]:
    """Prepared statements and channels on the sessions of the pool: as many clients as there are, each in a session."""
    found = set()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(contextlib.closing(psycopg.connect(pooler.url, prepare_threshold=None)))
            row = client.execute(
                "select (select count(*) from pg_prepared_statements), (select count(*) from pg_listening_channels())"
            ).fetchone()
            assert row
            found.add((row[0], row[1]))
    return found


async def test_twenty_coordinators_on_two_server_connections(tables: str, pgbouncer: Pooler) -> None:
    """Small, enveloped and large messages of all of them arrive at each, in order, and nothing stays in the pool."""
    pooler = pgbouncer("transaction", pool_size=2)
    async with contextlib.AsyncExitStack() as stack:
        everybody = [
            await stack.enter_async_context(
                AsyncCoordinator(pooler.url, direct_url=tables, name=f"pooled {place}", network_timeout=60)
            )
            for place in range(COORDINATORS)
        ]
        receiving = [await stack.enter_async_context(c.subscribe("pooled", gaps="yield")) for c in everybody[::5]]

        async def publish(place: int, c: AsyncCoordinator) -> None:
            for number in range(MESSAGES):
                text = f"{place} {number} "
                if number % 3 == 1:
                    await c.publish("pooled", text, headers={"place": str(place)})
                elif number % 10 == 2:
                    await c.publish("pooled", text + "x" * 20_000)
                else:
                    await c.publish("pooled", text)

        await asyncio.gather(*(publish(place, c) for place, c in enumerate(everybody)))
        for messages in receiving:
            got: dict[str, list[int]] = {}
            for _ in range(COORDINATORS * MESSAGES):
                place, number, _ = (await messages.get(30)).text.split(" ", 2)  # type: ignore[union-attr]
                got.setdefault(place, []).append(int(number))
            assert got == {str(place): [*range(MESSAGES)] for place in range(COORDINATORS)}
            assert messages.statistics.gaps == {}
        through = Counter((link.role, link.through) for c in everybody for link in c.health().links if link.through)
        assert through == {
            ("publish", "transaction pooler"): COORDINATORS,
            ("payload", "transaction pooler"): COORDINATORS,
            ("listen", "direct"): len(receiving),
        }
        listening = [one for one in sessions(tables) if one.application_name.endswith("pgconcert-listen")]
        assert len(listening) == len(receiving)
        assert len(sessions(tables)) <= len(receiving) + 2
    assert await asyncio.to_thread(left_behind, pooler, 2) == {(0, 0)}


async def test_claims_through_the_pooler(tables: str, pgbouncer: Pooler) -> None:
    """Each message is handled by one of many."""
    pooler = pgbouncer("transaction", pool_size=2)
    handled: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:

        def handler(message: object) -> None:
            handled[message.text] += 1  # type: ignore[attr-defined]

        everybody = [
            await stack.enter_async_context(AsyncCoordinator(pooler.url, direct_url=tables, network_timeout=60))
            for _ in range(6)
        ]
        for c in everybody:
            listening = c.listen({"claimed": handler}, delivery="one-each")
            _ = await stack.enter_async_context(listening)
        for number in range(100):
            await everybody[number % 6].publish("claimed", str(number), id=True)
        await eventually_async(lambda: len(handled) == 100, 30)
    assert set(handled.values()) == {1}


async def test_requests_through_the_pooler(database: str, pgbouncer: Pooler) -> None:
    pooler = pgbouncer("transaction", pool_size=2)
    async with (
        AsyncCoordinator(pooler.url, direct_url=database, network_timeout=60) as one,
        AsyncCoordinator(pooler.url, direct_url=database, network_timeout=60) as two,
    ):
        async with two.listen({"price": lambda message: message.payload.upper()}):
            replies = await asyncio.gather(*(one.request("price", f"item {n}", timeout=30) for n in range(50)))
        assert [reply.text for reply in replies] == [f"ITEM {n}" for n in range(50)]


async def test_listening_without_a_way_around_is_refused(database: str, pgbouncer: Pooler) -> None:
    """Publishing works; the error of an entry says what to give."""
    pooler = pgbouncer("transaction", pool_size=2)
    async with AsyncCoordinator(pooler.url) as c:
        with pytest.raises(PoolerRefused, match="direct_url"):
            async with c.subscribe("refused"):
                pass
        with pytest.raises(PoolerRefused, match="direct_url"):
            await c.request("refused", "x", timeout=30)
        async with AsyncCoordinator(database) as near, near.subscribe("refused") as messages:
            await c.publish("refused", "published")
            assert (await messages.get(30)).text == "published"


async def test_the_end_of_the_pooler(database: str, pgbouncer: Pooler) -> None:
    """Publishers are told; subscribers, who listen around it, notice nothing."""
    pooler, second = pgbouncer("transaction", pool_size=2), pgbouncer("transaction", pool_size=2)
    async with AsyncCoordinator(pooler.url, direct_url=database) as c, AsyncCoordinator(second.url) as other:
        async with c.subscribe("goes on", gaps="yield") as messages:
            await c.publish("goes on", "first")
            await asyncio.to_thread(pooler.close)
            with pytest.raises((Unavailable, PublishUncertain)):
                await c.publish("goes on", "never")
            await other.publish("goes on", "second")
            assert [(await messages.get(30)).text for _ in range(2)] == ["first", "second"]  # type: ignore[union-attr]
            assert messages.statistics.gaps == {}
