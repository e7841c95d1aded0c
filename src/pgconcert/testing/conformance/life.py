"""Cases of a coordinator's life: before it is open, while it closes, after; its budget; its small interface; keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ... import (
    AsyncCoordinator,
    ConfigurationError,
    CoordinatorClosed,
    KeyInvalid,
    LockBudgetExceeded,
    LockLost,
    NotHeld,
)
from ...acquiring import Acquirable
from ...backend import Capability
from .suite import Skipped, Stage, case, got, raises


def _all_refused(c: AsyncCoordinator, part: str) -> None:
    uses: list[Callable[[], object]] = [lambda: c.lock("key"), lambda: c.lock_all(["a", "b"])]
    for use in uses:
        with raises(CoordinatorClosed, part):
            use()
    health = c.health()
    assert not health.ready
    assert part in str(health)


@case()
async def nothing_works_before_open(stage: Stage) -> None:
    """A coordinator that is not open refuses everything, and says how to open it; closing it is no error."""
    c = stage.new()
    _all_refused(c, "not open yet")
    await c.close()
    _all_refused(c, "closed")


@case()
async def nothing_works_after_close(stage: Stage) -> None:
    """A closed coordinator refuses everything, also what was made before; closing it again is no error."""
    c = await stage.open()
    lock = c.lock("key")
    await stage.free(lock)
    await c.close()
    await c.close()
    _all_refused(c, "closed")
    for way in (lock.acquire, lock.try_acquire, c.open):
        with raises(CoordinatorClosed):
            await way()


@case("exclusion")
async def who_waits_learns_of_the_close(stage: Stage) -> None:
    """Whoever waits when its coordinator is closed gets ``CoordinatorClosed``, and stands in nobody's way."""
    a, b = await stage.open(), await stage.open()
    taken: list[Acquirable] = [a.lock("a")]
    wanted: list[Acquirable] = [b.lock("a"), b.lock_all(["a", "b"])]
    if "shared" in stage.capabilities:
        wanted.append(b.lock("a", shared=True))
    if "semaphores" in stage.capabilities:
        taken.append(a.semaphore("s", 1))
        wanted.append(b.semaphore("s", 1))
    holds = [await one.acquire() for one in taken]
    waiters = [await stage.waiting(one.acquire()) for one in wanted]
    await b.close()
    for end in await asyncio.gather(*waiters, return_exceptions=True):
        assert isinstance(end, CoordinatorClosed), repr(end)
    for hold in holds:
        await hold.release()
    for one in taken:
        await stage.free(one)


@case()
async def who_holds_loses_by_the_close(stage: Stage) -> None:
    """What is held when its coordinator is closed is lost, with that reason; a block is cancelled and raises it."""
    c = await stage.open()
    hold = await c.lock("bare").acquire()
    entered = asyncio.Event()

    async def body() -> None:
        async with c.lock("block"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await entered.wait()
    await c.close()
    assert hold.lost
    assert hold.reason == "the coordinator was closed"
    await hold.release()
    (end,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(end, LockLost)
    assert end.reason == "the coordinator was closed"


@case("exclusion")
async def a_close_frees_everything(stage: Stage) -> None:
    """Others get what a closed coordinator held, those who wait for it too."""
    a, b = await stage.open(), await stage.open()
    keys: list[Acquirable] = [a.lock("one"), a.lock_all(["two", "three"])]
    again: list[Acquirable] = [b.lock("one"), b.lock_all(["one", "two", "three"])]
    if "shared" in stage.capabilities:
        keys.append(a.lock("four", shared=True))
        again.append(b.lock("four"))
    if "semaphores" in stage.capabilities:
        keys.append(a.semaphore("s", 1))
        again.append(b.semaphore("s", 1))
    holds = [await one.acquire() for one in keys]
    waiters = [await stage.waiting(one.acquire()) for one in again]
    await a.close()
    assert all(hold.lost for hold in holds)
    for waiter in asyncio.as_completed(waiters):
        await (await waiter).release()


@case()
async def a_budget_is_kept(stage: Stage) -> None:
    """More locks at once than ``max_locks`` are refused with ``LockBudgetExceeded``, which names the numbers; what is
    held is not touched, and a released lock makes room. (Of backends whose ``health()`` tells of a budget.)"""
    c = await stage.open(max_locks=2)
    if c.health().lock_budget is None:
        raise Skipped("the backend keeps no budget: health().lock_budget is None")
    assert c.health().lock_budget == 2
    first, second = [await c.lock(key).acquire() for key in ("one", "two")]
    for way in (c.lock("three").acquire, c.lock("three").try_acquire, c.lock_all(["three", "four"]).acquire):
        with raises(LockBudgetExceeded, "2", "max_locks"):
            await way()
    first.check()
    await first.release()
    await stage.free(c.lock("three"))
    await second.release()


@case("exclusion")
async def the_small_interface(stage: Stage) -> None:
    """``acquire_lock`` takes at once or not at all; ``release_lock`` gives back only what it took, else ``NotHeld``."""
    a, b = await stage.open(), await stage.open()
    assert await a.acquire_lock("key") is True
    assert await a.acquire_lock("key") is False
    assert await b.acquire_lock("key") is False
    await _not_held(b, "key")
    await a.release_lock("key")
    await _not_held(a, "key")
    assert await b.acquire_lock("key") is True
    await b.release_lock("key")


@case()
async def what_another_took_is_not_held(stage: Stage) -> None:
    """``release_lock`` does not release what was acquired in another way."""
    c = await stage.open()
    number = stage.number()
    async with c.lock("key"), c.lock(number):
        await _not_held(c, "key")
        await _not_held(c, number)


async def _not_held(c: AsyncCoordinator, key: int | str) -> None:
    with raises(NotHeld, repr(key)):
        await c.release_lock(key)


@case()
async def what_is_no_key_is_refused(stage: Stage) -> None:
    """A key is an ``int`` of 64 bits or a text of 1 to 1,000 bytes without NUL; ``KeyInvalid`` says what is wrong."""
    c = await stage.open()
    wrong: list[tuple[Any, str]] = [
        ("", "empty"),
        ("x" * 1001, "1001 bytes"),
        ("ä" * 501, "1002 bytes"),
        ("nul\0", "NUL"),
        ("\ud800", "surrogate"),
        (2**63, "64"),
        (-(2**63) - 1, "64"),
        (True, "bool"),
        (1.0, "float"),
        (None, "NoneType"),
        (b"key", "bytes"),
    ]
    for key, part in wrong:
        with raises(KeyInvalid, part):
            c.lock(key)
    for key in ("x" * 1000, "ä" * 500, 2**63 - 1, -(2**63), stage.number()):
        assert c.lock(key).key == key
    await got(await c.lock("ä" * 500).try_acquire()).release()


@case()
async def what_makes_no_sense_is_refused(stage: Stage) -> None:
    """Time limits are numbers of seconds from 0, ``on_lost`` is one of two words; all else is refused."""
    c = await stage.open()
    lock = c.lock("key")
    wrong: list[dict[str, Any]] = [
        {"timeout": -1},
        {"timeout": "1"},
        {"timeout": True},
        {"timeout": float("nan")},
        {"on_lost": "ignore"},
    ]
    for options in wrong:
        for make in (lambda options: c.lock("key", **options), lambda options: c.lock_all(["key"], **options)):
            with raises(ConfigurationError, *options):
                make(options)
    with raises(ConfigurationError, "timeout"):
        await lock.acquire(-1)
    await stage.free(lock)


@case()
async def what_the_backend_lacks_is_refused(stage: Stage) -> None:
    """A coordinator refuses what its backend, by its own word, cannot do, and hands out what it can."""
    c = await stage.open()
    makers: list[tuple[Capability, Callable[[], object]]] = [
        ("shared", lambda: c.lock("key", shared=True)),
        ("shared", lambda: c.lock_all(["key"], shared=True)),
        ("semaphores", lambda: c.semaphore("s", 2)),
    ]
    for capability, make in makers:
        if capability in stage.capabilities:
            make()
        else:
            with raises(ConfigurationError, "backend"):
                make()
