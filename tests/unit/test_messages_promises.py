"""Promises about messages that no other test of this folder holds to account, over the memory backend.

Here live one test for each such promise: defaults, the smallest interfaces, one stuck consumer of a thousand, what an
unknown envelope becomes, that a large message holds up its own channel only, and what is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from pgconcert import (
    PING_CHANNEL,
    AsyncCoordinator,
    AsyncSubscription,
    Broker,
    BrokerClosed,
    ConfigurationError,
    Coordinator,
    Gap,
    Message,
    PublishManyFailed,
    PublishUncertain,
    Unavailable,
)
from pgconcert.events import (
    ActiveChanged,
    EventStream,
    MessageMalformed,
)
from pgconcert.keys import KeySpace
from pgconcert.messenger import Answer, Ear
from pgconcert.pubsub import broker as brokers
from pgconcert.pubsub.envelope import Spill, encode
from pgconcert.pubsub.overflow import Inbox
from pgconcert.testing import eventually_async
from tests.unit.memoryworld import Story, handles


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


# the smallest interfaces


async def test_code_that_knows_only_a_broker(world: str) -> None:
    """A coordinator is a `Broker`, for the type checker and in the act; closing twice is no error, using it is."""

    async def neutral(broker: Broker) -> list[bytes]:
        async with broker.subscribe("a", "b") as messages:
            await broker.publish("a", "one")
            await broker.publish("b", b"two")
            heard = [(await messages.get()).payload for _ in range(2)]
        await broker.close()
        await broker.close()
        with pytest.raises(BrokerClosed):
            await broker.publish("a")
        with pytest.raises(BrokerClosed):
            broker.subscribe("a")
        return heard

    c = AsyncCoordinator(world)
    await c.open()
    assert await neutral(c) == [b"one", b"two"]


async def test_notify_and_json(world: str) -> None:
    """`notify` sends a text as it is; `json=None` is the value null, and not nothing."""
    async with AsyncCoordinator(world) as c, c.subscribe("a") as messages:
        await c.notify("a", "grüße")
        await c.publish("a", json=None)
        first, second = await messages.get(), await messages.get()
        assert (first.text, first.id, dict(first.headers)) == ("grüße", None, {})
        assert (second.payload, second.json()) == (b"null", None)
        assert isinstance(first.received, float)
        assert first.received <= second.received


def test_the_defaults() -> None:
    """Those of the seed for its channel of pings, and those that the pages name; the same for both twins."""
    wanted = {
        "ping_interval": 300.0,
        "ping_grace": 420.0,
        "ping_connection": "own",
        "reconnect_limit": None,
        "schema": "pgconcert",
        "migrate": False,
        "spill_ttl": 3600.0,
    }
    for kind in (AsyncCoordinator, Coordinator):
        defaults: dict[str, object] = kind.__init__.__kwdefaults__ or {}
        assert {name: defaults[name] for name in wanted} == wanted
        for verb, name, default in (
            ("subscribe", "capacity", 1024),
            ("subscribe", "overflow", "drop_newest"),
            ("subscribe", "gaps", "count"),
            ("subscribe", "delivery", "all"),
            ("fanout", "overflow", "drop_newest"),
            ("channel_lock", "acquire_interval", 30.0),
        ):
            assert getattr(kind, verb).__kwdefaults__[name] == default
    assert PING_CHANNEL == "listener_ping"


# sending


async def test_of_many_messages_each_has_its_fate(world: str) -> None:
    """`PublishManyFailed` names by their places those that were not sent, and the others arrive."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other, other.subscribe("a") as messages:
        await c.publish("a", "before")
        handles(c).lose_connection(reconnect=False)
        with pytest.raises(PublishManyFailed, match="2 of 2 messages were not published; the first: ") as failed:
            await c.publish_many([("a", "0"), ("a", "1")])
        assert [*failed.value.failures] == [0, 1]
        assert all(isinstance(error, (Unavailable, PublishUncertain)) for error in failed.value.failures.values())
        handles(c).reconnect()
        await c.publish_many([])
        await c.publish("a", "end")
        assert [(await messages.get()).text for _ in range(2)] == ["before", "end"]


async def test_a_cancelled_publish_does_not_hang(world: str) -> None:
    """Cancelled at whatever step it is, it ends, and the next message is sent."""
    async with AsyncCoordinator(world) as c, c.subscribe("a") as messages:
        for steps in range(4):
            sending = asyncio.create_task(c.publish("a", "perhaps"))
            for _ in range(steps):
                await asyncio.sleep(0)
            sending.cancel()
            async with asyncio.timeout(30):
                await asyncio.wait([sending])
        await c.publish("a", "end")
        async with asyncio.timeout(30):
            while (await messages.get()).text != "end":
                pass


# receiving


async def test_one_that_is_stuck_among_a_thousand(world: str) -> None:
    """999 subscribers get everything at once; the one that takes nothing costs itself, and knows what."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other, c.subscribe("a", capacity=1) as stuck:
        async with contextlib.AsyncExitStack() as stack:
            entered = [await stack.enter_async_context(c.subscribe("a")) for _ in range(999)]
            await other.publish_many([("a", str(number)) for number in range(50)])
            await eventually_async(lambda: stuck.statistics.dropped == 49)
            # nobody was waited for: all is there by now, and nobody has taken anything
            assert {each.statistics.queued for each in entered} == {50}
            for each in entered:
                assert [(await each.get()).text for _ in range(50)] == [str(number) for number in range(50)]
        assert stuck.statistics.queued == 1


async def test_an_unknown_envelope_is_delivered_as_it_came(world: str) -> None:
    """What a later version may send, or what only looks like an envelope, is not lost: raw, with the reason."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other, c.subscribe("a") as messages:
        story = Story(c, MessageMalformed)
        sender = handles(other).messenger
        assert sender is not None
        for raw in (b"pgconcert:9 {}\nx", b"pgconcert:1 {oops"):
            sent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            sender.publish(b"a", raw, sent)
            await sent
            message = await messages.get()
            assert message.payload == raw
            assert message.malformed
        assert story.kinds() == ["MessageMalformed"], "told once in a while"
        assert "version '9'" in story.words()[0]


class Fetches:
    """A messenger that answers nothing but what it is told to."""

    def __init__(self) -> None:
        self.ears: dict[str, Ear] = {}
        self.answers: dict[int, Answer[bytes | None]] = {}

    def listen(self, channel: str, ear: Ear) -> None:
        """At once it hears."""
        self.ears[channel] = ear
        ear.ready()

    def unlisten(self, channel: str, ear: Ear) -> None:
        """It hears no more."""
        del self.ears[channel]

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Note it."""
        self.answers[number] = answer


async def test_a_large_message_holds_up_its_own_channel_only() -> None:
    """While payloads are fetched, in whatever order they come, their channel waits in its order, and others do not."""
    messenger: Any = Fetches()
    loop = asyncio.get_running_loop()
    broker = brokers.Broker(messenger, loop, EventStream(), KeySpace(""), payloads=True, spill_ttl=60)
    inboxes = {name: Inbox[Message]((name,), broker.events, 100, "error", "yield") for name in ("slow", "other")}

    def taken(name: str) -> list[str | Gap]:
        found: list[str | Gap] = []
        while (item := inboxes[name].take()) is not None:
            found.append(item.text if isinstance(item, Message) else item)
        return found

    for name, inbox in inboxes.items():
        await broker.enter([name], inbox)
    slow, other = (messenger.ears[name] for name in inboxes)
    payloads = {1: b"first, large", 2: b"second, large", 3: b"gone"}
    slow.heard(b"before", 1, False)
    for number, payload in payloads.items():
        slow.heard(encode(b"", spill=Spill.of(number, payload)), 1, False)
        slow.heard(b"after %d" % number, 1, False)
    other.heard(b"not held up", 1, False)
    assert (taken("slow"), taken("other")) == (["before"], ["not held up"])
    messenger.answers[2].set_result(payloads[2])
    assert taken("slow") == []
    messenger.answers[1].set_result(payloads[1])
    assert taken("slow") == ["first, large", "after 1", "second, large", "after 2"]
    messenger.answers[3].set_result(None)
    gap, after = taken("slow")
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.count, gap.channels) == ("payload", 1, ("slow",))
    assert after == "after 3"
    slow.heard(b"at once", 1, False)
    assert taken("slow") == ["at once"]
    await broker.close()


async def test_a_hook_that_takes_part_in_one_process_is_active_again_after_a_loss(world: str) -> None:
    """A subscription that a reconnect hook has made is told once that it is the one, and again after each loss."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other, contextlib.AsyncExitStack() as stack:
        story = Story(c, ActiveChanged)
        made: list[AsyncSubscription[Message]] = []

        async def hook(told: object) -> None:
            if not made:
                made.append(await stack.enter_async_context(c.subscribe("a", delivery="one-process")))

        c.on_reconnect(hook)
        async with c.subscribe("something else"):
            for number in range(3):
                await eventually_async(lambda: bool(made) and made[0].active)
                await other.publish("a", str(number))
                assert (await made[0].get(10)).text == str(number)
                handles(c).lose_connection()
                await eventually_async(lambda number=number: len(story.events) == 2 * number + 3)  # type: ignore[misc]
        active = [event.active for event in story.events if isinstance(event, ActiveChanged)]
        assert active == [True, False] * 3 + [True]


# what is refused


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ping_interval": 0}, "ping_interval must be a number of seconds above 0"),
        ({"ping_grace": -1}, "ping_grace must be a number of seconds above 0"),
        ({"ping_interval": 60, "ping_grace": 60}, "ping_grace .* must be more than ping_interval"),
        ({"spill_ttl": 0}, "spill_ttl must be 1 to 10000000 seconds"),
        ({"reconnect_limit": 0}, "reconnect_limit must be a whole number of attempts from 1"),
        ({"migrate": 1}, "migrate must be True or False"),
    ],
)
@pytest.mark.parametrize("kind", [AsyncCoordinator, Coordinator])
def test_settings_that_make_no_sense(world: str, kind: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        kind(world, **settings)


async def test_what_must_be_bounded(world: str) -> None:
    """A request and the closing of handlers have a limit in any case."""
    async with AsyncCoordinator(world) as c, c.listen({"a": lambda message: message.payload}):
        with pytest.raises(ConfigurationError, match="timeout"):
            await c.request("a", timeout=None)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="close_timeout"):
            _ = c.listen({"a": print}, close_timeout=None)  # type: ignore[arg-type]


async def test_an_id_that_is_none(world: str) -> None:
    """An id that somebody meant to give, and has not, is not left out silently."""
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="id"):
            await c.publish("a", id=None)  # type: ignore[arg-type]
