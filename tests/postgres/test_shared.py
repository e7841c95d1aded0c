"""Shared locks on a real server: readers and writers of several processes, the gate, and what they cost.

Here live tests of what is visible from outside and on the server. Theory: a coordinator is to the server what a process
is, so several in one test are several processes. Where a wake-up must do it, the re-check is switched off; what is
waited for in vain is shown by a fence, an answered statement on the same link, and never by time.
"""

import asyncio
import random
from typing import Any

import pytest
from psycopg import sql

from pgconcert import AcquireTimeout, AsyncCoordinator, LockLost
from pgconcert.events import HoldBroken
from pgconcert.hold import AsyncHold
from pgconcert.postgres import waiting
from pgconcert.testing import eventually_async
from tests.postgres.lockkinds import (
    GATE,
    INTEREST,
    NEVER,
    cost_of,
    let_go,
    locks,
    started,
    until_pairs,
)
from tests.postgres.scenes import (
    QUIET,
    Engine,
    both_engines,
    key_of,
    lock_pid,
    raw,
    seen,
    statements,
    until_free,
)
from tests.postgres.test_locks_cancel import cancelled_at_every_suspension, ways_to_leave
from tests.servers import Server


@pytest.fixture
def no_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself: only a wake-up helps."""
    monkeypatch.setattr(waiting, "_RECHECK", NEVER)


@pytest.fixture
def quick_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can wake, whoever waits looks again soon."""
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)


@both_engines
async def test_readers_share(database: str, engine: Engine) -> None:
    """Readers of several processes are inside together, each process with one shared lock; a writer is not."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        holds = [await c.lock("r", shared=True).acquire() for c in (one, one, two)]
        assert all(hold.shared for hold in holds)
        assert {(lock.key, lock.mode, lock.pid) for lock in locks(database)} == {
            (key_of("r"), "ShareLock", lock_pid(one)),
            (key_of("r"), "ShareLock", lock_pid(two)),
        }
        assert len(locks(database)) == 2
        assert await two.lock("r").try_acquire() is None
        assert one.health().locks_held == 2
        await let_go(*holds)
        async with two.lock("r", timeout=30) as hold:
            assert not hold.shared
            assert [lock.mode for lock in locks(database)] == ["ExclusiveLock"]
    await until_free(database)


@both_engines
async def test_every_constellation(database: str, engine: Engine) -> None:
    """Two tries at one key, exclusive or shared, of one process or of two: both succeed if both are shared."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        for other in (one, two):
            for first in (False, True):
                for second in (False, True):
                    held = await one.lock("try", shared=first).try_acquire()
                    tried = await other.lock("try", shared=second).try_acquire()
                    assert held is not None
                    assert (tried is not None) is (first and second), (first, second, other is one)
                    await let_go(*(hold for hold in (tried, held) if hold))
                    assert locks(database) == []
    await until_free(database)


async def test_tries_at_once(database: str) -> None:
    """Ten readers of one process that try in the same instant are all let in."""
    async with AsyncCoordinator(database) as c:
        found = await asyncio.gather(*(c.lock("at once", shared=True).try_acquire() for _ in range(10)))
        assert None not in found
        await let_go(*found)
        async with c.lock("at once", timeout=30):
            pass


async def test_first_come_between_readers_and_writers(database: str) -> None:
    """In one process nobody overtakes: readers that come behind a waiting writer stay behind it."""
    async with AsyncCoordinator(database) as c:
        order: list[str] = []
        leave = asyncio.Event()

        async def work(name: str) -> None:
            async with c.lock("order", shared=name[0] == "r"):
                order.append(name)
                if name == "r0":
                    await leave.wait()

        tasks = []
        for name in ("r0", "r1", "w2", "r3", "r4", "w5", "w6", "r7"):
            tasks.append(asyncio.create_task(work(name)))
            await asyncio.sleep(0)
        await eventually_async(lambda: order == ["r0", "r1"])
        leave.set()
        await asyncio.gather(*tasks)
        assert order == ["r0", "r1", "w2", "r3", "r4", "w5", "w6", "r7"]
    await until_free(database)


async def test_a_cycle_of_a_reader_costs_two_statements(database: str) -> None:
    """Alone, a reader costs what a writer costs, and nobody is notified."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        async with c.lock("warm"):
            pass
        before = statements(c)
        for _ in range(100):
            async with c.lock("cheap", shared=True):
                pass
        assert statements(c) - before == 200


async def test_many_readers_of_a_process_hold_one_lock(database: str) -> None:
    """A hundred readers at once are one lock on the server and a handful of statements; so are a hundred more."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        holds: list[AsyncHold] = []

        async def enter() -> None:
            holds.extend(await asyncio.gather(*(c.lock("many", shared=True).acquire() for _ in range(100))))

        async with c.lock("warm"):
            pass
        assert await cost_of(enter(), c) <= 2
        assert await cost_of(enter(), c) <= 2
        assert [lock.mode for lock in locks(database)] == ["ShareLock"]
        assert c.health().locks_held == 200
        assert await cost_of(let_go(*holds[:-1]), c) == 0
        assert len(locks(database)) == 1
        assert await cost_of(let_go(holds[-1]), c) == 1
    await until_free(database)


@both_engines
async def test_a_lost_link_loses_all_readers(database: str, server: Server, engine: Engine) -> None:
    """All readers of the process whose session ends are told; those of others are not; then all goes on."""
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database) as two:
        broken = seen(one, HoldBroken)
        mine = [await one.lock("lost", shared=True).acquire() for _ in range(3)]
        other = await two.lock("lost", shared=True).acquire()
        entered = asyncio.Event()

        async def inside() -> None:
            async with one.lock("lost", shared=True):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(inside())
        await entered.wait()
        server.kill_backend(lock_pid(one))
        with pytest.raises(LockLost, match="terminating connection"):
            await asyncio.wait_for(task, 30)
        for hold in mine:
            await asyncio.wait_for(hold.wait_lost(), 30)
            await hold.release()
        await eventually_async(lambda: len(broken) == 4)
        assert not other.lost
        again = await one.lock("lost", shared=True).acquire(timeout=30)
        assert len(locks(database)) == 2
        writer = await started(two.lock("lost").acquire(), database, GATE)
        await let_go(other, again)
        await (await asyncio.wait_for(writer, 30)).release()
    await until_free(database)


async def test_other_programs(database: str) -> None:
    """A bigint key is the server's own: another program's shared and exclusive advisory locks count."""
    async with AsyncCoordinator(database) as c:
        with raw(database) as stranger:

            def ask(what: str) -> bool:
                row = stranger.execute(sql.SQL("select {}(42)").format(sql.Identifier(what))).fetchone()
                assert row is not None
                return bool(row[0])

            async with c.lock(42, shared=True):
                assert ask("pg_try_advisory_lock_shared")
                assert not ask("pg_try_advisory_lock")
                assert await c.lock(42).try_acquire() is None
            async with c.lock(42, shared=True):
                pass
            assert await c.lock(42).try_acquire() is None
            with pytest.raises(AcquireTimeout, match=r"shared by somebody else \(pid"):
                await c.lock(42).acquire(timeout=0.01)
            assert ask("pg_advisory_unlock_shared")
            async with c.lock(42, timeout=30):
                assert not ask("pg_try_advisory_lock_shared")
            assert ask("pg_try_advisory_lock")
            assert await c.lock(42, shared=True).try_acquire() is None
            waiter = await started(c.lock(42, shared=True).acquire(), database)
            assert ask("pg_advisory_unlock")
            await (await asyncio.wait_for(waiter, 30)).release()
    await until_free(database)


@both_engines
@ways_to_leave
@pytest.mark.parametrize("constellation", ["free", "joins", "behind a writer", "a writer behind readers"])
async def test_cancelled_at_every_suspension(database: str, engine: Engine, leave: Any, constellation: str) -> None:
    """Cancelled at any suspension, nothing stays locked, marked or closed but what others have."""
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database) as other:

        async def cycle(shared: bool) -> None:
            async with c.lock("leave", shared=shared):
                await asyncio.sleep(0)

        modes = {
            "free": (True,),
            "joins": (True, True),
            "behind a writer": (False, True),
            "a writer behind readers": (True, False, True),
        }

        async def scene() -> None:
            await asyncio.gather(*(cycle(shared) for shared in modes[constellation]))

        stranger = await other.lock("leave", shared=True).acquire() if constellation == "joins" else None
        left = 1 if stranger else 0

        async def afterwards() -> None:
            await eventually_async(lambda: len(locks(database)) == left and c.health().locks_held == 0)
            await until_pairs(database, INTEREST, 0)
            await until_pairs(database, GATE, 0)

        assert await cancelled_at_every_suspension(scene, leave, afterwards) >= 1
        if stranger:
            await stranger.release()
    await until_free(database)


@both_engines
async def test_storm(database: str, engine: Engine) -> None:
    """Readers and writers of three processes, many cancelled or out of time: never a writer with anybody else, and at
    the end nothing is left."""
    dice = random.Random(5)
    inside: dict[str, list[int]] = {f"hot {n}": [0, 0] for n in range(3)}
    granted = left = 0

    async def once(c: AsyncCoordinator, key: str, shared: bool, timeout: float | None) -> None:
        nonlocal granted
        counts = inside[key]
        async with c.lock(key, shared=shared, timeout=timeout):
            counts[shared] += 1
            granted += 1
            assert counts[False] == 0 or counts == [1, 0], key
            try:
                if dice.random() < 0.5:
                    await asyncio.sleep(0)
            finally:
                counts[shared] -= 1

    async def work(c: AsyncCoordinator) -> None:
        nonlocal left
        for _ in range(60):
            timeout = dice.choice([None, None, 0.0, 0.002])
            task = asyncio.create_task(once(c, f"hot {dice.randrange(3)}", dice.random() < 0.7, timeout))
            if dice.random() < 0.4:
                asyncio.get_running_loop().call_later(dice.random() * 0.004, task.cancel)
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, (asyncio.CancelledError, AcquireTimeout)):
                left += 1
            elif outcome is not None:
                raise outcome

    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
        AsyncCoordinator(database, engine=engine) as three,
    ):
        await asyncio.gather(*(work(c) for c in (one, two, three) for _ in range(10)))
        await until_free(database)
        assert granted > 200
        assert left > 200
        for c in (one, two, three):
            await eventually_async(lambda c=c: c.health().locks_held == c.health().locks_waited_for == 0)  # type: ignore[misc]
