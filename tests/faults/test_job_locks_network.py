"""Job locks behind a network that is silent, or loses answers to what was carried out.

The theory is that of `test_job_locks.py`. A proxy stands between; the rows are looked at past it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import SessionLost
from pgconcert.events import HeartbeatFailed, HeartbeatLate
from pgconcert.jobs import AsyncJobHold
from pgconcert.testing import FaultProxy, eventually_async
from tests.faults.scenes import seen
from tests.postgres.jobscenes import make_tables, row, until_marked, until_renewed
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

TTL = 2.0
LASTING = 60.0


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


@asynccontextmanager
async def through(
    proxy: FaultProxy, server: Server, url: str, engine: Engine = "loop", network_timeout: float = 60.0
) -> AsyncIterator[AsyncCoordinator]:
    """A coordinator that reaches the server by way of the proxy. A silence is for the heartbeats to find."""
    async with AsyncCoordinator(
        proxy.url(server.over_tcp(url)), network_timeout=network_timeout, connect_timeout=20.0, engine=engine
    ) as c:
        yield c
        proxy.cut()
        proxy.resume()


async def passes(seconds: float) -> None:
    """Let time pass, whatever else the machine does meanwhile."""
    end = time.monotonic() + seconds
    await eventually_async(lambda: time.monotonic() > end, seconds + 10, what="time passes")


@both_engines
async def test_a_holder_in_silence_is_told_before_anybody_else_has_it(
    server: Server, tables: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    async with through(proxy, server, tables, engine) as far, AsyncCoordinator(tables) as near:
        failed, late = seen(far, HeartbeatFailed), seen(far, HeartbeatLate)
        waiting: list[asyncio.Task[AsyncJobHold]] = []
        known: list[bool] = []

        async def hold_through_the_silence() -> None:
            async with far.job_lock(unique, ttl=TTL) as hold:
                waits = asyncio.create_task(near.job_lock(unique, ttl=LASTING).acquire())
                waits.add_done_callback(lambda _: known.append(hold.lost))
                waiting.append(waits)
                await until_marked(tables, unique)
                proxy.pause()
                try:
                    await asyncio.wait([waits])
                finally:
                    assert hold.lost
                    proxy.cut()
                    proxy.resume()

        with pytest.raises(SessionLost, match="no heartbeat of its session was answered"):
            await hold_through_the_silence()
        await eventually_async(lambda: failed or late)
        assert len(failed) < 20, "it has tried again, with pauses"
        mine = await waiting[0]
        assert known == [True]
        await mine.release()
        async with far.job_lock(unique, ttl=LASTING) as again:
            assert again.token > mine.token


@both_engines
async def test_a_renewal_whose_answer_is_cut_off_loses_nothing(
    server: Server, tables: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    """It was carried out, and nobody was told: the holder finds its own row."""
    async with through(proxy, server, tables, engine) as c:
        failed = seen(c, HeartbeatFailed)
        async with c.job_lock(unique, ttl=60, interval=1.0, timeout=0.9) as hold:
            for _ in range(2):
                failed.clear()
                proxy.pause("to_client")
                await until_renewed(tables, hold.session_id)
                proxy.cut()
                proxy.resume()
                await eventually_async(lambda: failed, what="it knows that an answer is missing")
                await until_renewed(tables, hold.session_id)
                assert not hold.lost
            found = row(tables, unique)
            assert (found.session, found.token) == (hold.session_id, hold.token)


@both_engines
async def test_an_acquisition_whose_answer_is_cut_off_is_ours(
    server: Server, tables: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    """It does not find itself excluded by itself."""
    async with through(proxy, server, tables, engine) as c:
        async with c.job_lock(f"{unique} before"):
            pass
        proxy.pause("to_client")
        acquiring = asyncio.create_task(c.job_lock(unique).acquire())
        await eventually_async(lambda: row(tables, unique).session is not None)
        assert not acquiring.done()
        proxy.cut()
        proxy.resume()
        hold = await acquiring
        found = row(tables, unique)
        assert (found.session, found.token) == (hold.session_id, hold.token)
        await hold.release()


@both_engines
@pytest.mark.long
async def test_an_acquisition_that_is_cancelled_before_its_answer_leaves_nothing(
    server: Server, tables: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    async with through(proxy, server, tables, engine) as c:
        for cut in (False, True):
            async with c.job_lock(f"{unique} before"):
                pass  # so nothing is under way, and what is asked next leaves at once
            proxy.pause("to_client")
            acquiring = asyncio.create_task(c.job_lock(unique).acquire())
            await eventually_async(lambda: row(tables, unique).session is not None, what="the server has granted it")
            acquiring.cancel()
            with pytest.raises(asyncio.CancelledError):
                await acquiring
            if cut:
                proxy.cut()
            proxy.resume()
            await eventually_async(lambda: row(tables, unique).session is None, what="it is given back")


@both_engines
async def test_a_release_whose_answer_is_cut_off_is_carried_out(
    server: Server, tables: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    async with through(proxy, server, tables, engine) as c:
        for direction in ("to_client", "to_server"):
            hold = await c.job_lock(unique).acquire()
            proxy.pause(direction)
            releasing = asyncio.create_task(hold.release())
            await passes(0.1)
            assert not releasing.done()
            proxy.cut()
            proxy.resume()
            await releasing
            found = row(tables, unique)
            assert found.session is None
