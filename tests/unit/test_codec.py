"""How values become payloads and come back, and that nothing is read as what it is not.

Here live the rules of our own codec, one by one, and the types of other libraries, where those are installed. The
bytes in ``WRITTEN`` stand for all versions: a change of them breaks processes that run beside each other.
"""

from __future__ import annotations

import math
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any, Dict, List, Literal, Optional, Tuple, Union  # noqa: UP035
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.errors import DecodeFailed, PayloadInvalid
from pgconcert.pubsub.codec import codec_for
from tests.unit.codectypes import (
    NAIVE,
    SOME_ID,
    UTC_1,
    Colour,
    Created,
    Deleted,
    Line,
    Mixed,
    Name,
    Node,
    Order,
    OrderId,
    Picky,
    Rights,
    Size,
    Special,
)

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


def test_what_is_installed_changes_no_bytes_of_a_dataclass() -> None:
    for name in ("msgspec", "pydantic"):
        pytest.importorskip(name, reason=f"needs {name}")
    for kind, value, raw in WRITTEN:
        assert codec_for(kind).encode(value) == raw
