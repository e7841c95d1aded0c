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
from pgconcert.keys import (
    MAX_PERMITS,
    MAX_TEXT_BYTES,
    KeySpace,
    LockKey,
    agreement_pair,
    gate_pair,
    interest_pair,
    numbered_pair,
    slot_pair,
    wake_bucket,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBER = st.integers(0, 2**10 - 1)
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

# namespace, name of a semaphore, its 64 bits
SEMAPHORES = [
    ("", "gpu", 6793283404285141683),
    ("billing", "gpu", -752479248478880901),
    ("", "üñï€", 6878519631491733893),
    ("é", " ", -6903760988353277792),
]

# key, the pair of int4 for interest and for the gate, the wake bucket
PAIRS = [
    (0, (268435456, 0), (536870912, 0), 0),
    (1, (268435456, 1), (536870912, 1), 1),
    (-1, (536870896, -1), (805306352, -1), 255),
    (42, (268435456, 42), (536870912, 42), 42),
    (9223372036854775807, (536870904, -1), (805306360, -1), 255),
    (-9223372036854775808, (268435464, 0), (536870920, 0), 0),
    (1739565181172592808, (405024081, -814862168), (673459537, -814862168), 168),
]

# the 64 bits of a semaphore, the pairs of the slots 0 and 999, of the agreements about 1 and 1000 permits
NUMBERED = [
    (0, (805306368, 0), (1067188224, 0), (1074003968, 0), (1335885824, 0)),
    (-1, (805568511, -1), (1067450367, -1), (1074266111, -1), (1336147967, -1)),
    (9223372036854775807, (805568511, -1), (1067450367, -1), (1074266111, -1), (1336147967, -1)),
    (-9223372036854775808, (805306368, 0), (1067188224, 0), (1074003968, 0), (1335885824, 0)),
    (
        6793283404285141683,
        (805476163, -1963400525),
        (1067358019, -1963400525),
        (1074173763, -1963400525),
        (1336055619, -1963400525),
    ),
]


def by_definition(namespace: str, text: str) -> int:
    data = b"pgconcert:1\0" + namespace.encode() + b"\0" + text.encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def folded_by_definition(kind: str, key: int) -> tuple[int, int]:
    bits = f"{key % 2**64:064b}"
    top, upper, lower = bits[:4], bits[4:32], bits[32:]
    folded = upper[:24] + f"{int(upper[24:], 2) ^ int(top, 2):04b}"
    return int(kind + folded, 2), signed(lower)


def numbered_by_definition(kind: str, key: int, number: int) -> tuple[int, int]:
    bits = f"{key % 2**64:064b}"
    return int(kind + f"{number:010b}" + bits[14:32], 2), signed(bits[32:])


def signed(bits: str) -> int:
    number = int(bits, 2)
    return number - 2**32 if number >= 2**31 else number


@pytest.mark.parametrize(("namespace", "text", "key"), VECTORS)
def test_published_vectors(namespace: str, text: str, key: int) -> None:
    assert KeySpace(namespace).key(text).value == key == by_definition(namespace, text)


@pytest.mark.parametrize(("namespace", "name", "bits"), SEMAPHORES)
def test_published_semaphores(namespace: str, name: str, bits: int) -> None:
    """Beyond the range of the server, so that it never equals the key of a lock."""
    assert bits == by_definition(namespace, "semaphore\0" + name)
    for permits in (1, MAX_PERMITS):
        key = KeySpace(namespace).semaphore(name, permits)
        assert (key.name, key.value, key.permits) == (name, bits + 2**64, permits)
        assert key.value > 2**63 - 1


@pytest.mark.parametrize(("key", "interest", "gate", "bucket"), PAIRS)
def test_published_pairs(key: int, interest: tuple[int, int], gate: tuple[int, int], bucket: int) -> None:
    assert interest_pair(key) == interest == folded_by_definition("0001", key)
    assert gate_pair(key) == gate == folded_by_definition("0010", key)
    assert wake_bucket(key) == bucket


@pytest.mark.parametrize(("bits", "first", "last", "fewest", "most"), NUMBERED)
def test_published_numbered_pairs(
    bits: int, first: tuple[int, int], last: tuple[int, int], fewest: tuple[int, int], most: tuple[int, int]
) -> None:
    value = bits + 2**64
    assert (slot_pair(value, 0), slot_pair(value, 999)) == (first, last)
    assert (agreement_pair(value, 1), agreement_pair(value, 1000)) == (fewest, most)
    assert numbered_pair(last) == (3, 999, bits % 2**50)
    assert numbered_pair(most) == (4, 1000, bits % 2**50)


@given(INT64, NUMBER)
def test_numbered_pairs_follow_the_definition_and_can_be_read(bits: int, number: int) -> None:
    """All ten bits of number, although a semaphore has no more than a thousand permits."""
    value = bits + 2**64
    slot, agreement = slot_pair(value, number), agreement_pair(value, number)
    assert slot == numbered_by_definition("0011", bits, number)
    assert agreement == numbered_by_definition("0100", bits, number)
    assert numbered_pair(slot) == (3, number, bits % 2**50)
    assert numbered_pair(agreement) == (4, number, bits % 2**50)
    assert all(-(2**31) <= half < 2**31 for half in (*slot, *agreement))


@given(INT64)
def test_a_semaphore_has_the_marks_of_its_64_bits(bits: int) -> None:
    assert interest_pair(bits + 2**64) == interest_pair(bits)
    assert wake_bucket(bits + 2**64) == wake_bucket(bits)


@given(INT64, INT64)
def test_kinds_never_meet(one: int, other: int) -> None:
    kinds = [interest_pair(one), gate_pair(other), slot_pair(one, 0), agreement_pair(other, 0)]
    assert [first >> 28 for first, _ in kinds] == [1, 2, 3, 4]


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
def test_marks_and_gates_fit_the_server_and_say_their_kind(number: int) -> None:
    for pair, kind in ((interest_pair(number), "0001"), (gate_pair(number), "0010")):
        assert pair == folded_by_definition(kind, number)
        assert pair[0] >> 28 == int(kind, 2)
        assert all(-(2**31) <= half < 2**31 for half in pair)
        assert wake_bucket(number) == pair[1] % 256


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (5, "is a text, not int"),
        (None, "is a text, not NoneType"),
        (b"gpu", "is a text, not bytes"),
        ("", "has 1 to 1000 encoded bytes, and '' has 0"),
        ("é" * 501, "has 1002$"),
        ("a\0b", "contains a NUL"),
        ("\ud800", "lone surrogate at position 0"),
    ],
)
def test_names_that_are_no_semaphore(name: object, message: str) -> None:
    with pytest.raises(KeyInvalid, match=message) as caught:
        KeySpace().semaphore(name, 1)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("permits", [0, -1, 1001, True, 1.0, "4", None])
def test_permits_that_are_none(permits: object) -> None:
    with pytest.raises(KeyInvalid, match="a whole number from 1 to 1000, not ") as caught:
        KeySpace().semaphore("gpu", permits)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 250


def test_permits_of_thousands_of_digits_are_refused_too() -> None:
    with pytest.raises(KeyInvalid, match="a whole number from 1 to 1000"):
        KeySpace().semaphore("gpu", 1 << 20000)


def test_a_semaphore_of_a_text_enum_is_that_of_the_text() -> None:
    assert KeySpace().semaphore(Name.INVOICE, 2) == KeySpace().semaphore("invoice", 2)


def test_no_text_of_a_lock_is_a_semaphore() -> None:
    assert KeySpace().key("gpu") != KeySpace().semaphore("gpu", 1)
    with pytest.raises(KeyInvalid, match="NUL"):
        KeySpace().key("semaphore\0gpu")


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
