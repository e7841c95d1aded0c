"""Whether a table of the application can hold tasks: what was seen there becomes what the statements need, or an error.

Here stands also the SQL that prepares such a table, as text for people. Pure, but for the statement that looks.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

from ..errors import ConfigurationError, PgconcertError, StatementFailed
from ..taskstore import TablePlace
from .link import Rows, statement
from .rowvalues import RowReader
from .schemafiles import NOT_PERMITTED, identifier, missing_tables, quoted
from .taskclauses import Rows as Words
from .taskclauses import table_rows

__all__ = ["LOOK", "TableFound", "found_table", "look_values", "misuse", "table_sql"]

_BIGINT: Final = 20
_MISUSES: Final = ("42", "22", "0A", "3F")
"""Classes of errors that do not go away by themselves: the SQL is wrong, or what it works on."""
_OF_THE_TIME: Final = re.compile(r"(?i)\b(now|\w+_timestamp|current_\w+|localtime\w*|random|age)\b")
_ALIAS: Final = re.compile(r"\bt\.")
_NAME: Final = re.compile(r'^((?:.*\.)?)("(?:[^"]|"")+"|[^".]+)$', re.DOTALL)
_LONGEST_NAME: Final = 40

# A column whose type is a domain is read as what lies below.
LOOK: Final = statement("""
    with recursive place as (
        select to_regclass($1::text) as oid, parse_ident($2::text) as id, $3::text as session
    ), typed as (
        select a.attnum, a.attname, a.atttypid as type from place p join pg_attribute a on a.attrelid = p.oid
         where a.attnum > 0 and not a.attisdropped
         union all
        select c.attnum, c.attname, t.typbasetype from typed c join pg_type t on t.oid = c.type where t.typtype = 'd'
    ), col as (
        select c.* from typed c join pg_type t on t.oid = c.type where t.typtype <> 'd'
    ), indexes as (
        select i.indkey[0] as first, i.indisunique and i.indpred is null and i.indnkeyatts = 1 as uniquely,
               coalesce(pg_get_expr(i.indpred, i.indrelid), '') as predicate
          from place p join pg_index i on i.indrelid = p.oid where i.indisvalid
    )
    select p.oid is not null, to_regclass($4::text) is not null, cardinality(p.id) = 1,
           (select json_agg(json_build_array(c.attname, cast(c.type as int8)) order by c.attnum) from col c),
           (select format_type(c.type, -1) from col c where c.attname = p.id[1]),
           (select c.type from col c where c.attname = p.session),
           exists (select from col c join indexes i on i.first = c.attnum and i.uniquely where c.attname = p.id[1]),
           exists (select from col c join indexes i on i.first = c.attnum where c.attname = p.session),
           exists (select from indexes i where i.predicate like '%' || quote_ident(p.session) || ' IS NULL%')
      from place p
""")

_PREPARED: Final = """\
-- Run this outside of a transaction, as the owner of the table: indexes are made while others work.

alter table TABLE add column if not exists SESSION bigint;

-- What belongs to somebody.
create index concurrently if not exists {STEM}_held on TABLE (SESSION) where SESSION is not null;

-- What is free, in order: its condition must follow from where=, its columns are those of order_by= and id=.
-- HINT
create index concurrently if not exists {STEM}_free on TABLE (COLUMNS) where FREE;
"""
_TRIGGER: Final = """
-- Wakes idle runners when an insert is committed.
create or replace function {PREFIX}{STEM}_wake() returns trigger language plpgsql as $wake$
begin
    perform pg_catalog.pg_notify('CHANNEL', 'SAID');
    return null;
end
$wake$;

drop trigger if exists {STEM}_wake on TABLE;

create trigger {STEM}_wake after insert on TABLE for each statement execute function {PREFIX}{STEM}_wake();
"""


class TableFound(NamedTuple):
    """What a table is like. ``advice``: what would make it faster, or surer."""

    words: Words
    reader: RowReader
    advice: tuple[str, ...]


def look_values(schema: str, place: TablePlace) -> tuple[bytes, ...]:
    """The parameters of ``LOOK``."""
    return (place.table.encode(), place.id.encode(), place.session.encode(), f"{quoted(schema)}.task".encode())


def found_table(schema: str, place: TablePlace, rows: Rows) -> TableFound:
    """Read what ``LOOK`` saw. Raises ``ConfigurationError`` for what is missing, ``SchemaMissing`` if it is ours."""
    there, ours, one, seen, id_type, session, unique, held, free = rows[0]
    if there != b"t":
        raise ConfigurationError(
            f"there is no table {place.table} in this database, or not on the search path of the role: name it with "
            "its schema, TableTasks('schema.table')"
        )
    if ours != b"t":
        raise missing_tables(schema, "TableTasks needs the table of sessions")
    columns: list[tuple[str, Any]] = [(name, oid) for name, oid in json.loads(seen or b"[]")]
    if one != b"t" or id_type is None:
        raise ConfigurationError(
            f"table {place.table} has no column {place.id}, only {', '.join(name for name, _ in columns)}; "
            "TableTasks(id=...) says which one names a task"
        )
    if session is None:
        raise ConfigurationError(
            f"table {place.table} has no column {identifier(place.session)} bigint, in which it stands whose a task "
            f"is; {_shown(place)} prints the SQL that adds it"
        )
    if int(session) != _BIGINT:
        raise ConfigurationError(
            f"the column {identifier(place.session)} of table {place.table} is no bigint: alter table {place.table} "
            f"alter column {identifier(place.session)} type bigint"
        )
    words = table_rows(schema, place, id_type.decode(), tuple(name for name, _ in columns))
    return TableFound(words, RowReader(columns), _advice(place, unique == b"t", held == b"t", free == b"t"))


def misuse(place: TablePlace, error: StatementFailed) -> PgconcertError:
    """What an error of the server means for a table."""
    if error.sqlstate == NOT_PERMITTED:
        change = "select, update, delete" if _deletes(place) else "select, update"
        return ConfigurationError(
            f"the role may not work with table {place.table} ({error}); let its owner run: grant {change} on "
            f"{place.table} to the role, and for the tables of pgconcert what this prints: pgconcert schema show"
        )
    if error.sqlstate.startswith(_MISUSES):
        return ConfigurationError(
            f"the server refuses the SQL of TableTasks({place.table!r}): {error} (SQLSTATE {error.sqlstate}). Look at "
            f"id={place.id!r}, where={place.where!r}, order_by={place.order_by!r} and finish={place.finish!r}, in "
            f"which the table is called t"
        )
    return StatementFailed(f"table {place.table}: {error}", error.sqlstate)


def table_sql(place: TablePlace, *, wake: tuple[str, str] | None = None) -> str:
    """The SQL that prepares a table: the column, the indexes, and with ``wake`` (a channel, and what is said there) a
    trigger that wakes idle runners when rows are inserted. For people, who may change it before they run it."""
    table, session = place.table.strip(), identifier(place.session)
    match = _NAME.match(table)
    prefix, name = (match[1], match[2]) if match else ("", table)
    stem = re.sub(r"\W+", "_", name).strip("_")[:_LONGEST_NAME] + "_pgconcert"
    where, order = (_ALIAS.sub("", " ".join(text.split())) for text in (place.where, place.order_by))
    free, hint = f"{session} is null", ""
    if _OF_THE_TIME.search(where):
        hint = f"-- An index cannot depend on the time. Add to its condition what does not, of: {where}\n"
    elif where.lower() != "true":
        free += f" and ({where})"
    columns = ", ".join(part for part in (order, place.id) if part)
    words = {"TABLE": table, "SESSION": session, "STEM": stem, "PREFIX": prefix, "COLUMNS": columns, "FREE": free}
    if wake is not None:
        words["CHANNEL"], words["SAID"] = (text.replace("'", "''") for text in wake)
    shown = _PREPARED + (_TRIGGER if wake is not None else "")
    return re.sub(r"{?\b([A-Z]{4,})\b}?", lambda word: words.get(word[1], word[0]), shown).replace("-- HINT\n", hint)


def _advice(place: TablePlace, unique: bool, held: bool, free: bool) -> tuple[str, ...]:
    said: list[str] = []
    if not unique:
        said.append(
            f"column {place.id} of table {place.table} has no unique index of its own: ids that are there twice would "
            "be handed out as one task"
        )
    if not held:
        said.append(
            f"table {place.table} has no index that begins with {identifier(place.session)}: every turn reads all of "
            f"it; {_shown(place)} prints the index"
        )
    if not free:
        said.append(
            f"table {place.table} has no index of what is free (where {identifier(place.session)} is null): a turn "
            f"looks at what is finished, too; {_shown(place)} prints the index"
        )
    return tuple(said)


def _shown(place: TablePlace) -> str:
    return f"pgconcert schema show --table {place.table}"


def _deletes(place: TablePlace) -> bool:
    return place.finish.strip().lower() == "delete"
