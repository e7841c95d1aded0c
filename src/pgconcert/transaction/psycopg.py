"""Statements on connections of psycopg 3.

They use a plain cursor of their own, whatever cursors and rows the connection is set to make, and change no setting.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, NoReturn

import psycopg
from psycopg.rows import tuple_row

from ..errors import ConfigurationError, GuardRefused
from ..postgres.guard import guard_sql, understood
from ..postgres.queuestatements import enqueue_sql

__all__ = ["Guard", "NewRow", "enqueue_async", "enqueue_blocking", "guard_async", "guard_blocking"]

_REFUSED: Final = "somebody else has it, it was revoked, or its session was not renewed in time (roll back)"


class Guard(NamedTuple):
    """What is to be proven: ``values`` are kind, namespace, name, member, session and token."""

    key: object
    values: tuple[str | int, ...]
    schema: str


def guard_blocking(conn: psycopg.Connection[Any], asked: Guard) -> None:
    """See ``transaction.guard``."""
    _need_transaction(conn)
    sql = guard_sql(asked.schema)
    try:
        with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
            found = cursor.execute(sql, asked.values).fetchone()
    except psycopg.Error as error:
        _explain(asked, error)
    if found is None:
        raise GuardRefused(asked.key, _REFUSED)


async def guard_async(conn: psycopg.AsyncConnection[Any], asked: Guard) -> None:
    """See ``transaction.guard``."""
    _need_transaction(conn)
    sql = guard_sql(asked.schema)
    try:
        async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
            found = await (await cursor.execute(sql, asked.values)).fetchone()
    except psycopg.Error as error:
        _explain(asked, error)
    if found is None:
        raise GuardRefused(asked.key, _REFUSED)


class NewRow(NamedTuple):
    """A task that is to be put into a queue: ``values`` are what ``enqueue_sql`` wants."""

    values: tuple[str | float | bytes | None, ...]
    schema: str


def enqueue_blocking(conn: psycopg.Connection[Any], asked: NewRow) -> str:
    """See ``transaction.enqueue``."""
    sql = enqueue_sql(asked.schema)
    try:
        with psycopg.Cursor(conn, row_factory=tuple_row) as cursor:
            found = cursor.execute(sql, asked.values).fetchone()
    except psycopg.Error as error:
        _explain_tables(asked.schema, error)
    return _id(found)


async def enqueue_async(conn: psycopg.AsyncConnection[Any], asked: NewRow) -> str:
    """See ``transaction.enqueue``."""
    sql = enqueue_sql(asked.schema)
    try:
        async with psycopg.AsyncCursor(conn, row_factory=tuple_row) as cursor:
            found = await (await cursor.execute(sql, asked.values)).fetchone()
    except psycopg.Error as error:
        _explain_tables(asked.schema, error)
    return _id(found)


def _id(found: tuple[Any, ...] | None) -> str:
    assert found is not None  # an insert of one row
    return str(found[0])


def _need_transaction(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    if conn.autocommit and conn.info.transaction_status.name == "IDLE":
        raise ConfigurationError(
            "transaction.guard needs an open transaction: this connection is in autocommit mode, where the guard would "
            "end with its own statement. Call it inside 'with conn.transaction():'"
        )


def _explain(asked: Guard, error: psycopg.Error) -> NoReturn:
    if isinstance(error, psycopg.errors.SerializationFailure):
        # at repeatable read: the row is not what it was when the transaction began
        raise GuardRefused(asked.key, "it has changed hands since the transaction began (roll back)") from error
    _explain_tables(asked.schema, error)


def _explain_tables(schema: str, error: psycopg.Error) -> NoReturn:
    ours = understood(schema, error.sqlstate, error.diag.message_primary or "")
    if ours is None:
        raise error
    raise ours from error
