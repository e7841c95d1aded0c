"""What the tests of the store ask, and how they look at what it did.

Here live helpers without assertions of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pgconcert.errors import Unavailable
from pgconcert.postgres.schemafiles import script
from pgconcert.postgres.store import Store
from pgconcert.testing import eventually_async
from tests.postgres.scenes import QUIET, context, raw
from tests.servers import Server

PAYLOADS = "pgconcert.message_payload"
CLAIMS = "pgconcert.message_claim"


@contextmanager
def database_with_tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with server.fresh_database() as url:
        with raw(url) as owner:
            owner.execute(script().encode())
        yield url


@asynccontextmanager
async def storing(url: str, schema: str = "pgconcert", network_timeout: float = QUIET) -> AsyncGenerator[Store]:
    """A store that ends with the block."""
    store = Store(context(url, network_timeout=network_timeout), schema)
    try:
        yield store
    finally:
        await store.close()


def spill(store: Store, payload: bytes, ttl: float = 3600.0) -> asyncio.Future[int]:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    store.spill(payload, ttl, answer)
    return answer


def fetch(store: Store, number: int) -> asyncio.Future[bytes | None]:
    answer: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
    store.fetch(number, answer)
    return answer


def claim(store: Store, message_id: str, scope: str = "orders") -> asyncio.Future[bool]:
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    store.claim(scope, message_id, answer)
    return answer


async def claimed(store: Store, message_id: str, scope: str = "orders") -> bool:
    """Claim among others; again, as long as the transaction of another is in the way, which may stand still."""
    while True:
        try:
            return await claim(store, message_id, scope)
        except Unavailable as error:
            if "others were in the way" not in str(error):
                raise


def count(url: str, table: str, where: str = "true") -> int:
    """How many rows there are."""
    with raw(url) as connection:
        (number,) = connection.execute(f"select count(*) from {table} where {where}".encode()).fetchone() or (0,)
    return int(number)


def statements(store: Store) -> int:
    """How many have been sent so far."""
    return store.keeper.health().statements


def make_old(url: str, payloads: int = 45, claims: int = 1200) -> None:
    """Fill the tables with what nobody needs any more."""
    with raw(url) as other:
        other.execute(
            "insert into pgconcert.message_payload (payload, expires) "
            "select 'old', clock_timestamp() - interval '1 second' from generate_series(1, %s)",
            [payloads],
        )
        other.execute(
            "insert into pgconcert.message_claim (scope, id, claimed) "
            "select 'old', n::text, clock_timestamp() - interval '61 minutes' from generate_series(1, %s) n",
            [claims],
        )


async def until_purged(store: Store) -> None:
    """Wait until the purge that the first request has begun is over."""
    await eventually_async(lambda: not store.purge.running, what="the purge is over")
