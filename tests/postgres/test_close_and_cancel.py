"""Coordinators that close at a bad moment, tasks that are cancelled from outside, holds that nobody gives back.

Here live tests of ends that were not foreseen: the network is silent, the loop is gone, the executor is full, somebody
cancels every task there is. Theory: whatever ends, each claim learns its fate, the server keeps nothing of it, and no
note of it stays in the process; a task left behind fails the test by itself.
"""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, AsyncHold, AsyncLock, CoordinatorClosed, LockBudgetExceeded, PgconcertError
from pgconcert.events import ConnectFailed, HoldDropped, LockReleased
from pgconcert.testing import FaultProxy, advisory_locks, eventually, eventually_async
from tests.postgres.scenes import (
    Engine,
    both_engines,
    keys_on_server,
    lock_pid,
    marks_on_server,
    role_pids,
    seen,
    until_free,
    waiting_for,
)
from tests.servers import Server

_MANY = 900


async def _ends_with(task: "asyncio.Task[Any]", kind: type[Exception]) -> Exception:
    """The error with which a task ends, soon."""
    await asyncio.wait([task], timeout=30)
    assert task.done()
    error = task.exception()
    assert isinstance(error, kind), error
    return error


# closing


@both_engines
async def test_close_behind_a_silent_network(proxy: FaultProxy, server: Server, database: str, engine: Engine) -> None:
    """A coordinator with a waiter closes in time, and without an error, although nothing is answered any more."""
    async with AsyncCoordinator(database) as outside:
        hold = await outside.lock("silent").acquire()
        c = AsyncCoordinator(proxy.url(server.over_tcp(database)), engine=engine)
        await c.open()
        task = await waiting_for(c, "silent", database)
        proxy.pause()
        await asyncio.wait_for(c.close(), 30)
        await _ends_with(task, CoordinatorClosed)
        proxy.cut()
        proxy.resume()
        await eventually_async(lambda: marks_on_server(database) == 0)
        await hold.release()


@both_engines
async def test_close_after_hundreds_of_waiters_left(
    proxy: FaultProxy, server: Server, database: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The same when hundreds of waiters have left, and their marks could not be taken back any more."""
    async with AsyncCoordinator(database) as outside:
        holds = await asyncio.gather(*(outside.lock(n).acquire() for n in range(_MANY)))
        c = AsyncCoordinator(proxy.url(server.over_tcp(database)), engine=engine)
        await c.open()
        tasks = [asyncio.create_task(c.lock(n).acquire()) for n in range(_MANY)]
        await eventually_async(lambda: marks_on_server(database) >= _MANY, 60, what="all wait")
        proxy.pause()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        await asyncio.wait_for(c.close(), 30)
        # what fails inside a callback is told there
        assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
        proxy.cut()
        proxy.resume()
        await eventually_async(lambda: marks_on_server(database) == 0)
        assert not any(hold.lost for hold in holds)
        await asyncio.gather(*(hold.release() for hold in holds))


@both_engines
async def test_a_lock_object_outlives_its_coordinator(database: str, engine: Engine) -> None:
    """A lock made before the closing cannot be acquired after it, and says why; it never waits."""
    c = AsyncCoordinator(database, engine=engine)
    await c.open()
    lock = c.lock("late")
    await (await lock.acquire()).release()
    await c.close()
    uses: list[Callable[[], Awaitable[object]]] = [lock.acquire, lock.try_acquire, lock.__aenter__]
    for use in uses:
        with pytest.raises(CoordinatorClosed, match="closed"):
            await asyncio.wait_for(use(), 20)


@both_engines
async def test_close_with_a_full_executor(database: str, engine: Engine) -> None:
    """Closing needs no room in the executor of the loop, which may be full of the caller's own work."""
    done = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    c = AsyncCoordinator(database, engine=engine)
    await c.open()
    await (await c.lock("busy").acquire()).release()
    work = loop.run_in_executor(None, done.wait, 30)
    try:
        await asyncio.wait_for(c.close(), 20)
        assert not work.done()
    finally:
        done.set()
        await work
        await c.close()


def test_a_hold_dropped_after_its_loop_ended(database: str) -> None:
    """With `engine="thread"` the links outlive the caller's loop; a hold thrown away afterwards is still released."""

    async def take() -> tuple[AsyncCoordinator, list[AsyncHold]]:
        c = AsyncCoordinator(database, engine="thread")
        await c.open()
        return c, [await c.lock("orphan").acquire()]

    c, holds = asyncio.run(take())
    try:
        assert advisory_locks(database)
        with pytest.warns(ResourceWarning, match="'orphan'"):
            holds.clear()
        eventually(lambda: not advisory_locks(database), 20, what="the lock is free")
    finally:
        asyncio.run(c.close())


# every task is cancelled


def _cancel_all_but(*spared: "asyncio.Task[Any] | None") -> None:
    for task in asyncio.all_tasks():
        if task not in spared:
            task.cancel()


async def _works_again(c: AsyncCoordinator, outside: AsyncCoordinator, database: str) -> None:
    """A free key, and one for which it must wait to be woken."""
    async with c.lock("free", timeout=30):
        pass
    theirs = await outside.lock("contended").acquire()
    task = await waiting_for(c, "contended", database)
    await theirs.release()
    ours = await asyncio.wait_for(task, 30)
    await eventually_async(lambda: not marks_on_server(database), what="the mark of whoever has it now is gone")
    task = await waiting_for(outside, "contended", database)
    await ours.release()
    await (await asyncio.wait_for(task, 30)).release()


async def test_all_tasks_cancelled(database: str) -> None:
    """Whoever waits is told, whoever holds has lost, and the next claim finds a new connection."""
    async with AsyncCoordinator(database) as outside, AsyncCoordinator(database) as c:
        theirs = await outside.lock("theirs").acquire()
        ours = await c.lock("ours").acquire()
        task = await waiting_for(c, "theirs", database)
        _cancel_all_but(asyncio.current_task(), task)
        await _ends_with(task, PgconcertError)
        await asyncio.wait_for(ours.wait_lost(), 30)
        await theirs.release()
        await _works_again(c, outside, database)


async def test_all_tasks_cancelled_while_connecting(proxy: FaultProxy, server: Server, database: str) -> None:
    """The claim for which a connection is being made ends with an error, and the next one connects."""
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(proxy.url(server.over_tcp(database))) as c,
    ):
        proxy.pause()
        task = asyncio.create_task(c.lock("early").acquire())
        await eventually_async(lambda: proxy.connections == 1)
        _cancel_all_but(asyncio.current_task(), task)
        await _ends_with(task, PgconcertError)
        proxy.resume()
        await _works_again(c, outside, database)


async def test_all_tasks_cancelled_in_the_back_off(proxy: FaultProxy, server: Server, database: str) -> None:
    """The same between two attempts to connect again."""
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(proxy.url(server.over_tcp(database))) as c,
    ):
        failed = seen(c, ConnectFailed)
        theirs = await outside.lock("theirs").acquire()
        task = await waiting_for(c, "theirs", database)
        proxy.refuse()
        proxy.cut()
        # from the third failure of a link on, the pauses are long against the attempts
        await eventually_async(lambda: any(event.role == "lock" and event.attempt >= 3 for event in failed))
        _cancel_all_but(asyncio.current_task(), task)
        await _ends_with(task, PgconcertError)
        proxy.accept()
        await theirs.release()
        await _works_again(c, outside, database)


# holds that somebody else gives back, or nobody


async def test_a_hold_handed_on(database: str) -> None:
    """A task whose hold was released by another task does not hold it any more, and may acquire it again."""
    async with AsyncCoordinator(database) as c:
        hold = await c.lock("handed").acquire()
        await asyncio.create_task(hold.release())
        await (await c.lock("handed").acquire(timeout=20)).release()


async def test_a_hold_handed_on_inside_its_block(database: str) -> None:
    """The same in the body of the block that acquired it, by another task or by the body itself."""
    async with AsyncCoordinator(database) as c:
        async with c.lock("block") as hold:
            await asyncio.create_task(hold.release())
            await (await c.lock("block").acquire(timeout=20)).release()
        async with c.lock("block") as hold:
            await hold.release()
            async with c.lock("block", timeout=20) as again:
                await asyncio.create_task(again.release())


async def test_a_lost_hold_is_no_deadlock(database: str, server: Server) -> None:
    """A body that goes on after a loss holds nothing, and may acquire the key again."""
    async with AsyncCoordinator(database) as c:
        lock = c.lock("lost", on_lost="report")
        stack = AsyncExitStack()
        hold = await stack.enter_async_context(lock)
        server.kill_backend(lock_pid(c))
        await asyncio.wait_for(hold.wait_lost(), 30)
        await (await c.lock("lost").acquire(timeout=30)).release()
        with pytest.raises(PgconcertError, match="was lost"):
            await stack.aclose()


async def _enter(lock: AsyncLock) -> "weakref.ref[AsyncHold]":
    return weakref.ref(await AsyncExitStack().enter_async_context(lock))


async def _enter_and_forget(lock: AsyncLock) -> "weakref.ref[AsyncHold]":
    hold = await _enter(lock)
    del lock
    gc.collect()
    return hold


@both_engines
async def test_a_forgotten_exit_stack(database: str, engine: Engine) -> None:
    """An entered hold whose exit stack is thrown away is collected, released, told and warned about."""
    async with AsyncCoordinator(database, engine=engine) as c:
        dropped = seen(c, HoldDropped)
        with pytest.warns(ResourceWarning, match="'stack' was dropped without release"):
            hold = await _enter_and_forget(c.lock("stack"))
        assert hold() is None
        await until_free(database)
        await eventually_async(lambda: [event.key for event in dropped] == ["stack"])


async def test_a_forgotten_exit_stack_is_no_deadlock(database: str) -> None:
    """The task that threw it away does not hold the key, and may acquire it again."""
    async with AsyncCoordinator(database) as c:
        with pytest.warns(ResourceWarning, match="'again'"):
            await _enter_and_forget(c.lock("again"))
        await (await c.lock("again").acquire(timeout=20)).release()


@both_engines
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.long
async def test_nothing_is_kept_of_holds_without_an_end(
    database: str, server: Server, engine: Engine, lost: bool
) -> None:
    """Of tasks that entered a hold and ended without leaving it, whether it was lost or not, nothing stays."""
    async with AsyncCoordinator(database, engine=engine) as c:
        refs: list[weakref.ref[Any]] = []

        async def enter(n: int) -> None:
            stack = AsyncExitStack()
            hold = await stack.enter_async_context(c.lock(f"kept {n}", on_lost="report"))
            refs.append(weakref.ref(hold))
            if lost:
                server.kill_backend(lock_pid(c))
                await asyncio.wait_for(hold.wait_lost(), 30)

        async def one_ends(n: int) -> None:
            task = asyncio.create_task(enter(n))
            refs.append(weakref.ref(task))
            await task

        async def scene() -> None:
            for n in range(3):
                await one_ends(n)
            gc.collect()

        if lost:
            await scene()
        else:
            with pytest.warns(ResourceWarning, match=r"'kept \d'"):
                await scene()

        def nothing_kept() -> bool:
            gc.collect()
            return not [ref() for ref in refs if ref() is not None]

        await eventually_async(nothing_kept, 20, what="no hold and no task is kept")
        await until_free(database)


# the budget counts what is held or waited for


@both_engines
async def test_budget_after_a_cancelled_waiter(database: str, engine: Engine) -> None:
    """A waiter that leaves gives its place back at once, whatever is still to be cleared on the server."""
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(database, engine=engine, max_locks=1) as c,
    ):
        theirs = await outside.lock("theirs").acquire()
        task = await waiting_for(c, "theirs", database)
        with pytest.raises(LockBudgetExceeded):
            await c.lock("another").acquire()
        task.cancel()
        await asyncio.wait([task])
        async with c.lock("another", timeout=20):
            pass
        await theirs.release()


@both_engines
async def test_budget_after_a_contended_release(database: str, engine: Engine) -> None:
    """A released lock does not count, although its key rests to let the others in."""
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(database, engine=engine, max_locks=1) as c,
    ):
        ours = await c.lock("ours").acquire()
        task = await waiting_for(outside, "ours", database)
        await ours.release()
        async with c.lock("another", timeout=20):
            pass
        await (await asyncio.wait_for(task, 30)).release()


# releases are told


@both_engines
async def test_releases_are_told_by_the_callers_name(database: str, engine: Engine) -> None:
    """Every release is told once, contended or not, with the key as the caller wrote it."""
    async with (
        AsyncCoordinator(database) as outside,
        AsyncCoordinator(database, engine=engine) as c,
    ):
        told = seen(c, LockReleased)
        async with c.lock("by name"):
            pass
        async with c.lock(-7):
            pass
        hold = await c.lock("wanted").acquire()
        task = await waiting_for(outside, "wanted", database)
        await hold.release()
        await (await asyncio.wait_for(task, 30)).release()
        await eventually_async(lambda: len(told) >= 3, what="all have been told")
        assert [(event.key, event.wanted) for event in told] == [("by name", False), (-7, False), ("wanted", True)]
        assert keys_on_server(database) == {}
        assert role_pids(c, "lock")
