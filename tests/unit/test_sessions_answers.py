"""Answers about names that are lost, late, or say what nobody wants to hear. No real time passes."""

from __future__ import annotations

import asyncio

import pytest

from pgconcert.errors import StatementFailed, Unavailable
from pgconcert.events import NameGiveFailed
from pgconcert.sessions.timing import timing
from pgconcert.store import (
    Give,
    Own,
    RequestRelease,
    Revoke,
    Subject,
    Take,
)
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import House, left, left_over, moved_on, opened, pass_time

JOB = Subject("job", "", "n")
ELECTION = Subject("election", "", "n")


async def test_a_take_without_an_answer_is_asked_again(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    await (await house.acquire("first")).release()
    house.store.keeps = {Take}
    asked = house.ask()
    await turns()
    house.store.lose()
    assert (await house.entry()).session is not None  # taken, and nobody knows
    house.store.keeps.clear()
    await pass_time(clock, 0.25)
    assert asked.held
    assert asked.claim.token == (await house.entry()).token
    await asked.given()
    await turns()
    assert not left_over(house)
    await left(house)


async def test_a_take_without_an_answer_that_nobody_wants_is_given_back(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    await (await house.acquire("first")).release()
    house.store.keeps = {Take}
    asked = house.ask()
    await turns()
    asked.withdraw()
    house.store.lose()
    house.store.keeps.clear()
    await turns()
    assert await house.holder() is None
    assert not left_over(house)
    theirs = other.ask(wait=False)
    await turns()
    assert theirs.held
    theirs.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_take_without_an_answer_for_another_session_is_given_back_first(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    await (await house.acquire("first")).release()
    house.store.keeps = {Take}
    asked, behind = house.ask(), house.ask(timing=timing(20.0))
    await turns()
    asked.withdraw()
    house.store.lose()
    house.store.keeps.clear()
    await pass_time(clock, 1.0)
    assert behind.held
    behind.give()
    await turns()
    assert not left_over(house)
    await left(house)


async def test_a_take_answered_after_everybody_left_is_given_back(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    house.store.keeps = {Take}
    asked = house.ask()
    await turns()
    asked.withdraw()
    assert await house.holder() is not None
    house.store.deliver()
    await turns()
    assert await house.holder() is None
    assert not left_over(house)
    await left(house)


async def test_a_give_without_an_answer_is_asked_again_without_alarm(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world, messenger=False)
    hold = await house.acquire()
    theirs = other.ask()
    await turns(20)
    house.store.keeps = {Give}
    released = asyncio.ensure_future(hold.release())
    await turns()
    assert await house.holder() is None
    house.store.lose()
    await turns()
    assert not released.done()
    house.store.keeps.clear()
    await pass_time(clock, 0.25)
    await released
    assert not hold.lost
    assert house.store.count(Give) == 2
    await pass_time(clock, 5.0)
    assert theirs.held
    theirs.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_whoever_waits_is_woken_also_when_the_answer_to_the_give_was_lost(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    theirs = other.ask(timing=timing(1000.0))
    await turns(20)
    house.store.keeps = {Give}
    released = asyncio.ensure_future(hold.release())
    await turns()
    house.store.lose()
    house.store.keeps.clear()
    assert not theirs.granted
    await pass_time(clock, 0.25)
    await released
    await turns()
    assert theirs.held
    theirs.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_give_while_the_connection_is_down_goes_on_until_it_is_heard(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.lose_connection(reconnect=False)
    released = asyncio.ensure_future(hold.release())
    await pass_time(clock, 2.0)
    tries = house.ask(wait=False)
    await pass_time(clock, 3.5)
    assert tries.outcome() is Unavailable
    assert not released.done()
    assert somebody_has_something(house)
    house.backend.reconnect()
    await pass_time(clock, 3.25)
    await released
    assert await house.holder() is None
    assert not hold.lost
    assert not left_over(house)
    await left(house)


def somebody_has_something(house: House) -> bool:
    """Whether somebody still has something in the world."""
    return not house.backend.world.empty


async def test_a_give_that_is_never_heard_ends_with_its_session(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.lose_connection(reconnect=False)
    released = asyncio.ensure_future(hold.release())
    await pass_time(clock, 8.75)
    assert not released.done()
    await pass_time(clock, 0.5)
    await released  # there is nothing left that it could do: the time of the session frees it
    assert not left_over(house)
    house.backend.reconnect()
    await left(house)


async def test_a_give_that_the_server_refuses_is_told_and_not_asked_again(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.keeps = {Give}
    released = asyncio.ensure_future(hold.release())
    await turns()
    ((_, _, answer),) = house.store.kept
    house.store.kept.clear()
    answer.set_exception(StatementFailed("permission denied", "42501"))
    await released
    assert house.store.count(Give) == 1
    assert len(house.told(NameGiveFailed)) == 1
    house.store.keeps.clear()
    await left(house)


async def test_release_of_what_was_revoked_says_that_it_was_not_ours(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold = await house.acquire()
    assert await other.look(Revoke(JOB))
    assert not hold.lost
    with pytest.raises(Exception, match="not ours any more"):
        await hold.release()
    assert hold.lost
    assert not left_over(house)
    await left(house, other)


async def test_revoked_by_ourselves_the_holder_here_learns_it_without_a_notification(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world, messenger=False)
    hold, behind = await house.acquire(), house.ask()
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    house.engine.ask(Revoke(JOB), answer)
    assert await answer
    await turns(20)
    assert hold.lost
    assert behind.held
    behind.give()
    await left(house)


async def test_a_revocation_is_learned_at_once_by_who_listens(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    handle = house.engine.watch(Subject("job", "", "another"), lambda: None)
    await turns(20)
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    other.engine.ask(RequestRelease(JOB), answer)
    assert await answer
    await turns(20)
    assert hold.release_requested
    assert not hold.lost
    house.engine.unwatch(handle)
    await hold.release()
    await left(house, other)


# carried out late


async def stalled_take(house: House) -> None:
    """Somebody has waited with a Take that has not reached the store, and nobody knows."""
    house.store.deaf = True
    asked = house.ask()
    await turns()
    asked.withdraw()
    house.store.deaf = False
    house.store.lose()
    await turns()
    assert [name.subject.name for name in left_over(house)["names"]] == ["keeps"]


async def test_a_take_that_is_carried_out_late_is_given_back_by_the_next_heartbeat(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    keeps = await house.acquire("keeps")
    await stalled_take(house)
    house.store.arrive_late()
    assert await house.holder() is not None
    await pass_time(clock, 2.5)
    assert await house.holder() is None
    assert not keeps.lost
    reads = house.store.count(Own)
    await pass_time(clock, 10.0)
    assert house.store.count(Own) >= reads + 2  # it may have been another one that comes later still
    reads = house.store.count(Own)
    await pass_time(clock, 30.0)
    assert house.store.count(Own) == reads
    await keeps.release()
    await left(house)


async def test_a_take_that_is_carried_out_late_serves_whoever_waits_now(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    keeps, hold = await house.acquire("keeps"), await other.acquire()
    await stalled_take(house)
    waits = house.ask(timing=timing(10.0, check=1000.0))
    await turns(20)
    house.store.deaf = True  # so that it does not come for what is free
    await hold.release()
    await turns(20)
    house.store.deaf = False
    stalled = house.store.arrive_late()
    assert any(isinstance(request, Take) for request in stalled)
    house.store.lose()
    await pass_time(clock, 3.0)
    assert waits.held
    waits.give()
    await keeps.release()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_take_that_is_carried_out_late_for_another_session_than_that_of_who_waits(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    keeps = await house.acquire("keeps")
    await stalled_take(house)
    house.store.arrive_late()
    waits = house.ask(timing=timing(20.0))
    await turns(20)
    assert not waits.granted
    await pass_time(clock, 3.0)
    assert waits.held
    waits.give()
    await keeps.release()
    await moved_on([house], clock)
    await left(house)


async def test_whoever_has_an_older_token_than_the_store_has_lost_it(unique: str) -> None:
    """The Take that came late has drawn another: what the older one guards is refused from then on."""
    world, clock = still_world(unique)
    house = await opened(world)
    keeps = await house.acquire("keeps")
    await stalled_take(house)
    hold = await house.acquire()
    house.store.arrive_late()
    await pass_time(clock, 2.5)
    assert hold.lost
    assert await house.holder() is None
    assert not keeps.lost
    await keeps.release()
    await left(house)


async def test_a_give_that_is_carried_out_late_takes_nothing_from_the_next_one(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    keeps, hold = await house.acquire("keeps"), await house.acquire()
    house.store.deaf = True
    released = asyncio.ensure_future(hold.release())
    await turns()
    house.store.deaf = False
    house.store.lose()
    await pass_time(clock, 0.25)
    await released
    again = await house.acquire()
    assert [type(request) for request in house.store.arrive_late()] == [Give]
    assert (await house.entry()).token == again.token
    await pass_time(clock, 5.0)
    assert not again.lost
    await again.release()
    await keeps.release()
    await left(house)


async def test_looking_whether_it_is_ours_harms_nothing_when_it_comes_late(unique: str) -> None:
    """Whoever gives back what it perhaps has does so by a token."""
    world, clock = still_world(unique)
    house = await opened(world)
    keeps = await house.acquire("keeps")
    house.store.keeps = {Take}
    asked = house.ask()
    await turns()
    asked.withdraw()
    house.store.deaf = True
    house.store.lose("the answer is lost, and the connection dies")
    await turns()
    house.store.keeps.clear()
    house.store.deaf = False
    house.store.lose()
    await pass_time(clock, 0.25)
    assert await house.holder() is None
    again = await house.acquire()
    house.store.arrive_late()
    assert (await house.entry()).token == again.token
    await again.release()
    await keeps.release()
    await left(house)
