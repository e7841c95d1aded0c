"""Signals become one exception, at a moment when nothing is half done."""

from __future__ import annotations

import signal

import pytest

from pgconcert.cli.ending import Ending, Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_raised_once_and_then_ignored(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Ending():
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(number)
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
    assert (caught.value.name, caught.value.code) == (number.name, 128 + number)
    assert signal.getsignal(number) is before


def test_a_shielded_section_runs_to_its_end() -> None:
    done = []

    def interrupted(ending: Ending) -> None:
        with ending.shielded():
            with ending.shielded():
                signal.raise_signal(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with Ending() as ending, pytest.raises(Stopped):
        interrupted(ending)
    assert done == ["inner", "outer"]


def test_an_error_in_a_shielded_section_is_not_covered_up() -> None:
    def failing(ending: Ending) -> None:
        with ending.shielded():
            signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError

    with Ending() as ending, pytest.raises(ZeroDivisionError):
        failing(ending)


def test_nothing_interrupts_after_finish() -> None:
    with Ending() as ending:
        ending.finish()
        signal.raise_signal(signal.SIGINT)


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Ending():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
