"""Worlds and coordinators in time: what is told of them, who waits long, and how they end."""

from __future__ import annotations

import asyncio
import gc

import pytest

from pgconcert import (
    AsyncCoordinator,
    AsyncHold,
    CoordinatorClosed,
)
from pgconcert.clock import FakeClock
from pgconcert.events import (
    HoldBroken,
    LinkClosed,
    LinkOpened,
    LockAcquired,
    LockReleased,
    StillWaiting,
)
from pgconcert.memory import MemoryBackend, World
from tests.unit.memoryworld import Story, handles, still_world, waiting


async def test_a_world_ends_at_once_with_its_last_backend(unique: str) -> None:
    """So that the next test finds a new one: nothing waits for the garbage collector."""

    async def use(clock: FakeClock) -> None:
        a, b = (AsyncCoordinator(backend=MemoryBackend(unique, clock=clock)) for _ in range(2))
        async with a, b:
            hold = await a.lock("k").acquire()
            task = await waiting(b.lock("k").acquire())
            clock.advance(10)
            handles(a).lose_connection()
            await (await task).release()
            with handles(b).partition():
                clock.advance(1)
            await hold.release()
            assert World.named(unique).clock is clock

    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            await use(FakeClock())
    finally:
        gc.enable()


async def test_closing_tells_everybody(unique: str) -> None:
    a, b = AsyncCoordinator(f"memory://{unique}"), AsyncCoordinator(f"memory://{unique}")
    story = Story(a, LinkOpened, LinkClosed, HoldBroken)
    await a.open()
    await b.open()
    hold = await a.lock("k").acquire()
    own, other = await waiting(a.lock("k").acquire()), await waiting(b.lock("k").acquire())
    old = a.lock("k")
    await a.close()
    assert hold.reason == "the coordinator was closed"
    with pytest.raises(CoordinatorClosed, match="closed while this lock was waited for"):
        await own
    with pytest.raises(CoordinatorClosed, match="is closed"):
        await old.acquire()
    await hold.release()
    await (await other).release()
    await a.backend.close()
    await a.close()
    assert a.backend.health().links[0].state == "closed"
    assert story.kinds() == ["LinkOpened", "LinkClosed", "HoldBroken"]
    await b.close()
    assert (handles(b).world.empty, handles(b).world.members) == (True, set())


async def test_what_happens_is_told(unique: str) -> None:
    world, clock = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        story = Story(a, LockAcquired, LockReleased)
        hold = await b.lock("k").acquire()
        task = await waiting(a.lock("k").acquire())
        clock.advance(2.5)
        await hold.release()
        async with a.lock("other"):
            pass
        back = await waiting(b.lock("k").acquire())
        await (await task).release()
        await (await back).release()
        assert story.words() == [
            "lock 'k' acquired after 2.500 s",
            "lock 'other' acquired after 0.000 s",
            "lock 'other' released",
            "lock 'k' released, others wait for it",
        ]
    assert (world.empty, clock.waiting()) == (True, 0)


async def test_a_long_wait_is_reported_with_the_holder(unique: str) -> None:
    _, clock = still_world(unique)
    async with (
        AsyncCoordinator(f"memory://{unique}", name="a") as a,
        AsyncCoordinator(f"memory://{unique}", name="b") as b,
    ):
        story, others = Story(b, StillWaiting), Story(a, StillWaiting)
        hold = await a.lock("k").acquire()
        first = await waiting(b.lock("k").acquire())
        second = await waiting(b.lock("k").acquire())  # behind the first: not reported
        clock.advance(9.9)
        assert story.words() == []
        own = await waiting(a.lock("k").acquire())
        clock.advance(0.1)
        clock.advance(10)
        assert story.words() == [
            f"still waiting for 'k' after {seconds} s; held by a (pid {a.health().links[0].server_pid})"
            for seconds in (10, 20)
        ]
        assert others.words() == ["still waiting for 'k' after 10 s; held by a, in this process"]
        await hold.release()
        for task in (first, second, own):
            await (await task).release()
        clock.advance(100)
        assert len(story.events) == 2
        assert clock.waiting() == 0


async def test_a_cycle_of_coordinators_is_named(unique: str) -> None:
    _, clock = still_world(unique)
    names = ["a", "b", "c"]
    cs = [AsyncCoordinator(f"memory://{unique}", name=name) for name in names]
    story = Story(cs[0], StillWaiting)
    for c in cs:
        await c.open()
    holds = [await c.lock(name).acquire() for c, name in zip(cs, names, strict=True)]
    tasks = [await waiting(c.lock(name).acquire()) for c, name in zip(cs, ["b", "c", "a"], strict=True)]
    clock.advance(10)
    (event,) = story.events
    assert isinstance(event, StillWaiting)
    assert [name.partition(" ")[0] for name in event.cycle] == ["a", "b", "c", "a"]
    for task in tasks:
        task.cancel()
    for hold in holds:
        await hold.release()
    for c in cs:
        await c.close()


def test_a_program_that_ends_without_closing_leaves_nothing(unique: str) -> None:
    world = World.named(unique)

    async def careless(address: str) -> None:
        c = AsyncCoordinator(address)
        await c.open()
        kept.append(await c.lock("k", on_lost="report").acquire())

    kept: list[AsyncHold] = []
    asyncio.run(careless(f"memory://{unique}"))
    assert kept[0].reason == "its task was cancelled"
    assert world.empty


def test_a_loop_that_ends_without_a_word_keeps_nobody_out(unique: str) -> None:
    async def begin(held: list[AsyncHold]) -> AsyncCoordinator:
        c = AsyncCoordinator(f"memory://{unique}")
        await c.open()
        held.append(await c.lock("k", on_lost="report").acquire())
        return c

    held: list[AsyncHold] = []
    gone = asyncio.new_event_loop()
    c = gone.run_until_complete(begin(held))
    gone.close()

    async def after() -> None:
        async with AsyncCoordinator(f"memory://{unique}") as other, other.lock("k", timeout=5):
            pass

    asyncio.run(after())
    assert handles(c).world.empty
    with pytest.warns(ResourceWarning, match="'k' was dropped without release"):
        held.clear()
