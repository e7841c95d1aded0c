"""What an event says, for machines: its kind and its fields, as values that every format of logs and traces can carry.

Pure. A field keeps its name, and its value becomes what JSON has::

    text, bool, whole number, None   as it is
    other number                     as it is; None if it is not finite
    several of something             a list
    an exception                     two fields: its text under the name, its class under the name and ``_type``
    bytes                            their number, under the name and ``_bytes``: payloads of others are not ours
                                     to write down

``at`` is left out: the record of a log and a span have a time of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields as declared

from ..events import Event

__all__ = ["FieldValue", "fields", "kind"]

FieldValue = str | int | float | bool | None | list[str | int | float | bool | None]
"""What a field may be."""


def kind(event: Event) -> str:
    """The kind of an event: the name of its class."""
    return type(event).__name__


def fields(event: Event) -> dict[str, FieldValue]:
    """The fields of an event, in the order in which they are declared. ``json.dumps`` takes them as they are."""
    told: dict[str, FieldValue] = {}
    for field in declared(event):
        if field.name != "at":
            told.update(_field(field.name, getattr(event, field.name)))
    return told


def _field(name: str, value: object) -> Iterator[tuple[str, FieldValue]]:
    if isinstance(value, BaseException):
        yield name, str(value)
        yield f"{name}_type", type(value).__name__
    elif isinstance(value, (bytes, bytearray, memoryview)):
        yield f"{name}_bytes", len(value)
    elif isinstance(value, (tuple, list, set, frozenset)):
        yield name, [_plain(one) for one in value]
    else:
        yield name, _plain(value)


def _plain(value: object) -> str | int | float | bool | None:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int)):
        return value
    return str(value)
