"""The server stops, crashes, stays away, or is full: holders are told, waiters wait on, and nobody storms.

Theory: a waiter whose coordinator was connected once waits for ever, because the server comes back; how often it tries
meanwhile is bounded by delays that grow to five seconds. A coordinator that was never connected says so at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest

from pgconcert import AsyncCoordinator, LockLost, Unavailable
from pgconcert.events import ConnectFailed, Event, HoldBroken, LinkOpened
from pgconcert.testing import eventually, eventually_async
from tests.faults.scenes import down, holders, seen, session_of, until_free, waiter
from tests.postgres.scenes import SmallServer
from tests.servers import Embedded, OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SMOKE_OUTAGE = 1.0
LONG_OUTAGE = 30.0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart(own_server: OwnServer, database: str, unique: str, mode: str) -> None:
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        broken = seen(one, HoldBroken)
        hold = await one.lock(unique).acquire()
        more = [await one.lock(f"{unique}:{number}").acquire() for number in range(50)]
        async with waiter(two, unique, database) as waiting:
            await asyncio.to_thread(own_server.restart, mode)
            assert await hold.wait_lost()
            assert all(one.lost for one in more)
            assert len(broken) == 51
            assert not (await waiting).lost
            assert holders(database, unique) == [session_of(two)]
        async with one.lock(unique) as again:
            assert not again.lost
    await until_free(database)


async def outage(
    server: OwnServer, database: str, unique: str, seconds: float, attempts: int
) -> tuple[list[ConnectFailed], float]:
    """A holder, a waiter and a newcomer, while the server is away, for so long and until each link of the waiter has
    tried so often. Returns its failed attempts, and for how long the waiter may have been without the server."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two, AsyncCoordinator(database) as new:
        told, opened = seen(two, Event), seen(two, LinkOpened)
        hold = await one.lock(unique).acquire()
        async with waiter(two, unique, database) as waiting:
            before, began = len(opened), time.monotonic()
            failed = seen(two, ConnectFailed)
            async with down(server):
                assert await hold.wait_lost()
                with pytest.raises(LockLost):
                    hold.check()
                with pytest.raises(Unavailable):
                    await new.lock(unique).acquire()
                with pytest.raises(Unavailable):
                    await one.lock(unique).try_acquire()
                with pytest.raises(TimeoutError, match=r"no connection|connection to server"):
                    await one.lock(unique, timeout=0.2).acquire()
                await asyncio.sleep(seconds)  # the outage itself
                for role in ("lock", "listen"):
                    await eventually_async(
                        lambda: sum(event.role == role for event in failed) >= attempts,  # noqa: B023
                        60,
                        what=f"the {role} link is tried for again and again",
                    )
                assert not waiting.done()
                assert not two.health().ready
            assert not (await waiting).lost
            await eventually_async(lambda: two.health().ready)
            took = time.monotonic() - began
            assert [event.role for event in opened[before:]].count("lock") == 1
        async with new.lock(unique), asyncio.timeout(10):
            assert holders(database, unique) == [session_of(new)]
        kinds = Counter(type(event).__name__ for event in told)
        # every record is a loss, a failed attempt, a new link, or a wait that was reported
        assert kinds.total() <= kinds["ConnectFailed"] + kinds["StillWaiting"] + 12, kinds
        return failed, took


def attempts_at_most(seconds: float) -> int:
    """How often one link may try in so long: its delays are at least half of 0.05, 0.1, ... 5 s."""
    spent, delay, attempts = 0.0, 0.05, 1
    while spent < seconds:
        spent += delay / 2
        delay = min(5.0, delay * 2)
        attempts += 1
    return attempts


async def test_a_short_outage(
    own_server: OwnServer, database: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "pgconcert"):
        failed, took = await outage(own_server, database, unique, SMOKE_OUTAGE, 3)
    for role in ("lock", "listen"):
        assert 3 <= sum(event.role == role for event in failed) <= attempts_at_most(took)
    assert not [record for record in caplog.records if record.exc_info], "a traceback is on the log"


@pytest.mark.long
async def test_a_long_outage(own_server: OwnServer, database: str, unique: str) -> None:
    failed, took = await outage(own_server, database, unique, LONG_OUTAGE, 8)
    for role in ("lock", "listen"):
        mine = [event for event in failed if event.role == role]
        assert 8 <= len(mine) <= attempts_at_most(took)
        assert max(event.retry_in or 0 for event in mine) > 2
    assert any(event.level == logging.ERROR for event in failed)


@pytest.fixture
def small(server: Server) -> Iterator[SmallServer]:
    """A server with room for twelve sessions."""
    if not isinstance(server, Embedded):
        pytest.skip("a server of our own is made from the programs of the embedded one")
    with contextlib.closing(SmallServer("small", server.programs, server.major)) as running:
        yield running


async def test_a_server_without_room(small: SmallServer, unique: str) -> None:
    """Others have all sessions: who comes is told why, who waits gets in when there is room."""
    async with AsyncCoordinator(small.url) as old, AsyncCoordinator(small.url) as new:
        hold = await old.lock(unique).acquire()
        with contextlib.ExitStack() as cleanup:
            others = await asyncio.to_thread(take_the_room, small.url, cleanup)
            with pytest.raises(Unavailable, match="too many clients"):
                await new.lock(unique).acquire()
            with pytest.raises(Unavailable, match="too many clients"):
                await new.lock(unique).try_acquire()
            assert not hold.lost
            # the old coordinator loses its session to one more of the others
            failed = seen(old, ConnectFailed)
            pid = session_of(old)
            assert pid
            assert others[0].execute("select pg_terminate_backend(%s)", [pid]).fetchone() == (True,)
            others[0].commit()
            await hold.wait_lost()

            async def shut_out() -> bool:
                await asyncio.to_thread(take_the_room, small.url, cleanup)
                if (pid := session_of(old)) is not None:  # it was quicker than the others
                    others[0].execute("select pg_terminate_backend(%s)", [pid])
                    others[0].commit()
                return len(failed) >= 3

            await eventually_async(shut_out, 60)
            waiting = asyncio.create_task(old.lock(unique).acquire())
            more = len(failed)
            await eventually_async(lambda: len(failed) > more, 30)
            assert not waiting.done()
            assert all("too many clients" in event.error for event in failed)
        mine = await waiting
        async with new.lock(f"{unique}:other"):
            assert holders(small.url, unique) == [session_of(old)]
        await mine.release()
    eventually(lambda: not small.sessions(), what="everybody has left")


def take_the_room(url: str, cleanup: contextlib.ExitStack) -> list[psycopg.Connection[tuple[object, ...]]]:
    """Connect as often as the server allows."""
    found = []
    while True:
        try:
            found.append(cleanup.enter_context(contextlib.closing(psycopg.connect(url))))
        except psycopg.OperationalError:
            return found
