"""When a runner takes its next turn: the pure part, told the time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.tasks.pace import MOST_REST, Pace, rest

TICKS = st.floats(0.05, 86_400.0)


def pace(tick: float = 5.0, jitter: float = 0.0, chance: float = 0.0) -> Pace:
    return Pace(tick, jitter, lambda: chance)


def turn(one: Pace, now: float, *, picked: bool = True, short: bool = True, next_in: float | None = None) -> None:
    one.turn_begins(now, picks=True)
    one.turn_ended(now, picked=picked, short=short, next_in=next_in)


@given(tick=TICKS, failures=st.integers(0, 10**6), chance=st.floats(0, 1))
def test_a_rest_is_never_above_an_hour_and_grows(tick: float, failures: int, chance: float) -> None:
    one = rest(tick, failures, lambda: chance)
    assert 0 < one <= MOST_REST
    assert one <= rest(tick, failures + 1, lambda: chance)
    assert 0.75 * min(tick, MOST_REST) <= rest(tick, 1, lambda: chance) <= tick


def test_rests_double() -> None:
    assert [rest(5.0, n, lambda: 0.0) for n in (1, 2, 3, 4, 40)] == [5, 10, 20, 40, 3600]


def test_the_first_turn_is_due_at_once_and_then_every_tick() -> None:
    one = pace()
    assert one.due() == -math.inf
    assert one.ticks(0)
    turn(one, 100)
    assert one.due() == 105
    assert not one.ticks(104.9)
    assert one.ticks(105)


@given(jitter=st.floats(0, 1), chance=st.floats(0, 1), tick=TICKS)
def test_a_tick_is_never_late_and_sooner_by_the_jitter_at_most(jitter: float, chance: float, tick: float) -> None:
    one = pace(tick, jitter, chance)
    turn(one, 0)
    assert tick * (1 - jitter) - 1e-6 <= one.due() <= tick


def test_ticks_and_wake_ups_of_a_moment_vary_by_chance() -> None:
    sooner, later = pace(5.0, 0.2, chance=1.0), pace(5.0, 0.2, chance=0.0)
    for one in (sooner, later):
        turn(one, 100)
    assert (sooner.due(), later.due()) == (104, 105)
    for one in (sooner, later):
        one.woken(100.01)
    assert (sooner.due(), later.due()) == (100.04, 100.02)


def test_a_wake_up_is_answered_at_once_but_not_twice_in_a_moment() -> None:
    one = pace()
    turn(one, 100)
    one.woken(101)
    assert one.due() == 101
    turn(one, 101)
    assert one.due() == 105
    one.woken(101.01)
    assert one.due() == 101.02
    one.woken(101.5)
    assert one.due() == 101.02  # the first counts


def test_a_wake_up_while_a_turn_is_under_way_leads_to_another() -> None:
    one = pace()
    one.turn_begins(100, picks=True)
    one.woken(100.5)
    one.turn_ended(101, picked=True, short=True, next_in=None)
    assert one.due() == 100.5


def test_a_turn_without_room_answers_no_wake_up() -> None:
    one = pace()
    turn(one, 100)
    one.woken(101)
    one.turn_begins(101, picks=False)
    one.turn_ended(101, picked=False, short=False, next_in=None)
    assert one.due() == 101


def test_what_will_be_due_brings_a_turn() -> None:
    one = pace()
    turn(one, 100, next_in=2.0)
    assert one.due() == 102
    turn(one, 102)
    assert one.due() == 105


def test_after_a_call_there_may_be_more() -> None:
    one = pace()
    turn(one, 100)
    one.call_ended(101, 1)
    assert one.due() <= 101
    turn(one, 101)
    assert one.due() == 105


def test_what_was_not_picked_up_and_left_room_is_followed_by_a_pick_up() -> None:
    one = pace()
    turn(one, 100)
    turn(one, 101, picked=False)
    assert one.due() <= 101


def test_calls_that_complete_nothing_are_followed_by_growing_pauses() -> None:
    one = pace()
    turn(one, 100)
    due: list[float] = []
    for _ in range(10):
        one.call_ended(100, 0)
        due.append(round(one.due() - 100, 3))
    assert due == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5]
    assert one.paused(104.9)
    one.call_ended(105, 1)
    one.call_ended(105, 0)
    assert one.due() == 105.05


def test_turns_that_fail_are_followed_by_growing_pauses_up_to_a_tick() -> None:
    one = pace(1.0)
    assert [round(one.failed(100), 3) for _ in range(6)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert one.due() == one.retry_at == 101
    one.woken(100)
    assert one.due() == 101  # nothing brings it forward
    turn(one, 101)
    assert round(one.failed(102), 3) == 0.05


def test_a_new_session_begins_with_a_tick_and_forgets_no_failure() -> None:
    one = pace()
    turn(one, 100)
    one.failed(100)
    one.anew()
    assert one.ticks(100)
    assert one.due() == one.retry_at
    assert round(one.failed(101), 3) == 0.1


@given(st.lists(st.sampled_from(["wake", "turn", "fail", "empty", "done", "short"]), max_size=200), st.floats(0, 1))
def test_whatever_happens_the_next_turn_is_due_within_a_tick(happens: list[str], chance: float) -> None:
    one = pace(5.0, 0.5, chance)
    now = 1000.0
    for what in happens:
        now += 0.003
        if what == "wake":
            one.woken(now)
        elif what == "turn":
            turn(one, now, next_in=100.0)
        elif what == "short":
            turn(one, now, picked=False)
        elif what == "fail":
            one.failed(now)
        else:
            one.call_ended(now, what == "done")
        assert one.due() <= now + 5.0
