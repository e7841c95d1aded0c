"""Who takes part in the benchmark of sessions: job locks of ours, the lease that people write by hand, redis-py's lock.

What may live here: candidates and their table. Everybody locks the same few names again and again, as jobs do: a name
belongs to one task at a time, so nobody waits.

Theory. The lease by hand is what an expert writes without a library: a table with holder and time, a transaction that
looks at the row under its lock and inserts it, and a statement that deletes it; prepared, over a connection of its own
for each thread. All but redis flush to disk twice in a cycle; redis flushes nothing, and forgets its locks when it
is restarted.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from importlib import import_module
from typing import Any

from candidate import Address, AsyncCandidate, BlockingCandidate, Candidate, Key, PerThread, Spec

TTL = 40.0
BY_HAND = "lease by hand"

MAKE_TABLE = """
    create table if not exists lease (
        name text primary key, holder text not null, touched timestamptz not null, iteration bigint not null)
"""
LOOK = "select holder, touched, iteration from lease where name = %s for update"
INSERT = "insert into lease (name, holder, touched, iteration) values (%s, %s, now(), 1)"
DELETE = "delete from lease where name = %s and holder = %s"


class Pgconcert(AsyncCandidate):
    """Job locks of a coordinator."""

    async def open(self, address: Address, tasks: int) -> None:
        from pgconcert import AsyncCoordinator

        self.coordinator = AsyncCoordinator(address.url)
        await self.coordinator.__aenter__()
        self.idle = [f"job:{number}" for number in range(tasks)]

    async def acquire(self, key: Key) -> Any:
        return await self.coordinator.job_lock(str(key), ttl=TTL).acquire()

    async def try_acquire(self, key: Key) -> Any:
        return await self.coordinator.job_lock(str(key), ttl=TTL).try_acquire()

    async def release(self, token: Any) -> None:
        await token.release()

    async def cycle(self, key: Key) -> None:
        name = self.idle.pop()
        async with self.coordinator.job_lock(name, ttl=TTL):
            pass
        self.idle.append(name)

    async def close(self) -> None:
        await self.coordinator.__aexit__(None, None, None)

    def statements(self) -> int | None:
        return sum(link.statements for link in self.coordinator.health().links)


class PgconcertBlocking(BlockingCandidate):
    """The same for threads."""

    def open(self, address: Address, tasks: int) -> None:
        from pgconcert.blocking import Coordinator

        self.coordinator = Coordinator(address.url)
        self.coordinator.open()
        self.idle = [f"job:{number}" for number in range(tasks)]

    def cycle(self, key: Key) -> None:
        name = self.idle.pop()
        with self.coordinator.job_lock(name, ttl=TTL):
            pass
        self.idle.append(name)

    def close(self) -> None:
        self.coordinator.close()


class ByHand(PerThread):
    """A transaction of two statements that takes the lease, one statement that gives it back."""

    def prepare(self) -> None:
        import psycopg

        self.holder = f"{uuid.uuid4()}.{self.address.host}"
        self.numbers = itertools.count()
        with psycopg.connect(self.address.url, autocommit=True) as connection:
            connection.execute(MAKE_TABLE)

    def make(self) -> tuple[Any, Callable[[], object]]:
        import psycopg

        connection = psycopg.connect(self.address.url, autocommit=True, prepare_threshold=0)
        return (connection, f"job:{next(self.numbers)}"), connection.close

    def cycle(self, key: Key) -> None:
        connection, name = self.mine()
        with connection.transaction():
            if connection.execute(LOOK, (name,)).fetchone() is not None:
                raise RuntimeError(f"{name} is taken, and nobody else is here")
            connection.execute(INSERT, (name, self.holder))
        if connection.execute(DELETE, (name, self.holder)).rowcount != 1:
            raise RuntimeError(f"{name} was not ours any more")


class Redis(PerThread):
    """redis-py's lock on a private redis-server that writes nothing to disk."""

    def prepare(self) -> None:
        if self.address.redis_socket is None:
            raise ModuleNotFoundError("no redis-server on this machine", name="redis-server")
        self.redis = import_module("redis")
        self.numbers = itertools.count()

    def make(self) -> tuple[Any, Callable[[], object]]:
        client = self.redis.Redis(unix_socket_path=self.address.redis_socket)
        client.ping()
        return (client, f"job:{next(self.numbers)}"), client.close

    def cycle(self, key: Key) -> None:
        client, name = self.mine()
        with client.lock(name, timeout=TTL):
            pass


CANDIDATES: dict[str, Spec[Candidate]] = {
    "pgconcert": Spec(Pgconcert, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert.blocking": Spec(PgconcertBlocking, "pgconcert", "threads", "pgconcert"),
    BY_HAND: Spec(ByHand, "driver", "threads", "psycopg[binary]"),
    "redis-py": Spec(Redis, "library", "threads", "redis (and redis-server)"),
}
