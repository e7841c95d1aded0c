"""Every verb of messages, cancelled at each of its awaits on a real server: nothing stays behind, the next one works.

Theory: the conformance suite knows how to cancel everywhere. What stays behind is looked for in the broker, which must
know no channel any more, and what a cancelled caller has sent may arrive, whole and once, or not at all.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, Message
from pgconcert.testing import eventually_async
from pgconcert.testing.conformance.suite import cancelled_everywhere
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])


@pytest.fixture(scope="module")
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this module's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


def routes(c: AsyncCoordinator) -> set[str]:
    """The channels that somebody wants."""
    return {*c._messages().broker._routes}


@pytest.mark.parametrize("size", [10, 20_000])
@both_engines
async def test_publish(tables: str, engine: Engine, size: int) -> None:
    """What was cancelled arrives at most once, and what returned, exactly once."""
    numbers = iter(range(10_000))
    returned: list[str] = []
    async with AsyncCoordinator(tables, engine=engine, network_timeout=60) as c, c.subscribe("cancelled") as messages:

        async def publish() -> None:
            number = str(next(numbers))
            await c.publish("cancelled", number.ljust(size))
            returned.append(number)

        runs = 0
        async for _ in cancelled_everywhere(publish):
            runs += 1
        await publish()
        assert runs > 2
        heard: list[str] = []
        while returned[-1] not in heard:
            heard.append((await messages.get(30)).text.strip())
        assert {*Counter(heard).values()} == {1}
        assert {*returned} <= {*heard}


@pytest.mark.parametrize("delivery", ["all", "one-process", "one-each"])
@both_engines
async def test_entering(tables: str, engine: Engine, delivery: Literal["all", "one-process", "one-each"]) -> None:
    """Cancelled in its entry, or while it is inside, or while it leaves: nobody listens, and no lock is held."""
    async with AsyncCoordinator(tables, engine=engine, network_timeout=60) as c:

        async def enter() -> None:
            async with c.subscribe("entered", delivery=delivery) as messages:
                await c.publish("entered", "x", id=True)
                assert (await messages.get(30)).text == "x"

        async for _ in cancelled_everywhere(enter):
            assert routes(c) == set()
        await eventually_async(lambda: c.health().locks_held == 0 and c.health().locks_waited_for == 0)
        async with (
            AsyncCoordinator(tables, network_timeout=60) as other,
            other.subscribe("entered", delivery=delivery) as messages,
        ):
            assert messages.active
            await c.publish("entered", "y", id=True)
            assert (await messages.get(30)).text == "y"


@both_engines
async def test_get(database: str, engine: Engine) -> None:
    """Whoever leaves takes nothing along."""
    async with AsyncCoordinator(database, engine=engine, network_timeout=60) as c, c.subscribe("taken") as messages:
        taken: list[Message] = []

        async def get() -> None:
            taken.append(await messages.get(30))

        sent = 0
        async for _ in cancelled_everywhere(get):
            await c.publish("taken", str(sent))
            sent += 1
        await c.publish("taken", "last")
        while not taken or taken[-1].text != "last":
            await get()
        assert [message.text for message in taken] == [*map(str, range(sent)), "last"]


@both_engines
async def test_request(database: str, engine: Engine) -> None:
    """Nobody waits for a reply any more, and the next one is answered."""
    async with (
        AsyncCoordinator(database, engine=engine, network_timeout=60) as c,
        AsyncCoordinator(database, network_timeout=60) as other,
    ):
        async with other.listen({"asked": lambda message: message.payload + b"!"}):

            async def ask() -> None:
                assert (await c.request("asked", "x", timeout=30)).text == "x!"

            runs = 0
            async for _ in cancelled_everywhere(ask):
                runs += 1
                assert not c._messages().requests._waiting
                assert not c._messages().requests._users
            assert runs > 2
            await ask()


@both_engines
async def test_opening_and_closing_handlers(database: str, engine: Engine) -> None:
    """A cancelled closing goes on by itself; a cancelled opening leaves nothing."""
    async with AsyncCoordinator(database, engine=engine, network_timeout=60) as c:
        handled: list[str] = []

        async def handler(message: Message) -> None:
            await asyncio.sleep(0)
            handled.append(message.text)

        async def listen() -> None:
            async with c.listen({"handled": handler, "other": handler}):
                await c.publish("handled", "x")

        async for _ in cancelled_everywhere(listen):
            await eventually_async(lambda: routes(c) == set())
        handled.clear()
        async with c.listen({"handled": handler}):
            await c.publish("handled", "last")
            await eventually_async(lambda: handled[-1:] == ["last"])  # behind what a cancelled one has sent


@both_engines
async def test_closing_the_coordinator(database: str, engine: Engine) -> None:
    """Whoever is inside is told, wherever the closing was cancelled."""

    async def life() -> None:
        async with AsyncCoordinator(database, engine=engine, network_timeout=60) as c:
            async with c.subscribe("life") as messages, c.listen({"life": lambda message: None}):
                await c.publish("life", "x")
                await messages.get(30)

    runs = 0
    async for _ in cancelled_everywhere(life):
        runs += 1
    assert runs > 4
