"""Several locks at once, and callers that leave, run out of time or lose their session at whichever moment.

Here live tests of sets of locks in trouble. Theory: a set goes through rounds, waits and releases, and may be left at
each of its suspensions; whatever it had then must be gone from the server, which is asked.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, LockLost
from pgconcert.events import HoldBroken
from pgconcert.testing import advisory_locks, eventually_async
from tests.postgres.lockkinds import GATE, locks, started, until_pairs
from tests.postgres.scenes import (
    Engine,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    role_pids,
    seen,
    until_free,
)
from tests.postgres.test_locks_cancel import cancelled_at_every_suspension, ways_to_leave
from tests.servers import Server

_MANY = 1500


async def test_a_timeout_leaves_nothing(database: str) -> None:
    """Out of time, a set says which key it missed and who has it, and has taken nothing."""
    async with AsyncCoordinator(database, name="holder") as one, AsyncCoordinator(database) as two:
        async with one.lock("missing"):
            for timeout in (0.0, 0.05, 0.5, 5.0):  # longer, if it was over before a busy server had answered
                with pytest.raises(AcquireTimeout) as told:
                    await two.lock_all(["u", "missing", "v"]).acquire(timeout)
                named = re.match("'missing', one of 3 locks, .* it is held by holder@", str(told.value))
                assert named or 0 < timeout < 5, told.value
                only = {key_of("missing"): lock_pid(one)}
                await eventually_async(lambda: keys_on_server(database) == only)  # noqa: B023 - at once
                if timeout and named:
                    break
            with pytest.raises(AcquireTimeout, match=r"^'missing' was not acquired"):
                await two.lock_all(["missing"], timeout=0.01).acquire()
    await until_free(database)


@both_engines
async def test_timeouts_at_any_instant(database: str, engine: Engine) -> None:
    """A time limit that strikes at whichever instant gives a hold of all, or an error and nothing."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        got = n = 0
        while n < 100 or not got:  # where all is slow, longer times are tried as well
            n += 1
            other = await one.lock("j").acquire() if n % 2 else None
            keeps = n % 10 == 9
            timeout = n * 0.00003 if n < 100 else (n - 99) * 0.01
            task = asyncio.create_task(two.lock_all(["i", "j", "k"]).acquire(timeout=timeout))
            if other is not None and not keeps:
                await other.release()
            try:
                hold = await task
            except AcquireTimeout:
                if other is not None and keeps:
                    await other.release()
                continue
            assert not keeps
            got += 1
            assert len(locks(database)) == 3
            await hold.release()
        await until_free(database)


@both_engines
@ways_to_leave
@pytest.mark.parametrize("constellation", ["free", "one is taken", "one is given back meanwhile"])
async def test_cancelled_at_every_suspension(database: str, engine: Engine, leave: Any, constellation: str) -> None:
    """Cancelled at any suspension of a try, an acquire and a release, nothing of the set stays on the server."""
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database, engine=engine) as other:
        keys = ["a", "b", "c"]
        taken = await other.lock("b").acquire() if constellation == "one is taken" else None

        async def free() -> None:
            async with c.lock_all(keys):
                await asyncio.sleep(0)
            hold = await c.lock_all(keys).try_acquire()
            assert hold is not None
            await hold.release()

        async def refused() -> None:
            assert await c.lock_all(keys).try_acquire() is None
            with pytest.raises(AcquireTimeout):
                await c.lock_all(keys).acquire(timeout=0.01)

        async def handed_over() -> None:
            mine = await c.lock("b").acquire()
            await asyncio.gather(mine.release(), free())

        scenes: dict[str, Callable[[], Awaitable[Any]]] = {
            "free": free,
            "one is taken": refused,
            "one is given back meanwhile": handed_over,
        }
        left = {key_of("b")} if taken else set[int]()

        async def afterwards() -> None:
            await eventually_async(lambda: {lock.key for lock in advisory_locks(database)} == left)
            await eventually_async(lambda: c.health().locks_held == c.health().locks_waited_for == 0)

        assert await cancelled_at_every_suspension(scenes[constellation], leave, afterwards) >= 2
        if taken:
            await taken.release()
    await until_free(database)


async def test_cancelled_while_it_waits_for_another_process(database: str) -> None:
    """A set that is cancelled while it waits leaves no lock, no mark and no gate; so does one cancelled as it is
    handed what it waited for."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        for shared in (False, True):
            hold = await one.lock("n", shared=True).acquire() if not shared else await one.lock("n").acquire()
            task = await started(two.lock_all(["m", "n", "o"], shared=shared).acquire(), database)
            task.cancel()
            await asyncio.wait([task])
            await eventually_async(lambda: len(advisory_locks(database)) == 1)
            task = await started(two.lock_all(["m", "n", "o"], shared=shared).acquire(), database)
            releasing = asyncio.create_task(hold.release())
            await asyncio.sleep(0)
            task.cancel()
            (outcome, _) = await asyncio.gather(task, releasing, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError)
            await until_free(database)
            await until_pairs(database, GATE, 0)


@both_engines
async def test_a_lost_link_loses_the_set(database: str, server: Server, engine: Engine) -> None:
    """When the session ends the whole set is lost, its body cancelled, and the next set is taken on a new session."""
    async with AsyncCoordinator(database, engine=engine) as c:
        broken = seen(c, HoldBroken)
        keys = ["a", "b"]
        entered = asyncio.Event()

        async def inside() -> None:
            async with c.lock_all(keys):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(inside())
        await entered.wait()
        server.kill_backend(lock_pid(c))
        with pytest.raises(LockLost, match="terminating connection"):
            await asyncio.wait_for(task, 30)
        # with the engine thread the block may have ended, and given the other back, before its loss is told
        told = 1 if engine == "thread" else len(keys)
        await eventually_async(lambda: len({event.key for event in broken} & set(keys)) >= told)
        async with c.lock_all(keys, timeout=30):
            assert len(locks(database)) == 2
    await until_free(database)


@both_engines
async def test_loss_of_one_of_two_links(database: str, server: Server, engine: Engine) -> None:
    """Of a set on two links, the loss of one loses the set; what the other carries is kept to the end of the scope."""
    keys = [f"two links {n}" for n in range(_MANY)]
    async with AsyncCoordinator(database, engine=engine) as c:
        holding = asyncio.Event()
        killed = -1

        async def inside() -> None:
            nonlocal killed
            async with c.lock_all(keys, on_lost="report", timeout=60) as hold:
                killed = role_pids(c, "lock")[0]
                server.kill_backend(killed)
                assert "two links" in await hold.wait_lost()
                # the server says so before it frees them
                await eventually_async(lambda: killed not in {lock.pid for lock in locks(database)})
                assert 0 < len(locks(database)) < _MANY
                holding.set()

        with pytest.raises(LockLost, match="terminating connection"):
            await inside()
        assert holding.is_set()
        await eventually_async(lambda: locks(database) == [], what="the other link has given back its part")
        await eventually_async(lambda: c.health().locks_held == 0)
    await until_free(database)


@both_engines
@pytest.mark.parametrize("role", ["holder", "waiter"])
async def test_a_link_that_dies_while_a_set_waits(database: str, server: Server, engine: Engine, role: str) -> None:
    """A set that waits rides through the loss of its own session, and profits from that of the holder."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
    ):
        holder = await one.lock("middle").acquire()
        task = await started(two.lock_all(["a", "middle", "z"]).acquire(), database)
        server.kill_backend(lock_pid(one if role == "holder" else two))
        if role == "holder":
            await asyncio.wait_for(holder.wait_lost(), 30)
        else:
            await holder.release()
        hold = await asyncio.wait_for(task, 30)
        assert len(locks(database)) == 3
        await hold.release()
    await until_free(database)


@both_engines
async def test_sessions_that_end_again_and_again(database: str, server: Server, engine: Engine) -> None:
    """Whenever the session ends, a set that is wanted is got in the end, or lost and said so; nothing stays behind."""
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database) as two:
        got = lost = 0
        ending = False

        async def work(c: AsyncCoordinator) -> None:
            nonlocal got, lost
            while not ending:
                try:
                    async with c.lock_all(random.sample("abcdef", 3), timeout=120):
                        got += 1
                        await asyncio.sleep(0)
                except LockLost:
                    lost += 1

        tasks = [asyncio.create_task(work(c)) for c in (one, one, two)]
        for round_ in range(10):
            before = got
            await eventually_async(lambda before=before: got >= before + 5, 60)  # type: ignore[misc]
            pids = role_pids(one, "lock")
            if pids:
                server.kill_backend(pids[0])
            assert not any(task.done() for task in tasks), (round_, tasks)
        ending = True
        await asyncio.gather(*tasks)
        assert got >= 50
    await until_free(database)
