"""Sessions beside the loop that uses them: a loop that is blocked, the engine thread, holds that are dropped, cancelled
waits, `fork`, loops that end. What is looked at is counted, never timed; where real time passes, it does so because a
loop is blocked."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import PoolerRefused
from pgconcert.events import HeartbeatLate, HoldDropped
from pgconcert.memory import World
from pgconcert.messenger import Ear
from pgconcert.store import Give, LookAtSessions, Take
from pgconcert.testing import eventually, eventually_async
from tests.processes import Worker
from tests.unit.ears import turns
from tests.unit.memoryworld import Story, still_world
from tests.unit.session_scenes import left, left_over, moved_on, opened, pass_time


def block_the_loop(seconds: float) -> None:
    time.sleep(seconds)


# a loop that is blocked


async def test_a_blocked_loop_is_named(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}", watchdog=True) as c:
        story = Story(c, HeartbeatLate)
        async with c.job_lock("n", ttl=60.0, interval=0.2):
            late: HeartbeatLate | None = None
            for _ in range(10):  # a busy machine has other delays, and may keep the watchdog from its look
                story.events.clear()
                block_the_loop(1.0)
                await eventually_async(lambda: bool(story.events), what="the late heartbeat is told")
                named = [event for event in story.events if isinstance(event, HeartbeatLate)]
                late = next((event for event in named if "block_the_loop(1.0)" in (event.stack or "")), None)
                if late is not None:
                    break
            assert late is not None
            assert late.delay > 0.5
            assert "block_the_loop" in str(late)
    assert not any(thread.name == "pgconcert-watchdog" for thread in threading.enumerate())


async def test_without_a_watchdog_it_is_told_without_the_place(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        story = Story(c, HeartbeatLate)
        async with c.job_lock("n", ttl=60.0, interval=0.2):
            block_the_loop(0.7)
            await eventually_async(lambda: bool(story.events), what="the late heartbeat is told")
            assert {event.stack for event in story.events if isinstance(event, HeartbeatLate)} == {None}


async def test_on_the_engine_thread_no_heartbeat_is_late(unique: str) -> None:
    world = World.named(unique)
    async with AsyncCoordinator(f"memory://{unique}", engine="thread") as c:
        story = Story(c, HeartbeatLate)
        kept = False
        for _ in range(10):  # the whole process may stand still on a busy machine, and then it is lost in earnest
            story.events.clear()
            hold = await c.job_lock("n", ttl=1.0, interval=0.2, on_lost="report").acquire()
            block_the_loop(1.5)
            kept = not hold.lost and not world.empty
            await hold.release()
            if kept and not story.events:
                break
        assert kept
        assert story.events == []


async def test_on_the_loop_the_same_is_a_loss(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        hold = await c.job_lock("n", ttl=1.0, interval=0.2, on_lost="report").acquire()
        block_the_loop(1.2)
        assert hold.lost  # although nothing of ours has run


# holds that are dropped


async def test_a_hold_that_is_dropped_is_given_back(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    holds = [await house.acquire()]
    waits = other.ask()
    await turns(20)
    with pytest.warns(ResourceWarning, match="the hold of 'n' was dropped without release"):
        holds.clear()
    await turns(20)
    assert waits.held
    assert len(house.told(HoldDropped)) == 1
    waits.give()
    await moved_on([house, other], clock)
    assert not left_over(house)
    await left(house, other)


async def test_a_hold_that_is_dropped_on_another_thread(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    holds = [await house.acquire()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread = threading.Thread(target=holds.clear)
        thread.start()
        thread.join()
    await eventually_async(lambda: not left_over(house), what="it is given back")
    await moved_on([house], clock)
    await left(house)


# whoever waits is cancelled


@pytest.mark.parametrize("after", range(12))
async def test_an_acquire_that_is_cancelled_anywhere_leaves_nothing(unique: str, after: int) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    task = asyncio.ensure_future(house.acquire())
    await turns(after)
    if after % 2:
        await hold.release()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(20)
    if not after % 2:
        await hold.release()
    await turns(20)
    assert not left_over(house)
    assert await other.holder() is None
    await moved_on([house, other], clock)
    await left(house, other)


@pytest.mark.parametrize("after", range(4))
async def test_a_release_that_is_cancelled_goes_on(unique: str, after: int) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.keeps = {Give}
    task = asyncio.ensure_future(hold.release())
    await turns(1 + after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    house.store.deliver()
    await turns()
    assert await house.holder() is None
    assert not left_over(house)
    await moved_on([house], clock)
    await left(house)


@pytest.mark.parametrize("after", range(6))
async def test_a_close_that_is_cancelled_lets_no_heartbeat_go_on(unique: str, after: int) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.keeps = {Give}
    task = asyncio.ensure_future(house.engine.close())
    await turns(1 + after)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hold.lost
    house.store.deliver()
    assert clock.waiting() == 0
    await turns()
    await house.backend.close()
    assert world.empty


async def test_a_wait_that_is_over_by_time_leaves_nothing(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    with pytest.raises(TimeoutError):
        await house.acquire(timeout=0.01)
    await turns(20)
    assert not left_over(house)
    await hold.release()
    await moved_on([house, other], clock)
    await left(house, other)


# listening


async def test_nobody_listens_before_somebody_waits_nor_long_after(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    await turns(20)
    assert world.exchange.empty(clock.now())
    waits = other.ask()
    await turns(20)
    assert not world.exchange.empty(clock.now())
    await hold.release()
    await turns(20)
    assert waits.held
    await waits.given()
    await pass_time(clock, 9.0)
    assert not world.exchange.empty(clock.now())
    await pass_time(clock, 1.5)
    assert world.exchange.empty(clock.now())
    await left(house, other)


async def test_one_that_may_not_listen_looks_by_itself(unique: str) -> None:
    world, clock = still_world(unique)
    ear = NoEar()
    house, other = await opened(world, messenger=ear), await opened(world)
    for _ in range(3):
        hold = await other.acquire()
        waits = house.ask()
        await turns(20)
        takes = house.store.count(Take)
        await hold.release()
        await pass_time(clock, 5.0)
        assert waits.held
        assert house.store.count(Take) == takes + 1
        waits.give()
        await moved_on([house, other], clock, 1.0)
    assert ear.asked == 1
    await left(house, other)


class NoEar:
    """A messenger that cannot listen, as behind a pooler that shares connections, and never will."""

    asked = 0

    def publish(self, channel: bytes, payload: bytes, answer: asyncio.Future[bool]) -> None:
        answer.set_result(True)

    def listen(self, channel: str, ear: Ear) -> None:
        self.asked += 1
        ear.failed(PoolerRefused("a pooler is in the way"))

    def unlisten(self, channel: str, ear: object) -> None: ...


# forks, and loops that end


def test_a_loop_that_ends_without_close_leaves_nothing_behind(unique: str) -> None:
    world = World.named(unique)
    lost: list[str | None] = []

    async def forgets() -> None:
        c = AsyncCoordinator(f"memory://{unique}", watchdog=True)
        await c.open()
        hold = await c.job_lock("n", ttl=4.0, interval=0.2, on_lost="report").acquire()
        lost.append(hold.reason)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(forgets())
        gc.collect()
    assert lost == [None]

    def ended() -> bool:
        gc.collect()
        return not any(thread.name == "pgconcert-watchdog" for thread in threading.enumerate())

    eventually(ended, what="the watchdog has ended")
    eventually(lambda: world.ledger.empty(world.clock.now()), 30.0, what="its session is over")


CHILD = """
import asyncio, os, sys
from pgconcert import AsyncCoordinator
from pgconcert.clock import FakeClock
from pgconcert.memory import World

engine = sys.argv[1]
clock = FakeClock()
world = World.named("w", clock=clock)
runner = asyncio.Runner()
c = AsyncCoordinator("memory://w", engine=engine, watchdog=True)
runner.run(c.open())
hold = runner.run(c.job_lock("n", on_lost="report").acquire())
assert not hold.lost

def child():
    assert hold.lost and hold.reason == "forked", hold
    try:
        hold.check()
    except Exception as error:
        assert "forked" in str(error), error
    else:
        raise AssertionError("a child holds nothing")
    clock.advance(1.0)
    assert world.empty

    async def work():
        async with AsyncCoordinator("memory://w", engine=engine) as mine, mine.job_lock("n") as ours:
            assert not ours.lost and hold.lost
    asyncio.run(work())

pid = os.fork()
if not pid:
    try:
        child()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not hold.lost and not world.empty

async def renewed():
    while c.health().sessions[0].trusted_for < 30:
        await asyncio.sleep(0.001)

for _ in range(10):
    clock.advance(10.0)
    runner.run(renewed())
assert not hold.lost
runner.run(hold.release())
assert not hold.lost
runner.run(c.close())
runner.close()
assert world.empty
print("done")
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_forked_child_holds_nothing_and_harms_nobody(worker: Callable[..., Worker], engine: str) -> None:
    process = worker(CHILD, engine)
    process.expect("done", 50.0)
    assert process.wait() == 0


async def test_a_session_that_is_being_started_when_it_closes_is_not_left(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world), await opened(world)
    house.ask()  # its start leaves in the next turn
    await house.close()
    assert await other.look(LookAtSessions()) == ()
    await left(house, other)
