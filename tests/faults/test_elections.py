"""Leaders and members that die, stand still, or cannot be reached: who leads next, and what others see of it.

Theory: a leader that is to die or to stop is a process of its own; the network is broken by a proxy. Times are short
and not asserted: what is asserted is the order, and that a leader knows of its loss before another can lead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from pgconcert import AsyncCoordinator, SessionLost
from pgconcert.election import AsyncLeadership
from pgconcert.terms import LeaderChange
from pgconcert.testing import FaultProxy
from pgconcert.watching import AsyncChanges
from tests.postgres.jobscenes import make_tables
from tests.postgres.scenes import Engine, both_engines
from tests.processes import Worker

TTL = 2.0

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


async def leads(worker: Worker) -> int:
    """Wait until the process leads: its token."""
    line = await asyncio.to_thread(worker.expect, "leads")
    return int(line)


async def test_a_leader_that_is_killed(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """When its time is over it leads no more, who waits leads, its membership is lost; and all of that is seen."""
    process = worker(LEADER, tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables, name="us") as c:
        election, group = c.election(unique, ttl=TTL, check=60), c.group(unique, ttl=TTL, check=60)
        async with election.observe() as changes, group.watch() as members:
            assert await told(changes) == ("another process", token, None)
            assert (await members.get()).kind == "joined"
            waits = asyncio.create_task(election.lead().acquire())
            process.kill()
            leadership = await waits
            assert leadership.token > token
            assert await told(changes) == (None, token, "lost")
            assert await told(changes) == ("us", leadership.token, None)
            lost = await members.get(30)
            assert (lost.kind, lost.member.member_id) == ("lost", "m")
            async with group.join(member_id="m"):
                assert (await members.get(30)).kind == "joined"
            await leadership.release()


async def test_an_observer_alone_sees_the_death(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """Nobody takes over, nobody notifies, and `check` is far away: it is seen because its time is over."""
    process = worker(LEADER, tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables) as c:
        async with c.election(unique, check=3600, ttl=7200).observe() as changes:
            assert await told(changes) == ("another process", token, None)
            process.kill()
            assert await told(changes) == (None, token, "lost")
            assert await c.election(unique).leader() is None


async def test_a_leader_that_stands_still(tables: str, unique: str, worker: Callable[..., Worker]) -> None:
    """A leader that is stopped for longer than its ttl finds its leadership lost, and leads again in a later term."""
    process = worker(LEADER, tables, unique)
    token = await leads(process)
    async with AsyncCoordinator(tables, name="us") as c:
        election = c.election(unique, ttl=TTL)
        async with election.observe() as changes:
            assert await told(changes) == ("another process", token, None)
            process.stop_signal()
            leadership = await election.lead().acquire()
            process.cont()
            await asyncio.to_thread(process.expect, "lost")
            assert not leadership.lost
            await leadership.resign()
            again = await leads(process)
            assert again > leadership.token > token
            assert [await told(changes) for _ in range(4)] == [
                (None, token, "lost"),
                ("us", leadership.token, None),
                (None, leadership.token, "resigned"),
                ("another process", again, None),
            ]


@both_engines
async def test_a_leader_that_cannot_be_reached(tables: str, proxy: FaultProxy, unique: str, engine: Engine) -> None:
    """A leader that is cut off knows of its loss before another leads, and its body is cancelled."""
    async with (
        AsyncCoordinator(proxy.url(tables), engine=engine, network_timeout=0.5) as far,
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
        second = await near.election(unique, ttl=TTL).lead().acquire()
        assert first.lost
        assert second.token > first.token
        with pytest.raises(SessionLost):
            await task
        proxy.resume()
        proxy.cut()
        await second.release()
        async with far.election(unique, ttl=TTL).lead() as again:
            assert again.token > second.token


@both_engines
async def test_an_observer_that_cannot_look(tables: str, proxy: FaultProxy, unique: str, engine: Engine) -> None:
    """Whoever is cut off is told of nothing meanwhile, and then of everything, in order."""
    async with (
        AsyncCoordinator(proxy.url(tables), engine=engine, network_timeout=0.5) as far,
        AsyncCoordinator(tables, name="us") as near,
    ):
        async with far.election(unique, ttl=TTL, check=0.5).observe() as changes:
            assert await told(changes) == (None, None, None)
            for cut in (proxy.pause, proxy.refuse):
                cut()
                if cut == proxy.refuse:
                    proxy.cut()
                expected: list[Told] = []
                for _ in range(5):
                    async with near.election(unique, ttl=TTL).lead() as leadership:
                        expected.append(("us", leadership.token, None))
                    expected.append((None, leadership.token, "released"))
                with pytest.raises(TimeoutError):
                    await changes.get(1.5)
                proxy.accept()
                proxy.resume()
                assert [await told(changes) for _ in expected] == expected


@pytest.mark.long
async def test_a_leader_whose_answers_are_cut_off(tables: str, proxy: FaultProxy, unique: str) -> None:
    """A candidacy whose answer is lost after the server has committed leads all the same, and all see what happened."""
    async with AsyncCoordinator(proxy.url(tables), network_timeout=0.5) as far, AsyncCoordinator(tables) as near:
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
        async with c.election(unique, ttl=TTL).lead(preferred=True, timeout=30) as leadership:
            assert leadership.token > token
            await asyncio.to_thread(process.expect, "lost")
            assert not leadership.release_requested
        assert await leads(process) > leadership.token
