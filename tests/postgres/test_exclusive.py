"""``@c.exclusive`` on a real server: over coordinators, and when the connection that carries the lock dies."""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import AsyncCoordinator, LockLost
from tests.postgres.scenes import lock_pid
from tests.servers import Server


async def test_a_call_whose_lock_is_lost(database: str, server: Server) -> None:
    """The call is cancelled and raises ``LockLost``; one that waits in another coordinator then runs."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        entered, after = asyncio.Event(), False

        @one.exclusive("report")
        async def slow() -> None:
            nonlocal after
            entered.set()
            await asyncio.Event().wait()
            after = True

        @two.exclusive("report", timeout=30)
        async def quick() -> str:
            return "it runs"

        @two.exclusive("report", if_held="skip")
        async def skips() -> int:
            return 1

        running = asyncio.create_task(slow())
        await entered.wait()
        assert await skips() is None
        waiting = asyncio.create_task(quick())
        server.kill_backend(lock_pid(one))
        with pytest.raises(LockLost, match="'report'"):
            await running
        assert not after
        assert one.health().locks_held == 0
        assert await waiting == "it runs"
        assert await skips() == 1
