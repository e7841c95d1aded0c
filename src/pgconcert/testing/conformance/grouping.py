"""Cases of groups: who is a member, with which capabilities, who sees it, and how a membership ends."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

from ... import (
    AsyncCoordinator,
    ConfigurationError,
    GroupNotEmpty,
    KeyInvalid,
    MemberExists,
    NotHeld,
    SessionLost,
    WouldDeadlock,
)
from ...groups import AsyncGroup, AsyncMembership
from ...members import MemberChange
from ...store import EndSession
from ...watching import AsyncChanges
from .desks import Desk
from .suite import Stage, cancelled_everywhere, case, raises, turns

QUICK: Any = {"ttl": 60.0, "interval": 0.5, "check": 1.0}
"""Times with which a member learns soon that it was lost, and is not because a machine is busy."""


def group(coordinator: AsyncCoordinator, name: str = "group") -> AsyncGroup:
    """A group whose members learn soon."""
    return coordinator.group(name, **QUICK)


async def joined(coordinator: AsyncCoordinator, member_id: str | None = None, **how: Any) -> AsyncMembership:
    """A membership whose end nobody is cancelled for."""
    return await group(coordinator).join(member_id=member_id, on_lost="report", **how).acquire()


async def told(changes: AsyncChanges[MemberChange], count: int = 1) -> list[tuple[str, str, Any]]:
    """The next changes: what has happened, to whom, with which capabilities."""
    found = [await changes.get() for _ in range(count)]
    return [(change.kind, change.member.member_id, change.member.capabilities) for change in found]


@case("sessions")
async def groups_come_and_go(stage: Stage) -> None:
    """A group is made once and deleted once, and listed meanwhile; one that has members is not deleted."""
    a, b = await stage.open(), await stage.open()
    assert await a.groups() == []
    assert not await group(a).exists()
    assert not await group(a).delete()
    assert await group(a).create()
    assert not await group(b).create()
    assert await group(b, "Group").create()
    assert await b.groups() == ["Group", "group"]
    membership = await joined(b)
    with raises(GroupNotEmpty, "'group'"):
        await group(a).delete()
    await membership.leave()
    assert await group(a).exists()
    assert await group(a).delete()
    assert not await group(b).delete()
    assert not await group(b).exists()
    assert await b.groups() == ["Group"]


@case("sessions")
async def joining_makes_the_group(stage: Stage) -> None:
    """Who joins a group that is not there makes it; it stays when its last member has left. Those of another namespace
    are others."""
    a, b = await stage.open(), await stage.open(namespace=f"conformance {stage.number()}")
    async with group(a).join():
        assert await group(a).exists()
        assert not await group(b).exists()
        assert await b.groups() == []
        assert await group(b).members() == ()
    assert await a.groups() == ["group"]


@case("sessions")
async def members_are_seen(stage: Stage) -> None:
    """Everybody sees who is a member, since when, where, and with which capabilities; in the order of their ids."""
    a, b = await stage.open(name="worker"), await stage.open()
    assert await group(b).members() == ()
    one = await joined(a, "m 2", capabilities={"gpu": [1, None, "ü"]})
    two = await joined(a, "m 1")
    three = await joined(b, "m 3", capabilities=False)
    members = await group(b).members()
    assert [member.member_id for member in members] == ["m 1", "m 2", "m 3"]
    assert [member.capabilities for member in members] == [None, {"gpu": [1, None, "ü"]}, False]
    assert [member.mine for member in members] == [False, False, True]
    first = members[1]
    assert (first.identity, first.application, first.token) == (a.identity, "worker", one.token)
    assert first.since == one.since
    assert (one.key, one.member_id, one.group) == ("m 2", "m 2", "group")
    assert one.capabilities == {"gpu": [1, None, "ü"]}
    for membership in (one, two, three):
        await membership.leave()
        assert membership.released
    assert await group(b).members() == ()


@case("sessions")
async def members_without_an_id_get_one(stage: Stage) -> None:
    """Who joins without an id gets one of its own; one process may be a member as often as it likes."""
    a = await stage.open()
    async with group(a).join() as one, group(a).join() as other:
        assert one.member_id != other.member_id
        assert {member.member_id for member in await group(a).members()} == {one.member_id, other.member_id}


@case("sessions")
async def an_id_is_taken_once(stage: Stage) -> None:
    """An id that a living member has is refused at once, in the same process too; in another group it is free."""
    a, b = await stage.open(name="the first"), await stage.open()
    membership = await joined(a, "m")
    for coordinator in (a, b):
        with raises(MemberExists, "'group'", "'m'", "the first"):
            await joined(coordinator, "m")
        assert await group(coordinator).join(member_id="m").try_acquire() is None
        async with group(coordinator, "other").join(member_id="m"):
            pass
    joining = group(a).join(member_id="n")
    async with joining:
        with raises(WouldDeadlock):
            async with joining:
                raise AssertionError("it has joined twice")
        with raises(MemberExists):
            await joining.acquire()
    token = membership.token
    await membership.leave()
    again = await joined(b, "m")
    assert again.token > token
    await again.leave()


@case("sessions")
async def capabilities_may_change(stage: Stage) -> None:
    """A member may show other capabilities; nobody else may, nor who has left or was lost."""
    a, b = await stage.open(), await stage.open()
    membership = await joined(a, "m", capabilities=1)
    await membership.update_capabilities({"free": 3})
    assert membership.capabilities == {"free": 3}
    (member,) = await group(b).members()
    assert member.capabilities == {"free": 3}
    with raises(ConfigurationError, "capabilities"):
        await membership.update_capabilities(object())
    await membership.update_capabilities(None)
    (member,) = await group(b).members()
    assert member.capabilities is None
    await membership.leave()
    with raises(NotHeld, "'m'"):
        await membership.update_capabilities(1)
    other = await joined(a, "m")
    assert await Desk(stage, b).ask(EndSession(other.session_id))
    with raises(SessionLost, "'m'"):
        await other.update_capabilities(1)
    await other.wait_lost()
    with raises(SessionLost, "'m'"):
        await other.update_capabilities(1)


@case("sessions")
async def all_changes_are_seen(stage: Stage) -> None:
    """Who watches is told who is there, and then who joins, changes, leaves or is lost, in order."""
    a, b = await stage.open(), await stage.open()
    one = await joined(a, "one", capabilities=1)
    async with group(b).watch() as changes, group(a).watch() as by_member:
        for watch in (changes, by_member):
            assert await told(watch) == [("joined", "one", 1)]
        two = await joined(b, "two")
        for watch in (changes, by_member):
            assert await told(watch) == [("joined", "two", None)]
        await two.update_capabilities([2])
        for watch in (changes, by_member):
            assert await told(watch) == [("updated", "two", [2])]
        await two.leave()
        for watch in (changes, by_member):
            assert await told(watch) == [("left", "two", [2])]
        assert await Desk(stage, b).ask(EndSession(one.session_id))
        third = await joined(b, "three")
        for watch in (changes, by_member):
            assert sorted(await told(watch, 2)) == [("joined", "three", None), ("lost", "one", 1)]
        with raises(TimeoutError, "'group'"):
            await changes.get(0)
    await one.wait_lost()
    await third.leave()


@case("sessions")
async def a_quick_return_is_seen(stage: Stage) -> None:
    """A member that leaves and joins again with its id is told as both, however quick it was."""
    a, b = await stage.open(), await stage.open()
    membership = await joined(a, "m", capabilities=0)
    async with group(b).watch() as changes:
        assert await told(changes) == [("joined", "m", 0)]
        for round_ in range(1, 6):
            await membership.leave()
            membership = await joined(a, "m", capabilities=round_)
            assert await told(changes, 2) == [("left", "m", round_ - 1), ("joined", "m", round_)]
    await membership.leave()


@case("sessions")
async def loss_cancels_the_body(stage: Stage) -> None:
    """When a membership is lost the body of its block is cancelled, the block raises ``SessionLost``, and the id is
    free."""
    a, b = await stage.open(), await stage.open()
    entered: asyncio.Future[AsyncMembership] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        async with group(a).join(member_id="m") as membership:
            entered.set_result(membership)
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    membership = await entered
    assert await Desk(stage, b).ask(EndSession(membership.session_id))
    async with group(b).join(member_id="m") as other:
        with raises(SessionLost, "'m'"):
            await task
        assert other.token > membership.token


@case("sessions")
async def closing_leaves(stage: Stage) -> None:
    """A coordinator that is closed leaves its groups."""
    a, b = await stage.open(), await stage.open()
    membership = await joined(a, "m")
    async with group(b).watch() as changes:
        assert await told(changes) == [("joined", "m", None)]
        await a.close()
        ((kind, member, _),) = await told(changes)
        assert (kind, member) == ("left", "m")
    assert membership.lost
    async with group(b).join(member_id="m"):
        pass


@case("sessions", "lose")
async def a_lost_connection_loses_nothing(stage: Stage) -> None:
    """A member that connects again is one still, and who watches is told of no change, but of what happened since."""
    a, b = await stage.open(), await stage.open()
    membership = await joined(a, "m")
    async with group(b).watch() as changes:
        assert await told(changes) == [("joined", "m", None)]
        await stage.lose(a)
        await stage.lose(b)
        assert not membership.lost
        await membership.update_capabilities(1)
        assert await told(changes) == [("updated", "m", 1)]
        await membership.leave()
        assert await told(changes) == [("left", "m", 1)]


@case("sessions")
async def whoever_is_cancelled_leaves_nothing(stage: Stage) -> None:
    """Who joins and is cancelled at any instant is no member."""
    a, b = await stage.open(), await stage.open()

    async def work() -> None:
        await (await group(a).join(member_id="m").acquire()).leave()

    async for _ in cancelled_everywhere(work):

        async def free() -> None:
            while (membership := await group(b).join(member_id="m").try_acquire()) is None:
                await turns(1)
            await membership.leave()

        await free()


@case("sessions")
async def a_dropped_membership_is_left(stage: Stage) -> None:
    """A membership that is thrown away is left, and warned of."""
    c = await stage.open()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with group(c).watch() as changes:
            membership = await group(c).join(member_id="m").acquire()
            assert await told(changes) == [("joined", "m", None)]
            del membership
            gc.collect()
            assert await told(changes) == [("left", "m", None)]
    assert [warning.category for warning in caught] == [ResourceWarning]


@case("sessions")
async def what_is_wrong_is_said_at_once(stage: Stage) -> None:
    """Names, ids and capabilities are checked before anything is sent."""
    c = await stage.open()
    for name in ("", "x" * 1001, "a\0b", "\ud800", 7, None):
        with raises(KeyInvalid):
            c.group(name)  # type: ignore[arg-type]
    wrong: Any
    for wrong in ("", "x" * 201, "a\0b", "\ud800", 7):
        with raises(KeyInvalid):
            group(c).join(member_id=wrong)
    for wrong in ({"capabilities": object()}, {"capabilities": float("nan")}, {"on_lost": "raise"}):
        with raises(ConfigurationError):
            group(c).join(**wrong)
    odd = "a 'name', \\ {\"ü\"}"
    async with c.group(odd).join(member_id=odd) as membership:
        assert (membership.group, membership.member_id) == (odd, odd)
        assert await c.groups() == [odd]
        assert await c.group("a").members() == ()
