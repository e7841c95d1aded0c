"""Cases of elections: one leader, terms, who sees them, and all the ways in which one ends."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

from ... import AsyncCoordinator, ConfigurationError, KeyInvalid, WouldDeadlock
from ...election import AsyncElection, AsyncLeadership
from ...errors import SessionLost, Stopped
from .suite import Stage, cancelled_everywhere, case, raises, turns

QUICK: Any = {"ttl": 60.0, "interval": 0.5, "check": 1.0}
"""Times with which a leader learns soon of what others want, and is not lost because a machine is busy."""


def election(coordinator: AsyncCoordinator, name: str = "election") -> AsyncElection:
    """An election whose leaders learn soon."""
    return coordinator.election(name, **QUICK)


async def leads(coordinator: AsyncCoordinator, **how: Any) -> AsyncLeadership:
    """A leadership whose end nobody is cancelled for."""
    leadership = await election(coordinator).lead(on_lost="report", **how).try_acquire()
    assert leadership is not None, "nobody leads, and try_acquire() gave None"
    return leadership


@case("sessions")
async def one_leads(stage: Stage) -> None:
    """At most one of all candidates leads; who waits leads at once when the leader leaves the block."""
    a, b = await stage.open(), await stage.open()
    async with election(a).lead() as leadership:
        assert leadership.key == "election"
        assert leadership.identity == a.identity
        assert await election(b).lead().try_acquire() is None
        assert await election(a).lead().try_acquire() is None
        waits = await stage.waiting(election(b).lead().acquire())
        token = leadership.token
    other = await waits
    assert other.token > token
    await other.release()
    with raises(WouldDeadlock, "'election'"):
        candidacy = election(a).lead()
        async with candidacy, candidacy:
            raise AssertionError("it leads twice")


@case("sessions")
async def never_two_leaders(stage: Stage) -> None:
    """However many candidates there are, at most one leads at a time, each gets its turn, and tokens grow."""
    tokens: list[int] = []
    inside = 0

    async def work(c: AsyncCoordinator) -> None:
        nonlocal inside
        for _ in range(3):
            async with election(c).lead() as leadership:
                inside += 1
                assert inside == 1
                tokens.append(leadership.token)
                await turns(3)
                inside -= 1

    async with asyncio.TaskGroup() as tasks:
        for coordinator in (await stage.open(), await stage.open(), await stage.open()):
            tasks.create_task(work(coordinator))
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 9


@case("sessions")
async def a_resignation_hands_over(stage: Stage) -> None:
    """Who resigns hands over to whoever waits, by the leadership or by the election that it was got with."""
    a, b = await stage.open(), await stage.open()
    mine = election(a)
    assert not await mine.resign()
    for by_election in (False, True):
        leadership = await mine.lead().acquire()
        waits = await stage.waiting(election(b).lead().acquire())
        if by_election:
            assert await mine.resign()
        else:
            await leadership.resign()
        other = await waits
        assert leadership.released
        assert not leadership.lost
        assert not await mine.resign()
        await other.release()


@case("sessions")
async def a_body_ends_before_the_hand_over(stage: Stage) -> None:
    """An election that resigns cancels the body of its leader first, and nobody else leads until that has ended."""
    a, b = await stage.open(), await stage.open()
    mine = election(a)
    entered, ending, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with mine.lead():
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                ending.set()
                await may_end.wait()

    task = asyncio.create_task(work())
    await entered.wait()
    resigns = asyncio.create_task(mine.resign())
    await ending.wait()
    waits = await stage.waiting(election(b).lead().acquire())
    assert not resigns.done()
    may_end.set()
    assert await resigns
    with raises(SessionLost, "resign()"):
        await task
    other = await waits
    await other.release()
    async with mine.lead():
        assert await mine.resign()  # of its own body, which goes on
        await turns(3)
        assert await election(b).leader() is None


@case("sessions")
async def a_release_may_be_requested(stage: Stage) -> None:
    """A leader that is asked to give way learns of it, and leads until it does."""
    a, b = await stage.open(), await stage.open()
    assert not await election(b).request_release()
    leadership = await leads(a)
    requested = await stage.waiting(leadership.wait_release_requested())
    assert await election(b).request_release()
    await requested
    assert leadership.release_requested
    assert not leadership.lost
    await leadership.release()


@case("sessions")
async def a_request_may_end_the_body(stage: Stage) -> None:
    """With ``on_request="cancel"`` a request ends the body of the block, which then raises ``SessionLost``."""
    a, b = await stage.open(), await stage.open()
    entered = asyncio.Event()

    async def work() -> None:
        async with election(a).lead(on_request="cancel"):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    async with election(b).observe() as changes:
        now = await changes.get()
        assert now.leader is not None
        assert now.leader.identity == a.identity
        assert await election(b).request_release()
        with raises(SessionLost, "requested"):
            await task
        end = await changes.get()
        assert (end.leader, end.token, end.how) == (None, now.token, "resigned")


@case("sessions")
async def the_preferred_come_first(stage: Stage) -> None:
    """A leader is asked to give way to a preferred candidate that waits, which then leads before those that came
    sooner; a preferred leader is not asked."""
    a, b, c = await stage.open(), await stage.open(), await stage.open()
    leader = await leads(a)
    sooner = await stage.waiting(election(b).lead().acquire())
    assert not leader.release_requested
    preferred = asyncio.create_task(election(c).lead(preferred=True).acquire())
    await leader.wait_release_requested()
    await leader.resign()
    next_leader = await preferred
    other = await stage.waiting(election(a).lead(preferred=True).acquire())
    assert not next_leader.release_requested
    assert not sooner.done()
    await next_leader.release()
    await (await other).release()
    await (await sooner).release()


@case("sessions")
async def revoke_takes_it_away(stage: Stage) -> None:
    """A leader that is revoked loses the leadership, and its block is cancelled; who waits leads."""
    a, b = await stage.open(), await stage.open()
    assert not await election(b).revoke()
    entered = asyncio.Event()

    async def work() -> None:
        async with election(a).lead():
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    waits = await stage.waiting(election(b).lead().acquire())
    assert await election(b).revoke()
    leadership = await waits
    with raises(SessionLost, "revoked"):
        await task
    assert not leadership.lost
    await leadership.release()


@case("sessions")
async def stop_ends_everything(stage: Stage) -> None:
    """An election that is stopped is no candidate any more, whatever it was doing; others go on."""
    a, b = await stage.open(), await stage.open()
    mine = election(a)
    bare = await mine.lead().acquire()
    waits = await stage.waiting(mine.lead().acquire())
    await mine.stop()
    await mine.stop()
    assert bare.lost
    with raises(Stopped):
        await waits
    with raises(Stopped):
        await mine.lead().try_acquire()
    with raises(Stopped):
        async with mine.lead():
            raise AssertionError("it leads after stop()")
    async with election(b).lead():
        assert await mine.leader() is not None
    async with election(a).lead():
        pass


@case("sessions")
async def whoever_is_cancelled_leaves_nothing(stage: Stage) -> None:
    """A candidate, or an observer on its way in, that is cancelled at any instant leaves nothing behind."""
    a, b = await stage.open(), await stage.open()

    async def work() -> None:
        await (await election(a).lead().acquire()).release()

    async def observe() -> None:
        async with election(a).observe() as changes:
            await changes.get()

    async for _ in cancelled_everywhere(work):
        async with election(b).lead():
            pass
    async for _ in cancelled_everywhere(observe):
        pass


@case("sessions")
async def what_is_thrown_away_ends(stage: Stage) -> None:
    """A leadership and an observer that are thrown away are given back and closed, and warned of."""
    c = await stage.open()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await election(c).lead().acquire()
        gc.collect()
        await (await election(c).lead().acquire()).release()
        await election(c).observe().__aenter__()
        gc.collect()
        await turns(3)
    assert [warning.category for warning in caught] == [ResourceWarning, ResourceWarning]


@case("sessions")
async def what_is_wrong_is_said_at_once(stage: Stage) -> None:
    """Names and settings are checked before anything is sent."""
    c = await stage.open()
    for name in ("", "x" * 1001, "a\0b", "\ud800", 7, None):
        with raises(KeyInvalid):
            c.election(name)  # type: ignore[arg-type]
    wrong: Any
    for wrong in (
        {"preferred": 1},
        {"timeout": -1},
        {"data": object()},
        {"on_lost": "raise"},
        {"on_request": "raise"},
        {"on_request": "cancel", "on_lost": "report"},
    ):
        with raises(ConfigurationError):
            c.election("name").lead(**wrong)
    odd = c.election("a 'name', \\ {\"ü\"}")
    async with odd.lead() as leadership:
        assert leadership.key == odd.name
        assert await c.election("a").leader() is None
