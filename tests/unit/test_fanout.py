"""Typed channels: who gets which value, what becomes of those that cannot be read, and when polling replaces the link.

Here lives the fan-out over the memory backend. How types are written is tested with their codec, what queues do when
they are full with the queues, and how polls are counted with ``Recovery``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import (
    BrokerClosed,
    ChannelInvalid,
    ConfigurationError,
    DecodeFailed,
    GivenUp,
    ListenerOverflow,
    MessagesLost,
    PayloadInvalid,
    PayloadTooLarge,
    Unavailable,
)
from pgconcert.events import Event, HandlerFailed, ListenerBounced, MessageUndecodable, PollFound
from pgconcert.pubsub.codec import Codec
from pgconcert.pubsub.fanout import AsyncFanOut, AsyncFanOutSubscription
from pgconcert.pubsub.message import Gap
from pgconcert.testing import eventually_async
from tests.unit.memoryworld import handles

LIMIT = 10.0


@dataclass
class Order:
    id: int
    lines: list[str] = field(default_factory=list)


@asynccontextmanager
async def coordinators(name: str, count: int = 2) -> AsyncIterator[list[AsyncCoordinator]]:
    made = [AsyncCoordinator(f"memory://{name}") for _ in range(count)]
    for each in made:
        await each.open()
    try:
        yield made
    finally:
        for each in made:
            await each.close()


@asynccontextmanager
async def fan(name: str, **options: Any) -> AsyncIterator[AsyncFanOut[Order]]:
    async with coordinators(name, 1) as (c,):
        yield c.fanout("orders", Order, **options)


def seen(c: AsyncCoordinator, *kinds: type[Event]) -> list[Event]:
    found: list[Event] = []
    for kind in kinds:
        c.events.subscribe(found.append, kind)
    return found


async def ids(listener: AsyncFanOutSubscription[Any], count: int) -> list[int]:
    return [(await listener.get(LIMIT)).id for _ in range(count)]


# who gets what


async def test_values_reach_the_listeners_of_every_process_in_order(unique: str) -> None:
    async with coordinators(unique) as (a, b):
        here, there = a.fanout("orders", Order), b.fanout("orders", Order)
        assert here.channel == there.channel == "orders"
        async with here.subscribe() as one, here.subscribe() as two, there.subscribe() as three:
            for number in range(100):
                await here.publish(Order(number, ["ä", "b"]))
            for listener in (one, two, three):
                assert [await listener.get(LIMIT) for _ in range(100)] == [Order(n, ["ä", "b"]) for n in range(100)]
        assert there.statistics.delivered == 100
        assert here.statistics.delivered == 200


async def test_what_travels_is_plain_json(unique: str) -> None:
    """So that other programs can send and read it."""
    async with coordinators(unique, 1) as (c,):
        orders = c.fanout("orders", Order)
        async with c.subscribe("orders") as raw, orders.subscribe() as values:
            await orders.publish(Order(1))
            assert (await raw.get(LIMIT)).payload == b'{"id":1,"lines":[]}'
            await c.publish("orders", '{ "id": 2, "lines": ["a"], "more": null }')
            assert await ids(values, 2) == [1, 2]


async def test_each_listener_gets_a_value_of_its_own(unique: str) -> None:
    """However it came: by the wire, by hand, or within the process."""
    async with fan(unique) as orders:
        mine = Order(1, ["a"])
        async with orders.subscribe() as one, orders.subscribe() as two:
            for send in (partial(orders.notify, mine), partial(orders.deliver, b'{"id":1,"lines":["a"]}')):
                send()
                first, second = await one.get(LIMIT), await two.get(LIMIT)
                first.lines.append("changed")
                assert (mine.lines, second.lines) == (["a"], ["a"])
            await orders.publish(mine)
            first, second = await one.get(LIMIT), await two.get(LIMIT)
            first.lines.append("changed")
            assert (mine.lines, second.lines) == (["a"], ["a"])


async def test_filters_are_asked_for_each_listener(unique: str) -> None:
    async with fan(unique) as orders:
        async with orders.subscribe(lambda order: order.id % 2) as odd, orders.subscribe() as every:
            for number in range(6):
                await orders.publish(Order(number))
            assert await ids(every, 6) == [0, 1, 2, 3, 4, 5]
            assert await ids(odd, 3) == [1, 3, 5]
            assert odd.statistics.queued == 0


async def test_a_filter_that_raises_costs_its_own_listener_one_value(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        failures = seen(c, HandlerFailed)
        orders = c.fanout("orders", Order)

        def where(order: Order) -> bool:
            if order.id == 1:
                order.lines.append("mine")
                raise LookupError("no such order")
            return True

        async with orders.subscribe(where, gaps="yield") as one, orders.subscribe() as two:
            for number in range(3):
                orders.notify(Order(number))
            assert [order.lines for order in [await two.get(LIMIT) for _ in range(3)]] == [[], [], []]
            first, gap, last = [await one.get(LIMIT) for _ in range(3)]
            assert (first, last) == (Order(0), Order(2))
            assert isinstance(gap, Gap)
            assert (gap.reason, gap.count, gap.channels) == ("filter", 1, ("orders",))
        (failure,) = failures
        assert isinstance(failure, HandlerFailed)
        assert isinstance(failure.error, LookupError)


async def test_without_listeners_everything_is_dropped(unique: str) -> None:
    async with fan(unique) as orders:
        await orders.publish(Order(1))
        orders.notify(Order(2))
        orders.deliver('{"id":3}')
        assert orders.statistics.delivered == orders.statistics.listeners == 0


async def test_a_value_too_large_for_a_notification_comes_as_well(unique: str) -> None:
    async with fan(unique) as orders:
        large = Order(1, ["x" * 1000] * 50)
        async with orders.subscribe() as listener:
            await orders.publish(large)
            assert await listener.get(LIMIT) == large


@pytest.mark.parametrize(
    ("kind", "value"), [(bytes, b"\0\xff"), (str, "pgconcert:1 {}"), (dict, {"a": [1]}), (object, [1])]
)
async def test_other_types(unique: str, kind: Any, value: Any) -> None:
    async with coordinators(unique, 1) as (c,):
        values = c.fanout("values", kind)
        async with values.subscribe() as listener:
            await values.publish(value)
            assert await listener.get(LIMIT) == value


class Reversed:
    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decode(self, raw: bytes) -> str:
        return raw.decode()[::-1]


async def test_a_codec_of_the_callers_own(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        codec: Codec[str] = Reversed()
        words = c.fanout("words", str, codec=codec)
        async with words.subscribe() as listener, c.subscribe("words") as raw:
            await words.publish("abc")
            assert await listener.get(LIMIT) == "abc"
            assert (await raw.get(LIMIT)).payload == b"cba"


# full queues


async def test_a_full_listener_loses_without_an_error_by_default(unique: str) -> None:
    async with fan(unique) as orders:
        async with orders.subscribe(capacity=1) as small, orders.subscribe() as large:
            for number in range(3):
                orders.notify(Order(number))
            assert (orders.statistics.dropped, orders.statistics.delivered) == (2, 4)
            assert small.statistics.dropped == 2
            assert await ids(small, 1) == [0]
            assert await ids(large, 3) == [0, 1, 2]
        assert (orders.statistics.dropped, orders.statistics.delivered) == (2, 4)
        assert orders.statistics.listeners == 0


@pytest.mark.parametrize("send", ["notify", "deliver"])
async def test_with_error_the_full_one_ends_and_everybody_else_got_it(unique: str, send: str) -> None:
    """Whoever stands before and behind it in line."""
    async with fan(unique, overflow="error") as orders:
        by: dict[str, Callable[[int], None]] = {
            "notify": lambda number: orders.notify(Order(number)),
            "deliver": lambda number: orders.deliver(b'{"id":%d}' % number),
        }
        async with (
            orders.subscribe() as before,
            orders.subscribe(capacity=1) as full,
            orders.subscribe(capacity=1, overflow="drop_oldest") as patient,
            orders.subscribe() as behind,
        ):
            by[send](0)
            with pytest.raises(ListenerOverflow, match="queue of 1 values was full"):
                by[send](1)
            by[send](2)  # it has ended, and is told once
            assert await ids(before, 3) == await ids(behind, 3) == [0, 1, 2]
            assert await ids(patient, 1) == [2]
            assert await ids(full, 1) == [0]
            with pytest.raises(ListenerOverflow):
                await full.get(LIMIT)


async def test_an_overflow_by_the_wire_is_the_listeners_own_affair(unique: str) -> None:
    async with fan(unique) as orders:
        async with orders.subscribe(capacity=1, overflow="error") as full, orders.subscribe() as other:
            for number in range(3):
                await orders.publish(Order(number))
            assert await ids(other, 3) == [0, 1, 2]
            assert await ids(full, 1) == [0]
            with pytest.raises(ListenerOverflow):
                await full.get(LIMIT)


async def test_lost_values_are_told_as_the_listener_wants(unique: str) -> None:
    async with fan(unique) as orders:
        async with orders.subscribe(capacity=1, gaps="raise") as listener:
            for number in range(3):
                orders.notify(Order(number))
            assert await ids(listener, 1) == [0]
            with pytest.raises(MessagesLost) as caught:
                await listener.get(LIMIT)
            assert caught.value.gap.count == 2  # type: ignore[attr-defined]
            orders.notify(Order(3))
            assert await ids(listener, 1) == [3]


# what cannot be read


async def test_a_message_that_cannot_be_read_is_told_once_and_stops_nobody(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        wrong = seen(c, MessageUndecodable)
        orders = c.fanout("orders", Order)
        async with orders.subscribe() as one, orders.subscribe() as two, orders.subscribe() as three:
            for payload in ("{", '{"id":"1"}', b"\xff", b"\xff"):
                await c.publish("orders", payload)
            await orders.publish(Order(7))
            for listener in (one, two, three):
                assert await ids(listener, 1) == [7]
        assert [event.raw for event in wrong if isinstance(event, MessageUndecodable)] == [
            b"{",
            b'{"id":"1"}',
            b"\xff",
            b"\xff",
        ]
        assert orders.statistics.undecodable == 4
        assert orders.statistics.delivered == 3


async def test_a_malformed_envelope_is_no_value_of_any_type(unique: str) -> None:
    """The library itself cannot send one, so it comes from another connection of this world."""
    async with coordinators(unique, 1) as (c,):
        wrong = seen(c, MessageUndecodable)
        texts = c.fanout("texts", str)
        async with texts.subscribe() as listener:
            broker = texts._broker
            answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            broker.messenger.publish(b"texts", b"pgconcert:9 {}\nhello", answer)
            await answer
            await texts.publish("after")
            assert await listener.get(LIMIT) == "after"
        (event,) = wrong
        assert isinstance(event, MessageUndecodable)
        assert event.raw == b"pgconcert:9 {}\nhello"
        assert "version '9'" in event.error


@pytest.mark.parametrize("raw", [b"{", "no json", b'{"id":true}', bytearray(b"")])
async def test_delivering_what_cannot_be_read_is_an_error(unique: str, raw: Any) -> None:
    async with coordinators(unique, 1) as (c,):
        wrong = seen(c, MessageUndecodable)
        orders = c.fanout("orders", Order)
        async with orders.subscribe() as listener:
            with pytest.raises(DecodeFailed) as caught:
                orders.deliver(raw)
            assert caught.value.raw == (raw.encode() if isinstance(raw, str) else raw)
            assert listener.statistics.received == 0
        assert len(wrong) == orders.statistics.undecodable == 1


async def test_what_is_no_value_of_the_type_is_not_sent(unique: str) -> None:
    async with fan(unique) as orders, orders.subscribe() as listener:
        wrong: Any = Order("1")  # type: ignore[arg-type]
        with pytest.raises(PayloadInvalid, match="id must be int, not str"):
            await orders.publish(wrong)
        with pytest.raises(PayloadInvalid, match="id must be int, not str"):
            await orders.publish(wrong, connection=object())
        with pytest.raises(PayloadInvalid, match="id must be int, not str"):
            orders.notify(wrong)
        await orders.publish(Order(1))
        assert await ids(listener, 1) == [1]


# recovery


async def test_polls_in_a_row_replace_the_link_and_the_streak_starts_again(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        told = seen(c, PollFound)
        orders = c.fanout("orders", Order)
        bounces: list[int] = []
        orders.enable_recovery(threshold=3, bounce=lambda: bounces.append(1))
        assert [orders.polled(1000) for _ in range(4)] == [False, False, True, False]
        assert len(bounces) == 1
        assert (orders.statistics.saved, orders.statistics.streak) == (4000, 1)
        assert [(event.streak, event.bounced) for event in told if isinstance(event, PollFound)] == [
            (1, False),
            (2, False),
            (3, True),
            (1, False),
        ]


async def test_by_default_the_coordinators_own_link_is_replaced(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        bounced = seen(c, ListenerBounced)
        orders = c.fanout("orders", Order)
        orders.enable_recovery(threshold=1)
        async with orders.subscribe() as listener:
            assert orders.polled(1)
            await eventually_async(lambda: bounced, what="the link is replaced")
            await eventually_async(lambda: listener.statistics.gaps.get("reconnect"), what="a gap is told")
            await orders.publish(Order(1))
            assert await ids(listener, 1) == [1]
        assert "'orders'" in str(bounced[0])


async def test_what_the_wire_delivers_ends_the_streak_and_nothing_else_does(unique: str) -> None:
    async with fan(unique) as orders:
        orders.enable_recovery(threshold=3, bounce=lambda: pytest.fail("it bounced"))
        async with orders.subscribe() as listener:

            def streak_after(*polls: int) -> int:
                for found in polls:
                    orders.polled(found)
                return orders.statistics.streak

            assert streak_after(1, 1) == 2
            orders.notify(Order(1))
            orders.polled(0)
            orders.polled(-1)
            with pytest.raises(DecodeFailed):
                orders.deliver(b"{")
            assert orders.statistics.streak == 2
            orders.deliver(b'{"id":2}')
            assert streak_after() == 0
            assert streak_after(1, 1) == 2
            await orders.publish(Order(3))
            assert await ids(listener, 3) == [1, 2, 3]
            assert streak_after() == 0
        assert orders.statistics.saved == 4


async def test_an_undecodable_message_does_not_end_the_streak_by_the_wire_either(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        wrong = seen(c, MessageUndecodable)
        orders = c.fanout("orders", Order)
        orders.enable_recovery()
        async with orders.subscribe():
            orders.polled(1)
            await c.publish("orders", "{")
            await eventually_async(lambda: wrong, what="it is told")
            assert orders.statistics.streak == 1


async def test_the_streak_ends_although_a_listener_overflows(unique: str) -> None:
    async with fan(unique, overflow="error") as orders:
        orders.enable_recovery(threshold=3)
        async with orders.subscribe(capacity=1):
            orders.notify(Order(1))
            orders.polled(1)
            with pytest.raises(ListenerOverflow):
                orders.deliver(b'{"id":2}')
            assert orders.statistics.streak == 0


async def test_without_recovery_a_poll_changes_nothing(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        told = seen(c, PollFound)
        orders = c.fanout("orders", Order)
        assert not any(orders.polled(1) for _ in range(20))
        assert (orders.statistics.saved, orders.statistics.streak, told) == (0, 0, [])


async def test_enabling_again_replaces_the_first_and_keeps_what_was_saved(unique: str) -> None:
    async with fan(unique) as orders:
        orders.enable_recovery(threshold=2, bounce=lambda: pytest.fail("the first one bounced"))
        orders.polled(5)
        bounces: list[int] = []
        orders.enable_recovery(threshold=2, bounce=lambda: bounces.append(1))
        assert (orders.statistics.saved, orders.statistics.streak) == (5, 0)
        assert [orders.polled(1), orders.polled(1)] == [False, True]
        assert (orders.statistics.saved, len(bounces)) == (7, 1)


async def test_a_bounce_that_raises_is_told_and_the_poll_goes_on(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        failures = seen(c, HandlerFailed, PollFound)
        orders = c.fanout("orders", Order)

        def bounce() -> None:
            raise ConfigurationError("no link")

        orders.enable_recovery(threshold=1, bounce=bounce)
        assert orders.polled(2)
        assert [type(event) for event in failures] == [HandlerFailed, PollFound]
        assert (orders.statistics.saved, orders.statistics.streak) == (2, 0)


@pytest.mark.parametrize("wrong", [1.5, "1", None, True])
async def test_numbers_of_recovery_are_whole(unique: str, wrong: Any) -> None:
    async with fan(unique) as orders:
        with pytest.raises(ConfigurationError, match="threshold"):
            orders.enable_recovery(threshold=wrong)
        orders.enable_recovery()
        with pytest.raises(ConfigurationError, match="found"):
            orders.polled(wrong)


# on a connection of the caller's


class Recorder:
    """A connection of some driver, as far as publishing needs one."""

    def __init__(self, waits: bool) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self._waits = waits

    def execute(self, statement: str, parameters: tuple[Any, ...]) -> Any:
        self.sent.append(parameters)
        return asyncio.sleep(0) if self._waits else "a cursor"


@pytest.mark.parametrize("waits", [True, False])
async def test_a_value_goes_over_the_connection_that_is_given(unique: str, waits: bool) -> None:
    async with fan(unique) as orders, orders.subscribe() as listener:
        connection = Recorder(waits)
        await orders.publish(Order(1), connection=connection)
        assert connection.sent == [("orders", '{"id":1,"lines":[]}')]
        await orders.publish(Order(2, ["x" * 7978]), connection=connection)
        with pytest.raises(PayloadTooLarge, match="this Order of 8000 bytes does not fit a notification"):
            await orders.publish(Order(2, ["x" * 7979]), connection=connection)
        assert len(connection.sent) == 2
        assert listener.statistics.received == 0


async def test_bytes_that_are_no_text_go_there_in_an_envelope(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        connection = Recorder(True)
        await c.fanout("raw", bytes).publish(b"\0", connection=connection)
        assert connection.sent == [("raw", 'pgconcert:1 {"enc":"base64"}\nAA==')]


# in time


async def test_nobody_listens_before_the_entry_or_after_the_end(unique: str) -> None:
    async with fan(unique) as orders:
        subscription = orders.subscribe()
        orders.notify(Order(1))
        assert orders.statistics.listeners == 0
        async with subscription:
            assert orders.statistics.listeners == 1
            orders.notify(Order(2))
            assert await ids(subscription, 1) == [2]
            orders.notify(Order(3))
        assert orders.statistics.listeners == 0
        orders.notify(Order(4))
        assert [order async for order in subscription] == []
        assert orders.statistics.delivered == 2


async def test_who_could_not_enter_is_no_listener(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        orders = c.fanout("orders", Order)
        with handles(c).partition():
            with pytest.raises(Unavailable):
                await orders.subscribe(timeout=0.05).__aenter__()
            entering = asyncio.ensure_future(orders.subscribe().__aenter__())
            await eventually_async(lambda: orders.statistics.listeners, what="somebody is on the way in")
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        assert orders.statistics.listeners == 0


async def test_who_ended_for_another_reason_is_not_called_slow(unique: str) -> None:
    async with fan(unique, overflow="error") as orders:
        async with orders.subscribe() as listener:
            listener._listener.fail(GivenUp("the limit of attempts is reached"))
            orders.notify(Order(1))
            with pytest.raises(GivenUp):
                await listener.get(LIMIT)


async def test_closing_the_coordinator_ends_everything(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        orders = c.fanout("orders", Order, overflow="error")
        listener = await orders.subscribe(capacity=1).__aenter__()
        orders.notify(Order(1))
        await c.close()
        assert await ids(listener, 1) == [1]
        with pytest.raises(BrokerClosed):
            await listener.get(LIMIT)
        for late in (
            lambda: orders.notify(Order(2)),
            lambda: orders.deliver(b'{"id":2}'),
            orders.subscribe,
            lambda: c.fanout("orders", Order),
        ):
            with pytest.raises(BrokerClosed):
                late()
        for connection in (None, Recorder(True)):
            with pytest.raises(BrokerClosed):
                await orders.publish(Order(2), connection=connection)
        await listener.close()
        assert orders.statistics.listeners == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"where": 7}, "where must be a function"),
        ({"capacity": 0}, "capacity must be"),
        ({"overflow": "block"}, "overflow must be"),
        ({"gaps": "ignore"}, "gaps must be"),
        ({"timeout": -1}, "timeout must be"),
    ],
)
async def test_wrong_arguments_of_a_listener(unique: str, options: dict[str, Any], told: str) -> None:
    async with fan(unique) as orders:
        with pytest.raises(ConfigurationError, match=told):
            orders.subscribe(**options)


async def test_wrong_arguments_of_a_fan_out(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        with pytest.raises(ChannelInvalid, match="kept for the library"):
            c.fanout("pgconcert:mine", Order)
        with pytest.raises(ChannelInvalid, match="not int"):
            c.fanout(7, Order)  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="overflow must be"):
            c.fanout("orders", Order, overflow="block")  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError, match="no rule writes"):
            c.fanout("orders", set)
        with pytest.raises(ConfigurationError, match="codec must have encode"):
            c.fanout("orders", Order, codec=object())  # type: ignore[call-overload]
