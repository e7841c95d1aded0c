"""How a subscription ends: for every task that takes from it, and at any moment of its entry. Over the memory backend.

Here live the ends of subscriptions; what handlers and requests do at the end stands in `test_handlers_edges.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pgconcert import (
    AsyncCoordinator,
    AsyncSubscription,
    BrokerClosed,
    CoordinatorClosed,
    Gap,
    ListenerOverflow,
    Message,
)
from pgconcert.errors import GivenUp, LockBudgetExceeded
from pgconcert.events import EventStream
from pgconcert.keys import KeySpace
from pgconcert.messenger import Ear
from pgconcert.pubsub.broker import Broker
from pgconcert.pubsub.delivery import Delivery
from pgconcert.pubsub.fanout import AsyncFanOut
from pgconcert.pubsub.overflow import Inbox
from pgconcert.testing import eventually_async
from tests.unit.ears import complaints, turns
from tests.unit.ends import LIMIT, outcome
from tests.unit.memoryworld import handles

WAYS: list[Delivery] = ["all", "one-process", "one-each"]
STEPS = 8
"""More turns of the loop than an entry takes."""


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


async def end_of(messages: AsyncSubscription[Any], iterating: bool) -> None:
    """Take until the end."""
    if iterating:
        async for _ in messages:
            pass
    else:
        while True:
            await messages.get()


# the end is for everybody


@pytest.mark.parametrize("iterating", [False, True])
async def test_the_end_of_the_coordinator_reaches_every_task_that_waits(world: str, iterating: bool) -> None:
    c = AsyncCoordinator(world)
    await c.open()
    messages = await c.subscribe("a").__aenter__()
    takers = [asyncio.create_task(end_of(messages, iterating)) for _ in range(3)]
    await turns()
    await c.close()
    assert [type(await outcome(taker)) for taker in takers] == [BrokerClosed] * 3


@pytest.mark.parametrize("iterating", [False, True])
async def test_an_overflow_ends_every_task_that_waits(world: str, iterating: bool) -> None:
    async with AsyncCoordinator(world) as c, c.subscribe("a", capacity=1, overflow="error") as messages:
        takers = [asyncio.create_task(end_of(messages, iterating)) for _ in range(3)]
        await turns()
        await c.publish_many([("a", str(number)) for number in range(10)])
        assert [type(await outcome(taker)) for taker in takers] == [ListenerOverflow] * 3


async def test_closing_ends_every_task_that_waits(world: str) -> None:
    """Who iterates comes to the end of the loop, who waits for one message is told that none comes."""
    async with AsyncCoordinator(world) as c:
        messages = await c.subscribe("a").__aenter__()
        takers = [asyncio.create_task(end_of(messages, iterating)) for iterating in (True, False, True, False)]
        await turns()
        await messages.close()
        ends = [await outcome(taker) for taker in takers]
        assert [type(end) for end in ends] == [type(None), BrokerClosed] * 2


# nobody tries any more


class Over:
    """A messenger that has come to its end, and says so within the call, or in the next turn."""

    def __init__(self, error: Exception, at_once: bool) -> None:
        self._error = error
        self._at_once = at_once

    def listen(self, channel: str, ear: Ear) -> None:
        """Refuse."""
        if self._at_once:
            ear.failed(self._error)
        else:
            asyncio.get_running_loop().call_soon(ear.failed, self._error)

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Nothing was heard."""


@asynccontextmanager
async def broker_over(messenger: Any) -> AsyncIterator[Broker]:
    loop = asyncio.get_running_loop()
    broker = Broker(messenger, loop, EventStream(), KeySpace(""), payloads=True, spill_ttl=60)
    yield broker
    await broker.close()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("kind", [BrokerClosed, CoordinatorClosed, GivenUp])
async def test_an_entry_ends_when_nobody_connects_any_more(kind: type[Exception], at_once: bool) -> None:
    """Without a time limit too: the messenger's last word is that of the entry, whatever it is called."""
    error = kind("that was all")
    async with broker_over(Over(error, at_once)) as broker:
        inbox = Inbox[Message](("a",), broker.events, 10, "error", "yield")
        assert await outcome(broker.enter(["a"], inbox)) is error


# the end during the entry


async def test_an_entry_that_waits_for_a_lock_ends_with_its_coordinator(world: str) -> None:
    """It raises what closing means, and nobody's cancellation."""
    c = AsyncCoordinator(world)
    await c.open()
    async with c.subscribe("a"):
        handles(c).partition()
        await turns()
        entering = asyncio.create_task(c.subscribe("a", delivery="one-process").__aenter__())
        await turns(STEPS)
        assert not entering.done()
        await c.close()
        assert isinstance(await outcome(entering), BrokerClosed)
        assert entering.cancelling() == 0


async def test_the_first_lock_that_fails_ends_the_entry(world: str) -> None:
    """It does not wait for the answers about its other channels."""
    async with AsyncCoordinator(world, max_locks=1) as c, c.subscribe("a", "b"):
        cut = handles(c).partition()
        await turns()
        entering = c.subscribe("a", "b", delivery="one-process").__aenter__()
        assert isinstance(await outcome(entering), LockBudgetExceeded)
        cut.heal()


@pytest.mark.parametrize("delivery", WAYS)
@pytest.mark.parametrize("ender", ["close", "cancel"])
@pytest.mark.long
async def test_an_entry_ends_at_any_moment(world: str, delivery: Delivery, ender: str) -> None:
    """Closed or cancelled in whatever turn, an entry is over at once, complains to nobody, and the next who comes gets
    every message: nothing of it is left."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other:
        for steps in range(STEPS):
            with complaints() as seen:
                messages = c.subscribe("a", delivery=delivery)
                entering = asyncio.create_task(messages.__aenter__())
                await turns(steps)
                if ender == "cancel":
                    entering.cancel()
                else:
                    assert await outcome(messages.close()) is None
                await asyncio.wait([entering], timeout=LIMIT)
                assert entering.done(), f"it hangs, {ender} after {steps} turns"
                assert ender == "cancel" or not entering.cancelled()
                with contextlib.suppress(asyncio.CancelledError, BrokerClosed, RuntimeError):
                    await entering
                await messages.close()
                assert " closed, " in repr(messages)
                del messages, entering
                gc.collect()
            assert seen == [], f"after {steps} turns"
            async with other.subscribe("a", delivery=delivery, gaps="yield") as next_one:
                await eventually_async(lambda next_one=next_one: next_one.active)  # type: ignore[misc]
                await c.publish("a", str(steps), id=True)
                while isinstance(item := await next_one.get(LIMIT), Gap):
                    pass
                assert item.text == str(steps)


@pytest.mark.parametrize("delivery", WAYS)
async def test_closing_does_not_wait_for_a_proof(world: str, delivery: Delivery) -> None:
    """Without a connection an entry may take for ever; closed, it is over."""
    async with AsyncCoordinator(world) as c:
        cut = handles(c).partition()
        await turns()
        messages = c.subscribe("a", delivery=delivery)
        entering = asyncio.create_task(messages.__aenter__())
        await turns(STEPS)
        assert not entering.done()
        assert await outcome(messages.close()) is None
        assert isinstance(await outcome(entering), BrokerClosed)
        cut.heal()
        await c.publish("a", "nobody hears it")
        assert messages.statistics.received == 0


class Quiet:
    """A messenger that hears when it is told to."""

    def __init__(self) -> None:
        self.ears: dict[str, Ear] = {}

    def listen(self, channel: str, ear: Ear) -> None:
        """Note it."""
        self.ears[channel] = ear

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Forget it."""
        del self.ears[channel]


async def test_closed_in_the_turn_in_which_it_is_heard() -> None:
    """The proof has come, and before the entry knows of it, somebody closes: it does not open any more."""
    messenger = Quiet()
    async with broker_over(messenger) as broker:
        fan: AsyncFanOut[str] = AsyncFanOut(broker, "a", str, None, "error", print)
        messages = fan.subscribe()
        entering = asyncio.create_task(messages.__aenter__())
        await turns()
        messenger.ears["a"].ready()
        await messages.close()
        assert isinstance(await outcome(entering), BrokerClosed)
        assert messenger.ears == {}


async def test_what_was_closed_before_it_was_entered_stays_closed(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        messages = c.subscribe("a")
        await messages.close()
        with pytest.raises(BrokerClosed, match="was closed"):
            await messages.__aenter__()
