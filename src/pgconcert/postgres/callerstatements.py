"""The statements of ``transaction.publish``, ``lock`` and ``try_lock``, said on connections of the caller's. No logic.

Theory. Search path, encoding and settings of such a connection may be any: every name has its schema, those of
operators too, and ``is distinct from`` is not said, because it hides one. Texts that people have chosen travel as UTF-8
bytes. Each statement has one row.

A wait with a limit is one statement, which sets ``lock_timeout``, waits, and sets back what there was; ``and`` and
``case`` keep that order. If the server does not grant the lock, the savepoint before it undoes the setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from .link import statement
from .schemafiles import in_schema

__all__ = ["HOLDERS", "NOTIFY", "ROOM", "lock_sql", "lock_within_sql", "spill_sql", "try_lock_sql", "unsigned"]

_UINT32: Final = 0xFFFFFFFF

NOTIFY: Final = statement("""
    select pg_catalog.pg_notify(pg_catalog.convert_from(cast($1 as pg_catalog.bytea), 'UTF8'),
                                pg_catalog.convert_from(cast($2 as pg_catalog.bytea), 'UTF8'))
""").sql.decode()
"""Its values are channel and payload, as bytes."""

ROOM: Final = statement("""
    select pg_catalog.has_schema_privilege(n.oid, 'usage') and pg_catalog.has_table_privilege(c.oid, 'insert')
      from pg_catalog.pg_namespace n
      join pg_catalog.pg_class c on c.relnamespace operator(pg_catalog.=) n.oid
                          and c.relname operator(pg_catalog.=) cast('message_payload' as pg_catalog.name)
                          and c.relkind operator(pg_catalog.=) cast('r' as pg_catalog."char")
     where n.nspname operator(pg_catalog.=) cast($1 as pg_catalog.name)
""").sql.decode()
"""Whether the role may keep payloads in the schema that is its value; no row: there is no table for them. It asks
instead of trying, because a refusal would spoil the caller's transaction."""

_SPILL: Final = """
    insert into pgconcert.message_payload (payload, expires)
    values (cast($1 as pg_catalog.bytea),
            pg_catalog.clock_timestamp() operator(pg_catalog.+)
            pg_catalog.make_interval(secs => cast($2 as pg_catalog.float8)))
    returning id
"""

_KEYS: Final = {1: "cast($1 as pg_catalog.int8)", 2: "cast($1 as pg_catalog.int4), cast($2 as pg_catalog.int4)"}

HOLDERS: Final = statement("""
    select cast(pg_catalog.json_agg(pg_catalog.json_build_array(l.pid, a.application_name, l.mode) order by l.pid)
                as pg_catalog.text)
      from pg_catalog.pg_locks l left join pg_catalog.pg_stat_activity a
        on a.pid operator(pg_catalog.=) l.pid
     where l.locktype operator(pg_catalog.=) cast('advisory' as pg_catalog.text) and l.granted
       and coalesce(l.pid, 0) operator(pg_catalog.<>) pg_catalog.pg_backend_pid()
       and l.database operator(pg_catalog.=) (select d.oid from pg_catalog.pg_database d
                                               where d.datname operator(pg_catalog.=) pg_catalog.current_database())
       and cast(l.classid as pg_catalog.int8) operator(pg_catalog.=) cast($1 as pg_catalog.int8)
       and cast(l.objid as pg_catalog.int8) operator(pg_catalog.=) cast($2 as pg_catalog.int8)
       and l.objsubid operator(pg_catalog.=) cast($3 as pg_catalog.int2)
""").sql.decode()
"""Who else holds a lock, as JSON; its values are the halves of the key and how many numbers it has."""


@cache
def spill_sql(schema: str) -> str:
    """Keeps a payload; its values are payload and seconds. Its row is the number.

    Raises ``ConfigurationError`` for what can be no schema."""
    return in_schema(statement(_SPILL), schema).sql.decode()


@cache
def lock_sql(numbers: int, shared: bool) -> str:
    """Waits for a lock whose key has one or two numbers, which are its values."""
    return f"select pg_catalog.pg_advisory_xact_lock{_mode(shared)}({_KEYS[numbers]})"


@cache
def try_lock_sql(numbers: int, shared: bool) -> str:
    """Tells whether it could have the lock at once."""
    return f"select pg_catalog.pg_try_advisory_xact_lock{_mode(shared)}({_KEYS[numbers]})"


@cache
def lock_within_sql(numbers: int, shared: bool) -> str:
    """Waits for a lock as long as its last value says, a text for ``lock_timeout``."""
    return statement(f"""
        with was as materialized (select pg_catalog.current_setting('lock_timeout') as value)
        select case when pg_catalog.set_config('lock_timeout', cast(${numbers + 1} as pg_catalog.text), true)
                         is not null
                     and pg_catalog.pg_advisory_xact_lock{_mode(shared)}({_KEYS[numbers]}) is not null
                    then pg_catalog.set_config('lock_timeout', was.value, true) end
          from was
    """).sql.decode()


def unsigned(numbers: Sequence[int]) -> tuple[int, int, int]:
    """A key as ``HOLDERS`` wants it: its halves as the server lists them, and how many numbers it has."""
    if len(numbers) == 1:
        return (numbers[0] >> 32) & _UINT32, numbers[0] & _UINT32, 1
    return numbers[0] & _UINT32, numbers[1] & _UINT32, 2


def _mode(shared: bool) -> str:
    return "_shared" if shared else ""
