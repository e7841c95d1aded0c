"""A connection that breaks at any byte, of the handshake, the probe or the lock's own statements.

Theory: whatever byte is the last, the caller ends with a lock that it really has or with an error that says why not,
and the server ends with nothing. Bytes are counted in a run without faults, so no border is known here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, LockLost, Unavailable
from pgconcert.testing import FaultProxy, advisory_locks, eventually_async
from tests.faults.scenes import until_free
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Way = Literal["to_server", "to_client"]


async def bytes_of_one_use(proxy: FaultProxy, url: str) -> dict[Way, int]:
    """How many bytes pass each way when a lock is taken and given back once."""
    async with AsyncCoordinator(url) as c, c.lock("cut"):
        pass
    return {"to_server": proxy.bytes_to_server, "to_client": proxy.bytes_to_client}


async def outcome(proxy: FaultProxy, url: str, at: int, way: Way) -> str:
    """What becomes of one use whose connection is reset after `at` bytes."""
    async with AsyncCoordinator(url, network_timeout=5.0) as c:
        proxy.cut_after(at, way)
        try:
            async with asyncio.timeout(30), c.lock("cut"):
                pass
        except Unavailable:
            return "refused"
        except LockLost:
            return "lost"
        else:
            return "held"


async def every(step: int, server: Server, database: str, proxy: FaultProxy) -> dict[Way, Counter[str]]:
    url = proxy.url(server.over_tcp(database))
    usual = await bytes_of_one_use(proxy, url)
    found: dict[Way, Counter[str]] = {}
    for way, length in usual.items():
        found[way] = Counter()
        for at in [*range(1, length, step), length]:
            found[way][await outcome(proxy, url, at, way)] += 1
            async with AsyncCoordinator(database) as near:
                # somebody else gets it: the server has forgotten the one that was cut
                async with asyncio.timeout(30), near.lock("cut"):
                    pass
        assert found[way]["refused"]
    await until_free(database)
    return found


async def test_a_cut_at_many_bytes(server: Server, database: str, proxy: FaultProxy) -> None:
    await every(131, server, database, proxy)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_cut_at_every_byte(server: Server, database: str, proxy: FaultProxy) -> None:
    found = await every(1, server, database, proxy)
    assert found["to_client"]["held"] + found["to_client"]["lost"]


@pytest.mark.parametrize("rst", [True, False], ids=["reset", "orderly end"])
async def test_a_cut_under_a_holder_and_a_waiter(
    server: Server, database: str, proxy: FaultProxy, unique: str, rst: bool
) -> None:
    """A waiter keeps waiting over a new connection; the holder has lost."""
    url = proxy.url(server.over_tcp(database))
    async with AsyncCoordinator(url) as one, AsyncCoordinator(url) as two:
        hold = await one.lock(unique).acquire()
        waiting = asyncio.create_task(two.lock(unique).acquire())
        await eventually_async(lambda: any(isinstance(lock.key, tuple) for lock in advisory_locks(database)))
        proxy.cut(rst=rst)
        assert await hold.wait_lost()
        mine = await waiting
        assert not mine.lost
        await eventually_async(lambda: all(c.health().links[0].state == "ready" for c in (one, two)))
        # the old handle has no power over the new lock
        await hold.release()
        assert await one.lock(unique).try_acquire() is None
        await mine.release()
        second = await one.lock(unique).acquire()
        await hold.release()
        assert await two.lock(unique).try_acquire() is None
        await second.release()
    await until_free(database)


@pytest.mark.parametrize("rst", [True, False], ids=["reset", "orderly end"])
async def test_cuts_at_any_moment(server: Server, database: str, proxy: FaultProxy, rst: bool) -> None:
    """Twenty uses, each cut when a few more answers have come than in the one before."""
    url = proxy.url(server.over_tcp(database))
    usual = (await bytes_of_one_use(proxy, url))["to_client"]
    proxy.split(32)
    for step in range(20):
        async with AsyncCoordinator(url) as c:
            task = asyncio.create_task(c.lock("cut").acquire())
            end = proxy.bytes_to_client + usual * step // 20
            await eventually_async(lambda: proxy.bytes_to_client >= end or task.done())  # noqa: B023
            proxy.cut(rst=rst)
            try:
                hold = await task
            except Unavailable:
                continue
            except LockLost:
                continue
            await hold.release()
    await until_free(database)
