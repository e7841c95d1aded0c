"""What a candidate of a benchmark is: the interface, and the address it is opened with.

What may live here: the two base classes (event loop, threads), their per-thread helper, `Spec`, `Address`, `shares`.

Theory. A candidate knows how to take a lock by name (`acquire` waits, `try_acquire` answers at once), to give it back,
and to do one `cycle`: the shortest correct way its own users would write "lock, then unlock". It keeps what it needs
(connections, pool, prepared statements) open between the windows, so that a window measures cycles and nothing else.
Nothing is imported before a candidate is opened: a peer that is not installed is skipped by its pip name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

Key = int | str
Loop = Literal["asyncio", "uvloop", "threads"]
Kind = Literal["pgconcert", "driver", "library", "yardstick"]


@dataclass(frozen=True)
class Address:
    """Where the servers of a run are, in the parts every driver can digest."""

    host: str
    port: int
    user: str
    password: str | None
    dbname: str
    redis_socket: str | None = None
    nats_port: int | None = None

    @property
    def url(self) -> str:
        secret = f":{quote(self.password, safe='')}" if self.password else ""
        host = quote(self.host, safe="")
        return f"postgresql://{quote(self.user, safe='')}{secret}@/{quote(self.dbname)}?host={host}&port={self.port}"

    def sqlalchemy(self) -> Any:
        from sqlalchemy import URL

        query = {"host": self.host, "port": str(self.port)}
        return URL.create("postgresql+psycopg", self.user, self.password or None, database=self.dbname, query=query)


class AsyncCandidate:
    """A candidate for an event loop. `tasks` of `open` says how many tasks will call at a time."""

    async def open(self, address: Address, tasks: int) -> None:
        raise NotImplementedError

    async def acquire(self, key: Key) -> Any:
        raise NotImplementedError

    async def try_acquire(self, key: Key) -> Any:
        raise NotImplementedError

    async def release(self, token: Any) -> None:
        raise NotImplementedError

    async def cycle(self, key: Key) -> None:
        await self.release(await self.acquire(key))

    async def close(self) -> None:
        raise NotImplementedError

    def statements(self) -> int | None:
        """Statements sent so far by the candidate's own count; None if it keeps none."""
        return None


class BlockingCandidate:
    """A candidate for threads; `open` is called once, everything else by any thread."""

    def open(self, address: Address, tasks: int) -> None:
        raise NotImplementedError

    def acquire(self, key: Key) -> Any:
        raise NotImplementedError

    def try_acquire(self, key: Key) -> Any:
        raise NotImplementedError

    def release(self, token: Any) -> None:
        raise NotImplementedError

    def cycle(self, key: Key) -> None:
        self.release(self.acquire(key))

    def close(self) -> None:
        raise NotImplementedError


class PerThread(BlockingCandidate):
    """A candidate with one thing (a connection, a cursor) per thread."""

    def open(self, address: Address, tasks: int) -> None:
        self.address = address
        self.local = threading.local()
        self.closers: list[Callable[[], object]] = []
        self.prepare()

    def prepare(self) -> None:
        """Imports, so that a missing peer shows at `open` and not in a thread."""

    def make(self) -> tuple[Any, Callable[[], object]]:
        raise NotImplementedError

    def mine(self) -> Any:
        try:
            return self.local.thing
        except AttributeError:
            self.local.thing, closer = self.make()
            self.closers.append(closer)
            return self.local.thing

    def close(self) -> None:
        for closer in self.closers:
            closer()


def shares(total: int, parts: int) -> Sequence[int]:
    """`total` split into `parts` whole numbers that differ by at most one."""
    return [total // parts + (number < total % parts) for number in range(parts)]


Candidate = AsyncCandidate | BlockingCandidate
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Spec(Generic[T_co]):
    """One row of the tables: how to make the candidate, what runs it, and what to install when it is missing."""

    make: Callable[[], T_co]
    kind: Kind
    loop: Loop
    pip: str


def loop_factory(loop: Loop) -> Callable[[], Any] | None:
    """What makes the event loop of a candidate; None is asyncio's own."""
    if loop != "uvloop":
        return None
    import uvloop

    factory: Callable[[], Any] = uvloop.new_event_loop
    return factory
