"""Cases of several locks at once: all or nothing, no circles, nothing held while waiting, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from ... import AcquireTimeout, AsyncCoordinator, ConfigurationError, WouldDeadlock
from .suite import Stage, case, got, raises, turns


async def _all_free(c: AsyncCoordinator, *keys: str) -> None:
    for key in keys:
        await got(await c.lock(key).try_acquire()).release()


@case()
async def a_set_is_held_and_released_together(stage: Stage) -> None:
    """``hold.key`` names every key once, in the order in which all take them; released, all are free."""
    c = await stage.open()
    number = stage.number()
    locks = c.lock_all(["b", number, "a", "b", number])
    hold = await locks.acquire()
    assert isinstance(hold.key, tuple)
    assert sorted(map(str, hold.key)) == sorted(["a", "b", str(number)])
    assert hold.key == locks.key == c.lock_all([number, "a", "b"]).key
    await hold.release()
    assert hold.released
    await got(await c.lock_all(["a", "b", number]).try_acquire()).release()


@case("exclusion")
async def a_set_excludes_its_locks(stage: Stage) -> None:
    """While a set is held each of its keys is taken, for locks and for sets, here and elsewhere."""
    a, b = await stage.open(), await stage.open()
    async with a.lock_all(["a", "b", "c"]):
        for c in (a, b):
            for key in "abc":
                assert await c.lock(key).try_acquire() is None
                assert await c.lock_all([key, "d"]).try_acquire() is None
        await _all_free(b, "d")
    await _all_free(b, "a", "b", "c")


@case("exclusion")
async def a_set_in_vain_holds_nothing(stage: Stage) -> None:
    """``try_acquire`` of a set with one key taken gives ``None``, and leaves the others free."""
    a, b = await stage.open(), await stage.open()
    async with a.lock("b"):
        for c in (a, b):
            assert await c.lock_all(["a", "b", "c"]).try_acquire() is None
            await _all_free(b, "a", "c")
            await _all_free(a, "a", "c")


@case("exclusion")
async def a_waiting_set_holds_nothing(stage: Stage) -> None:
    """While it waits for one key a set leaves the others free; then it gets them all."""
    a, b = await stage.open(), await stage.open()
    hold = await a.lock("b").acquire()
    waiter = await stage.waiting(b.lock_all(["a", "b", "c"]).acquire())
    await _all_free(a, "a", "c")
    await _all_free(b, "a", "c")
    await hold.release()
    taken = await waiter
    for key in "abc":
        assert await a.lock(key).try_acquire() is None
    await taken.release()


@case("exclusion")
async def a_time_out_of_a_set_leaves_nothing(stage: Stage) -> None:
    """``AcquireTimeout`` names the missing key, the size of the set and the holder, and nothing is held then."""
    a, b = await stage.open(name="first holder"), await stage.open()
    async with a.lock("b"):
        for timeout in (0, 0.05, 0.5, 5.0):  # longer, if it was over before a busy backend had answered
            with raises(AcquireTimeout, f"within {timeout:g} s") as told:
                await b.lock_all(["a", "b", "c"]).acquire(timeout)
            await _all_free(a, "a", "c")
            named = all(part in str(told.error) for part in ("'b'", "3 locks", "first holder"))
            assert named or 0 < timeout < 5, told.error
            if timeout and named:
                break
        with raises(AcquireTimeout):
            async with b.lock_all(["a", "b"], timeout=0.05):
                raise AssertionError("'b' was taken")
        await _all_free(a, "a")


@case("exclusion")
async def sets_that_overlap_all_finish(stage: Stage) -> None:
    """Sets that share keys, in whatever order they name them, never wait for each other in a circle."""
    coordinators = [await stage.open() for _ in range(4)]
    sets = ["abc", "cba", "bd", "db", "ad", "dca"]
    inside: set[str] = set()
    finished = 0

    async def work(c: AsyncCoordinator, keys: str) -> None:
        nonlocal finished
        for _ in range(3):
            async with c.lock_all(keys_of(keys)):
                assert not inside & set(keys), "two sets have one key"
                inside.update(keys)
                await turns(2)
                inside.difference_update(keys)
            finished += 1

    def keys_of(keys: str) -> Iterable[str]:
        return iter([*keys])

    async with asyncio.TaskGroup() as group:
        for c in coordinators:
            for keys in sets:
                group.create_task(work(c, keys))
    assert finished == len(coordinators) * len(sets) * 3


@case("exclusion")
async def a_set_gets_its_turn(stage: Stage) -> None:
    """A large set gets its locks although each of them is taken again and again."""
    a, b = await stage.open(), await stage.open()
    served = asyncio.Event()

    async def busy(key: str) -> None:
        while not served.is_set():
            async with a.lock(key):
                await turns(1)

    async def large() -> None:
        async with b.lock_all(["a", "b", "c", "d"]):
            served.set()

    await asyncio.gather(large(), *(busy(key) for key in "abcd"))


@case("exclusion", "shared")
async def a_shared_set(stage: Stage) -> None:
    """A set may be held shared: together with readers of each key, and with no writer of any."""
    a, b = await stage.open(), await stage.open()
    async with a.lock_all(["a", "b"], shared=True) as hold, b.lock_all(["b", "c"], shared=True):
        assert hold.shared
        async with b.lock("a", shared=True):
            for key in "abc":
                assert await b.lock(key).try_acquire() is None
            assert await a.lock_all(["c", "d"]).try_acquire() is None
    await _all_free(b, "a", "b", "c", "d")


@case()
async def a_task_inside_a_set_is_inside_each(stage: Stage) -> None:
    """A task that wants one of the keys of the set it has entered is told that it would wait for itself."""
    c = await stage.open()
    async with c.lock_all(["a", "b"]):
        with raises(WouldDeadlock):
            await c.lock("a").acquire()


@case()
async def what_is_no_set_is_refused(stage: Stage) -> None:
    """No keys, one text in place of several keys, and what is no key at all are refused before anything is sent."""
    c = await stage.open()
    wrong: list[tuple[Any, str]] = [
        ([], "at least one key"),
        ("abc", "several keys"),
        (b"abc", "several keys"),
        (42, "several keys"),
        (["a", ""], "empty"),
        (["a", 2**63], "64"),
        (["a", 1.5], "float"),
    ]
    for keys, part in wrong:
        with raises(ConfigurationError, part):
            c.lock_all(keys)
