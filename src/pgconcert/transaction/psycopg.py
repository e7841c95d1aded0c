"""Connections of psycopg 3, blocking and async.

A query is run on a plain cursor of its own, whatever cursors and rows the connection is set to make. In pipeline mode
each is a pipeline inside the caller's, so that it is answered, and what it provokes is over, before the next one.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import Any, ClassVar

import psycopg
from psycopg.rows import tuple_row

from .flow import Failure, Isolation, Query, Row, aborted, nested
from .servererrors import told
from .statuses import Status, status

__all__ = ["AsyncPsycopg", "Psycopg"]

_numbers = itertools.count(1)


class _Psycopg:
    _connection: Any

    def failure(self, error: Exception) -> Failure | None:
        found = told(error) if isinstance(error, psycopg.Error) else None
        return None if found is None else Failure(error, found.sqlstate, found.message)

    def nested(self, begun: object) -> bool:
        return begun is not None

    @property
    def _status(self) -> Status | None:
        return status(self._connection)

    def _stays(self) -> bool:
        return not self._connection.autocommit or self._status != "idle"

    def _begin(self, isolation: Isolation | None) -> tuple[str | None, Query | None]:
        """What was begun, and what is to be said for it. Outside autocommit the first statement begins by itself."""
        if self._status != "idle":
            if isolation is not None:
                nested(isolation)
            name = f"pgconcert_{next(_numbers)}"
            return name, Query(f"savepoint {name}", rows=False)
        level = "" if isolation is None else f" isolation level {isolation}"
        if self._connection.autocommit:
            return None, Query(f"begin{level}", rows=False)
        return None, Query(f"set transaction{level}", rows=False) if level else None

    def _committed(self) -> bool:
        """Whether nothing is left to commit. Of a connection that broke the driver says at the commit that it did."""
        return not self._connection.broken and self._over()

    def _over(self) -> bool:
        return self._connection.closed or self._status == "idle"

    @property
    def _piped(self) -> bool:
        return bool(self._connection.pgconn.pipeline_status)

    def _check(self) -> None:
        if self._status == "failed":
            aborted()


class Psycopg(_Psycopg):
    """A ``psycopg.Connection``."""

    blocks: ClassVar[bool] = True

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection: psycopg.Connection[Any] = connection

    def one(self, query: Query) -> Row | None:
        if self._piped:
            with self._connection.pipeline():
                return self._one(query)
        return self._one(query)

    def _one(self, query: Query) -> Row | None:
        with psycopg.RawCursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(_text(query), query.values or None)
            return cursor.fetchone() if query.rows else None

    def in_transaction(self) -> bool:
        self._settle()
        return self._stays()

    def begin(self, isolation: Isolation | None) -> object:
        self._settle()
        begun, query = self._begin(isolation)
        try:
            if query is not None:
                self.one(query)
        except psycopg.Error:
            if begun is None and not self._over():  # psycopg had begun, and the level was refused: by a standby, say
                self._connection.rollback()
            raise
        return begun

    def commit(self, begun: object) -> None:
        self._settle()
        if not self._committed():
            self._check()
            if begun is None:
                self._connection.commit()
            else:
                self.one(Query(f"release savepoint {begun}", rows=False))

    def rollback(self, begun: object) -> None:
        with suppress(psycopg.Error):  # of what is to be rolled back
            self._settle()
        if not self._over():
            if begun is None:
                self._connection.rollback()
            else:
                self.one(Query(f"rollback to savepoint {begun}", rows=False))
                self.one(Query(f"release savepoint {begun}", rows=False))

    def rollback_all(self) -> None:
        self.rollback(None)

    def discard(self) -> None:
        self._connection.close()

    def _settle(self) -> None:
        """Let a pipeline be answered: until then nobody knows the state of the transaction."""
        if self._piped and not self._connection.closed:
            with self._connection.pipeline():
                pass


class AsyncPsycopg(_Psycopg):
    """A ``psycopg.AsyncConnection``."""

    blocks: ClassVar[bool] = False

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection: psycopg.AsyncConnection[Any] = connection

    async def one(self, query: Query) -> Row | None:
        if self._piped:
            async with self._connection.pipeline():
                return await self._one(query)
        return await self._one(query)

    async def _one(self, query: Query) -> Row | None:
        async with psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(_text(query), query.values or None)
            return await cursor.fetchone() if query.rows else None

    async def in_transaction(self) -> bool:
        await self._settle()
        return self._stays()

    async def begin(self, isolation: Isolation | None) -> object:
        await self._settle()
        begun, query = self._begin(isolation)
        try:
            if query is not None:
                await self.one(query)
        except psycopg.Error:
            if begun is None and not self._over():
                await self._connection.rollback()
            raise
        return begun

    async def commit(self, begun: object) -> None:
        await self._settle()
        if not self._committed():
            self._check()
            if begun is None:
                await self._connection.commit()
            else:
                await self.one(Query(f"release savepoint {begun}", rows=False))

    async def rollback(self, begun: object) -> None:
        with suppress(psycopg.Error):
            await self._settle()
        if not self._over():
            if begun is None:
                await self._connection.rollback()
            else:
                await self.one(Query(f"rollback to savepoint {begun}", rows=False))
                await self.one(Query(f"release savepoint {begun}", rows=False))

    async def rollback_all(self) -> None:
        await self.rollback(None)

    async def discard(self) -> None:
        await self._connection.close()

    async def _settle(self) -> None:
        """See ``Psycopg._settle``."""
        if self._piped and not self._connection.closed:
            async with self._connection.pipeline():
                pass


def _text(query: Query) -> Any:
    """As text, so that the connection's own encoding is used; the types of psycopg allow literals only."""
    return query.sql
