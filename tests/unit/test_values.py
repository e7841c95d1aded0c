"""`pgconcert.values`: what passes, what is refused and how it is told, and what counts as nothing."""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, assert_type
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert import values
from pgconcert.errors import ConfigurationError

CHECKS = [name for name in values.__all__ if name != "or_null"]
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.text(),
    st.binary(),
    st.dates(),
    st.times(),
    st.datetimes(),
    st.datetimes(timezones=st.timezones()),
    st.uuids(),
    st.decimals(),
)


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 7


class OtherUUID(uuid.UUID):
    """What asyncpg brings back is a class of its own."""


NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")
TWICE = datetime(2024, 11, 3, 1, 30, fold=1, tzinfo=NEW_YORK)  # two such times that night
ID = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")

TAKEN: list[tuple[str, Any, Any]] = [
    *((name, None, None) for name in CHECKS),
    ("int2", -(2**15), -(2**15)),
    ("int2", 2**15 - 1, 2**15 - 1),
    ("int4", 2**31 - 1, 2**31 - 1),
    ("int8", -(2**63), -(2**63)),
    ("int4", Size.BIG, 7),
    ("boolean", False, False),
    ("text", "", ""),
    ("text", Colour.RED, "red"),
    ("date", date.max, date.max),
    ("time", time(23, 59, 59, 999999), time(23, 59, 59, 999999)),
    ("timestamp", datetime.max, datetime.max),  # noqa: DTZ901
    ("timestamptz", datetime(2024, 1, 1, tzinfo=NEW_YORK), datetime(2024, 1, 1, 5, tzinfo=UTC)),
    ("timestamptz", TWICE, datetime(2024, 11, 3, 6, 30, tzinfo=UTC)),
    ("uuid", ID, ID),
    ("uuid", str(ID), ID),
    ("uuid", ID.hex.upper(), ID),
    ("uuid", OtherUUID(int=ID.int), ID),
]


@pytest.mark.parametrize(("name", "value", "wanted"), TAKEN)
def test_what_is_taken_becomes_a_plain_value(name: str, value: Any, wanted: Any) -> None:
    got = getattr(values, name)(value)
    assert got == wanted
    assert type(got) is type(wanted)


REFUSED: list[tuple[str, Any, str]] = [
    ("int2", 2**15, "an int from -32768 to 32767, or None; not int 32768"),
    ("int4", -(2**31) - 1, "from -2147483648 to 2147483647, or None; not int -2147483649"),
    ("int8", 2**63, "from -9223372036854775808 to 9223372036854775807"),
    ("int8", 1 << 200, "not int an int of 201 bits"),
    ("int4", True, "not bool True"),
    ("int4", 1.0, "not float 1.0"),
    ("int4", "1", "not str '1'"),
    ("int8", Decimal(1), "not Decimal"),
    ("boolean", 1, "boolean takes True or False, or None; not int 1"),
    ("boolean", "t", "not str 't'"),
    ("text", 7, "text takes a str, or None; not int 7"),
    ("text", b"a", "not bytes b'a'"),
    ("text", "ab\0c", "text holds no NUL; there is one at character 3 of 4"),
    ("text", "\ud800", r"text holds no U\+D800, half of a surrogate pair; there is one at character 1 of 1"),
    ("date", NAIVE, r"in the zone that you mean\), or None; not datetime"),
    ("date", "2024-01-01", "not str"),
    ("time", time(1, tzinfo=UTC), "without a zone, or None; not time"),
    ("time", timedelta(1), "not timedelta"),
    ("timestamp", datetime(2024, 1, 1, tzinfo=UTC), "without a zone"),
    ("timestamptz", NAIVE, "with a zone"),
    ("timestamptz", date(2024, 1, 1), "not date"),
    ("timestamptz", datetime.min.replace(tzinfo=timezone(timedelta(hours=1))), "from the year 1 to 9999 in UTC"),
    ("uuid", "6ba7b810", "32 hexadecimal digits, or None; not str '6ba7b810'"),
    ("uuid", f"{{{ID}}}", "32 hexadecimal digits"),
    ("uuid", f"{ID}\n", "32 hexadecimal digits"),
    ("uuid", 7, "not int 7"),
]


@pytest.mark.parametrize(("name", "value", "words"), REFUSED)
def test_what_is_refused_and_how_it_is_told(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        getattr(values, name)(value)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300


@given(st.sampled_from(CHECKS), ANYTHING)
def test_one_type_takes_it_and_keeps_it_the_second_time(name: str, value: Any) -> None:
    check = getattr(values, name)
    try:
        once = check(value)
    except ConfigurationError:
        return
    assert check(once) == once
    assert (once is None) is (value is None)


@given(st.text(), st.sampled_from("\0\ud800\udfff"), st.text())
def test_a_refused_text_is_not_shown(before: str, bad: str, after: str) -> None:
    secret = "s3cr3t"
    with pytest.raises(ConfigurationError) as caught:
        values.text(secret + before + bad + after)
    assert secret not in repr(caught.value)


NOTHING = ["", b"", 0, 0.0, -0.0, Decimal("0.00"), uuid.UUID(int=0), date.min, datetime.min,  # noqa: DTZ901
           datetime.min.replace(tzinfo=UTC), None]  # fmt: skip
SOMETHING = [False, True, " ", b"\0", 1, -1, 0.1, float("nan"), Decimal("NaN"), ID, time(), timedelta(), [],
             {}, (), set(), EPOCH.replace(tzinfo=None), EPOCH, date(1970, 1, 1)]  # fmt: skip


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_what_is_null(value: object) -> None:
    assert values.or_null(value) is None


@pytest.mark.parametrize("value", SOMETHING, ids=repr)
def test_what_is_not_null(value: object) -> None:
    assert values.or_null(value) is value


def test_no_second_two_o_clock() -> None:
    """Columns have none, and equality does not show it."""
    assert values.time(time(2, fold=1)).fold == 0
    assert values.timestamp(datetime(2024, 10, 27, 2, fold=1)).fold == 0  # noqa: DTZ001


def test_types_follow_what_is_given() -> None:
    maybe: int | None = 7
    assert_type(values.int4(7), int)
    assert_type(values.text("a"), str)
    assert_type(values.uuid(str(ID)), uuid.UUID)
    assert_type(values.uuid(None), None)
    assert_type(values.date(date.min), date)
    assert values.int8(values.or_null(maybe)) == 7
