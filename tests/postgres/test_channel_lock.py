"""The lock of a channel on a real server, between processes: hand-over, death of the holder, loss.

Theory: whoever rests here does so for ten minutes, so a take-over that a test sees is never the interval's. A holder
that is to die is a process of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.blocking.channel_lock import ChannelLock
from pgconcert.channel_lock import AsyncChannelLock
from pgconcert.events import ActiveChanged
from pgconcert.testing import eventually, eventually_async
from tests.postgres.scenes import (
    Engine,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    raw,
    seen,
    statements,
    until_free,
    until_marked,
)
from tests.processes import Worker
from tests.servers import Server

LONG = 600.0

HOLDER: Final = """
import asyncio, sys
from pgconcert import AsyncCoordinator
from pgconcert.channel_lock import AsyncChannelLock
from pgconcert.shutdown import graceful_shutdown

async def main(url, channel):
    async with AsyncCoordinator(url) as c, graceful_shutdown(AsyncChannelLock.destroy_all, c):
        lock = AsyncChannelLock(c._checked(None), c._keys, c.events, channel, 600.0)
        await lock.init()
        assert await lock.acquire()
        print("holds", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


def lock_of(c: AsyncCoordinator, channel: str, interval: float = LONG) -> AsyncChannelLock:
    return AsyncChannelLock(c._checked(None), c._keys, c.events, channel, interval)


def holder_of(url: str, channel: str) -> int | None:
    """The server process that has the lock of a channel."""
    return keys_on_server(url).get(key_of(f"pgconcert:channel:{channel}"))


@both_engines
async def test_one_of_two(database: str, unique: str, engine: Engine) -> None:
    """One has it; when that one is destroyed, the other has it and is told."""
    channel = unique[-50:]
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database, engine=engine) as other:
        async with lock_of(one, channel) as mine, lock_of(other, channel) as theirs:
            heard: list[str] = []
            theirs.on_release(heard.append)
            assert await mine.acquire()
            assert await mine.acquire()
            assert holder_of(database, channel) == lock_pid(one)
            assert not await theirs.acquire()
            assert not await theirs.acquire()
            await mine.destroy()
            await eventually_async(lambda: heard == [channel])
            assert theirs.is_acquired
            assert holder_of(database, channel) == lock_pid(other)
        assert holder_of(database, channel) is None
        await until_free(database)


async def test_a_standby_that_never_asked(database: str, unique: str) -> None:
    """Not even for a connection: it finds out by itself that there is somebody to stand by for."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        async with lock_of(one, unique[-50:]) as mine:
            assert await mine.acquire()
            async with lock_of(other, unique[-50:]) as theirs:
                await until_marked(database)
                await mine.release()
                await eventually_async(lambda: theirs.is_acquired)


async def test_a_free_lock_is_left_alone(database: str, unique: str) -> None:
    async with AsyncCoordinator(database) as c:
        async with lock_of(c, unique[-50:]):
            await eventually_async(lambda: statements(c, "lock") > 3, what="it has looked more than once")
            assert holder_of(database, unique[-50:]) is None
        async with lock_of(c, unique[-50:], 0.3) as lock:
            await eventually_async(lambda: lock.is_acquired, what="nobody wanted it, and the interval is over")
            assert holder_of(database, unique[-50:]) == lock_pid(c)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
async def test_the_holder_dies(database: str, unique: str, worker: Callable[..., Worker], how: signal.Signals) -> None:
    """However it does, the standby has the lock, knows it, and works."""
    channel = unique[-50:]
    holder = worker(HOLDER, database, channel)
    holder.expect("holds")
    async with AsyncCoordinator(database) as c, lock_of(c, channel) as lock:
        heard: list[str] = []

        async def begin(channel: str) -> None:
            assert await lock.acquire()
            heard.append(channel)

        lock.on_release(begin)
        assert not await lock.acquire()
        await until_marked(database)
        os.kill(holder.pid, how)
        assert holder.wait() == (-how if how is signal.SIGKILL else 0)
        await eventually_async(lambda: heard == [channel])
        assert lock.is_acquired
        assert holder_of(database, channel) == lock_pid(c)


async def test_the_server_ends_the_session(database: str, unique: str) -> None:
    """Whoever had it knows, and stands by again; one of the two has it, and the other one after that."""
    channel = unique[-50:]
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        changes = seen(one, ActiveChanged)
        async with lock_of(one, channel) as mine, lock_of(other, channel) as theirs:
            assert await mine.acquire()
            assert not await theirs.acquire()
            await until_marked(database)
            with raw(database) as connection:
                connection.execute("select pg_terminate_backend(%s)", [lock_pid(one)])
            await eventually_async(lambda: len(changes) >= 2)
            assert [change.active for change in changes][:2] == [True, False]
            await eventually_async(lambda: mine.is_acquired or theirs.is_acquired)
            holder, standby, its = (mine, theirs, one) if mine.is_acquired else (theirs, mine, other)
            assert holder_of(database, channel) == lock_pid(its)
            assert not standby.is_acquired
            await holder.destroy()
            await eventually_async(lambda: standby.is_acquired)


@pytest.mark.parametrize("length", [50, 51, 63])
async def test_long_names(database: str, length: int) -> None:
    """They are locked and released; two that share their beginning are two."""
    names = ["x" * (length - 1) + end for end in "ab"]
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        async with lock_of(one, names[0]) as a, lock_of(one, names[1]) as b, lock_of(other, names[0]) as standby:
            assert await a.acquire()
            assert await b.acquire()
            assert not await standby.acquire()
            await a.release()
            assert b.is_acquired
            await eventually_async(lambda: standby.is_acquired)


async def test_it_needs_no_rights(server: Server, database: str, unique: str) -> None:
    """A role that may do nothing but connect."""
    role = f"nobody_{unique[-12:]}"
    with raw(database) as connection:
        connection.execute(sql.SQL("create role {} login").format(sql.Identifier(role)))
    try:
        address = make_conninfo(database, user=role)
        async with AsyncCoordinator(address) as c, lock_of(c, unique[-50:]) as lock:
            assert lock.schema_name is None
            assert await lock.acquire()
            await lock.release()
    finally:
        with raw(database) as connection:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def test_threads(database: str, unique: str, worker: Callable[..., Worker]) -> None:
    channel = unique[-50:]
    holder = worker(HOLDER, database, channel)
    holder.expect("holds")
    with Coordinator(database) as c:
        with ChannelLock(c._checked(None), c._keys, c.events, channel, LONG) as lock:
            heard: list[str] = []
            lock.on_release(heard.append)
            assert not lock.acquire()
            holder.kill()
            eventually(lambda: heard == [channel])
            assert lock.is_acquired
            lock.release()
            assert not lock.is_acquired
            assert holder_of(database, channel) is None
