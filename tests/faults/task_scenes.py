"""What the tests of runners under faults share: a database with tasks of both kinds, what ran, what the server has.

Here live helpers without assertions of their own. Theory: the rows are looked at over a connection that no fault
touches. Whoever counts the runs of tasks keeps them in a list, in the order in which they ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pgconcert import QueueTasks, TableTasks, Task
from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually_async
from tests.faults.task_tables import OPEN, WORK, Kind, add_tasks, outstanding
from tests.faults.task_worker import QUEUE, TABLE
from tests.postgres.scenes import raw
from tests.servers import Server

__all__ = ["SOURCES", "Owned", "Ran", "add", "left_to_do", "owned", "tables", "until_done"]

SOURCES: dict[Kind, QueueTasks | TableTasks] = {"queue": QUEUE, "table": TABLE}


class Owned(NamedTuple):
    """Which session has how many tasks, that are assigned to it or started by it."""

    session: int
    assigned: int
    started: int


class Ran(list[str]):
    """The ids of tasks that a tasker has done, by this tasker."""

    async def tasker(self, tasks: Sequence[Task]) -> None:
        """Does them at once."""
        self.extend(task.id for task in tasks)

    @property
    def twice(self) -> list[str]:
        """Those that ran more than once."""
        return sorted({task for task in self if self.count(task) > 1})


@contextmanager
def tables(server: Server) -> Iterator[str]:
    """The URL of a database with our tables and a table of the application."""
    with server.fresh_database() as url:
        with raw(url) as owner:
            for text in (script(), WORK):
                owner.execute(text.encode())
        yield url


def add(url: str, kind: Kind, count: int) -> None:
    """So many tasks more, that are due at once."""
    with raw(url) as other:
        add_tasks(other, kind, count, later=False)


def left_to_do(url: str, kind: Kind) -> int:
    """How many tasks are neither finished nor dead."""
    with raw(url) as look:
        return outstanding(look, kind)


async def until_done(url: str, kind: Kind, limit: float = 30.0) -> None:
    """Wait until nothing is left to do."""
    await eventually_async(lambda: not left_to_do(url, kind), limit, what="all tasks are finished")


def owned(url: str, kind: Kind) -> list[Owned]:
    """Who has what."""
    with raw(url) as look:
        found: list[tuple[Any, ...]] = look.execute(
            "select abs(t.session_id), count(*) filter (where t.session_id < 0),"
            f" count(*) filter (where t.session_id > 0) {OPEN[kind]} and t.session_id is not null"
            " group by 1 order by 1".encode()
        ).fetchall()
    return [Owned(*one) for one in found]
