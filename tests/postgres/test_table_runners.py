"""A runner over a table of the application, on a real server: what its pick-ups make of rows that rest.

Here live tests of a whole runner over `TableTasks`; the statements alone are in `test_table_tasks.py`.
"""

from __future__ import annotations

from pgconcert import AsyncCoordinator, TableTasks, Task
from pgconcert.events import RunnerAdvised, RunnerSessionStarted
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.task_scenes import make_orders

ORDERS = TableTasks("orders", where="t.done_at is null", finish="done_at = clock_timestamp()")


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


async def test_what_would_make_it_faster_is_told_once(tables: str) -> None:
    """The tasks are shared all the same; the sentence names the command that prints what is missing."""
    make_orders(tables, 1)
    with raw(tables) as owner:
        owner.execute("drop index orders_session_id_idx")
    async with AsyncCoordinator(tables) as c:
        told: list[RunnerAdvised] = []
        c.events.subscribe(told.append, RunnerAdvised)
        started: list[RunnerSessionStarted] = []
        c.events.subscribe(started.append, RunnerSessionStarted)
        async with c.runner("orders", lambda tasks: None, ORDERS, tick=0.2, ttl=2.0) as runner:
            first = runner.session_id
            with raw(tables) as owner:
                owner.execute("update pgconcert.session set expires = clock_timestamp(), ended = clock_timestamp()")
            await eventually_async(lambda: len(started) > 1, limit=30.0, what=f"there is a session after {first}")
        assert len(told) == 1
        assert "session_id" in told[0].advice
        assert "pgconcert schema show --table orders" in told[0].advice
        assert str(told[0]).startswith("runner 'orders': ")
