"""Who takes part in the benchmark of tasks: pgconcert's queue and runner, procrastinate, pgqueuer.

What may live here: workers and enqueuers, their tables, how their own tables are made. Everybody's task is a number,
and to do it is to be told of it.

Theory. A worker does tasks, so many at a time as its *batch* says: pgconcert hands them to its tasker together,
pgqueuer fetches so many at once and runs each by itself, procrastinate, which fetches one by one, runs so many at a
time. All are set up as their own pages advise for speed without loss: pgqueuer with its *balanced* durability (the
queue is logged, its history is not) and its settings for autovacuum, over a connection of asyncpg and over a pool of
them; procrastinate with a pool, and its finished jobs deleted. Nobody keeps finished tasks but pgqueuer, which cannot
do otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any

from candidate import Address, AsyncCandidate, Key, Spec
from drivers import asyncpg_arguments

Handle = Callable[[Sequence[int]], None]
"""Is told of tasks that are done now, by their numbers."""
POOL = 20
"""Connections of a pool where many tasks are under way at a time."""
CHUNK = 1000
"""How many tasks a call that enqueues many is given."""


class Worker:
    """One process that does tasks. `start` returns when it works; `stop` when nothing of it is under way any more."""

    async def open(self, address: Address, queue: str) -> None:
        raise NotImplementedError

    async def enqueue(self, numbers: Sequence[int]) -> None:
        """All in one call; to fill the queue, and to send one alone."""
        raise NotImplementedError

    async def start(self, batch: int, handle: Handle) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Pgconcert(Worker):
    """A runner of one queue. Of two calls of its tasker one works while the tasks of the other are noted down."""

    concurrency = 2

    async def open(self, address: Address, queue: str) -> None:
        from pgconcert import AsyncCoordinator, QueueTasks

        self.coordinator: Any = AsyncCoordinator(address.url)
        await self.coordinator.__aenter__()
        self.queue = self.coordinator.queue(queue)
        self.source = QueueTasks(queue)

    async def enqueue(self, numbers: Sequence[int]) -> None:
        await self.queue.enqueue_many([str(number) for number in numbers])

    async def start(self, batch: int, handle: Handle) -> None:
        async def work(tasks: Sequence[Any]) -> None:
            handle([int(task.payload) for task in tasks])

        self.runner = self.coordinator.runner(
            self.source.name, work, self.source, batch=batch, concurrency=self.concurrency
        )
        await self.runner.start()

    async def stop(self) -> None:
        await self.runner.stop()

    async def close(self) -> None:
        await self.coordinator.__aexit__(None, None, None)


class PgconcertOneCall(Pgconcert):
    """One call at a time, as a runner has it if nothing is said."""

    concurrency = 1


class Pgqueuer(Worker):
    """pgqueuer over one connection of asyncpg."""

    async def open(self, address: Address, queue: str) -> None:
        self.address, self.queue = address, queue
        self.queries = await self.connect()

    async def connect(self) -> Any:
        connection = await import_module("asyncpg").connect(**asyncpg_arguments(self.address))
        driver = import_module("pgqueuer.db").AsyncpgDriver(connection)
        self.close_driver = connection.close
        return import_module("pgqueuer.queries").Queries(driver)

    async def enqueue(self, numbers: Sequence[int]) -> None:
        count = len(numbers)
        await self.queries.enqueue([self.queue] * count, [str(number).encode() for number in numbers], [0] * count)

    async def start(self, batch: int, handle: Handle) -> None:
        self.pgq = import_module("pgqueuer").PgQueuer(self.queries.driver)

        async def work(job: Any) -> None:
            handle([int(job.payload)])

        self.pgq.entrypoint(self.queue)(work)
        # sm.run() is left out: there is no schedule
        running = self.pgq.qm.run(batch_size=batch, dequeue_timeout=timedelta(seconds=5))
        self.task = asyncio.create_task(running)

    async def stop(self) -> None:
        self.pgq.shutdown.set()
        await self.task
        await self.close_driver()  # what listened stays with its connection
        self.queries = await self.connect()

    async def close(self) -> None:
        await self.close_driver()


class PgqueuerPool(Pgqueuer):
    """pgqueuer over a pool, so that it fetches while it notes down what is done."""

    size = 4

    async def connect(self) -> Any:
        sizes = {"min_size": self.size, "max_size": self.size}
        pool = await import_module("asyncpg").create_pool(**sizes, **asyncpg_arguments(self.address))
        self.close_driver = pool.close
        return import_module("pgqueuer.queries").Queries(import_module("pgqueuer.db").AsyncpgPoolDriver(pool))


def procrastinate_app(address: Address, size: int) -> Any:
    library = import_module("procrastinate")
    return library.App(connector=library.PsycopgConnector(conninfo=address.url, min_size=4, max_size=size))


class Procrastinate(Worker):
    """procrastinate over its pool of psycopg connections."""

    async def open(self, address: Address, queue: str) -> None:
        self.app = procrastinate_app(address, POOL)
        self.queue = queue
        self.handle: Handle = lambda numbers: None

        async def work(number: int) -> None:
            self.handle([number])

        self.work = self.app.task(name="work", queue=queue)(work)
        await self.app.open_async()

    async def enqueue(self, numbers: Sequence[int]) -> None:
        if len(numbers) == 1:
            await self.work.defer_async(number=numbers[0])
        else:
            await self.work.batch_defer_async(*({"number": number} for number in numbers))

    async def start(self, batch: int, handle: Handle) -> None:
        self.handle = handle
        options = {"queues": [self.queue], "concurrency": batch, "delete_jobs": "successful"}
        running = self.app.run_worker_async(**options, install_signal_handlers=False)
        self.task = asyncio.create_task(running)

    async def stop(self) -> None:
        self.task.cancel()  # this is how it is asked to end in good order
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def close(self) -> None:
        await self.app.close_async()


class Enqueuing(AsyncCandidate):
    """A cycle enqueues `many` tasks by one call of a worker's way to do so."""

    def __init__(self, worker: type[Worker], many: int) -> None:
        self.doer, self.many = worker(), many

    async def open(self, address: Address, tasks: int) -> None:
        await self.doer.open(address, "enqueued")

    async def cycle(self, key: Key) -> None:
        first = int(key)
        await self.doer.enqueue(range(first, first + self.many))

    async def close(self) -> None:
        await self.doer.close()


class PgqueuerTwenty(PgqueuerPool):
    """With as many connections as other candidates have where many tasks enqueue."""

    size = POOL


class PgconcertOne(Pgconcert):
    """One task by the call for one."""

    async def enqueue(self, numbers: Sequence[int]) -> None:
        await self.queue.enqueue(str(numbers[0]))


async def make_ours(address: Address) -> None:
    from pgconcert import AsyncCoordinator

    async with AsyncCoordinator(address.url, migrate=True):
        pass


async def make_pgqueuer(address: Address) -> None:
    settings = import_module("pgqueuer.domain.settings")
    environment = settings.DBSettings(durability=settings.Durability.balanced)
    connection = await import_module("asyncpg").connect(**asyncpg_arguments(address))
    try:
        driver = import_module("pgqueuer.db").AsyncpgDriver(connection)
        builder = import_module("pgqueuer.adapters.persistence.qb").QueryBuilderEnvironment(settings=environment)
        await driver.execute(builder.build_install_query())
        await import_module("pgqueuer.queries").Queries(driver).optimize_autovacuum()
    finally:
        await connection.close()


async def make_procrastinate(address: Address) -> None:
    app = procrastinate_app(address, 4)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


MAKERS = {"pgconcert": make_ours, "pgqueuer": make_pgqueuer, "procrastinate": make_procrastinate}
"""Who makes its tables how."""
PGQUEUER, PROCRASTINATE = "pgqueuer asyncpg", "procrastinate"
WORKERS: dict[str, Spec[Worker]] = {
    "pgconcert": Spec(Pgconcert, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert, 1 call": Spec(PgconcertOneCall, "pgconcert", "asyncio", "pgconcert"),
    "pgconcert (uvloop)": Spec(Pgconcert, "pgconcert", "uvloop", "uvloop"),
    "pgqueuer": Spec(Pgqueuer, "library", "asyncio", PGQUEUER),
    "pgqueuer, pool": Spec(PgqueuerPool, "library", "asyncio", PGQUEUER),
    "pgqueuer (uvloop)": Spec(Pgqueuer, "library", "uvloop", f"{PGQUEUER} uvloop"),
    "procrastinate": Spec(Procrastinate, "library", "asyncio", PROCRASTINATE),
}
RIVALS = ("pgqueuer", "pgqueuer, pool", "procrastinate")
"""Whom a target is about: those on asyncio's own loop."""


def enqueuers(many: int) -> dict[str, Spec[AsyncCandidate]]:
    """The candidates that enqueue `many` tasks by a call."""
    kinds: dict[str, tuple[type[Worker], Any, str]] = {
        "pgconcert": (PgconcertOne if many == 1 else Pgconcert, "pgconcert", "pgconcert"),
        "pgqueuer": (Pgqueuer, "library", PGQUEUER),
        "pgqueuer, pool": (PgqueuerTwenty, "library", PGQUEUER),
        "procrastinate": (Procrastinate, "library", PROCRASTINATE),
    }
    return {name: Spec(partial(Enqueuing, cls, many), kind, "asyncio", pip) for name, (cls, kind, pip) in kinds.items()}
