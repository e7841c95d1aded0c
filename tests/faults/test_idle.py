"""What holding costs: nothing but the heartbeat of one link."""

from __future__ import annotations

import asyncio
import time

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import LinkOpened
from pgconcert.testing import advisory_locks, eventually_async, sessions
from tests.faults.scenes import seen

pytestmark = pytest.mark.faults

TIMEOUT = 5.0
LOOKS_PER_TIMEOUT = 5


async def pings(database: str, unique: str, seconds: float) -> tuple[int, float]:
    """How many statements holding costs, and how many there may be in the time that it took."""
    async with AsyncCoordinator(database, network_timeout=TIMEOUT) as c:
        opened = seen(c, LinkOpened)
        holds = [await c.lock(f"{unique}:{number}").acquire() for number in range(50)]
        before, began = c.health(), time.monotonic()

        def cost() -> int:
            return c.health().links[0].statements - before.links[0].statements

        await asyncio.sleep(seconds)  # the time that is measured
        await eventually_async(cost, what="the link is looked after")
        counted, took = cost(), time.monotonic() - began
        after = c.health()
        assert [event.role for event in opened] == ["lock"]
        assert [link.statements for link in after.links if link.role != "lock"] == [0, 0, 0, 0, 0]
        await eventually_async(lambda: [session.query for session in sessions(database)] == ["select 1"])
        (session,) = sessions(database)
        assert len(session.locks) == 50
        assert (after.ready, after.locks_held, after.locks_waited_for) == (True, 50, 0)
        assert {lock.granted for lock in advisory_locks(database)} == {True}
        for hold in holds:
            await hold.release()
        return counted, took * LOOKS_PER_TIMEOUT / TIMEOUT + 1


async def test_fifty_locks_cost_one_heartbeat(database: str, unique: str) -> None:
    counted, most = await pings(database, unique, 1.2)
    assert 1 <= counted <= most


@pytest.mark.long
async def test_fifty_locks_cost_one_heartbeat_for_longer(database: str, unique: str) -> None:
    counted, most = await pings(database, unique, 20.0)
    assert most / 3 <= counted <= most
