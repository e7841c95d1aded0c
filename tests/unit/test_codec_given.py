"""What has no form is refused at once; codecs of the caller's, and types of other libraries.

How types are written is tested in `test_codec.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import Enum
from typing import Any, Generic, Literal

import pytest

from pgconcert.errors import ConfigurationError, DecodeFailed, PayloadInvalid
from pgconcert.pubsub.codec import codec_for
from tests.unit.codectypes import (
    Colour,
    Created,
    Deleted,
    Line,
    Made,
    T,
)

# what has no form


@dataclass
class Hurt:
    part: set[int]


@dataclass
class Box(Generic[T]):
    content: T


@dataclass
class Initial:
    seed: dataclasses.InitVar[int]


@dataclass
class Lost:
    part: NotThere  # type: ignore[name-defined]  # noqa: F821


class Odd(Enum):
    ONE = (1, 2)


class Plain:
    pass


@dataclass
class Other:
    id: int


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (set[int], r"set\[int\] is set\[int\], which no rule writes"),
        (Hurt, r"Hurt.part is set\[int\]"),
        (list[Hurt], r"Hurt.part is set\[int\]"),
        (Plain, "Plain is Plain"),
        (complex, "no rule writes"),
        (timedelta, "no rule writes"),
        (Box, "Box.content is ~T"),
        (Box[int], "no rule writes"),
        (Initial, "seed is an InitVar"),
        (Lost, "annotations of Lost cannot be read .*NotThere"),
        (Odd, "not all texts or ints"),
        (Literal[b"a"], "no JSON form"),
        (dict[int, str], "keys of a JSON object are texts, which int is not"),
        (str | date, "str or date, and both are written as a JSON text"),
        (Colour | str, "JSON text"),
        (list[int] | tuple[int, ...], "JSON array"),
        (Line | Other, "Line or Other, and both .* JSON object.* Literal"),
        (Created | Line, "JSON object"),
        (Created | Made, "Created or Made, and both .* JSON object"),
        (Line | dict[str, int], "JSON object"),
        (Created | Deleted | dict[str, int], "JSON object"),
        (Line("a"), "no rule writes"),
        ("Line", "no rule writes"),
        ([int], "no rule writes"),
    ],
    ids=repr,
)
def test_what_has_no_form_is_refused_at_once(kind: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        codec_for(kind)


# codecs that are given


class Shouting:
    def encode(self, value: str) -> bytes:
        return value.upper().encode()

    def decode(self, raw: bytes) -> str:
        return raw.decode().lower()


class Broken:
    def encode(self, value: object) -> Any:
        if value == "wrong":
            return 7
        raise KeyError("no")

    def decode(self, raw: bytes) -> object:
        raise KeyError("no")


def test_a_codec_of_the_callers_own_goes_before_the_type() -> None:
    codec = codec_for(str, Shouting())
    assert codec.encode("hello") == b"HELLO"
    assert codec.decode(b"HELLO") == "hello"
    assert codec_for(Plain, Shouting())


def test_what_it_raises_has_our_names() -> None:
    codec = codec_for(Plain, Broken())
    with pytest.raises(PayloadInvalid, match="KeyError: 'no'"):
        codec.encode(Plain())
    with pytest.raises(PayloadInvalid, match="not int"):
        codec.encode("wrong")
    with pytest.raises(DecodeFailed) as caught:
        codec.decode(b"raw")
    assert caught.value.raw == b"raw"


@pytest.mark.parametrize("wrong", [7, "json", object(), dict])
def test_what_is_no_codec(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="encode"):
        codec_for(str, wrong)


# types of other libraries


def test_structs_of_msgspec() -> None:
    msgspec = pytest.importorskip("msgspec", reason="needs msgspec")
    kind = msgspec.defstruct("Point", [("x", int), ("y", float, 0.5), ("when", datetime | None, None)])
    codec = codec_for(kind)
    assert codec.encode(kind(1)) == b'{"x":1,"y":0.5,"when":null}'
    assert codec.decode(b'{"x":1}') == kind(1)
    with pytest.raises(DecodeFailed, match=r"no Point: .*\$.x"):
        codec.decode(b'{"x":"1"}')
    with pytest.raises(DecodeFailed):
        codec.decode(b"{")
    with pytest.raises(PayloadInvalid, match="it is no Point"):
        codec.encode(Line("a"))


def test_models_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic")
    kind = pydantic.create_model("Point", x=(int, pydantic.Field(alias="X")), y=(float, 0.5))
    codec = codec_for(kind)
    assert codec.encode(kind(X=1)) == b'{"X":1,"y":0.5}'
    assert codec.decode(b'{"X":1}') == kind(X=1)
    with pytest.raises(DecodeFailed, match=r"no Point: X is wrong .*2 errors in all") as caught:
        codec.decode(b'{"X":"hidden","y":"hidden"}')
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(caught.value.__cause__)
    with pytest.raises(DecodeFailed):
        codec.decode(b"{")
    with pytest.raises(PayloadInvalid, match="it is no Point"):
        codec.encode(Line("a"))
