"""Cases of tasks that would wait for themselves or for each other: the error, its words, and that the others go on."""

from __future__ import annotations

import asyncio

from ... import AcquireTimeout, AsyncCoordinator, WouldDeadlock
from ...acquiring import Acquirable
from .suite import Stage, case, raises


async def _refused(wanted: Acquirable, *parts: str) -> None:
    with raises(WouldDeadlock, *parts):
        await (await wanted.acquire()).release()


@case()
async def nobody_waits_for_itself(stage: Stage) -> None:
    """A task that wants what it has entered is told at once; locks are not re-entrant."""
    c = await stage.open()
    lock = c.lock("the key")
    async with lock:
        await _refused(c.lock("the key"), "'the key'", "not re-entrant")
        with raises(WouldDeadlock, "not re-entrant"):
            async with lock:
                raise AssertionError("entered twice")
    await stage.free(c.lock("the key"))


@case("exclusion")
async def a_try_of_ones_own_is_refused(stage: Stage) -> None:
    """Who does not wait cannot wait for itself: ``try_acquire`` gives ``None``, ``timeout=0`` an ``AcquireTimeout``."""
    c = await stage.open()
    async with c.lock("key"):
        assert await c.lock("key").try_acquire() is None
        assert await c.lock_all(["other", "key"]).try_acquire() is None
        with raises(AcquireTimeout):
            await c.lock("key").acquire(0)


@case("exclusion")
async def two_tasks_in_a_circle(stage: Stage) -> None:
    """Of two tasks that would wait for each other the second is told, with the circle; then the first goes on."""
    await _circle(stage, 2)


@case("exclusion")
async def three_tasks_in_a_circle(stage: Stage) -> None:
    """The same of three."""
    await _circle(stage, 3)


async def _circle(stage: Stage, size: int) -> None:
    c = await stage.open()
    finished: list[int] = []
    async with c.lock("lock 0"):
        # from the far end, so that each finds its second lock taken, and the last one's is ours
        tasks = []
        for number in range(size - 1, 0, -1):
            work = _two_locks(c, number, (number + 1) % size, finished)
            tasks.append(asyncio.create_task(work, name=f"worker {number}"))
            await stage.settle()
        assert not any(task.done() for task in tasks)
        words = [f"'lock {number}' is held by task 'worker {number}'" for number in range(1, size)]
        await _refused(c.lock("lock 1"), *words, "'lock 0' is held by this task", "lock_all()")
    await asyncio.gather(*tasks)
    assert sorted(finished) == [*range(1, size)]


async def _two_locks(c: AsyncCoordinator, first: int, second: int, finished: list[int]) -> None:
    async with c.lock(f"lock {first}"):
        async with c.lock(f"lock {second}"):
            finished.append(first)


@case("exclusion")
async def a_circle_with_a_time_limit(stage: Stage) -> None:
    """A wait with a time limit is told as well: otherwise one of them would fail for no reason that it can see."""
    c = await stage.open()
    finished: list[int] = []
    async with c.lock("lock 0"):
        task = asyncio.create_task(_two_locks(c, 1, 0, finished))
        await stage.settle()
        await _refused(c.lock("lock 1", timeout=20), "'lock 1'", "'lock 0'")
        assert await c.lock("lock 1").try_acquire() is None
    await task
    assert finished == [1]


@case("exclusion")
async def waiting_for_others_is_no_circle(stage: Stage) -> None:
    """Tasks that hold something and wait for somebody who will go on are left alone."""
    a, b = await stage.open(), await stage.open()
    finished: list[int] = []
    hold = await b.lock("lock 9").acquire()
    tasks = [asyncio.create_task(_two_locks(a, number, 9, finished)) for number in range(3)]
    await stage.settle()
    assert not any(task.done() for task in tasks), tasks
    await hold.release()
    await asyncio.gather(*tasks)
    assert sorted(finished) == [0, 1, 2]


@case("shared")
async def a_reader_cannot_become_a_writer(stage: Stage) -> None:
    """A task that holds a lock shared and wants it exclusively is told that this cannot be; so is one that wants it
    shared a second time, since a writer may come between."""
    c = await stage.open()
    async with c.lock("key", shared=True):
        await _refused(c.lock("key"), "'key'", "upgraded")
        await _refused(c.lock("key", shared=True), "'key'")
    await stage.free(c.lock("key"))


@case("exclusion", "shared")
async def two_readers_in_a_circle(stage: Stage) -> None:
    """Two readers that both want to write another's lock are a circle like any other."""
    c = await stage.open()

    async def other() -> None:
        async with c.lock("two", shared=True):
            async with c.lock("one"):
                pass

    async with c.lock("one", shared=True):
        task = asyncio.create_task(other(), name="the other")
        await stage.settle()
        await _refused(c.lock("two"), "'two' is held by task 'the other'", "'one' is held by this task")
    await task


@case("exclusion", "semaphores")
async def the_last_permit_is_ones_own(stage: Stage) -> None:
    """Who has the last permit and wants another is told; as long as somebody else's may come free, it waits."""
    c = await stage.open()
    async with c.semaphore("s", 1):
        await _refused(c.semaphore("s", 1), "'s'")
    theirs = await c.semaphore("t", 2).acquire()

    async def two_permits() -> None:
        async with c.semaphore("t", 2):
            async with c.semaphore("t", 2):
                pass

    task = await stage.waiting(two_permits())
    await theirs.release()
    await task
