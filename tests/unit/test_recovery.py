"""When polls that find something replace the listen link.

Here live the rules by which they are counted. That a message by the wire resets the count is tested with the fan-out.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import ConfigurationError
from pgconcert.pubsub.recovery import Recovery


def bounces(recovery: Recovery, *found: int) -> list[bool]:
    return [recovery.polled(number) for number in found]


def test_the_third_find_in_a_row_bounces_and_the_count_starts_again() -> None:
    called: list[int] = []
    recovery = Recovery(3, lambda: called.append(1))
    assert bounces(recovery, 1, 1, 1, 1, 1) == [False, False, True, False, False]
    assert (recovery.streak, recovery.saved, len(called)) == (2, 5, 1)
    assert recovery.polled(1)
    assert len(called) == 2


def test_five_calls_are_the_default() -> None:
    assert bounces(Recovery(), *[9] * 5) == [False] * 4 + [True]


def test_calls_are_counted_not_items() -> None:
    recovery = Recovery(2)
    assert not recovery.polled(1000)
    assert (recovery.streak, recovery.saved) == (1, 1000)


def test_a_poll_that_found_nothing_changes_nothing() -> None:
    recovery = Recovery(2)
    assert bounces(recovery, 1, 0, -7, 1) == [False, False, False, True]
    assert recovery.saved == 2


@pytest.mark.parametrize("threshold", [0, -1])
def test_without_a_threshold_it_only_counts(threshold: int) -> None:
    recovery = Recovery(threshold, lambda: pytest.fail("it bounced"))
    assert not any(bounces(recovery, *[2] * 50))
    assert (recovery.streak, recovery.saved) == (50, 100)


def test_a_message_by_the_wire_starts_the_streak_again_and_not_the_items() -> None:
    recovery = Recovery(2)
    recovery.polled(3)
    recovery.reset()
    assert (recovery.streak, recovery.saved) == (0, 3)
    assert not recovery.polled(1)


def test_what_a_bounce_raises_is_told_after_everything_was_counted() -> None:
    def refuse() -> None:
        raise OSError("no")

    recovery = Recovery(1, refuse)
    with pytest.raises(OSError, match="no"):
        recovery.polled(4)
    assert (recovery.streak, recovery.saved) == (0, 4)


@given(st.integers(-2, 6), st.lists(st.one_of(st.none(), st.integers(-3, 9)), max_size=60))
def test_against_the_rules_as_they_are_written(threshold: int, calls: list[int | None]) -> None:
    """None is a message by the wire."""
    recovery, streak = Recovery(threshold), 0
    for found in calls:
        if found is None:
            recovery.reset()
            streak = 0
        else:
            streak += found > 0
            expected = found > 0 and 0 < threshold <= streak
            assert recovery.polled(found) is expected
            streak = 0 if expected else streak
        assert recovery.streak == streak
    assert recovery.saved == sum(found for found in calls if found is not None and found > 0)


@pytest.mark.parametrize("threshold", [1.5, "5", None, True, math.inf])
def test_a_threshold_is_a_whole_number(threshold: object) -> None:
    with pytest.raises(ConfigurationError, match="whole number of polls"):
        Recovery(threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [1.5, "5", None, True, [1]])
def test_what_a_poll_found_is_a_whole_number(found: object) -> None:
    recovery = Recovery()
    with pytest.raises(ConfigurationError, match="whole number of items"):
        recovery.polled(found)  # type: ignore[arg-type]
    assert recovery.streak == recovery.saved == 0


def test_a_bounce_is_callable() -> None:
    with pytest.raises(ConfigurationError, match="callable"):
        Recovery(5, "bounce")  # type: ignore[arg-type]
