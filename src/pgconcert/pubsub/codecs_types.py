"""Which form the values of a type have in JSON. Here the annotations are read; no value is looked at.

These rules decide what travels between versions of a program, so they do not change:

==========================================  ==========================================================================
type                                        JSON
==========================================  ==========================================================================
``str`` ``int`` ``bool`` ``None``           itself; a bool is no int
``float``                                   a number, never infinite or NaN; an int is taken for one
``datetime`` ``date`` ``time``              text, as ``isoformat`` writes it; a time zone becomes its offset
``UUID`` ``Decimal``                        text; a Decimal is finite
``bytes``                                   text, in base64
an ``Enum``                                 the member's value, which is a text or an int
``Literal[...]``                            itself: texts, ints, bools, ``None``
``list[X]`` ``tuple[X, ...]``               array
``tuple[X, Y]``                             array of that length
``dict[K, X]``                              object; K must be written as a text
a dataclass                                 object, with the fields by name that its ``__init__`` takes
``X | Y``, ``Optional[X]``                  what the value's own type demands
``Any`` ``object``                          whatever ``json`` makes of it, so that a tuple in it comes back as a list
bare ``list`` ``tuple`` ``dict``            the same as with ``Any`` in it
==========================================  ==========================================================================

Values must be of the type that is written: ``"1"`` is no int, and an instance of a subclass is not the dataclass. Of an
object unknown keys are ignored, and a missing one takes the field's default, so that a field with a default can be
added while older processes run. The members of a union must be told apart by their JSON; several dataclasses are, by a
field that is a ``Literal`` of other texts in each. What has no rule is refused when the codec is made.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from typing import Any, Final

from ..errors import ConfigurationError
from .codecs_values import ATOMS, Form, Mismatch, enumeration, is_not, literal, mapping, row, sequence, union

__all__ = ["form_of", "shown_type"]

_WHATEVER: Final[dict[type, tuple[Any, ...]]] = {list: (Any,), tuple: (Any, ...), dict: (str, Any)}


def form_of(kind: object) -> Form:
    """The form of a type. Raises ``ConfigurationError`` for what has none."""
    return _Reading({}).form(kind, shown_type(kind))


def shown_type(kind: object) -> str:
    """A type as messages show it."""
    if isinstance(kind, type) and not isinstance(kind, types.GenericAlias):
        return kind.__name__
    return f"{kind!s:.100}".replace("typing.", "")


class _Reading:
    """Reads one type, and all that it is made of. ``records``: the dataclasses so far, for one may contain itself."""

    def __init__(self, records: dict[type, Form]) -> None:
        self._records = records

    def form(self, kind: Any, where: str) -> Form:
        """The form of ``kind``, which stands at ``where``."""
        kind = _bare(kind)
        name, origin, arguments = shown_type(kind), typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Literal:
            return literal(name, arguments, where)
        if kind in _UNPARAMETERED:
            origin = origin or kind
            arguments = _WHATEVER[origin]
        parts = [self.form(part, where) for part in arguments if part is not ...] if origin in _COMPOSED else []
        if origin in (typing.Union, types.UnionType):
            return union(name, parts, where)
        if origin is list or (origin is tuple and arguments[1:] == (...,)):
            return sequence(name, origin, parts[0])
        if origin is tuple:
            return row(name, parts)
        if origin is dict:
            return mapping(name, parts[0], parts[1], where)
        if isinstance(kind, type) and issubclass(kind, Enum):
            return enumeration(kind, where)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._records.get(kind) or self._record(kind)
        try:
            return ATOMS[kind]
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"{where} is {name}, which no rule writes as JSON; use str, int, float, bool, None, list, tuple, dict, "
                "Literal, unions, enums, dataclasses, datetime, date, time, UUID, Decimal or bytes, or give a codec="
            ) from None

    def _record(self, kind: type) -> Form:
        name = kind.__name__
        try:
            hints = typing.get_type_hints(kind)
        except Exception as error:
            raise ConfigurationError(
                f"the annotations of {name} cannot be read ({error}); define what they name at the top of a module"
            ) from None
        for field, hint in hints.items():
            if isinstance(hint, dataclasses.InitVar):
                raise ConfigurationError(
                    f"{name}.{field} is an InitVar, which a finished {name} has no more; give a codec="
                )
        sent = [field for field in dataclasses.fields(kind) if field.init]
        tags = {field.name: _texts(hints[field.name]) for field in sent}
        forms: dict[str, Form] = {}
        required = {
            field.name
            for field in sent
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        }

        def accepts(value: Any) -> bool:
            return type(value) is kind

        def encode(value: Any) -> Any:
            if type(value) is not kind:
                raise is_not(value, name)
            return {field: _at(field, form.encode, getattr(value, field)) for field, form in forms.items()}

        def decode(raw: Any) -> Any:
            if type(raw) is not dict:
                raise is_not(raw, f"the object of {name}")
            missing = required - raw.keys()
            if missing:
                raise Mismatch("is missing").at(f".{min(missing)}")
            found = {field: _at(field, form.decode, raw[field]) for field, form in forms.items() if field in raw}
            try:
                return kind(**found)
            except Exception as error:
                raise Mismatch(f"is no {name}: it raised {type(error).__name__}") from error

        made = Form(
            name,
            frozenset(["object"]),
            accepts,
            encode,
            decode,
            {field: texts for field, texts in tags.items() if texts},
        )
        self._records[kind] = made
        forms.update((field.name, self.form(hints[field.name], f"{name}.{field.name}")) for field in sent)
        return made


_COMPOSED: Final = (typing.Union, types.UnionType, list, tuple, dict)
_UNPARAMETERED: Final[tuple[Any, ...]] = (list, tuple, dict, typing.List, typing.Tuple, typing.Dict)  # noqa: UP006


def _at(field: str, convert: Any, value: object) -> Any:
    try:
        return convert(value)
    except Mismatch as error:
        error.at(f".{field}")
        raise


def _bare(kind: Any) -> Any:
    """The type behind ``Annotated``, ``NewType`` and names of types."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            return kind


def _texts(hint: Any) -> tuple[str, ...]:
    """The texts of a ``Literal`` of texts."""
    kind = _bare(hint)
    values = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    return values if all(isinstance(value, str) for value in values) else ()
