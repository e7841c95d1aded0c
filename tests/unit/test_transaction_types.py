"""Which verbs give a value and which something to await, for every kind of connection.

Here live functions that are never called: `make types` reads them, with both checkers; and what the import brings.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any, assert_type

from pgconcert.sessions.hold import SessionHeld
from pgconcert.transaction import enqueue, guard, lock, publish, rollback_quietly, run, try_lock

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy import Connection, orm
    from sqlalchemy.ext import asyncio as saio

    from pgconcert.transaction.connections import AsyncpgConnection, DjangoConnection


async def seven(_: object) -> int:
    return 7


def blocking(
    hold: SessionHeld,
    psycopg3: psycopg.Connection[dict[str, Any]],
    connection: Connection,
    session: orm.Session,
    scoped: orm.scoped_session[orm.Session],
    django: DjangoConnection,
) -> None:
    assert_type(enqueue(psycopg3, "q"), str)
    assert_type(enqueue(connection, "q"), str)
    assert_type(enqueue(session, "q"), str)
    assert_type(enqueue(scoped, "q"), str)
    assert_type(enqueue(django, "q"), str)
    assert_type(enqueue("default", "q"), str)
    assert_type(try_lock(psycopg3, (1, 2)), bool)
    assert_type(try_lock(connection, (1, 2)), bool)
    assert_type(try_lock(session, (1, 2)), bool)
    assert_type(try_lock(scoped, (1, 2)), bool)
    assert_type(try_lock(django, (1, 2)), bool)
    assert_type(try_lock("default", (1, 2)), bool)
    guard(psycopg3, hold)
    publish(psycopg3, "orders", json=1)
    lock(psycopg3, "a", timeout=1)
    rollback_quietly(psycopg3, KeyError())
    guard(connection, hold)
    publish(connection, "orders", json=1)
    lock(connection, "a", timeout=1)
    rollback_quietly(connection, KeyError())
    guard(session, hold)
    publish(session, "orders", json=1)
    lock(session, "a", timeout=1)
    rollback_quietly(session, KeyError())
    guard(scoped, hold)
    publish(scoped, "orders", json=1)
    lock(scoped, "a", timeout=1)
    rollback_quietly(scoped, KeyError())
    guard(django, hold)
    publish(django, "orders", json=1)
    lock(django, "a", timeout=1)
    rollback_quietly(django, KeyError())
    guard("default", hold)
    publish("default", "orders", json=1)
    lock("default", "a", timeout=1)
    rollback_quietly("default", KeyError())
    assert_type(run(psycopg3, lambda _: 7, isolation="serializable"), int)
    assert_type(run(connection, lambda _: 7, isolation="serializable"), int)
    assert_type(run(session, lambda _: 7, isolation="serializable"), int)
    assert_type(run(scoped, lambda _: 7, isolation="serializable"), int)
    assert_type(run(django, lambda _: 7, isolation="serializable"), int)
    assert_type(run("default", lambda _: 7, isolation="serializable"), int)


async def awaited(
    hold: SessionHeld,
    psycopg3: psycopg.AsyncConnection[tuple[Any, ...]],
    asyncpg: AsyncpgConnection,
    connection: saio.AsyncConnection,
    session: saio.AsyncSession,
    scoped: saio.async_scoped_session[saio.AsyncSession],
) -> None:
    await assert_type(enqueue(psycopg3, "q"), Awaitable[str])
    await assert_type(enqueue(asyncpg, "q"), Awaitable[str])
    await assert_type(enqueue(connection, "q"), Awaitable[str])
    await assert_type(enqueue(session, "q"), Awaitable[str])
    await assert_type(enqueue(scoped, "q"), Awaitable[str])
    await assert_type(try_lock(psycopg3, (1, 2)), Awaitable[bool])
    await assert_type(try_lock(asyncpg, (1, 2)), Awaitable[bool])
    await assert_type(try_lock(connection, (1, 2)), Awaitable[bool])
    await assert_type(try_lock(session, (1, 2)), Awaitable[bool])
    await assert_type(try_lock(scoped, (1, 2)), Awaitable[bool])
    await guard(psycopg3, hold)
    await publish(psycopg3, "orders", json=1)
    await lock(psycopg3, "a", timeout=1)
    await rollback_quietly(psycopg3, KeyError())
    await guard(asyncpg, hold)
    await publish(asyncpg, "orders", json=1)
    await lock(asyncpg, "a", timeout=1)
    await rollback_quietly(asyncpg, KeyError())
    await guard(connection, hold)
    await publish(connection, "orders", json=1)
    await lock(connection, "a", timeout=1)
    await rollback_quietly(connection, KeyError())
    await guard(session, hold)
    await publish(session, "orders", json=1)
    await lock(session, "a", timeout=1)
    await rollback_quietly(session, KeyError())
    await guard(scoped, hold)
    await publish(scoped, "orders", json=1)
    await lock(scoped, "a", timeout=1)
    await rollback_quietly(scoped, KeyError())
    await assert_type(run(psycopg3, seven), Coroutine[Any, Any, int])
    await assert_type(run(asyncpg, seven), Coroutine[Any, Any, int])
    await assert_type(run(connection, seven), Coroutine[Any, Any, int])
    await assert_type(run(session, seven), Coroutine[Any, Any, int])
    await assert_type(run(scoped, seven), Coroutine[Any, Any, int])


def test_no_driver_is_imported() -> None:
    """Whoever has a connection has imported its library; nobody else needs it."""
    program = "import sys, pgconcert.transaction; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert "psycopg" in told.stdout.split()
    assert {"asyncpg", "sqlalchemy", "django", "psycopg_pool", "psycopg2"} & set(told.stdout.split()) == set()
