"""The other message libraries over LISTEN and NOTIFY, and the tables of everybody who takes part.

What may live here: one or two classes per library, and the tables `PUBLISHERS`, `LISTENERS`, `CALLERS`. No clock, no
statistics, no process.

Theory. Every library is used the way its documentation shows. Where that breaks when several tasks publish at a time
(broadcaster, over one asyncpg connection), they stand in line, as its users would have to let them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from candidate import Address, Key, Spec
from drivers import asyncpg_arguments
from pubsub_brokers import (
    ImqueueListener,
    ImqueuePublisher,
    NatsCaller,
    NatsListener,
    NatsPublisher,
    RedisListener,
    RedisPublisher,
)
from pubsub_candidate import CHANNEL, BlockingPublisher, Caller, Listener, Publisher, Sink
from pubsub_drivers import (
    AsyncpgCaller,
    AsyncpgListener,
    AsyncpgPoolPublisher,
    AsyncpgPublisher,
    AsyncpgQueueListener,
    LibpqListener,
    PgconcertBlockingPublisher,
    PgconcertCaller,
    PgconcertListener,
    PgconcertPublisher,
    PsycopgBlockingPublisher,
    PsycopgListener,
    PsycopgPublisher,
    PsycopgTenPublisher,
    dismiss,
)


class BroadcasterPublisher(Publisher):
    async def open(self, address: Address, tasks: int) -> None:
        import_module("asyncpg")
        self.broadcast = import_module("broadcaster").Broadcast(address.url)
        await self.broadcast.connect()
        self.line = asyncio.Lock()

    async def cycle(self, key: Key) -> None:
        async with self.line:
            await self.broadcast.publish(CHANNEL, key)

    async def close(self) -> None:
        await ended(self.broadcast.disconnect)


class BroadcasterListener(Listener):
    async def open(self, address: Address) -> None:
        import_module("asyncpg")
        self.broadcast = import_module("broadcaster").Broadcast(address.url)
        await self.broadcast.connect()
        self.stack = contextlib.AsyncExitStack()
        self.readers: list[asyncio.Task[None]] = []

    async def subscribe(self, channel: str, sink: Sink) -> None:
        subscriber = await self.stack.enter_async_context(self.broadcast.subscribe(channel))

        async def read() -> None:
            async for event in subscriber:
                sink(event.message)

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        await dismiss(self.readers)
        await self.stack.aclose()
        await ended(self.broadcast.disconnect)


async def ended(disconnect: Callable[[], Any]) -> None:
    """Close a library whose own reading task ends with a cancellation that it lets out."""
    with contextlib.suppress(asyncio.CancelledError):
        await disconnect()


def litestar(address: Address, driver: str) -> Any:
    channels = import_module("litestar.channels")
    if driver == "asyncpg":
        backend = import_module("litestar.channels.backends.asyncpg").AsyncPgChannelsBackend(address.url)
    else:
        backend = import_module("litestar.channels.backends.psycopg").PsycoPgChannelsBackend(address.url)
    return channels.ChannelsPlugin(backend=backend, arbitrary_channels_allowed=True)


class LitestarPublisher(Publisher):
    """`wait_published`, which opens a connection for every message."""

    driver = "asyncpg"

    async def open(self, address: Address, tasks: int) -> None:
        self.plugin = litestar(address, self.driver)
        await self.plugin.__aenter__()

    async def cycle(self, key: Key) -> None:
        await self.plugin.wait_published(key, CHANNEL)

    async def close(self) -> None:
        await self.plugin.__aexit__(None, None, None)


class LitestarPsycopgPublisher(LitestarPublisher):
    driver = "psycopg"


class LitestarListener(Listener):
    driver = "asyncpg"

    async def open(self, address: Address) -> None:
        self.stack = contextlib.AsyncExitStack()
        self.readers: list[asyncio.Task[None]] = []
        self.plugin = await self.stack.enter_async_context(litestar(address, self.driver))

    async def subscribe(self, channel: str, sink: Sink) -> None:
        subscriber = await self.stack.enter_async_context(self.plugin.start_subscription(channel))

        async def read() -> None:
            async for payload in subscriber.iter_events():
                sink(payload)

        self.readers.append(asyncio.create_task(read()))

    async def close(self) -> None:
        await dismiss(self.readers)
        await self.stack.aclose()


class LitestarPsycopgListener(LitestarListener):
    driver = "psycopg"


async def pgqueuer(address: Address) -> tuple[Any, Any]:
    connection = await import_module("asyncpg").connect(**asyncpg_arguments(address))
    return connection, import_module("pgqueuer.db").AsyncpgDriver(connection)


class PgqueuerPublisher(Publisher):
    async def open(self, address: Address, tasks: int) -> None:
        self.connection, self.driver = await pgqueuer(address)

    async def cycle(self, key: Key) -> None:
        await self.driver.notify(CHANNEL, key)

    async def close(self) -> None:
        await self.connection.close()


class PgqueuerListener(Listener):
    async def open(self, address: Address) -> None:
        self.connection, self.driver = await pgqueuer(address)

    async def subscribe(self, channel: str, sink: Sink) -> None:
        await self.driver.add_listener(channel, sink)

    async def close(self) -> None:
        await self.connection.close()


class AsyncpgListenListener(Listener):
    """Its channels are fixed when it starts, and it does not say when it listens: we look into the server for that."""

    async def open(self, address: Address) -> None:
        self.library = import_module("asyncpg_listen")
        self.address = address
        self.handlers: dict[str, Callable[[Any], Any]] = {}
        self.connections: list[Any] = []
        self.task: asyncio.Task[None] | None = None

    async def subscribe(self, channel: str, sink: Sink) -> None:
        if channel in self.handlers:
            raise ValueError("one handler for a channel")

        async def handle(notification: Any) -> None:
            if isinstance(notification, self.library.Notification):
                sink(notification.payload)

        self.handlers[channel] = handle

    async def listen(self, layout: Any) -> int:
        count = await super().listen(layout)
        connect = self.library.connect_func(**asyncpg_arguments(self.address))

        async def connected() -> Any:
            self.connections.append(await connect())
            return self.connections[-1]

        listener = self.library.NotificationListener(connected)
        self.task = asyncio.create_task(listener.run(self.handlers))
        async with asyncio.timeout(20):
            while not await self.listening():
                await asyncio.sleep(0.01)
        return count

    async def listening(self) -> bool:
        if not self.connections or self.connections[0].is_closed():
            return False
        # every add_listener has its turn on the connection, and so has this question, between two of them
        try:
            heard = await self.connections[0].fetchval("select count(*) from pg_listening_channels()")
        except import_module("asyncpg").InterfaceError:
            return False
        return bool(heard == len(self.handlers))

    async def close(self) -> None:
        if self.task is not None:
            await dismiss([self.task])
        for connection in self.connections:
            await connection.close()


ASYNCPG = "asyncpg"
PSYCOPG = "psycopg[binary]"
BROADCASTER = "broadcaster asyncpg"
IMQUEUE = "npm install @imqueue/pg-pubsub, with the path of its node_modules in NODE_PATH"
NATS = "nats-py (and nats-server)"
REDIS = "redis (and redis-server)"

PUBLISHERS: dict[str, Spec[Publisher | BlockingPublisher]] = {
    "pgconcert": Spec(PgconcertPublisher, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert (uvloop)": Spec(PgconcertPublisher, "pgconcert", "uvloop", "uvloop"),
    "pgconcert.blocking": Spec(PgconcertBlockingPublisher, "pgconcert", "threads", "pgconcert"),
    "asyncpg": Spec(AsyncpgPublisher, "driver", "asyncio", ASYNCPG),
    "asyncpg pool": Spec(AsyncpgPoolPublisher, "driver", "asyncio", ASYNCPG),
    "psycopg async": Spec(PsycopgPublisher, "driver", "asyncio", PSYCOPG),
    "psycopg async, 10": Spec(PsycopgTenPublisher, "driver", "asyncio", PSYCOPG),
    "psycopg": Spec(PsycopgBlockingPublisher, "driver", "threads", PSYCOPG),
    "broadcaster": Spec(BroadcasterPublisher, "library", "asyncio", BROADCASTER),
    "pgqueuer": Spec(PgqueuerPublisher, "library", "asyncio", "pgqueuer asyncpg"),
    "litestar": Spec(LitestarPublisher, "library", "asyncio", "litestar asyncpg"),
    "litestar, psycopg": Spec(LitestarPsycopgPublisher, "library", "asyncio", "litestar"),
    "imqueue": Spec(ImqueuePublisher, "library", "asyncio", IMQUEUE),
    "redis": Spec(RedisPublisher, "yardstick", "asyncio", REDIS),
    "nats": Spec(NatsPublisher, "yardstick", "asyncio", NATS),
}
LISTENERS: dict[str, Spec[Listener]] = {
    "pgconcert": Spec(PgconcertListener, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert (uvloop)": Spec(PgconcertListener, "pgconcert", "uvloop", "uvloop"),
    "libpq": Spec(LibpqListener, "driver", "asyncio", PSYCOPG),
    "psycopg async": Spec(PsycopgListener, "driver", "asyncio", PSYCOPG),
    "asyncpg": Spec(AsyncpgListener, "driver", "asyncio", ASYNCPG),
    "asyncpg, queues": Spec(AsyncpgQueueListener, "driver", "asyncio", ASYNCPG),
    "asyncpg-listen": Spec(AsyncpgListenListener, "library", "asyncio", "asyncpg-listen"),
    "broadcaster": Spec(BroadcasterListener, "library", "asyncio", BROADCASTER),
    "pgqueuer": Spec(PgqueuerListener, "library", "asyncio", "pgqueuer asyncpg"),
    "litestar": Spec(LitestarListener, "library", "asyncio", "litestar asyncpg"),
    "litestar, psycopg": Spec(LitestarPsycopgListener, "library", "asyncio", "litestar"),
    "imqueue": Spec(ImqueueListener, "library", "asyncio", IMQUEUE),
    "redis": Spec(RedisListener, "yardstick", "asyncio", REDIS),
    "nats": Spec(NatsListener, "yardstick", "asyncio", NATS),
}
CALLERS: dict[str, Spec[Caller]] = {
    "pgconcert": Spec(PgconcertCaller, "pgconcert", "asyncio", "pgconcert"),
    "asyncpg": Spec(AsyncpgCaller, "driver", "asyncio", ASYNCPG),
    "nats": Spec(NatsCaller, "yardstick", "asyncio", NATS),
}
