"""A process that is stopped, or dies, while it holds: others go on, and whoever goes on later knows.

Theory: a stopped process hears nothing; what it holds is safe, because its session lives. If the session ends
meanwhile, the end waits in its socket, and the event loop reads that before it completes what the body waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing import eventually_async, sessions
from tests.faults.scenes import holders, session_of, until_free, waiter
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

HOLDER = """
import asyncio, sys, time
from pgconcert import AsyncCoordinator, LockLost

async def main():
    async with AsyncCoordinator(sys.argv[1], engine=sys.argv[3]) as c:
        ticks = []
        try:
            async with c.lock(sys.argv[2]) as hold:
                print("holds", flush=True)
                while True:
                    await asyncio.sleep(0.02)
                    if not hold.lost:
                        ticks.append(time.monotonic())
        except LockLost as error:
            print("told", *ticks[-20:], flush=True)
        async with c.lock(sys.argv[2]):
            print("again", flush=True)

asyncio.run(main())
"""


async def stop(process: Worker) -> None:
    """SIGSTOP, and wait until it stands still."""
    process.stop_signal()
    status = Path(f"/proc/{process.pid}/stat")
    await eventually_async(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_a_stopped_holder_that_lost_its_session_knows_when_it_goes_on(
    server: Server, database: str, worker: Callable[..., Worker], unique: str, engine: str
) -> None:
    process = worker(HOLDER, database, unique, engine)
    await asyncio.to_thread(process.expect, "holds")
    async with AsyncCoordinator(database) as c:
        async with waiter(c, unique, database) as waiting:
            await stop(process)
            stopped = time.monotonic()
            (backend,) = holders(database, unique)
            assert server.kill_backend(backend)
            mine = await waiting
            assert not mine.lost
            await eventually_async(lambda: backend not in {session.pid for session in sessions(database)})
            process.cont()
            ticks = (await asyncio.to_thread(process.expect, "told")).split()
            late = [tick for tick in ticks if float(tick) > stopped]
            # one wait may have been over when it was stopped; with the engine thread, two threads race
            assert engine == "thread" or len(late) <= 1
            assert holders(database, unique) == [session_of(c)]
        await asyncio.to_thread(process.expect, "again")
    assert await asyncio.to_thread(process.wait) == 0
    await until_free(database)


async def test_a_stopped_holder_keeps_its_lock(database: str, worker: Callable[..., Worker], unique: str) -> None:
    process = worker(HOLDER, database, unique, "loop")
    await asyncio.to_thread(process.expect, "holds")
    async with AsyncCoordinator(database, network_timeout=2.0) as c, waiter(c, unique, database) as waiting:
        await stop(process)
        before = c.health().links[0].statements
        await eventually_async(lambda: c.health().links[0].statements >= before + 4, 30)
        assert not waiting.done()
        process.kill()
        assert not (await waiting).lost
    await until_free(database)


async def test_the_death_of_a_holder_wakes_nobody_and_yet_the_lock_is_taken(
    database: str, worker: Callable[..., Worker], unique: str
) -> None:
    """Nobody notifies for the dead, so the waiter's own re-check finds the lock; it then works as any other."""
    process = worker(HOLDER, database, unique, "loop")
    await asyncio.to_thread(process.expect, "holds")
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        async with waiter(one, unique, database) as waiting:
            process.kill()
            mine = await waiting
            assert holders(database, unique) == [session_of(one)]
            async with waiter(two, unique, database) as next_one:
                await mine.release()
                assert not (await next_one).lost
    await until_free(database)
