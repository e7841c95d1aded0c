"""The PostgreSQL backend of one coordinator: its links, what runs on them, and their common end.

It lives on one event loop. A process that uses everything has the links *lock* (one per thousand keys), *listen*,
*publish*, *work* (sessions), *payload* and *tasks* (one for all queues, one for each table or schema of functions),
opened when first needed. After a fork the child owns nothing: descriptors
are closed without a word to the server (``link.py``), every hold is lost with the reason ``forked``, and the parent
goes on unharmed.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from contextlib import AsyncExitStack

from ..backend import Capability, Health, Options
from ..conninfo import Address, AddressSource
from ..events import EventStream
from ..identity import default_name
from ..offloop import off_loop
from .embedded import EmbeddedServer
from .keeper import Context
from .listener import Listener
from .locks import PostgresLocker
from .messages import Publisher
from .messenger import PostgresMessenger
from .schema import ensure
from .sessionstore import PostgresSessionStore
from .store import Store
from .stores import PostgresStores
from .taskstore import PostgresTaskStore

__all__ = ["PostgresBackend"]


class PostgresBackend:
    """The port ``Backend`` over PostgreSQL. See ``AsyncCoordinator`` for the meaning of the parameters."""

    def __init__(self, address: Address, options: Options) -> None:
        self._address = address
        self._options = options
        self._name = options.name or default_name()
        self._embedded: EmbeddedServer | None = None
        self._links_made = False
        self._listener: Listener
        self._publisher: Publisher
        self._payloads: Store
        self.locker: PostgresLocker
        self.messenger: PostgresMessenger
        self._sessions: PostgresSessionStore
        self._tasks: PostgresTaskStore
        self.store: PostgresStores

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Everything."""
        return frozenset(
            ("exclusion", "processes", "shared", "semaphores", "messages", "payloads", "claims", "sessions", "tasks")
        )

    async def open(self, events: EventStream) -> None:
        """Make ready. Nothing connects before it is needed, except that an embedded server is started here."""
        address = self._address
        options = self._options
        direct = AddressSource(options.direct_url) if options.direct_url is not None else None
        if isinstance(address, str) and address.startswith("embedded:"):
            self._embedded = await _start_embedded(address)
            address = self._embedded.url
        context = Context(
            address=AddressSource(address),
            direct_address=direct,
            name=self._name,
            network_timeout=options.network_timeout,
            connect_timeout=options.connect_timeout,
            events=events,
            loop=asyncio.get_running_loop(),
            reconnect_limit=options.reconnect_limit,
        )
        if options.migrate:
            await ensure(context, options.schema)
        self._listener = Listener(context)
        self._publisher = Publisher(context)
        self._payloads = Store(context, options.schema)
        self._sessions = PostgresSessionStore(context, options.schema)
        self._tasks = PostgresTaskStore(context, options.schema)
        self.store = PostgresStores(self._sessions, self._tasks)
        self.messenger = PostgresMessenger(self._listener, self._publisher, self._payloads)
        self.locker = PostgresLocker(context, self._listener, self._publisher, options.max_locks)
        self._links_made = True
        _living.add(self)

    async def close(self) -> None:
        """Give everything back and close the links."""
        try:
            if self._links_made:
                await self._close_links()
        finally:
            _living.discard(self)
            if self._embedded is not None:
                await off_loop(self._embedded.stop)

    async def _close_links(self) -> None:
        try:
            await self.locker.close()
        finally:
            # one after the other, whatever becomes of each
            async with AsyncExitStack() as stack:
                for part in (self._listener, self._sessions, self._tasks, self._payloads, self._publisher):
                    stack.push_async_callback(part.close)

    def health(self) -> Health:
        """How the links and locks are."""
        keepers = [part.keeper for part in (self._listener, self._publisher, self._sessions, self._payloads)]
        keepers += self._tasks.keepers
        links = tuple(keeper.health() for keeper in [*(shard.keeper for shard in self.locker.shards), *keepers])
        return Health(
            ready=all(link.state in ("ready", "idle") for link in links),
            links=links,
            locks_held=self.locker.held,
            locks_waited_for=self.locker.waited_for,
            lock_budget=self.locker.budget,
            hearing=self._listener.hearing(),
            queue_usage=self._publisher.watch.known_usage,
        )

    def __repr__(self) -> str:
        return f"<PostgresBackend of {self._name!r}{'' if self._links_made else ', not open'}>"

    def forked(self) -> None:
        """In a forked child: let go of everything without touching the loop."""
        self.locker.forked()


_living: weakref.WeakSet[PostgresBackend] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for backend in [*_living]:
        backend.forked()
    _living.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def _start_embedded(address: str) -> EmbeddedServer:
    """Start or join it; a caller that leaves while it starts does not leave a user of it behind."""
    return await off_loop(lambda: EmbeddedServer.start(address), lambda server: server.stop())
