"""One process with a thousand subscribers, of which one is stuck, one raises and one is slow: nobody else notices.

Theory: who is stuck is never taken up again, so whatever waits for it would hang the test. What its queue keeps is
counted, and what the process keeps is measured while a hundred times more than the queue is sent.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, Message
from pgconcert.events import HandlerFailed, LinkLost, LinkOpened
from pgconcert.testing import eventually_async
from tests.faults.scenes import seen

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SUBSCRIBERS = 1000
MESSAGES = 200
CAPACITY = 50


@pytest.mark.parametrize(("engine", "overflow"), [("loop", "drop_newest"), ("thread", "drop_oldest")])
@pytest.mark.long
async def test_one_stuck_consumer_among_a_thousand(database: str, engine: Any, overflow: Any) -> None:
    async with AsyncCoordinator(database, engine=engine, network_timeout=1.0) as c:
        lost, failed, opened = seen(c, LinkLost), seen(c, HandlerFailed), seen(c, LinkOpened)
        never = asyncio.Event()
        counts = [0] * SUBSCRIBERS

        async def counting(place: int) -> None:
            async with c.subscribe("everybody", f"only {place}") as messages:
                async for message in messages:
                    counts[place] += 1
                    if message.text == "last":
                        return

        async def stuck() -> Any:
            async with c.subscribe("everybody", capacity=CAPACITY, overflow=overflow, gaps="yield") as messages:
                await messages.get()
                await never.wait()
                return messages.statistics

        async def raising(message: Message) -> None:
            raise RuntimeError("of the handler")

        slow_ones: list[str] = []

        async def slow(message: Message) -> None:
            slow_ones.append(message.text)
            await asyncio.sleep(0.001)

        tasks = [asyncio.create_task(counting(place)) for place in range(SUBSCRIBERS)]
        sticking = asyncio.create_task(stuck())
        async with c.listen({"everybody": raising}), c.listen({"everybody": slow}, capacity=10_000):
            async with c.subscribe(*(f"only {place}" for place in range(SUBSCRIBERS))):
                pass
            for number in range(MESSAGES - 1):
                await c.publish("everybody", str(number))
            await c.publish("everybody", "last")
            await asyncio.gather(*tasks)
            assert counts == [MESSAGES] * SUBSCRIBERS
            await eventually_async(lambda: len(slow_ones) == MESSAGES, 30)
            await eventually_async(lambda: len(failed) == MESSAGES)
        assert {str(event.error) for event in failed} == {"of the handler"}
        never.set()
        statistics = await sticking
        assert statistics.queued == CAPACITY
        dropped = MESSAGES - 1 - CAPACITY
        assert (statistics.dropped, statistics.last_gap.count) == (dropped, dropped)
        assert lost == []
        assert sorted(event.role for event in opened) == ["listen", "publish"]


@pytest.mark.long
async def test_the_memory_of_who_is_stuck_is_bounded(database: str) -> None:
    """A hundred queues full are sent; the process keeps one."""
    async with AsyncCoordinator(database) as c, c.subscribe("memory", capacity=CAPACITY) as stuck:
        async with c.subscribe("memory") as messages:

            async def send(count: int) -> int:
                for _ in range(count):
                    await c.publish("memory", "x" * 7000)
                    await messages.get(30)
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            tracemalloc.start()
            try:
                full = await send(2 * CAPACITY)
                later = await send(40 * CAPACITY)
            finally:
                tracemalloc.stop()
            assert stuck.statistics.queued == CAPACITY
            assert stuck.statistics.dropped == 41 * CAPACITY
            assert later - full < 10 * 7000
