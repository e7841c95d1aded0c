"""The budget of a process counts permits, because each is a lock on the server; readers of one key count once."""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import AsyncCoordinator, AsyncHold, LockBudgetExceeded
from pgconcert.testing import eventually_async


@pytest.fixture(params=["server", "memory"])
def address(request: pytest.FixtureRequest, database: str, unique: str) -> str:
    return f"memory://{unique}" if request.param == "memory" else database


async def test_permits_count(address: str) -> None:
    async with AsyncCoordinator(address, max_locks=5) as c:
        semaphore = c.semaphore("many", 100)
        asked = [asyncio.create_task(semaphore.acquire()) for _ in range(50)]
        await asyncio.wait(asked)
        held = [task.result() for task in asked if task.exception() is None]
        refused = [task.exception() for task in asked if task.exception() is not None]
        assert len(held) == 5
        assert all(isinstance(error, LockBudgetExceeded) and "its budget is 5" in str(error) for error in refused)
        with pytest.raises(LockBudgetExceeded, match="5 locks are held or waited for"):
            await c.lock("another").try_acquire()
        await held.pop().release()
        async with c.lock("another"):
            assert c.health().locks_held == 5
        for hold in held:
            await hold.release()


async def test_waiting_for_a_permit_counts_no_more_than_there_are(address: str) -> None:
    """Many may wait for few permits: that costs the server little."""
    async with AsyncCoordinator(address, max_locks=3) as c:
        semaphore = c.semaphore("few", 2)
        waiting = [asyncio.create_task(semaphore.acquire()) for _ in range(20)]
        await eventually_async(lambda: c.health().locks_held == 2)
        async with c.lock("another"):
            pass
        holds: list[AsyncHold] = []
        for number in range(20):
            await eventually_async(lambda number=number: sum(task.done() for task in waiting) > number)  # type: ignore[misc]
            holds = [task.result() for task in waiting if task.done()]
            await next(hold for hold in holds if not hold.released).release()
        assert len(holds) == 20


async def test_readers_of_one_key_count_once(address: str) -> None:
    async with AsyncCoordinator(address, max_locks=2) as c:
        holds = [await c.lock("key", shared=True).acquire() for _ in range(10)]
        async with c.lock("another"):
            with pytest.raises(LockBudgetExceeded):
                await c.lock("a third").try_acquire()
        for hold in holds:
            await hold.release()
