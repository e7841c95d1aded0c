"""What travels: texts as they are, everything else in an envelope; and what is read from what came.

Here live the rules of the envelope and its limits. The published vectors are compared with the page in
``tests/docs/test_wire.py``.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgconcert.errors import PayloadInvalid
from pgconcert.pubsub.envelope import (
    MAX_HEADERS,
    Envelope,
    Malformed,
    Spill,
    check_sum,
    encode,
    fits,
    json_bytes,
    looks_enveloped,
    needs_envelope,
    parse,
    payload_bytes,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
HEADERS = st.dictionaries(TEXT, TEXT, max_size=8).filter(lambda headers: len(json_bytes(headers)) <= MAX_HEADERS)
SPILLS = st.builds(Spill.of, st.integers(0, 2**63 - 1), st.binary())
REPLIES = IDS.map(lambda name: f"pgconcert:reply:{name:.40}")
PAYLOADS = st.one_of(st.binary(), TEXT.map(str.encode), TEXT.map(lambda text: b"pgconcert:" + text.encode()))


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


def is_wire(wire: bytes) -> bool:
    return b"\0" not in wire.decode().encode()


# what is sent


@pytest.mark.parametrize("payload", [b"", b"hello", "grüße €".encode(), b"x" * 7999, b'{"a":1}\n\x7f', b"pgconcert"])
def test_text_travels_as_it_is(payload: bytes) -> None:
    assert not needs_envelope(payload)
    assert encode(payload) is payload
    assert encode(payload, headers={}) is payload
    assert fits(payload)
    assert not looks_enveloped(payload)


@pytest.mark.parametrize("payload", [b"a\0b", b"\xff", b"pgconcert:", b"pgconcert:1 {}\nx", "ü".encode()[:1]])
def test_what_is_no_such_text_gets_an_envelope(payload: bytes) -> None:
    assert needs_envelope(payload)
    wire = encode(payload)
    assert wire.startswith(b"pgconcert:1 {")
    assert looks_enveloped(wire)
    assert is_wire(wire)
    assert parse(wire) == Envelope(payload)


def test_a_text_in_an_envelope_can_be_read_by_people() -> None:
    assert encode(b"hello\nyou", message_id="7") == b'pgconcert:1 {"id":"7"}\nhello\nyou'


def test_one_byte_too_many_does_not_fit_and_its_spill_does() -> None:
    payload = b"x" * 8000
    assert needs_envelope(payload)
    wire = encode(payload)
    assert not fits(wire)
    small = encode(b"", spill=Spill.of(12, payload))
    assert fits(small)
    spill = Spill(12, 8000, check_sum(payload))
    assert parse(small).spill == spill
    assert spill.matches(payload)
    assert not spill.matches(payload[1:])
    assert not spill.matches(payload[1:] + b"y")


@given(
    PAYLOADS,
    maybe(IDS),
    maybe(HEADERS),
    maybe(IDS),
    maybe(REPLIES),
    maybe(IDS),
    maybe(TEXT.filter(lambda t: len(t) < 99)),
)
@example(b"pgconcert:1 {}\n", None, {}, None, None, None, None)
def test_what_was_sent_is_what_is_read(
    payload: bytes,
    message_id: str | None,
    headers: dict[str, str] | None,
    sender: str | None,
    reply_to: str | None,
    answers: str | None,
    error: str | None,
) -> None:
    wire = encode(
        payload,
        message_id=message_id,
        headers=headers,
        sender=sender,
        reply_to=reply_to,
        answers=answers,
        error=error,
    )
    assert is_wire(wire)
    sent = Envelope(payload, message_id, headers or {}, sender, reply_to, answers, error)
    assert (parse(wire) if looks_enveloped(wire) else Envelope(wire)) == sent


@given(SPILLS, maybe(IDS), maybe(HEADERS), maybe(IDS), maybe(REPLIES), maybe(IDS), maybe(TEXT))
@example(
    Spill(2**63 - 1, 2**63 - 1, "f" * 16), '"' * 64, {"\x01" * 300: "x" * 150}, '"' * 64, None, '"' * 64, "\x01" * 9000
)
def test_with_a_spill_everything_fits(
    spill: Spill,
    message_id: str | None,
    headers: dict[str, str] | None,
    sender: str | None,
    reply_to: str | None,
    answers: str | None,
    error: str | None,
) -> None:
    wire = encode(
        b"",
        spill=spill,
        message_id=message_id,
        headers=headers,
        sender=sender,
        reply_to=reply_to,
        answers=answers,
        error=error,
    )
    assert fits(wire)
    assert parse(wire).spill == spill


@pytest.mark.parametrize("wrong", ["", "x" * 65, "a b", "ü", "a\n", "\ud800", 7, b"7", True])
def test_ids_are_short_printable_ascii(wrong: Any) -> None:
    for key in ("message_id", "sender", "answers"):
        with pytest.raises(PayloadInvalid, match="printable ASCII"):
            encode(b"", **{key: wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["a"], "a mapping of texts, not list"),
        ("a", "not str"),
        ({"a": 1}, "'a' is 1"),
        ({1: "a"}, "1 is 'a'"),
        ({"a": None}, "'a' is None"),
        ({"a": "\ud800"}, "header 'a' .* lone surrogate"),
        ({"\ud800": "a"}, "name of a header .* lone surrogate"),
        ({"a": "x" * 2000}, "1 headers have 2008 bytes; at most 2000"),
        ({"a": "\x01" * 400}, "2408 bytes"),
    ],
)
def test_headers_are_texts_and_not_many(wrong: Any, told: str) -> None:
    with pytest.raises(PayloadInvalid, match=told):
        encode(b"x", headers=wrong)


@pytest.mark.parametrize("error", ["x" * 5000, "\x01" * 5000, "€" * 5000, "a\ud800b", ""])
def test_an_error_is_shortened_and_never_fails(error: str) -> None:
    wire = encode(b"", answers="1", error=error)
    assert fits(wire)
    told = parse(wire).error
    assert told is not None
    assert told == error.encode(errors="replace").decode()[: len(told)]
    assert len(told) >= min(len(error), 300)


# what came


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"pgconcert:", "version ''"),
        (b"pgconcert:2 {}\n", "version '2'"),
        (b"pgconcert:10 {}\n", "version '10'"),
        (b"pgconcert:wake", "version 'wake'"),
        (b"pgconcert:\xff\xfe {}\n", "version"),
        (b"pgconcert:1", "version '1'"),
        (b"pgconcert:1 {}", "no end"),
        (b"pgconcert:1 \n", "not JSON"),
        (b"pgconcert:1 {\n", "not JSON"),
        (b"pgconcert:1 {'id':1}\n", "not JSON"),
        (b"pgconcert:1 \xff{}\n", "not JSON"),
        (b"pgconcert:1 []\n", "JSON list"),
        (b"pgconcert:1 1" + b"0" * 5000 + b"\n", "not JSON"),
        (b"pgconcert:1 " + b"[" * 50_000 + b"\n", "not JSON"),
        (b'pgconcert:1 {"id":7}\n', "'id' is 7"),
        (b'pgconcert:1 {"id":""}\n', "'id' is ''"),
        (b'pgconcert:1 {"id":"a b"}\n', "'id' is 'a b'"),
        (b'pgconcert:1 {"from":{}}\n', "'from' is a JSON dict"),
        (b'pgconcert:1 {"re":true}\n', "'re' is True"),
        (b'pgconcert:1 {"err":7}\n', "'err' is 7"),
        (rb'pgconcert:1 {"err":"\ud800"}' + b"\n", "'err' is"),
        (b'pgconcert:1 {"h":[]}\n', "the headers are a JSON list"),
        (b'pgconcert:1 {"h":{"a":1}}\n', "the headers are"),
        (rb'pgconcert:1 {"h":{"a":"\udfff"}}' + b"\n", "the headers are"),
        (b'pgconcert:1 {"enc":"rot13"}\nx', "'rot13' cannot be read"),
        (b'pgconcert:1 {"enc":{}}\nx', "a JSON dict cannot be read"),
        (b'pgconcert:1 {"enc":"base64"}\nx', "not base64"),
        (b'pgconcert:1 {"enc":"base64"}\nAA!A', "not base64"),
        (b'pgconcert:1 {"enc":"base64"}\nAAAA\n', "not base64"),
        (b'pgconcert:1 {"reply":"orders"}\n', "no channel for replies"),
        (b'pgconcert:1 {"reply":"pgconcert:pulse"}\n', "no channel for replies"),
        (b'pgconcert:1 {"reply":["pgconcert:reply:a"]}\n', "no channel for replies"),
        (b'pgconcert:1 {"reply":"pgconcert:reply:' + b"x" * 48 + b'"}\n', "nobody can listen"),
        (rb'pgconcert:1 {"reply":"pgconcert:reply:\u0000"}' + b"\n", "nobody can listen"),
        (b'pgconcert:1 {"spill":5}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":1}}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":1,"size":2,"sum":"00"}}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":true,"size":2,"sum":"0123456789abcdef"}}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":-1,"size":2,"sum":"0123456789abcdef"}}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":9223372036854775808,"size":2,"sum":"0123456789abcdef"}}\n', "no kept payload"),
        (b'pgconcert:1 {"spill":{"n":1,"size":2,"sum":"0123456789abcdef"}}\nx', "a body of 1 bytes as well"),
    ],
)
def test_what_only_begins_like_an_envelope(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why) as caught:
        parse(raw)
    assert len(str(caught.value)) < 400


def test_what_a_later_writer_adds_is_ignored() -> None:
    wire = b'pgconcert:1 {"new":[1,{}],"id":"7","h":{"a":"b"},"spill":null} \nbody'
    assert parse(wire) == Envelope(b"body", id="7", headers={"a": "b"})


def test_nesting_that_can_just_be_read_is_still_no_envelope() -> None:
    for depth in range(1, 3000, 7):
        with pytest.raises(Malformed):
            parse(b'pgconcert:1 {"id":' + b"[" * depth + b"]" * depth + b"}\n")


JUNK = st.one_of(
    st.binary(),
    TEXT.map(str.encode),
    st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT), st.lists)
    .map(json.dumps)
    .map(str.encode),
    st.dictionaries(
        st.sampled_from(["id", "from", "h", "enc", "reply", "re", "err", "spill"]),
        st.one_of(
            st.none(),
            st.integers(),
            TEXT,
            st.just("base64"),
            REPLIES,
            st.dictionaries(st.sampled_from(["n", "size", "sum", "a"]), st.one_of(st.integers(), TEXT)),
        ),
    )
    .map(json.dumps)
    .map(str.encode),
)


@given(st.sampled_from([b"", b"1", b"1 ", b"1 {}\n"]), JUNK, st.sampled_from([b"", b"\n"]), st.binary())
def test_nothing_but_malformed_is_raised(version: bytes, head: bytes, end: bytes, body: bytes) -> None:
    try:
        found = parse(b"pgconcert:" + version + head + end + body)
    except Malformed:
        pass
    else:
        again = encode(
            found.payload,
            message_id=found.id,
            headers=found.headers if len(json_bytes(dict(found.headers))) <= MAX_HEADERS else None,
            sender=found.sender,
            reply_to=found.reply_to,
            answers=found.answers,
            spill=found.spill,
        )
        assert is_wire(again)


# what a caller gives


def test_payloads_are_bytes_or_texts() -> None:
    raw = b"raw"
    assert payload_bytes(raw) is raw
    assert payload_bytes("grüße\0") == "grüße\0".encode()
    assert payload_bytes(memoryview(b"abcdef")[::2]) == b"ace"
    given_away = bytearray(b"mine")
    taken = payload_bytes(given_away)
    given_away[:] = b"your"
    assert taken == b"mine"


class Letters(str, Enum):  # noqa: UP042 - its str() is its name, unlike that of a StrEnum
    A = "a"


class Lying(bytes):
    def __bytes__(self) -> bytes:
        return b"lie"


def test_of_a_subclass_the_content_itself() -> None:
    assert payload_bytes(Letters.A) == b"a"
    assert payload_bytes(Lying(b"truth")) == b"truth"
    assert type(payload_bytes(Lying(b"truth"))) is bytes


@pytest.mark.parametrize(
    "wrong", [None, 7, 1.5, {"a": 1}, ["a"], object(), 10**6000], ids=lambda wrong: type(wrong).__name__
)
def test_other_values_are_for_json(wrong: object) -> None:
    with pytest.raises(PayloadInvalid, match=f"not {type(wrong).__name__}: .*json=") as caught:
        payload_bytes(wrong)
    assert len(str(caught.value)) < 300


def test_text_that_is_none_and_memory_that_is_gone() -> None:
    with pytest.raises(PayloadInvalid, match="lone surrogate at position 1"):
        payload_bytes("a\ud800")
    view = memoryview(b"abc")
    view.release()
    with pytest.raises(PayloadInvalid, match="cannot be read"):
        payload_bytes(view)


def test_json_is_short_and_readable() -> None:
    assert json_bytes({"b": [1, 2.5, None, True], "a": "ü\0"}) == '{"b":[1,2.5,null,true],"a":"ü\\u0000"}'.encode()
    assert not needs_envelope(json_bytes({"a": "\0"}))


def endless() -> list[object]:
    made: list[object] = []
    made.append(made)
    return made


def deep() -> list[object]:
    made: list[object] = []
    for _ in range(100_000):
        made = [made]
    return made


@pytest.mark.parametrize(
    "wrong",
    [{1, 2}, float("nan"), [float("inf")], endless(), deep(), "\ud800", {(1, 2): 3}, b"raw", object(), 10**6000],
    ids=lambda wrong: type(wrong).__name__,
)
def test_what_has_no_json_form(wrong: object) -> None:
    with pytest.raises(PayloadInvalid, match=f"a {type(wrong).__name__} that has no JSON form"):
        json_bytes(wrong)
