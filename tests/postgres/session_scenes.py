"""What the tests of the store of sessions ask, and how they disturb it.

Here live helpers without assertions of their own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pgconcert.errors import Unavailable
from pgconcert.postgres.sessionstore import PostgresSessionStore
from pgconcert.store import Kind, Request, StartSession, Subject, Take, Taken
from tests.postgres.scenes import QUIET, context, raw

T = TypeVar("T")

LONG = 600.0


@asynccontextmanager
async def keeping(
    url: str, schema: str = "pgconcert", network_timeout: float = QUIET
) -> AsyncGenerator[PostgresSessionStore]:
    """A store that ends with the block, and that purges when it is told to."""
    store = PostgresSessionStore(context(url, network_timeout=network_timeout), schema)
    store.purge._at = math.inf  # by chance it would be counted among the statements, or stand in their way
    try:
        yield store
    finally:
        await store.close()


def ask(store: PostgresSessionStore, request: Request[T]) -> asyncio.Future[T]:
    """Hand in a request."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    store.ask(request, answer)
    return answer


def start(store: PostgresSessionStore, ttl: float = LONG, data: str | None = None) -> asyncio.Future[int]:
    """Start a session."""
    return ask(store, StartSession(uuid="u", ttl=ttl, host="h", pid=7, application="tests", data=data))


async def at_last(store: PostgresSessionStore, request: Request[T]) -> T:
    """Ask among others; again, as long as they have locked a row for too long, for they may stand still."""
    while True:
        try:
            return await ask(store, request)
        except Unavailable as error:
            if "tried 5 times" not in str(error):
                raise


async def take(store: PostgresSessionStore, subject: Subject, session: int, **how: Any) -> Taken:
    """Take what is free."""
    taken = await ask(store, Take(subject=subject, session=session, **how))
    assert isinstance(taken, Taken), taken
    return taken


def named(name: str = "a", kind: Kind = "job", member: str = "") -> Subject:
    """A subject of the namespace of these tests."""
    return Subject(kind, "ns", name, member)


def sent(store: PostgresSessionStore) -> int:
    """How many statements have been sent so far."""
    return store.keeper.health().statements


def expire(url: str, *sessions: int, by: str = "1 second") -> None:
    """The time of sessions is over, as if they had not been renewed."""
    with raw(url) as other:
        other.execute(
            "update pgconcert.session set expires = clock_timestamp() - cast(%s as interval) where id = any(%s)",
            [by, list(sessions)],
        )


def rows(url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """What another connection sees."""
    with raw(url) as other:
        return other.execute(sql.encode(), values or None).fetchall()


def make_old(url: str, *sessions: int) -> None:
    """As if these sessions had been over for a quarter of an hour, and their terms for two hours."""
    expire(url, *sessions, by="15 minutes")
    with raw(url) as other:
        other.execute("update pgconcert.session set ended = expires where id = any(%s)", [[*sessions]])
        other.execute("update pgconcert.term set until = until - interval '2 hours'")
