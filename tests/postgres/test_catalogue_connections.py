"""The acceptance catalogue of messages, continued: what becomes of listening when connections fail or are closed.

Here live the tests that look at a server, or break connections to it. The table stands in `test_catalogue_messages.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, GivenUp, Message, Reconnected
from pgconcert.events import ActiveChanged, ConnectFailed, ListenerBounced, ListenerReady, PingFailed, PingsMissing
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.scenes import role_pids, seen
from tests.postgres.store_scenes import database_with_tables
from tests.servers import Server

NOWHERE = "postgresql://user@127.0.0.1:1/nothing"


@pytest.fixture(scope="module")
def tables(server: Server) -> Iterator[str]:
    """The URL of a database with our tables."""
    with database_with_tables(server) as url:
        yield url


async def test_listening_in_the_hook(server: Server, database: str) -> None:
    """C4: a hook that subscribes, while what was subscribed before is listened to again, hears each message once."""
    async with AsyncCoordinator(database) as a, AsyncCoordinator(database) as b:
        mine: list[Any] = []

        async def hook(reconnected: Reconnected) -> None:
            subscription = b.subscribe("hook", "before")
            await subscription.__aenter__()
            mine.append(subscription)

        b.on_reconnect(hook)
        async with b.subscribe("before") as before:
            await eventually_async(lambda: len(mine) == 1, what="the hook has subscribed")
            assert server.kill_backend(*role_pids(b, "listen"))
            await eventually_async(lambda: len(mine) == 2, what="the hook has subscribed again")
            for channel in ("hook", "before"):
                await a.publish(channel, channel)
                await a.publish(channel, f"end of {channel}")
            for subscription in mine:
                texts = [(await subscription.get(30)).text for _ in range(4)]
                assert sorted(texts) == ["before", "end of before", "end of hook", "hook"]
                await subscription.close()
            assert [(await before.get(30)).text for _ in range(2)] == ["before", "end of before"]


async def test_a_limit_of_attempts_is_exact() -> None:
    """C5: with a limit of three there are exactly three attempts, and then whoever waits is told."""
    async with AsyncCoordinator(NOWHERE, reconnect_limit=3) as c:
        failed = seen(c, ConnectFailed)
        with pytest.raises(GivenUp, match="tried 3 times in vain"):
            await c.subscribe("channel").__aenter__()
        attempts = [event for event in failed if event.role == "listen"]
        assert [event.attempt for event in attempts] == [1, 2, 3]
        assert [event.retry_in is None for event in attempts] == [False, False, True]


async def test_a_dead_pinger_is_no_deafness(database: str) -> None:
    """C6: when pings cannot be sent that is told, and so is that none come; the listen link is left alone."""

    broken = await psycopg.AsyncConnection.connect(database, autocommit=True)
    await broken.close()
    async with AsyncCoordinator(database, ping_interval=0.02, ping_grace=0.1, ping_connection=broken) as c:
        failed, missing, bounced = seen(c, PingFailed), seen(c, PingsMissing), seen(c, ListenerBounced)
        async with c.subscribe("channel") as messages:
            await eventually_async(lambda: bool(failed) and len(missing) >= 2, what="both are told")
            assert not any(event.deaf for event in missing)
            assert not bounced
            await c.publish("channel", "x")
            assert (await messages.get(30)).text == "x"
            assert messages.statistics.gaps == {}


@pytest.mark.parametrize(
    "options",
    [
        {"ping_interval": 300, "ping_grace": 300},
        {"ping_interval": 300, "ping_grace": 299},
        {"ping_interval": 0},
        {"ping_interval": -1},
        {"ping_grace": 0},
        {"ping_grace": -420},
        {"ping_connection": "another"},
        {"reconnect_limit": 0},
        {"spill_ttl": 0},
    ],
    ids=str,
)
async def test_pings_that_make_no_sense(database: str, options: dict[str, Any]) -> None:
    """C7: a grace that is no longer than the interval, zero, negative: refused before anything is connected."""
    with pytest.raises(ConfigurationError, match=[*options][-1]):
        await AsyncCoordinator(database, **options).open()


async def test_ready_is_told_once_after_failed_attempts(proxy: FaultProxy, server: Server, database: str) -> None:
    """PS-T3: after several attempts that failed, readiness is told once, and no handler is called twice."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as c:
        ready, failed = seen(c, ListenerReady), seen(c, ConnectFailed)
        async with c.subscribe("channel") as messages:
            proxy.refuse()
            proxy.cut()
            await eventually_async(lambda: len([event for event in failed if event.role == "listen"]) >= 3)
            proxy.accept()
            await eventually_async(lambda: len(ready) == 2, what="listening is proven again")
            async with AsyncCoordinator(database) as other:
                await other.publish("channel", "x")
                await other.publish("channel", "end")
            assert [(await messages.get(30)).text for _ in range(2)] == ["x", "end"]
            assert [event.initial for event in ready] == [True, False]


async def test_closing_ends_the_attempts(proxy: FaultProxy, server: Server, database: str) -> None:
    """PS-T5: a coordinator that is closed while it cannot connect tries no more."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as c:
        failed = seen(c, ConnectFailed)
        async with c.subscribe("channel"):
            proxy.refuse()
            proxy.cut()
            await eventually_async(lambda: bool(failed), what="an attempt has failed")
    assert not [task for task in asyncio.all_tasks() if "link" in task.get_name()], "somebody still tries to connect"
    attempts = len(failed)
    proxy.accept()
    # a whole connection is made and used meanwhile by somebody else
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as other, other.subscribe("channel"):
        await other.publish("channel", "x")
    assert len(failed) == attempts
    await eventually_async(lambda: proxy.open_connections == 0, what="no connection is left")


async def test_alone_it_is_active_again(server: Server, database: str) -> None:
    """PS-T19: the only listener with ``one-process``, whose sessions the server ends, is active again and receives."""
    async with AsyncCoordinator(database) as a, AsyncCoordinator(database) as b:
        async with b.subscribe("alone", delivery="one-process", gaps="yield") as messages:
            assert messages.active
            changes = seen(b, ActiveChanged)
            for pid in (*role_pids(b, "lock"), *role_pids(b, "listen")):
                assert server.kill_backend(pid)
            await eventually_async(lambda: bool(changes) and not changes[0].active, what="it has noticed")
            await eventually_async(lambda: messages.active, what="it is active again")
            await a.publish("alone", "end")
            while not isinstance(item := await messages.get(30), Message):
                assert item.reason in ("takeover", "reconnect")
            assert item.text == "end"


async def test_fifty_messages_and_three_that_have_just_come(tables: str) -> None:
    """PS-T20: three that begin together, and fifty messages at once: each is handled exactly once."""
    handled: list[str] = []
    async with AsyncCoordinator(tables) as a, AsyncCoordinator(tables) as b, AsyncCoordinator(tables) as c:
        handlers = {"each": lambda message: handled.append(message.text)}
        listenings = [one.listen(handlers, delivery="one-each") for one in (a, b, c)]
        await asyncio.gather(*(listening.open() for listening in listenings))
        await asyncio.gather(*(a.publish("each", str(number), id=True) for number in range(50)))
        await eventually_async(lambda: len(handled) >= 50, what="fifty were handled")
        for listening in listenings:
            await listening.close()
    assert sorted(handled, key=int) == [*map(str, range(50))]


async def test_one_that_is_closed_leaves_another_working(database: str) -> None:
    """PS-T21: of two coordinators in one process one is closed; the other goes on."""
    async with AsyncCoordinator(database) as stays, stays.subscribe("both") as messages:
        async with AsyncCoordinator(database) as leaves, leaves.subscribe("both"):
            await leaves.publish("both", "1")
        await stays.publish("both", "2")
        assert [(await messages.get(30)).text for _ in range(2)] == ["1", "2"]
