"""Broken connections of `memory://`: killed, cut off, healed, forked. What PostgreSQL's twin promises about them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, AsyncHold, CoordinatorClosed, LockLost, Unavailable
from pgconcert.events import HoldBroken, LinkLost, LinkOpened, LockAcquired
from pgconcert.testing import eventually_async
from tests.unit.memoryworld import Story, handles, still_world

SILENCE = 5.0


async def turns(count: int = 20) -> None:
    """More turns of the loop than anything here needs, to see that nothing happens."""
    for _ in range(count):
        await asyncio.sleep(0)


def soon(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


async def test_a_lost_connection(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        story = Story(a, LinkLost, LinkOpened, HoldBroken)
        first = a.health().links[0].server_pid
        holds = [await a.lock("k").acquire(), await a.lock("r", shared=True).acquire()]
        holds.append(await a.semaphore("s", 1).acquire())
        waits = [soon(b.lock("k").acquire()), soon(b.lock("r").acquire()), soon(b.semaphore("s", 1).acquire())]
        await turns()
        handles(a).lose_connection("the cable was pulled")
        assert [hold.reason for hold in holds] == ["the cable was pulled"] * 3
        for hold in [await wait for wait in waits]:
            await hold.release()
        for hold in holds:
            await hold.release()
            with pytest.raises(LockLost):
                hold.check()
        second = a.health().links[0].server_pid
        assert second != first
        *before, opened = story.words()
        assert before == [
            f"lock link lost (backend {first}, 0 unanswered): the cable was pulled",
            "'k' was lost: the cable was pulled",
            "'r' was lost: the cable was pulled",
            "'s' was lost: the cable was pulled",
        ]
        assert opened.startswith(f"lock link open: memory://{unique}, backend {second}, version 0, memory, after ")
        assert handles(a).world.empty


async def test_an_old_hold_cannot_release_the_new_lock(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        old = await a.lock("k").acquire()
        handles(a).lose_connection()
        new = await a.lock("k").acquire()
        await old.release()
        assert await b.lock("k").try_acquire() is None
        await new.release()


async def test_who_waits_rides_through(unique: str) -> None:
    order: list[str] = []
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:

        async def enter(name: str) -> None:
            async with b.lock("k"):
                order.append(name)

        hold = await a.lock("k").acquire()
        tasks = [soon(enter(name)) for name in "xyz"]
        await turns()
        handles(b).lose_connection(reconnect=False)
        tasks.append(soon(enter("late")))
        tasks[1].cancel()
        await turns()
        await hold.release()
        await turns()
        assert order == []
        handles(b).reconnect()
        await asyncio.wait(tasks)
        assert order == ["x", "z", "late"]
        assert handles(a).world.empty


async def test_without_a_connection(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        handles(c).lose_connection("gone fishing", reconnect=False)
        with pytest.raises(Unavailable, match=rf"^there is no connection to memory://{unique} now: gone fishing$"):
            await c.lock("k").try_acquire()
        with pytest.raises(Unavailable, match="gone fishing"):
            await c.lock_all(["k", "l"]).try_acquire()
        with pytest.raises(AcquireTimeout, match=r"within 0\.01 s; there is no connection to the server: gone fishing"):
            await c.lock("k").acquire(timeout=0.01)
        (link,) = c.health().links
        assert (c.health().ready, link.state, link.last_error) == (False, "waiting", "gone fishing")
        assert (c.health().locks_waited_for, c.health().locks_held) == (0, 0)
        handles(c).reconnect()
        handles(c).reconnect()
        async with c.lock("k"):
            assert c.health().ready
            assert c.health().links[0].last_error is None


async def test_closing_without_a_connection(unique: str) -> None:
    c = AsyncCoordinator(f"memory://{unique}")
    await c.open()
    handles(c).lose_connection(reconnect=False)
    wait = soon(c.lock("k").acquire())
    await turns()
    await c.close()
    with pytest.raises(CoordinatorClosed, match="closed while this lock was waited for"):
        await wait


async def test_a_loss_is_told_before_anybody_else_has_it(unique: str) -> None:
    """The holder's loss is an event of the past when the next holder's grant is one."""
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        for partition in (False, True):
            told: list[str] = []
            hold = await a.lock("k").acquire()
            stops = [
                a.events.subscribe(lambda event: told.append(f"lost {hold.lost}"), HoldBroken),  # noqa: B023
                b.events.subscribe(lambda event: told.append("granted"), LockAcquired),  # noqa: B023
            ]
            wait = soon(b.lock("k").acquire())
            await turns()
            if partition:
                with handles(a).partition():
                    handles(a).lose_connection()
            else:
                handles(a).lose_connection()
            assert told == ["lost True", "granted"]
            for stop in stops:
                stop()
            await (await wait).release()


async def test_a_partition_that_lasts(unique: str) -> None:
    """After the silence the holder is told, then the world frees; what was asked meanwhile ends as on a dead link."""
    world, clock = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        told: list[str] = []
        hold, given = await a.lock("k").acquire(), await a.lock("l").acquire()
        story = Story(a, LinkLost)
        a.events.subscribe(lambda event: told.append("told"), HoldBroken)
        b.events.subscribe(lambda event: told.append("free"), LockAcquired)
        wait = soon(b.lock("k").acquire())
        partition = handles(a).partition()
        release, attempt, rider = soon(given.release()), soon(a.lock("m").try_acquire()), soon(a.lock("m").acquire())
        await turns()
        clock.advance(SILENCE - 0.1)
        await turns()
        assert not any(task.done() for task in (wait, release, attempt, rider))
        assert not hold.lost
        assert await b.lock("l").try_acquire() is None
        assert a.health().ready  # nobody can know yet
        clock.advance(0.1)
        assert told == ["told", "free"]
        assert hold.reason == f"no answer from memory://{unique} within network_timeout=5 s"
        assert "3 unanswered" in story.words()[0]
        await release
        assert not given.lost
        with pytest.raises(Unavailable, match="now: no answer from"):
            await attempt
        with pytest.raises(Unavailable, match="now: no answer from"):
            await a.lock("m").try_acquire()
        await (await wait).release()
        async with b.lock("l"), b.lock("m"):
            await turns()
            assert not rider.done()
            partition.heal()
            assert a.health().ready
        await (await rider).release()
        assert world.empty
    assert clock.waiting() == 0


async def test_a_partition_that_heals_in_time(unique: str) -> None:
    """Nothing is lost, and what was asked meanwhile is done in its order."""
    world, clock = still_world(unique)
    order: list[str] = []
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:

        async def enter(name: str) -> None:
            async with a.lock("free"):
                order.append(name)

        hold = await a.lock("k").acquire()
        with handles(a).partition() as partition:
            release = soon(hold.release())
            await turns()
            again = soon(a.lock("k").try_acquire())
            tasks = [soon(enter(name)) for name in "xyz"]
            await turns()
            tasks[1].cancel()
            clock.advance(SILENCE - 0.1)
            await turns()
            assert (release.done(), again.done(), order) == (False, False, [])
            async with b.lock("free", timeout=0):  # whoever left meanwhile is in nobody's way
                pass
            assert await b.lock("k").try_acquire() is None
        await release
        held = await again
        assert held is not None
        await asyncio.wait(tasks)
        assert order == ["x", "z"]
        clock.advance(10 * SILENCE)
        partition.heal()
        assert not held.lost
        await held.release()
        assert (world.empty, clock.waiting()) == (True, 0)


async def test_who_waits_behind_a_partition_is_passed_over(unique: str) -> None:
    world, _ = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        hold = await b.lock("k").acquire()
        first, second = soon(a.lock("k").acquire()), soon(b.lock("k").acquire())
        await turns()
        with handles(a).partition():
            await hold.release()
            held = await second
            await turns()
            assert not first.done()
        await turns()
        assert not first.done()
        await held.release()
        await (await first).release()
        assert world.empty


async def test_two_partitions_at_once(unique: str) -> None:
    """The silence lasts from the first to the last of them."""
    _, clock = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}") as a:
        hold = await a.lock("k").acquire()
        first = handles(a).partition()
        clock.advance(3)
        second = handles(a).partition()
        first.heal()
        first.heal()
        clock.advance(SILENCE - 3.1)
        assert not hold.lost
        clock.advance(0.1)
        assert hold.lost
        second.heal()
        again = await a.lock("k").acquire()
        for _ in range(3):  # each shorter than the silence that is too long
            with handles(a).partition():
                clock.advance(SILENCE - 0.1)
        assert not again.lost
        await again.release()


async def test_closing_is_not_held_up_by_a_partition(unique: str) -> None:
    world, clock = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}") as b:
        a = AsyncCoordinator(f"memory://{unique}")
        await a.open()
        hold = await a.lock("k").acquire()
        given = await a.lock("l").acquire()
        partition = handles(a).partition()
        release = soon(given.release())
        await turns()
        await a.close()
        await release
        assert hold.reason == "the coordinator was closed"
        async with b.lock("k", timeout=0), b.lock("l", timeout=0):
            pass
        partition.heal()
        clock.advance(100)
        assert (world.empty, clock.waiting()) == (True, 0)


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_everything_may_be_broken_from_any_thread(unique: str, engine: Any) -> None:
    _, clock = still_world(unique)
    async with AsyncCoordinator(f"memory://{unique}", engine=engine) as c:
        backend = handles(c)

        async def there(act: Callable[[], object]) -> None:
            thread = threading.Thread(target=act)
            thread.start()
            await eventually_async(lambda: not thread.is_alive())

        hold = await c.lock("k").acquire()
        await there(backend.lose_connection)
        assert "a test wanted it" in await hold.wait_lost()
        hold = await c.lock("k").acquire()

        def cut_off_for_too_long() -> None:
            backend.partition()
            clock.advance(SILENCE)

        thread = threading.Thread(target=cut_off_for_too_long)
        thread.start()
        thread.join()  # the loop may hear of the partition only when its time is over
        assert "network_timeout" in await hold.wait_lost()
        with pytest.raises(Unavailable):
            await c.lock("k").try_acquire()
        await there(backend.reconnect)  # the partition lasts
        with pytest.raises(Unavailable):
            await c.lock("k").try_acquire()


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_a_reader_of_events_may_break_it_further(unique: str, engine: Any) -> None:
    """A connection that is lost again while its loss is being told: every hold is lost once, and every wait goes on."""
    async with AsyncCoordinator(f"memory://{unique}", engine=engine) as c:
        story, broken = Story(c, HoldBroken), 0

        def again(event: object) -> None:
            nonlocal broken
            broken += 1
            if broken < 4:
                handles(c).lose_connection(f"number {broken}")

        c.events.subscribe(again, HoldBroken)
        holds = [await c.lock(n).acquire() for n in range(3)]
        waits = [soon(c.lock(n).acquire()) for n in range(3)]
        await turns()
        handles(c).lose_connection("number 0")
        got: list[AsyncHold] = []
        for n, wait in enumerate(waits):
            hold = await wait
            got.append(hold)
            assert holds[n].reason == "number 0"
        await eventually_async(lambda: len(story.events) == broken)
        for hold in got:
            await hold.release()
        for n in range(3):
            async with c.lock(n):
                pass
        await eventually_async(lambda: handles(c).world.empty)
