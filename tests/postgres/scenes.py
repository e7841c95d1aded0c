"""What several test files of this folder need to look at and to disturb coordinators.

Here live small helpers without assertions of their own: events seen, advisory locks on the server, a coroutine
cancelled at a chosen suspension, a server with little room. Theory: a test looks at the server with a connection of its
own, never through the links it tests, so that looking changes no counter.
"""

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

import psycopg
import pytest

from pgconcert import AsyncCoordinator
from pgconcert.conninfo import AddressSource
from pgconcert.events import Event, EventStream
from pgconcert.hold import AsyncHold
from pgconcert.keys import KeySpace
from pgconcert.postgres.keeper import Context
from pgconcert.postgres.link import Link, Rows, statement
from pgconcert.testing import advisory_locks, eventually, eventually_async
from tests.servers import Cluster

T = TypeVar("T")
E = TypeVar("E", bound=Event)

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

QUIET: Final = 60.0
"""A `network_timeout` whose heartbeat does not beat within a test that counts statements."""


def key_of(name: int | str, namespace: str = "") -> int:
    """The 64 bits of a key, as the server sees them."""
    return KeySpace(namespace).key(name).value


def seen(coordinator: AsyncCoordinator, kind: type[E]) -> list[E]:
    """A list that grows with every event of one kind."""
    events: list[E] = []

    def read(event: Event) -> None:
        assert isinstance(event, kind)
        events.append(event)

    coordinator.events.subscribe(read, kind)
    return events


def role_pids(coordinator: AsyncCoordinator, role: str) -> list[int]:
    """The server processes of the links of one role."""
    return [link.server_pid for link in coordinator.health().links if link.role == role and link.server_pid]


def lock_pid(coordinator: AsyncCoordinator) -> int:
    """The server process of the one lock link."""
    (pid,) = role_pids(coordinator, "lock")
    return pid


def statements(coordinator: AsyncCoordinator, *roles: str) -> int:
    """How many statements the links of these roles (of all, if none is named) have sent so far."""
    return sum(link.statements for link in coordinator.health().links if not roles or link.role in roles)


def keys_on_server(url: str) -> dict[int, int]:
    """Every exclusive key held on the database, with the server process that holds it."""
    return {lock.key: lock.pid for lock in advisory_locks(url) if isinstance(lock.key, int) and lock.granted}


def marks_on_server(url: str) -> int:
    """How many interest marks there are on the database."""
    return sum(isinstance(lock.key, tuple) for lock in advisory_locks(url))


async def until_marked(url: str, count: int = 1) -> None:
    """Wait until so many sessions have marked their interest: they have tried in vain and now sleep."""
    await eventually_async(lambda: marks_on_server(url) >= count, what=f"{count} marks of interest")


async def until_free(url: str) -> None:
    """Wait until no advisory lock of any kind is left on the database."""
    await eventually_async(lambda: not advisory_locks(url), what="no advisory lock is left")


async def waiting_for(coordinator: AsyncCoordinator, key: int | str, url: str) -> asyncio.Task[AsyncHold]:
    """A task that waits for a key held by another process, and is known to the server as waiting."""
    before = marks_on_server(url)
    task = asyncio.create_task(coordinator.lock(key).acquire())
    await until_marked(url, before + 1)
    return task


@contextmanager
def raw(url: str) -> Generator[psycopg.Connection[Any], None, None]:
    """A plain connection of another program, in autocommit mode."""
    with psycopg.connect(url, autocommit=True, application_name="somebody else") as connection:
        yield connection


BUSY: Final = """
    select pid, query from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
       and state <> 'idle'
"""
"""Others in the database with a statement or a transaction under way."""


def until_idle(connection: psycopg.Connection[Any]) -> None:
    """Wait until no statement and no transaction of others is under way in the database, not even one whose client has
    gone: it would be in the way of whoever drops its tables."""
    eventually(lambda: not connection.execute(BUSY.encode()).fetchall(), what="all the others are idle")


@types.coroutine
def disturbed(
    coroutine: Coroutine[Any, Any, T], at: int, disturb: Callable[[asyncio.Future[Any] | None], None]
) -> Generator[Any, Any, T]:
    """Run a coroutine; call `disturb` when it suspends for the `at`-th time (from 1), with what it waits for."""
    suspensions = 0
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            awaited = step(value)
        except StopIteration as end:
            result: T = end.value
            return result
        suspensions += 1
        if suspensions == at:
            disturb(awaited)
        try:
            value = yield awaited
            step = coroutine.send
        except BaseException as error:
            value, step = error, coroutine.throw


class Notification(NamedTuple):
    """A notification as it arrived."""

    channel: bytes
    payload: bytes
    pid: int


class Ear:
    """The owner of a bare link: keeps what it hears."""

    def __init__(self) -> None:
        self.notifications: list[Notification] = []
        self.lost: list[str] = []

    def link_lost(self, link: Link, reason: str) -> None:
        """The link died."""
        self.lost.append(reason)

    def hear(self, channel: bytes, pid: int, payload: bytes) -> None:
        """A notification arrived."""
        self.notifications.append(Notification(channel, payload, pid))


async def link_to(url: str) -> tuple[Link, Ear]:
    """A bare link with an owner that remembers."""
    link, ear = await Link.connect(url), Ear()
    link.owner = ear
    link.hear = ear.hear
    return link, ear


async def ask(link: Link, sql: str, *params: bytes | None) -> Rows:
    """One statement and its rows."""
    return await link.execute(statement(sql), params)


def context(url: str, *, name: str = "tests", network_timeout: float = 5.0) -> Context:
    """What a keeper, listener or publisher needs to live on the running loop."""
    return Context(
        address=AddressSource(url),
        direct_address=None,
        name=name,
        network_timeout=network_timeout,
        connect_timeout=10.0,
        events=EventStream(),
        loop=asyncio.get_running_loop(),
    )


class SmallServer(Cluster):
    """A server with room for few locks, few sessions and, from PostgreSQL 17 on, few notifications."""

    LOCKS_PER_TRANSACTION: Final = 10
    CONNECTIONS: Final = 12

    def __init__(self, name: str, programs: Path, major: int) -> None:
        self._of_major = major
        super().__init__(name, programs)

    def _make(self) -> None:
        super()._make()
        lines = [
            f"max_locks_per_transaction = {self.LOCKS_PER_TRANSACTION}",
            f"max_connections = {self.CONNECTIONS}",
        ]
        if self._of_major >= 17:
            lines.append("max_notify_queue_pages = 64")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write("\n".join(lines) + "\n")
