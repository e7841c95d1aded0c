"""Cases of elections: who leads, and every change of that, seen by whoever looks."""

from __future__ import annotations

import asyncio

from ... import AcquireTimeout, CoordinatorClosed
from ...errors import SessionLost
from ...store import EndSession
from ...terms import LeaderChange
from ...watching import AsyncChanges
from ..leaks import eventually_async
from .desks import Desk
from .electing import election, leads
from .suite import Stage, case, raises


async def told(changes: AsyncChanges[LeaderChange], count: int = 1) -> list[tuple[str | None, int | None, str | None]]:
    """The next changes: who leads, in which term, how it has ended."""
    found = [await changes.get() for _ in range(count)]
    return [(change.leader.identity if change.leader else None, change.token, change.how) for change in found]


@case("sessions")
async def the_leader_is_known(stage: Stage) -> None:
    """Everybody may ask who leads, in which term, since when, and what it says of itself."""
    a, b = await stage.open(name="the leader"), await stage.open()
    assert await election(b).leader() is None
    async with election(a).lead(data={"address": ["h", 1]}) as leadership:
        leader, same = await election(b).leader(), await election(a).leader()
        assert leader is not None
        assert same is not None
        assert (leader.identity, leader.application, leader.token) == (a.identity, "the leader", leadership.token)
        assert (leader.data, leader.since) == ({"address": ["h", 1]}, leadership.since)
        assert not leader.mine
        assert same.mine
        with raises(AcquireTimeout, "the leadership of 'election'", "the leader"):
            await election(b).lead(timeout=0.01).acquire()
    assert await election(b).leader() is None


@case("sessions")
async def all_changes_are_seen(stage: Stage) -> None:
    """Who observes is told the present state, and then every change in order, each once: candidates and others."""
    a, b, c = await stage.open(), await stage.open(), await stage.open()
    async with election(a).observe() as by_candidate, election(c).observe() as by_other:
        for changes in (by_candidate, by_other):
            assert await told(changes) == [(None, None, None)]
        first = await leads(a)
        await first.release()
        second = await leads(b)
        await second.resign()
        third = await leads(a, data="third")
        await election(c).revoke()
        for changes in (by_candidate, by_other):
            assert await told(changes, 6) == [
                (a.identity, first.token, None),
                (None, first.token, "released"),
                (b.identity, second.token, None),
                (None, second.token, "resigned"),
                (a.identity, third.token, None),
                (None, third.token, "revoked"),
            ]
    await third.wait_lost()
    fourth = await leads(b, data=[4])
    async with election(c).observe() as changes:
        change = await changes.get()
        assert change.leader is not None
        assert (change.leader.data, change.at, change.leader.mine) == ([4], fourth.since, False)
        with raises(TimeoutError, "'election'"):
            await changes.get(0)
    await fourth.release()


@case("sessions")
async def a_slow_observer_misses_nothing(stage: Stage) -> None:
    """Who takes nothing for a while gets every change afterwards, in its order."""
    a, b = await stage.open(), await stage.open()
    tokens: list[int] = []
    async with election(b).observe() as changes:
        for _ in range(30):
            leadership = await leads(a)
            tokens.append(leadership.token)
            await leadership.release()
        assert await told(changes) == [(None, None, None)]
        for token in tokens:
            assert await told(changes, 2) == [(a.identity, token, None), (None, token, "released")]


@case("sessions")
async def a_lost_leader_is_seen(stage: Stage) -> None:
    """A leader whose session is over leads no more: observers are told, and who waits leads."""
    a, b = await stage.open(), await stage.open()
    first = await leads(a)
    async with election(b).observe() as changes:
        assert await told(changes) == [(a.identity, first.token, None)]
        assert await Desk(stage, b).ask(EndSession(first.session_id))
        second = await election(b).lead().acquire()
        assert await told(changes, 2) == [(None, first.token, "lost"), (b.identity, second.token, None)]
    await first.wait_lost()
    with raises(SessionLost, "'election'"):
        first.check()
    assert not second.lost
    await second.release()


@case("sessions", "lose")
async def a_lost_connection_loses_nothing(stage: Stage) -> None:
    """A leader that connects again leads on, and observers are told of no change, but of what happened meanwhile."""
    a, b = await stage.open(), await stage.open()
    leadership = await leads(a)
    async with election(b).observe() as changes:
        assert await told(changes) == [(a.identity, leadership.token, None)]
        await stage.lose(a)
        await stage.lose(b)
        assert not leadership.lost
        await leadership.release()
        assert await told(changes) == [(None, leadership.token, "released")]


@case("sessions")
async def observers_come_to_an_end(stage: Stage) -> None:
    """Who observes and closes, or is closed with its coordinator, comes to an end; who is cancelled takes nothing."""
    a, b = await stage.open(), await stage.open()
    changes = election(a).observe()
    with raises(RuntimeError):
        await changes.get()
    async with changes:
        await changes.get()
        gets = await stage.waiting(changes.get())
        gets.cancel()
        await asyncio.wait([gets])

        seen = 0

        async def follow() -> None:
            nonlocal seen
            async for _ in changes:
                seen += 1

        follows = await stage.waiting(follow())
        await (await leads(b)).release()
        await eventually_async(lambda: seen == 2, what="the beginning and the end of a term are told")
    await follows
    assert changes.closed
    with raises(CoordinatorClosed):
        await changes.get()
    with raises(RuntimeError):
        async with changes:
            raise AssertionError("entered twice")
    with raises(CoordinatorClosed):
        async with election(a).observe() as others:
            await others.get()
            gets = await stage.waiting(others.get())
            await a.close()
            await gets
