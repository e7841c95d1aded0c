"""Names for which claims of one process, and of several, compete: who is next, what that costs. No real time passes."""

from __future__ import annotations

from pgconcert.sessions.timing import timing
from pgconcert.store import (
    Give,
    Own,
    Refused,
    StartSession,
    Subject,
    Take,
    Unmark,
)
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import House, left, left_over, moved_on, opened, pass_time

JOB = Subject("job", "", "n")
ELECTION = Subject("election", "", "n")


async def test_claims_of_one_process_come_in_their_order(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    asked = [house.ask() for _ in range(5)]
    for one in asked:
        await turns()
        assert [other.held for other in asked].count(True) == 1
        assert one.held
        await one.given()
    await turns()
    assert not left_over(house)
    tokens = [one.claim.token for one in asked]
    assert tokens == sorted(tokens, key=lambda token: token or 0)
    assert house.store.count(Take) == 5
    await left(house)


async def test_who_tries_is_refused_at_once_and_overtakes_nobody(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    waits = house.ask()
    await turns()
    tries = house.ask(wait=False)
    await turns()
    assert (tries.outcome(), waits.outcome()) == (False, None)
    await hold.release()
    await turns()
    assert waits.held
    ours = house.ask(wait=False)
    assert ours.outcome() is False
    waits.give()
    await moved_on([house, other], clock)
    tries = house.ask(wait=False)
    await turns()
    assert tries.outcome() is True
    tries.give()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_a_try_takes_its_turn_while_something_is_under_way(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    house.store.keeps = {Give}
    first = house.ask()
    await turns()
    first.give()
    tries = house.ask(wait=False)
    assert tries.outcome() is None
    house.store.deliver()
    await turns()
    assert tries.held
    house.store.keeps.clear()
    tries.give()
    await left(house)


async def test_who_leaves_the_queue_leaves_no_trace(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    asked = [house.ask() for _ in range(3)]
    await turns()
    assert await house.marks() == 1
    for one in asked:
        assert await house.marks() == 1
        one.withdraw()
        await turns()
    assert await house.marks() == 0
    assert not left_over(house)
    assert house.store.count(Unmark) == 1
    await hold.release()
    await moved_on([house, other], clock)
    await left(house, other)


async def test_each_withdraws_in_any_state(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    house.store.keeps = {StartSession, Take, Give}
    starting = house.ask("a")
    await turns()
    starting.withdraw()
    house.store.deliver()
    await turns()
    assert not left_over(house)
    assert house.store.count(Take) == 0
    asking = house.ask("b")
    await turns()
    asking.withdraw()
    house.store.deliver()  # taken for nobody: given back
    assert house.store.count(Give) == 1
    behind = house.ask("b")
    house.store.deliver()
    await turns()
    house.store.deliver()
    assert behind.held
    behind.withdraw()
    behind.withdraw()
    house.store.deliver()
    await turns()
    assert not left_over(house)
    assert await house.holder("b") is None
    await moved_on([house], clock)
    await left(house)


async def test_claims_with_other_times_compete_in_the_same_queue(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    asked = [house.ask(timing=timing(ttl)) for ttl in (10.0, 20.0, 10.0)]
    await turns()
    assert await house.marks() == 1
    await hold.release()
    for one in asked:
        await pass_time(clock, 0.5)
        assert one.held
        assert one.claim.session is not None
        assert one.claim.session.timing.ttl == one.claim.key.timing.ttl
        await one.given()
    await moved_on([house, other], clock)
    assert not left_over(house)
    await left(house, other)


async def test_a_mark_is_left_before_anybody_sleeps(unique: str) -> None:
    """Refused with a mark that was not there before, it asks once more; then it sleeps."""
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    house.ask()
    await turns(20)
    takes = house.store.count(Take)
    assert takes == 3  # also when wake-ups are heard from then on
    await pass_time(clock, 3.5)
    assert house.store.count(Take) == takes
    await hold.release()
    await turns()
    assert house.store.count(Take) == takes + 1
    await left(house, other)


async def test_who_waits_tries_exactly_when_the_holder_is_over(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    patient = timing(100.0, check=1000.0)
    hold = await other.acquire()
    waits = house.ask(timing=patient)
    await turns(20)
    takes = house.store.count(Take)
    other.store.deaf = True
    await pass_time(clock, 9.75)
    assert house.store.count(Take) == takes
    assert hold.lost
    await pass_time(clock, 0.5, 0.03125)
    assert waits.held
    assert house.store.count(Take) == takes + 1
    other.store.deaf = False
    waits.give()
    await left(house, other)


async def test_a_wake_up_that_is_lost_costs_no_more_than_check(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold = await other.acquire()
    waits = house.ask()
    await turns(20)
    takes = house.store.count(Take)
    await hold.release()
    await turns(20)
    assert not waits.granted
    await pass_time(clock, 5.0)
    assert waits.held
    assert house.store.count(Take) == takes + 1
    waits.give()
    await left(house, other)


async def test_who_has_just_given_it_back_lets_others_have_it(unique: str) -> None:
    """Also when the next one of this process comes only after the release."""
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    theirs = other.ask()
    await turns()
    await hold.release()
    again = house.ask()
    await turns(20)
    assert theirs.held
    assert not again.granted
    await theirs.given()
    await pass_time(clock, 6.0)
    assert again.held
    again.give()
    await left(house, other)


async def test_our_own_wake_up_does_not_end_our_courtesy(unique: str) -> None:
    world, clock = still_world(unique)
    house, other, third = await opened(world), await opened(world), await opened(world)
    hold = await other.acquire()
    first, behind = house.ask(), house.ask()
    await turns(20)
    await hold.release()
    await turns(20)
    assert first.held
    theirs = third.ask()
    await turns(20)
    third.store.deaf = True
    house.store.kinds()
    first.give()
    await turns(20)
    assert house.store.kinds() == {"Give": 1}
    await pass_time(clock, 0.375, 0.125)
    assert behind.held
    third.store.deaf = False
    third.store.lose()
    theirs.withdraw()
    behind.give()
    await moved_on([house, other, third], clock)
    await left(house, other, third)


async def test_nobody_waits_for_others_who_do_not_come(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    other.ask()
    await turns()
    other.store.deaf = True
    await hold.release()
    tries = house.ask(wait=False)
    assert tries.outcome() is True  # whoever only tries is not held back
    await tries.given()
    again = house.ask()
    await turns(20)
    assert not again.granted
    await pass_time(clock, 0.3, 0.0625)
    assert again.held
    other.store.deaf = False
    again.give()
    await left(house, other)


async def test_a_thousand_waiters_in_two_processes_cost_three_statements_for_each_hand_over(unique: str) -> None:
    world, clock = still_world(unique)
    houses = [await opened(world), await opened(world)]
    asked = [houses[number % 2].ask() for number in range(1000)]
    await turns(30)
    for house in houses:
        house.store.kinds()
    hand_overs = 0
    for _ in range(60):
        holding = [one for one in asked if one.held]
        assert len(holding) <= 1
        for one in holding:
            one.give()
            hand_overs += 1
        await turns(20)
        await pass_time(clock, 0.25, 0.125)
    assert hand_overs >= 40
    for house in houses:
        spent = house.store.count(Take, Give, Unmark, Own)
        assert spent <= 3 * hand_overs, house.store.kinds()
    for one in asked:
        if not one.granted:
            one.withdraw()
    for house in houses:
        await left_quietly(house)
    await left(*houses)


async def left_quietly(house: House) -> None:
    await turns(20)
    await house.engine.close()


async def test_a_name_that_somebody_is_at_this_instant_is_asked_for_ever_more_rarely(unique: str) -> None:
    """As while a guard of somebody who is dead stays open: nobody can tell for how long."""
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    house.store.keeps = {Take}
    waits, tries = house.ask(), house.ask(wait=False)
    await turns()
    for _ in range(4000):
        kept, house.store.kept = house.store.kept, []
        for _, _, answer in kept:
            answer.set_result(Refused(retry_in=0, marked=True))
        await turns(2)
        clock.advance(0.015625)  # all in all a minute
    assert tries.outcome() is False
    assert waits.outcome() is None
    assert house.store.count(Take) < 30
    house.store.keeps.clear()
    house.store.deliver()
    await hold.release()
    await pass_time(clock, 6.0)
    assert waits.held
    waits.give()
    await left(house, other)


async def test_marks_that_are_never_seen_are_no_reason_to_spin(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    house.store.keeps = {Take}
    house.ask()
    await turns()
    for _ in range(500):
        kept, house.store.kept = house.store.kept, []
        for _, _, answer in kept:
            answer.set_result(Refused(retry_in=100.0, marked=False))
        await turns(2)
    assert house.store.count(Take) <= 3
    clock.advance(1.0)
    house.store.keeps.clear()
    await hold.release()
    await left(house, other)
