"""Connections of Django, over psycopg or psycopg2: those of ``django.db.connections``, each of one thread.

A transaction is a block of ``atomic``, entered and left by hand, so that blocks of the caller's nest in it, and what
was given to ``on_commit`` runs after the commit and never after a rollback. Where Django's own ``AUTOCOMMIT`` is off it
knows no such blocks but savepoints: there the connection's ``commit`` and ``rollback`` end what a statement has begun.

A block that is to be rolled back in any case (``set_rollback(True)``, or an error that went through an inner block
without a savepoint) counts as failed: Django would end it without a word.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic

from ..errors import ConfigurationError
from .flow import Failure, Isolation, Query, Row, aborted, nested
from .servererrors import told
from .statuses import percent, status

__all__ = ["Django", "connection_of"]

_BY_STATEMENT: Final = object()
"""What was begun is what the next statement begins."""


class _RolledBack(Exception):
    """What a block of ``atomic`` is told to make it roll back."""


def connection_of(source: Any, verb: str) -> Any:
    """The connection behind an alias, or behind ``django.db.connection``; the one given, if it is one.

    Raises ``ConfigurationError`` for an alias there is not, and for another database than PostgreSQL.
    """
    if isinstance(source, str):
        known = sorted(connections)
        if source not in known:
            raise ConfigurationError(
                f"{verb} got the text {source!r:.100}, which is no alias of Django's DATABASES: there are {known}"
            )
    alias = source if isinstance(source, str) else source.alias
    found = source if isinstance(source, BaseDatabaseWrapper) else connections[alias]
    if found.vendor != "postgresql":
        raise ConfigurationError(f"{verb} is for PostgreSQL, and Django's alias {alias!r} is {found.display_name}")
    return found


class Django:
    """A connection of Django's."""

    blocks: ClassVar[bool] = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def lent(self) -> Any:
        """The connection itself, for a function that was given an alias."""
        return self._connection

    def one(self, query: Query) -> Row | None:
        with self._connection.cursor() as cursor:
            if query.values:
                cursor.execute(*percent(query, bytes_as_text=True))
            else:
                cursor.execute(query.sql)
            row = cursor.fetchone() if query.rows else None
        return None if row is None else tuple(row)

    def in_transaction(self) -> bool:
        connection = self._connection
        return bool(connection.in_atomic_block or not connection.get_autocommit() or self._open())

    def nested(self, begun: object) -> bool:
        return begun is not _BY_STATEMENT and bool(self._connection.savepoint_ids)

    def failure(self, error: Exception) -> Failure | None:
        if not isinstance(error, Error):
            return None
        found = None if error.__cause__ is None else told(error.__cause__)
        return None if found is None else Failure(error, found.sqlstate, found.message)

    def begin(self, isolation: Isolation | None) -> object:
        connection = self._connection
        by_statement = not connection.in_atomic_block and not connection.get_autocommit()
        inside = connection.in_atomic_block or self._open()
        if inside and isolation is not None:
            nested(isolation)
        begun: Any = _BY_STATEMENT
        if inside or not by_statement:
            begun = self._enter()
        if isolation is not None:
            try:
                self.one(Query(f"set transaction isolation level {isolation}", rows=False))
            except BaseException:
                self.rollback(begun)
                raise
        return begun

    def commit(self, begun: Any) -> None:
        connection = self._connection
        failed = (connection.in_atomic_block and connection.needs_rollback) or self._status() == "failed"
        if failed and not connection.closed_in_transaction:
            aborted()
        if begun is _BY_STATEMENT:
            connection.commit()
        else:
            begun.__exit__(None, None, None)

    def rollback(self, begun: Any) -> None:
        if begun is _BY_STATEMENT:
            if self._connection.connection is not None:
                self._connection.rollback()
        else:
            begun.__exit__(_RolledBack, _RolledBack(), None)

    def rollback_all(self) -> None:
        """Inside a block of ``atomic`` a connection may not roll back: the block will, when its owner leaves it."""
        connection = self._connection
        if connection.in_atomic_block:
            connection.set_rollback(True)
        elif connection.connection is not None:
            connection.rollback()

    def discard(self) -> None:
        try:
            self._connection.close()
        except Exception:  # of another thread
            return

    def _enter(self) -> Any:
        alias = self._connection.alias
        if connections[alias] is not self._connection:
            raise ConfigurationError(
                f"this is not the connection that this thread has for Django's alias {alias!r}, and transactions of "
                "Django are those of that one: give the alias"
            )
        atomic = Atomic(alias, True, False)
        atomic.__enter__()
        return atomic

    def _status(self) -> str | None:
        raw = self._connection.connection
        return "idle" if raw is None else status(raw)

    def _open(self) -> bool:
        return self._status() in ("open", "failed")
