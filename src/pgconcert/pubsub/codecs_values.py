"""How single values, and what is put together from them, are written as JSON and read again. Pure functions.

Here stand the forms of values; which form a type has, and the rules in a table, stand in ``codecs_types.py``. A form
checks while it writes and while it reads: what is not of its type is a ``Mismatch``, which knows the way to the place.
No message shows a value, for it may be a secret.
"""

from __future__ import annotations

import binascii
import json
import math
from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple
from uuid import UUID

from ..errors import ConfigurationError

__all__ = [
    "ANY",
    "ATOMS",
    "Form",
    "Mismatch",
    "enumeration",
    "from_json",
    "is_not",
    "literal",
    "mapping",
    "row",
    "sequence",
    "union",
]


class Mismatch(Exception):
    """A value is not of its type. The text says where, and what is wanted."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []

    def at(self, step: str) -> Mismatch:
        """The same, seen from one level further out."""
        self.path.append(step)
        return self

    def __str__(self) -> str:
        return f"{''.join(reversed(self.path)).lstrip('.') or 'it'} {self.why}"


class Form(NamedTuple):
    """How the values of one type are written and read.

    ``shapes`` are the kinds of JSON that they become, ``accepts`` tells from outside whether a value is of the type.
    Of a dataclass, ``tags`` has the texts that its fields of ``Literal`` may be.
    """

    name: str
    shapes: frozenset[str]
    accepts: Callable[[Any], bool]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    tags: dict[str, tuple[str, ...]] | None = None


_SHAPES: Final[dict[type, str]] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "text",
    list: "array",
    dict: "object",
}
"""What ``json`` makes of each kind of JSON, and how it is called here."""


def from_json(raw: bytes) -> object:
    """What JSON in UTF-8 says. Raises ``ValueError`` and ``RecursionError``."""
    return json.loads(raw.decode(), parse_constant=_no_constant)


def is_not(value: object, name: str) -> Mismatch:
    """A value is not what ``name`` says."""
    return Mismatch(f"must be {name}, not {type(value).__name__}")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# values without parts


def _same(value: Any) -> Any:
    return value


def _atom(
    name: str,
    shape: str,
    accepts: Callable[[Any], bool],
    write: Callable[[Any], Any] = _same,
    read: Callable[[Any], Any] = _same,
) -> Form:
    """``read`` gets JSON of the right shape, and raises ``ValueError`` for what is wrong."""

    def encode(value: Any) -> Any:
        if not accepts(value):
            raise is_not(value, name)
        return write(value)

    def decode(raw: Any) -> Any:
        if _SHAPES[type(raw)] != shape:
            raise is_not(raw, name if read is _same else f"the {shape} of {name}")
        try:
            return read(raw)
        except (ValueError, ArithmeticError):
            raise Mismatch(f"is no {name}") from None

    return Form(name, frozenset([shape]), accepts, encode, decode)


def _instance(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_int(value)


def _is_date(value: object) -> bool:
    return isinstance(value, date) and not isinstance(value, datetime)


def _number(value: Any) -> float:
    if not _is_number(value):
        raise is_not(value, "float")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Mismatch("must be a finite float")
    return number


def _uuid(raw: str) -> UUID:
    found = UUID(raw)
    if str(found) != raw.lower():
        raise ValueError
    return found


def _decimal(value: str | Decimal) -> Decimal:
    found = Decimal(value)
    if not found.is_finite():
        raise Mismatch("must be a finite Decimal")
    return found


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode()


def _from_base64(raw: str) -> bytes:
    return binascii.a2b_base64(raw, strict_mode=True)


def _iso(value: date | time) -> str:
    return value.isoformat()


ANY: Final = Form("Any", frozenset(_SHAPES.values()), lambda value: True, _same, _same)
"""Whatever JSON can say."""

_NULL: Final = _atom("None", "null", lambda value: value is None)

ATOMS: Final[dict[object, Form]] = {
    Any: ANY,
    object: ANY,
    None: _NULL,
    type(None): _NULL,
    str: _atom("str", "text", _instance(str)),
    int: _atom("int", "int", _is_int),
    float: Form("float", frozenset(["float"]), _is_number, _number, _number),
    bool: _atom("bool", "bool", _instance(bool)),
    datetime: _atom("datetime", "text", _instance(datetime), _iso, datetime.fromisoformat),
    date: _atom("date", "text", _is_date, _iso, date.fromisoformat),
    time: _atom("time", "text", _instance(time), _iso, time.fromisoformat),
    UUID: _atom("UUID", "text", _instance(UUID), str, _uuid),
    Decimal: _atom("Decimal", "text", _instance(Decimal), lambda value: str(_decimal(value)), _decimal),
    bytes: _atom("bytes", "text", _instance(bytes), _base64, _from_base64),
}
"""The types that are written by a rule of their own."""


def literal(name: str, values: Sequence[object], where: str) -> Form:
    """One of some texts, ints, bools and ``None``."""
    wrong = [value for value in values if type(value) not in (str, int, bool, type(None))]
    if wrong:
        raise ConfigurationError(f"{where} is {name}, and {wrong[0]!r:.100} has no JSON form of its own")
    allowed = {(type(value), value) for value in values}
    kinds = {type(value) for value in values}

    def accepts(value: Any) -> bool:
        return type(value) in kinds and (type(value), value) in allowed

    def check(value: Any) -> Any:
        if not accepts(value):
            raise Mismatch(f"must be {name}")
        return value

    return Form(name, frozenset(_SHAPES[kind] for kind in kinds), accepts, check, check)


def enumeration(kind: type[Enum], where: str) -> Form:
    """A member of an enum, by its value."""
    members = list(kind)
    if not members or not all(isinstance(member.value, str) or _is_int(member.value) for member in members):
        raise ConfigurationError(
            f"{where} is {kind.__name__}, whose values are not all texts or ints; give it such values, or give a codec="
        )
    shapes = frozenset("text" if isinstance(member.value, str) else "int" for member in members)

    def encode(value: Any) -> Any:
        if not isinstance(value, kind):
            raise is_not(value, kind.__name__)
        return value.value

    def decode(raw: Any) -> Any:
        if _SHAPES[type(raw)] not in shapes:
            raise is_not(raw, f"the value of a {kind.__name__}")
        try:
            return kind(raw)
        except ValueError:
            raise Mismatch(f"is no {kind.__name__}") from None

    return Form(kind.__name__, shapes, _instance(kind), encode, decode)


# values with parts


def _each(values: Any, convert: Callable[[Any], Any]) -> list[Any]:
    made: list[Any] = []
    try:
        made.extend(map(convert, values))
    except Mismatch as error:
        error.at(f"[{len(made)}]")
        raise
    return made


def sequence(name: str, kind: type[list[Any] | tuple[Any, ...]], item: Form) -> Form:
    """A list or a tuple of any length."""

    def encode(value: Any) -> Any:
        if not isinstance(value, kind):
            raise is_not(value, name)
        return _each(value, item.encode)

    def decode(raw: Any) -> Any:
        if type(raw) is not list:
            raise is_not(raw, f"the array of {name}")
        return kind(_each(raw, item.decode))

    return Form(name, frozenset(["array"]), _instance(kind), encode, decode)


def row(name: str, items: Sequence[Form]) -> Form:
    """A tuple of a given length."""

    def convert(values: Any, how: str) -> list[Any]:
        if len(values) != len(items):
            raise Mismatch(f"must have {len(items)} items, not {len(values)}")
        parts = zip(items, values, strict=True)
        return _each(parts, lambda part: getattr(part[0], how)(part[1]))

    def encode(value: Any) -> Any:
        if not isinstance(value, tuple):
            raise is_not(value, name)
        return convert(value, "encode")

    def decode(raw: Any) -> Any:
        if type(raw) is not list:
            raise is_not(raw, f"the array of {name}")
        return tuple(convert(raw, "decode"))

    return Form(name, frozenset(["array"]), _instance(tuple), encode, decode)


def mapping(name: str, key: Form, item: Form, where: str) -> Form:
    """A dict whose keys are written as texts."""
    if key.shapes != {"text"}:
        raise ConfigurationError(
            f"{where} is {name}, and the keys of a JSON object are texts, which {key.name} is not; use dict[str, …]"
        )

    def encode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise is_not(value, name)
        return {_at_key(key.encode, part): _at(item.encode, part, value[part]) for part in value}

    def decode(raw: Any) -> Any:
        if type(raw) is not dict:
            raise is_not(raw, f"the object of {name}")
        return {_at_key(key.decode, part): _at(item.decode, part, raw[part]) for part in raw}

    return Form(name, frozenset(["object"]), _instance(dict), encode, decode)


def _at_key(convert: Callable[[Any], Any], part: object) -> Any:
    try:
        return convert(part)
    except Mismatch as error:
        error.at(" a key")
        raise


def _at(convert: Callable[[Any], Any], part: object, value: object) -> Any:
    try:
        return convert(value)
    except Mismatch as error:
        error.at("[…]")  # the key is a value, too
        raise


# one of several types


def union(name: str, members: Sequence[Form], where: str) -> Form:
    """A value of one of several types, which must be told apart by their JSON."""
    if ANY in members:
        return ANY
    records = [form for form in members if form.tags is not None]
    readers: dict[str, Form] = {"object": _tagged(records, where)} if len(records) > 1 else {}
    for form in members:
        if len(records) > 1 and form in records:
            continue
        for shape in form.shapes:
            if shape in readers:
                raise _ambiguous(where, readers[shape], form, shape)
            readers[shape] = form
    if "float" in readers:
        readers.setdefault("int", readers["float"])
    # a float takes ints, too, so it is asked after them
    writers = sorted(members, key=lambda form: "float" in form.shapes)

    def encode(value: Any) -> Any:
        for form in writers:
            if form.accepts(value):
                return form.encode(value)
        raise is_not(value, name)

    def decode(raw: Any) -> Any:
        form = readers.get(_SHAPES[type(raw)])
        if form is None:
            raise is_not(raw, name)
        return form.decode(raw)

    return Form(name, frozenset(readers), lambda value: any(form.accepts(value) for form in writers), encode, decode)


def _tagged(records: Sequence[Form], where: str) -> Form:
    """The reader of several dataclasses, told apart by a field that is another ``Literal`` in each."""
    tags = [form.tags or {} for form in records]
    for field in tags[0]:
        texts = [text for known in tags for text in known.get(field, ())]
        if all(field in known for known in tags) and len(set(texts)) == len(texts):
            break
    else:
        raise _ambiguous(where, records[0], records[1], "object")
    by_text = {text: form for form, known in zip(records, tags, strict=True) for text in known[field]}
    names = " | ".join(form.name for form in records)

    def decode(raw: Any) -> Any:
        text = raw.get(field)
        form = by_text.get(text) if isinstance(text, str) else None
        if form is None:
            raise Mismatch(f"names none of {names}").at(f".{field}")
        return form.decode(raw)

    return Form(names, frozenset(["object"]), lambda value: False, _same, decode)


def _ambiguous(where: str, one: Form, other: Form, shape: str) -> ConfigurationError:
    hint = "give each a field with a Literal of its own" if shape == "object" else "put them into dataclasses"
    return ConfigurationError(
        f"{where} may be {one.name} or {other.name}, and both are written as a JSON {shape}, so nobody can tell which "
        f"it was; {hint}, or give a codec="
    )
