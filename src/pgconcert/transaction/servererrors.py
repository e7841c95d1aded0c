"""What a server error says, whichever driver brings it and whoever has wrapped it. Pure; nothing here talks to anybody.

Drivers keep SQLSTATE, message and the name of a constraint in places of their own; SQLAlchemy puts the driver's error
into ``orig``, Django into ``__cause__``, and an application may raise its own ``from`` it. No driver is imported: what
an error has is looked for, and an error that is not as it seems, or raises when it is looked at, has said nothing.

Theory. An error belongs to those that it is raised from, that it wraps, that it holds as a group, and that were being
handled when it was raised; all of these are visited, each once, so that cycles end. ``raise ... from None`` is how a
program says that what it was handling is no part of its error, and ends the way there.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError, given

__all__ = ["Told", "is_constraint_error", "told", "told_by"]

_SQLSTATE: Final = re.compile("[0-9A-Z]{5}")


class Told(NamedTuple):
    """What the server said."""

    sqlstate: str
    message: str
    constraint: str | None


def is_constraint_error(error: BaseException | None, name: str) -> bool:
    """Whether ``error`` says that a statement violated the constraint ``name``: unique, primary or foreign key, check,
    or exclusion. A unique index counts as a constraint of its name; a ``not null`` is not told by name.

    The error may be wrapped (SQLAlchemy, Django, an ``ExceptionGroup``) or chained: raised ``from`` the driver's, or
    while that was handled, but not ``from None``. Knows psycopg 3 and 2, asyncpg and pg8000. The name is compared as
    the server has it: without its schema and its quotes, in its own upper and lower case. ``None`` is no error.
    """
    called: object = name
    if not isinstance(called, str) or not called:
        raise ConfigurationError(f"the name of a constraint is a text, not {given(name)}")
    return error is not None and any(found.constraint == name for found in told_by(error))


def told_by(error: BaseException, beyond: BaseException | None = None) -> Iterator[Told]:
    """What each server error says that ``error`` is, wraps, or follows, the outermost first.

    ``beyond``: an error that was being handled already, which every later one follows without belonging to it.
    """
    seen: dict[int, object] = {id(beyond): beyond}  # kept as they are, so that no other gets the id of one
    waiting: deque[object] = deque([error])
    while waiting:
        one = waiting.popleft()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen[id(one)] = one
        found = told(one)
        if found is not None:
            yield found
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        waiting += (_has(one, "orig"), one.__cause__, None if one.__suppress_context__ else one.__context__)


def told(error: BaseException) -> Told | None:
    """What the server said, if ``error`` itself is a driver's error of the server."""
    args = _has(error, "args")
    fields = args[0] if isinstance(args, tuple) and args else None
    if isinstance(fields, dict):  # pg8000 passes the fields of the protocol on
        found = _checked(fields.get("C"), fields.get("n"), lambda: fields["M"])
        if found is not None:
            return found
    sqlstate = _has(error, "sqlstate")
    if not isinstance(sqlstate, str):
        sqlstate = _has(error, "pgcode")
    diag = _has(error, "diag")
    if diag is not None:  # psycopg and psycopg2
        return _checked(sqlstate, _has(diag, "constraint_name"), lambda: _has(diag, "message_primary") or str(error))
    return _checked(sqlstate, _has(error, "constraint_name"), lambda: _has(error, "message") or str(error))


def _checked(sqlstate: object, constraint: object, message: Callable[[], object]) -> Told | None:
    if not isinstance(sqlstate, str) or not _SQLSTATE.fullmatch(sqlstate):
        return None
    try:
        text = str(message())
    except Exception:
        text = ""
    return Told(sqlstate, text, constraint if isinstance(constraint, str) and constraint else None)


def _has(thing: object, name: str) -> Any:
    """An attribute, or ``None``: whatever a foreign object does when it is asked."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None
