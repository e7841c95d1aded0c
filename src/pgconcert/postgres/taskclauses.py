"""Where tasks stand as rows, as one set of words for our queues and for tables of the application. No statement.

Theory. The statements about tasks (``taskstatements.py``) are written once, with words in capital letters for what
differs: the table, how a task is named, what is due, what comes first, what becomes of what is finished. A ``Rows``
has these words, and ``written`` puts them into a statement, all at once: so no word inside the SQL of an application is
ever taken for one of ours, and its text stays as it is. Parameters have names (``$finished``) until then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from ..taskstore import TablePlace
from .link import Statement
from .schemafiles import identifier, quoted
from .sessionclauses import PREFACE

__all__ = ["Rows", "Written", "queue_rows", "table_rows", "written"]

_TYPES: Final = {
    "session": "int8",
    "runner_namespace": "text",
    "runner": "text",
    "namespace": "text",
    "queue": "text",
    "retention": "float8",
    "errors": "text[]",
    "retries": "float8[]",
    "most": "int8",
    "begin": "int8",
    "resting": "int8",
    "givers": "int8[]",
    "counts": "int8[]",
}
"""Of parameters; those that are not here are ids."""

_STYLES: Final = "(select set_config('datestyle', 'ISO', true), set_config('intervalstyle', 'postgres', true)) styles"
"""How values are written that ``rowvalues.py`` reads; nothing of how they are read changes."""

_PARAMETER: Final = re.compile(r"\$([a-z_]+)")


@dataclass(frozen=True, slots=True)
class Rows:
    """The words for one kind of rows. ``words``: by the name that stands in the statements. ``columns``: what is read
    of a task when it is handed out, as expressions over ``t``. ``counts``: whether attempts are counted, and when
    something that is not due yet will be is known."""

    schema: str
    words: Mapping[str, str]
    columns: tuple[str, ...]
    counts: bool


def queue_rows(schema: str) -> Rows:
    """A queue: rows of our table, of which the parameters say which queue."""
    return Rows(
        schema,
        {
            "SETTINGS": "limits",
            "TASKS": f"{quoted(schema)}.task t",
            "SCOPE": "(t.namespace = $namespace and t.queue = $queue)",
            "ID": "id",
            "IDS": "int8[]",
            "SESSION": "session_id",
            "OPEN": "true",
            "FREE": "(t.session_id is null and not t.dead)",
            "DUE": "t.run_at <= (select now from me)",
            "ORDER": "t.run_at, t.id",
            "COUNTED": ", attempt = t.attempt + 1",
            "UNCOUNTED": ", attempt = t.attempt - case when t.session_id > 0 then 1 else 0 end",
            "ATTEMPT": "t.attempt",
            "WORN": "t.attempt >= t.attempts",
        },
        ("encode(t.payload, 'base64')",),
        counts=True,
    )


def table_rows(schema: str, place: TablePlace, id_type: str, columns: tuple[str, ...]) -> Rows:
    """A table of the application; ``id_type`` and the names of its ``columns`` as the server has them."""
    order = f"\n{place.order_by}\n, t.{place.id}" if place.order_by.strip() else f"t.{place.id}"
    where = f"(\n{place.where}\n)"
    return Rows(
        schema,
        {
            "SETTINGS": f"limits cross join {_STYLES}",
            "TASKS": f"{place.table} t",
            "SCOPE": "true",
            "ID": place.id,
            "IDS": f"text[]::{id_type}[]",
            "SESSION": identifier(place.session),
            "OPEN": where,
            "FREE": f"(t.{identifier(place.session)} is null)",
            "DUE": where,
            "ORDER": order,
            "FINISH": f"\n{place.finish}\n",
            "COUNTED": "",
            "UNCOUNTED": "",
            "ATTEMPT": "0",
            "WORN": "false",
        },
        tuple(f"t.{identifier(column)}" for column in columns),
        counts=False,
    )


@dataclass(frozen=True, slots=True)
class Written:
    """A statement for some rows, and the names of its parameters, in their order."""

    statement: Statement
    parameters: tuple[str, ...]


def written(text: str, rows: Rows) -> Written:
    """A statement: ``text`` follows the preface."""
    plain = " ".join(f"with recursive {PREFACE}, {text}".split()).replace(" pgconcert.", f" {quoted(rows.schema)}.")
    read = "".join(f", {column} as c{place}" for place, column in enumerate(rows.columns, 1))
    words = {**rows.words, "COLUMNS": read, "NOTHING": ", null" * len(rows.columns)}
    # the words of a queue have parameters of their own
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1]
        return f"${names.setdefault(name, len(names) + 1)}::{_TYPES.get(name) or words['IDS']}"

    if rows.counts:
        plain = _put(plain, words)
    plain = _PARAMETER.sub(number, plain)
    sql = (plain if rows.counts else _put(plain, words)).encode()
    return Written(Statement(b"pgc_" + blake2b(sql, digest_size=9).hexdigest().encode(), sql), tuple(names))


def _put(text: str, words: Mapping[str, str]) -> str:
    return re.sub(r"\b[A-Z]{2,}\b", lambda match: words.get(match[0], match[0]), text)
