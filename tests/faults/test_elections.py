"""Leaders and members that die, stand still, or cannot be reached: who leads next, and what others see of it.

Theory: a leader that is to die or to stop is a process of its own; the network is broken by a proxy. Times are short
and not asserted: what is asserted is the order, and that a leader knows of its loss before another can lead.

Only who is to lose its leadership has a short ``ttl``. On a busy machine it may lose it before its time, and lead again
in a later term; so of the changes only the last ones are compared, and all must make sense.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import pytest

from pgconcert import AsyncCoordinator, SessionLost
from pgconcert.election import AsyncLeadership
from pgconcert.terms import LeaderChange
from pgconcert.testing import FaultProxy
from pgconcert.watching import AsyncChanges
from tests.faults.scenes import believe_silence
from tests.postgres.jobscenes import make_tables
from tests.postgres.scenes import Engine, both_engines
from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

TTL = 2.0
LASTING = 60.0
PATIENT = 8.0

LEADER: Final = """
import asyncio, sys
from pgconcert import AsyncCoordinator, SessionLost

async def main(url, name):
    async with AsyncCoordinator(url, name="another process") as c:
        election = c.election(name, ttl=2, check=0.5)
        while True:
            try:
                async with election.lead() as leadership, c.group(name, ttl=2).join(member_id="m"):
                    print("leads", leadership.token, flush=True)
                    await asyncio.Event().wait()
            except SessionLost:
                print("lost", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


Told = tuple[str | None, int | None, str | None]


async def told(changes: AsyncChanges[LeaderChange]) -> Told:
    """The next change: who leads (the program's name), in which term, how it has ended."""
    change = await changes.get(30)
    return (change.leader.application if change.leader else None, change.token, change.how)


async def terms(changes: AsyncChanges[LeaderChange], until: Callable[[Told], bool]) -> list[Told]:
    """All changes up to one. A term ends before the next begins, which has a larger token."""
    seen = [await told(changes)]
    while not until(seen[-1]):
        seen.append(await told(changes))
    for (leader, token, _), (after, later, how) in pairwise(seen):
        assert (leader is None) is (after is not None), seen
        if after is None:
            assert (later, how is None) == (token, False), seen
        else:
            assert later is not None
            assert later > (token or 0), seen
    return seen


async def leads(worker: Worker, after: int = 0) -> int:
    """Wait until the process leads, in a term later than that: its token."""
    while (token := int(await asyncio.to_thread(worker.expect, "leads", 30))) <= after:
        pass
    return token


def begins(leader: str) -> Callable[[Told], bool]:
    """Whether a change says that this program leads."""
    return lambda change: change[0] == leader


async def test_a_leader_that_is_killed(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """When its time is over it leads no more, who waits leads, its membership is lost; and all of that is seen."""
    process = worker(LEADER, tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables, name="us") as c:
        election, group = c.election(unique, ttl=LASTING, check=60), c.group(unique, ttl=LASTING, check=60)
        async with election.observe() as changes, group.watch() as members:
            before = await terms(changes, begins("another process"))
            assert (await members.get(30)).kind == "joined"
            waits = asyncio.create_task(election.lead().acquire())
            process.kill()
            leadership = await waits
            assert leadership.token > token
            found = before + await terms(changes, begins("us"))
            assert found[-2][::2] == (None, "lost")
            assert found[-1] == ("us", leadership.token, None)
            while (lost := await members.get(30)).kind == "joined" or await group.members():
                pass
            assert (lost.kind, lost.member.member_id) == ("lost", "m")
            async with group.join(member_id="m"):
                assert (await members.get(30)).kind == "joined"
            await leadership.release()


async def test_an_observer_alone_sees_the_death(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """Nobody takes over, nobody notifies, and `check` is far away: it is seen because its time is over."""
    process = worker(LEADER, tables, unique)
    await leads(process)
    async with AsyncCoordinator(tables) as c:
        async with c.election(unique, check=3600, ttl=7200).observe() as changes:
            await terms(changes, begins("another process"))
            process.kill()
            while (await told(changes))[2] != "lost" or await c.election(unique).leader() is not None:
                pass


async def test_a_leader_that_stands_still(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """A leader that is stopped for longer than its ttl finds its leadership lost, and leads again in a later term."""
    process = worker(LEADER, tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables, name="us") as c:
        election = c.election(unique, ttl=LASTING)
        async with election.observe() as changes:
            before = await terms(changes, begins("another process"))
            process.stop_signal()
            leadership = await election.lead().acquire()
            process.cont()
            await asyncio.to_thread(process.expect, "lost", 30)
            assert not leadership.lost
            await leadership.resign()
            again = await leads(process, leadership.token)
            assert again > leadership.token > token
            found = before + await terms(changes, lambda change: change == ("another process", again, None))
            at = found.index(("us", leadership.token, None))
            assert found[at - 1][::2] == (None, "lost")
            assert found[at + 1] == (None, leadership.token, "resigned")
            assert found[at + 2][0] == "another process"


@both_engines
async def test_a_leader_that_cannot_be_reached(tables: str, proxy: FaultProxy, unique: str, engine: Engine) -> None:
    """A leader that is cut off knows of its loss before another leads, and its body is cancelled."""
    async with (
        AsyncCoordinator(proxy.url(tables), engine=engine) as far,
        AsyncCoordinator(tables) as near,
    ):
        entered: asyncio.Future[AsyncLeadership] = asyncio.get_running_loop().create_future()

        async def lead() -> None:
            async with far.election(unique, ttl=TTL).lead() as leadership:
                entered.set_result(leadership)
                await asyncio.Event().wait()

        task = asyncio.create_task(lead())
        first = await entered
        proxy.pause()
        believe_silence(far, 0.5)
        second = await near.election(unique, ttl=LASTING).lead().acquire()
        assert first.lost
        assert second.token > first.token
        with pytest.raises(SessionLost):
            await task
        believe_silence(far, PATIENT)
        proxy.resume()
        proxy.cut()
        await second.release()
        async with far.election(unique, ttl=LASTING).lead() as again:
            assert again.token > second.token


@both_engines
async def test_an_observer_that_cannot_look(tables: str, proxy: FaultProxy, unique: str, engine: Engine) -> None:
    """Whoever is cut off is told of nothing meanwhile, and then of everything, in order."""
    async with (
        AsyncCoordinator(proxy.url(tables), engine=engine) as far,
        AsyncCoordinator(tables, name="us") as near,
    ):
        async with far.election(unique, ttl=TTL, check=0.5).observe() as changes:
            assert await told(changes) == (None, None, None)
            for cut in (proxy.pause, proxy.refuse):
                cut()
                believe_silence(far, 0.5)
                if cut == proxy.refuse:
                    proxy.cut()
                expected: list[Told] = []
                for _ in range(5):
                    async with near.election(unique, ttl=LASTING).lead() as leadership:
                        expected.append(("us", leadership.token, None))
                    expected.append((None, leadership.token, "released"))
                with pytest.raises(TimeoutError):
                    await changes.get(1.5)
                believe_silence(far, PATIENT)
                proxy.accept()
                proxy.resume()
                assert [await told(changes) for _ in expected] == expected


@pytest.mark.long
async def test_a_leader_whose_answers_are_cut_off(tables: str, proxy: FaultProxy, unique: str) -> None:
    """A candidacy whose answer is lost after the server has committed leads all the same, and all see what happened."""
    async with AsyncCoordinator(proxy.url(tables)) as far, AsyncCoordinator(tables) as near:
        async with near.election(unique).observe() as changes:
            await changes.get()
            async with far.election(f"{unique} before", ttl=20).lead():
                pass
            for _ in range(3):
                proxy.cut_after(1, "to_client")
                async with far.election(unique, ttl=20).lead() as leadership:
                    begin = await changes.get(30)
                    seen = [begin]
                    while seen[-1].token != leadership.token:
                        seen.append(await changes.get(30))
                    # a term whose answer never came may have ended before: by its own session, never by loss
                    assert all(change.how in (None, "released") for change in seen)
                    leader = await near.election(unique).leader()
                    assert leader is not None
                    assert leader.token == leadership.token
                    assert leader.identity == far.identity
                end = await changes.get(30)
                assert (end.leader, end.token, end.how) == (None, leadership.token, "released")


async def test_preferred_take_over_between_processes(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """A leader elsewhere that ends on request gives way to a preferred candidate, and comes back after it."""
    process = worker(LEADER.replace("lead()", "lead(on_request='cancel')"), tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables, name="us") as c:
        async with c.election(unique, ttl=LASTING).lead(preferred=True, timeout=30) as leadership:
            assert leadership.token > token
            await asyncio.to_thread(process.expect, "lost", 30)
            assert not leadership.release_requested
        assert await leads(process, leadership.token) > leadership.token
