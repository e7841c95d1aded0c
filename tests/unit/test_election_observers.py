"""Observers of elections and groups without a server: time moved by hand, a connection that is away, errors, cancels.

Theory: what every backend must do stands in the conformance suite (`observing`, `grouping`). Here the clock of a world
is moved by hand, so *exactly when its time is over* can be told from *some time later*; and the store fails at will.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, CoordinatorClosed, SessionLost
from pgconcert.clock import FakeClock
from pgconcert.election import AsyncElection, AsyncLeadership
from pgconcert.errors import StatementFailed, Unavailable
from pgconcert.memory import MemoryBackend
from pgconcert.testing import eventually_async
from pgconcert.watching import AsyncChanges
from tests.postgres.scenes import Engine, both_engines


@pytest.fixture
def world() -> str:
    return secrets.token_hex(8)


def backend_of(c: AsyncCoordinator) -> MemoryBackend:
    backend = c.backend
    assert isinstance(backend, MemoryBackend)
    return backend


async def nothing_more(changes: AsyncChanges[Any]) -> None:
    """Nothing is there to be taken, however often the loop turns."""
    for _ in range(50):
        await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await changes.get(0)


@asynccontextmanager
async def dying(world: str, engine: Engine) -> AsyncIterator[tuple[FakeClock, AsyncCoordinator, AsyncLeadership]]:
    """A leader and member with ttl 10 that cannot reach its world, from time 0 on, and somebody else there."""
    clock = FakeClock()
    async with (
        AsyncCoordinator(backend=MemoryBackend(world, clock=clock, network_timeout=1000)) as leads,
        AsyncCoordinator(backend=MemoryBackend(world, clock=clock), engine=engine) as other,
    ):
        group = leads.group("x", ttl=10).join(member_id="m", on_lost="report")
        leadership = await leads.election("x", ttl=10).lead(on_lost="report").acquire()
        membership = await group.acquire()
        cut = backend_of(leads).partition()
        yield clock, other, leadership
        cut.heal()
        await membership.wait_lost()


@both_engines
async def test_a_leader_is_over_when_its_time_is(world: str, engine: Engine) -> None:
    """Not before, and without anybody else's doing; `check` is far away. It knew before that."""
    async with dying(world, engine) as (clock, other, leadership):
        async with (
            other.election("x", ttl=3000, check=1000).observe() as changes,
            other.group("x", ttl=3000, check=1000).watch() as members,
        ):
            assert (await changes.get()).leader is not None
            assert (await members.get()).kind == "joined"
            clock.advance(9.0)
            assert leadership.lost
            await nothing_more(changes)
            await nothing_more(members)
            clock.advance(0.99)
            await nothing_more(changes)
            await nothing_more(members)
            clock.advance(0.04)
            change = await changes.get()
            assert (change.leader, change.token, change.how) == (None, leadership.token, "lost")
            assert (await members.get()).kind == "lost"
            clock.advance(500.0)
            await nothing_more(changes)
            await nothing_more(members)


async def test_it_looks_every_check_seconds(world: str) -> None:
    """Whoever is not told, because hints are lost, looks after `check` seconds at the latest."""
    clock = FakeClock()
    async with AsyncCoordinator(backend=MemoryBackend(world, clock=clock)) as c:
        election = c.election("x", ttl=1000, check=10)
        async with election.observe() as changes:
            await changes.get()
            register: Any = changes._looker._register
            register.sessions.unwatch(changes._looker._watch)
            leadership = await election.lead().acquire()
            await nothing_more(changes)
            clock.advance(10.0)
            assert (await changes.get()).token == leadership.token
        await leadership.release()


@both_engines
async def test_nothing_is_invented_while_there_is_no_connection(world: str, engine: Engine) -> None:
    """Neither a leader nor a member is told to be lost because nobody can be asked; then everything is told."""
    async with AsyncCoordinator(f"memory://{world}") as a, AsyncCoordinator(f"memory://{world}", engine=engine) as b:
        first = await a.election("x").lead().acquire()
        membership = await a.group("x").join(member_id="m").acquire()
        async with (
            b.election("x", check=0.1).observe() as changes,
            b.group("x", check=0.1).watch() as members,
        ):
            await changes.get()
            await members.get()
            backend_of(b).lose_connection(reconnect=False)
            with pytest.raises(TimeoutError):
                await changes.get(0.3)
            await first.release()
            second = await a.election("x").lead().acquire()
            await membership.leave()
            await nothing_more(changes)
            await nothing_more(members)
            backend_of(b).reconnect()
            ends, begins = await changes.get(), await changes.get()
            assert (ends.leader, ends.token, ends.how) == (None, first.token, "released")
            assert begins.token == second.token
            assert (await members.get()).kind == "left"
            await second.release()


@contextmanager
def failing(c: AsyncCoordinator, error: Exception) -> Iterator[None]:
    """The store of a coordinator answers every question with an error."""
    holding: Any = c._holding()

    def fail(request: object, answer: Any) -> None:
        answer.set_exception(error)

    ask = holding.sessions.ask
    holding.sessions.ask = fail
    yield
    holding.sessions.ask = ask


async def test_an_error_ends_it(world: str) -> None:
    """What is no lack of a connection is raised behind what was seen before, to everybody, again and again."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        election = c.election("x", ttl=1, check=0.05)
        async with election.observe() as changes:
            with failing(c, StatementFailed("no", "42501")):
                await eventually_async(lambda: changes._looker.ended is not None, what="it has looked")
            assert (await changes.get()).leader is None
            for _ in range(2):
                with pytest.raises(StatementFailed, match="no"):
                    await changes.get()
                with pytest.raises(StatementFailed, match="no"):
                    await anext(aiter(changes))
            assert not changes.closed


async def test_an_error_on_the_way_in(world: str) -> None:
    """The first look is waited for: without a connection there is nobody to enter it for."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        with failing(c, Unavailable("away")):
            changes = c.election("x").observe()
            with pytest.raises(Unavailable, match="away"):
                async with changes:
                    raise AssertionError("entered")
        assert changes.closed
        with pytest.raises(CoordinatorClosed):
            await changes.get()


async def test_closed_on_the_way_in(world: str) -> None:
    async with AsyncCoordinator(f"memory://{world}") as c:
        cut = backend_of(c).partition()
        changes = c.election("x").observe()
        enters = asyncio.create_task(changes.__aenter__())
        await asyncio.sleep(0)
        await changes.close()
        cut.heal()
        with pytest.raises(CoordinatorClosed, match="closed"):
            await enters


async def test_several_take(world: str) -> None:
    """Each change goes to one; who is cancelled takes none with it; what reached nobody is the next again."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        async with c.group("x", ttl=100).watch() as changes:
            takers = [asyncio.create_task(changes.get()) for _ in range(6)]
            await asyncio.sleep(0)
            for taker in takers[:2]:
                taker.cancel()
            memberships = [await c.group("x", ttl=100).join(member_id=f"{n}").acquire() for n in range(4)]
            taken = [await taker for taker in takers[2:]]
            assert sorted(change.member.member_id for change in taken) == ["0", "1", "2", "3"]
            changes._put_back(taken[0])
            assert await changes.get() == taken[0]
            await nothing_more(changes)
            for membership in memberships:
                await membership.leave()
        changes._put_back(taken[0])
        with pytest.raises(CoordinatorClosed):
            await changes.get()


async def test_nothing_is_watched_any_more(world: str) -> None:
    """Observers that were left, failed on their way in, or were cancelled there are told nothing more."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        holding: Any = c._holding()
        port = holding.sessions
        watched: set[object] = set()
        watch, unwatch = port.watch, port.unwatch

        def begin(*arguments: Any) -> object:
            handle = watch(*arguments)
            watched.add(handle)
            return handle

        def end(handle: object) -> None:
            watched.remove(handle)
            unwatch(handle)

        port.watch, port.unwatch = begin, end
        async with c.election("x").observe(), c.group("x").watch():
            assert len(watched) == 2
        assert not watched
        with failing(c, Unavailable("away")), pytest.raises(Unavailable):
            await c.election("x").observe().__aenter__()
        cut = backend_of(c).partition()
        enters = asyncio.create_task(c.election("x").observe().__aenter__())
        await asyncio.sleep(0)
        assert len(watched) == 1
        enters.cancel()
        await asyncio.wait([enters])
        cut.heal()
        assert not watched


async def test_it_belongs_to_its_loop(world: str) -> None:
    async with AsyncCoordinator(f"memory://{world}") as c, c.election("x").observe() as changes:

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(changes.get())

        await asyncio.to_thread(elsewhere)


async def test_dropped(world: str) -> None:
    """An observer that was thrown away ends, with a warning; one whose coordinator was closed has ended already."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await c.election("x").observe().__aenter__()
            gc.collect()
            await eventually_async(lambda: len(asyncio.all_tasks()) <= 2, what="nobody looks any more")
        assert ["'x' open, 1 to take" in str(warning.message) for warning in caught] == [True]
        changes = await c.election("x").observe().__aenter__()
    looker = changes._looker
    await eventually_async(lambda: looker.ended is not None, what="it has ended with its coordinator")
    del changes
    gc.collect()


async def leading(election: AsyncElection, **how: Any) -> AsyncLeadership:
    return await election.lead(**how).acquire()


@both_engines
async def test_a_request_that_came_before_the_block(world: str, engine: Engine) -> None:
    """With `on_request="cancel"` a leadership that is entered after it was asked for ends at its first await."""
    async with AsyncCoordinator(f"memory://{world}", engine=engine) as c:
        election = c.election("x", ttl=60, interval=0.25)
        leadership = await leading(election, on_request="cancel")
        await election.request_release()
        await leadership.wait_release_requested()
        assert not leadership.lost, "outside of a block it is only reported"
        with pytest.raises(SessionLost, match="requested"):
            async with leadership:
                await asyncio.Event().wait()
        assert await election.leader() is None


@both_engines
async def test_a_body_that_ends_by_itself_when_it_is_asked(world: str, engine: Engine) -> None:
    """With `on_request="report"` nothing is raised, and the end is noted as the leader said."""
    async with AsyncCoordinator(f"memory://{world}", engine=engine) as c:
        election = c.election("x", ttl=60, interval=0.25)
        async with election.observe() as changes:
            await changes.get()
            async with election.lead() as leadership:
                await election.request_release()
                await leadership.wait_release_requested()
                await leadership.resign()
                await leadership.resign()
            assert [(await changes.get()).how for _ in range(2)] == [None, "resigned"]


async def test_others_cancel_goes_on(world: str) -> None:
    """A cancel from somebody else is not taken for ours, and ours is taken back."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        election = c.election("x", ttl=10)
        entered = asyncio.Event()

        async def lead() -> str:
            try:
                async with election.lead():
                    entered.set()
                    await asyncio.Event().wait()
            except SessionLost as lost:
                await asyncio.sleep(0)
                return lost.reason
            return ""

        task = asyncio.create_task(lead())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await election.leader() is None
        entered.clear()
        task = asyncio.create_task(lead())
        await entered.wait()
        assert await election.resign()
        assert "resign()" in await task
        assert not await election.resign()


async def test_a_resignation_that_loses_patience(world: str) -> None:
    """Whoever waits for a body to end may leave; the body ends when it ends, and gives back."""
    async with AsyncCoordinator(f"memory://{world}") as c:
        election = c.election("x", ttl=10)
        entered, may_end = asyncio.Event(), asyncio.Event()

        async def lead() -> None:
            async with election.lead():
                entered.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    await may_end.wait()

        task = asyncio.create_task(lead())
        await entered.wait()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(election.resign(), 0.05)
        assert await election.leader() is not None
        may_end.set()
        with pytest.raises(SessionLost):
            await task
        assert await election.leader() is None


async def test_what_they_say_of_themselves(world: str) -> None:
    async with AsyncCoordinator(f"memory://{world}") as c:
        election = c.election("x", ttl=10)
        assert repr(election) == "<AsyncElection 'x' not leading>"
        async with election.lead():
            assert repr(election) == "<AsyncElection 'x' leading>"
        await election.stop()
        assert repr(election) == "<AsyncElection 'x' stopped>"
        assert repr(election.observe()) == "<AsyncChanges 'x' new, 0 to take>"
        assert repr(election.lead()) == "<AsyncCandidacy 'x'>"
        assert repr(c.group("g")) == "<AsyncGroup 'g'>"
