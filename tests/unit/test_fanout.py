"""Typed channels: who gets which value, what becomes of those that cannot be read, and when polling replaces the link.

Here lives the fan-out over the memory backend. How types are written is tested with their codec, what queues do when
they are full with the queues, and how polls are counted with ``Recovery``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pgconcert.errors import (
    DecodeFailed,
    ListenerOverflow,
    MessagesLost,
    PayloadInvalid,
)
from pgconcert.events import HandlerFailed, MessageUndecodable
from pgconcert.pubsub.codec import Codec
from pgconcert.pubsub.message import Gap
from tests.unit.fanouts import LIMIT, Order, coordinators, fan, ids, seen

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
