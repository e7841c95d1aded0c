"""What an attack on sessions without a server has found, so that it stays mended, and what it could not break.

Here live tests of the public words over a world of one process: what they leave behind, wrong arguments, other loops,
and coordinators that are closed in the middle of everything.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgconcert import (
    AsyncCoordinator,
    ConfigurationError,
    Coordinator,
    CoordinatorClosed,
    SessionLost,
    Unavailable,
)
from pgconcert.election import AsyncElection
from pgconcert.sessions.register import as_json, from_json
from pgconcert.sessions.timing import timing
from pgconcert.store import Look
from pgconcert.testing import eventually_async
from pgconcert.watching import ask
from tests.postgres.scenes import both_engines
from tests.unit.ears import turns


@pytest.fixture
def world() -> str:
    return f"memory://{secrets.token_hex(8)}"


# what is left behind


async def _job(c: AsyncCoordinator) -> None:
    async with c.job_lock("job"):
        pass


async def _tried(c: AsyncCoordinator) -> None:
    lock = c.job_lock("job")
    hold = await lock.acquire()
    assert await lock.try_acquire() is None
    await hold.release()


async def _stopped(c: AsyncCoordinator) -> None:
    lock = c.job_lock("job")
    hold = await lock.acquire()
    await lock.stop()
    assert hold.lost


async def _led(c: AsyncCoordinator) -> None:
    async with c.election("election").lead():
        pass


async def _observed(c: AsyncCoordinator) -> None:
    async with c.election("election").observe() as changes:
        assert (await changes.get()).leader is None


async def _joined(c: AsyncCoordinator) -> None:
    async with c.group("group").join(member_id="one"):
        pass


async def _watched(c: AsyncCoordinator) -> None:
    async with c.group("group").watch():
        pass


@pytest.mark.parametrize("cycle", [_job, _tried, _stopped, _led, _observed, _joined, _watched])
@pytest.mark.long
async def test_nothing_is_left_to_the_collector_of_circles(
    world: str, cycle: Callable[[AsyncCoordinator], Awaitable[None]]
) -> None:
    """What is given back is gone at once, however often; so memory does not grow between two runs of the collector."""
    async with AsyncCoordinator(world) as c:
        await cycle(c)
        await turns()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await cycle(c)
            await turns()
            assert gc.collect() == 0
        finally:
            gc.enable()


async def _restless(c: AsyncCoordinator, chance: random.Random) -> None:
    """One who does something with sessions until the coordinator is closed."""
    while True:
        name = f"n{chance.randrange(3)}"
        election: AsyncElection = c.election(name)
        with_some = chance.randrange(7)
        try:
            if with_some == 0:
                async with c.job_lock(name):
                    await asyncio.sleep(chance.random() / 200)
            elif with_some == 1:
                async with election.lead(on_request="cancel"):
                    await election.request_release()
            elif with_some == 2:
                async with c.group(name).join() as member:
                    await member.update_capabilities(chance.random())
            elif with_some == 3:
                async with election.observe() as changes:
                    await changes.get()
            elif with_some == 4:
                await c.job_lock(name).revoke()
            elif with_some == 5:
                lock = c.job_lock(name)
                running = asyncio.ensure_future(lock.run(lambda _: asyncio.sleep(60)))
                await turns()
                await lock.stop()
                await running
            else:
                hold = await c.job_lock(name).acquire()
                await hold.release()
        except (SessionLost, Unavailable):
            pass


@both_engines
@pytest.mark.parametrize("seed", range(6))
async def test_closing_in_the_middle_of_everything_leaves_nothing(world: str, engine: Any, seed: int) -> None:
    """Everybody comes to an end, by an error that says why; and nothing hangs on anybody."""
    chance = random.Random(seed)
    async with AsyncCoordinator(world) as other:
        c = AsyncCoordinator(world, engine=engine)
        await c.open()
        tasks = [asyncio.ensure_future(_restless(c, chance)) for _ in range(8)]
        for _ in range(chance.randrange(200)):
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(c.close())
        if seed % 2:
            await turns(seed)
            closing.cancel()
        await asyncio.wait([closing])
        await c.close()
        async with asyncio.timeout(30):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, CoordinatorClosed) for end in ends), ends
        await eventually_async(lambda: _held_by_none(other), what="nothing hangs on anybody")


async def _held_by_none(c: AsyncCoordinator) -> bool:
    entries = await ask(c._holding(), Look())
    return not await c.sessions() and all(entry.session is None and not entry.waiting for entry in entries)


# wrong arguments


def _nested(depth: int) -> Any:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


async def test_data_that_is_nested_too_deep(world: str) -> None:
    deep = _nested(100_000)
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="the data of a job lock is nested too deep to have a JSON form"):
            c.job_lock("x", data=deep)
        with pytest.raises(ConfigurationError, match="nested too deep"):
            c.election("x").lead(data=deep)
        with pytest.raises(ConfigurationError, match="nested too deep"):
            c.group("x").join(capabilities=deep)


def test_data_of_others_that_is_nested_too_deep_comes_as_text() -> None:
    text = "[" * 30_000 + "]" * 30_000
    assert from_json(text) == text
    assert from_json(as_json(_nested(50), "it")) == _nested(50)


@pytest.mark.parametrize(
    ("times", "what"), [((10, 1e-9), "interval"), ((10, 1, 0.001), "check"), ((1, 0.2, 1, 1e-6), "timeout")]
)
def test_times_that_would_ask_without_a_pause(times: tuple[float, ...], what: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{what}=.* s is too short: at least 0\.01 s$"):
        timing(*times)


async def test_a_job_that_is_no_async_function_is_not_tried_again_and_again(world: str) -> None:
    calls: list[object] = []
    not_async: Any = calls.append
    async with AsyncCoordinator(world) as c:
        with pytest.raises(ConfigurationError, match="is no async function: it returned None"):
            await c.run_in_job_lock("x", not_async)
        assert len(calls) == 1
        assert await c.job_lock("x").holder() is None
        for wrong in (None, 5):
            nothing: Any = wrong
            with pytest.raises(ConfigurationError, match=f"is a function of its hold, not {wrong}"):
                await c.run_in_job_lock("x", nothing)


def test_a_job_that_cannot_be_called_in_a_thread(world: str) -> None:
    nothing: Any = None
    with Coordinator(world) as c, pytest.raises(ConfigurationError, match="is a function of its hold, not None"):
        c.run_in_job_lock("x", nothing)


# other loops


async def test_an_observer_is_closed_on_its_own_loop_only(world: str) -> None:
    async with AsyncCoordinator(world) as c:
        election = c.election("x")
        async with election.observe() as changes:
            errors: list[Exception] = []

            def elsewhere() -> None:
                for word in (changes.close, changes.get):
                    try:
                        asyncio.run(word())
                    except RuntimeError as error:
                        errors.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            await eventually_async(lambda: not thread.is_alive(), what="it has tried")
            assert [str(error) for error in errors] == ["this observer belongs to another event loop; use it there"] * 2
            assert not changes.closed
            assert (await changes.get()).leader is None
            async with election.lead():
                assert (await changes.get(10.0)).leader is not None
