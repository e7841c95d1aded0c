"""SQL of the application may be slow: its link is patient, and nobody else's waits for it."""

from __future__ import annotations

import asyncio

from pgconcert.events import Event, LinkLost
from pgconcert.taskstore import FunctionPlace, StartWork, TablePlace
from tests.postgres.scenes import raw
from tests.postgres.task_scenes import ORDERS, ask, enqueue, ids_of, make_orders, runner, tasking

TIMEOUT = 0.4
SLOW = "clock_timestamp() is not null and (select true from pg_sleep(0.2))"


async def test_a_slow_condition(tables: str) -> None:
    """It takes longer than a network may be silent; the tasks come all the same, and a queue is not held up."""
    make_orders(tables, 3)
    slow = TablePlace("orders", "id", f"t.done_at is null and {SLOW}", "t.due", ORDERS.finish)
    async with tasking(tables, network_timeout=TIMEOUT) as store:
        lost: list[Event] = []
        store.events.subscribe(lost.append, LinkLost)
        a, b = await runner(store, slow, "a"), await runner(store, member="b")
        turning = asyncio.ensure_future(a.pick(start=3))
        await enqueue(store, 2)
        assert len(ids_of(await b.pick(start=2, most=1))) == 1
        assert not turning.done(), "the queue has waited for the table"
        assert ids_of(await turning) == ["1", "2"], "two runners share three tasks"
        assert not lost


async def test_a_slow_function(tables: str) -> None:
    """The same, of a function."""
    with raw(tables) as owner:
        owner.execute("create schema shared")
        owner.execute(
            "create function shared.start_session() returns bigint language sql as 'select 7::int8 from pg_sleep(1)'"
        )
    async with tasking(tables, network_timeout=TIMEOUT) as store:
        lost: list[Event] = []
        store.events.subscribe(lost.append, LinkLost)
        assert await ask(store, StartWork(FunctionPlace("shared"))) == 7
        assert not lost
