"""Cases of loss: what a holder learns when its connection breaks, what its block does, what others and waiters get."""

from __future__ import annotations

import asyncio

from ... import AsyncCoordinator, AsyncHold, LockLost, NotHeld
from ...acquiring import Acquirable
from .suite import Stage, case, got, raises


async def _lost(stage: Stage, c: AsyncCoordinator, *holds: AsyncHold) -> None:
    await stage.lose(c)
    for hold in holds:
        await hold.wait_lost()


@case("lose")
async def a_loss_is_told(stage: Stage) -> None:
    """A hold whose connection breaks is lost, says why, and stays lost; ``check`` raises ``LockLost``."""
    c = await stage.open()
    hold = await c.lock("the key").acquire()
    hold.check()
    told = asyncio.create_task(hold.wait_lost())
    await _lost(stage, c, hold)
    assert hold.lost
    assert hold.reason
    assert await told == hold.reason == await hold.wait_lost()
    with raises(LockLost, "'the key'") as raised:
        hold.check()
    assert (raised.error.key, raised.error.reason) == ("the key", hold.reason)
    await stage.free(c.lock("the key"))
    assert hold.lost


@case("lose")
async def a_loss_cancels_the_block(stage: Stage) -> None:
    """The body is cancelled, the block raises ``LockLost``, and the task goes on as if nobody had cancelled it."""
    c = await stage.open()
    with raises(LockLost) as raised:
        async with c.lock("key"):
            await stage.lose(c)
            await asyncio.Event().wait()
    assert raised.error.key == "key"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await stage.settle()


@case("lose")
async def a_loss_may_only_be_reported(stage: Stage) -> None:
    """With ``on_lost="report"`` the body runs on to its end, and the block raises ``LockLost`` then."""
    c = await stage.open()
    finished = False
    with raises(LockLost):
        async with c.lock("key", on_lost="report") as hold:
            await _lost(stage, c, hold)
            finished = True
    assert finished


@case("lose")
async def the_bodys_own_error_goes_on(stage: Stage) -> None:
    """An error of the body is not replaced by the loss; it gets a note that tells of it."""
    c = await stage.open()
    with raises(ValueError, "the body's own") as raised:
        async with c.lock("key", on_lost="report") as hold:
            await _lost(stage, c, hold)
            raise ValueError("the body's own")
    assert any("was lost" in note for note in raised.error.__notes__)


@case("lose")
async def a_lost_block_is_not_entered(stage: Stage) -> None:
    """``async with hold`` of a hold that was lost before raises ``LockLost`` at once."""
    c = await stage.open()
    hold = await c.lock("key").acquire()
    await _lost(stage, c, hold)
    with raises(LockLost):
        async with hold:
            raise AssertionError("the body ran")


@case("exclusion", "lose")
async def what_is_lost_is_free(stage: Stage) -> None:
    """Who waits gets what another coordinator lost."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    waiter = await stage.waiting(b.lock("key").acquire())
    await _lost(stage, a, hold)
    await (await waiter).release()


@case("exclusion", "lose")
async def a_lost_hold_releases_nothing(stage: Stage) -> None:
    """Releasing what was lost does nothing: whoever has the lock since keeps it."""
    a, b = await stage.open(), await stage.open()
    old = await a.lock("key").acquire()
    await _lost(stage, a, old)
    new = await b.lock("key").acquire()
    again = asyncio.create_task(a.lock("key").acquire())
    await old.release()
    await stage.settle()
    assert not again.done()
    assert not new.lost
    await new.release()
    await (await again).release()


@case("exclusion", "lose")
async def others_lose_nothing(stage: Stage) -> None:
    """What another coordinator holds is not touched."""
    a, b = await stage.open(), await stage.open()
    lost, kept = await a.lock("one").acquire(), await b.lock("two").acquire()
    await _lost(stage, a, lost)
    kept.check()
    assert await a.lock("two").try_acquire() is None
    await kept.release()


@case("exclusion", "lose")
async def a_waiter_rides_through(stage: Stage) -> None:
    """Who waits while its own connection breaks goes on waiting, and gets the lock."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    waiter = await stage.waiting(b.lock("key").acquire())
    await stage.lose(b)
    assert not waiter.done()
    hold.check()
    await hold.release()
    await (await waiter).release()


@case("lose")
async def everything_is_lost_together(stage: Stage) -> None:
    """All that a coordinator holds is lost with its connection, and all of it can be taken again."""
    c = await stage.open()
    wanted: list[Acquirable] = [c.lock("a"), c.lock("b", on_lost="report"), c.lock_all(["c", "d"])]
    if "shared" in stage.capabilities:
        wanted.append(c.lock("e", shared=True))
    if "semaphores" in stage.capabilities:
        wanted.append(c.semaphore("s", 2))
    holds = [await one.acquire() for one in wanted]
    await _lost(stage, c, *holds)
    assert all(hold.lost and not hold.released for hold in holds)
    for hold in holds:
        await hold.release()
    for one in wanted:
        await stage.free(one)


@case("lose")
async def a_set_is_lost_as_a_whole(stage: Stage) -> None:
    """The loss of several locks cancels their block once; it raises ``LockLost`` with all keys."""
    c = await stage.open()
    locks = c.lock_all(["a", "b"])
    with raises(LockLost) as raised:
        async with locks:
            await stage.lose(c)
            await asyncio.Event().wait()
    assert raised.error.key == locks.key
    await stage.free(c.lock_all(["b", "a"]))


@case("exclusion", "lose")
async def a_waiting_set_rides_through(stage: Stage) -> None:
    """So does who waits for several locks; all it gets is free again after their release."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("b").acquire()
    waiter = await stage.waiting(b.lock_all(["a", "b", "c"]).acquire())
    await stage.lose(b)
    await hold.release()
    await (await waiter).release()
    await stage.lose(b)
    await stage.free(b.lock_all(["a", "b", "c"]))
    await stage.free(a.lock_all(["a", "b", "c"]))


@case("exclusion", "shared", "lose")
async def a_lost_reader_lets_a_writer_in(stage: Stage) -> None:
    """A writer who waits for a reader gets the lock when the reader has lost it; other readers are not touched."""
    a, b, w = [await stage.open() for _ in range(3)]
    lost, kept = await a.lock("key", shared=True).acquire(), await b.lock("key", shared=True).acquire()
    writer = await stage.waiting(w.lock("key").acquire())
    await _lost(stage, a, lost)
    assert not writer.done()
    kept.check()
    await kept.release()
    await (await writer).release()


@case("exclusion", "shared", "lose")
async def a_lost_writer_opens_the_gate(stage: Stage) -> None:
    """A writer whose connection breaks while it waits comes back, and keeps nobody outside for ever."""
    a, b, w = [await stage.open() for _ in range(3)]
    first = await a.lock("key", shared=True).acquire()
    writer = await stage.waiting(w.lock("key").acquire())
    await stage.lose(w)
    reader = asyncio.create_task(b.lock("key", shared=True).acquire())
    await first.release()
    for held in asyncio.as_completed([writer, reader]):
        await (await held).release()


@case("exclusion", "semaphores", "lose")
async def a_lost_permit_is_free(stage: Stage) -> None:
    """Who waits for a permit gets the one that was lost."""
    a, b = await stage.open(), await stage.open()
    lost = await a.semaphore("s", 1).acquire()
    waiter = await stage.waiting(b.semaphore("s", 1).acquire())
    await _lost(stage, a, lost)
    await (await waiter).release()


@case("exclusion", "lose")
async def the_small_interface_tells_a_loss(stage: Stage) -> None:
    """``release_lock`` of what was lost meanwhile raises ``LockLost``, once; then it is not held."""
    a, b = await stage.open(), await stage.open()
    assert await a.acquire_lock("key")
    await stage.lose(a)
    new = await b.lock("key").acquire()
    await stage.settle()
    with raises(LockLost):
        await a.release_lock("key")
    assert await b.lock("key").try_acquire() is None
    with raises(NotHeld):
        await a.release_lock("key")
    await new.release()
    await got(await a.lock("key").try_acquire()).release()
