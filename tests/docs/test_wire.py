"""The page on the wire holds test vectors for other languages; here they are compared with what we really do.

Here lives that comparison, table by table. Which keys there are is tested with the functions that derive them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pgconcert.keys import KeySpace, agreement_pair, gate_pair, interest_pair, slot_pair
from pgconcert.pubsub.codec import codec_for
from pgconcert.pubsub.envelope import Envelope, Spill, encode, parse
from pgconcert.sessions.wakes import wake_channel, wake_mark
from pgconcert.store import COUNTER_BITS, Kind, Subject

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/wire.md").read_text()
BEYOND_LOCKS = 2**64
"""What the library adds to the 64 bits of a semaphore."""


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header, without marks of code."""
    head = f"| {' | '.join(header)} |\n"
    assert PAGE.count(head) == 1, header
    found = re.match(r"\|[-|]+\|\n((?:\|.*\|\n)+)", PAGE.partition(head)[2])
    assert found
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in found[1].splitlines()]
    return [["" if cell == "(none)" else cell for cell in row] for row in rows]


def text(cell: str) -> bytes:
    """A payload, or what travels, as the page writes it."""
    return bytes.fromhex(cell[4:]) if cell.startswith("hex ") else cell.replace("⏎", "\n").encode()


def numbers(pair: str) -> tuple[int, ...]:
    """A pair as the page writes it."""
    return tuple(map(int, pair.strip("()").split(",")))


@pytest.mark.parametrize(("namespace", "text", "key"), table("namespace", "text", "key"))
def test_keys_of_texts(namespace: str, text: str, key: str) -> None:
    assert KeySpace(namespace).key(text).value == int(key)


@pytest.mark.parametrize(("namespace", "name", "key"), table("namespace", "semaphore", "key"))
def test_keys_of_semaphores(namespace: str, name: str, key: str) -> None:
    assert KeySpace(namespace).semaphore(name, 4).value - BEYOND_LOCKS == int(key)


@pytest.mark.parametrize(("key", "interest", "gate"), table("key", "pair of kind 1", "pair of kind 2"))
def test_marks_and_gates(key: str, interest: str, gate: str) -> None:
    assert interest_pair(int(key)) == numbers(interest)
    assert gate_pair(int(key)) == numbers(gate)


@pytest.mark.parametrize(("name", "what", "number", "pair"), table("semaphore", "what", "number", "pair"))
def test_slots_and_agreements(name: str, what: str, number: str, pair: str) -> None:
    derive = {"slot": slot_pair, "agreement": agreement_pair}[what]
    assert derive(KeySpace().semaphore(name, 4).value, int(number)) == numbers(pair)


@pytest.mark.parametrize(("payload", "wire"), table("payload alone", "what travels"))
def test_payloads(payload: str, wire: str) -> None:
    assert encode(text(payload)) == text(wire)
    if payload != wire:
        assert parse(text(wire)) == Envelope(text(payload))


@pytest.mark.parametrize(
    ("payload", "name", "sender", "headers", "wire"), table("payload", "id", "from", "headers", "what travels")
)
def test_envelopes(payload: str, name: str, sender: str, headers: str, wire: str) -> None:
    said = json.loads(headers or "{}")
    made = encode(text(payload), message_id=name or None, sender=sender or None, headers=said)
    assert made == text(wire)
    assert parse(made) == Envelope(text(payload), name or None, said, sender or None)


@pytest.mark.parametrize(
    ("payload", "name", "sender", "reply", "answers", "error", "wire"),
    table("payload", "id", "from", "reply", "re", "err", "what travels"),
)
def test_requests_and_replies(
    payload: str, name: str, sender: str, reply: str, answers: str, error: str, wire: str
) -> None:
    made = encode(
        text(payload),
        message_id=name or None,
        sender=sender,
        reply_to=reply or None,
        answers=answers or None,
        error=error or None,
    )
    assert made == text(wire)
    assert parse(made) == Envelope(
        text(payload), name or None, {}, sender, reply or None, answers or None, error or None
    )


@pytest.mark.parametrize(("number", "payload", "wire"), table("n", "kept payload", "what travels"))
def test_kept_payloads(number: str, payload: str, wire: str) -> None:
    what, times = payload.replace("`", "").removesuffix(" times").split()
    kept = what.encode() * int(times)
    spill = Spill.of(int(number), kept)
    assert encode(b"", spill=spill) == text(wire)
    assert parse(text(wire)) == Envelope(b"", spill=spill)
    assert spill.matches(kept)


@pytest.mark.parametrize(("namespace", "channel"), table("namespace", "channel of wake-ups"))
def test_channels_of_wake_ups(namespace: str, channel: str) -> None:
    assert wake_channel(namespace) == channel


@pytest.mark.parametrize(("kind", "name", "mark"), table("kind", "name", "mark"))
def test_marks_of_names(kind: Kind, name: str, mark: str) -> None:
    assert wake_mark(Subject(kind, "any", name)) == mark.encode()
    if kind == "group":
        assert wake_mark(Subject("member", "any", name, "some member")) == mark.encode()


@pytest.mark.parametrize(("token", "epoch", "count"), table("token", "epoch", "count"))
def test_tokens(token: str, epoch: str, count: str) -> None:
    assert divmod(int(token), 1 << COUNTER_BITS) == (int(epoch), int(count))


class Colour(Enum):
    RED = "red"


class Size(Enum):
    LARGE = 2


@dataclass
class Line:
    item: str
    count: int


WHEN = datetime(2024, 2, 29, 12, 30, tzinfo=timezone(timedelta(hours=1)))
VALUES: dict[str, tuple[Any, Any]] = {
    "`int`, `float`, `bool`, `None`": (list[int | float | bool | None], [1, 1.5, True, None]),
    "`datetime`, `date`, `time`": (tuple[datetime, date, time], (WHEN, date(2024, 2, 29), time(12, 30))),
    "`UUID`, `Decimal`": (tuple[UUID, Decimal], (UUID("12345678-1234-5678-1234-567812345678"), Decimal("1.10"))),
    "`bytes` in something": (list[bytes], [b"\0\xff"]),
    "an enum's member": (tuple[Colour, Size], (Colour.RED, Size.LARGE)),
    "`list`, `tuple`": (tuple[list[int], tuple[int, str]], ([1, 2], (1, "a"))),
    "`dict`": (dict[str, int], {"a": 1}),
    "a dataclass": (Line, Line("ä", 2)),
}


def test_values_of_a_fan_out() -> None:
    shown = {kind.replace("`", ""): raw.encode() for kind, raw in table("type", "for example")}
    assert shown == {name.replace("`", ""): codec_for(kind).encode(value) for name, (kind, value) in VALUES.items()}
    for name, (kind, value) in VALUES.items():
        assert codec_for(kind).decode(shown[name.replace("`", "")]) == value
