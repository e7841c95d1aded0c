"""What hangs on sessions, as the tests of the command line look at it: the rows on the server.

Here live helpers without assertions of their own. The server's clock decides who is the holder, as it does for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually

FAST = ("--ttl", "1")
"""A session that is over soon."""


class Seen(NamedTuple):
    """Who has something: the process, and the token."""

    pid: int
    token: int


def execute(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []


def make_tables(url: str) -> None:
    """Our tables."""
    execute(url, script())


def holder(url: str, name: str, kind: str = "job") -> Seen | None:
    """Who has it now."""
    rows = execute(
        url,
        "select s.pid, e.token from pgconcert.entry e join pgconcert.session s on s.id = e.session_id "
        "where e.kind = %s and e.name = %s and s.ended is null and s.expires > clock_timestamp()",
        kind,
        name,
    )
    return Seen(*rows[0]) if rows else None


def until_waiting(url: str, name: str, sessions: int = 1) -> None:
    """Wait until so many sessions have left their mark."""
    count = "select count(*) from pgconcert.waiting where name = %s"
    eventually(lambda: execute(url, count, name) == [(sessions,)], what=f"{sessions} wait for {name}")


def ends_of_terms(url: str, name: str) -> list[str | None]:
    """How the terms of an election have ended, in the order of their tokens."""
    rows = execute(url, "select how from pgconcert.term where name = %s order by token", name)
    return [how for (how,) in rows]
