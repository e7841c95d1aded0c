"""The lock of a channel in a world of one process: every transition, and who is told."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import FrozenInstanceError

import pytest

from pgconcert import AsyncCoordinator, Unavailable
from pgconcert.events import Event, HandlerFailed
from tests.unit.channellocks import backend, lock_of, told, turns, two, until


@pytest.fixture
def world() -> str:
    return f"memory://{secrets.token_hex(8)}"


async def test_attributes(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        lock = lock_of(c, "orders", 2)
        assert (lock.channel, lock.options.acquire_interval, lock.schema_name) == ("orders", 2.0, None)
        assert not lock.is_acquired
        with pytest.raises(FrozenInstanceError):
            lock.options.acquire_interval = 3  # type: ignore[misc]
        assert repr(lock) == "<AsyncChannelLock 'orders' not acquired>"
        await lock.init()
        assert repr(lock) == "<AsyncChannelLock 'orders' standing by>"
        await lock.acquire()
        assert repr(lock) == "<AsyncChannelLock 'orders' acquired>"
        await lock.destroy()
        assert repr(lock) == "<AsyncChannelLock 'orders' destroyed>"


async def test_free_and_busy(world: str) -> None:
    async with two(world) as (mine, theirs):
        assert await mine.acquire() is True
        assert await theirs.acquire() is False
        assert (mine.is_acquired, theirs.is_acquired) == (True, False)
        await mine.release()
        assert mine.is_acquired is False
        await until(lambda: theirs.is_acquired)
        assert await mine.acquire() is False


async def test_acquiring_again_changes_nothing(world: str) -> None:
    """Neither one after the other nor at the same time."""
    async with two(world) as (mine, theirs):
        assert await asyncio.gather(*(mine.acquire() for _ in range(20))) == [True] * 20
        assert await mine.acquire() is True
        assert mine.is_acquired
        assert await theirs.acquire() is False
        await mine.release()
        await until(lambda: theirs.is_acquired)


async def test_without_standing_by(world: str) -> None:
    """``acquire`` alone tries once, and what is lost is not waited for."""
    async with AsyncCoordinator(world) as one, AsyncCoordinator(world) as other:
        mine, theirs = lock_of(one), lock_of(other)
        words = told(other)
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.release()
        await turns()
        assert not theirs.is_acquired
        assert await theirs.acquire()
        backend(other).lose_connection("the cable was pulled")
        assert not theirs.is_acquired
        await until(lambda: words[1:] == ["this process stands by for 'orders': the cable was pulled"])
        assert await mine.acquire()
        await mine.destroy()


async def test_standing_by_takes_nothing(world: str) -> None:
    """What is free is left to whoever asks."""
    async with two(world) as (mine, theirs):
        await turns()
        assert not mine.is_acquired
        assert not theirs.is_acquired
        assert await theirs.acquire()


async def test_what_nobody_has_is_taken_after_the_interval(world: str) -> None:
    async with two(world, interval=0.05) as (mine, theirs):
        await until(lambda: mine.is_acquired or theirs.is_acquired)
        holder, standby = (mine, theirs) if mine.is_acquired else (theirs, mine)
        assert not standby.is_acquired
        await holder.destroy()
        await until(lambda: standby.is_acquired)


async def test_a_standby_that_never_asked_takes_over(world: str) -> None:
    """A look finds that somebody has it; from then on it is waited for, and not for the interval."""
    async with AsyncCoordinator(world) as one, AsyncCoordinator(world) as other:
        async with lock_of(one) as mine, lock_of(other, interval=1.0) as theirs:
            assert await mine.acquire()
            await until(lambda: other.health().locks_waited_for)
            await mine.release()
            await until(lambda: theirs.is_acquired)


async def test_whoever_released_stands_by_for_the_next(world: str) -> None:
    """And does not take it back from under its feet."""
    async with two(world) as (mine, theirs):
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.release()
        await until(lambda: theirs.is_acquired)
        assert not await mine.acquire()
        await theirs.destroy()
        await until(lambda: mine.is_acquired)


async def test_release_without_it(world: str) -> None:
    async with two(world) as (mine, theirs):
        await mine.release()
        assert await theirs.acquire()
        await mine.release()
        assert theirs.is_acquired


async def test_handlers_learn_of_a_release(world: str) -> None:
    """All of them, plain and async, of the standby alone; the lock is ours when they are called."""
    async with two(world) as (mine, theirs):
        heard: list[tuple[str, str, bool]] = []

        async def later(channel: str) -> None:
            await asyncio.sleep(0)
            heard.append(("async", channel, await theirs.acquire()))

        theirs.on_release(lambda channel: heard.append(("plain", channel, theirs.is_acquired)))
        theirs.on_release(later)
        mine.on_release(lambda channel: heard.append(("mine", channel, True)))
        stop = theirs.on_release(lambda channel: heard.append(("removed", channel, True)))
        stop()
        stop()
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.release()
        await until(lambda: len(heard) == 2)
        assert sorted(heard) == [("async", "orders", True), ("plain", "orders", True)]


async def test_handlers_stay_when_it_stands_by_again(world: str) -> None:
    async with two(world) as (mine, theirs):
        heard: list[str] = []
        theirs.on_release(heard.append)
        await theirs.init()
        for times in (1, 2):
            assert await mine.acquire()
            assert not await theirs.acquire()
            await mine.release()
            await until(lambda: len(heard) >= times)  # noqa: B023
            await theirs.release()


async def test_a_handler_that_raises(world: str) -> None:
    async with two(world) as (mine, theirs):
        heard: list[str] = []
        failed: list[Event] = []
        theirs._events.subscribe(failed.append, HandlerFailed)

        async def bad(channel: str) -> None:
            raise KeyError(channel)

        theirs.on_release(bad)
        theirs.on_release(heard.append)
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.release()
        await until(lambda: heard and failed)
        assert [str(event) for event in failed] == ["a handler of 'orders' raised KeyError: 'orders'"]
        assert theirs.is_acquired


async def test_a_handler_may_call_everything(world: str) -> None:
    async with two(world) as (mine, theirs):
        done = asyncio.Event()

        async def hand_back(channel: str) -> None:
            await theirs.release()
            assert not theirs.is_acquired
            await mine.destroy()
            assert await theirs.acquire()
            await theirs.destroy()
            done.set()

        theirs.on_release(hand_back)
        assert await mine.acquire()
        assert not await theirs.acquire()
        await mine.release()
        await asyncio.wait_for(done.wait(), 20)
        assert not theirs.is_acquired


async def test_a_lost_connection(world: str) -> None:
    """Not ours at once; the standby has it; and the loser stands by for it again."""
    async with AsyncCoordinator(world) as one, AsyncCoordinator(world) as other:
        words = told(one)
        async with lock_of(one) as mine, lock_of(other) as theirs:
            heard: list[str] = []
            mine.on_release(heard.append)
            assert await mine.acquire()
            assert not await theirs.acquire()
            backend(one).lose_connection("the cable was pulled")
            assert not mine.is_acquired
            await until(lambda: theirs.is_acquired)
            await until(lambda: one.health().locks_waited_for)
            await theirs.destroy()
            await until(lambda: heard == ["orders"])
            assert mine.is_acquired
        assert words == [
            "this process handles 'orders': it was free",
            "this process stands by for 'orders': the cable was pulled",
            "this process handles 'orders': it was waited for",
            "this process stands by for 'orders': it was released",
        ]


async def test_alone_it_has_it_again_after_a_loss(world: str) -> None:
    async with AsyncCoordinator(world) as c, lock_of(c) as lock:
        heard: list[str] = []
        lock.on_release(heard.append)
        assert await lock.acquire()
        backend(c).lose_connection()
        assert await lock.acquire()
        backend(c).lose_connection()
        await until(lambda: heard)
        assert lock.is_acquired


async def test_without_a_connection(world: str) -> None:
    """``acquire`` says so, and the standby rides through."""
    async with AsyncCoordinator(world) as c, lock_of(c) as lock:
        assert await lock.acquire()
        backend(c).lose_connection(reconnect=False)
        with pytest.raises(Unavailable):
            await lock.acquire()
        assert not lock.is_acquired
        backend(c).reconnect()
        await until(lambda: lock.is_acquired)


async def test_waiting_that_fails_is_tried_again(world: str) -> None:
    """No budget for it now: it is tried again after the interval."""
    async with AsyncCoordinator(world, max_locks=1) as c, AsyncCoordinator(world) as other:
        words = told(c)
        kept = await c.lock("kept").acquire()
        async with lock_of(other) as theirs, lock_of(c, interval=0.05) as lock:
            assert await theirs.acquire()
            await until(lambda: words)
            assert "it cannot be waited for (1 locks are held" in words[0]
            assert words[0].endswith("again in 0.05 s")
            await kept.release()
            await theirs.release()
            await until(lambda: lock.is_acquired)


async def test_a_cancelled_acquire(world: str) -> None:
    """At any of its steps: nothing stays held but what is said, and the standby goes on."""
    for steps in range(12):
        async with two(f"{world}{steps}") as (mine, theirs):
            task = asyncio.create_task(mine.acquire())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await theirs.acquire() is not mine.is_acquired
            holder, standby = (mine, theirs) if mine.is_acquired else (theirs, mine)
            assert not await standby.acquire()
            await holder.destroy()
            await until(lambda: standby.is_acquired)  # noqa: B023
