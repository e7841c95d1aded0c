"""Values on their way into a column and out of it, checked before the server sees them. Pure; no driver stands here.

Theory. Each function is named after the type of the column. It takes what a program has or what a driver brings back,
lets ``None`` through (it is NULL), and returns the plain Python value that every driver sends as that type and that
comes back equal; whoever calls it on its own result gets the same. So one function serves both directions. What the
type cannot hold raises ``ConfigurationError`` (a ``ValueError``) here, with the value and the range, and not as an
error of the server that ends a transaction. Nothing is rounded, cut or guessed: a ``bool`` is no number, a number no
text, and a time without a zone no instant.

``or_null`` is for programs in which "nothing" is written as an empty text or a zero.
"""

from __future__ import annotations

import re
import uuid as uuids
from datetime import UTC, datetime
from datetime import date as calendar_date
from datetime import time as time_of_day
from decimal import Decimal
from typing import Any, Final, TypeVar, cast, overload

from .errors import ConfigurationError, given

__all__ = ["boolean", "date", "int2", "int4", "int8", "or_null", "text", "time", "timestamp", "timestamptz", "uuid"]

T = TypeVar("T")
Int = TypeVar("Int", int, int | None)
Bool = TypeVar("Bool", bool, bool | None)
Text = TypeVar("Text", str, str | None)
Date = TypeVar("Date", calendar_date, calendar_date | None)
Time = TypeVar("Time", time_of_day, time_of_day | None)
Datetime = TypeVar("Datetime", datetime, datetime | None)

_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[0-9a-fA-F]{32}")

_ZEROES: Final[tuple[tuple[type, object], ...]] = (
    (str, ""),
    (bytes, b""),
    (int, 0),
    (float, 0.0),
    (Decimal, Decimal(0)),
    (uuids.UUID, uuids.UUID(int=0)),
    (datetime, datetime.min),  # noqa: DTZ901  compared without zones
    (calendar_date, calendar_date.min),
)
"""What stands for "nothing", by type; the first type that fits decides."""


def or_null(value: T) -> T | None:
    """``None`` for a zero value, and every other value as it is.

    Zero are ``""``, ``b""``, ``0``, ``0.0``, ``Decimal(0)``, the UUID of zeros, ``date.min`` and ``datetime.min`` (with
    any zone, or without). Not zero, because they say something: ``False``, midnight, the beginning of 1970, an empty
    list or mapping, and whatever is not named here.
    """
    if isinstance(value, bool):
        return value
    plain = value.replace(tzinfo=None) if isinstance(value, datetime) else value
    for kind, zero in _ZEROES:
        if isinstance(plain, kind):
            return None if plain == zero else value
    return value


def int2(value: Int) -> Int:
    """For a ``smallint``: an int from -32768 to 32767, or ``None``."""
    return _integer("int2", value, 15)


def int4(value: Int) -> Int:
    """For an ``integer``: an int from -2147483648 to 2147483647, or ``None``."""
    return _integer("int4", value, 31)


def int8(value: Int) -> Int:
    """For a ``bigint``: an int from -9223372036854775808 to 9223372036854775807, or ``None``."""
    return _integer("int8", value, 63)


def boolean(value: Bool) -> Bool:
    """For a ``boolean``: ``True``, ``False``, or ``None``; no number and no text."""
    return _need("boolean", value, isinstance(value, bool), "True or False")


def text(value: Text) -> Text:
    """For ``text``: a str, or ``None``. NUL and halves of surrogate pairs have no place in a column; the error says
    where one is, and does not show the text. Members of an enumeration of texts become their text."""
    checked = _need("text", value, isinstance(value, str), "a str")
    if checked is None:
        return checked
    found = _NO_TEXT.search(checked)
    if found:
        what = "NUL" if found[0] == "\0" else f"U+{ord(found[0]):04X}, half of a surrogate pair"
        raise ConfigurationError(
            f"text holds no {what}; there is one at character {found.start() + 1} of {len(checked)} (not shown here)"
        )
    return _exact(checked)


def date(value: Date) -> Date:
    """For a ``date``: a date, or ``None``; no datetime, whose ``.date()`` depends on a zone that you know."""
    there: Any = value
    fits = isinstance(there, calendar_date) and not isinstance(there, datetime)
    return _need("date", value, fits, "a date (of a datetime its .date(), in the zone that you mean)")


def time(value: Time) -> Time:
    """For a ``time`` of day: a ``datetime.time`` without a zone, or ``None``."""
    there: Any = value
    fits = isinstance(there, time_of_day) and there.tzinfo is None
    return _once(_need("time", value, fits, "a time of day without a zone"))


def timestamp(value: Datetime) -> Datetime:
    """For a ``timestamp`` without time zone: a datetime without a zone, or ``None``."""
    there: Any = value
    fits = isinstance(there, datetime) and there.tzinfo is None
    return _once(_need("timestamp", value, fits, "a datetime without a zone (an instant is a timestamptz)"))


def timestamptz(value: Datetime) -> Datetime:
    """For a ``timestamp with time zone``: a datetime that knows its zone, or ``None``. Returns the same instant in UTC,
    because the server keeps no zone, and drivers bring it back in zones of their own. (asyncpg takes ``datetime.min``
    and ``datetime.max`` for the server's infinities, and brings them back without a zone.)"""
    there: Any = value
    fits = isinstance(there, datetime) and there.utcoffset() is not None
    instant = _need("timestamptz", value, fits, "a datetime with a zone, such as datetime.now(UTC)")
    if instant is None:
        return instant
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return _need("timestamptz", instant, False, "an instant from the year 1 to 9999 in UTC")


@overload
def uuid(value: None) -> None: ...
@overload
def uuid(value: uuids.UUID | str) -> uuids.UUID: ...
@overload
def uuid(value: uuids.UUID | str | None) -> uuids.UUID | None: ...
def uuid(value: uuids.UUID | str | None) -> uuids.UUID | None:
    """For a ``uuid``: a UUID, or its text (32 hexadecimal digits, with hyphens or without), or ``None``. Returns a
    ``uuid.UUID``, also of what a driver brings back as text or as a class of its own."""
    if isinstance(value, uuids.UUID):
        return uuids.UUID(int=value.int)
    fits = isinstance(value, str) and _UUID_TEXT.fullmatch(value) is not None
    checked = _need("uuid", value, fits, "a UUID, or its 32 hexadecimal digits")
    return None if checked is None else uuids.UUID(checked)


def _integer(name: str, value: T, bits: int) -> T:
    limit = 1 << bits
    fits = isinstance(value, int) and not isinstance(value, bool) and -limit <= value < limit
    checked = _need(name, value, fits, f"an int from {-limit} to {limit - 1}")
    return cast("T", int(checked)) if isinstance(checked, int) else checked


def _exact(value: T) -> T:
    """The text itself of a member of an enumeration, which some drivers would send by its name."""
    return cast("T", str.__str__(value)) if isinstance(value, str) else value


def _once(value: T) -> T:
    """Without ``fold``: a column has no second two o'clock in the morning."""
    return cast("T", value.replace(fold=0)) if isinstance(value, (datetime, time_of_day)) else value


def _need(name: str, value: T, fits: bool, wanted: str) -> T:
    if value is None or fits:
        return value
    raise ConfigurationError(f"{name} takes {wanted}, or None; not {type(value).__name__} {given(value)}")
