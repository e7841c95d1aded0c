"""Events: every kind has a sentence, a level and does not change; the stream keeps its readers whatever they do."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from pgconcert import events
from pgconcert.events import ConnectFailed, Event, EventStream, HeartbeatFailed, HoldBroken, LinkClosed, LockAcquired
from pgconcert.events.tasks import RunnerStep

KINDS: list[type[Event]] = [
    kind
    for name in events.__all__
    if isinstance(kind := getattr(events, name), type) and issubclass(kind, Event) and kind is not Event
]
SAMPLES: dict[Any, Any] = {
    str: "text",
    int: 7,
    float: 1.5,
    bool: True,
    bytes: b"raw",
    int | None: 7,
    float | None: 1.5,
    str | None: "text",
    int | str: "key",
    BaseException: ValueError("wrong"),
    tuple[str, ...]: ("a", "b", "c", "d"),
    RunnerStep: "get work",
}


def make(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    needed = [field for field in dataclasses.fields(kind) if field.default is field.default_factory]
    return kind(**{field.name: SAMPLES[hints[field.name]] for field in needed})


def test_every_event_is_public() -> None:
    assert {kind.__name__ for kind in Event.__subclasses__() if kind.__module__.startswith(events.__name__)} == {
        kind.__name__ for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_a_frozen_sentence(kind: type[Event]) -> None:
    event = make(kind)
    sentence = str(event)
    assert sentence
    assert "\n" not in sentence
    assert not sentence.startswith(kind.__name__), "the record, not a sentence about it"
    assert event.level in (0, logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.at = 0.0  # type: ignore[misc]


def test_a_long_outage_is_an_error_and_then_critical() -> None:
    def failed(down_for: float, repeats: bool = False) -> int:
        return ConnectFailed(role="lock", attempt=1, error="no", retry_in=1.0, down_for=down_for, repeats=repeats).level

    assert (failed(9.9), failed(10.0)) == (logging.WARNING, logging.ERROR)
    assert (failed(299.9), failed(300.0)) == (logging.ERROR, logging.CRITICAL)
    assert failed(300.0, repeats=True) == logging.DEBUG


def test_a_heartbeat_that_comes_too_late_for_the_trust_is_an_error() -> None:
    def failed(trusted_for: float) -> int:
        return HeartbeatFailed(error="no", failures=1, retry_in=2.0, trusted_for=trusted_for).level

    assert (failed(2.1), failed(2.0), failed(-1.0)) == (logging.WARNING, logging.ERROR, logging.ERROR)


def test_the_stream_counts_what_is_logged() -> None:
    stream = EventStream()
    stream.subscribe(lambda event: None)
    for event in (HoldBroken(key=1, reason="r"), HoldBroken(key=2, reason="r"), LinkClosed(role="lock", server_pid=1)):
        stream.emit(event)
    stream.emit(LockAcquired(key=1, waited=0.0))
    assert stream.tally.events == {"HoldBroken": 2, "LinkClosed": 1}


def test_a_cycle_is_told() -> None:
    told = events.StillWaiting(key="k", waited=10.0, holder=None, cycle=("a", "b", "a"))
    assert "a -> b -> a" in str(told)
    assert "an unknown session" in str(told)


def test_readers_get_their_kinds_in_order() -> None:
    stream, everything, broken = EventStream(), list[Event](), list[Event]()
    stream.subscribe(everything.append)
    stop = stream.subscribe(broken.append, HoldBroken)
    first, second = HoldBroken(key=1, reason="r"), LinkClosed(role="lock", server_pid=1)
    stream.emit(first)
    stream.emit(second)
    stop()
    stop()
    stream.emit(first)
    assert everything == [first, second, first]
    assert broken == [first]


def test_a_reader_that_raises_keeps_its_place(caplog: pytest.LogCaptureFixture) -> None:
    stream, calls = EventStream(), list[str]()

    def bad(event: Event) -> None:
        calls.append("bad")
        raise ValueError("bad reader")

    stream.subscribe(bad)
    stream.subscribe(lambda event: calls.append("good"))
    with caplog.at_level(logging.ERROR, "pgconcert"):
        stream.emit(LockAcquired(key=1, waited=0.0))
        stream.emit(LockAcquired(key=1, waited=0.0))
    assert calls == ["bad", "good", "bad", "good"]
    assert [record.message.startswith("a reader of events failed on: lock 1") for record in caplog.records] == [
        True
    ] * 2


def test_readers_may_come_and_go_while_an_event_is_told() -> None:
    stream, calls = EventStream(), list[str]()
    stops: list[Callable[[], None]] = []

    def once(event: Event) -> None:
        calls.append("once")
        stops[0]()
        stream.subscribe(lambda event: calls.append("late"))

    stops.append(stream.subscribe(once))
    stream.subscribe(lambda event: calls.append("next"))
    stream.emit(LockAcquired(key=1, waited=0.0))
    assert calls == ["once", "next"]
    stream.emit(LockAcquired(key=1, waited=0.0))
    assert calls == ["once", "next", "next", "late"]


def test_wants() -> None:
    stream = EventStream()
    assert not stream.wants(LockAcquired)
    stop = stream.subscribe(lambda event: None, LockAcquired)
    assert stream.wants(LockAcquired)
    assert not stream.wants(HoldBroken)
    stop()
    assert not stream.wants(LockAcquired)
    stream.subscribe(lambda event: None)
    assert stream.wants(HoldBroken)


def test_the_log_gets_the_record_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    stream = EventStream()
    event = HoldBroken(key="k", reason="r")
    with caplog.at_level(logging.DEBUG, "pgconcert"):
        stream.emit(event)
        stream.emit(LockAcquired(key="k", waited=0.0))
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, "'k' was lost: r")]
    assert getattr(caplog.records[0], "event", None) is event
