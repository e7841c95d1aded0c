"""Cases of shared locks: many readers or one writer; who waits for whom, and who comes next."""

from __future__ import annotations

import asyncio
from typing import Final

from ... import AcquireTimeout, AsyncCoordinator, AsyncHold
from ..leaks import eventually_async
from .suite import Need, Stage, case, got, raises, turns

SHARED: Final[tuple[Need, ...]] = ("exclusion", "shared")


async def _readers_stay_outside(c: AsyncCoordinator) -> None:
    async def refused() -> bool:
        hold = await c.lock("key", shared=True).try_acquire()
        if hold is not None:
            await hold.release()
        return hold is None

    await eventually_async(refused, what="a new reader is kept outside, because a writer waits")


async def _readers_get_in(c: AsyncCoordinator) -> None:
    hold = await c.lock("key", shared=True).acquire()
    assert hold.shared
    await hold.release()


@case("shared")
async def readers_are_together(stage: Stage) -> None:
    """Any number of readers hold a lock at one time, in one coordinator and in several."""
    a, b = await stage.open(), await stage.open()
    holds = [await c.lock("key", shared=True).acquire() for c in (a, b, a, b)]
    holds += [got(await c.lock("key", shared=True).try_acquire()) for c in (a, b)]
    assert all(hold.shared and hold.key == "key" for hold in holds)
    for hold in holds:
        await hold.release()


@case(*SHARED)
async def a_reader_keeps_writers_out(stage: Stage) -> None:
    """While anybody holds it shared nobody gets it exclusively, and after the last reader somebody does."""
    a, b = await stage.open(), await stage.open()
    first, second = [await c.lock("key", shared=True).acquire() for c in (a, a)]
    for c in (a, b):
        assert await c.lock("key").try_acquire() is None
    await first.release()
    await stage.settle()
    for c in (a, b):
        assert await c.lock("key").try_acquire() is None
    await second.release()
    await stage.free(b.lock("key"))
    await stage.free(a.lock("key"))


@case(*SHARED)
async def a_writer_keeps_readers_out(stage: Stage) -> None:
    """While somebody holds it exclusively no reader gets it; those who wait get it together."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    assert not hold.shared
    for c in (a, b):
        assert await c.lock("key", shared=True).try_acquire() is None
    waiters = [await stage.waiting(c.lock("key", shared=True).acquire()) for c in (a, b, b)]
    await hold.release()
    holds = await asyncio.gather(*waiters)  # none is released before all have it
    for held in holds:
        await held.release()


@case(*SHARED)
async def a_waiting_writer_comes_before_new_readers(stage: Stage) -> None:
    """While a writer waits no new reader gets in anywhere, so it gets the lock when those inside have left."""
    a, b, w = [await stage.open() for _ in range(3)]
    inside = await a.lock("key", shared=True).acquire()
    writer = await stage.waiting(w.lock("key").acquire())
    for c in (a, b, w):
        await _readers_stay_outside(c)
    readers = [asyncio.create_task(c.lock("key", shared=True).acquire()) for c in (a, b, w)]
    await stage.settle()
    assert not any(reader.done() for reader in readers)
    await inside.release()
    hold = await writer
    await stage.settle()
    assert not any(reader.done() for reader in readers), "a reader is inside together with the writer"
    await hold.release()
    for reader in readers:
        await (await reader).release()


@case(*SHARED)
async def readers_get_in_after_a_writer_gave_up(stage: Stage) -> None:
    """When the waiting writer's time is over, or it is cancelled, new readers get in beside those inside."""
    a, b, w = [await stage.open() for _ in range(3)]
    inside = await a.lock("key", shared=True).acquire()
    cancelled = await stage.waiting(w.lock("key").acquire())
    await _readers_stay_outside(b)
    outside = asyncio.create_task(b.lock("key", shared=True).acquire())
    cancelled.cancel()
    await (await outside).release()
    with raises(AcquireTimeout):
        await w.lock("key").acquire(0.05)
    await _readers_get_in(b)
    await _readers_get_in(w)
    await inside.release()
    await stage.free(w.lock("key"))


@case(*SHARED)
async def a_writers_time_out_names_the_readers(stage: Stage) -> None:
    """``AcquireTimeout`` of a writer tells that the lock is held shared, and by whom."""
    a, b, w = [await stage.open(name=name) for name in ("reader one", "reader two", "writer")]
    await stage.settle()
    async with a.lock("key", shared=True), b.lock("key", shared=True):
        parts = "'key'", "within 0.05 s", "held shared by ", "reader one", "reader two"
        with raises(AcquireTimeout, *parts):
            await asyncio.create_task(w.lock("key").acquire(0.05))


@case(*SHARED)
async def a_reader_who_gave_up_is_not_in_the_way(stage: Stage) -> None:
    """Readers who wait behind a writer may leave, and the writer behind them gets its turn."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("key").acquire()
    readers = [await stage.waiting(b.lock("key", shared=True).acquire()) for _ in range(2)]
    writer = await stage.waiting(b.lock("key").acquire())
    for reader in readers:
        reader.cancel()
    await hold.release()
    await (await writer).release()
    await stage.free(a.lock("key", shared=True))


@case(*SHARED)
async def a_try_is_refused_by_the_other_kind(stage: Stage) -> None:
    """``timeout=0`` and ``try_acquire`` of either kind are answered at once while the other kind has the lock."""
    a, b = await stage.open(), await stage.open()
    for mine, theirs in ((True, False), (False, True)):
        async with a.lock("key", shared=mine):
            assert await b.lock("key", shared=theirs).try_acquire() is None
            with raises(AcquireTimeout, "within 0 s"):
                await b.lock("key", shared=theirs).acquire(0)


@case(*SHARED)
async def readers_and_writers_all_finish(stage: Stage) -> None:
    """Whatever comes when, no writer is inside with anybody else, and everybody gets a turn."""
    inside: list[bool] = []
    finished = 0

    async def work(c: AsyncCoordinator, shared: bool) -> None:
        nonlocal finished
        for _ in range(4):
            async with c.lock("key", shared=shared) as hold:
                _check_company(hold, inside)
                inside.append(shared)
                await turns(3)
                inside.remove(shared)
                _check_company(hold, inside)
            finished += 1

    coordinators = [await stage.open() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for number, c in enumerate(coordinators * 4):
            group.create_task(work(c, shared=number % 4 != 0))
    assert finished == 48


def _check_company(hold: AsyncHold, inside: list[bool]) -> None:
    if hold.shared:
        assert all(inside), "a reader is inside together with a writer"
    else:
        assert not inside, "a writer is not alone"
