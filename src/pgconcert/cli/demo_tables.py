"""The tables of a demo: in a schema of its own, so that nothing is left behind and nobody else's rows are touched; the
terms that the server has noted there, and the queue of tasks.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from ..coordinator import AsyncCoordinator
from ..errors import ConfigurationError, StatementFailed
from ..postgres import schema as tables
from ..store import Subject, Term, Terms
from ..taskstore import TaskInfo
from .demo_tasks import QUEUE_NAME
from .schema import visited

__all__ = ["ELECTION_NAME", "DemoQueue", "made_tables", "noted_terms"]

ELECTION_NAME = "demo"


@contextmanager
def made_tables(url: str) -> Iterator[str | None]:
    """The schema, with our tables in it for the time of the block; ``None`` if this role may not make it."""
    name = f"pgconcert_demo_{secrets.token_hex(4)}"
    try:
        visited(url, name, lambda link: tables.apply(link, name))
    except (ConfigurationError, StatementFailed):
        yield None
        return
    try:
        yield name
    finally:
        visited(url, name, lambda link: tables.drop(link, name))


def noted_terms(url: str, schema: str, namespace: str) -> tuple[Term, ...]:
    """All terms of the demo, as the server has noted them."""

    async def ask() -> tuple[Term, ...]:
        async with AsyncCoordinator(url, schema=schema, name="pgconcert demo") as coordinator:
            answer: asyncio.Future[tuple[Term, ...]] = asyncio.get_running_loop().create_future()
            store = coordinator.backend.store
            assert store is not None
            store.ask(Terms(subject=Subject("election", namespace, ELECTION_NAME), after=-1), answer)
            return await answer

    return asyncio.run(ask())


class DemoQueue:
    """The queue of a demo. Use it as ``with``, from one thread. Tasks are numbered from 0."""

    def __init__(self, url: str, schema: str, namespace: str) -> None:
        self._runner = asyncio.Runner()
        self._coordinator = AsyncCoordinator(url, schema=schema, namespace=namespace, name="pgconcert demo")
        self._count = 0

    def enqueue(self, count: int) -> None:
        """Put so many tasks into it."""
        payloads = [str(number) for number in range(self._count, self._count + count)]
        self._runner.run(self._coordinator.queue(QUEUE_NAME).enqueue_many(payloads))
        self._count += count

    def look(self) -> tuple[TaskInfo, ...]:
        """How all of them are."""
        return self._runner.run(self._coordinator.queue(QUEUE_NAME).tasks(limit=self._count + 1))

    def __enter__(self) -> Self:
        self._runner.run(self._coordinator.open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._runner.run(self._coordinator.close())
        finally:
            self._runner.close()
