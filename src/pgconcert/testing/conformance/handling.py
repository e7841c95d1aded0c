"""Cases of handlers: order, many at once, what they raise, what they return, gaps, consumers of one's own."""

from __future__ import annotations

import asyncio
from typing import Any

from ... import ConfigurationError, Gap, Message
from ...events import DeliveryFailed, HandlerFailed
from ..leaks import eventually_async
from .reading import Heard, seen
from .suite import Stage, case, raises, turns


@case("messages")
async def handlers_get_messages_in_order(stage: Stage) -> None:
    """Async and plain handlers get the messages of their channel, and no other's, in their order."""
    a, b = await stage.open(), await stage.open()
    one, two = stage.channel(), stage.channel()
    plain, slow = Heard(), Heard()
    async with b.listen({one: plain, two: slow.slowly}) as listening:
        assert listening.channels == (one, two)
        assert listening.active
        await a.publish_many([(channel, str(number)) for number in range(200) for channel in (one, two)])
        await a.publish_many([(one, "end"), (two, "end")])
        expected = [*map(str, range(200)), "end"]
        assert await plain.until("end") == expected
        assert await slow.until("end") == expected
    assert not listening.active
    assert {message.channel for message in slow.messages} == {two}


@case("messages")
async def a_slow_handler_delays_its_own_channel_only(stage: Stage) -> None:
    """While a handler of one channel does not come back those of others go on, and subscriptions of the same."""
    a, b = await stage.open(), await stage.open()
    one, two = stage.channel(), stage.channel()
    heard = Heard()
    go_on = asyncio.Event()

    async def stuck(message: Message) -> None:
        heard(message)
        await go_on.wait()

    other = Heard()
    async with b.listen({one: stuck, two: other}), b.subscribe(one) as messages:
        for text in ("1", "2", "end"):
            await a.publish(one, text)
            await a.publish(two, text)
        assert [(await messages.get()).text for _ in range(3)] == ["1", "2", "end"]
        assert await other.until("end") == ["1", "2", "end"]
        assert heard.texts == ["1"], "a handler was called before it had come back"
        go_on.set()
        assert await heard.until("end") == ["1", "2", "end"]


@case("messages")
async def so_many_run_at_once(stage: Stage) -> None:
    """With ``concurrency=3`` three handlers of a channel run at once, and never a fourth; each message goes to one."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    running: list[str] = []
    most = 0
    heard = Heard()
    full = asyncio.Event()

    async def handler(message: Message) -> None:
        nonlocal most
        running.append(message.text)
        most = max(most, len(running))
        if len(running) == 3:
            full.set()
        await full.wait()
        await turns(2)
        running.remove(message.text)
        heard(message)

    async with b.listen({channel: handler}, concurrency=3):
        await a.publish_many([(channel, str(number)) for number in range(50)])
        await eventually_async(lambda: len(heard.texts) >= 50, 20, what="50 messages are handled")
    assert most == 3
    assert sorted(map(int, heard.texts)) == [*range(50)]


@case("messages")
async def what_handlers_raise_is_contained(stage: Stage) -> None:
    """A handler that raises, async or plain, a ``CancelledError`` too, is told (``HandlerFailed``); later messages and
    other handlers are not concerned."""
    a, b = await stage.open(), await stage.open()
    one, two, three = stage.channel(), stage.channel(), stage.channel()
    failed = seen(b, HandlerFailed)
    heard, other = Heard(), Heard()

    def plain(message: Message) -> None:
        if message.text != "end":
            raise ValueError(message.text)
        heard(message)

    async def slow(message: Message) -> None:
        await turns(1)
        if message.text == "1":
            raise asyncio.CancelledError
        plain(message)

    async with b.listen({one: plain, two: slow}), b.listen({one: other, three: other}):
        for channel in (one, two, three):
            await a.publish_many([(channel, "1"), (channel, "2"), (channel, "end")])
        await heard.until("end", 2)
        await other.until("end", 2)
    assert sorted(other.texts) == sorted(["1", "2", "end"] * 2)
    kinds = {channel: [type(event.error) for event in failed if event.channel == channel] for channel in (one, two)}
    assert kinds == {one: [ValueError, ValueError], two: [asyncio.CancelledError, ValueError]}
    assert len(failed) == 4


@case("messages")
async def catch_all_gets_everything(stage: Stage) -> None:
    """``catch_all`` gets the messages of all channels that its coordinator hears, whoever wanted them, each once."""
    a, b = await stage.open(), await stage.open()
    one, two, nobodys = stage.channel(), stage.channel(), stage.channel()
    everything, own = Heard(), Heard()
    async with b.subscribe(two), b.subscribe(two), b.listen({one: own}, catch_all=everything):
        await a.publish_many([(nobodys, "0"), (one, "1"), (two, "2"), (one, "end")])
        await everything.until("end")
        assert [(message.channel, message.text) for message in everything.messages] == [
            (one, "1"),
            (two, "2"),
            (one, "end"),
        ]
        assert await own.until("end") == ["1", "end"]


@case("messages")
async def gaps_reach_their_handler(stage: Stage) -> None:
    """``on_gap`` gets a gap in its place; what it raises is contained like a handler's error."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    failed = seen(b, HandlerFailed)
    go_on = asyncio.Event()
    story: list[str | int | None] = []

    async def handler(message: Message) -> None:
        story.append(message.text)
        await go_on.wait()

    async def on_gap(gap: Gap) -> None:
        story.append(gap.count)
        raise ValueError("a gap")

    async with (
        b.listen({channel: handler}, capacity=2, on_gap=on_gap),
        b.subscribe(channel) as witness,
    ):
        await a.publish(channel, "0")
        await witness.get()
        await eventually_async(lambda: story == ["0"], 20, what="the first message is being handled")
        await a.publish_many([(channel, str(number)) for number in range(1, 8)])
        for _ in range(7):
            await witness.get()
        go_on.set()
        await eventually_async(lambda: len(story) == 4, 20, what="two messages and a gap are handled")
        await a.publish(channel, "end")
        await eventually_async(lambda: len(story) == 5, 20, what="the handler goes on after the gap")
    assert story == ["0", "1", "2", 5, "end"]
    assert [str(event.error) for event in failed] == ["a gap"]


class _Consumer:
    """A consumer of one's own."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        self.payloads: list[bytes] = []

    async def deliver(self, payload: bytes) -> None:
        """Keep what comes; raise at what is wrong."""
        if payload == b"wrong":
            raise ValueError
        self.payloads.append(payload)


@case("messages")
async def consumers_of_ones_own(stage: Stage) -> None:
    """``attach`` lets an object with ``channel`` and ``deliver`` hear; two of one channel get each a copy."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    failed = seen(b, HandlerFailed)
    one, two = _Consumer(channel), _Consumer(channel)
    async with b.attach(one), b.attach(two):
        for payload in (b"\xff", b"wrong", b"end"):
            await a.publish(channel, payload)
        for consumer in (one, two):
            await eventually_async(lambda: b"end" in consumer.payloads, 20, what="a consumer gets it")  # noqa: B023
            assert consumer.payloads == [b"\xff", b"end"]
    assert len(failed) == 2
    wrong: Any = object()
    with raises(ConfigurationError, "deliver"):
        _ = b.attach(wrong)


@case("messages")
async def what_a_handler_returns_is_told_once(stage: Stage) -> None:
    """A handler that returns something for what is no request is told so (``DeliveryFailed``), once."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    told = seen(b, DeliveryFailed)
    heard = Heard()

    def handler(message: Message) -> str:
        heard(message)
        return "a reply to nobody"

    async with b.listen({channel: handler}):
        await a.publish_many([(channel, "1"), (channel, "end")])
        await heard.until("end")
    assert [event.channel for event in told] == [channel]
