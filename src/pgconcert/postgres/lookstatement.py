"""The statement that looks at entries: one text for every set of filters, so that each can go by an index. No logic."""

from __future__ import annotations

from functools import cache
from typing import Final

from .link import Statement
from .sessionclauses import ALIVE, SESSION, SUBJECT_OF_ENTRY, seconds, session_statement

__all__ = ["FILTERS", "look_statement"]

FILTERS: Final = ("kind", "namespace", "name", "member")


@cache
def look_statement(filters: tuple[str, ...], schema: str) -> Statement:
    """Entries whose columns ``filters`` have the values that are given, as one array for each of them; without any
    filter, an array of anything, as long as there are looks."""
    columns = filters or ("nothing",)
    arrays = ", ".join(f"${place}::text[]" for place in range(1, len(columns) + 1))
    wanted = " and ".join(f"e.{column} = a.{column}" for column in filters) or "true"
    return session_statement(
        f"""
            asked as materialized (select * from unnest({arrays}) with ordinality a({", ".join(columns)}, n))
            select a.n, {SUBJECT_OF_ENTRY}, e.token, {seconds("e.since")}, e.data, e.given,
                   e.release_requested and l.id is not null,
                   (select count(*) from pgconcert.waiting w join pgconcert.session s on s.id = w.session_id
                     where w.kind = e.kind and w.namespace = e.namespace and w.name = e.name and w.member = e.member
                       and {ALIVE}),
                   l.*
              from asked a join pgconcert.entry e on {wanted}
              left join lateral (
                  select {SESSION} from pgconcert.session s where s.id = e.session_id and {ALIVE}) l on true
             order by a.n, {SUBJECT_OF_ENTRY}
        """,
        schema,
    )
