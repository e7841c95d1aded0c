"""Cases of fan-outs: typed values, what each listener gets, what cannot be decoded, and the recovery of who polls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ... import (
    AsyncCoordinator,
    BrokerClosed,
    ConfigurationError,
    DecodeFailed,
    Gap,
    ListenerOverflow,
    Message,
    PayloadInvalid,
)
from ...events import HandlerFailed, ListenerReady, MessageUndecodable, PollFound
from ..leaks import eventually_async
from .reading import seen
from .suite import Stage, case, raises


@dataclass
class Order:
    """What is sent here."""

    number: int
    lines: list[str] = field(default_factory=list)
    customer: str | None = None


async def _numbers(orders: Any, count: int) -> list[int]:
    return [(await orders.get()).number for _ in range(count)]


def _fanouts(channel: str, *coordinators: AsyncCoordinator) -> list[Any]:
    return [c.fanout(channel, Order) for c in coordinators]


@case("messages")
async def values_there_and_back(stage: Stage) -> None:
    """What is published through one coordinator arrives in another as an equal value, and as JSON for everybody else;
    each listener gets a value of its own."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    assert there.channel == channel
    order = Order(1, ["ü", ""], "somebody")
    async with there.subscribe() as one, there.subscribe() as two, b.subscribe(channel) as raw:
        await here.publish(order)
        first, second = await one.get(), await two.get()
        assert first == second == order
        first.lines.clear()
        assert second == order
        assert (await raw.get()).json() == {"number": 1, "lines": ["ü", ""], "customer": "somebody"}
        await a.publish(channel, json={"number": 2})
        assert await one.get() == Order(2)
        assert there.statistics.listeners == 2
    assert there.statistics.listeners == 0
    assert there.statistics.delivered == 4


@case("messages")
async def other_types(stage: Stage) -> None:
    """Text, bytes, plain JSON, and a codec of one's own travel as well."""
    a, b = await stage.open(), await stage.open()

    class Codec:
        def encode(self, value: int) -> bytes:
            return b"<%d>" % value

        def decode(self, raw: bytes) -> int:
            return int(raw[1:-1])

    kinds: list[tuple[Any, Any, Any]] = [
        (str, None, "ü"),
        (bytes, None, b"\xff\x00"),
        (dict, None, {"a": [1, None]}),
        (list, None, [1, "x"]),
        (object, None, None),
        (int, Codec(), 7),
    ]
    for kind, codec, value in kinds:
        channel = stage.channel()
        async with b.fanout(channel, kind, codec=codec).subscribe() as values:
            await a.fanout(channel, kind, codec=codec).publish(value)
            assert await values.get() == value, kind


@case("messages")
async def listeners_choose(stage: Stage) -> None:
    """``where`` lets in what a listener wants; one that raises costs this listener the value: a gap and an event."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    failed = seen(b, HandlerFailed)

    def even(order: Order) -> bool:
        if order.number == 3:
            raise ValueError("three")
        return order.number % 2 == 0

    async with there.subscribe(where=even, gaps="yield") as some, there.subscribe() as everything:
        for number in range(1, 7):
            await here.publish(Order(number))
        assert await _numbers(everything, 6) == [1, 2, 3, 4, 5, 6]
        items = [await some.get() for _ in range(4)]
    assert [item.reason if isinstance(item, Gap) else item.number for item in items] == [2, "filter", 4, 6]
    assert [str(event.error) for event in failed] == ["three"]


@case("messages")
async def local_notifications_stay_here(stage: Stage) -> None:
    """``notify`` reaches the listeners of this fan-out at once, each with a value of its own, and nobody else."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    order = Order(1, ["x"])
    async with here.subscribe() as one, here.subscribe() as two, there.subscribe() as other:
        here.notify(order)
        first, second = await one.get(), await two.get()
        assert first == second == order
        first.lines.clear()
        assert order.lines == second.lines == ["x"]
        await here.publish(Order(2))
        assert await _numbers(other, 1) == [2]
        with raises(PayloadInvalid):
            here.notify("no order")


@case("messages")
async def a_full_listener_starves_nobody(stage: Stage) -> None:
    """Whatever the policy of a listener that takes nothing, the others get everything; each policy keeps its word."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    (here,) = _fanouts(channel, a)
    there = b.fanout(channel, Order, overflow="drop_oldest")
    async with (
        there.subscribe(capacity=1) as oldest,
        there.subscribe(capacity=1, overflow="drop_newest") as newest,
        there.subscribe(capacity=1, overflow="error") as ends,
        there.subscribe() as everything,
    ):
        for number in range(5):
            await here.publish(Order(number))
        assert await _numbers(everything, 5) == [0, 1, 2, 3, 4]
        assert await _numbers(oldest, 1) == [4]
        assert await _numbers(newest, 1) == [0]
        assert await _numbers(ends, 1) == [0]
        with raises(ListenerOverflow):
            await ends.get()
        assert (newest.statistics.dropped, oldest.statistics.dropped) == (4, 4)
        assert there.statistics.dropped >= 9


@case("messages")
async def overflow_is_raised_to_who_delivers(stage: Stage) -> None:
    """``deliver`` and ``notify`` raise ``ListenerOverflow`` for a listener whose policy is ``error``, after all others
    were offered the value; with ``drop_newest`` they raise nothing."""
    c = await stage.open()
    channel = stage.channel()
    (orders,) = _fanouts(channel, c)
    async with (
        orders.subscribe(capacity=1, overflow="error"),
        orders.subscribe(capacity=1, overflow="drop_newest") as small,
        orders.subscribe() as large,
    ):
        orders.deliver('{"number": 1}')
        with raises(ListenerOverflow, channel):
            orders.deliver(b'{"number": 2}')
        orders.notify(Order(3))
        assert await _numbers(large, 3) == [1, 2, 3]
        assert await _numbers(small, 1) == [1]
    async with orders.subscribe(capacity=1, overflow="error"):
        orders.notify(Order(1))
        with raises(ListenerOverflow):
            orders.notify(Order(2))


@case("messages")
async def what_cannot_be_decoded_is_isolated(stage: Stage) -> None:
    """A message that is no value of the type reaches no listener, is told once with what came (``MessageUndecodable``),
    and those before and behind it arrive; ``deliver`` raises ``DecodeFailed`` with it."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    told = seen(b, MessageUndecodable)
    wrong = [b"no JSON", b'{"number": "x"}', b"\xff", b"null", b"", b'{"lines": []}', b"pgconcert:9 {}\nx"]
    async with there.subscribe() as one, there.subscribe() as two, b.subscribe(channel) as raw:
        await here.publish(Order(1))
        for payload in wrong:
            await a.publish(channel, payload)
        await here.publish(Order(2))
        assert await _numbers(one, 2) == await _numbers(two, 2) == [1, 2]
        assert [(await raw.get()).payload for _ in range(8)][1:] == wrong
        assert [event.raw for event in told] == wrong, "each is told once, with what came"
        assert there.statistics.undecodable == len(wrong)
        for payload in wrong:
            with raises(DecodeFailed) as failed:
                there.deliver(payload)
            assert failed.error.raw == payload
        there.deliver('{"number": 3}')
        assert await _numbers(one, 1) == await _numbers(two, 1) == [3]


@case("messages")
async def what_is_no_value_is_not_sent(stage: Stage) -> None:
    """What is no value of the type is refused where it is published; types that nothing can decode are refused."""
    c = await stage.open()
    (orders,) = _fanouts(stage.channel(), c)
    for wrong in ("text", None, {"number": 1}):
        with raises(PayloadInvalid):
            await orders.publish(wrong)
    odd: Any = asyncio.Event
    with raises(ConfigurationError):
        c.fanout(stage.channel(), odd)
    policy: Any = "drop"
    with raises(ConfigurationError):
        c.fanout(stage.channel(), Order, overflow=policy)


@case("messages", "payloads")
async def large_values_arrive(stage: Stage) -> None:
    """A value too large for a notification arrives."""
    a, b = await stage.open(), await stage.open()
    here, there = _fanouts(stage.channel(), a, b)
    order = Order(1, ["x" * 1000] * 20)
    async with there.subscribe() as orders:
        await here.publish(order)
        assert await orders.get() == order


@case("messages")
async def the_end_of_a_fanout(stage: Stage) -> None:
    """After its coordinator is closed a fan-out raises ``BrokerClosed``, and its listeners come to the end."""
    c = await stage.open()
    (orders,) = _fanouts(stage.channel(), c)
    async with orders.subscribe() as listener:
        orders.notify(Order(1))
        waiter = await stage.waiting(_to_the_end(listener))
        await c.close()
        assert await waiter == [1]
    with raises(BrokerClosed):
        await orders.publish(Order(1))
    for use in (lambda: orders.notify(Order(1)), lambda: orders.deliver(b"{}"), orders.subscribe):
        with raises(BrokerClosed):
            use()


async def _to_the_end(listener: Any) -> list[int]:
    found: list[int] = []
    try:
        while True:
            found += await _numbers(listener, 1)
    except BrokerClosed:
        return found


@case("messages")
async def a_streak_of_finds_bounces(stage: Stage) -> None:
    """The third poll in a row that finds something calls ``bounce``, and the streak begins anew; calls are counted and
    not items, and every item counts as saved."""
    c = await stage.open()
    (orders,) = _fanouts(stage.channel(), c)
    told = seen(c, PollFound)
    bounces: list[int] = []
    assert orders.polled(5) is False
    assert orders.statistics.saved == 0
    orders.enable_recovery(threshold=3, bounce=lambda: bounces.append(1))
    assert [orders.polled(found) for found in (1000, 1, 0, -1, 2)] == [False, False, False, False, True]
    assert [orders.polled(1) for _ in range(3)] == [False, False, True]
    assert len(bounces) == 2
    assert (orders.statistics.saved, orders.statistics.streak) == (1006, 0)
    assert [event.streak for event in told] == [1, 2, 3, 1, 2, 3]
    assert [event.bounced for event in told] == [False, False, True] * 2
    assert told[0].found == 1000


@case("messages")
async def the_wire_ends_a_streak(stage: Stage) -> None:
    """A message by the wire ends the streak, by ``deliver`` too, and even if a listener overflows at it; ``notify``
    does not, and neither does what cannot be decoded."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    there.enable_recovery(threshold=2, bounce=_never)
    async with there.subscribe() as orders, there.subscribe(capacity=1, overflow="error") as small:
        there.polled(1)
        await here.publish(Order(1))
        await _numbers(orders, 1)
        there.polled(1)
        with raises(ListenerOverflow):
            there.deliver('{"number": 2}')
        there.polled(1)
        there.deliver('{"number": 3}')
        await small.close()
        there.polled(1)
        there.notify(Order(4))
        with raises(DecodeFailed):
            there.deliver("no JSON")
        assert there.statistics.streak == 1
    bounced: list[int] = []
    there.enable_recovery(threshold=2, bounce=lambda: bounced.append(1))
    there.polled(1)
    there.notify(Order(5))
    assert there.polled(1)
    assert bounced


def _never() -> None:
    raise AssertionError("the listen link was replaced, although messages came")


@case("messages")
async def recovery_can_be_set_anew(stage: Stage) -> None:
    """A second ``enable_recovery`` replaces the first; with a threshold of 0 or less finds are counted, and nothing is
    ever replaced; a ``bounce`` that raises is contained and told."""
    c = await stage.open()
    (orders,) = _fanouts(stage.channel(), c)
    failed = seen(c, HandlerFailed)
    orders.enable_recovery(threshold=2, bounce=_never)
    orders.polled(1)
    for threshold in (0, -1):
        orders.enable_recovery(threshold=threshold, bounce=_never)
        assert not any(orders.polled(1) for _ in range(10))
    assert orders.statistics.saved == 21

    def broken() -> None:
        raise ValueError("bounce")

    orders.enable_recovery(threshold=1, bounce=broken)
    assert orders.polled(1)
    assert [str(event.error) for event in failed] == ["bounce"]
    wrong: Any = "text"
    with raises(ConfigurationError):
        orders.polled(wrong)
    with raises(ConfigurationError):
        orders.enable_recovery(threshold=wrong)


@case("messages")
async def recovery_replaces_the_listen_link(stage: Stage) -> None:
    """Without a ``bounce`` of one's own the listen link is replaced; listeners are told of the gap and hear again."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    ready = seen(b, ListenerReady)
    there.enable_recovery(threshold=2)
    async with there.subscribe(gaps="yield") as orders:
        await eventually_async(lambda: len(ready) == 1, 20, what="listening is proven")
        assert not there.polled(1)
        assert there.polled(1)
        gap = await orders.get()
        assert isinstance(gap, Gap), gap
        assert gap.reason == "reconnect"
        await here.publish(Order(1))
        assert await _numbers(orders, 1) == [1]
        await eventually_async(lambda: len(ready) == 2, 20, what="a fresh link is proven")


@case("messages")
async def an_attached_fanout_hears(stage: Stage) -> None:
    """A fan-out can be attached like a consumer of one's own: its ``deliver`` then gets what comes by the wire."""
    a, b = await stage.open(), await stage.open()
    channel = stage.channel()
    here, there = _fanouts(channel, a, b)
    heard: list[Order] = []

    class Consumer:
        def __init__(self, channel: str) -> None:
            self.channel = channel

        def deliver(self, raw: bytes) -> None:
            heard.append(Order(**Message(channel, raw, 0, False, 0.0).json()))

    there.enable_recovery(threshold=100)
    async with b.attach(there), b.attach(Consumer(channel)):
        there.polled(1)
        await here.publish(Order(1))
        await eventually_async(lambda: bool(heard), 20, what="the consumer gets it")
        await eventually_async(lambda: there.statistics.streak == 0, 20, what="the streak is ended by the wire")
