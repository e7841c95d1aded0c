"""A runner over a table of the application, on a real server: what its pick-ups make of rows that rest.

Here live tests of a whole runner over `TableTasks`; the statements alone are in `test_table_tasks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, TableTasks, Task
from pgconcert.testing import eventually_async
from tests.postgres.session_scenes import rows
from tests.postgres.store_scenes import database_with_tables
from tests.postgres.task_scenes import make_orders
from tests.servers import Server

ORDERS = TableTasks("orders", where="t.done_at is null", finish="done_at = clock_timestamp()")


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


async def test_a_row_that_rests_keeps_nobody_from_the_others(tables: str) -> None:
    """It stays with its session, and does not count for the cap while it rests."""
    make_orders(tables, 3)
    calls: list[str] = []

    async def tasker(task: Task) -> bool:
        calls.append(task.id)
        return task.id != "1"

    async with (
        AsyncCoordinator(tables) as c,
        c.runner("orders", tasker, ORDERS, per_task=True, tasks_per_session=1, tick=60.0) as runner,
    ):
        await eventually_async(
            lambda: rows(tables, "select id from orders where done_at is null") == [(1,)], what="the others are done"
        )
        assert rows(tables, "select session_id from orders where id = 1") == [(-(runner.session_id or 0),)]
    assert calls == ["1", "2", "3"]
    assert rows(tables, "select session_id from orders where id = 1") == [(None,)]
