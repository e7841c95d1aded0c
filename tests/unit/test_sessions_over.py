"""Sessions that are over while names hang on them, and marks of those who have left. No real time passes."""

from __future__ import annotations

from pgconcert.events import SessionLost
from pgconcert.sessions.timing import timing
from pgconcert.store import (
    EndSession,
    StartSession,
    Subject,
    Take,
    Unmark,
)
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import left, left_over, moved_on, opened, pass_time

JOB = Subject("job", "", "n")
ELECTION = Subject("election", "", "n")


async def test_all_names_of_a_session_that_is_over_are_lost_and_wanted_again(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    holds = [await house.acquire(f"n{number}") for number in range(100)]
    behind = [house.ask(f"n{number}") for number in range(100)]
    house.backend.expire_session()
    await pass_time(clock, 2.5)
    assert all(hold.lost for hold in holds)
    assert all(one.held for one in behind)
    assert house.store.count(StartSession) == 2
    (lost,) = house.told(SessionLost)
    assert isinstance(lost, SessionLost)
    assert lost.holds == 100
    for one in behind:
        one.give()
    await turns()
    assert not left_over(house)
    await left(house)


async def test_who_waits_with_a_session_that_is_over_waits_with_the_next(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    waits = house.ask()
    await turns(20)
    house.backend.expire_session()
    await pass_time(clock, 3.0)
    assert house.store.count(StartSession) == 2
    assert await house.marks() == 1
    await hold.release()
    await turns(20)
    assert waits.held
    waits.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_take_that_finds_its_session_over_starts_another(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.expire_session()
    asked = house.ask("other")
    await turns()
    assert asked.held
    assert hold.lost
    asked.give()
    await moved_on([house], clock)
    await left(house)


async def test_taken_for_a_session_that_is_trusted_no_longer_is_not_granted(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    await (await house.acquire("first")).release()
    house.store.keeps = {Take}
    asked = house.ask()
    await turns()
    clock.advance(9.5)
    house.store.keeps.clear()
    house.store.deliver()
    assert not asked.granted
    assert house.store.count(EndSession) == 0
    await pass_time(clock, 1.0, 0.125)
    assert house.store.count(EndSession) == 1
    assert asked.held
    asked.give()
    await moved_on([house], clock)
    await left(house)


async def test_the_mark_of_a_preferred_who_has_left_keeps_nobody_away(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = other.ask(kind="election")
    preferred = house.ask(kind="election", preferred=True)
    await turns(20)
    waits = other.ask(kind="election", timing=timing(1000.0))
    house.store.keeps = {Unmark}
    preferred.withdraw()
    await turns()
    house.store.lose()  # carried out or not: it is asked again
    house.store.keeps.clear()
    await pass_time(clock, 0.25)
    assert house.store.count(Unmark) == 2
    assert await house.marks(kind="election") <= 1
    hold.give()
    await pass_time(clock, 1.0)
    assert waits.held
    waits.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_who_was_kept_away_by_a_preferred_is_woken_when_that_leaves(unique: str) -> None:
    world, clock = still_world(unique)
    houses = [await opened(world) for _ in range(3)]
    a, b, c = houses
    hold = a.ask(kind="election")
    waits = b.ask(kind="election", timing=timing(1000.0))
    preferred = c.ask(kind="election", preferred=True)
    await turns(20)
    c.store.deaf = True  # it does not come for what is free
    hold.give()
    await turns(20)
    assert not waits.granted
    c.store.deaf = False
    c.store.lose()
    preferred.withdraw()
    await pass_time(clock, 1.0)
    assert waits.held
    waits.give()
    await moved_on(houses, clock)
    await left(*houses)


async def test_a_mark_says_what_the_next_one_is(unique: str) -> None:
    world, clock = still_world(unique)
    houses = [await opened(world) for _ in range(3)]
    a, b, c = houses
    hold = a.ask(kind="election")
    preferred = b.ask(kind="election", preferred=True)
    behind = b.ask(kind="election", timing=timing(1000.0))
    others = c.ask(kind="election", timing=timing(1000.0))
    await turns(20)
    preferred.withdraw()
    await turns(20)
    b.store.deaf = True
    hold.give()
    await turns(20)
    assert others.held  # the mark of b is not preferred any more
    b.store.deaf = False
    b.store.lose()
    others.give()
    await pass_time(clock, 7.0)
    assert behind.held
    behind.give()
    await moved_on(houses, clock)
    await left(*houses)


async def test_the_preferred_of_one_process_come_first(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = other.ask(kind="election")
    await turns()
    plain = [house.ask(kind="election"), house.ask(kind="election")]
    await turns(20)
    assert not hold.claim.release_requested
    preferred = [house.ask(kind="election", preferred=True), house.ask(kind="election", preferred=True)]
    await pass_time(clock, 2.5)
    assert hold.claim.release_requested
    hold.give()
    for one in [*preferred, *plain]:
        await pass_time(clock, 0.5)
        assert one.held
        one.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_leader_is_asked_to_give_way_to_a_preferred_of_its_own_process(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    leader = house.ask(kind="election")
    await turns()
    plain = house.ask(kind="election")
    assert not leader.claim.release_requested
    preferred = house.ask(kind="election", preferred=True)
    assert leader.claim.release_requested
    leader.give()
    await turns()
    assert preferred.held
    another = house.ask(kind="election", preferred=True)
    assert not preferred.claim.release_requested
    for one in (preferred, another, plain):
        await turns()
        assert one.held
        one.give()
    await moved_on([house], clock)
    await left(house)
