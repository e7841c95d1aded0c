"""The SQL that speaks to go-session-lock's functions in a schema. No logic.

Those functions, and the tables that they use, are found by the search path: by their own bodies, because what is in
them is not qualified. So every request is a transaction of several statements, the first of which sets the path (and
in which form dates come), until its end. It cannot be done in one statement: the server reads and plans a statement as
a whole before anything of it runs, and bodies in the language SQL are put in its place there, by the path of before.

The path is the schema and, behind it, what the role has anyway, for that is how the functions' authors call them.

Never is ``expires`` fetched: it may be ``-infinity``, and it is the time of day at Greenwich without saying so.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .link import Statement
from .schemafiles import checked, identifier

__all__ = ["FUNCTIONS", "ROLE_PATH", "SETTINGS", "FunctionStatements", "function_statements"]

FUNCTIONS: Final = (
    ("throw_session_not_found", 0),
    ("start_session", 0),
    ("bump_session", 1),
    ("end_session", 1),
    ("get_work", 2),
    ("get_task_count", 0),
    ("get_task_count_for_session", 1),
    ("pickup_tasks_for_session", 2),
    ("get_tasks_for_session", 1),
    ("finish_tasks", 1),
)
"""What a schema must have, with the number of parameters."""

ROLE_PATH: Final = Statement(b"", b"select reset_val from pg_settings where name = 'search_path'")

SETTINGS: Final = Statement(
    b"",
    b"select set_config('search_path', $1, true), set_config('lock_timeout', $2, true), "
    b"set_config('datestyle', 'ISO', true), set_config('intervalstyle', 'postgres', true)",
)


class FunctionStatements(NamedTuple):
    """See the fields of the same names in go-session-lock. ``session``, ``most`` and ``ids`` are parameters."""

    start: Statement
    bump: Statement
    end: Statement
    get_work: Statement
    """A row for each task: the columns of their type as JSON (once, in the first row), its id, and its columns."""
    lock: Statement
    finish: Statement
    """One row with the ids that were finished, as JSON; none, if none was the session's."""
    look: Statement
    """What there is: whether the schema, the functions, the tables, the columns and types of ``session_task``."""
    look_inside: Statement
    """Whether the lock row is there, the counts are null, sessions have an index by their end."""


def function_statements(schema: str, column: str) -> FunctionStatements:
    """The statements for a schema, whose tasks are named by ``column``. Raises ``ConfigurationError``."""
    within = identifier(checked(schema))
    name = identifier(column)

    def columns(parameter: str) -> str:
        """Names and types of the columns of a task, of the schema that the parameter names."""
        return f"""
        (select json_agg(json_build_array(a.attname, coalesce(nullif(y.typbasetype, 0), y.oid)::int8) order by a.attnum)
           from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
           join pg_catalog.pg_type t on t.oid = p.prorettype
           join pg_catalog.pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
           join pg_catalog.pg_type y on y.oid = a.atttypid
          where n.nspname = {parameter}::text and p.proname = 'get_work' and p.pronargs = 2)
        """

    return FunctionStatements(
        start=_plain(f"select {within}.start_session()"),
        bump=_plain(f"select {within}.bump_session($1::int8)"),
        end=_plain(f"select {within}.end_session($1::int8)"),
        get_work=_plain(f"""
            select case when row_number() over () = 1 then {columns("$3")} end, w.{name}::text, w.*
              from {within}.get_work($1::int8, $2::int4) w
        """),
        lock=_plain(f"select id from {within}.work_lock where id = 1 for update"),
        # what is theirs to say, whose a task is, is asked under the lock that every pick-up takes
        finish=_plain(f"""
            with ours as materialized (
                select json_agg(t.{name}::text) as told, array_agg(t.{name}::int8) as ids
                  from {within}.get_tasks_for_session($1::int8) t where t.{name}::text = any ($2::text[])
            )
            select told, {within}.finish_tasks(ids) from ours where ids is not null
        """),
        look=_plain(f"""
            select exists (select from pg_catalog.pg_namespace where nspname = $1::text),
                   (select coalesce(json_agg(p.proname || '/' || p.pronargs), '[]')
                      from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
                     where n.nspname = $1::text),
                   (select coalesce(json_agg(c.relname), '[]')
                      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                     where n.nspname = $1::text and c.relname in ('session', 'work_lock')
                       and c.relkind in ('r', 'p', 'v', 'f')),
                   {columns("$1")}
        """),
        look_inside=_plain(f"""
            select exists (select from {within}.work_lock where id = 1),
                   {within}.get_task_count() is null, {within}.get_task_count_for_session(0) is null,
                   exists (select from pg_catalog.pg_index i
                             join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
                             join pg_catalog.pg_class c on c.oid = i.indrelid
                             join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                            where n.nspname = $1::text and c.relname = 'session'
                              and a.attname = 'expires' and i.indpred is null)
        """),
    )


def _plain(sql: str) -> Statement:
    return Statement(b"", sql.strip().encode())
