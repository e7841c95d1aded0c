"""Cases of semaphores: never more holders than permits, numbers of permits, waiters, and who disagrees."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ... import AcquireTimeout, AsyncCoordinator, KeyInvalid, PermitsDisagree
from .suite import Need, Stage, case, got, raises, turns

SEMAPHORES: Final[tuple[Need, ...]] = ("exclusion", "semaphores")


@case("semaphores")
async def a_permit_has_a_number(stage: Stage) -> None:
    """``hold.permit`` is a number from 0 to permits - 1; the name is kept as it was written."""
    c = await stage.open()
    semaphore = c.semaphore("the name", 3)
    assert (semaphore.key, semaphore.permits) == ("the name", 3)
    for _ in range(4):
        async with semaphore as hold:
            assert hold.key == "the name"
            assert hold.permit in (0, 1, 2)
            assert not hold.shared


@case(*SEMAPHORES)
async def never_more_than_its_permits(stage: Stage) -> None:
    """Holders at one time, of all coordinators, are at most as many as permits, each with a number of its own."""
    inside: set[int | None] = set()
    most = 0
    finished = 0

    async def work(c: AsyncCoordinator) -> None:
        nonlocal most, finished
        for _ in range(3):
            async with c.semaphore("s", 3) as hold:
                assert hold.permit in (0, 1, 2), hold.permit
                assert hold.permit not in inside, f"permit {hold.permit} is held twice"
                inside.add(hold.permit)
                most = max(most, len(inside))
                await turns(3)
                inside.discard(hold.permit)
            finished += 1

    coordinators = [await stage.open() for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        for c in coordinators * 4:
            group.create_task(work(c))
    assert finished == 36
    assert most <= 3


@case(*SEMAPHORES)
async def all_permits_are_there(stage: Stage) -> None:
    """All permits can be held at one time, wherever; then a try is refused, and a released one can be had again."""
    a, b = await stage.open(), await stage.open()
    holds = [got(await c.semaphore("s", 3).try_acquire()) for c in (a, b, a)]
    assert {hold.permit for hold in holds} == {0, 1, 2}
    for c in (a, b):
        assert await c.semaphore("s", 3).try_acquire() is None
        with raises(AcquireTimeout, "within 0 s"):
            await c.semaphore("s", 3).acquire(0)
    for hold in holds:
        await hold.release()
        again = await b.semaphore("s", 3).acquire()
        assert again.permit == hold.permit
        await hold.release()
        await stage.settle()
        assert await a.semaphore("s", 3).try_acquire() is None, "releasing an old hold gave back a new one's permit"
        await again.release()
        holds_again = await b.semaphore("s", 3).acquire()
        holds[holds.index(hold)] = holds_again
    for hold in holds:
        await hold.release()


@case(*SEMAPHORES)
async def who_waits_gets_the_next_permit(stage: Stage) -> None:
    """Whoever waits, here or elsewhere, gets the permit that is released, one each."""
    a, b = await stage.open(), await stage.open()
    first, second = [await a.semaphore("s", 2).acquire() for _ in range(2)]
    waiters = [await stage.waiting(c.semaphore("s", 2).acquire()) for c in (a, b)]
    await first.release()
    done, pending = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    await stage.settle()
    assert len(done) == 1
    assert not any(waiter.done() for waiter in pending)
    await second.release()
    holds = await asyncio.gather(*waiters)
    assert {hold.permit for hold in holds} == {0, 1}
    for hold in holds:
        await hold.release()


@case(*SEMAPHORES)
async def one_permit_is_a_lock(stage: Stage) -> None:
    """A semaphore with one permit has one holder at a time."""
    a, b = await stage.open(), await stage.open()
    hold = await a.semaphore("s", 1).acquire()
    assert hold.permit == 0
    for c in (a, b):
        assert await c.semaphore("s", 1).try_acquire() is None
    waiter = await stage.waiting(b.semaphore("s", 1).acquire())
    await hold.release()
    await (await waiter).release()


@case(*SEMAPHORES)
async def a_semaphore_is_no_lock(stage: Stage) -> None:
    """A semaphore and a lock with one name have nothing in common; nor have semaphores of two namespaces."""
    a, b = await stage.open(), await stage.open(namespace="conformance two")
    async with a.lock("name"), a.semaphore("name", 1), b.semaphore("name", 1):
        assert await a.lock("name").try_acquire() is None
        assert await a.semaphore("name", 1).try_acquire() is None


@case(*SEMAPHORES)
async def who_disagrees_is_told(stage: Stage) -> None:
    """While a semaphore is held, whoever gives it another number of permits gets ``PermitsDisagree``, which names
    both numbers and the holder, if that is another coordinator. Afterwards who held it may change the number, and so
    may others once that coordinator is closed (or has not used it for some seconds)."""
    a, b = await stage.open(name="first holder"), await stage.open(name="second")
    async with a.semaphore("the name", 2):
        for c, parts in ((b, ("first holder",)), (a, ())):
            for way in (c.semaphore("the name", 7).try_acquire, c.semaphore("the name", 7).acquire):
                with raises(PermitsDisagree, "'the name'", "2", "7", *parts):
                    await asyncio.create_task(way())
    await stage.free(a.semaphore("the name", 7))
    await stage.free(b.semaphore("the name", 7))
    await a.close()
    await stage.free(b.semaphore("the name", 1))


@case(*SEMAPHORES)
async def a_time_out_for_a_permit(stage: Stage) -> None:
    """``AcquireTimeout`` names the semaphore, the limit, the number of permits and who holds them."""
    a, b = await stage.open(name="first holder"), await stage.open(name="second holder")
    async with a.semaphore("the name", 2), b.semaphore("the name", 2):
        parts = "'the name'", "within 0.05 s", "2 permits", "first holder", "second holder"
        with raises(AcquireTimeout, *parts):
            await asyncio.create_task(b.semaphore("the name", 2).acquire(0.05))
    holds = [got(await a.semaphore("the name", 2).try_acquire()) for _ in range(2)]
    for hold in holds:
        await hold.release()


@case("semaphores")
async def what_is_no_semaphore_is_refused(stage: Stage) -> None:
    """The name is a text of 1 to 1,000 bytes, the permits a whole number from 1 to 1,000."""
    c = await stage.open()
    wrong: list[tuple[Any, Any, str]] = [
        (42, 1, "text"),
        ("", 1, "1 to 1000"),
        ("x" * 1001, 1, "1001"),
        ("nul\0", 1, "NUL"),
        ("s", 0, "1 to 1000"),
        ("s", 1001, "1001"),
        ("s", True, "True"),
        ("s", 2.0, "2.0"),
    ]
    for name, permits, part in wrong:
        with raises(KeyInvalid, part):
            c.semaphore(name, permits)
    async with c.semaphore("x" * 1000, 1000) as hold:
        assert hold.permit is not None
        assert 0 <= hold.permit < 1000
