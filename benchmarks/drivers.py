"""pgconcert, and the bare drivers it is measured against.

What may live here: candidates that speak to PostgreSQL without a lock library in between.

Theory. A bare driver is given what an expert would give it: prepared statements, autocommit, connections handed round
without a reset. Text is hashed to 64 bits with BLAKE2b, as pgconcert does, so that both pay for it. Bare drivers do not
exclude inside a connection; they are the ceiling, not an alternative.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from hashlib import blake2b
from importlib import import_module
from typing import Any

from candidate import Address, AsyncCandidate, BlockingCandidate, Key, PerThread

TRY = "select pg_try_advisory_lock(%s)"
WAIT = "select pg_advisory_lock(%s)"
UNLOCK = "select pg_advisory_unlock(%s)"
POOL = 20
"""Connections of the pools that stand for "many tasks over a bare driver"."""


def key_bits(key: Key) -> int:
    """The bigint of a key for a driver that has no hash of its own."""
    if isinstance(key, int):
        return key
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def asyncpg_arguments(address: Address) -> dict[str, Any]:
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "database": address.dbname,
    }


class Pgconcert(AsyncCandidate):
    async def open(self, address: Address, tasks: int) -> None:
        from pgconcert import AsyncCoordinator

        self.coordinator = AsyncCoordinator(address.url)
        await self.coordinator.__aenter__()

    async def acquire(self, key: Key) -> Any:
        return await self.coordinator.lock(key).acquire()

    async def try_acquire(self, key: Key) -> Any:
        return await self.coordinator.lock(key).try_acquire()

    async def release(self, token: Any) -> None:
        await token.release()

    async def cycle(self, key: Key) -> None:
        async with self.coordinator.lock(key):
            pass

    async def close(self) -> None:
        await self.coordinator.__aexit__(None, None, None)

    def statements(self) -> int | None:
        return sum(link.statements for link in self.coordinator.health().links)


class PgconcertBlocking(BlockingCandidate):
    def open(self, address: Address, tasks: int) -> None:
        from pgconcert.blocking import Coordinator

        self.coordinator = Coordinator(address.url)
        self.coordinator.open()

    def acquire(self, key: Key) -> Any:
        return self.coordinator.lock(key).acquire()

    def try_acquire(self, key: Key) -> Any:
        return self.coordinator.lock(key).try_acquire()

    def release(self, token: Any) -> None:
        token.release()

    def cycle(self, key: Key) -> None:
        with self.coordinator.lock(key):
            pass

    def close(self) -> None:
        self.coordinator.close()


class RawPsycopgAsync(AsyncCandidate):
    """Prepared statements on bare connections, handed round without any reset; one task has one connection."""

    async def open(self, address: Address, tasks: int) -> None:
        import psycopg

        self.idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        self.all: list[Any] = []
        for _ in range(min(tasks, POOL)):
            connection = await psycopg.AsyncConnection.connect(address.url, autocommit=True, prepare_threshold=0)
            self.all.append(connection)
            self.idle.put_nowait(connection.cursor())

    async def lease(self) -> Any:
        return await self.idle.get()

    def give(self, cursor: Any) -> None:
        self.idle.put_nowait(cursor)

    async def acquire(self, key: Key) -> Any:
        cursor = await self.lease()
        bits = key_bits(key)
        await cursor.execute(WAIT, (bits,))
        return cursor, bits

    async def try_acquire(self, key: Key) -> Any:
        cursor = await self.lease()
        bits = key_bits(key)
        await cursor.execute(TRY, (bits,))
        if (await cursor.fetchone())[0]:
            return cursor, bits
        self.give(cursor)
        return None

    async def release(self, token: Any) -> None:
        cursor, bits = token
        await cursor.execute(UNLOCK, (bits,))
        await cursor.fetchone()
        self.give(cursor)

    async def cycle(self, key: Key) -> None:
        cursor = await self.lease()
        bits = (key_bits(key),)
        await cursor.execute(TRY, bits)
        await cursor.fetchone()
        await cursor.execute(UNLOCK, bits)
        await cursor.fetchone()
        self.give(cursor)

    async def close(self) -> None:
        for connection in self.all:
            await connection.close()


class RawPsycopgShared(RawPsycopgAsync):
    """One connection for every lock: the cheapest way to hold many, and no exclusion inside the process."""

    async def open(self, address: Address, tasks: int) -> None:
        await super().open(address, 1)
        self.only = self.idle.get_nowait()

    async def lease(self) -> Any:
        return self.only

    def give(self, cursor: Any) -> None:
        pass


class RawAsyncpg(AsyncCandidate):
    """As `RawPsycopgAsync`, over asyncpg."""

    async def open(self, address: Address, tasks: int) -> None:
        asyncpg = import_module("asyncpg")
        self.idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        self.all: list[Any] = []
        for _ in range(min(tasks, POOL)):
            connection = await asyncpg.connect(**asyncpg_arguments(address))
            self.all.append(connection)
            texts = (text.replace("%s", "$1") for text in (TRY, WAIT, UNLOCK))
            self.idle.put_nowait([await connection.prepare(text) for text in texts])

    async def acquire(self, key: Key) -> Any:
        statements = await self.idle.get()
        bits = key_bits(key)
        await statements[1].fetchval(bits)
        return statements, bits

    async def try_acquire(self, key: Key) -> Any:
        statements = await self.idle.get()
        bits = key_bits(key)
        if await statements[0].fetchval(bits):
            return statements, bits
        self.idle.put_nowait(statements)
        return None

    async def release(self, token: Any) -> None:
        statements, bits = token
        await statements[2].fetchval(bits)
        self.idle.put_nowait(statements)

    async def cycle(self, key: Key) -> None:
        statements = await self.idle.get()
        bits = key_bits(key)
        await statements[0].fetchval(bits)
        await statements[2].fetchval(bits)
        self.idle.put_nowait(statements)

    async def close(self) -> None:
        for connection in self.all:
            await connection.close()


class AsyncpgPool(AsyncCandidate):
    """asyncpg's own pool as its documentation shows it, with the reset at every return."""

    async def open(self, address: Address, tasks: int) -> None:
        asyncpg = import_module("asyncpg")
        size = min(tasks, POOL)
        self.pool = await asyncpg.create_pool(min_size=size, max_size=size, **asyncpg_arguments(address))

    async def acquire(self, key: Key) -> Any:
        connection = await self.pool.acquire()
        bits = key_bits(key)
        await connection.fetchval("select pg_advisory_lock($1)", bits)
        return connection, bits

    async def try_acquire(self, key: Key) -> Any:
        connection = await self.pool.acquire()
        bits = key_bits(key)
        if await connection.fetchval("select pg_try_advisory_lock($1)", bits):
            return connection, bits
        await self.pool.release(connection)
        return None

    async def release(self, token: Any) -> None:
        connection, bits = token
        await connection.fetchval("select pg_advisory_unlock($1)", bits)
        await self.pool.release(connection)

    async def close(self) -> None:
        await self.pool.close()


class RawPsycopg(PerThread):
    def make(self) -> tuple[Any, Callable[[], object]]:
        import psycopg

        connection = psycopg.connect(self.address.url, autocommit=True, prepare_threshold=0)
        return connection.cursor(), connection.close

    def acquire(self, key: Key) -> Any:
        cursor, bits = self.mine(), key_bits(key)
        cursor.execute(WAIT, (bits,))
        return cursor, bits

    def try_acquire(self, key: Key) -> Any:
        cursor, bits = self.mine(), key_bits(key)
        cursor.execute(TRY, (bits,))
        return (cursor, bits) if cursor.fetchone()[0] else None

    def release(self, token: Any) -> None:
        cursor, bits = token
        cursor.execute(UNLOCK, (bits,))
        cursor.fetchone()

    def cycle(self, key: Key) -> None:
        cursor, bits = self.mine(), (key_bits(key),)
        cursor.execute(TRY, bits)
        cursor.fetchone()
        cursor.execute(UNLOCK, bits)
        cursor.fetchone()
