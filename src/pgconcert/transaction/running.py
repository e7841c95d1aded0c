"""``transaction.run`` and ``rollback_quietly``: a transaction that is committed, or else rolled back, whatever happens.

Here live what they promise, the types of what may be given, and the checks of it. How it is done stands in
``driving.py``, with its theory; how a connection is lent in ``lending.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol, TypeVar, get_args, overload

import psycopg

from ..errors import ConfigurationError, given
from .connections import (
    AsyncConnection,
    AsyncpgConnection,
    BlockingConnection,
    DjangoConnection,
    SQLAlchemyAsync,
    SQLAlchemyBlocking,
    driver_of,
)
from .driving import not_fitting, roll_back, roll_back_awaited, run_awaited, run_blocking
from .flow import Isolation
from .lending import lender_of

__all__ = ["rollback_quietly", "run"]

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
Blocking = TypeVar("Blocking", bound=psycopg.Connection[Any] | SQLAlchemyBlocking | DjangoConnection)
Awaited = TypeVar("Awaited", bound=psycopg.AsyncConnection[Any] | AsyncpgConnection | SQLAlchemyAsync)


class _Pool(Protocol[T_co]):
    """A ``ConnectionPool`` of psycopg."""

    def connection(self) -> AbstractContextManager[T_co]: ...


class _AsyncPool(Protocol[T_co]):
    """An ``AsyncConnectionPool`` of psycopg."""

    def connection(self) -> AbstractAsyncContextManager[T_co]: ...


class _AsyncpgPool(Protocol):
    """An ``asyncpg.Pool``."""

    def acquire(self) -> Any: ...
    def get_idle_size(self) -> int: ...


class _Engine(Protocol[T_co]):
    """An ``Engine`` or ``AsyncEngine`` of SQLAlchemy."""

    def connect(self) -> T_co: ...


class _Maker(Protocol[T_co]):
    """A ``sessionmaker`` or ``async_sessionmaker`` of SQLAlchemy."""

    def __call__(self) -> T_co: ...


@overload
def run(
    source: str, fn: Callable[[Any], R], *, isolation: Isolation | None = ..., retries: int = ...
) -> R: ...  # an alias of Django's
@overload
def run(
    source: Blocking, fn: Callable[[Blocking], R], *, isolation: Isolation | None = ..., retries: int = ...
) -> R: ...
@overload
def run(
    source: Awaited, fn: Callable[[Awaited], Awaitable[R]], *, isolation: Isolation | None = ..., retries: int = ...
) -> Coroutine[Any, Any, R]: ...
@overload
def run(
    source: _Pool[Blocking] | _Engine[Blocking] | _Maker[Blocking],
    fn: Callable[[Blocking], R],
    *,
    isolation: Isolation | None = ...,
    retries: int = ...,
) -> R: ...
@overload
def run(
    source: _AsyncPool[Awaited] | _Engine[Awaited] | _Maker[Awaited],
    fn: Callable[[Awaited], Awaitable[R]],
    *,
    isolation: Isolation | None = ...,
    retries: int = ...,
) -> Coroutine[Any, Any, R]: ...
@overload
def run(
    source: _AsyncpgPool,
    fn: Callable[[Any], Awaitable[R]],
    *,
    isolation: Isolation | None = ...,
    retries: int = ...,
) -> Coroutine[Any, Any, R]: ...
def run(
    source: Any, fn: Callable[[Any], Any], *, isolation: Isolation | None = None, retries: int = 0
) -> Coroutine[Any, Any, Any] | Any:
    """Call ``fn`` with a connection, inside a transaction: commit when it returns, roll back when it raises. Returns
    what it returned. With what is awaited, ``fn`` is a coroutine function, and this is to be awaited.

    Whatever leaves ``fn`` is raised unchanged after the rollback: an error, ``KeyboardInterrupt``, a cancellation. If
    the rollback fails as well, its error stands in a note and at the end of the chain of the first one, and the
    connection is closed, so that no pool lends it again. A transaction that ``fn`` has ended itself is fine, and so is
    a connection that is dead: the server has rolled back. When the connection dies during the commit, the driver's
    error is raised, and nobody knows whether it was committed; that is never tried again.

    Inside an open transaction it makes a savepoint, which is released or rolled back; the transaction stays open, and
    ``retries`` counts for nothing: what has failed then is the whole.

    A cancellation during the commit or the rollback waits for the answer, at most five seconds, then the connection is
    closed; it is raised in any case, even if the commit has succeeded.

    :param source: a connection or session, as for every verb of this module, or what lends one: a pool of psycopg or
        asyncpg, an engine or sessionmaker of SQLAlchemy, an alias of Django's ``DATABASES``. A connection that was lent
        goes back before this returns.
    :param fn: gets the connection; what it returns must not need the transaction any more. It should not commit.
    :param isolation: ``"read committed"``, ``"repeatable read"`` or ``"serializable"`` for this transaction; by default
        whatever the connection has.
    :param retries: how many times at most a transaction is tried again that the server gave up for a serialization
        failure (40001) or a deadlock (40P01), in ``fn`` or at the commit. ``fn`` is called afresh, so what it does
        besides the transaction is done again. An error counts that stands behind the one raised (``raise ... from``, or
        in a group); one that ``fn`` keeps to itself does not. Between two tries is a pause, with the connection given
        back: at first 25 to 50 ms, twice as long each time, at most 0.5 to 1 s. After a rollback that failed there is
        no further try.
    :raises ConfigurationError: one of these is wrong; ``fn`` does not fit ``source`` (one is awaited and the other is
        not); or ``isolation`` was given inside an open transaction. Nothing was committed.
    :raises TransactionAborted: ``fn`` returned although a statement of the transaction had failed. It was rolled back.
    """
    if not callable(fn):
        raise ConfigurationError(f"transaction.run calls a function with a connection, and {given(fn)} is none")
    if isolation is not None and isolation not in get_args(Isolation):
        raise ConfigurationError(
            f"isolation is {', '.join(map(repr, get_args(Isolation)[:-1]))} or {get_args(Isolation)[-1]!r}, not "
            f"{given(isolation)}"
        )
    number: object = retries
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ConfigurationError(f"retries is how many times a transaction may be tried again, not {given(retries)}")
    lender: Any = lender_of(source, "transaction.run")
    if lender.blocks:
        if inspect.iscoroutinefunction(fn):
            raise not_fitting(fn, blocks=True)
        return run_blocking(lender, fn, isolation, retries)
    return run_awaited(lender, fn, isolation, retries)


@overload
def rollback_quietly(conn: BlockingConnection, error: BaseException | None = ...) -> None: ...
@overload
def rollback_quietly(conn: AsyncConnection, error: BaseException | None = ...) -> Coroutine[Any, Any, None]: ...
def rollback_quietly(conn: Any, error: BaseException | None = None) -> Coroutine[Any, Any, None] | None:
    """Roll back whatever is open on a connection, and raise nothing that would hide the error one is about to raise::

        except BaseException as error:
            rollback_quietly(conn, error)
            raise

    It is the whole transaction, with all savepoints in it. Inside ``atomic()`` of Django that cannot be done: the
    outermost ``atomic()`` is told to roll back at its end. A transaction that is over is fine, and so is a closed
    connection. With a connection that is awaited, so is this.

    If the rollback fails, the connection is closed, and what went wrong is kept with ``error`` (a note, and at the end
    of its chain), or logged by ``pgconcert`` without one. Only what ends a program passes, and a cancellation, which
    waits at most five seconds for the answer.

    :raises ConfigurationError: ``conn`` is no connection.
    """
    driver: Any = driver_of(conn, "transaction.rollback_quietly")
    if not driver.blocks:
        return roll_back_awaited(driver, error)
    try:
        roll_back(driver, driver.rollback_all, error)
    except BaseException:
        driver.discard()  # interrupted
        raise
    return None
