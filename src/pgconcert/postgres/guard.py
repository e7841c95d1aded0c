"""The statement of ``transaction.guard``, and what its failures mean. No driver stands here.

Theory. The row of the entry is locked ``for share`` until the caller's transaction ends. Whoever takes the entry, gives
it back or revokes it must change that row, and skips it while it is locked; so what the guard has seen stays true until
the commit. Several guards share the lock. The row of the session is only looked at, never locked: heartbeats go on, and
whatever else hangs on the session can be taken over though a guard was left open. A row that somebody else has locked
this instant is skipped, not waited for, and counts as refused: no error of the server spoils the caller's transaction.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from ..errors import PgconcertError, StatementFailed
from .link import statement
from .schemafiles import NOT_PERMITTED, UNDEFINED, in_schema, missing_tables, not_permitted

__all__ = ["guard_sql", "understood"]

# On a connection of the caller's, whose search path may be any: operators are named with their schema too.
# Without the grace that others give: whoever has not renewed since the server changed does not know yet what it has.
_GUARD: Final = """
    select 1 from pgconcert.entry e
     where (e.kind, e.namespace, e.name, e.member, e.session_id, e.token) operator(pg_catalog.=)
           (cast($1 as pg_catalog.text), cast($2 as pg_catalog.text), cast($3 as pg_catalog.text),
            cast($4 as pg_catalog.text), cast($5 as pg_catalog.int8), cast($6 as pg_catalog.int8))
       and exists (select 1 from pgconcert.session s
                    where s.id operator(pg_catalog.=) e.session_id and s.ended is null
                      and s.expires operator(pg_catalog.>) pg_catalog.clock_timestamp())
       for share of e skip locked
"""


@cache
def guard_sql(schema: str) -> str:
    """The statement; its values are kind, namespace, name, member, session and token. A row: it is guarded.

    Raises ``ConfigurationError`` for what can be no schema."""
    return in_schema(statement(_GUARD), schema).sql.decode()


def understood(schema: str, sqlstate: str | None, message: str) -> PgconcertError | None:
    """What an error of the server means, if it is about our tables."""
    if sqlstate in UNDEFINED:
        return missing_tables(schema, message)
    if sqlstate == NOT_PERMITTED:
        return not_permitted(schema, "your_role", StatementFailed(message, NOT_PERMITTED))
    return None
