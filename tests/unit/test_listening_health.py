"""How well we hear, in a word, and when pings are missing; by a clock that the test turns.

Here lives what is concluded from times. Whether the backend finds a deaf link is tested with links and with servers.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import ConfigurationError
from pgconcert.messenger import Hearing
from pgconcert.pubsub.health import PingWatch, listening

NOW = 1000.0


@pytest.mark.parametrize(
    ("hearing", "word"),
    [
        (Hearing(), "unknown"),
        (Hearing(own_at=None, others_at=NOW), "unknown"),
        (Hearing(connects=1), "isolated"),
        (Hearing(connects=1, own_at=NOW, others_at=NOW), "isolated"),
        (Hearing(connects=1, proven=True), "isolated"),
        (Hearing(connects=2, proven=True, own_at=NOW - 30.1), "isolated"),
        (Hearing(connects=2, proven=True, own_at=NOW - 30.1, others_at=NOW - 31), "isolated"),
        (Hearing(connects=2, proven=True, own_at=NOW - 30), "solitary"),
        (Hearing(connects=2, proven=True, own_at=NOW, others_at=NOW - 30.1), "solitary"),
        (Hearing(connects=2, proven=True, own_at=NOW, others_at=NOW - 30), "connected"),
        (Hearing(connects=2, proven=True, own_at=NOW - 99, others_at=NOW), "connected"),
    ],
)
def test_what_is_known_in_a_word(hearing: Hearing, word: str) -> None:
    assert listening(hearing, NOW, 30) == word


def watch(interval: float = 300, grace: float = 420, chance: float = 0.5) -> PingWatch:
    made = PingWatch(interval, grace, NOW, lambda: chance)
    made.listening(NOW)
    return made


@pytest.mark.parametrize(("chance", "after"), [(0.0, 270), (0.5, 300), (1.0, 330)])
def test_the_first_ping_and_the_next_go_out_after_an_interval_more_or_less(chance: float, after: float) -> None:
    pings = watch(chance=chance)
    assert pings.ping_at == pytest.approx(NOW + after)
    pings.sent(NOW + 5000)
    assert pings.ping_at == pytest.approx(NOW + 5000 + after)


@given(st.floats(1e-3, 1e6), st.floats(1.0001, 100), st.floats(0, 1))
def test_a_ping_goes_out_before_it_would_be_missed(interval: float, factor: float, chance: float) -> None:
    """Also where grace leaves less room than ten per cent."""
    pings = PingWatch(interval, interval * factor, 0.0, lambda: chance)
    pings.listening(0.0)
    assert pings.judge_at is not None
    assert interval * 0.89 < pings.ping_at < min(interval * 1.11, pings.judge_at)


def test_silence_is_told_once_for_every_grace() -> None:
    pings = watch()
    assert not pings.missing(NOW + 419)
    assert pings.missing(NOW + 420)
    assert not pings.missing(NOW + 420)
    assert pings.judge_at == NOW + 840
    assert not pings.missing(NOW + 839)
    assert pings.missing(NOW + 840.5)


def test_a_ping_puts_the_judgement_off() -> None:
    pings = watch()
    pings.heard(NOW + 300)
    assert not pings.missing(NOW + 420)
    assert pings.judge_at == NOW + 720
    assert pings.missing(NOW + 720)


def test_a_judgement_that_comes_too_late_does_not_count_and_the_next_does() -> None:
    """The loop stood still: what came was not read, and what was due was not sent."""
    pings = watch()
    assert not pings.missing(NOW + 421.5)
    assert pings.judge_at == NOW + 421.5 + 120
    assert pings.missing(NOW + 541.5)


def test_after_a_late_judgement_a_ping_that_was_only_not_read_counts() -> None:
    pings = watch()
    assert not pings.missing(NOW + 3000)
    pings.heard(NOW + 3001)
    assert not pings.missing(NOW + 3120)
    assert pings.judge_at == NOW + 3421


def test_what_is_late_shrinks_with_the_times() -> None:
    pings = watch(1.0, 1.2)
    assert not pings.missing(NOW + 1.31)
    pings = watch(1.0, 1.2)
    assert pings.missing(NOW + 1.29)


def test_while_nothing_listens_nothing_is_judged() -> None:
    pings = watch()
    pings.deaf()
    assert pings.judge_at is None
    pings.heard(NOW + 1)
    assert pings.judge_at is None
    assert not pings.missing(NOW + 9999)
    pings.listening(NOW + 10_000)
    assert pings.judge_at == NOW + 10_420
    new = PingWatch(300, 420, NOW)
    assert new.judge_at is None
    assert not new.missing(NOW + 9999)


def test_processes_do_not_ping_in_step() -> None:
    times = {PingWatch(300, 420, NOW).ping_at for _ in range(50)}
    assert len(times) > 40
    assert all(NOW + 270 <= time <= NOW + 330 for time in times)


@pytest.mark.parametrize(
    "wrong", [0, -1, math.inf, math.nan, "5", None, True, 10**400], ids=lambda wrong: type(wrong).__name__
)
def test_times_are_numbers_above_zero(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="ping_interval must be"):
        PingWatch(wrong, 420, NOW)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="ping_grace must be"):
        PingWatch(300, wrong, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize("grace", [300, 299.9, 1])
def test_grace_is_more_than_the_interval(grace: float) -> None:
    with pytest.raises(ConfigurationError, match=r"ping_grace \(.*must be more than ping_interval \(300 s\)"):
        PingWatch(300, grace, NOW)
