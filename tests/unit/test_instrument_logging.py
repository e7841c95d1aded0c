"""The instrument for logs: every kind of event as fields and as a line of JSON, without payloads."""

from __future__ import annotations

import ast
import inspect
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pgconcert import instrument
from pgconcert.events import ConnectFailed, Event, EventStream, HandlerFailed, HoldBroken, MessageUndecodable
from pgconcert.instrument.fields import fields, kind
from pgconcert.instrument.logging import EventFields, JsonFormatter
from tests.unit.test_events import KINDS, make

LOGGED = [one for one in KINDS if make(one).level]


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a program that logs JSON to a stream would write; its handler stands on the root logger."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter({"service": "shop", "level": "cannot be replaced"}))
    root, ours = logging.getLogger(), logging.getLogger("pgconcert")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    ours.setLevel(before)


def parsed(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


@pytest.mark.parametrize("of", KINDS)
def test_every_event_has_a_json_form(of: type[Event]) -> None:
    event = make(of)
    told = fields(event)
    assert json.loads(json.dumps(told), parse_constant=refuse) == told
    assert "at" not in told
    assert not set(told) & {"time", "level", "logger", "message", "event", "fields"}, "a flat form would be ambiguous"
    assert kind(event) == of.__name__


@pytest.mark.parametrize("of", LOGGED)
def test_every_event_is_one_line(of: type[Event], lines: io.StringIO) -> None:
    EventStream().emit(make(of))
    (line,) = parsed(lines)
    assert line["event"] == of.__name__
    assert line["fields"] == fields(make(of))
    assert (line["message"], line["logger"], line["service"]) == (str(make(of)), "pgconcert", "shop")
    assert line["level"] == logging.getLevelName(make(of).level)
    assert line["time"].endswith("+00:00")


def test_errors_are_text_and_type_and_payloads_are_counted() -> None:
    assert fields(HandlerFailed(channel="c", error=KeyError("k"))) == {
        "channel": "c", "error": "'k'", "error_type": "KeyError",
    }  # fmt: skip
    assert fields(MessageUndecodable(channel="c", error="no", raw=b"card 4711")) == {
        "channel": "c", "error": "no", "raw_bytes": 9,
    }  # fmt: skip


def test_what_json_does_not_have() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Event):
        endless: float = float("inf")
        nothing: None = None
        flag: bool = True
        object_: Any = complex(1, 2)
        several: tuple[object, ...] = (1, float("nan"), ValueError("v"))

    assert fields(Odd()) == {
        "endless": None, "nothing": None, "flag": True, "object_": "(1+2j)", "several": [1, None, "v"],
    }  # fmt: skip


def test_records_of_others_are_lines_too(lines: io.StringIO) -> None:
    """A message with line breaks stays one line; an exception and a stack are told; `event` of others is theirs."""
    logger = logging.getLogger("shop.orders")
    logger.warning("two\nlines: %s", "ä", extra={"event": "not one of ours"})
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed", stack_info=True)
    first, second = parsed(lines)
    assert (first["message"], first["logger"], first["level"]) == ("two\nlines: ä", "shop.orders", "WARNING")
    assert not {"event", "fields", "exception", "stack"} & set(first)
    assert "ValueError: wrong" in second["exception"]
    assert "test_records_of_others" in second["stack"]


def test_a_static_field_without_a_json_form_is_found_at_once() -> None:
    with pytest.raises(TypeError):
        JsonFormatter({"when": object()})
    with pytest.raises(ValueError, match="not JSON compliant"):
        JsonFormatter({"share": float("nan")})


def test_the_fields_as_attributes(lines: io.StringIO) -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(EventFields())
    handler.setFormatter(logging.Formatter("%(pgconcert_event)s|%(pgconcert_role)s", defaults={"pgconcert_role": "-"}))
    logger = logging.getLogger("pgconcert")
    logger.addHandler(handler)
    try:
        stream = EventStream()
        stream.emit(ConnectFailed(role="work", attempt=1, error="no", retry_in=None, down_for=0.0))
        stream.emit(HoldBroken(key="k", reason="r"))
        logger.warning("no event")
    finally:
        logger.removeHandler(handler)
    assert written.getvalue().splitlines() == ["ConnectFailed|work", "HoldBroken|-", "|-"]


def test_the_package_itself_imports_nothing() -> None:
    """So that whoever logs JSON needs no package of those who measure."""
    assert [type(node) for node in ast.parse(inspect.getsource(instrument)).body] == [ast.Expr]


def test_what_utf8_does_not_have_is_written_all_the_same() -> None:
    """The name of a file that is no UTF-8 has half surrogate pairs, which no stream takes."""
    line = JsonFormatter().format(logging.makeLogRecord({"msg": "cannot open a\udcff\\ä"}))
    assert "ä" in line.encode().decode()
    assert json.loads(line)["message"] == "cannot open a\udcff\\ä"
