"""Semaphores on a real server: permits over several processes, agreement about their number, and what they cost.

Here live tests of what is visible from outside and on the server. Theory: a permit is a slot, an exclusive lock in the
library's own space of pairs, and the number of permits is a shared one; so what the server holds tells the truth about
both. Where a wake-up must do it, the re-check is switched off.
"""

import asyncio
import random
import threading
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator
from pgconcert.keys import KeySpace, agreement_pair, slot_pair
from pgconcert.postgres import locks, slotowner, waiting
from pgconcert.testing import advisory_locks, eventually_async
from tests.postgres.lockkinds import (
    INTEREST,
    NEVER,
    fence,
    let_go,
    slots,
    started,
    still_waits,
    until_pairs,
)
from tests.postgres.scenes import QUIET, Engine, both_engines, raw, statements, until_free
from tests.postgres.test_locks_cancel import cancelled_at_every_suspension, ways_to_leave

T = TypeVar("T")


@pytest.fixture
def no_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself: only a wake-up helps."""
    monkeypatch.setattr(waiting, "_RECHECK", NEVER)


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreements are given up soon after the last use."""
    monkeypatch.setattr(slotowner, "_LINGER", 0.05)


@both_engines
async def test_never_more_than_there_are(database: str, engine: Engine) -> None:
    """Three permits over three processes: three holders with numbers of their own, and nobody else gets one."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
        AsyncCoordinator(database, engine=engine) as three,
    ):
        everybody = (one, two, three)
        for users in ((one, two, three), (one, one, two), (three, three, three)):
            holds = [await c.semaphore("s", 3).acquire() for c in users]
            assert sorted(hold.permit for hold in holds if hold.permit is not None) == [0, 1, 2]
            assert slots(database) == [0, 1, 2]
            for c in everybody:
                assert await c.semaphore("s", 3).try_acquire() is None
                with pytest.raises(AcquireTimeout):
                    await c.semaphore("s", 3).acquire(timeout=0)
            freed = holds[1].permit
            await holds[1].release()
            again = await three.semaphore("s", 3).try_acquire()
            assert again is not None
            assert again.permit == freed
            await let_go(again, holds[0], holds[2])
            assert slots(database) == []
    await until_free(database)


async def test_tries_at_once(database: str) -> None:
    """Of ten tries of one process in the same instant, as many succeed as there are permits."""
    async with AsyncCoordinator(database) as c:
        for _ in range(3):
            found = await asyncio.gather(*(c.semaphore("at once", 4).try_acquire() for _ in range(10)))
            assert sum(hold is not None for hold in found) == 4
            await let_go(*filter(None, found))
    await until_free(database)


@both_engines
@pytest.mark.usefixtures("no_recheck")
async def test_a_waiter_is_woken(database: str, engine: Engine) -> None:
    """Each permit that is given back wakes one waiter of another process or of the same, by itself."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        for c in (one, two, two):
            holds = [await one.semaphore("wake", 2).acquire() for _ in range(2)]
            if c is two:
                task = await started(c.semaphore("wake", 2).acquire(), database)
            else:
                task = asyncio.create_task(c.semaphore("wake", 2).acquire())
            assert await still_waits(task, one, two)
            await holds[0].release()
            taken = await asyncio.wait_for(task, 30)
            assert slots(database) == [0, 1]
            await let_go(taken, holds[1])
            await until_pairs(database, INTEREST, 0)
    await until_free(database)


@pytest.mark.usefixtures("no_recheck")
async def test_several_waiters_and_several_permits(database: str) -> None:
    """Waiters of three processes all get in when the permits come back together."""
    async with (
        AsyncCoordinator(database) as one,
        AsyncCoordinator(database) as two,
        AsyncCoordinator(database) as three,
    ):
        holds = [await one.semaphore("many", 6).acquire() for _ in range(6)]
        tasks = [await started(c.semaphore("many", 6).acquire(), database) for c in (two, three)]
        tasks += [asyncio.create_task(c.semaphore("many", 6).acquire()) for c in (two, three, two, three)]
        assert await still_waits(tasks[-1], two, three)
        await asyncio.gather(*(hold.release() for hold in holds))
        taken = await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert sorted(hold.permit for hold in taken if hold.permit is not None) == list(range(6))
        await let_go(*taken)
    await until_free(database)


@pytest.mark.parametrize("permits", [1, 4, 1000])
async def test_what_a_cycle_costs(database: str, permits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cycle costs four statements (agree, look, take, give), every further one two, whatever the number."""
    monkeypatch.setattr(slotowner, "_LINGER", NEVER)
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        async with c.lock("warm"):
            pass
        before = statements(c)
        async with c.semaphore("cost", permits):
            pass
        assert statements(c) - before == 4
        for _ in range(50):
            async with c.semaphore("cost", permits):
                pass
        assert statements(c) - before == 4 + 100


async def test_many_tasks_share_statements(database: str) -> None:
    """A hundred tasks with a thousand cycles on one semaphore need far fewer statements than cycles."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            for _ in range(10):
                async with c.semaphore("tasks", 50):
                    inside += 1
                    most = max(most, inside)
                    assert inside <= 50
                    await asyncio.sleep(0)
                    inside -= 1

        async with c.lock("warm"):
            pass
        before = statements(c)
        await asyncio.gather(*(work() for _ in range(100)))
        assert most > 25
        assert statements(c) - before <= 200
    await until_free(database)


async def together(c: AsyncCoordinator, *asked: Coroutine[Any, Any, T]) -> list[T]:
    """Ask all of it at one instant. An engine on a thread would take what drips in one by one: it has to wait."""
    threaded: Any = c._threaded
    gate = threading.Event()
    if threaded is not None:
        threaded._engine.crossing.post(gate.wait)
    tasks = [asyncio.create_task(one) for one in asked]
    await asyncio.sleep(0)
    gate.set()
    return await asyncio.gather(*tasks)


@both_engines
async def test_a_thousand_permits(database: str, engine: Engine) -> None:
    """A thousand permits, all of them out, with numbers 0 to 999, in a handful of statements."""
    async with (
        AsyncCoordinator(database, network_timeout=QUIET, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        first = await one.semaphore("thousand", 1000).acquire()
        before = statements(one)
        holds = await together(one, *(one.semaphore("thousand", 1000).acquire() for _ in range(998)))
        assert statements(one) - before <= 10
        last = await two.semaphore("thousand", 1000).acquire()
        everything = [first, *holds, last]
        assert sorted(hold.permit for hold in everything if hold.permit is not None) == list(range(1000))
        for c in (one, two):
            assert await c.semaphore("thousand", 1000).try_acquire() is None
        before = statements(one)
        await together(one, *(hold.release() for hold in everything))
        assert statements(one) - before <= 10
        assert slots(database) == []
    await until_free(database)


@both_engines
@pytest.mark.usefixtures("no_recheck")
async def test_one_permit_is_like_a_lock(database: str, engine: Engine) -> None:
    """Two processes that always both want the only permit hand it to and fro without a lost wake-up."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        inside = 0

        async def work(c: AsyncCoordinator) -> None:
            nonlocal inside
            for _ in range(200):
                async with c.semaphore("only", 1, timeout=30) as hold:
                    assert hold.permit == 0
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.gather(work(one), work(two))
    await until_free(database)


async def test_names_of_their_own(database: str) -> None:
    """A semaphore excludes no lock of its name, no semaphore of another namespace, and nobody's plain advisory lock."""
    async with (
        AsyncCoordinator(database) as one,
        AsyncCoordinator(database) as two,
        AsyncCoordinator(database, namespace="other") as other,
    ):
        async with one.semaphore("name", 1), two.lock("name", timeout=30), other.semaphore("name", 1, timeout=30):
            assert await two.semaphore("name", 1).try_acquire() is None
            async with two.semaphore("name ", 1, timeout=30):
                assert len(slots(database)) == 3
    with raw(database) as stranger:
        async with AsyncCoordinator(database) as c:
            value = KeySpace().semaphore("name", 1).value
            slot = slot_pair(value, 0)
            stranger.execute("select pg_advisory_lock(%s::int4, %s::int4)", slot)
            assert await c.semaphore("name", 1).try_acquire() is None
            stranger.execute("select pg_advisory_unlock(%s::int4, %s::int4)", slot)
            async with c.semaphore("name", 1, timeout=30):
                assert {lock.key for lock in advisory_locks(database)} == {slot, agreement_pair(value, 1)}
    await until_free(database)


@both_engines
async def test_closing_gives_everything_back(database: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coordinator that closes with permits out, with waiters, or with an agreement that lingers leaves nothing."""
    monkeypatch.setattr(locks, "_FAREWELL", 30.0)
    for out in (0, 1, 3):
        c = AsyncCoordinator(database, engine=engine)
        await c.open()
        async with c.semaphore("close", 3):
            pass
        holds = [await c.semaphore("close", 3).acquire() for _ in range(out)]
        waiter = asyncio.create_task(c.semaphore("close", 3).acquire()) if out == 3 else None
        await asyncio.sleep(0)
        await c.close()
        assert advisory_locks(database) == []
        assert [hold.reason for hold in holds] == ["the coordinator was closed"] * out
        if waiter is not None:
            with pytest.raises(RuntimeError, match="closed"):
                await waiter


async def test_a_timeout_names_the_holders(database: str) -> None:
    """Out of time, the waiter is told who has the permits: all of them if they are few."""
    names = ["ann", "bob", "cat", "dan", "eve"]
    coordinators = [AsyncCoordinator(database, name=name) for name in names]
    for c in coordinators:
        await c.open()
    try:
        async with AsyncCoordinator(database) as waiter:
            await fence(waiter)
            for permits in (1, 2, 3, 5):
                name = f"names {permits}"
                holds = [await c.semaphore(name, permits).acquire() for c in coordinators[:permits]]
                with pytest.raises(AcquireTimeout) as told:
                    await waiter.semaphore(name, permits).acquire(timeout=0.01)
                text = str(told.value)
                assert text.startswith(f"a permit of {name!r} was not acquired within 0.01 s; its ")
                assert f"its {permits} permits are held by " in text or permits == 1
                assert sum(f"{who}@" in text for who in names[:permits]) == min(permits, 3)
                assert ("2 more" in text) is (permits == 5)
                await let_go(*holds)
    finally:
        for c in coordinators:
            await c.close()
    await until_free(database)


@both_engines
@ways_to_leave
@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_cancelled_at_every_suspension(database: str, engine: Engine, leave: Any, taken: int) -> None:
    """Cancelled at any suspension of try, acquire and release, no permit and no mark of the caller stays behind."""
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database, engine=engine) as other:
        theirs = [await other.semaphore("leave", 2).acquire() for _ in range(taken)]

        async def scene() -> None:
            hold = await c.semaphore("leave", 2).try_acquire()
            if hold is not None:
                await hold.release()
            try:
                # a busy machine may need longer for a permit that is free
                async with c.semaphore("leave", 2, timeout=0.01 if taken == 2 else None):
                    await asyncio.sleep(0)
            except AcquireTimeout:
                assert taken == 2

        async def afterwards() -> None:
            await eventually_async(lambda: len(slots(database)) == taken)
            await until_pairs(database, INTEREST, 0)
            await eventually_async(lambda: c.health().locks_held == c.health().locks_waited_for == 0)

        assert await cancelled_at_every_suspension(scene, leave, afterwards) >= 3
        await let_go(*theirs)
    await until_free(database)


@both_engines
@pytest.mark.parametrize("recheck", [True, False])
async def test_storm(database: str, monkeypatch: pytest.MonkeyPatch, engine: Engine, recheck: bool) -> None:
    """Three processes, many tasks, many that leave: never more holders than permits, no number twice, nothing left."""
    if not recheck:
        monkeypatch.setattr(waiting, "_RECHECK", NEVER)
    dice = random.Random(7)
    permits = 3
    inside: set[int] = set()
    granted = left = 0

    async def once(c: AsyncCoordinator, timeout: float | None) -> None:
        nonlocal granted
        async with c.semaphore("storm", permits, timeout=timeout) as hold:
            number = hold.permit
            assert number is not None
            assert number not in inside
            assert 0 <= number < permits
            inside.add(number)
            granted += 1
            try:
                if dice.random() < 0.5:
                    await asyncio.sleep(0)
            finally:
                inside.discard(number)

    async def work(c: AsyncCoordinator) -> None:
        nonlocal left
        for _ in range(60):
            task = asyncio.create_task(once(c, dice.choice([None, None, 0.0, 0.002])))
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
        await asyncio.gather(*(work(c) for c in (one, two, three) for _ in range(8)))
        assert granted > 100
        assert left > 100
        await eventually_async(lambda: slots(database) == [])
        for c in (one, two, three):
            await eventually_async(partial(_idle, c))
    await until_free(database)


def _idle(c: AsyncCoordinator) -> bool:
    """Whether a coordinator has nothing and waits for nothing."""
    return c.health().locks_held == c.health().locks_waited_for == 0
