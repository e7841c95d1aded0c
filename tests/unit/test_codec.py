"""How values become payloads and come back, and that nothing is read as what it is not.

Here live the rules of our own codec, one by one, and the types of other libraries, where those are installed. The
bytes in ``WRITTEN`` stand for all versions: a change of them breaks processes that run beside each other.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import Annotated, Any, Dict, Generic, List, Literal, NewType, Optional, Tuple, TypeVar, Union  # noqa: UP035
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import ConfigurationError, DecodeFailed, PayloadInvalid
from pgconcert.pubsub.codec import codec_for

T = TypeVar("T")
NAIVE = datetime(2024, 2, 29, 12, 30, 1, 5)  # noqa: DTZ001
UTC_1 = timezone(timedelta(hours=1))
SOME_ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(Enum):
    NONE = 0
    ALL = "all"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Name(StrEnum):
    ADA = "ada"


OrderId = NewType("OrderId", int)


@dataclass
class Line:
    item: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    id: OrderId
    lines: list[Line]
    price: Decimal | None = None
    tags: dict[str, str] = field(default_factory=dict)
    total: int = field(init=False, default=7)


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    parent: Node | None = None


@dataclass
class Created:
    id: int
    kind: Literal["created"] = "created"


@dataclass
class Deleted:
    id: int
    kind: Literal["deleted", "gone"] = "deleted"


@dataclass
class Made:
    id: int
    kind: Literal["made", "created"]


@dataclass
class Picky:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"secret {self.size}")


@dataclass
class Special(Line):
    extra: int = 0


# type, value, what travels
WRITTEN: list[tuple[Any, Any, bytes]] = [
    (bytes, b"\0\xff", b"\0\xff"),
    (str, "grüße\0", "grüße\0".encode()),
    (int, 10**30, b"1" + b"0" * 30),
    (int, -1, b"-1"),
    (float, 1.5, b"1.5"),
    (float, 1e300, b"1e+300"),
    (bool, True, b"true"),
    (None, None, b"null"),
    (type(None), None, b"null"),
    (datetime, NAIVE, b'"2024-02-29T12:30:01.000005"'),
    (datetime, datetime(2024, 2, 29, 12, 30, tzinfo=UTC_1), b'"2024-02-29T12:30:00+01:00"'),
    (date, date(2024, 2, 29), b'"2024-02-29"'),
    (time, time(23, 59), b'"23:59:00"'),
    (UUID, SOME_ID, b'"12345678-1234-5678-1234-567812345678"'),
    (Decimal, Decimal("1.10"), b'"1.10"'),
    (Decimal, Decimal("1E+500"), b'"1E+500"'),
    (list[bytes], [b"\0\xff", b""], b'["AP8=",""]'),
    (Colour, Colour.RED, b'"red"'),
    (Size, Size.LARGE, b"2"),
    (Mixed, Mixed.NONE, b"0"),
    (Mixed, Mixed.ALL, b'"all"'),
    (Rights, Rights.READ | Rights.WRITE, b"3"),
    (Name, Name.ADA, b'"ada"'),
    (Literal["a", 1, True], True, b"true"),
    (Literal["a", 1, True], 1, b"1"),
    (Literal["a", None], None, b"null"),  # noqa: PYI061
    (list[int], [1, 2], b"[1,2]"),
    (tuple[int, ...], (1, 2), b"[1,2]"),
    (tuple[int, ...], (), b"[]"),
    (tuple[int, str], (1, "a"), b'[1,"a"]'),
    (tuple[()], (), b"[]"),
    (dict[str, int], {"b": 1, "a": 2}, b'{"b":1,"a":2}'),
    (dict[UUID, date], {SOME_ID: date(2024, 1, 1)}, b'{"12345678-1234-5678-1234-567812345678":"2024-01-01"}'),
    (dict[Colour, int], {Colour.RED: 1}, b'{"red":1}'),
    (list, [1, "a", None, {"b": []}], b'[1,"a",null,{"b":[]}]'),
    (dict, {"a": [1.5, True]}, b'{"a":[1.5,true]}'),
    (tuple, (1, "a"), b'[1,"a"]'),
    (List[int], [1], b"[1]"),  # noqa: UP006
    (List, [1, "a"], b'[1,"a"]'),  # noqa: UP006
    (Tuple, (1, "a"), b'[1,"a"]'),  # noqa: UP006
    (Dict, {"a": 1}, b'{"a":1}'),  # noqa: UP006
    (Any, {"a": [None]}, b'{"a":[null]}'),
    (object, "text", b'"text"'),
    (Optional[int], None, b"null"),  # noqa: UP045
    (Optional[int], 1, b"1"),  # noqa: UP045
    (Optional[Any], [1], b"[1]"),  # noqa: UP045
    (Union[int, str], "1", b'"1"'),  # noqa: UP007
    (float | int, 1, b"1"),
    (int | float, 1.0, b"1.0"),
    (str | int | list[int] | dict[str, int] | bool | None, True, b"true"),
    (Line | list[Line] | None, [Line("a")], b'[{"item":"a","count":1}]'),
    (OrderId, 7, b"7"),
    (Annotated[int, "positive"], 7, b"7"),
    (Line, Line("a", 2), b'{"item":"a","count":2}'),
    (
        Order,
        Order(id=OrderId(1), lines=[Line("ä")], price=Decimal("2.50"), tags={"x": "y"}),
        '{"id":1,"lines":[{"item":"ä","count":1}],"price":"2.50","tags":{"x":"y"}}'.encode(),
    ),
    (Node, Node("a", [Node("b")]), b'{"name":"a","children":[{"name":"b","children":[],"parent":null}],"parent":null}'),
    (Created | Deleted, Created(1), b'{"id":1,"kind":"created"}'),
    (Created | Deleted | None, Deleted(2, "gone"), b'{"id":2,"kind":"gone"}'),
    (list[Created | Deleted], [Created(1), Deleted(2)], b'[{"id":1,"kind":"created"},{"id":2,"kind":"deleted"}]'),
]


@pytest.mark.parametrize(("kind", "value", "raw"), WRITTEN)
def test_what_travels_and_that_it_comes_back(kind: Any, value: Any, raw: bytes) -> None:
    codec = codec_for(kind)
    assert codec.encode(value) == raw
    back = codec.decode(raw)
    assert back == value
    assert type(back) is type(value)


def test_each_reading_is_a_new_value() -> None:
    codec = codec_for(Order)
    raw = codec.encode(Order(id=OrderId(1), lines=[Line("a")]))
    one, other = codec.decode(raw), codec.decode(raw)
    one.lines[0].count = 99
    one.tags["x"] = "y"
    assert (other.lines[0].count, other.tags) == (1, {})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (bytes, "text"),
        (bytes, 7),
        (str, b"raw"),
        (str, "a\ud800"),
        (int, True),
        (int, 1.0),
        (int, "1"),
        (float, True),
        (float, math.nan),
        (float, -math.inf),
        (float, 10**400),
        (bool, 1),
        (None, 0),
        (date, NAIVE),
        (datetime, date(2024, 1, 1)),
        (time, "12:00"),
        (UUID, str(SOME_ID)),
        (Decimal, Decimal("NaN")),
        (Decimal, 1),
        (list[bytes], [bytearray(b"")]),
        (Colour, "red"),
        (Size, 1),
        (Literal["a", 1], True),
        (Literal["a", 1], "b"),
        (Literal["a", 1], []),
        (list[int], (1,)),
        (list[int], [1, "2"]),
        (tuple[int, ...], [1]),
        (tuple[int, str], (1,)),
        (tuple[int, str], (1, "a", "b")),
        (dict[str, int], {1: 1}),
        (dict[str, int], {"a": "1"}),
        (dict[UUID, int], {"a": 1}),
        (dict, {1: 1}),
        (Any, {1, 2}),
        (Any, math.nan),
        (list[Any], [object()]),
        (int | str, 1.5),
        (Line, Special("a")),
        (Line, {"item": "a"}),
        (Line, Line(item=7)),  # type: ignore[arg-type]
        (Order, Order(id=OrderId(1), lines=[Line("a"), Line("b", "2")])),  # type: ignore[arg-type]
        (Created | Deleted, Line("a")),
        (Created | Deleted, Created(1, "deleted")),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_of_the_type_is_not_sent(kind: Any, value: Any) -> None:
    with pytest.raises(PayloadInvalid, match="cannot be sent as"):
        codec_for(kind).encode(value)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (str, b"\xff"),
        (int, b"true"),
        (int, b"1.0"),
        (int, b'"1"'),
        (int, b"1" + b"0" * 5000),
        (float, b"true"),
        (float, b"NaN"),
        (float, b"1e999"),
        (float, b"1" + b"0" * 400),
        (bool, b"1"),
        (None, b"false"),
        (datetime, b'"yesterday"'),
        (datetime, b"0"),
        (date, b'"2024-02-30"'),
        (time, b'"25:00"'),
        (UUID, b'"{12345678-1234-5678-1234-567812345678}"'),
        (UUID, b'"1234"'),
        (Decimal, b'"1,5"'),
        (Decimal, b'"Infinity"'),
        (Decimal, b"1.5"),
        (list[bytes], b'["A"]'),
        (list[bytes], b'["A\xc3\xbc=="]'),
        (Colour, b'"green"'),
        (Size, b"true"),
        (Size, b"1.0"),
        (Size, b'"1"'),
        (Literal["a", 1], b"true"),
        (Literal["a", 1], b"1.0"),
        (Literal["a", 1], b"[]"),
        (list[int], b"{}"),
        (list[int], b"[1,null]"),
        (tuple[int, str], b"[1]"),
        (dict[str, int], b"[]"),
        (dict[str, int], b'{"a":"1"}'),
        (dict[UUID, int], b'{"a":1}'),
        (int | None, b'"1"'),
        (Line, b"[]"),
        (Line, b"{}"),
        (Line, b'{"item":1}'),
        (Line, b'{"item":"a","count":null}'),
        (Picky, b'{"size":-7}'),
        (Created | Deleted, b'{"id":1}'),
        (Created | Deleted, b'{"id":1,"kind":"moved"}'),
        (Created | Deleted, b'{"id":1,"kind":["created"]}'),
        (Created | Deleted, b'{"kind":"created"}'),
        (Any, b""),
        (Any, b"\xff\xfe1\0"),
        (Any, b"'a'"),
        (Any, b"-Infinity"),
        (Any, b"[" * 100_000),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_not_of_the_type_is_not_read(kind: Any, raw: bytes) -> None:
    with pytest.raises(DecodeFailed, match=f"a payload of {len(raw)} bytes is no ") as caught:
        codec_for(kind).decode(raw)
    assert caught.value.raw is raw
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "raw", "told"),
    [
        (
            Order,
            b'{"id":1,"lines":[{"item":"a"},{"item":"b","count":"hidden"}]}',
            "lines[1].count must be int, not str",
        ),
        (Order, b'{"lines":[]}', "id is missing"),
        (Order, b'{"id":1,"lines":[],"price":"hidden"}', "price is no Decimal"),
        (dict[str, list[int]], b'{"hidden":["hidden"]}', "[…][0] must be int, not str"),
        (dict[date, int], b'{"hidden":1}', "a key is no date"),
        (int, b'"hidden"', "it must be int, not str"),
        (Created | Deleted, b'{"kind":"hidden"}', "kind names none of Created | Deleted"),
        (Created | Deleted, b'{"kind":["hidden"]}', "kind names none of Created | Deleted"),
        (Picky, b'{"size":-7}', "it is no Picky: it raised ValueError"),
        (Colour, b'"hidden"', "it is no Colour"),
        (tuple[int, str], b"[1]", "it must have 2 items, not 1"),
    ],
)
def test_errors_name_the_place_and_show_no_value(kind: Any, raw: bytes, told: str) -> None:
    with pytest.raises(DecodeFailed) as caught:
        codec_for(kind).decode(raw)
    assert str(caught.value).endswith(told)
    assert "hidden" not in str(caught.value)


def test_an_error_in_sending_names_the_place() -> None:
    order = Order(id=OrderId(1), lines=[Line("a"), Line("b", "hidden")])  # type: ignore[arg-type]
    with pytest.raises(
        PayloadInvalid, match=r"this Order cannot be sent as Order: lines\[1\].count must be int, not str"
    ):
        codec_for(Order).encode(order)


def test_what_contains_itself_cannot_be_sent() -> None:
    node = Node("a")
    node.parent = node
    with pytest.raises(PayloadInvalid, match="recursion"):
        codec_for(Node).encode(node)


def test_a_later_field_with_a_default_hurts_nobody() -> None:
    assert codec_for(Line).decode(b'{"item":"a","new":[1]}') == Line("a", 1)


@pytest.mark.parametrize("kind", [float, float | None, float | str | None])
def test_an_int_of_another_language_is_read_as_the_float_that_it_stands_for(kind: Any) -> None:
    value = codec_for(kind).decode(b"1")
    assert (type(value), value) == (float, 1.0)


VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.none(),
)


@given(st.lists(VALUES))
def test_a_union_gives_back_each_value_with_its_own_type(values: list[Any]) -> None:
    codec = codec_for(list[Union[bool, float, int, str, None]])  # noqa: UP007
    back = codec.decode(codec.encode(values))
    assert [(type(value), value) for value in back] == [(type(value), value) for value in values]


@given(
    st.builds(
        Order,
        id=st.integers().map(OrderId),
        lines=st.lists(st.builds(Line, item=st.text(st.characters(exclude_categories=["Cs"])), count=st.integers())),
        price=st.one_of(st.none(), st.decimals(allow_nan=False, allow_infinity=False)),
    )
)
def test_dataclasses_come_back(order: Order) -> None:
    codec = codec_for(Order)
    assert codec.decode(codec.encode(order)) == order


@given(st.binary())
def test_nothing_but_decode_failed_is_raised(raw: bytes) -> None:
    for kind in (Order, Created | Deleted, dict[UUID, datetime], tuple[int, ...], Any, str):
        try:
            codec_for(kind).decode(raw)
        except DecodeFailed:
            pass


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


def test_what_is_installed_changes_no_bytes_of_a_dataclass() -> None:
    for name in ("msgspec", "pydantic"):
        pytest.importorskip(name, reason=f"needs {name}")
    for kind, value, raw in WRITTEN:
        assert codec_for(kind).encode(value) == raw
