"""Connections and sessions of SQLAlchemy, blocking and async, over any driver of PostgreSQL.

A session speaks through the connection of its transaction. What it has not flushed stays so, except where a savepoint
is made, as ``session.begin_nested`` does. Begin, savepoint, commit and rollback go through SQLAlchemy's own objects, so
that what it thinks is open is open. With ``isolation_level="AUTOCOMMIT"`` those say nothing to the server: there a
transaction is plain SQL, inside one of SQLAlchemy's that is empty.

The async kinds are shells around blocking ones, in which SQLAlchemy itself waits for the driver: so each method is
written once, for the blocking kind, and run by ``run_sync``. A statement whose wait is cancelled costs the connection:
SQLAlchemy invalidates it, the server rolls back, and SQLAlchemy wants its ``rollback`` before it takes a new one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, UnboundExecutionError

from ..errors import ConfigurationError
from .flow import Failure, Isolation, Query, Row, aborted, nested
from .servererrors import told
from .statuses import Status, percent, status

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["AsyncSQLAlchemy", "SQLAlchemy", "on_postgresql"]

R = TypeVar("R")

_ABORTED: Final = "25P02"
_OPTIONS: Final[dict[str, Any]] = {"stream_results": False, "yield_per": None}
"""No cursor of the server, whatever the connection is set to: our statements are not all queries."""

_WITHOUT_VALUES: Final[dict[str, Any]] = {**_OPTIONS, "no_parameters": True}
_numbers = itertools.count(1)


class _Begun(NamedTuple):
    savepoint: Any = None
    """SQLAlchemy's object of a savepoint, or the name of one in autocommit mode."""

    plain: bool = False
    """Whether it was said in SQL."""

    empty: bool = False
    """Whether SQLAlchemy's own transaction, that says nothing, was begun for it too."""


def on_postgresql(source: Any, verb: str) -> None:
    """Raises ``ConfigurationError`` for a connection or session to another database, or to none."""
    try:
        dialect = source.get_bind().dialect if hasattr(source, "get_bind") else source.dialect
    except UnboundExecutionError:
        raise ConfigurationError(
            f"{verb} got a SQLAlchemy session that is bound to no engine of its own: give the connection that it has "
            "to PostgreSQL, session.connection(bind_arguments=...)"
        ) from None
    if dialect.name != "postgresql":
        raise ConfigurationError(
            f"{verb} is for PostgreSQL, and this SQLAlchemy connection is one of {dialect.name} ({dialect.driver})"
        )


class SQLAlchemy:
    """A ``Connection`` or ``Session``."""

    blocks: ClassVar[bool] = True

    def __init__(self, source: Connection | Session) -> None:
        self._source: Any = source
        self._session = not isinstance(source, Connection)
        self._last: Connection | None = source if isinstance(source, Connection) else None

    def one(self, query: Query) -> Row | None:
        connection = self._connection()
        if not query.values:
            found = connection.exec_driver_sql(query.sql, execution_options=_WITHOUT_VALUES)
        elif connection.dialect.driver == "asyncpg":
            found = connection.exec_driver_sql(query.sql, query.values, execution_options=_OPTIONS)
        else:
            driver = connection.dialect.driver
            sql, values = percent(query, quoted=driver != "pg8000", bytes_as_text=driver == "psycopg2")
            found = connection.exec_driver_sql(sql, values, execution_options=_OPTIONS)
        if not query.rows:
            found.close()
            return None
        row = found.first()
        return None if row is None else tuple(row)

    def in_transaction(self) -> bool:
        raw = self._raw()
        return not _autocommit(raw) or _inside(raw)

    def nested(self, begun: object) -> bool:
        return _of(begun).savepoint is not None

    def failure(self, error: Exception) -> Failure | None:
        if not isinstance(error, DBAPIError) or error.orig is None:
            return None
        # drivers that are async bring an error of SQLAlchemy's own, which follows that of the driver
        cause = error.orig.__cause__
        found = (told(cause) if cause is not None else None) or told(error.orig)
        return None if found is None else Failure(error, found.sqlstate, found.message)

    def begin(self, isolation: Isolation | None) -> object:
        was = bool(self._source.in_transaction())
        if not was:
            self._source.begin()
        try:
            raw = self._raw()
            plain = _autocommit(raw)
            inside = _inside(raw) if plain else was
            if inside and isolation is not None:
                nested(isolation)
            if inside and plain:
                name = f"pgconcert_{next(_numbers)}"
                self._say(f"savepoint {name}")
                return _Begun(name, plain=True, empty=not was)
            if inside:
                return _Begun(self._source.begin_nested())
            level = "" if isolation is None else f" isolation level {isolation}"
            if plain:
                self._say(f"begin{level}")
            elif level:
                self._say(f"set transaction{level}")
            return _Begun(plain=plain, empty=plain and not was)
        except BaseException:
            if not was:
                self._source.rollback()
            raise

    def commit(self, begun: object) -> None:
        what = _of(begun)
        if self._over(what):
            self._end(what)
            return
        if self._failed():
            aborted()
        if what.plain:
            self._say("commit" if what.savepoint is None else f"release savepoint {what.savepoint}")
            self._end(what)
        elif what.savepoint is not None:
            what.savepoint.commit()
        else:
            self._source.commit()

    def rollback(self, begun: object) -> None:
        what = _of(begun)
        lost = self._lost()
        if what.plain and not lost and not self._over(what):
            if what.savepoint is None:
                self._say("rollback")
            else:
                self._say(f"rollback to savepoint {what.savepoint}")
                self._say(f"release savepoint {what.savepoint}")
        if what.plain:
            self._end(what)
        elif what.savepoint is None:
            self._source.rollback()  # of what is over, or closed, it says nothing
        elif what.savepoint.is_active or lost:
            what.savepoint.rollback()

    def rollback_all(self) -> None:
        if not self._lost() and self._source.in_transaction() and self._sound():
            raw = self._raw()
            if _autocommit(raw) and _inside(raw):
                self._say("rollback")
        self._source.rollback()

    def discard(self) -> None:
        try:
            self._source.invalidate()
        except Exception:  # closed already
            return

    def cut(self) -> None:
        """Close the socket of psycopg's async connection: SQLAlchemy knows no way to close that without waiting."""
        last = self._last
        if last is not None and not last.closed and not last.invalidated:
            below = getattr(last.connection.driver_connection, "pgconn", None)
            if below is not None:
                below.finish()

    def _connection(self) -> Connection:
        if self._session:
            self._last = self._source.connection()
        assert self._last is not None
        return self._last

    def _raw(self) -> Any:
        """The pool's shell around the driver's connection; makes the connection if there is none yet."""
        return self._connection().connection

    def _say(self, sql: str) -> None:
        self.one(Query(sql, rows=False))

    def _lost(self) -> bool:
        return self._closed() or (self._last is not None and self._last.invalidated)

    def _sound(self) -> bool:
        """Whether a session takes statements: after a flush that failed it wants a rollback first."""
        return not self._session or bool(self._source.is_active)

    def _closed(self) -> bool:
        return not self._session and bool(self._source.closed)

    def _over(self, what: _Begun) -> bool:
        """Whether there is nothing left of it to commit. A connection that broke is for the driver to complain of."""
        if self._closed():
            return True
        if what.plain:
            return not self._connection().invalidated and not _inside(self._raw())
        if what.savepoint is not None:
            return not what.savepoint.is_active and self._sound()
        return not self._source.in_transaction()

    def _failed(self) -> bool:
        """Whether a statement of the transaction has failed, or a flush, after which a session wants a rollback."""
        if not self._sound():
            return True
        connection = self._connection()
        if connection.invalidated:
            return False
        known: Status | None = status(connection.connection.driver_connection)
        if known is not None:
            return known == "failed"
        try:
            self._say("select 1")
        except DBAPIError as error:
            found = self.failure(error)
            if found is None or found.sqlstate != _ABORTED:
                raise
            return True
        return False

    def _end(self, what: _Begun) -> None:
        if what.empty and self._source.in_transaction():
            self._source.rollback()


class AsyncSQLAlchemy:
    """An ``AsyncConnection`` or ``AsyncSession``."""

    blocks: ClassVar[bool] = False

    def __init__(self, source: AsyncConnection | AsyncSession) -> None:
        self._source = source
        self._made: SQLAlchemy | None = None

    @property
    def _inner(self) -> SQLAlchemy:
        if self._made is None:
            source: Any = self._source
            sync = source.sync_session if hasattr(source, "sync_session") else source.sync_connection
            if sync is None:
                raise ConfigurationError("this AsyncConnection was not started: await it, or enter it with async with")
            self._made = SQLAlchemy(sync)
        return self._made

    async def one(self, query: Query) -> Row | None:
        return await self._run(self._inner.one, query)

    async def in_transaction(self) -> bool:
        return await self._run(self._inner.in_transaction)

    def nested(self, begun: object) -> bool:
        return self._inner.nested(begun)

    def failure(self, error: Exception) -> Failure | None:
        return self._inner.failure(error)

    async def begin(self, isolation: Isolation | None) -> object:
        return await self._run(self._inner.begin, isolation)

    async def commit(self, begun: object) -> None:
        await self._run(self._inner.commit, begun)

    async def rollback(self, begun: object) -> None:
        await self._run(self._inner.rollback, begun)

    async def rollback_all(self) -> None:
        await self._run(self._inner.rollback_all)

    async def discard(self) -> None:
        # not by the async kind's own `invalidate`, which says goodbye to the server and waits for its answer
        self._inner.cut()
        self._inner.discard()

    async def _run(self, fn: Callable[..., R], *values: Any) -> R:
        return await self._source.run_sync(lambda _: fn(*values))


def _autocommit(raw: Any) -> bool:
    return bool(getattr(raw.dbapi_connection, "autocommit", False))


def _inside(raw: Any) -> bool:
    """Whether the server is in a transaction; asked in autocommit mode alone, where SQLAlchemy does not know."""
    driver = raw.driver_connection
    known = status(driver)
    return known != "idle" if known is not None else bool(driver.is_in_transaction())


def _of(begun: object) -> _Begun:
    assert isinstance(begun, _Begun)
    return begun
