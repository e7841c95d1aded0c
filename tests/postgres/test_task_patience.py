"""SQL of the application may be slow: its link is patient, and nobody else's waits for it.

Theory: only the link of the slow one is watched as closely as ``TIMEOUT`` says. What others ask meanwhile, and who
shares, is asked of links that have all the time: on a busy machine they would be lost as well, and rightly.
"""

from __future__ import annotations

import asyncio

from pgconcert.errors import Unavailable
from pgconcert.events import Event, LinkLost
from pgconcert.taskstore import CheckPlace, FunctionPlace, StartWork, TablePlace
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.task_scenes import ORDERS, Stores, ask, enqueue, ids_of, make_orders, runner, tasking

TIMEOUT = 0.4
SLOW = "clock_timestamp() is not null and (select true from pg_sleep(0.2))"
GATE = """
    create function gate() returns bool language plpgsql as $$ begin
        while not pg_try_advisory_xact_lock_shared(77) loop perform pg_sleep(0.01); end loop;
        return true;
    end $$
"""
AT_THE_GATE = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"


def losses(store: Stores) -> list[Event]:
    """A list that grows with the links that were lost."""
    lost: list[Event] = []
    store.events.subscribe(lost.append, LinkLost)
    return lost


async def test_a_slow_condition(tables: str) -> None:
    """It takes longer than a network may be silent; the tasks come all the same."""
    make_orders(tables, 3)
    slow = TablePlace("orders", "id", f"t.done_at is null and {SLOW}", "t.due", ORDERS.finish)
    async with tasking(tables) as others, tasking(tables, network_timeout=TIMEOUT) as store:
        lost = losses(store)
        a = (await runner(others, slow, "a"))._replace(store=store)
        assert ids_of(await a.pick(start=3)) == ["1", "2", "3"]
        assert not lost


async def test_a_queue_does_not_wait_for_a_slow_condition(tables: str) -> None:
    make_orders(tables, 3)
    with raw(tables) as owner:
        owner.execute(GATE.encode())
    slow = TablePlace("orders", "id", "t.done_at is null and public.gate()", "t.due", ORDERS.finish)
    async with tasking(tables) as store:
        a, b = await runner(store, slow, "a"), await runner(store, member="b")
        await ask(store, CheckPlace(slow))
        with raw(tables) as other:
            other.execute("select pg_advisory_lock(77)")
            turning = asyncio.ensure_future(a.pick(start=3))
            await eventually_async(lambda: rows(tables, AT_THE_GATE) != [], what="the table is being looked at")
            await enqueue(store, 2)
            assert len(ids_of(await b.pick(start=2, most=1))) == 1
            assert not turning.done(), "the queue has waited for the table"
        assert ids_of(await turning) == ["1", "2"], "two runners share three tasks"


async def test_a_slow_function(tables: str) -> None:
    """The same, of a function."""
    with raw(tables) as owner:
        owner.execute("create schema shared")
        owner.execute(
            "create function shared.start_session() returns bigint language sql as 'select 7::int8 from pg_sleep(1)'"
        )
    async with tasking(tables, network_timeout=TIMEOUT) as store:
        lost = losses(store)

        async def begun() -> bool:
            try:
                return await ask(store, StartWork(FunctionPlace("shared"))) == 7
            except Unavailable:  # a busy machine may be that slow before the function has begun
                lost.clear()
                return False

        assert await begun() or await begun() or await begun()
        assert not lost
