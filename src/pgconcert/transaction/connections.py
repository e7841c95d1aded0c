"""Which connections are known, by what they can do, and which driver's file is asked for each.

A connection is known by the library that made it, and no library is imported that is not there already: whoever has
such an object has imported it. The protocols are for types alone: they tell connections that block from those that are
awaited, whether the library is installed or not.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

from ..errors import ConfigurationError, given
from .flow import AsyncDriver, BlockingDriver

__all__ = [
    "AsyncConnection",
    "AsyncpgConnection",
    "BlockingConnection",
    "DjangoConnection",
    "SQLAlchemyAsync",
    "SQLAlchemyBlocking",
    "driver_of",
]


class AsyncpgConnection(Protocol):
    """An ``asyncpg.Connection``, or one that a pool has lent."""

    def is_in_transaction(self) -> bool: ...
    def fetchrow(self, query: str, /, *values: Any) -> Awaitable[Any]: ...


class SQLAlchemyBlocking(Protocol):
    """A ``Connection``, ``Session`` or ``scoped_session`` of SQLAlchemy."""

    def in_transaction(self) -> bool: ...
    def begin_nested(self) -> AbstractContextManager[Any]: ...


class SQLAlchemyAsync(Protocol):
    """An ``AsyncConnection``, ``AsyncSession`` or ``async_scoped_session`` of SQLAlchemy."""

    def in_transaction(self) -> bool: ...
    def run_sync(self, fn: Callable[..., Any], /, *values: Any) -> Awaitable[Any]: ...


class DjangoConnection(Protocol):
    """``django.db.connection``, or one of ``django.db.connections``."""

    alias: str
    in_atomic_block: bool


BlockingConnection = psycopg.Connection[Any] | SQLAlchemyBlocking | DjangoConnection | str
"""Connections that block: of psycopg, SQLAlchemy and Django; a text is an alias of Django's ``DATABASES``."""

AsyncConnection = psycopg.AsyncConnection[Any] | AsyncpgConnection | SQLAlchemyAsync
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
    raise ConfigurationError(
        f"{verb} knows connections of psycopg 3, asyncpg, SQLAlchemy and Django (or an alias of its DATABASES), not "
        f"{given(connection)}; a pool, an engine or a cursor is none: give a connection that it has made"
    )


def loaded(module: str) -> Any:
    """A module, if somebody has imported it already."""
    return sys.modules.get(module)
