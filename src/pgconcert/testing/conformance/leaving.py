"""Cases of leaving: cancels at every await, withdrawn waiters, releases of every kind, holds that are dropped."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

from ... import AsyncCoordinator, AsyncHold
from ...acquiring import Acquirable
from .suite import Stage, cancelled_everywhere, case, raises, turns

Make = Callable[[AsyncCoordinator], Acquirable]


async def _cancelled_while_free(stage: Stage, wanted: Make, test: Make) -> None:
    a, b = await stage.open(), await stage.open()
    ways: list[Callable[[], Coroutine[Any, Any, AsyncHold | None]]] = [
        lambda: wanted(a).acquire(),
        lambda: wanted(a).try_acquire(),
        lambda: _block(wanted(a)),
        lambda: _release(wanted(a)),
    ]
    for way in ways:
        async for hold in cancelled_everywhere(way):
            if hold is not None:
                await hold.release()
            await stage.free(test(b))


async def _cancelled_while_taken(stage: Stage, wanted: Make, taken: Make) -> None:
    a, b = await stage.open(), await stage.open()
    releasing: list[asyncio.Task[None]] = []

    async def release_later(hold: AsyncHold) -> None:
        await stage.settle()
        await hold.release()

    async def contended() -> AsyncHold:
        releasing.append(asyncio.create_task(release_later(await taken(a).acquire())))
        return await wanted(b).acquire()

    async for hold in cancelled_everywhere(contended):
        await asyncio.gather(*releasing)
        if hold is not None:
            await hold.release()
        await stage.free(wanted(a))


async def _block(wanted: Acquirable) -> None:
    async with wanted:
        await turns(1)


async def _release(wanted: Acquirable) -> None:
    await (await wanted.acquire()).release()


@case("exclusion")
async def a_cancel_leaves_nothing(stage: Stage) -> None:
    """Cancelled at any await of acquiring, of the block or of releasing, a lock is free right after."""
    await _cancelled_while_free(stage, lambda c: c.lock("key"), lambda c: c.lock("key"))


@case("exclusion", "shared")
async def a_cancel_leaves_nothing_shared(stage: Stage) -> None:
    """The same of a shared lock: a writer gets in."""
    await _cancelled_while_free(stage, lambda c: c.lock("key", shared=True), lambda c: c.lock("key"))


@case("exclusion")
async def a_cancel_leaves_nothing_of_a_set(stage: Stage) -> None:
    """The same of several locks at once: all are free."""
    await _cancelled_while_free(stage, lambda c: c.lock_all(["a", "b", "c"]), lambda c: c.lock_all(["c", "b", "a"]))


@case("exclusion", "semaphores")
async def a_cancel_leaves_no_permit(stage: Stage) -> None:
    """The same of a semaphore: its only permit is free."""
    await _cancelled_while_free(stage, lambda c: c.semaphore("s", 1), lambda c: c.semaphore("s", 1))


@case("exclusion")
async def a_cancelled_waiter_leaves_nothing(stage: Stage) -> None:
    """Cancelled while it waits or in the instant in which it gets the lock, a waiter leaves it free."""
    await _cancelled_while_taken(stage, lambda c: c.lock("key"), lambda c: c.lock("key"))


@case("exclusion", "shared")
async def a_cancelled_writer_leaves_nothing(stage: Stage) -> None:
    """The same of a writer who waits for a reader."""
    await _cancelled_while_taken(stage, lambda c: c.lock("key"), lambda c: c.lock("key", shared=True))


@case("exclusion")
async def a_cancelled_waiter_of_a_set_leaves_nothing(stage: Stage) -> None:
    """The same of a set of which one lock is taken."""
    await _cancelled_while_taken(stage, lambda c: c.lock_all(["a", "b", "c"]), lambda c: c.lock("b"))


@case("exclusion", "semaphores")
async def a_cancelled_waiter_for_a_permit_leaves_nothing(stage: Stage) -> None:
    """The same of a semaphore whose only permit is taken."""
    await _cancelled_while_taken(stage, lambda c: c.semaphore("s", 1), lambda c: c.semaphore("s", 1))


@case("exclusion")
async def a_withdrawn_waiter_is_not_in_the_way(stage: Stage) -> None:
    """A cancelled waiter leaves at once, and those before and behind it get the lock in order."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    first, second, third = [await stage.waiting(b.lock("key").acquire()) for _ in range(3)]
    second.cancel()
    with raises(asyncio.CancelledError):
        await second
    await hold.release()
    held = await first
    await stage.settle()
    assert not third.done()
    await held.release()
    await (await third).release()


@case("exclusion")
async def many_waiters_leave(stage: Stage) -> None:
    """When all who wait are cancelled, the lock is as if they had never come."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    waiters = [asyncio.create_task(c.lock("key").acquire()) for c in (a, b) for _ in range(20)]
    await stage.settle()
    for waiter in waiters:
        waiter.cancel()
    ends = await asyncio.gather(*waiters, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert not hold.lost
    await hold.release()
    await stage.free(b.lock("key"))
    await stage.free(a.lock("key"))


@case()
async def a_second_release_does_nothing(stage: Stage) -> None:
    """``release()`` may be called again; ``released`` tells, and nothing is lost."""
    c = await stage.open()
    hold = await c.lock("key").acquire()
    assert (hold.key, hold.shared, hold.permit, hold.released) == ("key", False, None, False)
    await hold.release()
    await hold.release()
    assert hold.released
    assert not hold.lost
    hold.check()


@case("exclusion")
async def an_old_hold_cannot_release_the_new_one(stage: Stage) -> None:
    """Releasing a hold again does not touch whoever has the lock since."""
    c = await stage.open()
    old = await c.lock("key").acquire()
    await old.release()
    new = await c.lock("key").acquire()
    await old.release()
    await stage.settle()
    assert await c.lock("key").try_acquire() is None
    await new.release()


@case("exclusion")
async def a_dropped_hold_is_released(stage: Stage) -> None:
    """A hold that is thrown away is released, with a ``ResourceWarning``."""
    a, b = await stage.open(), await stage.open()
    hold: AsyncHold | None = await a.lock("key").acquire()
    waiter = await stage.waiting(b.lock("key").acquire())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert hold is not None
        hold = None
        gc.collect()
    assert any(isinstance(w.message, ResourceWarning) and "'key'" in str(w.message) for w in caught), caught
    await (await waiter).release()


@case("exclusion")
async def a_hold_serves_as_a_block(stage: Stage) -> None:
    """``async with hold`` releases at its end, also when the body fails; the body's error goes on."""
    c = await stage.open()
    hold = await c.lock("key").acquire()
    with raises(ValueError, "the body's own"):
        async with hold as entered:
            assert entered is hold
            assert not hold.released
            raise ValueError("the body's own")
    assert hold.released
    await stage.free(c.lock("key"))
