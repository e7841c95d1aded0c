"""The heartbeat: what it costs, what its answers mean, and what their absence means. No real time passes."""

from __future__ import annotations

import pytest

from pgconcert.events import HeartbeatFailed, HeartbeatLate, SessionLost
from pgconcert.sessions.timing import timing
from pgconcert.store import EndSession, Renew, StartSession, Subject
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import House, left, moved_on, opened, pass_time

JOB = Subject("job", "", "n")


def renewals(house: House) -> list[Renew]:
    return [request for request in house.store.asked if isinstance(request, Renew)]


async def test_one_renewal_for_ten_thousand_names_and_all_sessions(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    timings = [timing(10.0), timing(40.0), timing(10.0, 4.0), timing(40.0, 2.5)]
    asked = [house.ask(f"n{number}", timing=timings[number % 4]) for number in range(10_000)]
    await turns(8)
    assert all(one.held for one in asked)
    assert len(house.sessions) == 4
    house.store.kinds()
    for _ in range(20):
        clock.advance(2.5)  # the shortest interval
        await turns(4)
    assert house.store.count(Renew) == 20
    assert house.store.kinds() == {"Renew": 20}
    assert all(one.held for one in asked)
    await left(house)


async def test_all_are_renewed_in_the_order_of_their_numbers(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    for ttl in (50.0, 10.0, 30.0, 20.0):
        assert house.ask(f"n{ttl}", timing=timing(ttl)).outcome() is None
        await turns(4)
    await pass_time(clock, 5.0)
    numbers = [session.id for session in house.sessions]
    assert [renewal.sessions for renewal in renewals(house)] == [tuple(sorted(number or 0 for number in numbers))] * 2
    await left(house)


async def test_one_session_for_those_of_the_same_times(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world)
    for number, check in enumerate((1.0, 2.0, 3.0)):
        house.ask(f"n{number}", timing=timing(10.0, 2.5, check))
    house.ask("other", timing=timing(10.0, 2.0))
    await turns(8)
    assert house.store.count(StartSession) == 2
    await left(house)


async def test_trust_counts_from_the_sending(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    (session,) = house.sessions
    await pass_time(clock, 2.5)  # the heartbeat leaves at 2.5
    house.store.keeps = {Renew}
    await pass_time(clock, 2.5)  # and another at 5
    assert session.trusted_until == 2.5 + 9.0
    await pass_time(clock, 1.0)
    house.store.keeps.clear()
    house.store.deliver()  # answered at 6
    assert session.trusted_until == 5.0 + 9.0
    assert not hold.lost
    await hold.release()
    await left(house)


async def test_an_answer_after_the_next_one_takes_nothing_away(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    (session,) = house.sessions
    house.store.keeps = {Renew}
    await pass_time(clock, 2.5)
    answers, house.store.kept = house.store.kept, []  # so that it is neither lost nor delivered yet
    house.store.keeps.clear()
    await pass_time(clock, 1.25)  # its time is over, another is asked
    await pass_time(clock, 1.25)
    trusted = session.trusted_until
    assert trusted > 2.5 + 9.0
    for _, arrive, _ in answers:
        arrive()
    assert session.trusted_until == trusted
    assert not hold.lost
    await hold.release()
    await left(house)


async def test_nobody_knows_changes_nothing_and_is_tried_again_in_time(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    (session,) = house.sessions
    trusted = session.trusted_until
    house.store.keeps = {Renew}
    await pass_time(clock, 2.5)
    house.store.lose("reset by peer")
    assert session.trusted_until == trusted
    assert not hold.lost
    (failed,) = house.told(HeartbeatFailed)
    assert isinstance(failed, HeartbeatFailed)
    assert (failed.error, failed.failures) == ("reset by peer", 1)
    assert failed.trusted_for == pytest.approx(6.5)
    assert failed.retry_in < 1.0
    house.store.keeps.clear()
    await pass_time(clock, 1.0)
    assert session.trusted_until > trusted
    await pass_time(clock, 20.0)
    assert not hold.lost
    assert not house.store.bounced
    await hold.release()
    await left(house)


async def test_attempts_of_an_outage_are_spaced(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.lose_connection("pulled", reconnect=False)
    house.store.kinds()
    await pass_time(clock, 8.75, 0.0625)  # to just before the loss
    assert not hold.lost
    # at 2.5, then after pauses of 0.47 to 0.78
    assert 8 <= house.store.kinds()["Renew"] <= 14
    assert len({event.failures for event in house.told(HeartbeatFailed) if isinstance(event, HeartbeatFailed)}) >= 8
    await pass_time(clock, 20.0, 0.0625)
    assert hold.lost
    assert house.store.count(Renew) <= 1  # who is lost is not renewed
    house.backend.reconnect()
    await left(house)


async def test_without_an_answer_the_connection_is_replaced(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.deaf = True
    await pass_time(clock, 2.5)
    assert not house.store.bounced
    await pass_time(clock, 1.25)
    assert house.store.bounced == ["no answer to a heartbeat within timeout=1.25 s"]
    house.store.deaf = False
    await pass_time(clock, 30.0)
    assert len(house.store.bounced) == 1
    assert not hold.lost
    await hold.release()
    await left(house)


async def test_the_connection_is_replaced_again_and_again(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.deaf = True
    await pass_time(clock, 9.0)
    assert 3 <= len(house.store.bounced) <= 5
    assert hold.lost
    house.store.deaf = False
    again = await house.acquire(timeout=None) if await house.holder() is None else None
    assert again is None  # on the server the old session lives on for its margin
    await pass_time(clock, 1.5)
    assert await house.holder() is None
    await left(house)


async def test_loss_comes_a_margin_before_others_may_take_over(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    rival = other.ask()
    await turns()
    cut = house.backend.partition()
    await pass_time(clock, 9.0)
    assert hold.lost
    assert "others may take over after ttl=10 s" in str(hold.reason)
    holder = (await other.entry()).session
    assert holder is not None
    assert holder.expires_in == pytest.approx(1.0)
    assert not rival.granted
    await pass_time(clock, 1.05, 0.01)
    assert rival.held
    cut.heal()
    await turns()
    assert [type(event).__name__ for event in house.told(SessionLost)] == ["SessionLost"]
    assert rival.held
    rival.give()
    await left(house, other)


async def test_a_connection_that_lives_does_not_end_the_session_before_the_margin_is_over(unique: str) -> None:
    """The server has renewed it, its answers do not come: so it would live for another ttl there."""
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    rival = other.ask()
    house.store.keeps = {Renew}
    await pass_time(clock, 9.0, 0.0625)
    assert hold.lost
    assert house.store.count(EndSession) == 0
    holder = await other.holder()
    assert holder is not None
    assert holder.expires_in > 5.0
    await pass_time(clock, 0.9375, 0.0625)
    assert house.store.count(EndSession) == 0
    await pass_time(clock, 0.125, 0.0625)
    assert house.store.count(EndSession) == 1
    assert await other.holder() is None
    await pass_time(clock, 10.0)  # it was told another time, and nobody wakes it
    assert rival.held
    house.store.keeps.clear()
    rival.give()
    await left(house, other)


async def test_loss_needs_no_callback(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    clock.advance(8.999)
    assert not hold.lost
    clock.advance(0.001)  # and the loop has not run
    assert hold.lost
    assert hold.reason == "no heartbeat of its session was answered for 9 s; others may take over after ttl=10 s"
    with pytest.raises(Exception, match="no heartbeat of its session"):
        hold.check()
    await left(house)


async def test_what_was_lost_for_an_instant_stays_lost(unique: str) -> None:
    """The answer that would have saved it is there, but somebody may have been told already."""
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.keeps = {Renew}
    await pass_time(clock, 2.5)
    clock.advance(6.5)
    assert hold.lost
    house.store.keeps.clear()
    house.store.deliver()
    assert hold.lost
    await turns()
    assert hold.lost
    await left(house)


async def test_a_process_that_was_suspended_finds_it_lost_and_goes_on(unique: str) -> None:
    world, clock = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    clock.advance(3600.0)
    assert hold.lost
    await turns(8)
    assert house.told(SessionLost)
    assert not house.sessions
    rival = other.ask()
    await turns()
    assert rival.held
    await rival.given()
    again = await house.acquire()
    assert again.token > hold.token
    await again.release()
    await left(house, other)


async def test_a_late_heartbeat_is_told_with_its_delay(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    clock.advance(3.0)  # half a second late: less than a quarter of an interval
    await turns()
    assert not house.told(HeartbeatLate)
    clock.advance(3.5)
    await turns()
    (late,) = house.told(HeartbeatLate)
    assert isinstance(late, HeartbeatLate)
    assert late.delay == pytest.approx(1.0)
    assert late.trusted_for == pytest.approx(5.5)
    await pass_time(clock, 10.0)
    assert len(house.told(HeartbeatLate)) == 1
    await hold.release()
    await left(house)


async def test_attempts_that_fail_are_not_late(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.lose_connection(reconnect=False)
    await pass_time(clock, 8.0, 0.0625)
    house.backend.reconnect()
    await pass_time(clock, 10.0, 0.0625)
    assert not house.told(HeartbeatLate)
    assert not hold.lost
    await hold.release()
    await left(house)


async def test_over_on_the_server_is_a_loss_at_once(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.backend.expire_session()
    await pass_time(clock, 2.25)
    assert not hold.lost
    await pass_time(clock, 0.25)
    assert hold.reason == "the server says that its time is over, or that it was ended"
    assert house.store.count(EndSession) == 1
    again = await house.acquire()
    await again.release()
    await left(house)


async def test_a_row_locked_this_instant_is_asked_for_again_after_a_moment(unique: str) -> None:
    """The answer says nothing about a session: neither renewed nor over."""
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    (session,) = house.sessions
    house.store.keeps = {Renew}
    await pass_time(clock, 2.5)
    trusted = session.trusted_until
    for attempt in range(1, 4):
        ((_, _, answer),) = house.store.kept
        house.store.kept.clear()
        answer.set_result({})
        assert session.trusted_until == trusted
        clock.advance(0.1 * 2**attempt)
        await turns()
        assert house.store.count(Renew) == 1 + attempt
    assert not house.told(HeartbeatFailed)
    house.store.keeps.clear()
    house.store.deliver()
    assert session.trusted_until > trusted
    assert not hold.lost
    await hold.release()
    await left(house)


async def test_a_dead_connection_noticed_after_the_last_session_stops_no_later_heartbeat(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire(timing=timing(10.0, 2.5, None, 2.0))
    house.store.deaf = True
    await pass_time(clock, 9.25)  # a renewal is under way, and has patience until 9.5 at least
    assert hold.lost
    bounced = len(house.store.bounced)
    assert house.store.kept
    house.store.deaf = False
    await pass_time(clock, 2.25)
    assert len(house.store.bounced) == bounced + 1
    again = await house.acquire("other")
    await pass_time(clock, 60.0)
    assert not again.lost
    await again.release()
    await moved_on([house], clock)
    await left(house)
