"""Cases of who handles a message where many listen: one process at a time, or one for each message."""

from __future__ import annotations

import asyncio
from typing import Any

from ... import AsyncCoordinator, Gap, Message
from ...events import ActiveChanged, MessageUnclaimed
from ..leaks import eventually_async
from .reading import everything, insist, seen, texts, up_to
from .suite import Stage, case


def _one(c: AsyncCoordinator, *channels: str) -> Any:
    return c.subscribe(*channels, delivery="one-process", gaps="yield", capacity=1_000_000)


async def _until_active(messages: Any) -> None:
    await eventually_async(lambda: messages.active, 25, what="the one that stands by takes over")


@case("messages", "exclusion")
async def one_process_gets_everything(stage: Stage) -> None:
    """Of three coordinators that listen with ``one-process`` the first is active and gets everything; the others get
    nothing, while who listens otherwise is not concerned."""
    a, b, c, d = [await stage.open() for _ in range(4)]
    channel = stage.channel()
    async with _one(b, channel) as one, _one(c, channel) as two, _one(d, channel) as three:
        async with c.subscribe(channel) as plain:
            assert (one.active, two.active, three.active) == (True, False, False)
            await a.publish_many([(channel, str(number)) for number in range(50)])
            await a.publish(channel, "end")
            assert await up_to(one, "end") == [*map(str, range(50))]
            assert len(await up_to(plain, "end")) == 50
            await stage.settle()
        assert two.statistics.received == three.statistics.received == 0


@case("messages", "exclusion")
async def two_of_one_coordinator_are_two(stage: Stage) -> None:
    """Two subscriptions of one coordinator are two, of which one is active."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    async with _one(b, channel) as one, _one(b, channel) as two:
        assert (one.active, two.active) == (True, False)
        await a.publish(channel, "x")
        await a.publish(channel, "end")
        assert await up_to(one, "end") == ["x"]
        await stage.settle()
        assert two.statistics.received == 0


@case("messages", "exclusion")
async def the_next_takes_over(stage: Stage) -> None:
    """When the active one leaves another takes over: a gap ``takeover`` first, then what is published from then on.
    ``ActiveChanged`` tells who is active."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    told_b, told_c = seen(b, ActiveChanged), seen(c, ActiveChanged)
    async with _one(b, channel) as one:
        second = _one(c, channel)
        await second.__aenter__()
        await a.publish(channel, "first")
        assert await texts(one, 1) == ["first"]
        assert not second.active
    await _until_active(second)
    await a.publish(channel, "second")
    gap, message = await second.get(), await second.get()
    assert isinstance(gap, Gap), f"{gap} came where a gap was to tell of the take-over"
    assert (gap.reason, gap.count, gap.channels) == ("takeover", None, (channel,))
    assert isinstance(message, Message)
    assert message.text == "second"
    await second.close()
    assert not second.active
    assert [event.active for event in told_b][:1] == [True]
    assert [event.active for event in told_c][:1] == [True]
    assert {event.channel for event in (*told_b, *told_c)} == {channel}


@case("messages", "exclusion", "lose")
async def who_loses_the_connection_is_active_no_more(stage: Stage) -> None:
    """The active one that loses its connection is active no more, drops what it had not taken, and another takes over;
    what one of them has got the other never gets."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    told = seen(b, ActiveChanged)
    async with _one(b, channel) as one, _one(c, channel) as two:
        await a.publish(channel, "first")
        assert await texts(one, 1) == ["first"]
        await stage.lose(b)
        await eventually_async(lambda: two.active or one.active, 25, what="one of them is active")
        await eventually_async(lambda: [event.active for event in told][:2] == [True, False], 25, what="it is told")
        await eventually_async(lambda: two.active != one.active, 25, what="exactly one of them is active")
        await a.publish(channel, "second")
        active, other = (two, one) if two.active else (one, two)
        items = await everything(active, "second")
        assert "takeover" in {item.reason for item in items if isinstance(item, Gap)}, items
        assert not any(isinstance(item, Message) for item in items), items
        assert other.statistics.queued == 0


@case("messages", "exclusion", "lose")
async def nothing_is_handled_twice(stage: Stage) -> None:
    """Under a flood of numbered messages the active one leaves, or loses its connection, again and again: no number is
    handled twice, and numbers never go back."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    handled: list[int] = []
    ended = False
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while not ended:
            await a.publish_many([(channel, str(number)) for number in range(sent, sent + 10)])
            sent += 10
            await asyncio.sleep(0)

    async def handle(subscription: Any) -> None:
        async with subscription as messages:
            async for item in messages:
                if isinstance(item, Message):
                    if item.text == "end":
                        return
                    handled.append(int(item.text))

    flooding = asyncio.create_task(flood())
    subscriptions = [_one(b, channel), _one(c, channel)]
    handlers = [asyncio.create_task(handle(subscription)) for subscription in subscriptions]
    for turn in range(4):
        count = len(handled)
        await eventually_async(lambda: len(handled) > count + 20, 25, what="somebody handles messages")  # noqa: B023
        place = next((place for place, one in enumerate(subscriptions) if one.active), 0)
        if turn % 2:
            await stage.lose((b, c)[place])
        else:
            await subscriptions[place].close()
            await handlers[place]
            subscriptions[place] = _one((b, c)[place], channel)
            handlers[place] = asyncio.create_task(handle(subscriptions[place]))
    count = len(handled)
    await eventually_async(lambda: len(handled) > count + 20, 25, what="somebody handles messages at the end")
    ended = True
    await flooding
    assert handled == sorted({*handled}), "a number was handled twice, or before one that came earlier"
    assert handled[-1] < sent
    for handler in handlers:
        handler.cancel()
    await asyncio.wait(handlers)


@case("messages", "exclusion")
async def each_channel_has_its_own_turn(stage: Stage) -> None:
    """A subscription of two channels is active when it has both; each is handed over by itself, and stands by until the
    last one is free."""
    a, b, c = [await stage.open() for _ in range(3)]
    one, two = stage.channel(), stage.channel()
    second = _one(c, one, two)
    async with _one(b, one):
        async with _one(b, two):
            await second.__aenter__()
            assert not second.active
        await eventually_async(
            lambda: second.statistics.gaps.get("takeover") == 1, 25, what="it takes over the channel that is free"
        )
        assert not second.active
        # what a take-over throws away was sent before it was told, so this is heard
        await a.publish(two, "of the second")
        await a.publish(one, "of the first")
        await up_to(second, "of the second")
    await _until_active(second)
    await a.publish(one, "end")
    assert "of the first" not in await up_to(second, "end")
    await second.close()


@case("messages", "exclusion")
async def handlers_of_one_process(stage: Stage) -> None:
    """``listen`` with ``one-process`` calls the handlers of one coordinator, and on_gap at a take-over."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    handled: list[str] = []
    gaps: list[Gap] = []
    first = await b.listen({channel: lambda message: handled.append(f"b {message.text}")}, delivery="one-process")
    async with c.listen(
        {channel: lambda message: handled.append(f"c {message.text}")}, delivery="one-process", on_gap=gaps.append
    ) as second:
        assert (first.active, second.active) == (True, False)
        await a.publish(channel, "1")
        await eventually_async(lambda: handled == ["b 1"], 25, what="the first is handled")
        await first.close()
        await _until_active(second)
        await a.publish(channel, "2")
        await eventually_async(lambda: len(handled) == 2, 25, what="the second is handled")
    assert handled == ["b 1", "c 2"]
    assert [gap.reason for gap in gaps] == ["takeover"]


@case("messages", "exclusion")
async def entering_is_bounded_and_leaves_nothing(stage: Stage) -> None:
    """Who is cancelled while entering, or leaves while standing by, does not become active later."""
    b, c, d = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    async with _one(b, channel):
        async with _one(c, channel):
            pass
        entering = asyncio.create_task(_one(c, channel).__aenter__())
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        if not entering.cancelled():
            await entering.result().close()
    async with _one(d, channel) as last:
        await _until_active(last)


@case("messages", "claims")
async def each_message_is_handled_once(stage: Stage) -> None:
    """With ``one-each`` every listener hears and one handles: of sixty messages each is handled exactly once, and each
    listener gets its share in order."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    shares: list[list[int]] = [[], [], []]
    subscriptions = [one.subscribe(channel, delivery="one-each") for one in (b, c, c)]

    async def handle(place: int) -> None:
        async with subscriptions[place] as messages:
            entered.append(place)
            async for message in messages:
                shares[place].append(int(message.text))

    entered: list[int] = []
    handlers = [asyncio.create_task(handle(place)) for place in range(3)]
    await eventually_async(lambda: len(entered) == 3, 25, what="three have entered")
    assert all(subscription.active for subscription in subscriptions)
    await asyncio.gather(*(a.publish(channel, str(number), id=True) for number in range(60)))
    await eventually_async(lambda: sum(map(len, shares)) >= 60, 25, what="sixty messages are handled")
    await stage.settle()
    for subscription in subscriptions:
        await subscription.close()
    await asyncio.gather(*handlers)
    assert sorted(number for share in shares for number in share) == [*range(60)], shares


@case("messages", "claims")
async def each_keeps_the_order(stage: Stage) -> None:
    """What one sender publishes in a row is handled by each listener in that order."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    async with b.subscribe(channel, delivery="one-each") as one, c.subscribe(channel, delivery="one-each") as two:
        for number in range(60):
            await a.publish(channel, str(number), id=True)
        await eventually_async(
            lambda: one.statistics.received + two.statistics.received >= 60, 25, what="sixty messages are handled"
        )
        shares = [[int(text) for text in await texts(each, each.statistics.queued)] for each in (one, two)]
    assert sorted(shares[0] + shares[1]) == [*range(60)], shares
    for share in shares:
        assert share == sorted(share), f"out of order: {share}"


@case("messages", "claims")
async def without_an_id_everybody_handles_it(stage: Stage) -> None:
    """A message without an id goes to every listener, and ``MessageUnclaimed`` tells so, once for each channel."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    told = seen(b, MessageUnclaimed)
    async with b.subscribe(channel, delivery="one-each") as one, c.subscribe(channel, delivery="one-each") as two:
        for text in ("1", "2"):
            await a.publish(channel, text)
        assert await texts(one, 2) == await texts(two, 2) == ["1", "2"]
    assert [event.channel for event in told] == [channel]


@case("messages", "claims")
async def equal_payloads_are_different_messages(stage: Stage) -> None:
    """Two messages with the same payload are two, and both are handled; one id given twice is one message."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    async with b.subscribe(channel, delivery="one-each") as one, c.subscribe(channel, delivery="one-each") as two:
        for _ in range(10):
            await a.publish(channel, "same", id=True)
        await a.publish(channel, "given", id="the-id")
        await a.publish(channel, "given", id="the-id")
        # it has no id, so it comes to both, behind everything
        await a.publish(channel, "end")
        handled = await up_to(one, "end") + await up_to(two, "end")
    assert sorted(handled) == ["given", *["same"] * 10]


@case("messages", "claims")
async def an_id_is_known_on_its_channel(stage: Stage) -> None:
    """One id on two channels is two messages, and both are handled, each by one listener."""
    a, b, c = [await stage.open() for _ in range(3)]
    one, two = stage.channel(), stage.channel()
    async with (
        b.subscribe(one, two, delivery="one-each") as first,
        c.subscribe(one, two, delivery="one-each") as second,
    ):
        for channel in (one, two):
            await a.publish(channel, channel, id="the-id")
            await a.publish(channel, "end")
        handled: list[str] = []
        for subscription in (first, second):
            handled += await up_to(subscription, "end") + await up_to(subscription, "end")
    assert sorted(handled) == sorted([one, two])


@case("messages", "claims", "lose")
async def each_rides_through(stage: Stage) -> None:
    """After a listener's connection was lost each message is handled once again, and the loss is told by a gap."""
    a, b, c = [await stage.open() for _ in range(3)]
    channel = stage.channel()
    async with (
        b.subscribe(channel, delivery="one-each", gaps="yield") as one,
        c.subscribe(channel, delivery="one-each", gaps="yield") as two,
    ):
        await stage.lose(b)
        await eventually_async(lambda: one.statistics.gaps.get("reconnect") == 1, 25, what="it hears again")
        await insist(lambda: b.publish(channel, "fence", id="fence"))
        for number in range(20):
            await a.publish(channel, str(number), id=True)
        await a.publish(channel, "end")
        items = await everything(one, "end") + await everything(two, "end")
    missing = sum(item.count or 0 for item in items if isinstance(item, Gap) and item.reason == "claim")
    handled = sorted(int(item.text) for item in items if isinstance(item, Message) and item.text != "fence")
    assert len(handled) == len({*handled}), "a message was handled twice"
    assert len(handled) + missing >= 20, (handled, missing)
