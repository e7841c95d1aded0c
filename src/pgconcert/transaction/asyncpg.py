"""Connections of asyncpg, or lent by its pools.

asyncpg is in autocommit mode but inside ``conn.transaction()``, whose objects stand in a chain that begins with the
outermost: only through such an object can a transaction be begun in which the caller may nest further ones. A
transaction that was begun with plain SQL knows no such objects; in it a savepoint is plain SQL too.

asyncpg does not tell a failed transaction from a sound one, and its ``commit`` does not tell that the server rolled
back: a commit is preceded by one statement that fails in a failed transaction.

A statement whose wait is cancelled is cancelled on the server too, and the next one waits until that is done.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, Final

import asyncpg

from .flow import Failure, Isolation, Query, Row, aborted, nested
from .servererrors import told

__all__ = ["Asyncpg"]

_LEVELS: Final[dict[Isolation, str]] = {
    "read committed": "read_committed",
    "repeatable read": "repeatable_read",
    "serializable": "serializable",
}
_numbers = itertools.count(1)


class Asyncpg:
    """An ``asyncpg.Connection``, or the ``PoolConnectionProxy`` of one. What was begun is the name of a savepoint in a
    transaction of plain SQL, or asyncpg's own object, and whether that is a savepoint."""

    blocks: ClassVar[bool] = False

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def one(self, query: Query) -> Row | None:
        if not query.rows:
            await self._connection.execute(query.sql, *query.values)
            return None
        # whatever class of rows the connection is set to make
        found = await self._connection.fetchrow(query.sql, *query.values, record_class=asyncpg.Record)
        return None if found is None else tuple(found)

    async def in_transaction(self) -> bool:
        return bool(self._connection.is_in_transaction())

    def nested(self, begun: object) -> bool:
        return _of(begun)[1]

    def failure(self, error: Exception) -> Failure | None:
        found = told(error) if isinstance(error, asyncpg.PostgresError) else None
        return None if found is None else Failure(error, found.sqlstate, found.message)

    async def begin(self, isolation: Isolation | None) -> object:
        inside = self._connection.is_in_transaction()
        if inside and isolation is not None:
            nested(isolation)
        begun = self._connection.transaction(isolation=None if isolation is None else _LEVELS[isolation])
        try:
            await begun.start()
        except asyncpg.InterfaceError:
            if not inside or self._connection.is_closed():
                raise
            # the transaction was begun with plain SQL, in which asyncpg makes no objects; nothing was sent
            name = f"pgconcert_{next(_numbers)}"
            await self._connection.execute(f"savepoint {name}")
            return name, True
        return begun, inside

    async def commit(self, begun: object) -> None:
        what, inside = _of(begun)
        if not self._connection.is_closed() and not self._connection.is_in_transaction():
            await self._forget(what, inside)
            return
        try:
            if isinstance(what, str):
                await self._connection.execute(f"release savepoint {what}")
            else:
                await self._connection.execute("select 1")
                await what.commit()
        except asyncpg.InFailedSQLTransactionError:
            aborted()

    async def rollback(self, begun: object) -> None:
        what, inside = _of(begun)
        if self._connection.is_closed():
            return
        if not self._connection.is_in_transaction():
            await self._forget(what, inside)
        elif isinstance(what, str):
            await self._connection.execute(f"rollback to savepoint {what}; release savepoint {what}")
        else:
            try:
                await what.rollback()
            except asyncpg.InterfaceError:
                if inside:
                    raise
                await self._connection.execute("rollback")  # its commit had failed, and it takes no second word

    async def rollback_all(self) -> None:
        # the outermost object of asyncpg's, which it keeps to itself: left alone it would think that it is open
        outermost = getattr(self._connection, "_top_xact", None)
        if outermost is not None:
            await self.rollback((outermost, False))
        elif not self._connection.is_closed() and self._connection.is_in_transaction():
            await self._connection.execute("rollback")

    async def discard(self) -> None:
        try:
            self._connection.terminate()
        except Exception:  # given back to its pool already
            return

    async def _forget(self, what: Any, inside: bool) -> None:
        """The function has ended the transaction with plain SQL: asyncpg's object has not seen it, and the connection
        would take the next transaction for one inside it. Where there is none, a rollback is a notice."""
        if not inside:
            try:
                await what.rollback()
            except asyncpg.InterfaceError:  # it has seen it: its commit has failed, and nothing is sent
                return


def _of(begun: Any) -> tuple[Any, bool]:
    what, inside = begun
    return what, bool(inside)
