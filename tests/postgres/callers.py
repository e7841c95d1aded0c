"""Connections of every kind that an application may have, behind one face, so that a test is written once for all.

Here live the kinds, and what each driver calls begin, commit, savepoint and the like; no assertions. Theory: a test
awaits everything. What blocks runs in a thread of the caller's own, one for its whole life (Django's connections belong
to the thread that asked for them), so the loop of the test goes on meanwhile. At the end of the block everything is
closed: the connection, the engine, the thread, the alias. What a kind says to the server outside ``transaction.*`` is
what its users would write, never a method of ours.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import asyncpg
import psycopg
import pytest
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as saio
from sqlalchemy.pool import NullPool

from tests.djangosettings import alias as django_alias

__all__ = [
    "AWAITED",
    "BLOCKING",
    "KINDS",
    "SQLALCHEMY",
    "Asyncpg",
    "Caller",
    "asyncpg_parts",
    "caller",
    "engine",
    "kinds",
    "own_thread",
    "parts",
]

T = TypeVar("T")

BLOCKING: Final = (
    "psycopg", "sqlalchemy", "sqlalchemy-session", "sqlalchemy-psycopg2", "sqlalchemy-pg8000", "django", "django-alias",
)  # fmt: skip
AWAITED: Final = ("psycopg-async", "asyncpg", "sqlalchemy-async", "sqlalchemy-asyncpg", "sqlalchemy-async-session")
KINDS: Final[tuple[str, ...]] = BLOCKING + AWAITED

SQLALCHEMY: Final = {
    "sqlalchemy": "psycopg",
    "sqlalchemy-session": "psycopg",
    "sqlalchemy-psycopg2": "psycopg2",
    "sqlalchemy-pg8000": "pg8000",
    "sqlalchemy-async": "psycopg_async",
    "sqlalchemy-asyncpg": "asyncpg",
    "sqlalchemy-async-session": "asyncpg",
}
"""The driver below each kind of SQLAlchemy."""


def kinds(*quick: str, among: Sequence[str] = KINDS) -> pytest.MarkDecorator:
    """Every kind as ``kind``; all but those that are named run with the long tests only."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=() if kind in quick else pytest.mark.long) for kind in among]
    )


class Caller:
    """A connection of one kind. Everything is awaited, and none of it is ours but ``say``."""

    def __init__(self, kind: str, conn: Any, blocks: bool, run: Callable[..., Any]) -> None:
        self.kind = kind
        self.conn = conn
        """What ``transaction.*`` gets."""
        self.blocks = blocks
        self._run = run
        self._undo: dict[str, Any] = {}

    async def call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something where this caller's connection may be used, and await what is awaitable."""
        if self.blocks:
            return await self._run(fn, *args, **kwargs)
        answer = fn(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def say(self, verb: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``verb(conn, ...)``."""
        return await self.call(verb, self.conn, *args, **kwargs)

    async def begin(self) -> None:
        """Begin a transaction, in the way that leaves the driver's own book-keeping right."""
        raise NotImplementedError

    async def commit(self) -> None:
        raise NotImplementedError

    async def rollback(self) -> None:
        raise NotImplementedError

    async def savepoint(self, name: str) -> None:
        raise NotImplementedError

    async def rollback_to(self, name: str) -> None:
        """Roll back to a savepoint, which is gone afterwards with the drivers that say so."""
        raise NotImplementedError

    async def execute(self, sql: str) -> None:
        raise NotImplementedError

    async def value(self, sql: str) -> Any:
        """The first column of the first row."""
        raise NotImplementedError

    async def pid(self) -> int:
        """The server process. Outside autocommit this begins a transaction where any statement does."""
        return int(await self.value("select pg_backend_pid()"))


class _Psycopg(Caller):
    async def begin(self) -> None:
        if self.conn.autocommit:
            await self.execute("begin")

    async def commit(self) -> None:
        await self.call(self.conn.commit)

    async def rollback(self) -> None:
        await self.call(self.conn.rollback)

    async def savepoint(self, name: str) -> None:
        await self.execute(f"savepoint {name}")

    async def rollback_to(self, name: str) -> None:
        await self.execute(f"rollback to savepoint {name}")

    async def execute(self, sql: str) -> None:
        await self.call(self.conn.execute, sql.encode())

    async def value(self, sql: str) -> Any:
        cursor = await self.call(self.conn.execute, sql.encode())
        row = await self.call(cursor.fetchone)
        return row[0]


class Asyncpg(Caller):
    """A connection of asyncpg."""

    async def begin(self) -> None:
        self._undo[""] = self.conn.transaction()
        await self._undo[""].start()

    async def commit(self) -> None:
        await self._undo.pop("").commit()

    async def rollback(self) -> None:
        await self._undo.pop("").rollback()

    async def savepoint(self, name: str) -> None:
        self._undo[name] = self.conn.transaction()
        await self._undo[name].start()

    async def rollback_to(self, name: str) -> None:
        await self._undo.pop(name).rollback()

    async def execute(self, sql: str) -> None:
        await self.conn.execute(sql)

    async def value(self, sql: str) -> Any:
        return await self.conn.fetchval(sql)


class _SQLAlchemy(Caller):
    """Connections and sessions, blocking and async: the names are the same."""

    async def begin(self) -> None:
        await self.call(self.conn.begin)

    async def commit(self) -> None:
        await self.call(self.conn.commit)

    async def rollback(self) -> None:
        await self.call(self.conn.rollback)

    async def savepoint(self, name: str) -> None:
        self._undo[name] = await self.call(self.conn.begin_nested)

    async def rollback_to(self, name: str) -> None:
        await self.call(self._undo.pop(name).rollback)

    async def execute(self, sql: str) -> None:
        await self.call(self.conn.execute, _plain(sql))

    async def value(self, sql: str) -> Any:
        return (await self.call(self.conn.execute, _plain(sql))).scalar()


class _Django(Caller):
    @property
    def connection(self) -> Any:
        """Django's own object; to be used in the caller's thread alone."""
        from django.db import connections

        return connections[self.conn] if isinstance(self.conn, str) else self.conn

    async def begin(self) -> None:
        def enter() -> None:
            from django.db import transaction

            atomic: Any = transaction.atomic(using=self.connection.alias)
            atomic.__enter__()
            self._undo[""] = atomic

        await self.call(enter)

    async def commit(self) -> None:
        await self.call(self._undo.pop("").__exit__, None, None, None)

    async def rollback(self) -> None:
        await self.call(self._undo.pop("").__exit__, ValueError, ValueError(), None)

    async def savepoint(self, name: str) -> None:
        def make() -> None:
            self._undo[name] = self.connection.savepoint()

        await self.call(make)

    async def rollback_to(self, name: str) -> None:
        await self.call(lambda: self.connection.savepoint_rollback(self._undo.pop(name)))

    async def execute(self, sql: str) -> None:
        def run() -> None:
            with self.connection.cursor() as cursor:
                cursor.execute(sql)

        await self.call(run)

    async def value(self, sql: str) -> Any:
        def run() -> Any:
            with self.connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchone()[0]

        return await self.call(run)


@asynccontextmanager
async def caller(kind: str, url: str, *, autocommit: bool = False) -> AsyncGenerator[Caller]:
    """A caller of a kind, closed with the block. Drivers are as they come: psycopg and SQLAlchemy begin with their
    first statement, but in ``autocommit``; asyncpg and Django are in autocommit mode from the start. Call ``begin``
    before what needs a transaction."""
    make = {"psycopg": _psycopg, "psycopg-async": _psycopg_async, "asyncpg": _asyncpg}.get(kind)
    if make is None:
        make = _django if kind.startswith("django") else _sqlalchemy if kind in BLOCKING else _sqlalchemy_async
    async with make(kind, url, autocommit) as made:
        yield made


def parts(url: str) -> dict[str, Any]:
    """host, port, dbname, user and password of a URL."""
    given = conninfo_to_dict(url)
    return {name: given[name] for name in ("host", "port", "dbname", "user", "password") if given.get(name)}


def engine(kind: str, url: str, **options: Any) -> Any:
    """An ``Engine`` or ``AsyncEngine`` that keeps no connection."""
    to = _sqlalchemy_url(SQLALCHEMY[kind], url)
    more = {"poolclass": NullPool, **options}
    return saio.create_async_engine(to, **more) if kind in AWAITED else sa.create_engine(to, **more)


@asynccontextmanager
async def own_thread() -> AsyncGenerator[Callable[..., Any]]:
    """What runs functions in one thread of its own. The block ends when they have: who leaves one waiting ends that."""
    with ThreadPoolExecutor(1, f"caller-{secrets.token_hex(2)}") as executor:

        async def run(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
            return await asyncio.wrap_future(executor.submit(fn, *args, **kwargs))

        yield run


@asynccontextmanager
async def _psycopg(kind: str, url: str, autocommit: bool) -> AsyncGenerator[Caller]:
    async with own_thread() as run:
        conn: psycopg.Connection[Any] = await run(psycopg.connect, url, autocommit=autocommit)
        try:
            yield _Psycopg(kind, conn, True, run)
        finally:
            conn.close()


@asynccontextmanager
async def _psycopg_async(kind: str, url: str, autocommit: bool) -> AsyncGenerator[Caller]:
    conn: psycopg.AsyncConnection[Any] = await psycopg.AsyncConnection.connect(url, autocommit=autocommit)
    try:
        yield _Psycopg(kind, conn, False, asyncio.to_thread)
    finally:
        await conn.close()


@asynccontextmanager
async def _asyncpg(kind: str, url: str, _autocommit: bool) -> AsyncGenerator[Caller]:
    conn: Any = await asyncpg.connect(**asyncpg_parts(url))
    try:
        yield Asyncpg(kind, conn, False, asyncio.to_thread)
    finally:
        conn.terminate()


@asynccontextmanager
async def _sqlalchemy(kind: str, url: str, autocommit: bool) -> AsyncGenerator[Caller]:
    made = engine(kind, url, **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}))
    async with own_thread() as run:
        conn: Any = await run(orm.Session, made) if kind.endswith("session") else await run(made.connect)
        try:
            yield _SQLAlchemy(kind, conn, True, run)
        finally:
            await run(conn.close)
            await run(made.dispose)


@asynccontextmanager
async def _sqlalchemy_async(kind: str, url: str, autocommit: bool) -> AsyncGenerator[Caller]:
    made = engine(kind, url, **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}))
    conn: Any = saio.AsyncSession(made) if kind.endswith("session") else await made.connect()
    try:
        yield _SQLAlchemy(kind, conn, False, asyncio.to_thread)
    finally:
        await conn.close()
        await made.dispose()


@asynccontextmanager
async def _django(kind: str, url: str, _autocommit: bool) -> AsyncGenerator[Caller]:
    from django.db import connections

    async with own_thread() as run:
        made = django_alias(url)
        alias: str = await run(made.__enter__)
        try:
            yield _Django(kind, alias if kind == "django-alias" else await run(lambda: connections[alias]), True, run)
        finally:
            await run(made.__exit__, None, None, None)


def asyncpg_parts(url: str) -> dict[str, Any]:
    """What ``asyncpg.connect`` takes for a URL: it reads no folder of sockets from one."""
    names = {"dbname": "database"}
    return {names.get(name, name): value for name, value in parts(url).items()}


def _sqlalchemy_url(driver: str, url: str) -> sa.URL:
    place = parts(url)
    folder = place.get("host", "").startswith("/")
    query = {}
    if folder and driver == "pg8000":
        query = {"unix_sock": f"{place.pop('host')}/.s.PGSQL.{place.pop('port', 5432)}"}
    elif folder:
        query = {"host": place.pop("host"), **({"port": str(place.pop("port"))} if "port" in place else {})}
    return sa.URL.create(
        f"postgresql+{driver}",
        username=place.get("user"),
        password=place.get("password"),
        host=place.get("host"),
        port=int(place["port"]) if place.get("port") else None,
        database=place.get("dbname"),
        query=query,
    )


def _plain(sql: str) -> sa.TextClause:
    """A statement without parameters, in which a colon is a colon."""
    return sa.text(sql.replace(":", "\\:"))
