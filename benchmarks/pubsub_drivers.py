"""pgconcert, and the bare drivers it is measured against, in the three trades of the benchmark.

What may live here: candidates that speak to PostgreSQL without a message library in between.

Theory. A bare driver is given what an expert would give it: autocommit, a prepared statement, a plain callback or loop.
Where many tasks share one connection they stand in line before it, because a connection takes one statement at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any

from candidate import Address, Key, PerThread
from drivers import asyncpg_arguments
from pubsub_candidate import CHANNEL, BlockingPublisher, Caller, Listener, Payload, Publisher, Sink

POOL = 10
NOTIFY = "select pg_notify(%s, %s)"
NOTIFY_NUMBERED = "select pg_notify($1, $2)"
QUESTIONS, ANSWERS = "bench_questions", "bench_answers"
PATIENCE = 10.0


class PgconcertPublisher(Publisher):
    async def open(self, address: Address, tasks: int) -> None:
        from pgconcert import AsyncCoordinator

        self.coordinator = AsyncCoordinator(address.url)
        await self.coordinator.__aenter__()

    async def cycle(self, key: Key) -> None:
        await self.coordinator.publish(CHANNEL, str(key))

    async def close(self) -> None:
        await self.coordinator.__aexit__(None, None, None)


class PgconcertBlockingPublisher(BlockingPublisher):
    def open(self, address: Address, tasks: int) -> None:
        from pgconcert.blocking import Coordinator

        self.coordinator = Coordinator(address.url)
        self.coordinator.open()

    def cycle(self, key: Key) -> None:
        self.coordinator.publish(CHANNEL, str(key))

    def close(self) -> None:
        self.coordinator.close()


class PgconcertListener(Listener):
    async def open(self, address: Address) -> None:
        from pgconcert import AsyncCoordinator

        self.stack = AsyncExitStack()
        self.readers: list[asyncio.Task[None]] = []
        self.coordinator = await self.stack.enter_async_context(AsyncCoordinator(address.url))

    async def subscribe(self, channel: str, sink: Sink) -> None:
        messages = await self.stack.enter_async_context(self.coordinator.subscribe(channel, capacity=self.capacity))

        async def read() -> None:
            async for message in messages:
                sink(message.text)

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        await dismiss(self.readers)
        await self.stack.aclose()


class PgconcertCaller(Caller):
    async def open(self, address: Address) -> None:
        from pgconcert import AsyncCoordinator

        self.stack = AsyncExitStack()
        self.coordinator = await self.stack.enter_async_context(AsyncCoordinator(address.url))

    async def answer(self) -> None:
        listening = await self.coordinator.listen({QUESTIONS: lambda message: message.payload})
        self.stack.push_async_callback(listening.close)

    async def prepare(self) -> None:
        pass

    async def call(self, payload: str) -> Payload:
        reply = await self.coordinator.request(QUESTIONS, payload, timeout=PATIENCE)
        return bytes(reply.payload)

    async def close(self) -> None:
        await self.stack.aclose()


async def dismiss(tasks: list[asyncio.Task[None]]) -> None:
    """End tasks that read for ever; an error that ended one of them before shows as what was lost."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class PsycopgPublisher(Publisher):
    """Connections handed round without a reset: as many as there are tasks, and no more than `most`."""

    most = 1

    async def open(self, address: Address, tasks: int) -> None:
        import psycopg

        self.idle: asyncio.LifoQueue[Any] = asyncio.LifoQueue()
        self.all: list[Any] = []
        for _ in range(min(tasks, self.most)):
            connection = await psycopg.AsyncConnection.connect(address.url, autocommit=True, prepare_threshold=0)
            self.all.append(connection)
            self.idle.put_nowait(connection.cursor())

    async def cycle(self, key: Key) -> None:
        cursor = await self.idle.get()
        await cursor.execute(NOTIFY, (CHANNEL, key))
        self.idle.put_nowait(cursor)

    async def close(self) -> None:
        for connection in self.all:
            await connection.close()


class PsycopgTenPublisher(PsycopgPublisher):
    most = POOL


class AsyncpgPublisher(Publisher):
    """One connection, for all tasks."""

    async def open(self, address: Address, tasks: int) -> None:
        asyncpg = import_module("asyncpg")
        self.connection = await asyncpg.connect(**asyncpg_arguments(address))
        self.statement = await self.connection.prepare(NOTIFY_NUMBERED)
        self.line = asyncio.Lock() if tasks > 1 else None

    async def cycle(self, key: Key) -> None:
        if self.line is None:
            await self.statement.fetchval(CHANNEL, key)
            return
        async with self.line:
            await self.statement.fetchval(CHANNEL, key)

    async def close(self) -> None:
        await self.connection.close()


class AsyncpgPoolPublisher(Publisher):
    """asyncpg's own pool as its documentation shows it, with the reset at every return."""

    async def open(self, address: Address, tasks: int) -> None:
        asyncpg = import_module("asyncpg")
        size = min(tasks, POOL)
        self.pool = await asyncpg.create_pool(min_size=size, max_size=size, **asyncpg_arguments(address))

    async def cycle(self, key: Key) -> None:
        await self.pool.fetchval(NOTIFY_NUMBERED, CHANNEL, key)

    async def close(self) -> None:
        await self.pool.close()


class PsycopgBlockingPublisher(PerThread, BlockingPublisher):
    """A connection for every thread."""

    def make(self) -> tuple[Any, Callable[[], object]]:
        import psycopg

        connection = psycopg.connect(self.address.url, autocommit=True, prepare_threshold=0)
        return connection.cursor(), connection.close

    def cycle(self, key: Key) -> None:
        self.mine().execute(NOTIFY, (CHANNEL, key))


class PsycopgListener(Listener):
    """`notifies()` has the connection to itself, so every subscription has a connection of its own."""

    async def open(self, address: Address) -> None:
        self.address = address
        self.all: list[Any] = []
        self.readers: list[asyncio.Task[None]] = []

    async def subscribe(self, channel: str, sink: Sink) -> None:
        import psycopg
        from psycopg import sql

        connection = await psycopg.AsyncConnection.connect(self.address.url, autocommit=True)
        self.all.append(connection)
        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))

        async def read() -> None:
            async for notify in connection.notifies():
                sink(notify.payload)

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        await dismiss(self.readers)
        for connection in self.all:
            await connection.close()


class LibpqListener(Listener):
    """libpq under the event loop, one subscription: the least that a client in Python can do."""

    async def open(self, address: Address) -> None:
        import psycopg

        self.connection = await psycopg.AsyncConnection.connect(address.url, autocommit=True)
        self.loop = asyncio.get_running_loop()

    async def subscribe(self, channel: str, sink: Sink) -> None:
        from psycopg import sql

        await self.connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        libpq = self.connection.pgconn
        consume, notifies = libpq.consume_input, libpq.notifies

        def readable() -> None:
            consume()
            while (notify := notifies()) is not None:
                sink(notify.extra)

        self.loop.add_reader(libpq.socket, readable)

    async def close(self) -> None:
        self.loop.remove_reader(self.connection.pgconn.socket)
        await self.connection.close()


class AsyncpgListener(Listener):
    """`add_listener` on one connection: callbacks, and nobody who waits."""

    async def open(self, address: Address) -> None:
        self.connection = await import_module("asyncpg").connect(**asyncpg_arguments(address))

    async def subscribe(self, channel: str, sink: Sink) -> None:
        def heard(connection: object, pid: int, channel: str, payload: str) -> None:
            sink(payload)

        await self.connection.add_listener(channel, heard)

    async def close(self) -> None:
        await self.connection.close()


class AsyncpgQueueListener(AsyncpgListener):
    """`add_listener`, a queue for every subscription, and a task that reads it: what an application would write."""

    async def open(self, address: Address) -> None:
        await super().open(address)
        self.readers: list[asyncio.Task[None]] = []

    async def subscribe(self, channel: str, sink: Sink) -> None:
        queue: asyncio.Queue[Payload] = asyncio.Queue()

        async def read() -> None:
            while True:
                sink(await queue.get())

        self.readers.append(asyncio.create_task(read()))
        await super().subscribe(channel, queue.put_nowait)

    async def close(self) -> None:
        await dismiss(self.readers)
        await super().close()


class AsyncpgCaller(Caller):
    """NOTIFY there and NOTIFY back: one connection on either side, which listens and sends."""

    async def open(self, address: Address) -> None:
        self.connection = await import_module("asyncpg").connect(**asyncpg_arguments(address))
        self.statement = await self.connection.prepare(NOTIFY_NUMBERED)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.waiting: asyncio.Future[Payload] | None = None

    async def answer(self) -> None:
        def asked(connection: object, pid: int, channel: str, payload: str) -> None:
            task = asyncio.ensure_future(self.statement.fetchval(ANSWERS, payload))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

        await self.connection.add_listener(QUESTIONS, asked)

    async def prepare(self) -> None:
        def answered(connection: object, pid: int, channel: str, payload: str) -> None:
            if self.waiting is not None and not self.waiting.done():
                self.waiting.set_result(payload)

        await self.connection.add_listener(ANSWERS, answered)

    async def call(self, payload: str) -> Payload:
        self.waiting = asyncio.get_running_loop().create_future()
        await self.statement.fetchval(QUESTIONS, payload)
        async with asyncio.timeout(PATIENCE):
            return await self.waiting

    async def close(self) -> None:
        await self.connection.close()
