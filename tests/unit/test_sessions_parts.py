"""The small parts of the engine of sessions, each alone: times, alarms, the watchdog, a claim's trust, wake-ups."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from typing import Any

import pytest

from pgconcert.backend import GRANTED
from pgconcert.clock import FakeClock
from pgconcert.errors import ConfigurationError
from pgconcert.sessions.alarm import Alarm
from pgconcert.sessions.answers import ClosedStore, Gathering, Told
from pgconcert.sessions.claims import SessionClaim
from pgconcert.sessions.hold import AsyncSessionHold
from pgconcert.sessions.session import Session
from pgconcert.sessions.timing import DEFAULT_TTL, timing
from pgconcert.sessions.wakes import wake_channel, wake_mark
from pgconcert.sessions.watchdog import Watchdog
from pgconcert.store import LookAtSessions, Subject
from pgconcert.testing import eventually
from tests.unit.ears import turns
from tests.unit.session_scenes import TEN, key

# times


def test_what_is_not_given_is_derived() -> None:
    times = timing()
    assert (times.ttl, times.interval, times.check, times.timeout) == (DEFAULT_TTL, 10.0, 20.0, 5.0)
    assert times.margin == 2.0
    assert timing(4).margin == 0.4
    assert timing(8, 3, 1, 2) == timing(8.0, 3.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ((0,), "ttl must be a number of seconds above 0 and up to 86400, not 0"),
        ((-1.0,), "ttl must be"),
        ((math.nan,), "ttl must be"),
        ((math.inf,), "ttl must be"),
        ((86401,), "ttl must be"),
        (("40",), "ttl must be a number of seconds above 0 and up to 86400, not '40'"),
        ((True,), "ttl must be"),
        ((None,), "ttl must be"),
        ((0.05,), "ttl=0.05 s is too short: at least 0.1 s"),
        ((10, 0), "interval must be"),
        ((10, 5), "interval=5 s is too long for ttl=10 s: at least two heartbeats must fit"),
        ((10, 4, 0), "check must be"),
        ((10, 4, 1, 4), "timeout=4 s is too long for interval=4 s"),
        ((10, 4, 1, "1"), "timeout must be"),
        ((10, 4.75, 1, 4.5), "interval=4.75 s and timeout=4.5 s are too long for ttl=10 s"),
    ],
)
def test_times_that_cannot_be(given: tuple[Any, ...], why: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        timing(*given)
    assert why in str(refused.value)


# alarms


async def test_an_alarm_rings_once_and_at_its_last_setting() -> None:
    clock = FakeClock()
    rung: list[float] = []
    alarm = Alarm(clock, asyncio.get_running_loop())
    alarm.set(5.0, lambda: rung.append(-1.0))
    alarm.set(3.0, lambda: rung.append(clock.now()))
    clock.advance(3.0)
    assert rung == []  # it rings on the loop
    await turns()
    assert rung == [3.0]
    assert alarm.due is None
    clock.advance(10.0)
    await turns()
    assert rung == [3.0]


async def test_an_alarm_that_was_stopped_on_its_way_does_not_ring() -> None:
    clock = FakeClock()
    rung: list[str] = []
    alarm = Alarm(clock, asyncio.get_running_loop())

    def ring() -> None:
        rung.append("rung")

    alarm.set(1.0, ring)
    clock.advance(1.0)  # it is posted
    alarm.stop()
    await turns()
    alarm.set(2.0, ring)
    clock.advance(1.0)
    alarm.set(9.0, ring)
    await turns()
    assert rung == []
    assert clock.waiting() == 1
    alarm.stop()
    assert clock.waiting() == 0


def test_an_alarm_of_a_loop_that_has_ended_rings_for_nobody() -> None:
    clock = FakeClock()
    loop = asyncio.new_event_loop()
    Alarm(clock, loop).set(1.0, lambda: pytest.fail("it rang"))
    loop.close()
    clock.advance(1.0)


# answers


async def test_gathered_answers_are_waited_for_together_and_not_for_ever() -> None:
    gathering = Gathering()
    await gathering.wait(1000.0)
    one, other = gathering.one(), gathering.one()
    one.set_result(True)
    waiting = asyncio.ensure_future(gathering.wait(1000.0))
    await turns()
    assert not waiting.done()
    other.set_exception(ConfigurationError("any outcome will do"))
    await waiting
    gathering.one()
    await gathering.wait(0.01)


def test_the_store_that_is_left_when_there_is_none_refuses_everything() -> None:
    told: list[object] = []
    ClosedStore().ask(LookAtSessions(), Told(told.append, lambda error: told.append(str(error))))
    ClosedStore().bounce("it is closed")
    assert told == ["the coordinator is closed"]


# the watchdog


def watchdogs() -> int:
    return sum(thread.name == "pgconcert-watchdog" for thread in threading.enumerate())


def blocked_here(until: float) -> None:
    while time.monotonic() < until:
        pass


def test_the_watchdog_names_what_blocks_once() -> None:
    dog, stack = Watchdog(), None
    for _ in range(20):  # its thread, too, must have had its turn meanwhile
        dog.expect(0.05)
        blocked_here(time.monotonic() + 0.5)
        stack = dog.seen()
        if stack is not None and "blocked_here" in stack:
            break
    assert stack is not None
    assert "blocked_here" in stack
    dog.expect(60.0)
    assert dog.seen() is None
    dog.close()
    assert not watchdogs()


def test_who_is_heard_of_in_time_is_not_looked_at() -> None:
    dog = Watchdog()
    dog.expect(None)
    assert not watchdogs()
    for _ in range(100):
        dog.expect(30.0)
        assert dog.seen() is None
    dog.expect(None)
    assert dog.seen() is None
    dog.close()
    dog.close()
    assert not watchdogs()


def test_it_ends_at_once_whenever_that_is_asked() -> None:
    for _ in range(200):
        dog = Watchdog()
        dog.expect(60.0)
        dog.expect(None)
        dog.close()
    assert not watchdogs()


def test_a_watchdog_that_is_dropped_ends() -> None:
    dog = Watchdog()
    dog.expect(60.0)
    assert watchdogs() == 1
    del dog
    gc.collect()
    eventually(lambda: not watchdogs(), what="its thread has ended")


# a claim and its trust


def trusted(clock: FakeClock) -> Session:
    session = Session(clock, TEN, clock.now())
    session.id = 7
    session.state = "alive"
    return session


def granted(session: Session, loop: asyncio.AbstractEventLoop) -> SessionClaim:
    claim = SessionClaim(key("n"), loop.create_future(), wait=True)
    claim.session, claim.token, claim.taken_at, claim.state = session, 1, 2.0, GRANTED
    session.claims.add(claim)
    return claim


async def test_a_claim_is_lost_by_time_alone() -> None:
    clock = FakeClock()
    claim = granted(trusted(clock), asyncio.get_running_loop())
    assert claim.reason is None
    clock.advance(9.0)
    assert claim.reason is not None
    claim.over = True
    assert claim.reason is None  # what was given back before is not lost


async def test_at_no_instant_of_a_loss_it_looks_as_if_there_were_none() -> None:
    clock = FakeClock()
    session = trusted(clock)
    claim = granted(session, asyncio.get_running_loop())
    clock.advance(9.0)
    seen: list[tuple[bool, int | None]] = []

    def look() -> None:
        assert claim.session is not None
        seen.append((claim.reason is not None, claim.session.id))

    claim.watch(look)
    assert claim.lose("over", look)
    assert not claim.lose("again")
    assert claim.reason == "over"
    assert seen == [(True, 7)] * 3


async def test_a_request_of_release_is_told_once_to_all_who_wait_for_it() -> None:
    loop = asyncio.get_running_loop()
    claim = granted(trusted(FakeClock()), loop)
    hold = AsyncSessionHold(claim, loop, lambda grant, waiter: None, lambda grant: None)
    waits = [asyncio.ensure_future(hold.wait_release_requested()) for _ in range(2)]
    await turns()
    claim.request_release()
    claim.request_release()
    await asyncio.gather(*waits)
    await hold.wait_release_requested()
    assert hold.release_requested
    assert not claim.request_watchers
    assert (hold.token, hold.since, hold.session_id) == (1, 2.0, 7)
    claim.over = True


def test_a_request_of_release_for_a_loop_that_has_ended_harms_nobody() -> None:
    loop = asyncio.new_event_loop()
    claim = granted(trusted(FakeClock()), loop)
    hold = AsyncSessionHold(claim, loop, lambda grant, waiter: None, lambda grant: None)
    waits = loop.create_task(hold.wait_release_requested())
    loop.run_until_complete(turns())
    watchers = [*claim.request_watchers]
    waits.cancel()
    loop.run_until_complete(turns())
    loop.close()
    claim.request_watchers.extend(watchers)  # as when the request comes in that very instant
    claim.request_release()
    claim.over = True


# wake-ups


def test_channels_and_marks_are_the_same_in_every_process() -> None:
    assert wake_channel("") == "pgconcert:session1:1271cf25"
    assert wake_mark(Subject("job", "", "n")) == b"769ee7e5fc0e2919"
    assert wake_mark(Subject("member", "", "g", "one")) == wake_mark(Subject("group", "", "g"))
    assert wake_mark(Subject("job", "", "g")) != wake_mark(Subject("election", "", "g"))
    assert len(wake_channel("namespace" * 20).encode()) <= 63
