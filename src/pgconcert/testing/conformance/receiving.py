"""Cases of receiving: queues that are full, gaps, filters, several takers, and who is not delayed by whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from ... import AsyncCoordinator, BrokerClosed, ConfigurationError, Gap, ListenerOverflow, Message, MessagesLost
from ...events import HandlerFailed, MessagesMissed
from .reading import everything, judge, seen, texts, up_to
from .suite import Stage, case, raises


async def _numbers(c: AsyncCoordinator, channel: str, first: int, end: int) -> None:
    await c.publish_many([(channel, str(number)) for number in range(first, end)])


def _shown(items: list[Message | Gap]) -> list[str]:
    return [item.text if isinstance(item, Message) else f"{item.reason} {item.count}" for item in items]


@case("messages")
async def a_full_queue_drops_the_newest(stage: Stage) -> None:
    """``drop_newest`` keeps what waits; the gap stands behind it, with the count, and nothing follows in its place."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    missed = seen(b, MessagesMissed)
    async with b.subscribe(channel, capacity=3, gaps="yield") as slow, b.subscribe(channel) as witness:
        await _numbers(a, channel, 0, 10)
        assert len(await texts(witness, 10)) == 10
        statistics = slow.statistics
        assert (statistics.received, statistics.queued, statistics.dropped) == (3, 3, 7), statistics
        assert statistics.gaps == {"overflow": 1}, statistics
        assert _shown([await slow.get() for _ in range(4)]) == ["0", "1", "2", "overflow 7"]
        await _numbers(a, channel, 10, 12)
        await a.publish(channel, "end")
        assert _shown(await everything(slow, "end")) == ["10", "11"]
        gap = slow.statistics.last_gap
        assert gap is not None
        assert (gap.reason, gap.count, gap.channels) == ("overflow", 7, (channel,))
        assert gap.since <= gap.until
    assert {event.reason for event in missed} == {"overflow"}
    assert sum(event.count or 0 for event in missed) == 7, f"events do not tell what was lost: {missed}"


@case("messages")
async def a_gap_stands_where_messages_are_missing(stage: Stage) -> None:
    """Room that is made while a queue overflows is used again, and the gap stands between old and new messages."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel, capacity=3, gaps="yield") as slow, b.subscribe(channel) as witness:
        await _numbers(a, channel, 0, 5)
        await texts(witness, 5)
        assert _shown([await slow.get()]) == ["0"]
        await _numbers(a, channel, 5, 7)
        await texts(witness, 2)
        assert _shown([await slow.get() for _ in range(5)]) == ["1", "2", "overflow 2", "5", "overflow 1"]
        statistics = slow.statistics
        assert (statistics.received, statistics.dropped, statistics.gaps) == (4, 3, {"overflow": 2}), statistics


@case("messages")
async def a_full_queue_drops_the_oldest(stage: Stage) -> None:
    """``drop_oldest`` keeps the latest; the gap stands before them, with the count."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    missed = seen(b, MessagesMissed)
    async with (
        b.subscribe(channel, capacity=3, overflow="drop_oldest", gaps="yield") as slow,
        b.subscribe(channel) as witness,
    ):
        await _numbers(a, channel, 0, 10)
        await texts(witness, 10)
        assert _shown([await slow.get() for _ in range(4)]) == ["overflow 7", "7", "8", "9"]
        statistics = slow.statistics
        assert (statistics.dropped, statistics.queued, statistics.gaps) == (7, 0, {"overflow": 1}), statistics
    assert sum(event.count or 0 for event in missed) == 7, f"events do not tell what was lost: {missed}"


@case("messages")
async def a_full_queue_can_be_the_end(stage: Stage) -> None:
    """``error`` gives what is queued and then raises ``ListenerOverflow``, again and again; others go on."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel, capacity=3, overflow="error") as slow, b.subscribe(channel) as witness:
        await _numbers(a, channel, 0, 10)
        assert await texts(witness, 10) == [str(number) for number in range(10)]
        assert await texts(slow, 3) == ["0", "1", "2"]
        for _ in range(2):
            with raises(ListenerOverflow, channel):
                await slow.get()
        with raises(ListenerOverflow):
            async for message in slow:
                raise AssertionError(f"{message} came after the end")
        await a.publish(channel, "more")
        assert await texts(witness, 1) == ["more"]


@case("messages")
async def what_is_dropped_is_counted(stage: Stage) -> None:
    """However a small queue is filled and emptied, each message comes, or a gap with the true count is in its place."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    policies: tuple[Literal["drop_newest", "drop_oldest"], ...] = ("drop_newest", "drop_oldest")
    for overflow in policies:
        async with b.subscribe(channel, capacity=7, overflow=overflow, gaps="yield") as slow:
            items: list[Message | Gap] = []
            async with b.subscribe(channel) as witness:
                for turn in range(30):
                    await _numbers(a, channel, turn * 10, turn * 10 + 10)
                    await texts(witness, 10)
                    items += [await slow.get() for _ in range(turn % 8)]
                while slow.statistics.queued:
                    items.append(await slow.get())
                await a.publish(channel, "end")
                items += await everything(slow, "end")
            judge(items, 0, 300)
            statistics = slow.statistics
            assert statistics.received - 1 + (0 if overflow == "drop_oldest" else statistics.dropped) == 300, statistics
            gaps = [item for item in items if isinstance(item, Gap)]
            assert sum(gap.count or 0 for gap in gaps) == statistics.dropped > 0, (gaps, statistics)
            assert statistics.gaps == {"overflow": len(gaps)}, (gaps, statistics)


@case("messages")
async def gaps_can_be_counted_or_raised(stage: Stage) -> None:
    """``count`` tells gaps in the statistics alone, ``raise`` raises ``MessagesLost`` in their place and goes on."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with (
        b.subscribe(channel, capacity=2) as counts,
        b.subscribe(channel, capacity=2, gaps="raise") as gets,
        b.subscribe(channel, capacity=2, gaps="raise", overflow="drop_oldest") as iterates,
        b.subscribe(channel) as witness,
    ):
        await _numbers(a, channel, 0, 5)
        await texts(witness, 5)
        assert await texts(counts, 2) == ["0", "1"]
        assert await texts(gets, 2) == ["0", "1"]
        with raises(MessagesLost, "overflow") as lost:
            await gets.get()
        gap = lost.error.gap
        assert isinstance(gap, Gap)
        assert (gap.reason, gap.count) == ("overflow", 3)
        with raises(MessagesLost):
            async for message in iterates:
                raise AssertionError(f"{message} came before the error")
        assert await texts(iterates, 2) == ["3", "4"]
        await a.publish(channel, "end")
        assert await texts(iterates, 1) == await texts(gets, 1) == await texts(counts, 1) == ["end"]
        assert counts.statistics.gaps == {"overflow": 1}
        assert counts.statistics.dropped == 3


@case("messages")
async def one_that_is_stuck_delays_nobody(stage: Stage) -> None:
    """One subscriber that takes nothing, whatever its policy, costs none of fifty others a message."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with (
        b.subscribe(channel, capacity=1) as stuck,
        b.subscribe(channel, capacity=1, overflow="drop_oldest"),
        b.subscribe(channel, capacity=1, overflow="error"),
        b.subscribe(channel, where=lambda message: message.json() > "not a number"),
    ):
        others = [b.subscribe(channel) for _ in range(50)]
        for other in others:
            await other.__aenter__()
        await _numbers(a, channel, 0, 500)
        for other in others:
            assert await texts(other, 500) == [str(number) for number in range(500)]
            await other.close()
        assert stuck.statistics.dropped == 499


@case("messages")
async def filters_choose(stage: Stage) -> None:
    """``where`` lets in what a subscriber wants; what it does not want takes no room and makes no gap."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with (
        b.subscribe(channel, where=lambda message: int(message.text) % 100 == 0, capacity=10, gaps="yield") as few,
        b.subscribe(channel) as all_of_them,
    ):
        await _numbers(a, channel, 1, 1001)
        assert len(await texts(all_of_them, 1000)) == 1000
        assert _shown([await few.get() for _ in range(10)]) == [str(number) for number in range(100, 1001, 100)]
        statistics = few.statistics
        assert (statistics.received, statistics.dropped, statistics.gaps) == (10, 0, {}), statistics


@case("messages")
async def filters_that_raise(stage: Stage) -> None:
    """A filter that raises costs its own subscriber that message: a gap ``filter`` and ``HandlerFailed`` tell it."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    failed = seen(b, HandlerFailed)

    def fussy(message: Message) -> bool:
        if message.text == "3":
            raise asyncio.CancelledError
        return int(message.text) > 0

    async with b.subscribe(channel, where=fussy, gaps="yield") as messages, b.subscribe(channel) as other:
        for text in ("1", "x", "3", "4"):
            await a.publish(channel, text)
        assert await texts(other, 4) == ["1", "x", "3", "4"]
        items = [await messages.get() for _ in range(3)]
        # two that meet are one
        assert _shown(items) == ["1", "filter 2", "4"]
        assert messages.statistics.gaps["filter"] >= 1
    assert [type(event.error) for event in failed] == [ValueError, asyncio.CancelledError]
    assert {event.channel for event in failed} == {channel}


@case("messages")
async def several_takers_share(stage: Stage) -> None:
    """Tasks that take from one subscription share its messages: each goes to one of them, and who leaves takes none."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with b.subscribe(channel) as messages:
        takers = [asyncio.create_task(_taken(messages)) for _ in range(4)]
        leaver = await stage.waiting(messages.get())
        leaver.cancel()
        await asyncio.wait([leaver])
        await _numbers(a, channel, 0, 300)
        await a.publish_many([(channel, "end")] * 4)
        found = await asyncio.gather(*takers)
        assert sorted(number for numbers in found for number in numbers) == [*range(300)]
        for numbers in found:
            assert numbers == sorted(numbers), f"one of them got messages out of order: {numbers}"


async def _taken(messages: Any) -> list[int]:
    return [int(text) for text in await up_to(messages, "end")]


@case("messages")
async def payloads_are_nobody_elses(stage: Stage) -> None:
    """What a publisher does to its buffer afterwards reaches nobody, and no subscriber can change what others get."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    buffer = bytearray(b"as it was")
    headers = {"trace": "as it was"}
    async with b.subscribe(channel) as one, b.subscribe(channel) as two:
        sending = [
            asyncio.create_task(a.publish(channel, buffer)),
            asyncio.create_task(a.publish(channel, memoryview(buffer), headers=headers)),
        ]
        await asyncio.sleep(0)
        buffer[:] = b"different"
        headers["trace"] = "different"
        await asyncio.gather(*sending)
        first = [await one.get(), await one.get()]
        for message in first:
            assert type(message.payload) is bytes
            with raises(TypeError):
                message.headers["trace"] = "changed"  # type: ignore[index]
            with raises(AttributeError):
                message.payload = b"changed"  # type: ignore[misc]
        for message in (*first, await two.get(), await two.get()):
            assert message.payload == b"as it was", f"{message}: a publisher's buffer was read too late"
        assert dict(first[1].headers) == {"trace": "as it was"}


@case("messages")
async def two_hundred_subscriptions(stage: Stage) -> None:
    """Two hundred subscriptions, half of them of one channel: each gets what is its own, and all of it."""
    a, b = await stage.open(), await stage.open()
    common = stage.channel()
    channels = [stage.channel() for _ in range(100)]
    subscriptions = [b.subscribe(common) for _ in range(100)] + [b.subscribe(channel, common) for channel in channels]
    await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
    await a.publish_many([(channel, channel) for channel in channels])
    await a.publish_many([(common, "1"), (common, "end")])
    for subscription in subscriptions:
        own = [channel for channel in subscription.channels if channel != common]
        assert sorted(await up_to(subscription, "end")) == sorted(["1", *own])
    for subscription in subscriptions[::2]:
        await subscription.close()
    await a.publish(common, "2")
    for subscription in subscriptions[1::2]:
        assert await texts(subscription, 1) == ["2"]
        await subscription.close()


@case("messages")
async def a_subscription_is_used_in_its_block(stage: Stage) -> None:
    """Before it is entered nothing can be received, and it is entered once; a channel named twice is heard once."""
    c = await stage.open()
    channel = stage.channel()
    messages = c.subscribe(channel, channel)
    assert messages.channels == (channel,)
    with raises(RuntimeError, "async with"):
        await messages.get()
    with raises(RuntimeError, "async with"):
        aiter(messages)
    async with messages:
        assert messages.active
        with raises(RuntimeError, "once"):
            await messages.__aenter__()
        await c.publish(channel, "x")
        await c.publish(channel, "end")
        assert await up_to(messages, "end") == ["x"]
    assert not messages.active
    with raises(RuntimeError, "once"):
        await messages.__aenter__()
    with raises(BrokerClosed):
        await messages.get()


@case("messages")
async def wrong_settings_are_refused(stage: Stage) -> None:
    """Capacities, policies, filters and time limits that make no sense are refused, with what they may be."""
    c = await stage.open()
    channel = stage.channel()
    make: Callable[..., Any] = c.subscribe
    wrong: list[dict[str, Any]] = [
        {"capacity": 0},
        {"capacity": True},
        {"overflow": "drop"},
        {"gaps": "ignore"},
        {"where": "text"},
        {"skip_own": 1},
        {"delivery": "each"},
        {"timeout": -1},
    ]
    for options in wrong:
        with raises(ConfigurationError, *options):
            make(channel, **options)
