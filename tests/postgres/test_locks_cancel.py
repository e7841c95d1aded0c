"""Callers that leave: at random, at every suspension, again and again; nothing they wanted stays behind.

Here live tests of cancellation. Theory: a caller can leave at each of its suspensions in two ways that differ: before
the answer has come, and in the same turn of the loop, when the answer is there and the caller has not yet run. Both are
done at every suspension, so no instant is left out by luck; the random storm is for the interplay of many.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator
from pgconcert.hold import AsyncHold
from pgconcert.testing import advisory_locks, eventually_async
from tests.postgres.scenes import Engine, both_engines, disturbed, key_of, keys_on_server, until_free, waiting_for

_TASKS = 100


def _leave_at_once(task: "asyncio.Task[Any]") -> Callable[[Any], None]:
    """Cancel before anything can answer."""
    return lambda awaited: asyncio.get_running_loop().call_soon(task.cancel)  # type: ignore[return-value]


def _leave_with_the_answer(task: "asyncio.Task[Any]") -> Callable[[Any], None]:
    """Cancel when the answer is there, before the caller runs."""

    def disturb(awaited: "asyncio.Future[Any] | None") -> None:
        if awaited is None:
            asyncio.get_running_loop().call_soon(task.cancel)
        else:
            awaited.add_done_callback(lambda _: task.cancel())

    return disturb


ways_to_leave = pytest.mark.parametrize("leave", [_leave_at_once, _leave_with_the_answer])


async def cancelled_at_every_suspension(
    scene: Callable[[], Awaitable[Any]],
    leave: Callable[["asyncio.Task[Any]"], Callable[[Any], None]],
    afterwards: Callable[[], Awaitable[None]],
) -> int:
    """Run `scene` again and again, cancelled at its first suspension, its second, and so on until it is never
    cancelled; check `afterwards` each time. Returns how many suspensions it has."""
    at = 1
    while True:
        reached = False

        async def run(at: int = at) -> None:
            task = asyncio.current_task()
            assert task is not None
            cancel = leave(task)

            def disturb(awaited: "asyncio.Future[Any] | None") -> None:
                nonlocal reached
                reached = True
                cancel(awaited)

            await disturbed(scene(), at, disturb)  # type: ignore[arg-type]

        (outcome,) = await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        await afterwards()
        if not reached:
            return at - 1
        at += 1


@both_engines
@pytest.mark.parametrize("acquires", [2000, pytest.param(10_000, marks=pytest.mark.long)])
async def test_storm(database: str, engine: Engine, acquires: int) -> None:
    """Thousands of acquires over two processes, on contended and on free keys, many cancelled at random moments: never
    two holders, and no lock or mark left behind."""
    dice = random.Random(1)
    holders: dict[str, int] = {}
    granted = cancelled = 0

    async def acquire_once(c: AsyncCoordinator, key: str) -> None:
        nonlocal granted
        async with c.lock(key):
            holders[key] = holders.get(key, 0) + 1
            assert holders[key] == 1, f"two holders of {key}"
            granted += 1
            try:
                if dice.random() < 0.3:
                    await asyncio.sleep(0)
            finally:
                holders[key] -= 1

    async def work(c: AsyncCoordinator) -> None:
        nonlocal cancelled
        for _ in range(acquires // _TASKS):
            key = f"hot {dice.randrange(8)}" if dice.random() < 0.4 else f"free {dice.randrange(1000)}"
            task = asyncio.create_task(acquire_once(c, key))
            if dice.random() < 0.5:
                asyncio.get_running_loop().call_later(dice.random() * 0.004, task.cancel)
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(outcome, asyncio.CancelledError):
                cancelled += 1
            elif outcome is not None:
                raise outcome

    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        await asyncio.gather(*(work((one, other)[n % 2]) for n in range(_TASKS)))
        await until_free(database)
        assert granted + cancelled >= acquires
        assert granted > acquires / 10
        assert cancelled > acquires / 10
        await eventually_async(lambda: one.health().locks_held == other.health().locks_held == 0)
        await eventually_async(lambda: one.health().locks_waited_for == other.health().locks_waited_for == 0)


@both_engines
@ways_to_leave
async def test_cancelled_acquire_of_a_free_lock(database: str, engine: Engine, leave: Any) -> None:
    """Cancelled at any suspension, a whole cycle leaves the lock free."""
    async with AsyncCoordinator(database, engine=engine) as c:

        async def scene() -> None:
            async with c.lock("free"):
                await asyncio.sleep(0)

        suspensions = await cancelled_at_every_suspension(scene, leave, lambda: until_free(database))
        assert suspensions >= 3


@both_engines
@ways_to_leave
async def test_cancelled_acquire_of_a_held_lock(database: str, engine: Engine, leave: Any) -> None:
    """The same while another task has the lock and gives it back in between."""
    async with AsyncCoordinator(database, engine=engine) as c:

        async def scene() -> None:
            hold = await c.lock("held").acquire()
            await asyncio.gather(hold.release(), _cycle(c))

        async def _cycle(c: AsyncCoordinator) -> None:
            async with c.lock("held"):
                await asyncio.sleep(0)

        assert await cancelled_at_every_suspension(scene, leave, lambda: until_free(database)) >= 2


@ways_to_leave
async def test_cancelled_hand_over(database: str, leave: Any) -> None:
    """A waiter that leaves just as it is handed the lock from another process passes it on."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        hold = await one.lock("handed").acquire()

        async def wait() -> AsyncHold:
            task = asyncio.current_task()
            assert task is not None
            return await disturbed(other.lock("handed").acquire(), 1, leave(task))

        waiting = asyncio.create_task(wait())
        patient = await waiting_for(other, "handed", database)
        await hold.release()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await (await asyncio.wait_for(patient, 30)).release()
        await until_free(database)


@both_engines
@ways_to_leave
async def test_cancelled_release(database: str, engine: Engine, leave: Any) -> None:
    """A release that was begun is finished, although its caller left (A5)."""
    async with AsyncCoordinator(database, engine=engine) as c:
        hold = await c.lock("release").acquire()

        async def release() -> None:
            task = asyncio.current_task()
            assert task is not None
            await disturbed(hold.release(), 1, leave(task))

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(release())
        await until_free(database)
        assert hold.released
        assert not hold.lost


async def test_release_by_a_cancelled_caller(database: str) -> None:
    """A caller that is cancelled already when it releases leaves the lock free (A5)."""
    async with AsyncCoordinator(database) as c:

        async def work() -> None:
            async with c.lock("late"):
                task = asyncio.current_task()
                assert task is not None
                task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())
        await until_free(database)


@both_engines
@pytest.mark.parametrize("contended", [False, True])
async def test_cancelled_again_and_again(database: str, engine: Engine, contended: bool) -> None:
    """A caller cancelled at every turn of the loop until it ends, as some frameworks do, leaves nothing behind."""
    async with (
        AsyncCoordinator(database, engine=engine) as c,
        AsyncCoordinator(database) as other,
    ):
        stranger = await other.lock("again").acquire() if contended else None

        async def work() -> None:
            async with c.lock("again"):
                await asyncio.sleep(3600)

        for turns in range(12):
            task = asyncio.create_task(work())
            for _ in range(turns):
                await asyncio.sleep(0)
            if turns == 11 and not contended:
                await eventually_async(lambda: key_of("again") in keys_on_server(database))
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            assert task.cancelled()
        if stranger is not None:
            await stranger.release()
        await until_free(database)


async def test_timeout_at_the_instant_of_the_grant(database: str) -> None:
    """A time limit that strikes while the answer is on its way gives a hold or an error, and never a lost lock."""
    async with AsyncCoordinator(database) as c:
        got = n = 0
        while n < 300 or not got:  # where all is slow, longer times are tried as well
            n += 1
            try:
                hold = await c.lock("instant").acquire(timeout=n * 0.000003 if n < 300 else (n - 299) * 0.001)
            except AcquireTimeout:
                continue
            got += 1
            await hold.release()
        await until_free(database)
        hold = await c.lock("instant").acquire(timeout=30)
        assert [lock.key for lock in advisory_locks(database)] == [key_of("instant")]
        await hold.release()


async def test_closing_while_callers_leave(database: str) -> None:
    """A coordinator that closes while its callers are being cancelled leaves nothing on the server."""
    for n in range(10):
        c = AsyncCoordinator(database)
        await c.open()
        tasks = [asyncio.create_task(c.lock(f"closing {k % 3}").acquire()) for k in range(9)]
        for _ in range(n):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await c.close()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, AsyncHold):
                await outcome.release()
        await until_free(database)
