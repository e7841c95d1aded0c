"""What a server error says, whichever driver brings it and whoever has wrapped it. Pure; nothing here talks to anybody.

Drivers keep SQLSTATE, message and the name of a constraint in places of their own; SQLAlchemy puts the driver's error
into ``orig``, Django into ``__cause__``, and an application may raise its own ``from`` it. No driver is imported: what
an error has is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import ConfigurationError, given

__all__ = ["Told", "is_constraint_error", "told", "told_by"]


class Told(NamedTuple):
    """What the server said."""

    sqlstate: str
    message: str
    constraint: str | None


def is_constraint_error(error: BaseException | None, name: str) -> bool:
    """Whether ``error`` says that a statement violated the constraint ``name``.

    It may be wrapped (SQLAlchemy, Django, an ``ExceptionGroup``) or chained (``raise ... from``, or raised while it was
    handled). Knows psycopg 3 and 2, asyncpg and pg8000. A name is compared as the server tells it: without its schema.
    ``None`` is no error. A unique index counts as a constraint of its name.
    """
    called: object = name
    if not isinstance(called, str) or not called:
        raise ConfigurationError(f"the name of a constraint is a text, not {given(name)}")
    return error is not None and any(found.constraint == name for found in told_by(error))


def told_by(error: BaseException) -> Iterator[Told]:
    """What each server error says that ``error`` is, wraps, or follows, the outermost first."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        found = told(one)
        if found is not None:
            yield found
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        context = None if one.__suppress_context__ else one.__context__
        waiting += [getattr(one, "orig", None), one.__cause__, context]


def told(error: BaseException) -> Told | None:
    """What the server said, if ``error`` itself is a driver's error of the server."""
    fields = error.args[0] if error.args and isinstance(error.args[0], dict) else None
    if fields is not None:  # pg8000 passes the fields of the protocol on
        return _checked(fields.get("C"), fields.get("M"), fields.get("n"))
    diag: Any = getattr(error, "diag", None)
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if diag is not None:  # psycopg and psycopg2
        return _checked(sqlstate, diag.message_primary or str(error), diag.constraint_name)
    if hasattr(error, "orig"):  # SQLAlchemy has the driver's error there
        return None
    return _checked(sqlstate, getattr(error, "message", None) or str(error), getattr(error, "constraint_name", None))


def _checked(sqlstate: object, message: object, constraint: object) -> Told | None:
    if not isinstance(sqlstate, str) or len(sqlstate) != 5:
        return None
    return Told(sqlstate, str(message), constraint if isinstance(constraint, str) and constraint else None)
