"""Waiting for what another process has: wake-ups, re-checks, fairness, reports, and the traces it leaves.

Here live tests of the lock protocol between processes. Theory: NOTIFY is the speed and the re-check the guarantee, so
each is tested with the other switched off: the re-check by a period longer than the test, NOTIFY by a listen link that
cannot work. What costs nothing is shown by counting statements, never by time.
"""

import asyncio
from functools import partial
from typing import Any

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import LockAcquired, StillWaiting, WakeFailed
from pgconcert.hold import AsyncHold
from pgconcert.messenger import Answer
from pgconcert.postgres import waiting
from pgconcert.postgres.messages import Publisher
from pgconcert.testing import FaultProxy, advisory_locks, eventually_async
from tests.postgres.lockkinds import fence
from tests.postgres.scenes import (
    QUIET,
    Engine,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    marks_on_server,
    raw,
    seen,
    statements,
    until_free,
    until_marked,
    waiting_for,
)
from tests.servers import Server

_NEVER = 1_000_000.0


@pytest.fixture
def no_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself: only a wake-up helps."""
    monkeypatch.setattr(waiting, "_RECHECK", _NEVER)


@pytest.fixture
def no_wakeup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wake-ups are thrown away: only looking again helps."""

    def swallow(self: Publisher, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        answer.set_result(True)

    monkeypatch.setattr(Publisher, "publish", swallow)


@both_engines
@pytest.mark.usefixtures("no_recheck")
async def test_hand_over_by_notification(database: str, engine: Engine) -> None:
    """A waiter in another process is woken by the release alone, every time."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        for n in range(10):
            hold = await one.lock("baton").acquire()
            task = await waiting_for(other, "baton", database)
            await hold.release()
            taken = await asyncio.wait_for(task, 30)
            assert keys_on_server(database) == {key_of("baton"): lock_pid(other)}, n
            await taken.release()
            await eventually_async(lambda: marks_on_server(database) == 0)


@both_engines
@pytest.mark.usefixtures("no_recheck")
@pytest.mark.parametrize("times", [100, pytest.param(500, marks=pytest.mark.long)])
async def test_ping_pong(database: str, engine: Engine, times: int) -> None:
    """Two processes that always both want it hand it to and fro so many times each without a lost wake-up."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        inside = False

        async def work(c: AsyncCoordinator) -> None:
            nonlocal inside
            for _ in range(times):
                async with c.lock("ping", timeout=30):
                    assert not inside
                    inside = True
                    await asyncio.sleep(0)
                    inside = False

        await asyncio.gather(work(one), work(other))
    await until_free(database)


@pytest.mark.usefixtures("no_wakeup")
async def test_recheck_finds_what_nobody_told(database: str) -> None:
    """When every wake-up is lost, the waiter gets the lock all the same, at its next look."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        hold = await one.lock("untold").acquire()
        task = await waiting_for(other, "untold", database)
        await hold.release()
        await (await asyncio.wait_for(task, 30)).release()


async def test_recheck_finds_a_strangers_release(database: str) -> None:
    """Another program that holds the same bigint wakes nobody; its release is found by looking again."""
    async with AsyncCoordinator(database) as c:
        with raw(database) as stranger:
            stranger.execute("select pg_advisory_lock(78)")
            task = await waiting_for(c, 78, database)
            stranger.execute("select pg_advisory_unlock(78)")
            await (await asyncio.wait_for(task, 30)).release()


async def test_killed_holder(database: str, server: Server) -> None:
    """The lock of a process that died is found without anybody's wake-up."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        hold = await one.lock("orphan").acquire()
        task = await waiting_for(other, "orphan", database)
        server.kill_backend(lock_pid(one))
        taken = await asyncio.wait_for(task, 30)
        await hold.wait_lost()
        await taken.release()


async def test_recheck_costs_one_statement(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are waited for, each look is one statement."""
    monkeypatch.setattr(waiting, "_RECHECK", _NEVER)
    async with AsyncCoordinator(database, network_timeout=QUIET) as one:
        async with AsyncCoordinator(database, network_timeout=QUIET) as other:
            holds = await asyncio.gather(*(one.lock(f"many {n}").acquire() for n in range(50)))
            tasks = [asyncio.create_task(other.lock(f"many {n}").acquire()) for n in range(50)]
            await until_marked(database, 50)
            await fence(other)
            backend: Any = other.backend
            for _ in range(5):
                before = statements(other, "lock")
                backend.locker.waiting._look_again()
                await fence(other)  # what was asked before it is answered
                assert statements(other, "lock") - before == 1 + 2
            for hold in holds:
                await hold.release()
            for hold in await asyncio.gather(*tasks):
                await hold.release()
    await until_free(database)


@pytest.mark.usefixtures("no_recheck")
async def test_waiting_and_holding_cost_nothing(database: str) -> None:
    """In a quiet second neither a holder nor a waiter sends a statement."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as one:
        async with AsyncCoordinator(database, network_timeout=QUIET) as other:
            hold = await one.lock("quiet").acquire()
            task = await waiting_for(other, "quiet", database)
            await fence(other)
            before = statements(one), statements(other)
            await asyncio.sleep(1.0)
            assert (statements(one), statements(other)) == before
            await hold.release()
            await (await task).release()


async def test_marks_go_with_the_waiting(database: str) -> None:
    """A waiter that got it, one that ran out of time and one that was cancelled leave no mark behind."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        hold = await one.lock("marked").acquire()
        for leave in ("timeout", "cancel"):
            task = await waiting_for(other, "marked", database)
            if leave == "cancel":
                task.cancel()
            else:
                with pytest.raises(TimeoutError):
                    await other.lock("marked").acquire(timeout=0.01)
                assert marks_on_server(database) == 1, "somebody here waits still"
                task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually_async(lambda: marks_on_server(database) == 0)
        task = await waiting_for(other, "marked", database)
        await hold.release()
        taken = await task
        await eventually_async(lambda: marks_on_server(database) == 0)
        assert len(advisory_locks(database)) == 1
        await taken.release()


@both_engines
async def test_fair_chance(database: str, engine: Engine) -> None:
    """A process that takes the lock again and again lets another one in whenever it waits."""
    async with (
        AsyncCoordinator(database, engine=engine) as greedy,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        others = seen(other, LockAcquired)
        cycles = 0
        waits: list[int] = []
        stop = False

        async def loop() -> None:
            nonlocal cycles
            while not stop:
                async with greedy.lock("greed"):
                    cycles += 1

        looping = asyncio.create_task(loop())
        await eventually_async(lambda: cycles > 10)
        for _ in range(30):
            before = cycles
            async with other.lock("greed", timeout=30):
                waits.append(cycles - before)
        stop = True
        await looping
        assert len(others) == 30
        # the first wait opens the listen link; later ones cost the greedy one a few cycles each
        assert sorted(waits)[15] < 50, waits


async def test_first_come_inside_a_waiting_process(database: str) -> None:
    """Tasks that wait together for another process's lock get it in the order they asked, one after the other."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        hold = await one.lock("line").acquire()
        order: list[int] = []

        async def work(number: int) -> None:
            async with other.lock("line"):
                order.append(number)

        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(work(number)))
            await asyncio.sleep(0)
        await until_marked(database)
        await hold.release()
        await asyncio.gather(*tasks)
        assert order == list(range(20))
    await until_free(database)


@both_engines
async def test_still_waiting(database: str, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    """A long wait is reported again and again, with its time and the holder's name and process."""
    monkeypatch.setattr(waiting, "_STILL_WAITING", 0.2)
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)
    async with (
        AsyncCoordinator(database, name="holder") as one,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        events = seen(other, StillWaiting)
        hold = await one.lock("long").acquire()
        task = await waiting_for(other, "long", database)
        await eventually_async(lambda: len(events) >= 2)
        assert {event.key for event in events} == {"long"}
        assert all((event.holder or "").startswith("holder@") for event in events)
        assert all(f"(pid {lock_pid(one)})" in (event.holder or "") for event in events)
        assert 0.2 <= events[0].waited < events[1].waited
        assert {event.cycle for event in events} == {()}
        await hold.release()
        await (await task).release()


async def test_still_waiting_inside_a_process(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait for a task of the same process is reported too."""
    monkeypatch.setattr(waiting, "_STILL_WAITING", 0.1)
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)
    async with AsyncCoordinator(database, name="self") as c:
        events = seen(c, StillWaiting)
        async with c.lock("inside"):
            task = asyncio.create_task(c.lock("inside").acquire())
            await eventually_async(lambda: events)
            assert (events[0].holder or "").startswith("self@")
        await (await task).release()


async def test_cycle_is_reported(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that wait for each other are both told so, by name; nobody is made to give up."""
    monkeypatch.setattr(waiting, "_STILL_WAITING", 0.2)
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)
    async with (
        AsyncCoordinator(database, name="ann") as ann,
        AsyncCoordinator(database, name="bob") as bob,
    ):
        told = {c: seen(c, StillWaiting) for c in (ann, bob)}
        x, y = await ann.lock("x").acquire(), await bob.lock("y").acquire()
        tasks = [asyncio.create_task(ann.lock("y").acquire()), asyncio.create_task(bob.lock("x").acquire())]
        for events in told.values():
            cycle = await eventually_async(partial(_first_cycle, events))
            assert {name.partition("@")[0] for name in cycle} == {"ann", "bob"}
        assert not any(task.done() for task in tasks)
        await x.release()
        await y.release()
        for task in tasks:
            await (await task).release()


async def test_release_does_not_wait_for_its_wake_up(database: str, server: Server) -> None:
    """A release is finished when the server has freed the lock, whatever becomes of the message that wakes others."""
    async with AsyncCoordinator(database, direct_url=database) as other:
        # publishing leads nowhere; locks and LISTEN have an address that works
        async with AsyncCoordinator("postgresql://127.0.0.1:1/x", direct_url=database) as one:
            failed = seen(one, WakeFailed)
            hold = await one.lock("mute").acquire()
            task = await waiting_for(other, "mute", database)
            await hold.release()
            taken: AsyncHold = await asyncio.wait_for(task, 30)
            await eventually_async(lambda: failed)
            await taken.release()


@pytest.mark.usefixtures("no_recheck")
async def test_a_close_wakes_others_over_a_link_that_it_has_yet_to_make(
    database: str, server: Server, proxy: FaultProxy
) -> None:
    """Who closes may have published nothing so far: what it gives back is told before it has gone."""
    async with AsyncCoordinator(database) as other:
        one = AsyncCoordinator(proxy.url(server.over_tcp(database)), direct_url=database)
        await one.open()
        hold = await one.lock("farewell").acquire()
        task = await waiting_for(other, "farewell", database)
        proxy.delay(0.02)  # publishing leads through it, and takes longer than everything else that closes
        await one.close()
        assert hold.lost
        await (await asyncio.wait_for(task, 30)).release()


def _first_cycle(events: list[StillWaiting]) -> tuple[str, ...]:
    return next((event.cycle for event in events if event.cycle), ())
