"""Connections of psycopg 3, blocking and async.

A query is run on a plain cursor of its own, whatever cursors and rows the connection is set to make.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from .flow import Failure, Isolation, Query, Row, aborted, nested
from .servererrors import told

__all__ = ["AsyncPsycopg", "Psycopg"]

_IDLE: Final = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)
_numbers = itertools.count(1)


class _Psycopg:
    _connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

    def failure(self, error: Exception) -> Failure | None:
        found = told(error) if isinstance(error, psycopg.Error) else None
        return None if found is None else Failure(error, found.sqlstate, found.message)

    @property
    def _status(self) -> TransactionStatus:
        return self._connection.info.transaction_status

    def _stays(self) -> bool:
        return not self._connection.autocommit or self._status not in _IDLE

    def _begin(self, isolation: Isolation | None) -> tuple[str | None, Query | None]:
        """What was begun, and what is to be said for it. Outside autocommit the first statement begins by itself."""
        if self._status not in _IDLE:
            if isolation is not None:
                nested(isolation)
            name = f"pgconcert_{next(_numbers)}"
            return name, Query(f"savepoint {name}", rows=False)
        level = "" if isolation is None else f" isolation level {isolation}"
        if self._connection.autocommit:
            return None, Query(f"begin{level}", rows=False)
        return None, Query(f"set transaction{level}", rows=False) if level else None

    def _over(self) -> bool:
        return self._connection.closed or self._status in _IDLE

    def _check(self) -> None:
        if self._status == TransactionStatus.INERROR:
            aborted()


class Psycopg(_Psycopg):
    """A ``psycopg.Connection``."""

    blocks: ClassVar[bool] = True

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection: psycopg.Connection[Any] = connection

    def one(self, query: Query) -> Row | None:
        with psycopg.RawCursor(self._connection, row_factory=tuple_row) as cursor:
            cursor.execute(_text(query), query.values or None)
            return cursor.fetchone() if query.rows else None

    def in_transaction(self) -> bool:
        return self._stays()

    def begin(self, isolation: Isolation | None) -> object:
        begun, query = self._begin(isolation)
        if query is not None:
            self.one(query)
        return begun

    def commit(self, begun: object) -> None:
        if not self._over():
            self._check()
            if begun is None:
                self._connection.commit()
            else:
                self.one(Query(f"release savepoint {begun}", rows=False))

    def rollback(self, begun: object) -> None:
        if not self._over():
            if begun is None:
                self._connection.rollback()
            else:
                self.one(Query(f"rollback to savepoint {begun}", rows=False))
                self.one(Query(f"release savepoint {begun}", rows=False))

    def discard(self) -> None:
        self._connection.close()


class AsyncPsycopg(_Psycopg):
    """A ``psycopg.AsyncConnection``."""

    blocks: ClassVar[bool] = False

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection: psycopg.AsyncConnection[Any] = connection

    async def one(self, query: Query) -> Row | None:
        async with psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row) as cursor:
            await cursor.execute(_text(query), query.values or None)
            return await cursor.fetchone() if query.rows else None

    async def in_transaction(self) -> bool:
        return self._stays()

    async def begin(self, isolation: Isolation | None) -> object:
        begun, query = self._begin(isolation)
        if query is not None:
            await self.one(query)
        return begun

    async def commit(self, begun: object) -> None:
        if not self._over():
            self._check()
            if begun is None:
                await self._connection.commit()
            else:
                await self.one(Query(f"release savepoint {begun}", rows=False))

    async def rollback(self, begun: object) -> None:
        if not self._over():
            if begun is None:
                await self._connection.rollback()
            else:
                await self.one(Query(f"rollback to savepoint {begun}", rows=False))
                await self.one(Query(f"release savepoint {begun}", rows=False))

    async def discard(self) -> None:
        await self._connection.close()


def _text(query: Query) -> Any:
    """As text, so that the connection's own encoding is used; the types of psycopg allow literals only."""
    return query.sql
