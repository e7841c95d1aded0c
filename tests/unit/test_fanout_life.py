"""Typed channels in time: when polling replaces the link, connections of the caller's, entries and ends.

Who gets which value is tested in `test_fanout.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert.errors import (
    BrokerClosed,
    ChannelInvalid,
    ConfigurationError,
    DecodeFailed,
    GivenUp,
    ListenerOverflow,
    PayloadTooLarge,
    Unavailable,
)
from pgconcert.events import HandlerFailed, ListenerBounced, MessageUndecodable, PollFound
from pgconcert.testing import eventually_async
from pgconcert.transaction import publishing
from pgconcert.transaction.flow import Query
from tests.unit.fanouts import LIMIT, Order, coordinators, fan, ids, seen
from tests.unit.memoryworld import handles

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
    """A connection of some driver, and that driver, as far as publishing needs one. It has no rows."""

    def __init__(self, waits: bool) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.blocks = not waits

    def one(self, query: Query) -> Any:
        self.sent.append(query.values)
        return None if self.blocks else asyncio.sleep(0)

    def failure(self, error: Exception) -> None:
        """No server has said anything."""


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorders are known as connections."""
    monkeypatch.setattr(publishing, "driver_of", lambda connection, verb: connection)


@pytest.mark.usefixtures("recorders")
@pytest.mark.parametrize("waits", [True, False])
async def test_a_value_goes_over_the_connection_that_is_given(unique: str, waits: bool) -> None:
    async with fan(unique) as orders, orders.subscribe() as listener:
        connection = Recorder(waits)
        await orders.publish(Order(1), connection=connection)
        assert connection.sent == [(b"orders", b'{"id":1,"lines":[]}')]
        await orders.publish(Order(2, ["x" * 7978]), connection=connection)
        assert len(connection.sent) == 2
        with pytest.raises(PayloadTooLarge, match=r"a payload of 8000 bytes .*; larger ones need our tables"):
            await orders.publish(Order(2, ["x" * 7979]), connection=connection)
        assert connection.sent[2:] == [("pgconcert",)]  # asked whether there is room, and told that there is none
        assert listener.statistics.received == 0


@pytest.mark.usefixtures("recorders")
async def test_bytes_that_are_no_text_go_there_in_an_envelope(unique: str) -> None:
    async with coordinators(unique, 1) as (c,):
        connection = Recorder(True)
        await c.fanout("raw", bytes).publish(b"\0", connection=connection)
        assert connection.sent == [(b"raw", b'pgconcert:1 {"enc":"base64"}\nAA==')]


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
