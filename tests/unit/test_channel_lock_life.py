"""The lock of a channel in a world of one process: its end, all of them at once, names and arguments."""

from __future__ import annotations

import asyncio
import gc
import secrets
import threading
from typing import Any, cast

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, CoordinatorClosed
from pgconcert.blocking.channel_lock import ChannelLock
from pgconcert.channel_lock import AsyncChannelLock
from pgconcert.errors import ChannelInvalid
from tests.postgres.threads import Running
from tests.unit.channellocks import lock_of, two, until


@pytest.fixture
def world() -> str:
    return f"memory://{secrets.token_hex(8)}"


async def test_destroy(world: str) -> None:
    async with two(world) as (mine, theirs):
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.destroy()
        await mine.destroy()
        assert not mine.is_acquired
        await mine.release()
        for use in (mine.init, mine.acquire):
            with pytest.raises(CoordinatorClosed, match="the lock of channel 'orders' was destroyed"):
                await use()
        with pytest.raises(CoordinatorClosed, match="destroyed"):
            mine.on_release(print)
        await until(lambda: theirs.is_acquired)


async def test_destroying_one_leaves_another_working(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        async with lock_of(c, "a") as a, lock_of(c, "b") as b, lock_of(c, "a") as standby:
            assert await a.acquire()
            assert await b.acquire()
            assert not await standby.acquire()
            await a.destroy()
            assert b.is_acquired
            await until(lambda: standby.is_acquired)


async def test_all_of_them(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        gc.collect()
        assert not AsyncChannelLock.has_instances()
        locks = [lock_of(c, name) for name in "abc"]
        assert AsyncChannelLock.has_instances()
        for lock in locks:
            await lock.init()
            assert await lock.acquire()
        await AsyncChannelLock.destroy_all()
        assert not any(lock.is_acquired for lock in locks)
        assert not AsyncChannelLock.has_instances()
        assert not ChannelLock.has_instances()
        await AsyncChannelLock.destroy_all()
        dropped = lock_of(c)
        assert AsyncChannelLock.has_instances()
        del dropped
        gc.collect()
        assert not AsyncChannelLock.has_instances()


async def test_all_of_them_on_other_loops(world: str) -> None:
    """One that runs is asked; one that has ended is forgotten."""
    made, end = threading.Event(), threading.Event()
    locks: list[AsyncChannelLock] = []

    async def elsewhere() -> None:
        async with AsyncCoordinator(world) as c:
            locks.append(lock_of(c, "elsewhere"))
            await locks[0].acquire()
            made.set()
            await asyncio.to_thread(end.wait, 20)

    running = Running(lambda: asyncio.run(elsewhere()))
    assert await asyncio.to_thread(made.wait, 20)
    await AsyncChannelLock.destroy_all()
    assert not locks[0].is_acquired
    end.set()
    await asyncio.to_thread(running.result)

    async def leave_one() -> None:
        async with AsyncCoordinator(world) as c:
            locks.append(lock_of(c, "ended"))

    await asyncio.to_thread(lambda: asyncio.run(leave_one()))
    assert AsyncChannelLock.has_instances()
    await AsyncChannelLock.destroy_all()
    assert not AsyncChannelLock.has_instances()


async def test_the_coordinator_is_closed(world: str) -> None:
    """Waiting, resting or holding: its worker ends, and it can still be destroyed."""
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other:
        locks = [lock_of(c, name, 1.0) for name in ("held", "waited for", "rested from")]
        async with lock_of(other, "waited for") as theirs:
            assert await theirs.acquire()
            for lock in locks:
                await lock.init()
            assert await locks[0].acquire()
            assert not await locks[1].acquire()
            await c.close()
            assert not locks[0].is_acquired
            await until(lambda: all(lock._worker is None or lock._worker.done() for lock in locks))
            with pytest.raises(CoordinatorClosed):
                await locks[0].acquire()
            for lock in locks:
                await lock.destroy()


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.both_loops
async def test_both_engines(world: str, engine: Any) -> None:
    async with AsyncCoordinator(world, engine=engine) as one, AsyncCoordinator(world, engine=engine) as other:
        async with lock_of(one) as mine, lock_of(other) as theirs:
            assert await mine.acquire()
            assert not await theirs.acquire()
            await mine.release()
            await until(lambda: theirs.is_acquired)


async def test_a_namespace_keeps_them_apart(world: str) -> None:
    async with AsyncCoordinator(world) as one, AsyncCoordinator(world, namespace="tests") as other:
        async with lock_of(one) as mine, lock_of(other) as theirs:
            assert await mine.acquire()
            assert await theirs.acquire()


async def test_it_is_no_lock_of_the_programs(world: str) -> None:
    async with AsyncCoordinator(world) as c, lock_of(c) as lock:
        assert await lock.acquire()
        async with c.lock("orders", timeout=0), c.lock("channel:orders", timeout=0):
            assert lock.is_acquired


@pytest.mark.parametrize("channel", ["x", "x" * 51, "x" * 63, "ä" * 31, "constructor", "error", "Ünïcode \N{SNOWMAN}"])
async def test_names(world: str, channel: str) -> None:
    async with AsyncCoordinator(world) as c, lock_of(c, channel) as lock:
        assert await lock.acquire()
        await lock.release()
        assert await lock.acquire()


@pytest.mark.parametrize("channel", ["", "x" * 64, "ä" * 32, "a\0b", "\ud800", 7, None, "pgconcert:x"])
async def test_bad_names(world: str, channel: Any) -> None:
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ChannelInvalid):
            lock_of(c, channel)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e9, "30", None, True])
async def test_bad_intervals(world: str, interval: Any) -> None:
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match=r"acquire_interval must be 0\.01 to 86400 seconds"):
            lock_of(c, interval=interval)


async def test_a_bad_handler(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="must be callable"):
            lock_of(c).on_release(cast(Any, "print"))
