"""What a connection can be had from for the time of one transaction: pools, engines, makers of sessions, or itself.

Theory. A *lender* opens a block in which the connection is the borrower's, and takes it back at the end of the block:
to its pool, or, of a connection that the caller gave, to nobody. A lender never ends a transaction by itself; but what
is given back to a pool in a transaction, or closed, is rolled back or thrown away by its own library. A connection that
was discarded inside the block is replaced by the pool.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from .connections import driver_of, is_of
from .flow import AsyncDriver, BlockingDriver

__all__ = ["AsyncLender", "BlockingLender", "lender_of"]


class BlockingLender(Protocol):
    """Where a connection that blocks comes from."""

    blocks: ClassVar[bool]

    def lend(self) -> AbstractContextManager[tuple[Any, BlockingDriver]]:
        """What the function gets, and the driver that speaks on it, until the end of the block."""
        ...


class AsyncLender(Protocol):
    """Where a connection that is awaited comes from."""

    blocks: ClassVar[bool]

    def lend(self) -> AbstractAsyncContextManager[tuple[Any, AsyncDriver]]: ...


class _Blocking:
    blocks: ClassVar[bool] = True

    def __init__(self, opened: Callable[[], AbstractContextManager[Any]], verb: str) -> None:
        self._opened = opened
        self._verb = verb

    @contextmanager
    def lend(self) -> Generator[tuple[Any, BlockingDriver]]:
        with self._opened() as connection:
            driver: Any = driver_of(connection, self._verb)
            yield connection, driver


class _Async:
    blocks: ClassVar[bool] = False

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[Any]], verb: str) -> None:
        self._opened = opened
        self._verb = verb

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[tuple[Any, AsyncDriver]]:
        async with self._opened() as connection:
            driver: Any = driver_of(connection, self._verb)
            yield connection, driver


class _Kind(NamedTuple):
    module: str
    name: str
    blocks: bool
    opens: str
    """The method whose context manager gives a connection; the source itself is called if this is empty."""


_KINDS: Final = (
    _Kind("psycopg_pool", "ConnectionPool", True, "connection"),
    _Kind("psycopg_pool", "AsyncConnectionPool", False, "connection"),
    _Kind("asyncpg.pool", "Pool", False, "acquire"),
    _Kind("sqlalchemy.engine", "Engine", True, "connect"),
    _Kind("sqlalchemy.ext.asyncio", "AsyncEngine", False, "connect"),
    _Kind("sqlalchemy.orm", "sessionmaker", True, ""),
    _Kind("sqlalchemy.ext.asyncio", "async_sessionmaker", False, ""),
)


class _BlockingGiven:
    blocks: ClassVar[bool] = True

    def __init__(self, connection: object, driver: BlockingDriver) -> None:
        self._lent = connection, driver

    @contextmanager
    def lend(self) -> Generator[tuple[Any, BlockingDriver]]:
        yield self._lent


class _AsyncGiven:
    blocks: ClassVar[bool] = False

    def __init__(self, connection: object, verb: str) -> None:
        self._connection = connection
        self._verb = verb

    @asynccontextmanager
    async def lend(self) -> AsyncGenerator[tuple[Any, AsyncDriver]]:
        # a registry of sessions has another one in each task: meant is that of the task in which the function runs
        driver: Any = driver_of(self._connection, self._verb)
        yield self._connection, driver


def lender_of(source: Any, verb: str) -> BlockingLender | AsyncLender:
    """Where a transaction gets its connection from, given a pool, an engine, a maker of sessions, a connection, a
    session, or an alias of Django's. Raises ``ConfigurationError`` for anything else. Nothing is sent."""
    for kind in _KINDS:
        if is_of(source, kind.module, kind.name):
            opened = getattr(source, kind.opens) if kind.opens else source
            return _Blocking(opened, verb) if kind.blocks else _Async(opened, verb)
    driver: Any = driver_of(source, verb)
    if not driver.blocks:
        return _AsyncGiven(source, verb)
    return _BlockingGiven(driver.lent if isinstance(source, str) else source, driver)  # behind an alias of Django's
