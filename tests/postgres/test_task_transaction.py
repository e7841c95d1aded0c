"""`transaction.enqueue` on connections of psycopg: what is in the queue when, and who is woken.

Here live tests of `transaction/` and its statement in `postgres/queuestatements.py`.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from pgconcert import AsyncCoordinator, ConfigurationError, PayloadInvalid, QueueTasks, SchemaMissing, Task
from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually_async, rewrite
from pgconcert.transaction import enqueue
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.servers import Server

WAITING = "select id::text, queue, convert_from(payload, 'UTF8') from pgconcert.task order by id"


def test_it_is_there_with_the_commit(tables: str) -> None:
    with psycopg.connect(tables) as conn:
        conn.execute("create table mine (n int)")
        conn.execute("insert into mine values (1)")
        one = enqueue(conn, "mail", "hello")
        assert rows(tables, WAITING) == []
        conn.commit()
        assert rows(tables, WAITING) == [(one, "mail", "hello")]
        enqueue(conn, "mail", "never")
        conn.rollback()
    assert rows(tables, WAITING) == [(one, "mail", "hello")]


async def test_asynchronously(tables: str) -> None:
    async with await psycopg.AsyncConnection.connect(tables) as conn:
        async with conn.transaction():
            one = await enqueue(conn, QueueTasks("mail", attempts=7), json={"to": "ü"})
        async with conn.transaction(force_rollback=True):
            await enqueue(conn, "mail")
    assert rows(tables, WAITING) == [(one, "mail", '{"to":"ü"}')]
    assert rows(tables, "select attempts from pgconcert.task") == [(7,)]


def test_when_and_how_often(tables: str) -> None:
    with psycopg.connect(tables, autocommit=True) as conn:
        at = dt.datetime(2040, 5, 6, 7, 8, 9, tzinfo=dt.UTC)
        enqueue(conn, "q", run_at=at)
        before = time.time()
        enqueue(conn, "q", run_in=3600, attempts=3)
        enqueue(conn, "q")
    first, second, third = rows(tables, "select run_at, extract(epoch from run_at), attempts from pgconcert.task")
    assert first[0] == at
    assert (float(second[1]) - before > 3000, second[2]) == (True, 3)
    assert (float(third[1]) - before < 60, third[2]) == (True, 20)


@pytest.mark.parametrize("payload", [b"", bytes(range(256)), "ü", bytearray(b"a"), memoryview(b"b"), b"x" * 2_000_000])
def test_payloads(tables: str, payload: Any) -> None:
    with psycopg.connect(tables, autocommit=True) as conn:
        enqueue(conn, "q", payload)
    expected = payload.encode() if isinstance(payload, str) else bytes(payload)
    assert rows(tables, "select payload from pgconcert.task") == [(expected,)]


def test_on_a_connection_of_any_kind(tables: str) -> None:
    """Other rows, other cursors, another search path with traps in it: nothing of it is used, nothing changed."""
    connection = psycopg.Connection[dict[str, Any]]
    with connection.connect(tables, row_factory=dict_row, cursor_factory=psycopg.ClientCursor[dict[str, Any]]) as conn:
        conn.execute("create schema traps")
        conn.execute("create function traps.clock_timestamp() returns text language sql as 'select ''trap'''")
        conn.execute("create function traps.pg_notify(text, text) returns text language sql as 'select ''trap'''")
        conn.execute("set search_path = traps, pg_catalog")
        assert enqueue(conn, "it's 100%s %(x)s", "payload %") == "1"
        assert conn.execute("show search_path").fetchone() == {"search_path": "traps, pg_catalog"}
    assert rows(tables, WAITING) == [("1", "it's 100%s %(x)s", "payload %")]


async def test_runners_are_woken_by_the_commit(tables: str) -> None:
    """A runner that looks every hour has the task at once, in its own namespace and in no other."""
    done: asyncio.Queue[bytes] = asyncio.Queue()

    async def work(tasks: list[Task]) -> None:
        done.put_nowait(tasks[0].payload)

    async with (
        AsyncCoordinator(tables, namespace="mine") as c,
        c.runner("crew", work, QueueTasks("mail"), tick=3600.0),
    ):
        with psycopg.connect(tables) as conn:
            enqueue(conn, "mail", "elsewhere")
            # the first may be found by the look of one that begins to work, or to listen
            for number in range(3):
                enqueue(conn, "mail", f"{number}", namespace="mine")
                conn.commit()
                assert await asyncio.wait_for(done.get(), 20) == f"{number}".encode()
                await eventually_async(lambda: len(rows(tables, WAITING)) == 1, what="it is finished")
    assert [row[2] for row in rows(tables, WAITING)] == ["elsewhere"]


def test_in_a_schema_of_another_name(server: Server) -> None:
    name = 'odd "schema" %s'
    with server.fresh_database() as url:
        with raw(url) as conn:
            conn.execute(script(name).encode())
            assert enqueue(conn, "q", schema=name) == "1"


def test_what_is_wrong_is_said(tables: str, server: Server, unique: str) -> None:
    wrongs: list[dict[str, Any]] = [
        {"attempts": 0},
        {"run_in": -1},
        {"run_at": dt.datetime(2040, 1, 1)},  # noqa: DTZ001
        {"payload": b"a", "json": 1},
        {"schema": ""},
        {"namespace": 7},
    ]
    with psycopg.connect(tables, autocommit=True) as conn:
        for wrong in wrongs:
            with pytest.raises(ConfigurationError):
                enqueue(conn, "q", **wrong)
        with pytest.raises(PayloadInvalid):
            enqueue(conn, "q", 7)  # type: ignore[call-overload]
        with pytest.raises(ConfigurationError):
            enqueue(conn, "")
        with pytest.raises(ConfigurationError, match="psycopg 3"):
            enqueue(server, "q")  # type: ignore[call-overload]
        with pytest.raises(psycopg.Error):
            conn.execute("select 1/0")
        with pytest.raises(SchemaMissing, match="schema apply"):
            enqueue(conn, "q", schema=unique)
        conn.execute(f"create role \"{unique}\" login password 'secret'".encode())
    try:
        with (
            psycopg.connect(rewrite(tables, user=unique, password="secret")) as conn,
            pytest.raises(ConfigurationError, match="grant select, insert"),
        ):
            enqueue(conn, "q")
    finally:
        server.execute(f'drop role "{unique}"')
    assert rows(tables, WAITING) == []
