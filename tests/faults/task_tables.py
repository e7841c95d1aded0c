"""The tables that tasks under faults are in: our queue, and a table of an application that has the same.

Here live what makes them, fills them and counts them. Theory: both kinds are treated alike, so every test runs on both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, Literal

import psycopg

from pgconcert.postgres.schemafiles import script
from tests.faults.task_history import triggers
from tests.servers import Server

__all__ = ["OPEN", "WORK", "Kind", "add_tasks", "history_written", "outstanding"]

Kind = Literal["queue", "table"]

WORK: Final = """
    create table public.work (id bigserial primary key, priority int not null default 0, done_at timestamptz,
                              session_id bigint);
    create index on public.work (session_id) where session_id is not null;
    create index on public.work (priority desc, id) where done_at is null;
"""
_TABLES: Final = {
    "queue": (
        "pgconcert.task",
        "{r}.id, {r}.session_id, case when {r}.dead then 'dead' else '' end, {r}.attempt",
    ),
    "table": (
        "public.work",
        "{r}.id, {r}.session_id, case when {r}.done_at is null then '' else 'done' end",
    ),
}
OPEN: Final = {
    "queue": "from pgconcert.task t where not t.dead",
    "table": "from public.work t where t.done_at is null",
}


@contextlib.contextmanager
def history_written(server: Server, kind: Kind, naps: float = 0.0) -> Iterator[str]:
    """The URL of a database with our tables and one of the application, which writes the history of ``kind``."""
    with server.fresh_database() as url:
        with psycopg.connect(url, autocommit=True) as owner:
            for text in (script(), WORK, triggers(*_TABLES[kind], naps=naps)):
                owner.execute(text.encode())
        yield url


def add_tasks(connection: psycopg.Connection[Any], kind: Kind, count: int, *, later: bool = True) -> None:
    """So many more; with ``later`` some of a queue are due after a moment."""
    if kind == "table":
        connection.execute(
            "insert into public.work (priority) select random() * 5 from generate_series(1, %s)", [count]
        )
        return
    connection.execute(
        "insert into pgconcert.task (namespace, queue, run_at, attempts, payload) select '', 'work', clock_timestamp()"
        " + interval '0.2 s' * (%s and n %% 4 = 0)::int, 1000, '' from generate_series(1, %s) n",
        [later, count],
    )


def outstanding(connection: psycopg.Connection[Any], kind: Kind) -> int:
    """How many tasks there are that are neither finished nor dead."""
    row = connection.execute(f"select count(*) {OPEN[kind]}".encode()).fetchone()
    assert row
    return int(row[0])
