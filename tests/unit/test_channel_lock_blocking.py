"""The lock of a channel for threads, in a world of one process: handlers, loss, the engine, and the end of it."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import threading

import pytest

from pgconcert import ConfigurationError, CoordinatorClosed
from pgconcert.blocking import Coordinator
from pgconcert.blocking.channel_lock import ChannelLock
from pgconcert.channel_lock import AsyncChannelLock
from pgconcert.events import Event, HandlerFailed
from pgconcert.testing import eventually
from tests.unit.channellocks import LONG, backend, blocking_lock_of, told, two_for_threads


@pytest.fixture
def world() -> str:
    return f"memory://{secrets.token_hex(8)}"


def test_threads_take_over(world: str) -> None:
    with two_for_threads(world) as (mine, theirs):
        assert repr(mine) == "<ChannelLock 'orders' standing by>"
        assert (mine.channel, mine.options.acquire_interval, mine.schema_name) == ("orders", LONG, None)
        assert mine.acquire() is True
        assert mine.acquire() is True
        assert theirs.acquire() is False
        mine.release()
        mine.release()
        eventually(lambda: theirs.is_acquired)
        assert theirs.acquire() is True
        assert mine.acquire() is False


def test_handlers_run_on_a_thread(world: str) -> None:
    """Not on the engine, which would wait for itself; and they may call everything."""
    with two_for_threads(world) as (mine, theirs):
        heard: list[tuple[str, bool]] = []
        failed: list[Event] = []
        theirs._lock._events.subscribe(failed.append, HandlerFailed)

        def handler(channel: str) -> None:
            engine = theirs._lock.engine._thread._thread
            heard.append((channel, threading.current_thread() is not engine and theirs.acquire()))
            theirs.destroy()

        def bad(channel: str) -> None:
            raise KeyError(channel)

        theirs.on_release(bad)
        theirs.on_release(handler)
        theirs.on_release(print)()
        assert mine.acquire()
        assert not theirs.acquire()
        mine.release()
        eventually(lambda: heard and failed)
        assert heard == [("orders", True)]
        eventually(mine.acquire)


def test_a_lost_connection_of_threads(world: str) -> None:
    with Coordinator(world) as one, blocking_lock_of(one) as mine:
        words = told(one)
        heard: list[str] = []
        mine.on_release(heard.append)
        assert mine.acquire()
        backend(one).lose_connection("the cable was pulled")
        eventually(lambda: heard == ["orders"])
        assert mine.is_acquired
        assert words[1] == "this process stands by for 'orders': the cable was pulled"


def test_destroy_for_threads(world: str) -> None:
    with two_for_threads(world) as (mine, theirs):
        assert mine.acquire()
        assert not theirs.acquire()
        mine.destroy()
        mine.destroy()
        for use in (mine.init, mine.acquire):
            with pytest.raises(CoordinatorClosed, match="destroyed"):
                use()
        with pytest.raises(CoordinatorClosed, match="destroyed"):
            mine.on_release(print)
        eventually(lambda: theirs.is_acquired)


def test_all_of_them_for_threads(world: str) -> None:
    gc.collect()
    assert not ChannelLock.has_instances()
    with Coordinator(world) as c:
        locks = [blocking_lock_of(c, name) for name in "abc"]
        for lock in locks:
            lock.init()
            assert lock.acquire()
        assert ChannelLock.has_instances()
        assert not AsyncChannelLock.has_instances()
        ChannelLock.destroy_all()
        assert not ChannelLock.has_instances()
        assert not any(lock.is_acquired for lock in locks)


def test_the_coordinator_of_threads_is_closed(world: str) -> None:
    """The engine has ended, and destroying it does nothing more."""
    with Coordinator(world) as c:
        lock = blocking_lock_of(c)
        lock.init()
        assert lock.acquire()
    assert not lock.is_acquired
    with pytest.raises(CoordinatorClosed):
        lock.acquire()
    assert ChannelLock.has_instances()
    lock.destroy()
    lock.destroy()
    assert not ChannelLock.has_instances()


async def test_threads_only(world: str) -> None:
    """In a thread with a running event loop it would stop the loop."""
    c = Coordinator(world)
    await asyncio.to_thread(c.open)
    lock = blocking_lock_of(c)
    with pytest.raises(ConfigurationError, match="AsyncCoordinator"):
        lock.init()
    await asyncio.to_thread(lock.destroy)
    await asyncio.to_thread(c.close)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_none(world: str) -> None:
    with Coordinator(world) as c, blocking_lock_of(c) as lock:
        assert lock.acquire()
        child = os.fork()
        if child == 0:
            os._exit(ChannelLock.has_instances() + 2 * AsyncChannelLock.has_instances() + 4 * lock.is_acquired)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert lock.is_acquired
