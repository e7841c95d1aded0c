"""Cases of job locks: one holder, tokens, what is known of the holder, what is wanted of it, how holds are lost."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from typing import Any

from ... import AcquireTimeout, AsyncCoordinator, ConfigurationError, CoordinatorClosed, KeyInvalid, WouldDeadlock
from ...errors import SessionLost
from ...jobs import AsyncJobHold
from ..leaks import eventually_async
from .suite import Stage, cancelled_everywhere, case, got, raises, turns

QUICK: Any = {"ttl": 60.0, "interval": 0.5, "check": 1.0}
"""Times with which a holder learns soon of what others want, and is not lost because a machine is busy."""


async def taken(coordinator: AsyncCoordinator, name: str = "job") -> AsyncJobHold:
    """A hold of a job lock, whose end nobody is cancelled for."""
    hold = await coordinator.job_lock(name, **QUICK, on_lost="report").try_acquire()
    got(hold)
    assert hold is not None
    return hold


@case("sessions")
async def two_coordinators_exclude_each_other(stage: Stage) -> None:
    """A job lock that one coordinator holds another cannot take; once it is released, it can."""
    a, b = await stage.open(), await stage.open()
    hold = await taken(a)
    assert hold.key == "job"
    assert await b.job_lock("job").try_acquire() is None
    await hold.release()
    other = await taken(b)
    assert await a.job_lock("job").try_acquire() is None
    await other.release()


@case("sessions")
async def objects_hold_nothing(stage: Stage) -> None:
    """Two job lock objects with one name exclude each other, and so do two tasks that share one."""
    c = await stage.open()
    lock = c.job_lock("job")
    hold = await lock.acquire()
    assert await c.job_lock("job", ttl=5).try_acquire() is None
    assert await lock.try_acquire() is None
    waiter = await stage.waiting(lock.acquire())
    await hold.release()
    await (await waiter).release()


@case("sessions")
async def other_names_are_not_in_the_way(stage: Stage) -> None:
    """A job lock excludes no lock of its name, no election, no job lock of another name or namespace."""
    a, b = await stage.open(), await stage.open(namespace=f"conformance {stage.number()}")
    holds = [await taken(a), await taken(b), await taken(a, "JOB"), await taken(a, "job "), await taken(a, "job'\\%ü")]
    lock = await a.lock("job").acquire()
    assert not any(hold.lost for hold in holds)
    await lock.release()
    for hold in holds:
        await hold.release()


@case("sessions")
async def tokens_grow(stage: Stage) -> None:
    """Every hold of a name has a larger token than all before, whoever has it; holds of other names do not matter."""
    a, b = await stage.open(), await stage.open()
    last = 0
    for coordinator in (a, b, b, a):
        async with coordinator.job_lock("job") as hold:
            assert hold.token > last
            last = hold.token
    assert last < 2**63


@case("sessions")
async def since_is_when_it_was_taken(stage: Stage) -> None:
    """A hold tells since when it is held, by the server's clock, and on which session it hangs."""
    c = await stage.open()
    first = await taken(c)
    second = await taken(c, "other")
    assert first.since <= second.since
    assert first.session_id == second.session_id
    await first.release()
    await second.release()


@case("sessions")
async def never_two_holders(stage: Stage) -> None:
    """However many tasks and coordinators want one job lock, at most one holds it, and all get it."""
    inside = 0
    rounds = 0

    async def work(c: AsyncCoordinator) -> None:
        nonlocal inside, rounds
        for _ in range(3):
            async with c.job_lock("job"):
                inside += 1
                assert inside == 1
                await turns(3)
                inside -= 1
                rounds += 1

    async with asyncio.TaskGroup() as tasks:
        for coordinator in (await stage.open(), await stage.open()):
            for _ in range(3):
                tasks.create_task(work(coordinator))
    assert rounds == 18


@case("sessions")
async def first_come_first_served_in_one_coordinator(stage: Stage) -> None:
    """Those who wait for a job lock in one coordinator get it in their order."""
    c = await stage.open()
    hold = await taken(c)
    order: list[int] = []

    async def work(number: int) -> None:
        async with c.job_lock("job"):
            order.append(number)

    waiting = [await stage.waiting(work(number)) for number in range(3)]
    await hold.release()
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2]


@case("sessions")
async def a_time_limit_names_the_holder(stage: Stage) -> None:
    """A wait with a time limit ends with an error that says who holds it; afterwards it can be had as ever."""
    a, b = await stage.open(name="the holder"), await stage.open()
    hold = await taken(a)
    for seconds in (0, 0.01):
        with raises(AcquireTimeout, "job lock 'job'", "the holder"):
            await b.job_lock("job").acquire(seconds)
    await hold.release()
    async with b.job_lock("job"):
        pass


@case("sessions")
async def whoever_is_cancelled_leaves_nothing(stage: Stage) -> None:
    """A wait for a job lock that is cancelled at any instant leaves it free, and the others waiting go on."""
    a, b = await stage.open(), await stage.open()

    async def work() -> None:
        await (await a.job_lock("job").acquire()).release()

    async for _ in cancelled_everywhere(work):
        async with b.job_lock("job"):
            pass
    hold = await taken(b)
    leaves = await stage.waiting(a.job_lock("job").acquire())
    stays = await stage.waiting(a.job_lock("job").acquire())
    leaves.cancel()
    await hold.release()
    await (await stays).release()


@case("sessions")
async def nobody_waits_for_itself(stage: Stage) -> None:
    """A task that wants a job lock which it has entered is told at once; a circle with a lock is seen."""
    c = await stage.open()
    lock = c.job_lock("job")
    async with lock:
        with raises(WouldDeadlock, "'job'", "not re-entrant"):
            async with lock:
                raise AssertionError("entered twice")
        with raises(WouldDeadlock, "'job'", "not re-entrant"):
            await c.job_lock("job").acquire()

        async def other() -> None:
            async with c.lock("lock"), c.job_lock("job"):
                pass

        waits = await stage.waiting(other())
        with raises(WouldDeadlock):
            await c.lock("lock").acquire()
    await waits


@case("sessions")
async def the_holder_is_known(stage: Stage) -> None:
    """Everybody may ask who holds a job lock, since when, with which token, and what it says of itself."""
    a, b = await stage.open(name="the holder"), await stage.open()
    data = {"queue": ["mails", 3, None, "ü"]}
    lock = a.job_lock("job", data=data)
    assert await lock.holder() is None
    async with lock as hold:
        holder, same = await b.job_lock("job").holder(), await lock.holder()
        assert holder is not None
        assert same is not None
        assert (holder.identity, holder.application, holder.token) == (a.identity, "the holder", hold.token)
        assert (holder.data, holder.since) == (data, hold.since)
        assert str(holder) == f"the holder (pid {holder.pid} on {holder.host})"
        assert not holder.mine
        assert same.mine
        assert lock.identity == a.identity
        assert b.identity != a.identity
    assert await b.job_lock("job").holder() is None


@case("sessions")
async def a_release_may_be_requested(stage: Stage) -> None:
    """A holder that is asked to give it back learns of it, and keeps it until it does; the next one is not asked."""
    a, b = await stage.open(), await stage.open()
    wants = b.job_lock("job", **QUICK)
    assert not await wants.request_release()
    hold = await taken(a)
    assert not hold.release_requested
    told = await stage.waiting(hold.wait_release_requested())
    assert await wants.request_release()
    await told
    assert hold.release_requested
    assert not hold.lost
    await hold.wait_release_requested()
    await hold.release()
    async with wants as other:
        assert not other.release_requested


@case("sessions")
async def revoke_takes_it_away(stage: Stage) -> None:
    """A revoked job lock is free at once; its holder loses it, and gives back what is its own only."""
    a, b = await stage.open(), await stage.open()
    wants = b.job_lock("job", **QUICK)
    assert not await wants.revoke()
    hold = await taken(a)
    other = await taken(a, "other")
    assert await wants.revoke()
    mine = await taken(b)
    assert mine.token > hold.token
    assert "revoked" in await hold.wait_lost()
    with raises(SessionLost, "'job'"):
        hold.check()
    await hold.release()
    assert await a.job_lock("job").try_acquire() is None
    assert not mine.lost
    assert not other.lost
    await mine.release()
    await other.release()


@case("sessions")
async def loss_cancels_the_body(stage: Stage) -> None:
    """When a job lock is lost the body of its block is cancelled, and the block raises ``SessionLost``."""
    a, b = await stage.open(), await stage.open()
    lock = a.job_lock("job", **QUICK)
    entered = asyncio.Event()

    async def work() -> None:
        async with lock:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    assert lock.state == "held"
    await b.job_lock("job").revoke()
    with raises(SessionLost, "'job'"):
        await task
    assert not task.cancelled()
    assert lock.state == "lost"
    async with lock:
        pass
    assert lock.state == "released"


@case("sessions")
async def a_loss_may_be_reported_only(stage: Stage) -> None:
    """With ``on_lost="report"`` the body runs on, may ask, and the block raises ``SessionLost`` all the same."""
    a, b = await stage.open(), await stage.open()
    with raises(SessionLost, "'job'"):
        async with a.job_lock("job", **QUICK, on_lost="report") as hold:
            await b.job_lock("job").revoke()
            await hold.wait_lost()
            await turns(5)
            assert hold.lost


@case("sessions")
async def closing_loses_what_is_held(stage: Stage) -> None:
    """A coordinator that is closed loses its job locks and frees them; whoever waits there is told."""
    a, b = await stage.open(), await stage.open()
    hold = await taken(a)
    waits = await stage.waiting(a.job_lock("job").acquire())
    await a.close()
    assert hold.lost
    with raises(CoordinatorClosed):
        await waits
    async with b.job_lock("job"):
        pass
    with raises(CoordinatorClosed):
        a.job_lock("job")


@case("sessions")
async def a_dropped_hold_is_released(stage: Stage) -> None:
    """A hold that is thrown away is released, and warned of."""
    c = await stage.open()
    lock = c.job_lock("job")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await lock.acquire()
        gc.collect()
        await (await lock.acquire()).release()
    assert [warning.category for warning in caught] == [ResourceWarning]


@case("sessions")
async def it_may_be_held_at_least_for_a_while(stage: Stage) -> None:
    """With ``hold_at_least`` nobody gets it before, although it was released; then it is had as ever."""
    a, b = await stage.open(), await stage.open()
    async with a.job_lock("long", hold_at_least=3600) as hold:
        pass
    assert hold.released
    assert await b.job_lock("long").try_acquire() is None
    assert await a.job_lock("long").try_acquire() is None
    began = time.monotonic()
    async with a.job_lock("short", hold_at_least=0.5) as first:
        pass
    async with b.job_lock("short") as second:
        assert time.monotonic() - began > 0.3
        assert second.token > first.token


@case("sessions", "lose")
async def a_lost_connection_loses_nothing(stage: Stage) -> None:
    """Job locks survive the loss of the connection, and are given back on the next one."""
    a, b = await stage.open(), await stage.open()
    hold = await taken(a)
    for _ in range(2):
        await stage.lose(a)
        assert not hold.lost
    assert await b.job_lock("job").try_acquire() is None
    await hold.release()
    async with b.job_lock("job"):
        pass


@case("sessions")
async def it_lives_longer_than_its_ttl(stage: Stage) -> None:
    """What is held stays held, for its session is renewed again and again."""
    a, b = await stage.open(), await stage.open()
    ttl = 60.0
    async with a.job_lock("job", ttl=ttl, interval=0.5) as hold:

        async def left() -> float:
            (session,) = [session for session in await b.sessions() if session.id == hold.session_id]
            return session.expires_in

        async def passed() -> bool:
            return await left() < ttl - 0.25

        async def renewed() -> bool:
            return await left() > ttl - 0.25

        for _ in range(3):
            await eventually_async(passed, what="time passes")
            await eventually_async(renewed, what="its session is renewed")
        assert not hold.lost
        assert await b.job_lock("job").try_acquire() is None


@case("sessions")
async def what_is_wrong_is_said_at_once(stage: Stage) -> None:
    """Names, times and data are checked before anything is sent."""
    c = await stage.open()
    for name in ("", "x" * 1001, "a\0b", "\ud800", 7, None):
        with raises(KeyInvalid):
            c.job_lock(name)  # type: ignore[arg-type]
    wrong: Any
    for wrong in ({"ttl": 0}, {"ttl": 4, "interval": 2}, {"check": -1}, {"interval": 1, "timeout": 1}, {"ttl": "1"}):
        with raises(ConfigurationError):
            c.job_lock("job", **wrong)
    for wrong in ({"hold_at_least": -1}, {"hold_at_least": True}, {"data": object()}, {"on_lost": "raise"}):
        with raises(ConfigurationError):
            c.job_lock("job", **wrong)
    lock = c.job_lock("x" * 1000, ttl=8, hold_at_least=1)
    assert (lock.ttl, lock.interval, lock.check, lock.timeout, lock.hold_at_least) == (8, 2, 4, 1, 1)
    assert lock.name == lock.key == "x" * 1000
    assert lock.state == ""
    async with lock:
        pass
