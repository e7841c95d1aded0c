"""What holding costs: nothing but the heartbeat of one link."""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import LinkOpened
from pgconcert.testing import advisory_locks, sessions
from tests.faults.scenes import seen

pytestmark = pytest.mark.faults

TIMEOUT = 2.0
LOOKS_PER_TIMEOUT = 5


async def pings(database: str, unique: str, seconds: float) -> int:
    async with AsyncCoordinator(database, network_timeout=TIMEOUT) as c:
        opened = seen(c, LinkOpened)
        holds = [await c.lock(f"{unique}:{number}").acquire() for number in range(50)]
        before = c.health()
        await asyncio.sleep(seconds)  # the time that is measured
        after = c.health()
        assert [event.role for event in opened] == ["lock"]
        assert [link.statements for link in after.links if link.role != "lock"] == [0, 0, 0, 0, 0]
        (session,) = sessions(database)
        assert (session.query, len(session.locks)) == ("select 1", 50)
        assert (after.ready, after.locks_held, after.locks_waited_for) == (True, 50, 0)
        assert {lock.granted for lock in advisory_locks(database)} == {True}
        for hold in holds:
            await hold.release()
        return after.links[0].statements - before.links[0].statements


async def test_fifty_locks_cost_one_heartbeat(database: str, unique: str) -> None:
    seconds = 1.5
    most = seconds * LOOKS_PER_TIMEOUT / TIMEOUT + 1
    assert 1 <= await pings(database, unique, seconds) <= most


@pytest.mark.long
async def test_fifty_locks_cost_one_heartbeat_for_longer(database: str, unique: str) -> None:
    seconds = 15.0
    most = seconds * LOOKS_PER_TIMEOUT / TIMEOUT + 1
    assert most / 3 <= await pings(database, unique, seconds) <= most
