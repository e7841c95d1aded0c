"""Cases of connections that are lost, or replaced: who is told, what a gap covers, and what goes on by itself."""

from __future__ import annotations

import asyncio
from typing import Any

from ... import AsyncCoordinator, Gap, Message, Reconnected, RequestTimeout
from ...events import HookFailed, ListenerBounced, ListenerReady, MessagesMissed
from ..leaks import eventually_async
from .reading import Heard, everything, insist, judge, seen, texts, up_to
from .suite import Stage, case, turns

_FLOOD = 20


async def _gap(messages: Any, *channels: str) -> Gap:
    """The next items, which must be gaps, until they cover these channels: joined."""
    joined: Gap | None = None
    while joined is None or not {*channels} <= {*joined.channels}:
        item = await messages.get()
        assert isinstance(item, Gap), f"{item} came where a gap was to tell of the lost connection"
        assert (item.reason, item.count) == ("reconnect", None), item
        joined = item if joined is None else joined.joined(item)
    assert {*joined.channels} == {*channels}, joined
    return joined


class _Flood:
    """Numbered messages of one channel, until it is ended."""

    def __init__(self, c: AsyncCoordinator, channel: str) -> None:
        self.sent = 0
        self._ended = False
        self._c = c
        self._channel = channel
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._ended:
            numbers = range(self.sent, self.sent + _FLOOD)
            await self._c.publish_many([(self._channel, str(number)) for number in numbers])
            self.sent += _FLOOD
            await turns(1)

    async def end(self) -> None:
        """No more of them; behind the last one goes a message ``end``."""
        if not self._ended:
            self._ended = True
            await self._task
            await self._c.publish(self._channel, "end")


class _Reader:
    """Takes everything, until the message ``end``."""

    def __init__(self, messages: Any) -> None:
        self.items: list[Message | Gap] = []
        self._messages = messages
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not isinstance(item := await self._messages.get(), Message) or item.text != "end":
            self.items.append(item)

    @property
    def gaps(self) -> int:
        return sum(isinstance(item, Gap) for item in self.items)

    async def beyond_gap(self, count: int) -> None:
        """Wait until so many gaps were told, and a message after them."""

        def beyond() -> bool:
            return self.gaps >= count and isinstance(self.items[-1], Message)

        await eventually_async(beyond, 20, what=f"{count} gaps were told, and messages come again")


async def _read(reader: _Reader, flood: _Flood) -> list[Message | Gap]:
    """Everything that came of a flood that is ended here."""
    await flood.end()
    await reader.task
    return reader.items


@case("messages", "lose")
async def a_lost_connection_is_told_to_every_subscriber(stage: Stage) -> None:
    """Whoever listens when the connection is lost gets a gap of unknown size, and messages go on without a further
    word; no other coordinator is told anything."""
    a, b = await stage.open(), await stage.open()
    one, two = stage.channel(), stage.channel()
    missed, ready = seen(b, MessagesMissed), seen(b, ListenerReady)
    async with (
        b.subscribe(one, gaps="yield") as first,
        b.subscribe(one, two, gaps="yield") as second,
        b.subscribe(two) as third,
        a.subscribe(one, two, gaps="yield") as other,
    ):
        await a.publish(one, "before")
        assert await texts(first, 1) == await texts(second, 1) == await texts(other, 1) == ["before"]
        await stage.lose(b)
        gap = await _gap(first, one)
        assert gap.since <= gap.until
        await _gap(second, one, two)
        await a.publish(one, "after")
        await a.publish(two, "end")
        assert await texts(first, 1) == ["after"]
        assert await up_to(second, "end") == ["after"]
        assert await texts(third, 1) == ["end"]
        assert third.statistics.gaps == {"reconnect": 1}, third.statistics
        items = await everything(other, "end")
        assert [item.text for item in items if isinstance(item, Message)] == ["after"], items
        assert len(items) == 1, f"a coordinator that has lost nothing was told of a gap: {items}"
    assert {event.reason for event in missed} == {"reconnect"}
    assert {channel for event in missed for channel in event.channels} == {one, two}
    assert ready[0].initial
    assert ready[0].deaf_for is None
    assert [event.initial for event in ready[1:]] == [False] * len(ready[1:])
    assert len(ready) > 1, "that listening is proven again was not told by ListenerReady"
    assert ready[-1].deaf_for is not None


@case("messages", "lose")
async def what_was_missed_is_covered(stage: Stage) -> None:
    """Under a flood of numbered messages the connection is lost ten times: each message is received once, in order, or
    lies in a gap that was told."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with (
        b.subscribe(channel, gaps="yield", capacity=10_000_000) as one,
        b.subscribe(channel, gaps="yield", capacity=10_000_000) as two,
    ):
        readers = [_Reader(one), _Reader(two)]
        flood = _Flood(a, channel)
        for times in range(1, 11):
            await stage.lose(b)
            for reader in readers:
                await reader.beyond_gap(times)
        for reader in readers:
            judge(await _read(reader, flood), 0, flood.sent)


@case("messages")
async def a_fresh_link_costs_no_unreported_message(stage: Stage) -> None:
    """The same with ``bounce``, five times."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel, gaps="yield", capacity=10_000_000) as messages:
        reader = _Reader(messages)
        flood = _Flood(a, channel)
        for times in range(1, 6):
            b.bounce()
            await reader.beyond_gap(times)
        judge(await _read(reader, flood), 0, flood.sent)


@case("messages", "lose")
async def two_subscriptions_of_a_channel_ride_through(stage: Stage) -> None:
    """Of two subscriptions of one channel one may leave; after a loss each that is left gets each message, once."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel) as one, b.subscribe(channel) as two:
        leaves = b.subscribe(channel)
        async with leaves:
            pass
        await a.publish(channel, "1")
        assert await texts(one, 1) == await texts(two, 1) == ["1"]
        await stage.lose(b)
        await _until_gap(one, two)
        for text in ("2", "3", "end"):
            await a.publish(channel, text)
        assert await up_to(one, "end") == await up_to(two, "end") == ["2", "3"]
        assert leaves.statistics.received == 0


async def _until_gap(*subscriptions: Any) -> None:
    """Wait until each has been told of a reconnect: from then on it hears everything."""

    def told() -> bool:
        return all(subscription.statistics.gaps.get("reconnect") for subscription in subscriptions)

    await eventually_async(told, 20, what="every subscriber was told of the lost connection")


@case("messages", "lose")
async def entering_while_it_is_lost(stage: Stage) -> None:
    """Who enters while the connection is lost hears everything after the entry, and is told of no gap before it."""
    a, b = await stage.open(), await stage.open()
    old, new = stage.channel(), stage.channel()
    ready = seen(b, ListenerReady)
    async with b.subscribe(old):
        for turn in range(3):
            before = len(ready)
            losing = asyncio.create_task(stage.lose(b))
            await turns(turn)
            async with b.subscribe(new, old, gaps="yield", capacity=10_000_000) as messages:
                reader = _Reader(messages)
                flood = _Flood(a, new)
                await losing
                await eventually_async(lambda: len(ready) > before, 20, what="listening is proven again")  # noqa: B023
                judge(await _read(reader, flood), 0, flood.sent)


@case("messages")
async def how_well_we_hear(stage: Stage) -> None:
    """``listening`` is unknown before anything was listened to, and connected once somebody else was heard."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    assert b.listening == "unknown"
    async with b.subscribe(channel) as messages:
        assert b.listening in ("solitary", "connected")
        await a.publish(channel, "x")
        await messages.get()
        assert b.listening == "connected"


@case("messages")
async def hooks_run_when_listening_is_proven(stage: Stage) -> None:
    """A hook is called when listening is proven for the first time, or at once if it was; with ``initial=False`` not;
    and what it publishes is heard."""
    c = await stage.open()
    channel = stage.channel()
    told: list[Reconnected] = []

    async def hook(reconnected: Reconnected) -> None:
        told.append(reconnected)
        await c.publish(channel, "from the hook")

    c.on_reconnect(told.append, initial=False)
    c.on_reconnect(hook)
    await stage.settle()
    assert not told, "a hook was called, and nothing is listened to"
    async with c.subscribe(channel) as messages:
        assert await texts(messages, 1) == ["from the hook"]
        c.on_reconnect(hook)
        assert await texts(messages, 1) == ["from the hook"]
    assert [(one.initial, one.deaf_for) for one in told] == [(True, None)] * 2


@case("messages", "lose")
async def hooks_run_again_after_a_loss(stage: Stage) -> None:
    """After each loss every hook is called once, with how long nothing was heard; a hook that was removed is not."""
    c = await stage.open()
    channel = stage.channel()
    told: list[Reconnected] = []
    removed: list[Reconnected] = []

    async def hook(reconnected: Reconnected) -> None:
        told.append(reconnected)
        await insist(lambda: c.publish(channel, "from the hook"))

    remove = c.on_reconnect(removed.append)
    c.on_reconnect(hook)
    async with c.subscribe(channel, gaps="yield") as messages:
        item = await messages.get()
        assert isinstance(item, Message)
        assert item.text == "from the hook"
        assert len(removed) == 1
        remove()
        remove()
        for _ in range(3):
            await stage.lose(c)
            await _gap(messages, channel)
            item = await messages.get()
            assert isinstance(item, Message), f"{item} came where the hook was to be heard"
            assert item.text == "from the hook"
    assert [one.initial for one in told] == [True, False, False, False], told
    assert all(one.deaf_for is not None and one.deaf_for >= 0 for one in told[1:]), told
    assert len(removed) == 1


@case("messages")
async def a_hook_that_raises_is_called_again(stage: Stage) -> None:
    """What a hook raises is told (``HookFailed``), other hooks run all the same, and it is called again until it ends
    well, and not once more."""
    c = await stage.open()
    channel = stage.channel()
    failed = seen(c, HookFailed)
    calls: list[Reconnected] = []
    others: list[Reconnected] = []

    def hook(reconnected: Reconnected) -> None:
        calls.append(reconnected)
        if len(calls) == 1:
            raise ValueError("the first time")

    c.on_reconnect(hook)
    c.on_reconnect(others.append)
    async with c.subscribe(channel):
        await eventually_async(lambda: len(calls) == 2, 20, what="the hook is called again")
        await stage.settle()
    assert len(calls) == 2
    assert calls[0] == calls[1]
    assert len(others) == 1
    (event,) = failed
    assert str(event.error) == "the first time"
    assert event.retry_in > 0
    assert "hook" in event.hook


@case("messages")
async def bounces_are_one(stage: Stage) -> None:
    """A hundred calls of ``bounce`` make one fresh link, and one gap; before anything is listened to they make none."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    ready, bounced = seen(b, ListenerReady), seen(b, ListenerBounced)
    b.bounce("nothing is there")
    await stage.settle()
    assert not ready
    assert not bounced
    async with b.subscribe(channel, gaps="yield") as messages:
        for _ in range(100):
            b.bounce("the reason")
        await _gap(messages, channel)
        await stage.settle()
        await a.publish(channel, "end")
        gaps = 1 + len(await everything(messages, "end"))
    assert [event.initial for event in ready] == [True, *[False] * len(bounced)], ready
    assert {event.reason for event in bounced} == {"the reason"}, bounced
    # on a thread of its own a backend may have made a fresh link before it hears of the next call
    assert gaps == len(bounced) == 1 or stage.engine == "thread", f"{gaps} gaps, {bounced}"


@case("messages", "lose")
async def catch_all_is_told_of_a_loss(stage: Stage) -> None:
    """Who gets the messages of all channels is told that some may be missing, and gets them again afterwards."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    heard = Heard()
    gaps: list[Gap] = []
    async with b.subscribe(channel) as messages, b.listen({}, catch_all=heard, on_gap=gaps.append):
        await stage.lose(b)
        await _until_gap(messages)
        await a.publish(channel, "end")
        assert await heard.until("end") == ["end"]
    assert {gap.reason for gap in gaps} == {"reconnect"}, f"the loss was not told to on_gap: {gaps}"
    assert channel in {name for gap in gaps for name in gap.channels}


@case("messages", "lose")
async def requests_work_after_a_loss(stage: Stage) -> None:
    """Whoever answers, and whoever asks, does so again after its connection was lost, without anybody's doing."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    gaps: list[Gap] = []

    async def asked() -> bytes:
        try:
            reply = await insist(lambda: a.request(channel, "x", timeout=2))
        except RequestTimeout:
            return b""  # it may have been lost with the connection
        payload: bytes = reply.payload
        return payload

    async with b.listen({channel: lambda message: message.payload * 2}, on_gap=gaps.append):
        assert await asked() == b"xx"
        await stage.lose(b)
        await eventually_async(lambda: bool(gaps), 20, what="on_gap was called")
        assert (gaps[0].reason, gaps[0].channels) == ("reconnect", (channel,))
        while await asked() != b"xx":
            await turns(1)
        await stage.lose(a)
        while await asked() != b"xx":
            await turns(1)
