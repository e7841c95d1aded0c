"""What the tests of tasks on a server ask, and how they disturb it.

Here live helpers without assertions of their own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from pgconcert.postgres.sessionstore import PostgresSessionStore
from pgconcert.postgres.stores import PostgresStores
from pgconcert.postgres.taskstore import PostgresTaskStore
from pgconcert.store import Request, StartSession, Subject, Take
from pgconcert.taskstore import (
    Enqueue,
    Failure,
    LookAtTasks,
    NewTask,
    Pick,
    Place,
    QueuePlace,
    TablePlace,
    TaskInfo,
    Turn,
    Turned,
)
from tests.postgres.scenes import QUIET, context, raw

T = TypeVar("T")

QUEUE = QueuePlace("ns", "work")


class Stores(PostgresStores):
    """Both stores, and the parts that tests look at."""

    def __init__(self, url: str, schema: str, network_timeout: float) -> None:
        of = context(url, network_timeout=network_timeout)
        self.sessions = PostgresSessionStore(of, schema)
        self.tasks = PostgresTaskStore(of, schema)
        self.tasks.queues.purge._at = math.inf  # by chance it would be counted among the statements
        self.events = of.events
        super().__init__(self.sessions, self.tasks)

    @property
    def statements(self) -> int:
        """How many the link of queues has sent."""
        return self.tasks.queues.keeper.health().statements


@asynccontextmanager
async def tasking(url: str, schema: str = "pgconcert", network_timeout: float = QUIET) -> AsyncGenerator[Stores]:
    """A store that ends with the block."""
    store = Stores(url, schema, network_timeout)
    try:
        yield store
    finally:
        await store.tasks.close()
        await store.sessions.close()


def ask(store: PostgresStores, request: Request[T]) -> asyncio.Future[T]:
    """Hand in a request."""
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    store.ask(request, answer)
    return answer


class Runner(NamedTuple):
    """A session that shares the tasks of a place."""

    store: PostgresStores
    place: Place
    subject: Subject
    session: int

    def turn(self, **parts: Any) -> asyncio.Future[Turned]:
        return ask(self.store, Turn(place=self.place, runner=self.subject, session=self.session, **parts))

    async def pick(self, start: int = 0, most: int | None = None, **parts: Any) -> Turned:
        return await self.turn(pick=Pick(most, start), **parts)


async def runner(store: PostgresStores, place: Place = QUEUE, member: str = "a", ttl: float = 600.0) -> Runner:
    """A runner of the name *crew*, with a session of its own."""
    session = await ask(store, StartSession(uuid=member, ttl=ttl, host="h", pid=7, application="tests"))
    subject = Subject("runner", "ns", "crew", member)
    await ask(store, Take(subject=subject, session=session))
    return Runner(store, place, subject, session)


async def enqueue(store: PostgresStores, count: int, place: QueuePlace = QUEUE, **how: Any) -> tuple[str, ...]:
    """Put tasks into the queue, all in one request."""
    return await ask(store, Enqueue(place=place, tasks=tuple(NewTask(b"%d" % n, **how) for n in range(count))))


async def tasks(store: PostgresStores, place: QueuePlace = QUEUE) -> dict[str, TaskInfo]:
    """All tasks of the queue, by id."""
    return {task.id: task for task in await ask(store, LookAtTasks(place=place, limit=10_000))}


def failed(*ids: str, retry_in: float = 60.0) -> tuple[Failure, ...]:
    """Reports of failures."""
    return tuple(Failure(one, "it did not work", retry_in) for one in ids)


def ids_of(turned: Turned) -> list[str]:
    """What was handed out."""
    return [task.id for task in turned.started]


ORDERS = TablePlace("orders", "id", "t.done_at is null", "t.due", "done_at = clock_timestamp()")


def make_orders(url: str, count: int) -> None:
    """The table of an application, prepared, with rows."""
    with raw(url) as owner:
        owner.execute(
            "create table orders (id bigint generated always as identity primary key, item text,"
            " due timestamptz not null default clock_timestamp(), done_at timestamptz, session_id bigint)"
        )
        owner.execute("create index on orders (session_id) where session_id is not null")
        owner.execute("create index on orders (due, id) where session_id is null and done_at is null")
        owner.execute("insert into orders (item) select 'item ' || n from generate_series(1, %s) n", [count])
