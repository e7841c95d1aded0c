"""Semaphores on a real server: that all who use one agree on its number of permits, and what a lost session leaves.

Here live tests of the agreement and of sessions that end. Theory: the agreement is a shared lock that carries the
number, so the server itself shows who believes in which, and it ends with its session as everything else does.
"""

import asyncio
from collections import Counter
from functools import partial

import pytest

from pgconcert import AsyncCoordinator, LockLost, PermitsDisagree
from pgconcert.events import HoldBroken
from pgconcert.hold import AsyncHold
from pgconcert.keys import KeySpace, agreement_pair
from pgconcert.postgres import slotowner, waiting
from pgconcert.testing import advisory_locks, eventually_async
from tests.postgres.lockkinds import (
    AGREEMENT,
    INTEREST,
    NEVER,
    SLOT,
    let_go,
    pairs,
    slots,
    started,
    until_pairs,
)
from tests.postgres.scenes import Engine, both_engines, lock_pid, seen, until_free
from tests.servers import Server


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreements are given up soon after the last use."""
    monkeypatch.setattr(slotowner, "_LINGER", 0.05)


@both_engines
async def test_permits_disagree(database: str, engine: Engine) -> None:
    """Whoever comes with another number, larger or smaller, is told who uses which, and leaves nothing behind."""
    async with (
        AsyncCoordinator(database, engine=engine, name="first") as one,
        AsyncCoordinator(database, engine=engine, name="second") as two,
    ):
        hold = await one.semaphore("agree", 3).acquire()
        for permits in (2, 4, 1, 1000):
            other = two.semaphore("agree", permits)
            for ask in (other.acquire, other.try_acquire, lambda other=other: other.acquire(timeout=0)):
                with pytest.raises(PermitsDisagree) as told:
                    await ask()
                assert str(told.value) == (
                    f"the semaphore 'agree' is used by {_name_of(database, lock_pid(one))} (pid {lock_pid(one)}) with "
                    f"3 permits now, and was asked for with {permits}; give it one number everywhere (or another "
                    "name), or wait until the others have stopped"
                )
            await eventually_async(lambda: {lock.pid for lock in pairs(database, AGREEMENT)} == {lock_pid(one)})
        async with two.semaphore("agree", 3, timeout=30):
            assert len(slots(database)) == 2
        await hold.release()
        async with two.semaphore("agree", 3, timeout=30):
            with pytest.raises(PermitsDisagree, match=rf"\(pid {lock_pid(two)}\) with 3 permits now"):
                await one.semaphore("agree", 4).acquire()
    await until_free(database)


async def test_who_disagrees_disturbs_nobody_else(database: str) -> None:
    """A process with a wrong number asks again and again; those with the right one come and go all the same."""
    async with (
        AsyncCoordinator(database, name="right") as right,
        AsyncCoordinator(database, name="right too") as newcomer,
        AsyncCoordinator(database, name="wrong") as wrong,
    ):
        enough = asyncio.Event()

        async def ask_in_vain() -> int:
            refused = 0
            while not enough.is_set():
                with pytest.raises(PermitsDisagree, match=r"^the semaphore .shared. is used by right"):
                    await wrong.semaphore("shared", 8).acquire()
                refused += 1
            return refused

        async with right.semaphore("shared", 4):
            asking = asyncio.create_task(ask_in_vain())
            for _ in range(40):
                async with newcomer.semaphore("shared", 4, timeout=30):
                    pass
                until = len(pairs(database, AGREEMENT))
                assert until <= 2, "the wrong one took no agreement"
            enough.set()
            assert await asking > 0


async def test_many_that_disagree_at_once(database: str) -> None:
    """Of four processes with numbers of their own that come at the same instant, no two numbers are ever in use."""
    coordinators = [AsyncCoordinator(database) for _ in range(4)]
    for c in coordinators:
        await c.open()
        async with c.lock("warm"):
            pass
    for n in range(10):
        asked = [c.semaphore(f"at once {n}", 2 + k % 2).acquire(timeout=30) for k, c in enumerate(coordinators)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        got = [(outcome, 2 + k % 2) for k, outcome in enumerate(outcomes) if isinstance(outcome, AsyncHold)]
        assert len({permits for _, permits in got}) <= 1
        for outcome in outcomes:
            assert isinstance(outcome, (AsyncHold, PermitsDisagree)), outcome
        await let_go(*(hold for hold, _ in got))
    for c in coordinators:
        await c.close()
    await until_free(database)


async def test_disagreement_within_a_process(database: str) -> None:
    """In one process too; and when nobody uses it any more, another number is fine."""
    async with AsyncCoordinator(database) as c:
        hold = await c.semaphore("mine", 2).acquire()
        for ask in (c.semaphore("mine", 3).acquire, c.semaphore("mine", 1).try_acquire):
            with pytest.raises(PermitsDisagree, match="'mine' is used by this process with 2 permits now"):
                await ask()
        await hold.release()
        for permits in (3, 1, 2):
            async with c.semaphore("mine", permits, timeout=30) as hold:
                assert hold.permit is not None
                assert hold.permit < permits
                await eventually_async(partial(_agree, database, "mine", permits))
        held = [await c.semaphore("mine", 2).acquire() for _ in range(2)]
        waiter = asyncio.create_task(c.semaphore("mine", 2).acquire())
        await asyncio.sleep(0)
        with pytest.raises(PermitsDisagree):
            await c.semaphore("mine", 3).acquire()
        await let_go(*held)
        await let_go(await waiter)
    await until_free(database)


@pytest.mark.usefixtures("short_linger")
@pytest.mark.parametrize("how", ["linger", "close"])
async def test_another_number_after_the_others_have_gone(database: str, how: str) -> None:
    """The agreement ends some seconds after the last use, or with its process; then another number is fine."""
    async with AsyncCoordinator(database) as two:
        one = AsyncCoordinator(database)
        await one.open()
        async with one.semaphore("later", 3):
            with pytest.raises(PermitsDisagree):
                await two.semaphore("later", 2).acquire()
        if how == "close":
            await one.close()
        await until_pairs(database, AGREEMENT, 0)
        async with two.semaphore("later", 2):
            assert _agreements(database, "later") == Counter({2: 1})
        await one.close()
    await until_free(database)


async def test_the_agreement_is_kept_for_the_next_cycle(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last use it lingers, so that the next cycle need not begin with it; and it is one per process."""
    monkeypatch.setattr(slotowner, "_LINGER", NEVER)
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        for _ in range(3):
            async with one.semaphore("linger", 7), two.semaphore("linger", 7):
                assert _agreements(database, "linger") == Counter({7: 2})
        assert _agreements(database, "linger") == Counter({7: 2})
        assert slots(database) == []
    await until_free(database)


@both_engines
async def test_a_killed_holder_frees_its_permits(
    database: str, server: Server, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    """The permits of a session that ended are free for others; whoever held them is told."""
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)
    monkeypatch.setattr(slotowner, "_LINGER", NEVER)
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database) as two:
        broken = seen(one, HoldBroken)
        entered = asyncio.Event()

        async def inside() -> None:
            async with one.semaphore("killed", 2):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(inside())
        await entered.wait()
        hold = await one.semaphore("killed", 2).acquire()
        waiters = [asyncio.create_task(two.semaphore("killed", 2).acquire()) for _ in range(2)]
        await until_pairs(database, INTEREST, 1)
        server.kill_backend(lock_pid(one))
        with pytest.raises(LockLost, match="terminating connection"):
            await asyncio.wait_for(task, 30)
        await asyncio.wait_for(hold.wait_lost(), 30)
        await eventually_async(lambda: [event.key for event in broken] == ["killed", "killed"])
        taken = await asyncio.wait_for(asyncio.gather(*waiters), 30)
        assert {lock.pid for lock in pairs(database, SLOT)} == {lock_pid(two)}
        await hold.release()
        assert len(slots(database)) == 2
        await let_go(*taken)
        async with one.semaphore("killed", 2, timeout=30):
            assert _agreements(database, "killed") == Counter({2: 2})
    await until_free(database)


async def test_a_new_session_asks_again_who_agrees(database: str, server: Server) -> None:
    """With its session a process loses its agreement; on the next it looks again, and finds who came meanwhile."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        async with one.semaphore("anew", 2):
            pass
        before = lock_pid(one)
        server.kill_backend(before)
        await until_pairs(database, AGREEMENT, 0)
        async with two.semaphore("anew", 3):
            with pytest.raises(PermitsDisagree, match=rf"\(pid {lock_pid(two)}\) with 3 permits"):
                await one.semaphore("anew", 2).acquire(timeout=30)
            assert lock_pid(one) != before
            async with one.semaphore("anew", 3, timeout=30):
                pass
    await until_free(database)


async def test_a_waiter_rides_through_the_loss_of_its_session(database: str, server: Server) -> None:
    """A waiter whose session ends goes on waiting on the next, with agreement and mark."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        hold = await one.semaphore("ride", 1).acquire()
        task = await started(two.semaphore("ride", 1).acquire(), database)
        before = lock_pid(two)
        server.kill_backend(before)
        await eventually_async(lambda: before not in {lock.pid for lock in pairs(database, INTEREST)})
        await until_pairs(database, INTEREST, 1)
        assert not task.done()
        await eventually_async(lambda: _agreements(database, "ride") == Counter({1: 2}))
        await hold.release()
        await (await asyncio.wait_for(task, 30)).release()
    await until_free(database)


def _agreements(url: str, name: str) -> Counter[int]:
    """How many sessions hold an agreement about a semaphore, by the number of permits."""
    value = KeySpace().semaphore(name, 1).value
    known = {agreement_pair(value, permits): permits for permits in range(1, 1001)}
    return Counter(
        known[lock.key] for lock in pairs(url, AGREEMENT) if isinstance(lock.key, tuple) and lock.key in known
    )


def _agree(url: str, name: str, permits: int) -> bool:
    """Whether one session holds an agreement about a semaphore, with this number."""
    return _agreements(url, name) == Counter({permits: 1})


def _name_of(url: str, pid: int) -> str:
    """What a process calls itself on the server, without the role of the link."""
    application = next(lock.application_name for lock in advisory_locks(url) if lock.pid == pid)
    return application.rpartition(" ")[0]
