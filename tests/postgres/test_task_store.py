"""Queues on a real server: what their statements cost, what may be said, what is missing.

Here live tests of `postgres/queuetasks.py` and its statements that look at the server; whose a task is stands in
`test_task_owners.py`, and what every store must do is said by the conformance suite. Theory: rows are looked at by
another connection, statements are counted by the link.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import ConfigurationError, SchemaMissing, StatementFailed
from pgconcert.postgres.queuestatements import FINISHED_AT_ONCE
from pgconcert.postgres.schemafiles import grants, script
from pgconcert.postgres.taskclauses import queue_rows, written
from pgconcert.postgres.taskparameters import queue_ids, turn_parts, turn_values
from pgconcert.postgres.taskstatements import MOVE, PARTS, RECALL, RELEASE, SHARES, turn_text
from pgconcert.store import Subject
from pgconcert.taskstore import (
    CheckPlace,
    DiscardTasks,
    Enqueue,
    Failure,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    NewTask,
    Pick,
    QueuePlace,
    Recall,
    ReleaseTasks,
    RetryTasks,
    Turn,
    Turned,
)
from pgconcert.testing import eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.task_scenes import (
    ORDERS,
    QUEUE,
    Stores,
    ask,
    enqueue,
    failed,
    ids_of,
    make_orders,
    runner,
    tasking,
    tasks,
)
from tests.servers import Server

# what it costs


async def test_what_is_enqueued_together_is_one_statement(tables: str) -> None:
    """Each asker has the ids of its own tasks, in order; queues may differ."""
    places = [QueuePlace("ns", f"q{number % 7}") for number in range(300)]
    async with tasking(tables) as store:
        await enqueue(store, 1)
        before = store.statements
        asked = [
            ask(store, Enqueue(place=place, tasks=(NewTask(b"%d" % n), NewTask(b"and %d" % n))))
            for n, place in enumerate(places)
        ]
        ids = await asyncio.gather(*asked)
        assert store.statements - before == 2  # the first alone, at once
        found = dict(rows(tables, "select id::text, convert_from(payload, 'UTF8') from pgconcert.task"))
        assert [[found[one] for one in pair] for pair in ids] == [[str(n), f"and {n}"] for n in range(300)]
        assert len(await ask(store, LookAtQueues(namespace="ns"))) == 8
        assert await ask(store, Enqueue(place=QUEUE, tasks=())) == ()


async def test_a_steady_drain_costs_a_statement_for_each_batch(tables: str) -> None:
    async with tasking(tables) as store:
        a = await runner(store)
        await enqueue(store, 100)
        before = store.statements
        done: list[str] = []
        held: tuple[str, ...] = ()
        while True:
            turned = await a.pick(start=10, most=10, finished=held)
            held = tuple(ids_of(turned))
            if not held:
                break
            done += held
        assert len(done) == 100
        assert store.statements - before == 11
        assert rows(tables, "select count(*) from pgconcert.task") == [(0,)]


async def test_one_that_cannot_be_enqueued_does_not_harm_others(tables: str) -> None:
    async with tasking(tables) as store:
        await enqueue(store, 1)
        asked = [ask(store, Enqueue(place=QUEUE, tasks=(NewTask(b"", attempts=tries),))) for tries in (1, 70_000, 2)]
        first, guilty, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(guilty, StatementFailed)
        assert not isinstance(first, BaseException)
        assert not isinstance(last, BaseException)
        assert len(await tasks(store)) == 3


ROWS = re.compile(r"\(actual rows=([\d.]+) loops=(\d+)\)")
STATEMENTS = {
    "turn": turn_text(PARTS, queue_rows("pgconcert")),
    "recall": RECALL,
    "move": MOVE,
    "release": RELEASE,
    "shares": SHARES,
}


@pytest.mark.parametrize("rows_there", [0, 30_000])
def test_every_row_is_found_by_an_index(tables: str, rows_there: int) -> None:
    """With a generic plan, in empty tables and in large ones: nothing is read from its beginning to its end."""
    with raw(tables) as other:
        other.execute(
            "insert into pgconcert.task (namespace, queue, session_id, run_at, attempts, payload)"
            " select 'ns', 'q' || n %% 3, case when n %% 2 = 0 then n %% 5 - 7 end, clock_timestamp(), 20, ''"
            "   from generate_series(1, %s) n",
            [rows_there],
        )
        other.execute("analyze")
        other.execute("set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off")
        for name, text in STATEMENTS.items():
            made = written(text, queue_rows("pgconcert"))
            other.execute(b"prepare it as " + made.statement.sql, prepare=False)
            nothing = ", ".join(["null"] * len(made.parameters))
            plan = [line for (line,) in other.execute(f"explain execute it({nothing})".encode())]
            other.execute("deallocate it")
            scans = [line for line in plan if re.search(r"Scan.* on (task|task_\w+|session|entry)\b", line)]
            assert scans
            assert not [line for line in scans if "Seq Scan" in line], name
            on_tasks = {found[1] for line in scans if (found := re.search(r"using (task_\w+) on", line))}
            assert on_tasks <= {"task_free", "task_held", "task_pkey"}, name
            # without a condition on the index, it would be read as a whole
            for place, line in enumerate(plan):
                if "Index" in line and "Scan" in line:
                    assert "Cond" in plan[place + 1], (name, plan[place : place + 2])


FULL = """
    insert into pgconcert.task (namespace, queue, session_id, run_at, attempts, payload)
    select 'ns', 'work', case when n <= 5000 then 32768 * (2 + n % 3) end, clock_timestamp(), 20, ''
      from generate_series(1, 20000) n;
    insert into pgconcert.session (id, uuid, ttl, expires, incarnation, host, pid, application)
    select 32768 * (2 + n), 'u', ttl, expires, incarnation, 'h', 1, 'others'
      from pgconcert.session, generate_series(0, 2) n;
    insert into pgconcert.session (id, uuid, ttl, expires, ended, incarnation, host, pid, application)
    select 32768 * (100 + n), 'u', ttl, expires, expires, incarnation, 'h', 1, 'old'
      from (select * from pgconcert.session limit 1) s, generate_series(1, 10000) n;
    insert into pgconcert.task_finished
    select namespace, queue, run_at, id, 1, 1, 20, created, created, 'infinity', '' from pgconcert.task;
"""


@pytest.mark.parametrize("planned", ["before", "after"])
async def test_a_capped_turn_looks_at_little(tables: str, planned: str) -> None:
    """However much is outstanding, held by others, finished or over: no part of a turn reads more than it needs; also
    if the server made its plan when there was nothing yet."""
    async with tasking(tables) as store:
        a = await runner(store)
    turn = Turn(place=QUEUE, runner=a.subject, session=a.session, finished=("1",), start=("2",), pick=Pick(10, 5))
    made = written(turn_text(turn_parts(turn), queue_rows("pgconcert")), queue_rows("pgconcert"))
    given = turn_values(turn, queue_ids, True)
    execute = f"execute it({', '.join(repr(given[name].decode()) for name in made.parameters)})"
    with raw(tables) as other:
        other.execute("set plan_cache_mode = force_generic_plan; set enable_seqscan = off; set jit = off")
        other.execute(b"prepare it as " + made.statement.sql, prepare=False)
        if planned == "before":
            other.execute(execute.encode())
        other.execute(FULL.encode())
        if planned == "after":
            other.execute("analyze")
        plan = [line for (line,) in other.execute(f"explain (analyze, timing off) {execute}".encode())]
    assert rows(tables, f"select count(*) from pgconcert.task where abs(session_id) = {a.session}") == [(10,)]
    read = [(float(found[1]) * int(found[2]), line) for line in plan if (found := ROWS.search(line))]
    assert max(read)[0] <= 100, max(read)
    assert not [line for line in plan if "Rows Removed" in line and int(line.split(":")[1]) > 100]


# what may be said


async def test_names_payloads_and_errors_of_any_kind(tables: str) -> None:
    place = QueuePlace('n\'s "x" {1}', "ümläut, 'q' \\ \"" + "x" * 900)
    payloads = [b"", bytes(range(256)), b"\0" * 100, b"x" * 300_000]
    async with tasking(tables) as store:
        ids = await ask(store, Enqueue(place=place, tasks=tuple(NewTask(one) for one in payloads)))
        a = await runner(store, place)
        turned = await a.pick(start=4)
        assert [task.payload for task in turned.started] == payloads
        errors = ["nul \0 and ' \" \\ {}", "\ud800 half a letter", "😀" * 20_000, ""]
        rests = [math.inf, math.nan, -5.0, 1e300]
        failures = tuple(map(Failure, ids, errors, rests))
        assert await a.turn(failed=failures) == Turned()
        found = await tasks(store, place)
        assert [found[one].error for one in ids] == ["nul \\0 and ' \" \\ {}", "? half a letter", "😀" * 10_000, ""]
        assert [found[one].state for one in ids] == ["scheduled", "waiting", "waiting", "scheduled"]
        assert (await ask(store, LookAtQueues(name=place.name)))[0].namespace == place.namespace


async def test_finished_ones_are_kept_and_then_purged(tables: str) -> None:
    keeping = QUEUE._replace(retention=3600.0)
    async with tasking(tables) as store:
        a = await runner(store, keeping)
        ids = await enqueue(store, 3)
        await a.pick(start=3)
        await a.turn(finished=ids)
        found = await tasks(store)
        assert {(task.state, task.session, task.attempt) for task in found.values()} == {("finished", a.session, 1)}
        with raw(tables) as other:
            other.execute("update pgconcert.task_finished set keep_until = clock_timestamp() where id = 2")
            other.execute(
                "insert into pgconcert.task_finished select namespace, queue, run_at, 1000 + n, session_id, attempt,"
                " attempts, created, finished, clock_timestamp() - interval '1 hour', payload"
                " from pgconcert.task_finished, generate_series(1, %s) n where id = 1",
                [2 * FINISHED_AT_ONCE + 1],
            )
        assert sorted(await tasks(store)) == ["1", "3"]
        assert (await ask(store, LookAtQueues()))[0].finished == 2
        queues = store.tasks.queues
        queues.purge.begin()
        await eventually_async(lambda: not queues.purge.running, what="the purge is over")
        assert rows(tables, "select id from pgconcert.task_finished order by id") == [(1,), (3,)]


# what is missing


async def test_without_our_tables_nothing_hangs(server: Server) -> None:
    with server.fresh_database() as url:
        async with tasking(url) as store:
            for request in (
                CheckPlace(QUEUE),
                Enqueue(place=QUEUE, tasks=(NewTask(b""),)),
                LookAtTasks(place=QUEUE),
                LookAtQueues(),
            ):
                with pytest.raises(SchemaMissing, match="schema apply"):
                    await ask(store, request)


async def test_a_role_with_what_is_printed_can_do_everything(tables: str, unique: str) -> None:
    """First it is told what it needs, then it has it."""
    with raw(tables) as owner:
        owner.execute(f"create role \"{unique}\" login password 'secret'".encode())
        owner.execute(f'grant usage on schema pgconcert to "{unique}"'.encode())
    try:
        async with tasking(rewrite(tables, user=unique, password="secret")) as store:
            with pytest.raises(ConfigurationError, match=r"grant select, insert.*pgconcert\"\.task"):
                await ask(store, CheckPlace(QUEUE))
            with raw(tables) as owner:
                for grant in grants("pgconcert", unique):
                    owner.execute(grant.encode())
            assert await ask(store, CheckPlace(QUEUE)) == ()
            await everything(store)
    finally:
        with raw(tables) as owner:
            owner.execute(f'drop owned by "{unique}"; drop role "{unique}"'.encode())


async def everything(store: Stores, place: QueuePlace = QUEUE) -> None:
    """Every request about a queue once."""
    a, b = await runner(store, place), await runner(store, place, "b")
    await enqueue(store, 9, place, attempts=1)
    keeping = a._replace(place=place._replace(retention=60))
    one, two, three, *_ = ids_of(await a.pick(start=3, most=5))
    turned = await keeping.pick(finished=(one,), failed=failed(two), released=(three,), most=5)
    assert turned.died == (two,)
    assert len(await ask(store, LookAtShares(place=place, runner=a.subject))) == 2
    assert len(await ask(store, Move(place=place, session=b.session, moves=((a.session, 1),)))) == 1
    assert len(await ask(store, Recall(place=place, session=a.session))) >= 1
    assert len(ids_of(await b.pick(start=1))) == 1
    assert await ask(store, ReleaseTasks(place=place, session=a.session)) >= 1
    assert len(await ask(store, LookAtTasks(place=place, state="finished"))) == 1
    assert [queue.dead for queue in await ask(store, LookAtQueues(namespace=place.namespace))] == [1]
    assert await ask(store, RetryTasks(place=place, ids=(two, "none", "7" * 30))) == 1
    assert await ask(store, RetryTasks(place=place)) == 0
    assert await ask(store, DiscardTasks(place=place, ids=(two,))) == 0
    assert await ask(store, DiscardTasks(place=place)) == 0


async def test_in_a_schema_of_another_name(server: Server) -> None:
    name = 'pg"concert task'
    with server.fresh_database() as url:
        with raw(url) as owner:
            owner.execute(script(name).encode())
        async with tasking(url, name) as store:
            await everything(store)


SPY = """
    create table public.spied (what text);
    create function public.spy() returns trigger language plpgsql as $$
        begin
            insert into public.spied
            select current_setting('synchronous_commit') || ' ' || current_setting('lock_timeout')
             where current_setting('application_name') <> 'somebody else';
            return null;
        end $$;
    create trigger spy after insert or update or delete on pgconcert.task
       for each statement execute function public.spy();
    create trigger spy after insert or update or delete on public.orders
       for each statement execute function public.spy();
"""


async def test_behind_a_transaction_pooler(server: Server, database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Every transaction is durable and short, whatever role and database say, of queues and of tables."""
    name = conninfo_to_dict(database)["dbname"]
    make_orders(database, 4)
    with raw(database) as owner:
        owner.execute(script().encode())
        owner.execute(SPY.encode())
        for setting in ("synchronous_commit = off", "lock_timeout = 0", "default_transaction_isolation = serializable"):
            owner.execute(f"alter database {name} set {setting}".encode())
    pooler = pgbouncer("transaction", pool_size=2)
    async with tasking(pooler.url) as store:
        await everything(store)
        a = (await runner(store, ORDERS, "t"))._replace(subject=Subject("runner", "ns", "alone", "t"))
        assert await ask(store, CheckPlace(ORDERS)) == ()
        assert ids_of(await a.pick(start=2)) == ["1", "2"]
        assert ids_of(await a.turn(finished=("1",), failed=failed("2"), start=("3",))) == ["3"]
        assert await ask(store, ReleaseTasks(place=ORDERS, session=a.session)) == 3
    assert rows(database, "select distinct what from spied") == [("on 100ms",)]
