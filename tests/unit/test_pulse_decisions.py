"""When a silent link is tried, and when it is called deaf: the decisions of `postgres/pulse.py`, told the time.

Here lives the pure part alone. Theory: a link is played second by second, with a server that accepts, refuses or says
nothing, and a loop that looks on time or late; what is known then is compared with what was decided.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pgconcert.postgres.pulse import Pulse

INTERVAL, PATIENCE = 15.0, 5.0


def pulse(draw: Callable[[], float] = lambda: 1.0) -> Pulse:
    return Pulse(0.0, INTERVAL, PATIENCE, draw)


def test_a_silent_link_is_tried_after_the_interval() -> None:
    one = pulse()
    assert one.look(14.9, 0.0) == "rest"
    assert one.next == 15.0
    assert one.look(15.0, 0.0) == "send"


def test_the_interval_is_drawn_anew_each_time() -> None:
    draws = iter([1.0, 1.2, 1.4])
    one = pulse(lambda: next(draws))
    assert one.look(15.0, 10.0) == "rest"
    assert one.next == 10.0 + 1.2 * INTERVAL
    assert one.look(one.next, 20.0) == "rest"
    assert one.next == 20.0 + 1.4 * INTERVAL


def test_anything_heard_puts_the_pulse_off() -> None:
    one = pulse()
    for second in range(1000):
        assert one.look(float(second), float(second) - 1) == "rest"


def test_heard_shortly_before_the_time_counts_from_then() -> None:
    """Also what is heard in the stretch by which the interval was longer."""
    one = pulse(lambda: 1.4)
    assert one.look(21.0, 3.0) == "rest"
    assert one.next == 3.0 + 1.4 * INTERVAL


def test_a_pulse_that_is_heard_proves_the_link() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    one.committed(15.1)
    assert one.look(20.1, 15.1) == "rest"
    assert one.next == 15.1 + INTERVAL


def test_somebody_elses_notification_proves_it_as_well() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    assert one.look(20.0, 15.05) == "rest"
    assert one.next == 15.05 + INTERVAL


def test_committed_and_not_heard_is_deaf() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    one.committed(15.1)
    assert one.look(20.0, 14.9) == "rest"
    assert one.next == 20.1
    assert one.look(20.1, 14.9) == "deaf"


def test_what_the_server_does_not_answer_is_not_deafness() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    for _ in range(100):
        assert one.look(one.next, 0.0) == "rest"


def test_a_refused_pulse_proves_nothing_and_is_tried_again() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    one.refused(16.0)
    assert one.look(21.0, 0.0) == "rest"
    assert one.next == 16.0 + INTERVAL
    assert one.look(31.0, 0.0) == "send"


def test_a_late_look_decides_nothing() -> None:
    """The loop was blocked for a minute: what was to be heard may wait unread. The next look, on time, decides."""
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    one.committed(15.1)
    assert one.look(75.0, 0.0) == "rest"
    assert 75.0 < one.next <= 76.0
    assert one.look(one.next, 0.0) == "deaf"


def test_a_late_look_that_had_reason_to_be_late() -> None:
    one = pulse()
    assert one.look(15.0, 0.0) == "send"
    one.committed(15.1)
    assert one.look(75.0, 0.0) == "rest"
    assert one.look(one.next, 75.01) == "rest"
    assert one.next == 75.01 + INTERVAL


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["look", "look", "late", "hear", "accept", "refuse"]), st.floats(0.01, 30.0, allow_nan=False)
    ),
    max_size=80,
)


@given(STEPS)
def test_deaf_only_if_the_server_has_committed_and_nothing_was_heard(steps: list[tuple[str, float]]) -> None:
    """Whatever happens: never before the patience is over, never after anything was heard, and never a look in vain."""
    now = heard_at = 0.0
    sent: float | None = None
    committed: float | None = None
    one = pulse()
    for step, seconds in steps:
        if step in ("look", "late"):
            now = max(now, one.next) + (seconds if step == "late" else 0.0)
            said = one.look(now, heard_at)
            if said == "send":
                assert sent is None or heard_at >= sent
                assert now - heard_at >= INTERVAL - 1e-9
                sent, committed = now, None
            elif said == "deaf":
                assert sent is not None
                assert committed is not None
                assert heard_at < sent
                assert now >= committed + PATIENCE - 1e-9
                return
            elif sent is not None and heard_at >= sent:
                sent = None
            assert one.next > now or sent is None, "nothing is under way: the next look decides"
        elif step == "hear":
            now += seconds
            heard_at = now
        elif sent is not None and committed is None:
            now += seconds
            if step == "accept":
                committed = now
                one.committed(now)
            else:
                sent = None
                one.refused(now)
