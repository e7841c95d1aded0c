"""Pings between the listeners of one database, over the memory backend: who sends them, and what their absence means.

Here lives what a coordinator does with its settings for pings. When a ping is due, and when its absence counts, is
tested with the pure decisions (`test_listening_health.py`).
"""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from pgconcert import PING_CHANNEL, AsyncCoordinator, ConfigurationError, Coordinator, Message, send_listener_ping
from pgconcert.events import Event, ListenerBounced, ListenerReady, PingFailed, PingsMissing
from pgconcert.testing import eventually, eventually_async
from pgconcert.transaction import publishing
from pgconcert.transaction.flow import Query
from tests.unit.memoryworld import Story, handles


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


def pings_of(story: Story) -> list[Event]:
    """What was told about pings and about the listen link."""
    kinds = (PingsMissing, PingFailed, ListenerBounced)
    return [event for event in story.events if isinstance(event, kinds)]


async def test_who_listens_pings_all_listeners(world: str) -> None:
    """Every `ping_interval` an empty message on `listener_ping` reaches every listener of the database; with
    ``ping_connection=None``, or while nothing is listened to, none is sent."""
    frequent: dict[str, Any] = {"ping_interval": 0.02, "ping_grace": 60}
    async with (
        AsyncCoordinator(world, ping_connection=None, **frequent) as c,
        AsyncCoordinator(world, **frequent) as pinger,
        AsyncCoordinator(world, **frequent),
        c.subscribe(PING_CHANNEL) as pings,
    ):
        async with pinger.subscribe("anything"):
            heard = [await pings.get(30) for _ in range(3)]
        assert {(ping.payload, ping.own) for ping in heard} == {(b"", False)}
        assert len({ping.pid for ping in heard}) == 1, "somebody else has pinged, too"


async def test_that_nobody_pings_is_told_and_is_not_deafness(world: str) -> None:
    """Missing pings alone replace no link: a proof of our own has the last word."""
    async with AsyncCoordinator(world, ping_interval=0.02, ping_grace=0.05, ping_connection=None) as c:
        story, ready = Story(c), Story(c, ListenerReady)
        async with c.subscribe("a", gaps="yield") as messages:
            await eventually_async(lambda: len(pings_of(story)) >= 2)
            await c.publish("a", "heard")
            assert isinstance(await messages.get(), Message)
        missing = [event for event in pings_of(story) if isinstance(event, PingsMissing)]
        assert missing == pings_of(story)
        assert {(event.grace, event.deaf) for event in missing} == {(0.05, False)}
        assert "nobody sends them" in str(missing[0])
        assert len(ready.events) == 1


async def test_a_slow_handler_is_not_taken_for_deafness(world: str) -> None:
    """While somebody pings, a handler that does not come back, of the pings themselves, misses none of them."""
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def handler(message: Message) -> None:
        stuck.set()
        await go_on.wait()

    async with (
        AsyncCoordinator(world, ping_interval=0.02, ping_grace=60) as pinger,
        AsyncCoordinator(world, ping_interval=1, ping_grace=2, ping_connection=None) as c,
        pinger.subscribe(PING_CHANNEL) as pings,
    ):
        story = Story(c)
        listening = await c.listen({PING_CHANNEL: handler}, capacity=1)
        await stuck.wait()
        first = last = (await pings.get()).received
        while last - first < 2.5:  # longer than its grace
            now = (await pings.get()).received
            if now - last > 0.5:  # of a machine that stood still nothing came for so long: begin again
                first = now
                story.events.clear()
            last = now
        assert pings_of(story) == []
        go_on.set()
        await listening.close()


class Connection:
    """A connection of a caller's, and the driver of it."""

    blocks = True

    def __init__(self, error: Exception | None = None) -> None:
        self.said: list[tuple[object, ...]] = []
        self.threads: set[int] = set()
        self._error = error

    def one(self, query: Query) -> Any:
        """Note it."""
        self.said.append(query.values)
        self.threads.add(threading.get_ident())
        if self._error is not None:
            raise self._error

    def failure(self, error: Exception) -> None:
        """No server has said anything."""


class AsyncConnection(Connection):
    """The same, to be awaited."""

    blocks = False

    async def one(self, query: Query) -> None:
        """Note it."""
        super().one(query)


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections above are known."""
    monkeypatch.setattr(publishing, "driver_of", lambda connection, verb: connection)


@pytest.mark.usefixtures("drivers")
@pytest.mark.parametrize("kind", [Connection, AsyncConnection])
async def test_pings_over_a_connection_of_the_callers(world: str, kind: type[Connection]) -> None:
    """They go there and nowhere else; one that blocks does not block the loop."""
    connection = kind()
    async with AsyncCoordinator(world, ping_interval=0.02, ping_grace=60, ping_connection=connection) as c:
        async with c.subscribe("a", PING_CHANNEL) as messages:
            await eventually_async(lambda: len(connection.said) >= 3)
            assert messages.statistics.received == 0
        assert set(connection.said) == {(b"listener_ping", b"")}
        assert (threading.get_ident() in connection.threads) is (kind is AsyncConnection)


@pytest.mark.usefixtures("drivers")
@pytest.mark.parametrize("kind", [Connection, AsyncConnection])
async def test_a_pinger_that_fails_is_told_and_harms_nothing(world: str, kind: type[Connection]) -> None:
    """`PingFailed`, again and again, and messages flow."""
    broken = kind(OSError("it is broken"))
    async with AsyncCoordinator(world, ping_interval=0.02, ping_grace=60, ping_connection=broken) as c:
        story = Story(c)
        async with c.subscribe("a", gaps="yield") as messages:
            await eventually_async(lambda: len(pings_of(story)) >= 3)
            await c.publish("a", "heard")
            assert isinstance(await messages.get(), Message)
        assert {str(event) for event in pings_of(story)} == {"a ping could not be sent: it is broken"}


def test_pings_of_the_blocking_twin(world: str) -> None:
    """The same settings, the same pings."""
    with (
        Coordinator(world, ping_connection=None) as c,
        Coordinator(world, ping_interval=0.02, ping_grace=0.05) as pinger,
        c.subscribe(PING_CHANNEL) as pings,
        pinger.subscribe("anything"),
    ):
        assert [pings.get(30).payload for _ in range(2)] == [b"", b""]
    alone: list[Event] = []
    with Coordinator(world, ping_interval=0.02, ping_grace=0.05, ping_connection=None) as c:
        c.events.subscribe(alone.append, PingsMissing)
        with c.subscribe("a"):
            eventually(lambda: bool(alone))


@pytest.mark.usefixtures("drivers")
async def test_a_ping_from_outside() -> None:
    """`send_listener_ping` says one statement, and waits for it or is awaited."""
    blocking: Any = Connection()
    asynchronous: Any = AsyncConnection()
    assert send_listener_ping(blocking) is None
    await send_listener_ping(asynchronous)
    assert blocking.said == asynchronous.said == [(b"listener_ping", b"")]


async def test_a_partition_is_isolation(world: str) -> None:
    """`listening` says that not even we ourselves are heard while there is no connection, and mends with it."""
    async with AsyncCoordinator(world) as c, c.subscribe("a"):
        await eventually_async(lambda: c.listening == "solitary")
        handles(c).lose_connection(reconnect=False)
        await eventually_async(lambda: c.listening == "isolated")
        handles(c).reconnect()
        await eventually_async(lambda: c.listening == "solitary")
        hearing = c.health().hearing
        assert hearing is not None
        assert hearing.latency is not None
        assert hearing.connects == 2


@pytest.mark.parametrize("kind", [AsyncCoordinator, Coordinator])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (5, "ping_connection= knows connections of psycopg 3, .*, not 5"),
        ("mine", "ping_connection must be 'own', None, or a connection that any thread may use, not 'mine'"),
        (SimpleNamespace(allow_thread_sharing=False), "Django's belong to the thread that made them"),
    ],
)
def test_what_is_no_connection_for_pings(world: str, kind: Any, wrong: object, told: str) -> None:
    """Refused where it is given, before anything is opened."""
    with pytest.raises(ConfigurationError, match=told):
        kind(world, ping_connection=wrong)
