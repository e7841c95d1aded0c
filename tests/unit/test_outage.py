"""An outage: which of the attempts of a link that stays down are told on the log."""

from __future__ import annotations

from pgconcert.postgres.outage import Outage


def told(outage: Outage, times: list[float]) -> list[float]:
    return [now for now in times if not outage.fails(now)]


def test_the_first_then_each_step_then_once_a_minute() -> None:
    """Attempts every five seconds for eleven minutes: the beginning, the two escalations, and a line a minute."""
    since = 1000.0
    outage = Outage(since)
    attempts = [since + 5.0 * place for place in range(133)]
    assert [now - since for now in told(outage, attempts)] == [
        0.0, 10.0, 70.0, 130.0, 190.0, 250.0, 300.0, 360.0, 420.0, 480.0, 540.0, 600.0, 660.0,
    ]  # fmt: skip
    assert outage.failed == len(attempts)


def test_a_short_outage_is_one_line() -> None:
    assert told(Outage(0.0), [0.05, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3]) == [0.05]


def test_a_first_attempt_that_took_long_begins_at_its_level() -> None:
    """A connect that hung for half a minute is an error at once, and not told again as one."""
    assert told(Outage(0.0), [30.0, 35.0, 60.0, 90.0]) == [30.0, 90.0]


def test_attempts_of_one_minute_belong_together() -> None:
    outage = Outage(0.0)
    assert not outage.recent(0.0)
    outage.fails(1.0)
    assert outage.recent(60.9)
    assert not outage.recent(61.0)
