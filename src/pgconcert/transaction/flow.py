"""What a verb says on a connection of the caller's, whatever the driver: queries out, rows in. No driver stands here.

Theory. A verb is a *flow*: a generator that yields a ``Query``, gets its first row (or ``None``) back, and returns what
the verb returns. What the server refuses is thrown into the flow as ``Failure``; a flow that does not catch it ends
with the driver's own error, unchanged. So each verb is written once and played by two loops, one for connections that
block and one for those that are awaited, and a driver is a class that can run one query.

States of the caller's transaction: a flow never begins, commits or rolls back the transaction, changes no setting that
stays, and leaves no savepoint behind. A flow that may provoke an error of the server does it inside a savepoint of its
own. Whoever is cancelled between two queries of a flow is inside a transaction that its owner rolls back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn, Protocol, TypeVar

from ..errors import ConfigurationError, TransactionAborted

__all__ = [
    "AsyncDriver",
    "BlockingDriver",
    "Driver",
    "Failure",
    "Flow",
    "Isolation",
    "Query",
    "Row",
    "aborted",
    "need_transaction",
    "nested",
    "on",
    "play",
    "play_async",
]

R = TypeVar("R")

Row = tuple[Any, ...]


class Query(NamedTuple):
    """A statement with ``$1``, ``$2`` ... for its values, each cast where it stands (``cast($1 as pg_catalog.text)``).

    Casts with two colons are for drivers that know no names of parameters; others would take them for one. A value is a
    ``str``, ``int``, ``float``, ``bytes`` or ``None``. The first row is wanted, or none: a statement that has no rows.
    """

    sql: str
    values: tuple[str | int | float | bytes | None, ...] = ()
    rows: bool = True
    """Whether the statement has rows: ``False`` for ``savepoint`` and the like."""


class Failure(Exception):
    """The server has refused a query: what every driver tells of it. ``error`` is the driver's own."""

    def __init__(self, error: BaseException, sqlstate: str | None, message: str) -> None:
        super().__init__(message)
        self.error = error
        self.sqlstate = sqlstate
        self.message = message


Flow = Generator[Query, Row | None, R]


Isolation = Literal["read committed", "repeatable read", "serializable"]
"""The isolation levels of PostgreSQL that differ."""


class Driver(Protocol):
    """One connection of the caller's, as a flow needs it."""

    blocks: ClassVar[bool]
    """Whether it is a ``BlockingDriver``."""

    def failure(self, error: Exception) -> Failure | None:
        """What an exception of ``one`` means, if the server refused the query; ``None`` for everything else."""
        ...

    def nested(self, begun: object) -> bool:
        """Whether what ``begin`` has just begun stands inside a transaction that was open before. Nothing is sent."""
        ...


class BlockingDriver(Driver, Protocol):
    """A connection that blocks. Whatever raises, raises the driver's own errors."""

    def one(self, query: Query) -> Row | None:
        """Run a query and return its first row."""
        ...

    def in_transaction(self) -> bool:
        """Whether what is run now stays part of a transaction that goes on afterwards."""
        ...

    def begin(self, isolation: Isolation | None) -> object:
        """Begin a transaction, or a savepoint if one is open already; returns what ``commit`` and ``rollback`` want.

        Raises ``ConfigurationError`` for an ``isolation`` inside an open transaction."""
        ...

    def commit(self, begun: object) -> None:
        """Commit what was begun (release the savepoint). One that is over already is fine. Raises
        ``TransactionAborted`` when a statement of it has failed, so that the server would roll it back silently; it is
        still open then."""
        ...

    def rollback(self, begun: object) -> None:
        """Roll back what was begun. One that is over already is fine, and so is a connection that is closed."""
        ...

    def rollback_all(self) -> None:
        """Roll back whatever is open, savepoints and all. None is fine, and so is a connection that is closed."""
        ...

    def discard(self) -> None:
        """Close the connection, because nobody knows what is open on it. Never raises, never waits for the server."""
        ...


class AsyncDriver(Driver, Protocol):
    """A connection that is awaited. See ``BlockingDriver``."""

    async def one(self, query: Query) -> Row | None: ...
    async def in_transaction(self) -> bool: ...
    async def begin(self, isolation: Isolation | None) -> object: ...
    async def commit(self, begun: object) -> None: ...
    async def rollback(self, begun: object) -> None: ...
    async def rollback_all(self) -> None: ...
    async def discard(self) -> None: ...


def play(driver: BlockingDriver, flow: Flow[R], needs: str | None = None) -> R:
    """Play a flow to its end. ``needs``: the verb that wants an open transaction."""
    try:
        if needs is not None and not driver.in_transaction():
            need_transaction(needs)
        query = next(flow)
        while True:
            try:
                row = driver.one(query)
            except Exception as error:
                query = flow.throw(_meaning(driver, error))
            else:
                query = flow.send(row)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except Failure as failure:
        raise failure.error from failure.error.__cause__  # as it was
    finally:
        flow.close()


async def play_async(driver: AsyncDriver, flow: Flow[R], needs: str | None = None) -> R:
    """``play``, for connections that are awaited."""
    try:
        if needs is not None and not await driver.in_transaction():
            need_transaction(needs)
        query = next(flow)
        while True:
            try:
                row = await driver.one(query)
            except Exception as error:
                query = flow.throw(_meaning(driver, error))
            else:
                query = flow.send(row)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    except Failure as failure:
        raise failure.error from failure.error.__cause__  # as it was
    finally:
        flow.close()


def on(driver: Any, flow: Flow[R], needs: str | None = None) -> Awaitable[R] | R:
    """Play a flow on a driver of either kind: its value, or what is to be awaited for it."""
    return play(driver, flow, needs) if driver.blocks else play_async(driver, flow, needs)


def need_transaction(verb: str) -> NoReturn:
    """There is no transaction that ``verb`` could be a part of. Raises ``ConfigurationError``."""
    raise ConfigurationError(
        f"{verb} needs an open transaction, and this connection has none: it is in autocommit mode, where the effect "
        "would end with the statement itself. Begin one first (conn.transaction(), conn.begin(), atomic())"
    )


def nested(isolation: Isolation) -> NoReturn:
    """A transaction is open already. Raises ``ConfigurationError``."""
    raise ConfigurationError(
        f"isolation={isolation!r} is for a transaction that begins, and this connection has one open already, in which "
        "only a savepoint can be made: leave isolation out, or end that transaction first"
    )


def aborted() -> NoReturn:
    """What was to be committed has failed already. Raises ``TransactionAborted``."""
    raise TransactionAborted(
        "a statement of this transaction had failed, and the function returned all the same: the server would have "
        "rolled it back at its commit and said nothing. Nothing was committed; let the function pass the error on, or "
        "make a savepoint around the statement that may fail"
    )


def _meaning(driver: Driver, error: Exception) -> Exception:
    return driver.failure(error) or error
