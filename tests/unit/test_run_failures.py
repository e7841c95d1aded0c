"""What `transaction.run` makes of failures: when it tries again, how long it waits, and where a second error is kept.

Here live tests of `transaction/failing.py`, which needs no server.
"""

from __future__ import annotations

import dataclasses
import traceback

import psycopg
import pytest

from pgconcert.transaction.failing import Attempts, keep, report
from tests.unit.test_server_errors import caught


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error that lets nobody set anything."""

    number: int


def test_pauses_grow_and_stop_growing() -> None:
    attempts = Attempts(100, None, lambda low, high: high)
    assert [attempts.pause() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    attempts = Attempts(100, None, lambda low, high: low)
    assert [attempts.pause() for _ in range(2)] == [0.025, 0.05]
    attempts = Attempts(10**9, None)
    assert all(0.025 <= attempts.pause() <= 1.0 for _ in range(2000))


@pytest.mark.parametrize("error", [psycopg.errors.SerializationFailure(), psycopg.errors.DeadlockDetected()])
def test_as_many_times_as_was_asked_and_never_inside_a_transaction(error: Exception) -> None:
    attempts = Attempts(2, None)
    for again in (True, True, False):
        attempts.begun(nested=False)
        assert attempts.again(error) is again
    assert error.__notes__ == ["transaction.run had tried it 3 times"]
    attempts = Attempts(2, None)
    attempts.begun(nested=True)
    assert not attempts.again(error)
    assert len(error.__notes__) == 1


def test_other_errors_are_not_tried_again() -> None:
    for error in (psycopg.errors.UniqueViolation(), psycopg.errors.AdminShutdown(), psycopg.OperationalError("lost")):
        attempts = Attempts(2, None)
        attempts.begun(nested=False)
        assert not attempts.again(error)
        assert not hasattr(error, "__notes__")


def _while_handled() -> None:
    try:
        raise KeyError("second of its chain")
    except KeyError:
        raise ValueError("the first")  # noqa: B904


def _from() -> None:
    raise ValueError("the first") from KeyError("second of its chain")


def _from_none() -> None:
    try:
        raise KeyError("hidden")
    except KeyError:
        raise ValueError("the first") from None


def _frozen() -> None:
    raise Frozen(7)


@pytest.mark.parametrize("raiser", [_while_handled, _from, _from_none, _frozen])
def test_both_errors_are_kept(raiser: object) -> None:
    """A note, and the traceback of the second, which had been raised while the first was handled; no cycle is made."""
    error = caught(raiser)
    try:
        raise error
    except BaseException:
        failed = caught(_while_handled)
    keep(error, failed)
    assert error.__notes__ == ["the rollback failed too, and the connection was closed: ValueError: the first"]
    chain = [error]
    while (behind := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(behind)
        assert len(chain) < 10
    assert failed in chain
    assert chain.count(error) == 1
    text = "".join(traceback.format_exception(error))
    assert text.count("ValueError: the first") >= (2 if raiser is _from_none else 1)


def test_what_cannot_be_chained_is_told_in_the_note() -> None:
    """The same error twice, one that is there already, one that was raised from it, and a chain in a circle."""
    error = ValueError("the first")
    keep(error, error)
    assert not hasattr(error, "__notes__")
    assert error.__context__ is None
    behind = KeyError()
    error.__context__ = behind
    keep(error, behind)
    assert behind.__context__ is None
    after = KeyError()
    after.__cause__ = error
    keep(error, after)
    assert after.__cause__ is error
    assert behind.__context__ is None
    assert len(error.__notes__) == 2
    one, two = KeyError(), KeyError()
    one.__context__, two.__context__ = two, one
    keep(error, one)
    assert behind.__context__ is one
    keep(one, ValueError("third"))
    assert one.__notes__ == ["the rollback failed too, and the connection was closed: ValueError: third"]


def test_without_an_error_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    report(None, ValueError("what went wrong"))
    (record,) = caplog.records
    assert record.getMessage() == "a rollback failed, and its connection was closed: ValueError: what went wrong"
    assert (record.name, record.levelname) == ("pgconcert", "WARNING")
    assert record.exc_info is not None
