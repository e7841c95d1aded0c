"""What a lock key may be, and the published numbers that any other language must reach.

Here live the vectors. They stand as literals and are computed a second time from the written definition, with nothing
but ``hashlib``: a change of the derivation would make processes of two versions exclude each other no longer.
"""

from __future__ import annotations

import hashlib
from enum import Enum, IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import ConfigurationError, KeyInvalid
from pgconcert.keys import MAX_TEXT_BYTES, KeySpace, LockKey, interest_pair, wake_bucket

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200)

# namespace, text, key
VECTORS = [
    ("", "a", 1739565181172592808),
    ("", "invoice:42", 3219489317448992053),
    ("", "42", 4288209525568345912),
    ("billing", "invoice:42", -1101052232042411129),
    ("", "üñï€", 8489378102401741831),
    ("é", " ", -7868026561128165157),
]

# key, the pair of int4, the wake bucket
PAIRS = [
    (0, (268435456, 0), 0),
    (1, (268435456, 1), 1),
    (-1, (536870896, -1), 255),
    (42, (268435456, 42), 42),
    (9223372036854775807, (536870904, -1), 255),
    (-9223372036854775808, (268435464, 0), 0),
    (1739565181172592808, (405024081, -814862168), 168),
]


def by_definition(namespace: str, text: str) -> int:
    data = b"pgconcert:1\0" + namespace.encode() + b"\0" + text.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def pair_by_definition(key: int) -> tuple[int, int]:
    bits = f"{key % 2**64:064b}"
    top, upper, lower = bits[:4], bits[4:32], bits[32:]
    folded = upper[:24] + f"{int(upper[24:], 2) ^ int(top, 2):04b}"
    second = int(lower, 2)
    return int("0001" + folded, 2), second - 2**32 if second >= 2**31 else second


@pytest.mark.parametrize(("namespace", "text", "key"), VECTORS)
def test_published_vectors(namespace: str, text: str, key: int) -> None:
    assert KeySpace(namespace).key(text).value == key == by_definition(namespace, text)


@pytest.mark.parametrize(("key", "pair", "bucket"), PAIRS)
def test_published_pairs(key: int, pair: tuple[int, int], bucket: int) -> None:
    assert interest_pair(key) == pair == pair_by_definition(key)
    assert wake_bucket(key) == bucket


@given(TEXT, TEXT)
def test_text_keys_follow_the_definition(namespace: str, text: str) -> None:
    namespace = namespace[:50]
    key = KeySpace(namespace).key(text)
    assert key.value == by_definition(namespace, text)
    assert key.name == text
    assert -(2**63) <= key.value < 2**63


@given(INT64)
def test_an_int_is_its_own_key_in_every_namespace(number: int) -> None:
    key = KeySpace("any").key(number)
    assert (key.name, key.value) == (number, number)


@given(INT64)
def test_interest_pairs_fit_the_server_and_say_their_kind(number: int) -> None:
    first, second = interest_pair(number)
    assert first >> 28 == 1
    assert -(2**31) <= first < 2**31
    assert -(2**31) <= second < 2**31
    assert (first, second) == pair_by_definition(number)
    assert wake_bucket(number) == second % 256


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_an_int_beyond_64_bits_is_refused(number: int) -> None:
    with pytest.raises(KeyInvalid, match=r"does not fit"):
        KeySpace().key(number)


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 0])
def test_the_ends_of_the_range_are_keys(number: int) -> None:
    assert KeySpace().key(number).value == number


def test_an_int_of_thousands_of_digits_is_refused_too() -> None:
    with pytest.raises(KeyInvalid):
        KeySpace().key(1 << 20000)


@pytest.mark.parametrize("name", [True, False, None, 1.0, b"bytes", ("a",), ["a"]])
def test_what_is_neither_int_nor_text_is_refused(name: object) -> None:
    with pytest.raises(KeyInvalid, match=f"not {type(name).__name__}"):
        KeySpace().key(name)  # type: ignore[arg-type]


class Plain(str):
    __slots__ = ()


class Number(IntEnum):
    SEVEN = 7


class Name(str, Enum):  # noqa: UP042 - the older spelling is what is tested
    INVOICE = "invoice"


def test_subclasses_give_the_key_of_their_value() -> None:
    space = KeySpace()
    assert space.key(Plain("a")) == space.key("a")
    assert space.key(Number.SEVEN) == space.key(7)


def test_a_text_enum_gives_the_key_of_the_text_it_equals() -> None:
    assert Name.INVOICE.value == "invoice"
    assert KeySpace().key(Name.INVOICE) == KeySpace().key("invoice")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be the empty text"),
        ("a\0b", "NUL character"),
        ("\ud800", "lone surrogate at position 0"),
        ("ok\udfff", "lone surrogate at position 2"),
        ("a" * (MAX_TEXT_BYTES + 1), "has 1001 bytes; at most 1000"),
        ("é" * 501, "has 1002 bytes"),
        ("\N{ELEPHANT}" * 251, "has 1004 bytes"),
    ],
)
def test_texts_that_are_no_key(text: str, message: str) -> None:
    with pytest.raises(KeyInvalid, match=message) as caught:
        KeySpace().key(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["a" * 1000, "é" * 500, "\N{ELEPHANT}" * 250, " ", "\n"])
def test_texts_that_just_fit(text: str) -> None:
    assert KeySpace().key(text).value == by_definition("", text)


def test_namespaces_separate_and_are_no_prefix() -> None:
    values = {KeySpace(space).key(text).value for space, text in [("", "a"), ("n", "a"), ("na", "a"), ("", "na")]}
    assert len(values) == 4


@pytest.mark.parametrize(
    ("namespace", "message"),
    [("a\0b", "NUL"), ("\ud800", "lone surrogate"), ("é" * 101, "has 202 bytes; at most 200"), (7, "must be text")],
)
def test_namespaces_that_are_refused(namespace: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KeySpace(namespace)


def test_keys_are_equal_by_what_the_server_knows() -> None:
    assert LockKey("a", 1) == LockKey(1, 1)
    assert hash(LockKey("a", 1)) == hash(LockKey(1, 1))
    assert LockKey("a", 1) != LockKey("a", 2)
    assert LockKey("a", 1) != 1
    assert repr(LockKey("a", 1)) == "LockKey('a', 1)"
