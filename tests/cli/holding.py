"""What hangs on sessions, as the tests of the command line look at it: the rows on the server.

Here live helpers without assertions of their own. The server's clock decides who is the holder, as it does for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg

from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually
from tests.cli.shell import LIMIT, run

CURIOUS = ("--check", "0.3", "--interval", "3", "--timeout", "2.9")
"""Whoever waits looks often whether a session is over, and whoever has one soon hears what became of it. It lives as
long as any: no pause of a busy machine ends it, and a test that wants its end says so (``let_expire``)."""


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


def until_held(url: str, name: str, kind: str = "job", but: Seen | None = None) -> Seen:
    """Wait until somebody has it, otherwise than before."""

    def seen() -> Seen | None:
        now = holder(url, name, kind)
        return None if now == but else now

    found = eventually(seen, LIMIT, what=f"somebody has {name}")
    assert found is not None
    return found


def until_waiting(url: str, name: str, sessions: int = 1) -> None:
    """Wait until so many sessions have left their mark."""
    count = "select count(*) from pgconcert.waiting where name = %s"
    eventually(lambda: execute(url, count, name) == [(sessions,)], LIMIT, what=f"{sessions} wait for {name}")


def let_expire(url: str, pid: int) -> None:
    """Let the time of a process's sessions be over, as if it had been away for longer than their ttl."""
    over = execute(
        url,
        "update pgconcert.session set expires = clock_timestamp() where pid = %s and ended is null returning id",
        pid,
    )
    assert over, f"process {pid} has no session"


def hand_over(url: str, name: str, pid: int, how: str = "release", kind: str = "job") -> None:
    """Make whoever has it give way to a process that waits for it.

    Who has given way and wants it again lets others go first, for a moment. On a busy machine that may be too short for
    them, which is lawful: then it must give way again.
    """
    seen = until_held(url, name, kind)
    while seen.pid != pid:
        done = run(how, name, "--url", url)
        assert (done.returncode, done.stderr) == (0, "")
        seen = until_held(url, name, kind, but=seen)


def ends_of_terms(url: str, name: str) -> list[str | None]:
    """How the terms of an election have ended, in the order of their tokens."""
    rows = execute(url, "select how from pgconcert.term where name = %s order by token", name)
    return [how for (how,) in rows]
