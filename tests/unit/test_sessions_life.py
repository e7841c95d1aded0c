"""Sessions from their start to their end: what is taken from them, when they are idle, when they cannot be started."""

from __future__ import annotations

from pgconcert.errors import SchemaMissing, Unavailable
from pgconcert.events import SessionEnded, SessionStarted
from pgconcert.store import EndSession, LookAtSessions, Own, RequestRelease, Revoke, StartSession, Subject, Take
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import fails, left, left_over, opened, pass_time

JOB = Subject("job", "", "n")


async def test_a_revocation_takes_one_name_and_leaves_the_others(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold, kept = await house.acquire(), await house.acquire("kept")
    assert await other.look(Revoke(JOB))
    assert not hold.lost
    await pass_time(clock, 2.5)
    assert hold.reason == "it was taken away (revoked), though its session lives"
    assert not kept.lost
    assert house.store.count(Own) == 1
    await pass_time(clock, 10.0)
    assert house.store.count(Own) == 1
    await kept.release()
    await left(house, other)


async def test_a_request_reaches_the_holder_once(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold = await house.acquire()
    told: list[str] = []
    claim = hold._grant
    assert await other.look(RequestRelease(JOB))
    house.events.clear()
    await pass_time(clock, 2.5)
    told += [str(event) for event in house.events]
    assert told.count("the release of job 'n' was requested") == 1
    assert hold.release_requested
    assert claim.reason is None
    assert await other.look(RequestRelease(JOB))
    await pass_time(clock, 10.0)
    assert sum(str(event) == "the release of job 'n' was requested" for event in house.events) == 1
    await hold.release()
    await left(house, other)


async def test_what_hangs_on_it_is_read_again_when_that_fails(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold = await house.acquire()
    assert await other.look(Revoke(JOB))
    house.store.keeps = {Own}
    await pass_time(clock, 2.5)
    house.store.lose()
    assert not hold.lost
    house.store.keeps.clear()
    await pass_time(clock, 1.0)  # before the next heartbeat would be due
    assert hold.lost
    assert house.store.count(Own) == 2
    await left(house, other)


async def test_what_was_granted_after_the_question_is_not_judged_by_its_answer(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world, messenger=False), await opened(world)
    hold = await house.acquire()
    assert await other.look(Revoke(JOB))
    house.store.keeps = {Own}
    await pass_time(clock, 2.5)
    later = await house.acquire("later")
    house.store.keeps.clear()
    house.store.deliver()
    assert hold.lost
    assert not later.lost
    await later.release()
    await left(house, other)


async def test_what_nobody_here_knows_is_given_back(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world, messenger=False)
    hold = await house.acquire()
    stray = Subject("job", "", "stray")
    await house.look(Take(subject=stray, session=hold.session_id))
    await house.look(Take(subject=Subject("job", "", "other"), session=hold.session_id))
    await house.look(RequestRelease(JOB))
    await pass_time(clock, 2.5)
    assert await house.holder("stray") is None
    assert await house.holder("other") is None
    assert await house.holder() is not None
    await hold.release()
    await left(house)


async def test_an_idle_session_is_ended_after_a_ttl_and_another_started(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    await pass_time(clock, 15.0)
    await hold.release()
    await pass_time(clock, 9.0)
    assert len(house.sessions) == 1
    await pass_time(clock, 4.0)
    assert not house.sessions
    assert house.told(SessionEnded)
    assert not await house.look(LookAtSessions())
    assert clock.waiting() == 0
    house.store.kinds()
    await pass_time(clock, 60.0)
    assert house.store.kinds() == {}
    again = await house.acquire()
    assert len(house.told(SessionStarted)) == 2
    await again.release()
    await left(house)


async def test_who_waits_keeps_the_session_alive(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    waits = house.ask()
    await pass_time(clock, 60.0, 0.5)
    assert len(house.sessions) == 1
    await hold.release()
    await turns()
    assert waits.held
    waits.give()
    await left(house, other)


async def test_a_start_that_fails_reaches_all_who_wait(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    house.store.keeps = {StartSession}
    asked = [house.ask(f"n{number}") for number in range(5)] + [house.ask("n0"), house.ask("n0", wait=False)]
    await turns()
    (_, _, answer) = house.store.kept.pop()
    answer.set_exception(SchemaMissing("no tables: run pgconcert schema apply"))
    assert {one.outcome() for one in asked} == {SchemaMissing}
    await turns()
    assert not left_over(house)
    assert not house.sessions
    house.store.keeps.clear()
    again = house.ask()
    await turns()
    assert again.held
    again.give()
    await turns()
    await left(house)


async def test_without_any_connection_yet_nobody_waits_in_vain(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    house.backend.lose_connection(reconnect=False)
    asked = house.ask()
    error = await fails(asked.future)
    assert isinstance(error, Unavailable)
    assert not left_over(house)
    house.backend.reconnect()
    await left(house)


async def test_once_it_was_there_who_waits_waits_on(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    await (await house.acquire()).release()
    await pass_time(clock, 20.0)
    assert not house.sessions
    house.backend.lose_connection(reconnect=False)
    waits, tries = house.ask(), house.ask(wait=False)
    await pass_time(clock, 30.0)
    assert tries.outcome() is Unavailable
    assert waits.outcome() is None
    house.store.kinds()
    house.backend.reconnect()
    await pass_time(clock, 6.5)
    assert waits.held
    waits.give()
    await left(house)


async def test_a_start_answered_after_the_trust_has_ended_grants_nothing(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    house.store.keeps = {StartSession}
    asked = house.ask()
    await turns()
    clock.advance(9.0)
    await turns()
    house.store.deliver()
    assert not asked.granted
    await turns()
    assert house.store.count(StartSession) == 2
    house.store.keeps.clear()
    house.store.deliver()
    await turns()
    assert asked.held
    assert house.store.count(EndSession) == 1
    asked.give()
    await turns()
    await left(house)


async def test_many_changes_of_others_do_not_make_many_heartbeats(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    await turns()
    house.store.kinds()
    for _ in range(100):
        house.engine.heart.beat_soon()
        await turns(2)
    assert house.store.kinds() == {"Renew": 1}
    clock.advance(0.25)
    await turns()
    assert house.store.kinds() == {"Renew": 1}
    await hold.release()
    await left(house)
