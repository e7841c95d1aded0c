"""Whose a task is, on a real server: who is judged to be dead, and what happens when several want the same.

Here live tests of the pick-up in `postgres/taskstatements.py`. Theory: what a rival does between the snapshot of a turn
and its locks is done by a condition of a table that waits for us.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import Unavailable
from pgconcert.store import EndSession
from pgconcert.taskstore import (
    CheckPlace,
    Recall,
    TablePlace,
    Turned,
)
from pgconcert.testing import eventually_async
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import expire, rows
from tests.postgres.task_scenes import (
    ORDERS,
    QUEUE,
    Stores,
    ask,
    enqueue,
    ids_of,
    make_orders,
    runner,
    tasking,
    tasks,
)

# who is dead


async def test_a_session_whose_time_is_over_is_ended_first(tables: str) -> None:
    async with tasking(tables) as store:
        a, b = await runner(store), await runner(store, member="b")
        await enqueue(store, 4)
        assert len(ids_of(await a.pick(start=1))) == 1
        expire(tables, a.session)
        turned = await b.pick(start=9)
        assert (turned.sessions, turned.share) == (1, 4)
        assert [task.attempt for task in turned.started] == [2, 1, 1, 1]
        assert rows(tables, f"select ended is not null from pgconcert.session where id = {a.session}") == [(True,)]
        assert await a.turn(finished=("1",)) == Turned(over=True)


async def test_a_session_that_is_renewed_this_instant_is_left_alone(tables: str) -> None:
    """Its row is locked, so it is not ended; nobody waits; and what it has stays with it."""
    async with tasking(tables) as store:
        a, b = await runner(store), await runner(store, member="b")
        await enqueue(store, 4)
        assert ids_of(await a.pick(start=2)) == ["1", "2"]
        expire(tables, a.session)
        with raw(tables) as other, other.transaction():
            other.execute(
                "update pgconcert.session set expires = clock_timestamp() + '1 hour' where id = %s", [a.session]
            )
            assert ids_of(await b.pick(start=4)) == ["3", "4"]
        assert ids_of(await b.pick(start=4)) == []
        assert (await a.turn(finished=("1", "2"))).refused == ()


async def test_after_a_change_of_the_server_sessions_have_a_grace(tables: str) -> None:
    """Who could not renew because the server changed is not robbed at once; but it asks for nothing in that time."""
    async with tasking(tables) as store:
        a, b = await runner(store, ttl=60), await runner(store, member="b")
        await enqueue(store, 4)
        assert ids_of(await a.pick(start=2)) == ["1", "2"]
        expire(tables, a.session)
        with raw(tables) as other:
            other.execute("update pgconcert.session set incarnation = 'another' where id = %s", [a.session])
        turned = await b.pick(start=4)
        assert (ids_of(turned), turned.sessions) == (["3", "4"], 2)
        assert await a.turn(finished=("1",)) == Turned(over=True)
        expire(tables, a.session, by="2 minutes")
        with raw(tables) as other:
            other.execute("update pgconcert.epoch set seen_at = seen_at - interval '2 minutes'")
        assert ids_of(await b.pick(start=4)) == ["1", "2"]


async def test_what_names_a_session_that_is_not_there_is_nobodys(tables: str) -> None:
    async with tasking(tables) as store:
        a = await runner(store)
        await enqueue(store, 3)
        with raw(tables) as other:
            other.execute("update pgconcert.task set session_id = case id when 1 then 77 else -78 end")
        assert ids_of(await a.pick(start=3)) == ["1", "2", "3"]


async def test_the_last_attempt_of_a_dead_worker_is_told(tables: str) -> None:
    """What crashes its worker again and again ends up dead, and says why."""
    async with tasking(tables) as store:
        await enqueue(store, 1, attempts=2)
        for member in ("a", "b"):
            one = await runner(store, member=member)
            assert ids_of(await one.pick(start=1)) == ["1"]
            expire(tables, one.session)
        last = await runner(store, member="c")
        turned = await last.pick(start=1)
        assert (ids_of(turned), turned.died) == ([], ("1",))
        (task,) = (await tasks(store)).values()
        assert (task.state, task.attempt, task.session) == ("dead", 2, None)
        assert "its session was over" in (task.error or "")


async def test_runners_that_are_over_are_counted_no_more(tables: str) -> None:
    """Their entries let go of their sessions, so that the next who counts does not meet them."""
    async with tasking(tables) as store:
        old = [await runner(store, member=f"old {number}") for number in range(5)]
        a = await runner(store)
        assert (await a.pick()).sessions == 6
        await asyncio.gather(*(ask(store, EndSession(one.session)) for one in old))
        assert (await a.pick()).sessions == 1
        held = rows(tables, "select member from pgconcert.entry where kind = 'runner' and session_id is not null")
        assert held == [("a",)]


# several at once


async def test_a_row_that_changes_after_the_snapshot_is_judged_anew(tables: str) -> None:
    """A turn that has seen a row free, and finds it taken when it comes to it, lets it be."""
    make_orders(tables, 2)
    with raw(tables) as owner:
        owner.execute(
            "create function gate(id bigint) returns bool language plpgsql as $$ begin"
            " while not pg_try_advisory_xact_lock_shared(77) loop perform pg_sleep(0.01); end loop;"
            " return true; end $$"
        )
    place = ORDERS._replace(where="t.done_at is null and public.gate(t.id)")
    async with tasking(tables) as store:
        a, b = await runner(store, place), await runner(store, ORDERS, "b")
        await ask(store, CheckPlace(place))
        with raw(tables) as other:
            other.execute("select pg_advisory_lock(77)")
            slow = a.pick(start=2)
            slow_turn = asyncio.ensure_future(slow)
            await eventually_async(
                lambda: rows(tables, "select 1 from pg_stat_activity where wait_event = 'PgSleep'") != [],
                what="the turn has its snapshot",
            )
            assert ids_of(await b.pick(start=1, most=1)) == ["1"]
            other.execute("update orders set done_at = clock_timestamp() where id = 2")
            other.execute("select pg_advisory_unlock(77)")
            turned = await slow_turn
        assert (ids_of(turned), turned.assigned) == ([], ())
        assert rows(tables, "select id, session_id from orders order by id") == [(1, b.session), (2, None)]


async def test_a_session_that_is_renewed_after_the_snapshot_is_left_alone(tables: str) -> None:
    """Under the lock of its row its time is looked at again: it is not ended, and keeps what it has."""
    make_orders(tables, 2)
    with raw(tables) as owner:
        owner.execute(
            "create function gate(id bigint) returns bool language plpgsql as $$ begin"
            " while not pg_try_advisory_xact_lock_shared(77) loop perform pg_sleep(0.01); end loop;"
            " return true; end $$"
        )
    place = ORDERS._replace(where="t.done_at is null and public.gate(t.id)")
    async with tasking(tables) as store:
        a, b = await runner(store, ORDERS), await runner(store, place, "b")
        await ask(store, CheckPlace(place))
        assert ids_of(await a.pick(start=1, most=1)) == ["1"]
        expire(tables, a.session)
        with raw(tables) as other:
            other.execute("select pg_advisory_lock(77)")
            slow_turn = asyncio.ensure_future(b.pick(start=2))
            await eventually_async(
                lambda: rows(tables, "select 1 from pg_stat_activity where wait_event = 'PgSleep'") != [],
                what="the turn has its snapshot",
            )
            other.execute(
                "update pgconcert.session set expires = clock_timestamp() + '1 hour' where id = %s", [a.session]
            )
            other.execute("select pg_advisory_unlock(77)")
            turned = await slow_turn
        assert ids_of(turned) == ["2"]
        assert rows(tables, f"select ended from pgconcert.session where id = {a.session}") == [(None,)]
        assert (await a.turn(finished=("1",))).refused == ()


async def test_a_report_that_waited_is_judged_anew(tables: str) -> None:
    """Whoever takes a row from us holds its lock for a moment; the report waits, and finds that it came too late."""
    async with tasking(tables) as store:
        a, b = await runner(store), await runner(store, member="b")
        await enqueue(store, 4)
        assert ids_of(await a.pick(start=2)) == ["1", "2"]

        async def waited() -> Turned | None:
            """What is told to a report that waited; nothing, if this process stood still for longer than it waits."""
            with raw(tables) as other, other.transaction():
                other.execute("update pgconcert.task set session_id = %s where id = 1", [b.session])
                late = asyncio.ensure_future(a.turn(finished=("1", "2")))
                waits = "select 1 from pg_locks where not granted"
                await eventually_async(lambda: late.done() or bool(rows(tables, waits)), what="the report waits")
            try:
                return await late
            except Unavailable:
                with raw(tables) as other:
                    other.execute("update pgconcert.task set session_id = %s where id = 1", [a.session])
                return None

        told = None
        for _ in range(20):
            told = told or await waited()
        assert told is not None
        assert told.refused == ("1",)
        assert (await b.turn(finished=("1",))).refused == ()


async def test_many_take_each_task_once(tables: str) -> None:
    """Processes that pick up at the same time, some of which die: no task is with two of them."""
    async with tasking(tables) as one, tasking(tables) as two, tasking(tables) as three:
        await enqueue(one, 300)
        done: dict[str, int] = {}

        async def work(store: Stores, member: str) -> None:
            me = await runner(store, member=member)
            held: tuple[str, ...] = ()
            while True:
                turned = await me.pick(start=5, most=20, finished=held)
                if turned.assigned:
                    turned = await me.turn(start=turned.assigned, finished=tuple(ids_of(turned)))
                for task in held:
                    done[task] = done.get(task, 0) + 1
                    assert task not in turned.refused
                held = tuple(ids_of(turned))
                if not held and not await tasks(store):
                    return

        # what a turn has handed out, and the next has reported in passing, is done as well
        await asyncio.gather(*(work(store, f"{n}") for n, store in enumerate((one, two, three) * 2)))
        assert max(done.values()) == 1
        assert rows(tables, "select count(*) from pgconcert.task") == [(0,)]


async def test_a_table_beside_a_queue_of_the_same_runner_name(tables: str) -> None:
    """Those that share are counted by the name of the runner; what they have, by the place."""
    make_orders(tables, 4)
    place: TablePlace = ORDERS
    async with tasking(tables) as store:
        a, b = await runner(store, place), await runner(store, member="b")
        await enqueue(store, 4)
        turned = await a.pick()
        assert (turned.sessions, turned.share) == (2, 2)
        assert (await b.pick()).share == 2


async def test_a_lost_answer_is_repaired_by_asking_again(tables: str) -> None:
    """What was reported is refused the second time; what the session has and does not know is recalled."""
    async with tasking(tables) as store:
        a = await runner(store)
        await enqueue(store, 4)
        await a.pick(start=2)
        lost = a.turn(finished=("1",), start=("3",))
        keeper = store.tasks.queues.keeper
        assert keeper.link is not None
        session = f"select 1 from pg_stat_activity where pid = {keeper.link.pid}"
        keeper.bounce(keeper.link, "tests", broken=True)
        with pytest.raises(Unavailable, match="before the server confirmed the turn"):
            await lost
        # it may have read the turn, and do it yet
        await eventually_async(lambda: not rows(tables, session), what="the session of the dead link has ended")
        again = await a.turn(finished=("1",))
        assert again.refused in ((), ("1",))
        recalled = await ask(store, Recall(place=QUEUE, session=a.session, keep=("2",)))
        assert recalled == ("3", "4")
        found = await tasks(store)
        assert [(found[one].state, found[one].attempt) for one in ("2", "3", "4")] == [
            ("started", 1),
            ("assigned", 0),
            ("assigned", 0),
        ]
