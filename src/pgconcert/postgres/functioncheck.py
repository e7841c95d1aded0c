"""Whether a schema has what go-session-lock needs: what was seen there becomes an error, or advice. Pure.

What is looked at, besides that everything is there, are its traps: without the row of ``work_lock`` there is no mutual
exclusion, and nobody says so; and a function body that was left empty counts nothing, so that nobody gets a task.
"""

from __future__ import annotations

import json
from typing import Final

from ..errors import ConfigurationError
from ..taskstore import FunctionPlace
from .functionstatements import FUNCTIONS
from .link import Rows
from .schemafiles import quoted

__all__ = ["advice", "check"]

_TABLES: Final = ("session", "work_lock")
_WHOLE_NUMBERS: Final = frozenset((20, 21, 23))
_HOW_TO: Final = "apply the migrations of go-session-lock there, or name another schema: FunctionTasks(schema)"


def check(place: FunctionPlace, rows: Rows) -> None:
    """Raise ``ConfigurationError``, unless schema, functions, tables and the columns of a task are there."""
    there, functions, tables, columns = rows[0]
    schema = quoted(place.schema)
    if there != b"t":
        raise ConfigurationError(f"there is no schema {schema} in this database; {_HOW_TO}")
    known = set(json.loads(functions or b"[]"))
    missing = [f"function {name}" for name, parameters in FUNCTIONS if f"{name}/{parameters}" not in known]
    missing += [f"table {name}" for name in _TABLES if name not in json.loads(tables or b"[]")]
    if missing:
        raise ConfigurationError(f"schema {schema} lacks {', '.join(missing)}; {_HOW_TO}")
    types = dict(json.loads(columns or b"[]"))
    if place.id not in types:
        raise ConfigurationError(
            f"the type session_task in schema {schema} has no column {place.id!r}, only {', '.join(types) or 'none'}; "
            "FunctionTasks(id=...) says which one names a task"
        )
    if types[place.id] not in _WHOLE_NUMBERS:
        raise ConfigurationError(
            f"the column {place.id!r} of session_task in schema {schema} is no whole number, and finish_tasks wants "
            "bigint; FunctionTasks(id=...) says which column names a task"
        )


def advice(place: FunctionPlace, rows: Rows) -> tuple[str, ...]:
    """What would make it faster. Raises ``ConfigurationError`` if tasks cannot be shared as it is."""
    locked, no_count, no_count_of_session, indexed = (value == b"t" for value in rows[0])
    schema = quoted(place.schema)
    if not locked:
        raise ConfigurationError(
            f"table work_lock in schema {schema} has no row 1, without which two runners may pick up the same task; "
            f"run: insert into {schema}.work_lock (id, created) values (1, now() at time zone 'utc')"
        )
    for empty, name in ((no_count, "get_task_count()"), (no_count_of_session, "get_task_count_for_session(0)")):
        if empty:
            raise ConfigurationError(
                f"{name} in schema {schema} returns null instead of a number, so no session ever gets a task; its body "
                "was perhaps left empty"
            )
    index = f"create index concurrently on {schema}.session (expires)"
    return () if indexed else (f"sessions are never deleted, and every get_work counts those that live: {index}",)
