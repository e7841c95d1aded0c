"""Cases of exclusive locks: one holder, hand-over, order, tries and time limits, keys."""

from __future__ import annotations

import asyncio

from ... import AcquireTimeout, AsyncCoordinator
from ..leaks import eventually_async
from .suite import Stage, case, got, raises, turns


@case("exclusion")
async def two_coordinators_exclude_each_other(stage: Stage) -> None:
    """What one coordinator holds another cannot take; once it is released, it can."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    assert await b.lock("key").try_acquire() is None
    assert not hold.lost
    assert not hold.released
    await hold.release()
    taken = got(await b.lock("key").try_acquire())
    assert await a.lock("key").try_acquire() is None
    await taken.release()


@case("exclusion")
async def two_lock_objects_exclude_each_other(stage: Stage) -> None:
    """Two lock objects of one coordinator with one key exclude each other."""
    c = await stage.open()
    hold = await c.lock("key").acquire()
    assert await c.lock("key").try_acquire() is None
    await hold.release()
    await stage.free(c.lock("key"))


@case("exclusion")
async def one_lock_object_excludes_itself(stage: Stage) -> None:
    """A lock object holds nothing: two tasks that share it exclude each other."""
    c = await stage.open()
    lock = c.lock("key")
    hold = await lock.acquire()
    waiter = await stage.waiting(lock.acquire())
    await hold.release()
    await (await waiter).release()


@case()
async def other_keys_are_not_in_the_way(stage: Stage) -> None:
    """Locks of different keys have nothing to do with each other; a text is not the number it spells."""
    a, b = await stage.open(), await stage.open()
    number = stage.number()
    keys: list[int | str] = [number, str(number), "key", "KEY", "key ", number + 1, -number]
    holds = [got(await a.lock(key).try_acquire()) for key in keys[::2]]
    holds += [got(await b.lock(key).try_acquire()) for key in keys[1::2]]
    assert [hold.key for hold in holds] == keys[::2] + keys[1::2]
    for hold in holds:
        await hold.release()


@case("exclusion")
async def numbers_know_no_namespace(stage: Stage) -> None:
    """A text is a key inside its namespace; an int of 64 bits is the same key for everybody."""
    a, b = await stage.open(namespace="conformance one"), await stage.open(namespace="conformance two")
    for number in (stage.number(), -stage.number(), 2**63 - 1, -(2**63)):
        async with a.lock(number):
            assert await b.lock(number).try_acquire() is None
    async with a.lock("key"):
        await got(await b.lock("key").try_acquire()).release()


@case("exclusion")
async def never_two_holders(stage: Stage) -> None:
    """However many tasks and coordinators want one key, at most one holds it, and all get it."""
    inside = 0
    rounds = 0

    async def work(c: AsyncCoordinator) -> None:
        nonlocal inside, rounds
        for _ in range(4):
            async with c.lock("key"):
                inside += 1
                assert inside == 1, "two have it"
                await turns(3)
                assert inside == 1, "two have it"
                inside -= 1
                rounds += 1

    coordinators = [await stage.open() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for c in coordinators * 4:
            group.create_task(work(c))
    assert rounds == 48


@case("exclusion")
async def a_release_hands_over_inside_a_coordinator(stage: Stage) -> None:
    """Who waits in the same coordinator gets the lock when it is released."""
    c = await stage.open()
    hold = await c.lock("key").acquire()
    waiter = await stage.waiting(c.lock("key").acquire())
    await hold.release()
    await (await waiter).release()


@case("exclusion")
async def a_release_hands_over_to_another_coordinator(stage: Stage) -> None:
    """Who waits in another coordinator gets the lock when it is released."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    waiter = await stage.waiting(b.lock("key").acquire())
    await hold.release()
    await (await waiter).release()


@case("exclusion")
async def waiters_of_a_coordinator_come_in_order(stage: Stage) -> None:
    """Tasks of one coordinator get the lock in the order in which they asked for it."""
    a, b = await stage.open(), await stage.open()
    order: list[int] = []

    async def work(number: int) -> None:
        async with b.lock("key"):
            order.append(number)

    hold = await a.lock("key").acquire()
    waiters = [await stage.waiting(work(number)) for number in range(5)]
    await hold.release()
    await asyncio.gather(*waiters)
    assert order == [0, 1, 2, 3, 4]


@case("exclusion")
async def nobody_starves(stage: Stage) -> None:
    """A coordinator that takes a lock again and again lets one that waits have it between."""
    a, b = await stage.open(), await stage.open()
    served = asyncio.Event()

    async def greedy() -> None:
        while not served.is_set():
            async with a.lock("key"):
                await turns(1)

    async def modest() -> None:
        for _ in range(3):
            async with b.lock("key"):
                await turns(1)
        served.set()

    await asyncio.gather(greedy(), greedy(), modest())


@case("exclusion")
async def a_try_does_not_wait(stage: Stage) -> None:
    """``try_acquire`` gives ``None`` at once, whoever has the lock and however many wait for it."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    waiter = await stage.waiting(b.lock("key").acquire())
    assert await a.lock("key").try_acquire() is None
    assert await b.lock("key").try_acquire() is None
    await hold.release()
    await (await waiter).release()
    await got(await b.lock("key").try_acquire()).release()


@case("exclusion")
async def a_time_limit_of_zero_tries_once(stage: Stage) -> None:
    """``timeout=0`` gives the lock if it is free, and ``AcquireTimeout`` at once if it is not."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire(0)
    for lock in (a.lock("key", timeout=0), b.lock("key", timeout=0)):
        with raises(AcquireTimeout, "within 0 s"):
            async with lock:
                raise AssertionError("it was free")
    await hold.release()
    await (await b.lock("key").acquire(0)).release()


@case("exclusion")
async def a_time_out_tells_who_holds_it(stage: Stage) -> None:
    """``AcquireTimeout`` names the key, the limit, and the holder, in this coordinator or another."""
    a, b = await stage.open(name="first holder"), await stage.open(name="second")
    await stage.settle()
    async with a.lock("the key"):
        for c in (b, a):
            with raises(AcquireTimeout, "'the key'", "within 0.05 s", "held by first holder"):
                await asyncio.create_task(c.lock("the key", timeout=9).acquire(0.05))


@case("exclusion")
async def a_time_out_leaves_nothing(stage: Stage) -> None:
    """A waiter whose time is over does not hold up those behind it, and never gets the lock later."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    short = asyncio.create_task(b.lock("key", timeout=0.05).acquire())
    behind = await stage.waiting(b.lock("key").acquire())
    with raises(AcquireTimeout):
        await short
    await hold.release()
    await (await behind).release()
    await stage.free(a.lock("key"))


@case("exclusion")
async def health_counts(stage: Stage) -> None:
    """``health()`` tells how many locks are held and how many keys are waited for."""
    a, b = await stage.open(), await stage.open()
    holds = [await a.lock(key).acquire() for key in ("one", "two")]
    waiter = await stage.waiting(b.lock("one").acquire())
    assert (a.health().locks_held, a.health().locks_waited_for) == (2, 0)
    assert (b.health().locks_held, b.health().locks_waited_for) == (0, 1)
    for hold in holds:
        await hold.release()
    await (await waiter).release()
    await eventually_async(lambda: a.health().locks_held == b.health().locks_held == 0, what="nothing is held")
