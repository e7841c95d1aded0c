"""Several locks at once on a real server: all or nothing, in one statement, in one order, whatever happens in between.

Here live tests of sets of locks. Theory: what a set has on the server after each outcome is read from the server; that
sets never wait for each other in a circle is shown by many that overlap and all finish, with time limits as the only
witness of a deadlock.
"""

import asyncio
import random

import pytest

from pgconcert import AsyncCoordinator, LockBudgetExceeded
from pgconcert.hold import AsyncHold
from pgconcert.postgres import waiting
from pgconcert.postgres.lockshard import SHARD_SIZE
from pgconcert.testing import eventually_async
from tests.postgres.lockkinds import NEVER, cost_of, let_go, locks, started, still_waits
from tests.postgres.scenes import (
    QUIET,
    Engine,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    role_pids,
    statements,
    until_free,
)

_MANY = 1500


@both_engines
async def test_all_or_nothing(database: str, engine: Engine) -> None:
    """A refused try leaves nothing of ours on the server, whichever of the keys was taken."""
    keys = ["a", "b", "c", "d"]
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        for taken in keys:
            for mine in (one, two):
                async with mine.lock(taken):
                    assert await two.lock_all(keys).try_acquire() is None
                    assert keys_on_server(database) == {key_of(taken): lock_pid(mine)}
        hold = await two.lock_all(keys).try_acquire()
        assert hold is not None
        assert keys_on_server(database) == {key_of(key): lock_pid(two) for key in keys}
        assert await one.lock_all(["d", "e"]).try_acquire() is None
        assert await one.lock("c").try_acquire() is None
        await hold.release()
        assert locks(database) == []
    await until_free(database)


@both_engines
async def test_one_statement_each_way(database: str, engine: Engine) -> None:
    """However many keys a set has, it is acquired with one statement and released with another."""
    async with AsyncCoordinator(database, network_timeout=QUIET, engine=engine) as c:
        async with c.lock("warm"):
            pass
        for count in (1, 2, 30):
            for shared in (False, True):
                keys = [f"{count} {n}" for n in range(count)]
                before = statements(c)
                async with c.lock_all(keys, shared=shared) as hold:
                    assert statements(c) - before == 1
                    assert hold.shared is shared
                    assert len(locks(database)) == count
                assert statements(c) - before == 2
        assert locks(database) == []


async def test_one_order(database: str) -> None:
    """Whatever order and number the keys are given in, each is taken once, in the order of the 64 bits."""
    names: list[int | str] = ["x", 3, "y", -7, 2**63 - 1, "z"]
    expected = tuple(sorted(names, key=key_of))
    async with AsyncCoordinator(database) as c:
        for _ in range(5):
            random.shuffle(names)
            async with c.lock_all([*names, *names[:3]]) as hold:
                assert hold.key == expected
                assert len(locks(database)) == len(names)
        async with c.lock_all(iter(["only"])) as hold:
            assert hold.key == ("only",)
    await until_free(database)


async def test_shared_sets(database: str) -> None:
    """Shared sets overlap with each other and with readers, and exclude writers of any of their keys."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        first = await one.lock_all(["a", "b"], shared=True).acquire()
        second = await two.lock_all(["b", "c"], shared=True).acquire()
        reader = await one.lock("c", shared=True).acquire()
        assert {lock.mode for lock in locks(database)} == {"ShareLock"}
        for key in "abc":
            assert await two.lock(key).try_acquire() is None
        assert await one.lock_all(["c", "d"]).try_acquire() is None
        await let_go(first, second, reader)
    await until_free(database)


async def test_the_budget_is_exceeded_midway(database: str) -> None:
    """A set that passes the budget with its last keys takes nothing."""
    async with AsyncCoordinator(database, max_locks=5) as c:
        first = await c.lock_all(["p", "q"]).acquire()
        for acquire in (c.lock_all(["r", "s", "t", "u"]).acquire, c.lock_all(["r", "s", "t", "u"]).try_acquire):
            with pytest.raises(LockBudgetExceeded, match="budget is 5"):
                await acquire()
            await eventually_async(lambda: keys_on_server(database).keys() == {key_of("p"), key_of("q")})
        await eventually_async(lambda: c.health().locks_held == 2)
        async with c.lock_all(["r", "s", "t"], timeout=30):
            assert len(locks(database)) == 5
        await first.release()
    await until_free(database)


@both_engines
async def test_more_keys_than_a_link_carries(database: str, engine: Engine) -> None:
    """A set of 1,500 keys lives on two links, and costs one statement on each of them, each way."""
    assert SHARD_SIZE < _MANY < 2 * SHARD_SIZE
    keys = [f"many {n}" for n in range(_MANY)]
    async with AsyncCoordinator(database, network_timeout=QUIET, engine=engine) as c:
        first = await c.lock_all(keys).acquire(timeout=60)
        assert len(role_pids(c, "lock")) == 2
        assert len(locks(database)) == _MANY
        await first.release()
        assert locks(database) == []
        before = statements(c)
        second = await c.lock_all(keys).acquire(timeout=60)
        assert statements(c) - before == 2
        await second.release()
        assert statements(c) - before == 4
        assert locks(database) == []


async def test_waiting_holds_nothing(database: str) -> None:
    """While a set waits for one of its keys, all others are free, and the one it waits for is not held by it."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        async with one.lock("b"):
            task = await started(two.lock_all(["a", "b", "c"]).acquire(), database)
            assert keys_on_server(database).keys() == {key_of("b")}
            async with one.lock("a", timeout=30), one.lock("c", timeout=30):
                assert await still_waits(task, two)
        hold = await asyncio.wait_for(task, 30)
        assert len(keys_on_server(database)) == 3
        await hold.release()
    await until_free(database)


@both_engines
async def test_the_wait_is_ended_by_a_wake_up(database: str, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """A set that waits for key after key is woken by each release alone."""
    monkeypatch.setattr(waiting, "_RECHECK", NEVER)
    keys = ["a", "b", "c"]
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        holds = {key: await one.lock(key).acquire() for key in keys}
        task = await started(two.lock_all(keys).acquire(), database)
        for key in sorted(keys, key=key_of):
            assert await still_waits(task, two)
            await holds[key].release()
        await (await asyncio.wait_for(task, 30)).release()
    await until_free(database)


@both_engines
async def test_two_processes_with_opposite_orders(database: str, engine: Engine) -> None:
    """Two processes that name the same keys in opposite order hand them to and fro without a deadlock."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        inside = 0

        async def work(c: AsyncCoordinator, keys: list[str]) -> None:
            nonlocal inside
            for _ in range(50):
                async with c.lock_all(keys, timeout=60):
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.gather(work(one, ["x", "y", "z"]), work(two, ["z", "y", "x"]))
    await until_free(database)


@both_engines
async def test_heavy_overlap_in_one_process(database: str, engine: Engine) -> None:
    """Fifty tasks of one process that want random subsets of six keys all get their turns, some of them as readers."""
    keys = "abcdef"
    async with AsyncCoordinator(database, engine=engine) as c:
        writers = dict.fromkeys(keys, 0)
        readers = dict.fromkeys(keys, 0)

        async def work(number: int) -> None:
            dice = random.Random(number)
            for _ in range(5):
                wanted = dice.sample(keys, dice.randint(1, 4))
                shared = dice.random() < 0.3
                counts = readers if shared else writers
                async with c.lock_all(wanted, shared=shared, timeout=90):
                    for key in wanted:
                        counts[key] += 1
                        assert writers[key] == 0 or (writers[key], readers[key]) == (1, 0)
                    await asyncio.sleep(0)
                    for key in wanted:
                        counts[key] -= 1

        await asyncio.gather(*(work(number) for number in range(50)))
    await until_free(database)


async def test_sets_and_single_locks_of_other_processes(database: str) -> None:
    """Sets get their turn against programs that take and release single locks all the time."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        ending = False

        async def busy(key: str) -> None:
            while not ending:
                async with one.lock(key):
                    await asyncio.sleep(0)

        tasks = [asyncio.create_task(busy(key)) for key in "abc"]
        for n in range(10):
            async with two.lock_all([*"abc"[n % 3 :], *"abc"[: n % 3]], timeout=60):
                pass
        ending = True
        await asyncio.gather(*tasks)
    await until_free(database)


async def test_released_twice(database: str) -> None:
    """Releasing a set again does nothing, and many sets are given back with few statements."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        hold = await c.lock_all(["a", "b"]).acquire()
        await hold.release()
        assert await cost_of(hold.release(), c) == 0
        assert hold.released
        holds: list[AsyncHold] = await asyncio.gather(
            *(c.lock_all([f"own {n}", f"too {n}"]).acquire() for n in range(20))
        )

        async def release() -> None:
            await asyncio.gather(*(hold.release() for hold in holds))

        assert await cost_of(release(), c) <= 2
    await until_free(database)
