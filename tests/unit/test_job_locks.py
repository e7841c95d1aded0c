"""Job locks without a server: the pauses of a job that is kept running, what is noted of it, and what is hard to meet.

Here live the pure parts, and those edges of `stop` that need a world of one process. What every backend must do stands
in the conformance suite (`jobs`, `running`).
"""

from __future__ import annotations

import asyncio
import gc
import secrets
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, CoordinatorClosed, Unavailable
from pgconcert.errors import SessionLost, Stopped
from pgconcert.events import JobFailed
from pgconcert.jobs import AsyncJobHold, noted
from pgconcert.memory import MemoryBackend
from pgconcert.sessions.pace import Pace
from pgconcert.sessions.timing import timing
from pgconcert.testing import eventually_async
from tests.postgres.scenes import both_engines


@pytest.fixture
def world() -> str:
    return f"memory://{secrets.token_hex(8)}"


def test_pauses_grow_while_runs_are_short() -> None:
    pace = Pace(timing(40))
    middles = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    pauses = [pace.after(0.0) for _ in middles]
    assert all(0.75 * middle <= pause <= 1.25 * middle for pause, middle in zip(pauses, middles, strict=True))


def test_a_run_that_lasted_brings_back_the_first_pause() -> None:
    pace = Pace(timing(8))
    for _ in range(10):
        pace.after(1.9)
    assert pace.after(1.9) >= 1.5
    assert pace.after(2.0) <= 0.125
    assert pace.after(0.0) <= 0.25


def test_no_pause_is_longer_than_an_interval_and_none_is_nothing() -> None:
    for ttl, interval in ((0.1, 0.01), (1, None), (86400, None)):
        times = timing(ttl, interval)
        pace = Pace(times)
        pauses = [pace.after(0.0) for _ in range(20)]
        assert max(pauses) <= 1.25 * min(times.interval, 10)
        assert min(pauses) > 0


def test_pauses_are_not_in_step() -> None:
    assert len({Pace(timing(40)).after(0.0) for _ in range(50)}) > 40


@pytest.mark.parametrize(
    ("service", "data", "shown"),
    [
        (None, None, None),
        (None, [1], [1]),
        ("mails", None, {"service": "mails"}),
        ("mails", {"x": 1}, {"service": "mails", "x": 1}),
        ("mails", {"service": "other"}, {"service": "mails"}),
        ("mails", [1], {"service": "mails", "data": [1]}),
        ("mails", "text", {"service": "mails", "data": "text"}),
    ],
)
def test_the_service_is_noted_in_the_data(service: Any, data: Any, shown: Any) -> None:
    assert noted(service, data) == shown


def test_a_service_is_a_text() -> None:
    with pytest.raises(ConfigurationError, match="service must be a text"):
        noted(7, None)


@both_engines
async def test_stop_waits_for_a_release_that_is_under_way(world: str, engine: Any) -> None:
    async with AsyncCoordinator(world, engine=engine) as c, AsyncCoordinator(world) as other:
        lock = c.job_lock("job")
        hold = await lock.acquire()
        releasing = asyncio.create_task(hold.release())
        await asyncio.sleep(0)
        await lock.stop()
        taken = await other.job_lock("job").try_acquire()
        assert taken is not None
        await taken.release()
        await releasing


@both_engines
async def test_stop_after_a_grant_that_nobody_has_seen_yet(world: str, engine: Any) -> None:
    """The answer is there, the task that waits has not gone on."""
    for turns in range(12):
        async with AsyncCoordinator(world, engine=engine) as c, AsyncCoordinator(world) as other:
            lock = c.job_lock("job")
            waits = asyncio.create_task(lock.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            await lock.stop()
            hold = await asyncio.wait_for(other.job_lock("job").acquire(), 30)
            await hold.release()
            outcome = (await asyncio.gather(waits, return_exceptions=True))[0]
            assert isinstance(outcome, Stopped) or (isinstance(outcome, AsyncJobHold) and outcome.lost)


@both_engines
async def test_two_stops_at_once_wait_for_the_same_end(world: str, engine: Any) -> None:
    async with AsyncCoordinator(world, engine=engine) as c:
        lock = c.job_lock("job")
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def job(hold: AsyncJobHold) -> bool:
            entered.set()
            try:
                return await asyncio.Event().wait()
            finally:
                await go_on.wait()

        running = asyncio.create_task(lock.run(job))
        await entered.wait()
        stops = [asyncio.create_task(lock.stop()) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert not any(stop.done() for stop in stops)
        go_on.set()
        await asyncio.gather(*stops)
        assert await running is None


async def test_stop_leaves_when_it_is_cancelled_and_the_rest_goes_on(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        lock = c.job_lock("job", on_lost="report")
        entered, go_on = asyncio.Event(), asyncio.Event()

        async def block() -> None:
            async with lock:
                entered.set()
                await go_on.wait()

        task = asyncio.create_task(block())
        await entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lock.stop(), 0.01)
        go_on.set()
        with pytest.raises(SessionLost, match=r"stop\(\)"):
            await task
        await lock.stop()


@pytest.mark.filterwarnings("ignore:the hold of 'job' was dropped:ResourceWarning")
async def test_stop_does_not_wait_for_what_was_dropped(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        lock = c.job_lock("job")
        await lock.acquire()
        gc.collect()
        await asyncio.wait_for(lock.stop(), 30)


async def test_nothing_is_noted_of_what_is_over(world: str) -> None:
    async with AsyncCoordinator(world) as c, AsyncCoordinator(world) as other:
        lock = c.job_lock("job", ttl=60, interval=0.5)
        async with lock:
            assert await lock.try_acquire() is None
            for limit in (0.01, 10):
                waits = asyncio.create_task(lock.acquire(limit))
                await asyncio.sleep(0.02)
                waits.cancel()
                await asyncio.wait([waits])
        hold = await lock.acquire()
        await other.job_lock("job").revoke()
        await hold.wait_lost()
        assert not lock._stops._claims


async def test_errors_pass_by_while_there_is_no_connection(world: str) -> None:
    """What is kept running waits for better times, and tells of it."""
    async with AsyncCoordinator(world) as c:
        backend = c.backend
        assert isinstance(backend, MemoryBackend)
        failures: list[JobFailed] = []
        c.events.subscribe(failures.append, JobFailed)
        ran = asyncio.Event()

        async def job(hold: AsyncJobHold) -> None:
            ran.set()
            await asyncio.Event().wait()

        backend.lose_connection(reconnect=False)
        running = asyncio.create_task(c.run_in_job_lock("job", job, ttl=1))
        await eventually_async(lambda: failures)
        assert isinstance(failures[0].error, Unavailable)
        assert "'job'" in str(failures[0])
        backend.reconnect()
        await ran.wait()
        running.cancel()
        await asyncio.wait([running])


async def test_what_cannot_get_better_is_raised(world: str) -> None:
    async with AsyncCoordinator(world) as c:

        async def job(hold: AsyncJobHold) -> None:
            raise AssertionError("it ran")

        with pytest.raises(ConfigurationError):
            await c.run_in_job_lock("job", job, ttl=-1)
        with pytest.raises(ConfigurationError):
            await c.run_in_job_lock("job", job, data=object())
    with pytest.raises(CoordinatorClosed):
        await c.run_in_job_lock("job", job)
