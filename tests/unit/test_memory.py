"""`memory://name`: what coordinators of one world see of each other, as on a server.

Here live tests with two or three coordinators on one event loop; broken connections have a file of their own, threads
too. Theory: on one loop a decision is known to everybody when the call that caused it returns, so nothing is waited for
except by those whom the test wants to see waiting.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import (
    AcquireTimeout,
    AsyncCoordinator,
    ConfigurationError,
    CoordinatorClosed,
    LockBudgetExceeded,
    LockLost,
    NotHeld,
    PermitsDisagree,
    WouldDeadlock,
)
from pgconcert.clock import FakeClock
from pgconcert.events import (
    HoldDropped,
)
from pgconcert.keys import KeySpace
from pgconcert.memory import MemoryBackend, World
from tests.unit.memoryworld import Story, handles, waiting


async def test_one_name_is_one_world(unique: str) -> None:
    async with (
        AsyncCoordinator(f"memory://{unique}") as a,
        AsyncCoordinator(f"MEMORY://{unique}") as b,
        AsyncCoordinator(f"memory://{unique}/other") as elsewhere,
        AsyncCoordinator(f"memory://{unique}", namespace="n") as apart,
    ):
        hold = await a.lock("k").acquire()
        assert await b.lock("k").try_acquire() is None
        assert await a.lock("k").try_acquire() is None
        for c in (elsewhere, apart):
            async with c.lock("k"):
                pass
        await hold.release()
        async with b.lock("k"):
            pass
        assert handles(a).world is handles(b).world
        assert handles(a).world.empty


@pytest.mark.parametrize("name", ["", "a b", "a?b=c", "user@host", "#"])
def test_a_world_needs_a_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"memory:// needs the name of a world .* such as memory://test, not"):
        AsyncCoordinator(f"memory://{name}")


def test_wrong_arguments(unique: str) -> None:
    kept = World.named(unique)
    with pytest.raises(ConfigurationError, match=f"memory://{unique} exists already with another clock"):
        MemoryBackend(unique, clock=FakeClock())
    with pytest.raises(ConfigurationError, match="exists already with another clock"):
        MemoryBackend(kept, clock=FakeClock())
    with pytest.raises(ConfigurationError, match="network_timeout must be a number of seconds > 0, not 0"):
        MemoryBackend(unique, network_timeout=0)
    with pytest.raises(ConfigurationError, match="max_locks must be at least 1, not 0"):
        MemoryBackend(unique, max_locks=0)
    with pytest.raises(ConfigurationError, match="memory:// has none, leave it out"):
        AsyncCoordinator(f"memory://{unique}", direct_url="postgresql://h")


async def test_a_backend_serves_one_coordinator(unique: str) -> None:
    backend = MemoryBackend(unique)
    with pytest.raises(CoordinatorClosed, match="this backend is not open"):
        backend.health()
    with pytest.raises(CoordinatorClosed, match="this backend is not open"):
        backend.lose_connection()
    async with AsyncCoordinator(backend=backend):
        with pytest.raises(ConfigurationError, match="a backend serves one coordinator"):
            await AsyncCoordinator(backend=backend).open()
    with pytest.raises(CoordinatorClosed, match="there is no connection to break"):
        backend.partition()


async def test_equal_64_bits_exclude_each_other(unique: str) -> None:
    number = KeySpace().key("k").value
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        async with a.lock("k"):
            assert await b.lock(number).try_acquire() is None
            async with b.semaphore("k", 1):
                pass


async def test_hand_over_is_first_come_first_served(unique: str) -> None:
    order: list[str] = []
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:

        async def enter(c: AsyncCoordinator, name: str) -> None:
            async with c.lock("k"):
                order.append(name)

        hold = await a.lock("k").acquire()
        tasks = [asyncio.create_task(enter(c, f"{n}")) for n, c in enumerate((b, a, a, b, b, a))]
        await asyncio.sleep(0)
        assert (a.health().locks_waited_for, b.health().locks_waited_for) == (1, 1)
        tasks[2].cancel()
        await asyncio.sleep(0)
        await hold.release()
        await asyncio.wait(tasks)
        assert order == ["0", "1", "3", "4", "5"]
        assert handles(a).world.empty


async def test_a_time_out_names_the_holder(unique: str) -> None:
    async with (
        AsyncCoordinator(f"memory://{unique}", name="billing") as a,
        AsyncCoordinator(f"memory://{unique}") as b,
    ):
        pid = a.health().links[0].server_pid
        async with a.lock("k"):
            words = rf"^'k' was not acquired within 0.01 s; it is held by billing \(pid {pid}\)$"
            with pytest.raises(AcquireTimeout, match=words):
                await b.lock("k").acquire(timeout=0.01)
            with pytest.raises(AcquireTimeout, match="within 0 s; it is held by billing"):
                await b.lock("k").acquire(timeout=0)
        holds = [await c.lock("r", shared=True).acquire() for c in (a, a, b)]
        with pytest.raises(AcquireTimeout, match=r"it is held shared by billing \(pid \d+\) and \S+ \(pid \d+\)$"):
            await b.lock("r").acquire(timeout=0)
        holds += [await a.semaphore("s", 2).acquire() for _ in range(2)]
        with pytest.raises(AcquireTimeout, match=r"its 2 permits are held by billing \(pid \d+\) and billing"):
            await b.semaphore("s", 2).acquire(timeout=0)
        for hold in holds:
            await hold.release()
        with pytest.raises(AcquireTimeout, match=r"one of 2 locks, was not acquired within 0 s; it is held by"):
            async with a.lock("x"):
                await b.lock_all(["x", "y"]).acquire(timeout=0)
        assert handles(a).world.empty


async def test_a_waiting_writer_keeps_new_readers_out(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        readers = [await c.lock("k", shared=True).acquire() for c in (a, b, a)]
        assert await a.lock("k").try_acquire() is None
        writer = await waiting(b.lock("k").acquire())
        assert await a.lock("k", shared=True).try_acquire() is None
        late = await waiting(a.lock("k", shared=True).acquire())
        for reader in readers:
            assert not writer.done()
            await reader.release()
        hold = await writer
        assert not late.done()
        await hold.release()
        await (await late).release()
        first = await a.lock("k", shared=True).acquire()
        gave_up = await waiting(b.lock("k").acquire())
        behind = [await waiting(c.lock("k", shared=True).acquire()) for c in (a, b)]
        gave_up.cancel()
        holds = [await task for task in behind]
        async with a.lock("k", shared=True, timeout=0):
            pass
        for hold in (first, *holds):
            await hold.release()


async def test_a_semaphore_has_its_permits_and_no_more(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        holds = [await c.semaphore("s", 3).acquire() for c in (a, b, a)]
        assert [hold.permit for hold in holds] == [0, 1, 2]
        assert await b.semaphore("s", 3).try_acquire() is None
        task = await waiting(b.semaphore("s", 3).acquire())
        await holds[1].release()
        got = await task
        assert got.permit == 1
        for hold in (holds[0], holds[2], got):
            await hold.release()
        assert handles(a).world.empty


async def test_who_disagrees_about_permits_is_told_with_whom(unique: str) -> None:
    async with (
        AsyncCoordinator(f"memory://{unique}", name="gpu-farm") as a,
        AsyncCoordinator(f"memory://{unique}") as b,
    ):
        async with a.semaphore("s", 2):
            for attempt in (b.semaphore("s", 3).acquire, b.semaphore("s", 1).try_acquire):
                with pytest.raises(
                    PermitsDisagree,
                    match=r"'s' is used by gpu-farm \(pid \d+\) with 2 permits now, and was asked for with [13]; give",
                ):
                    await attempt()
            with pytest.raises(PermitsDisagree, match="'s' is used by this process with 2 permits now"):
                await a.semaphore("s", 4).acquire()
        async with b.semaphore("s", 3):  # nobody uses it any more, so another number is no contradiction
            pass
        assert (handles(a).world.empty, b.health().locks_held) == (True, 0)


async def test_lock_all_is_all_or_nothing(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        async with a.lock("y"):
            assert await b.lock_all(["x", "y", "z"]).try_acquire() is None
            assert b.health().locks_held == 0
        async with b.lock_all(["x", "y", "z"]):
            assert b.health().locks_held == 3
            assert await a.lock("x").try_acquire() is None
        assert handles(a).world.empty


async def test_waiting_for_oneself_is_told(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        async with c.lock("k"):
            with pytest.raises(WouldDeadlock):
                await c.lock("k").acquire()
        assert await c.acquire_lock("k")
        assert not await c.acquire_lock("k")
        await c.release_lock("k")
        with pytest.raises(NotHeld):
            await c.release_lock("k")


async def test_the_budget(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}", max_locks=2) as a, AsyncCoordinator(f"memory://{unique}") as b:
        async with a.lock(1), a.lock(2), b.lock(3):
            with pytest.raises(
                LockBudgetExceeded, match=r"2 locks are held or waited for .* and its budget is 2; give"
            ):
                await a.lock(3).acquire()
            assert await a.lock(2).try_acquire() is None  # a key in use costs nothing more
        assert (a.health().lock_budget, b.health().lock_budget) == (2, 3200)


async def test_the_world_carries_what_a_server_does(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as a, AsyncCoordinator(f"memory://{unique}") as b:
        first = await a.lock_all(range(3200)).acquire()
        with pytest.raises(LockBudgetExceeded, match="3200 locks are held or waited for by this coordinator"):
            await a.lock("one more").acquire()
        second = await b.lock_all(range(4000, 5600)).acquire()
        with pytest.raises(LockBudgetExceeded, match=rf"the world memory://{unique} carries 4800 .* default \(4800\)"):
            await b.lock("one more").acquire()
        await first.release()
        async with b.lock("one more"):
            pass
        await second.release()
        assert handles(a).world.empty


async def test_a_dropped_hold(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        story = Story(c, HoldDropped)
        kept = [await c.lock("k").acquire()]
        with pytest.warns(ResourceWarning, match="'k' was dropped without release"):
            kept.clear()
        async with c.lock("k", timeout=5):
            pass
        assert story.kinds() == ["HoldDropped"]


async def test_lost_holds_end_with_an_error(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:

        async def work() -> None:
            async with c.lock("k"):
                handles(c).lose_connection()
                await asyncio.Event().wait()

        with pytest.raises(LockLost, match=r"'k' was lost: .* because a test wanted it"):
            await work()
