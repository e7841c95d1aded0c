"""The backend that keeps nothing apart: the interface, the bookkeeping and the end are those of any other."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, Coordinator, CoordinatorClosed, LockLost, WouldDeadlock
from pgconcert.events import HoldBroken, HoldDropped, LockAcquired, LockReleased
from pgconcert.memory.null import NullBackend
from pgconcert.testing import eventually_async
from tests.unit.memoryworld import Story


async def test_everybody_has_everything() -> None:
    async with AsyncCoordinator("null://") as one, AsyncCoordinator("null://", engine="thread") as two:
        assert "exclusion" not in one.backend.capabilities
        holds = [await c.lock("a").acquire() for c in (one, two, one)]
        holds += [await one.lock("a", shared=True).acquire(), await two.lock_all(["a", "b"]).acquire()]
        assert one.health().locks_held + two.health().locks_held == 6
        for hold in holds:
            await hold.release()
        assert one.health().locks_held + two.health().locks_held == 0


async def test_waiting_for_oneself_is_told_all_the_same() -> None:
    """A program that would stand still on a server is told so by its own tests."""
    async with AsyncCoordinator("null://") as c, c.lock("a"):
        with pytest.raises(WouldDeadlock):
            await c.lock("a").acquire()
        async with c.lock("a", timeout=0):
            pass


async def test_permits_go_round_and_stay_in_range() -> None:
    async with AsyncCoordinator("null://") as c:
        holds = [await c.semaphore("s", 3).acquire() for _ in range(7)]
        other = await c.semaphore("s", 2).acquire()  # nobody keeps count, so nobody disagrees
        assert [hold.permit for hold in holds] == [0, 1, 2, 0, 1, 2, 0]
        assert other.permit in (0, 1)
        assert c.health().locks_held == 8
        for hold in (*holds, other):
            await hold.release()
        assert c.health().locks_held == 0


async def test_max_locks_means_nothing() -> None:
    async with AsyncCoordinator("null://", max_locks=1) as c:
        async with c.lock("a"), c.lock("b"):
            assert (c.health().locks_held, c.health().lock_budget) == (2, None)


WITHOUT = "the backend NullBackend has no sessions: it keeps neither job locks nor elections nor groups"


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_what_hangs_on_sessions_is_refused(engine: Any) -> None:
    async def never(hold: object) -> None:
        raise AssertionError("it ran")

    async with AsyncCoordinator("null://", engine=engine) as c:
        for make in (c.job_lock, c.election, c.group):
            with pytest.raises(ConfigurationError, match=WITHOUT):
                make("a")
        for ask in (c.groups, c.sessions, lambda: c.run_in_job_lock("a", never)):
            with pytest.raises(ConfigurationError, match=WITHOUT):
                await ask()
        with pytest.raises(ConfigurationError, match=WITHOUT):
            _ = c.identity
        assert c.health().sessions == ()


def test_what_hangs_on_sessions_is_refused_to_threads_too() -> None:
    with Coordinator("null://") as c:
        for call in (
            lambda: c.job_lock("a"),
            lambda: c.election("a"),
            lambda: c.group("a"),
            lambda: c.run_in_job_lock("a", print),
            c.groups,
            c.sessions,
        ):
            with pytest.raises(ConfigurationError, match=WITHOUT):
                call()


async def test_the_end_of_the_coordinator() -> None:
    c = AsyncCoordinator(backend=NullBackend())
    story = Story(c, LockAcquired, LockReleased, HoldBroken)
    await c.open()
    lock = c.lock("a", on_lost="report")
    hold = await lock.acquire()
    released = await lock.acquire()
    await released.release()
    await c.close()
    assert hold.reason == "the coordinator was closed"
    with pytest.raises(LockLost):
        hold.check()
    with pytest.raises(CoordinatorClosed, match="is closed"):
        await lock.acquire()
    await c.backend.close()
    assert story.kinds() == ["LockAcquired", "LockAcquired", "LockReleased", "HoldBroken"]


async def test_a_dropped_hold() -> None:
    async with AsyncCoordinator("null://") as c:
        story = Story(c, HoldDropped)
        kept = [await c.lock("a").acquire()]
        with pytest.warns(ResourceWarning, match="'a' was dropped without release"):
            kept.clear()
        await eventually_async(lambda: c.health().locks_held == 0)
        assert story.kinds() == ["HoldDropped"]


async def test_before_it_is_open() -> None:
    backend = NullBackend()
    with pytest.raises(CoordinatorClosed, match="this backend is not open"):
        backend.health()
    await backend.close()


def test_a_child_has_nothing() -> None:
    runner = asyncio.Runner()
    c = AsyncCoordinator("null://anything")
    runner.run(c.open())
    hold = runner.run(c.lock("a").acquire())
    pid = os.fork()
    if not pid:
        os._exit(0 if hold.reason == "forked" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not hold.lost
    runner.run(hold.release())
    runner.run(c.close())
    runner.close()
