"""A network that is silent, slow or merely ignored: lost is what is lost, and nothing else is.

Theory: a black hole gives no sign, so only the absence of answers tells. What must hold is the order: first the holder
is told, then somebody else can have the lock. The one bound in seconds is each test's own time limit.

A busy server is silent, too. So a silence is believed after a short time only while a test waits for just that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, LockLost, Unavailable
from pgconcert.events import ConnectFailed, HoldBroken, LinkLost, LinkOpened
from pgconcert.testing import FaultProxy, eventually_async
from tests.faults.scenes import believe_silence, holders, seen, session_of, until_free, waiter
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
PATIENT = 8.0
IMPATIENT = 0.5

both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])


@asynccontextmanager
async def through(
    proxy: FaultProxy, server: Server, url: str, engine: Engine = "loop", connect_timeout: float = 20.0
) -> AsyncIterator[AsyncCoordinator]:
    """A coordinator that reaches the server by way of the proxy."""
    async with AsyncCoordinator(
        proxy.url(server.over_tcp(url)), network_timeout=PATIENT, connect_timeout=connect_timeout, engine=engine
    ) as c:
        yield c
        proxy.cut()  # what is frozen would take its time to say good-bye


@both_engines
async def test_a_frozen_holder_is_told_before_anybody_else_has_it(
    server: Server, database: str, proxy: FaultProxy, unique: str, engine: Engine
) -> None:
    async with through(proxy, server, database, engine) as far, AsyncCoordinator(database) as near:
        lost, broken = seen(far, LinkLost), seen(far, HoldBroken)

        async def hold_through_the_silence() -> None:
            async with far.lock(unique) as hold:
                async with waiter(near, unique, database) as waiting:
                    proxy.pause()
                    believe_silence(far, IMPATIENT)
                    try:
                        await asyncio.wait([waiting])
                    finally:
                        # the server has noticed nothing, so nobody else can have it yet
                        assert hold.lost
                        assert not waiting.done()
                        proxy.cut()
                        await asyncio.wait([waiting])
                        assert not waiting.result().lost

        with pytest.raises(LockLost, match=r"no answer from the server within network_timeout=0\.5 s") as told:
            await hold_through_the_silence()
        assert told.value.key == unique
        await eventually_async(lambda: [event.key for event in broken] == [unique])
        assert [event.role for event in lost] == ["lock"]
        believe_silence(far, PATIENT)
        proxy.resume()
        async with far.lock(unique):
            pass
    await until_free(database)


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
async def test_one_direction_is_enough(
    server: Server, database: str, proxy: FaultProxy, unique: str, direction: Literal["to_server", "to_client"]
) -> None:
    async with through(proxy, server, database) as c:
        hold = await c.lock(unique).acquire()
        proxy.pause(direction)
        believe_silence(c, IMPATIENT)
        assert "network_timeout" in await hold.wait_lost()
    await until_free(database)


async def test_a_slow_network_loses_nothing(server: Server, database: str, proxy: FaultProxy, unique: str) -> None:
    """An answer may take longer than it takes until the server is looked after again."""
    async with through(proxy, server, database) as c:
        lost = seen(c, LinkLost)
        async with c.lock(unique) as hold:
            proxy.delay(0.5)
            believe_silence(c, 4.0)
            before = c.health().links[0].statements
            await eventually_async(lambda: c.health().links[0].statements >= before + 2, 20.0)
            proxy.delay(0)
            assert not hold.lost
        assert lost == []


async def test_a_frozen_waiter_comes_back(server: Server, database: str, proxy: FaultProxy, unique: str) -> None:
    async with through(proxy, server, database, connect_timeout=1.0) as far, AsyncCoordinator(database) as near:
        lost, failed = seen(far, LinkLost), seen(far, ConnectFailed)
        mine = await near.lock(unique).acquire()
        async with waiter(far, unique, database) as waiting:
            proxy.pause()
            believe_silence(far, IMPATIENT)
            await eventually_async(lambda: {event.role for event in lost} >= {"lock", "listen"})
            await eventually_async(lambda: failed)
            await mine.release()
            assert not waiting.done()
            believe_silence(far, PATIENT)
            proxy.cut()
            proxy.resume()
            theirs = await waiting
            assert holders(database, unique) == [session_of(far)]
            assert not theirs.lost
    await until_free(database)


@pytest.mark.parametrize("direction", [None, "to_server", "to_client"])
async def test_frozen_while_connecting(
    server: Server,
    database: str,
    proxy: FaultProxy,
    unique: str,
    direction: Literal["to_server", "to_client"] | None,
) -> None:
    async with through(proxy, server, database, connect_timeout=0.5) as c:
        failed = seen(c, ConnectFailed)
        proxy.pause(direction)
        with pytest.raises(Unavailable, match=f"127.0.0.1:{proxy.port}: no answer within 0.5 s"):
            await c.lock(unique).acquire()
        assert len(failed) == 1
        proxy.cut()
        proxy.resume()

        async def works_again() -> bool:
            try:
                async with c.lock(unique):
                    assert holders(database, unique) == [session_of(c)]
            except Unavailable:
                return False  # it takes longer when the server is busy
            return True

        await eventually_async(works_again, 20.0)
    await until_free(database)


async def test_a_blocked_loop_learns_of_a_loss_on_the_engine_thread(
    server: Server, database: str, proxy: FaultProxy, unique: str
) -> None:
    async with through(proxy, server, database, "thread") as c:

        async def block_the_loop() -> None:
            async with c.lock(unique) as hold:
                proxy.pause()
                believe_silence(c, IMPATIENT)
                end = time.monotonic() + 20
                while not hold.lost and time.monotonic() < end:
                    time.sleep(0.01)  # the event loop stands still: nothing of it runs
                assert hold.lost
                await asyncio.sleep(20)  # the engine says it to the loop an instant after the hold knows
                raise AssertionError("the body went on after the loss")

        with pytest.raises(LockLost, match="network_timeout"):
            await block_the_loop()
    await until_free(database)


async def nothing_is_lost_by_a_block(database: str, key: str, engine: Engine) -> bool:
    """Whether a lock is kept while the loop stands still for more than twice the time-out."""
    async with AsyncCoordinator(database, engine=engine, network_timeout=0.5) as c:
        lost, opened = seen(c, LinkLost), seen(c, LinkOpened)
        try:
            async with c.lock(key) as hold:
                time.sleep(1.2)
                before = c.health().links[0].statements
                await eventually_async(lambda: hold.lost or c.health().links[0].statements > before)
                assert hold.lost or holders(database, key) == [session_of(c)]
        except LockLost:
            return False
        assert lost == []
        assert [event.role for event in opened] == ["lock"]
        return True


@both_engines
async def test_a_blocked_loop_alone_loses_nothing(database: str, unique: str, engine: Engine) -> None:
    """If it does, the server may have been silent as well: so it is tried again, and must hold once."""
    for _ in range(5):
        if await nothing_is_lost_by_a_block(database, unique, engine):
            return
    raise AssertionError("the lock was lost each time")


async def test_try_acquire_answers_at_once_while_there_is_no_connection(server: Server, database: str) -> None:
    """Who does not want to wait is told that the connection is down, in flight or asked later, and does not wait for
    the next one."""
    with FaultProxy.to(server.over_tcp(database)) as proxy:
        url = proxy.url(server.over_tcp(database))
        async with AsyncCoordinator(url, network_timeout=PATIENT, connect_timeout=50) as c:
            lost: list[object] = []
            c.events.subscribe(lost.append, LinkLost)
            async with c.lock("warm"):
                pass
            proxy.pause()
            believe_silence(c, IMPATIENT)
            with pytest.raises(Unavailable, match="no answer from the server"):
                await c.lock("in flight").try_acquire()
            assert len(lost) == 1
            with pytest.raises(Unavailable, match="no connection"):
                await c.lock("later").try_acquire()
            believe_silence(c, PATIENT)
            proxy.resume()
            async with c.lock("again", timeout=40):
                pass
