"""Which connections are known, by what they can do, and which driver's file is asked for each.

A connection is known by the library that made it, and no library is imported that is not there already: whoever has
such an object has imported it. The protocols are for types alone: they tell connections that block from those that are
awaited, whether the library is installed or not.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final, Protocol

import psycopg

from ..errors import ConfigurationError, given
from .flow import AsyncDriver, BlockingDriver

__all__ = [
    "AsyncConnection",
    "AsyncpgConnection",
    "AsyncpgLent",
    "BlockingConnection",
    "DjangoConnection",
    "SQLAlchemyAsync",
    "SQLAlchemyBlocking",
    "driver_of",
    "is_of",
    "loaded",
]


class AsyncpgConnection(Protocol):
    """An ``asyncpg.Connection``."""

    def is_in_transaction(self) -> bool: ...
    def fetchrow(self, query: str, /, *values: Any) -> Awaitable[Any]: ...


class AsyncpgLent(Protocol):
    """What a pool of asyncpg lends, as a type checker finds it there: its methods are made when asyncpg is imported."""

    def _detach(self) -> Any: ...


class SQLAlchemyBlocking(Protocol):
    """A ``Connection``, ``Session`` or ``scoped_session`` of SQLAlchemy."""

    def begin_nested(self) -> AbstractContextManager[Any]: ...
    def commit(self) -> None: ...


class SQLAlchemyAsync(Protocol):
    """An ``AsyncConnection``, ``AsyncSession`` or ``async_scoped_session`` of SQLAlchemy."""

    def begin_nested(self) -> AbstractAsyncContextManager[Any]: ...
    def commit(self) -> Awaitable[None]: ...


class DjangoConnection(Protocol):
    """``django.db.connection``, or one of ``django.db.connections``."""

    alias: str
    in_atomic_block: bool


BlockingConnection = psycopg.Connection[Any] | SQLAlchemyBlocking | DjangoConnection | str
"""Connections that block: of psycopg, SQLAlchemy and Django; a text is an alias of Django's ``DATABASES``."""

AsyncConnection = psycopg.AsyncConnection[Any] | AsyncpgConnection | AsyncpgLent | SQLAlchemyAsync
"""Connections that are awaited: of psycopg, asyncpg and SQLAlchemy."""


def driver_of(connection: object, verb: str) -> BlockingDriver | AsyncDriver:
    """What runs queries on a connection. Raises ``ConfigurationError`` for what is none, and says what ``verb`` knows.

    Nothing is sent.
    """
    if isinstance(connection, psycopg.Connection):
        from .psycopg import Psycopg

        return Psycopg(connection)
    if isinstance(connection, psycopg.AsyncConnection):
        from .psycopg import AsyncPsycopg

        return AsyncPsycopg(connection)
    found = _of_asyncpg(connection) or _of_sqlalchemy(connection, verb) or _of_django(connection, verb)
    if found is None:
        raise ConfigurationError(_unknown(connection, verb))
    return found


def loaded(module: str) -> Any:
    """A module, if somebody has imported it already."""
    return sys.modules.get(module)


def is_of(value: object, module: str, *names: str) -> bool:
    """Whether a value is of a class that a module has, if somebody has imported that."""
    found = loaded(module)
    return found is not None and isinstance(value, tuple(getattr(found, name) for name in names))


def _of_asyncpg(connection: object) -> AsyncDriver | None:
    if not is_of(connection, "asyncpg.connection", "Connection") and not is_of(
        connection, "asyncpg.pool", "PoolConnectionProxy"
    ):
        return None
    from .asyncpg import Asyncpg

    return Asyncpg(connection)


def _of_sqlalchemy(connection: Any, verb: str) -> BlockingDriver | AsyncDriver | None:
    if is_of(connection, "sqlalchemy.orm", "scoped_session") or is_of(
        connection, "sqlalchemy.ext.asyncio", "async_scoped_session"
    ):
        connection = connection.registry()
    blocks = is_of(connection, "sqlalchemy.engine", "Connection") or is_of(connection, "sqlalchemy.orm", "Session")
    if not blocks and not is_of(connection, "sqlalchemy.ext.asyncio", "AsyncConnection", "AsyncSession"):
        return None
    from .sqlalchemy import AsyncSQLAlchemy, SQLAlchemy, on_postgresql

    on_postgresql(connection, verb)
    return SQLAlchemy(connection) if blocks else AsyncSQLAlchemy(connection)


def _of_django(connection: object, verb: str) -> BlockingDriver | None:
    alias = isinstance(connection, str) and loaded("django.db") is not None
    if (
        not alias
        and not is_of(connection, "django.utils.connection", "ConnectionProxy")
        and not is_of(connection, "django.db.backends.base.base", "BaseDatabaseWrapper")
    ):
        return None
    from .django import Django, connection_of

    return Django(connection_of(connection, verb))


_INSTEAD: Final = (
    ("psycopg", ("Cursor", "AsyncCursor"), "cursor", "its connection, cursor.connection"),
    ("psycopg_pool", ("ConnectionPool", "AsyncConnectionPool"), "pool", "what pool.connection() lends"),
    ("asyncpg.pool", ("Pool",), "pool", "what pool.acquire() lends"),
    ("sqlalchemy.engine", ("Engine",), "engine", "what engine.connect() or engine.begin() gives"),
    ("sqlalchemy.ext.asyncio", ("AsyncEngine",), "engine", "what engine.connect() or engine.begin() gives"),
    ("sqlalchemy.orm", ("sessionmaker",), "sessionmaker", "a session that it has made"),
    ("sqlalchemy.ext.asyncio", ("async_sessionmaker",), "sessionmaker", "a session that it has made"),
    ("psycopg2.extensions", ("connection",), "connection of psycopg2", "one of psycopg 3, or SQLAlchemy's over it"),
    ("pg8000.dbapi", ("Connection",), "connection of pg8000", "SQLAlchemy's connection over it"),
    ("django.db.utils", ("ConnectionHandler",), "django.db.connections", "one of them, or its alias"),
    ("django.db.backends.utils", ("CursorWrapper",), "cursor of Django", "its connection, or the alias of that"),
)
"""What people have at hand besides a connection, and what they give instead."""


def _unknown(connection: object, verb: str) -> str:
    for module, names, kind, instead in _INSTEAD:
        if is_of(connection, module, *names):
            return f"{verb} needs a connection, and this is a {kind}: give {instead}"
    if isinstance(connection, str):
        return (
            f"{verb} takes a text for an alias of Django's DATABASES, and this process has not imported Django "
            f"(a text of {len(connection)} characters was given); an address is no connection: connect first"
        )
    return (
        f"{verb} knows connections of psycopg 3, asyncpg, SQLAlchemy and Django (or an alias of its DATABASES), not "
        f"{given(connection)}"
    )
