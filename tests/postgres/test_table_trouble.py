"""Tables of an application that cannot hold tasks, or not now: what is said, and that nothing else suffers.

Here live tests of `postgres/tabletasks.py` and `taskcheck.py` with tables that lack something, are locked, altered, or
whose link dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import ConfigurationError, SchemaMissing, Unavailable
from pgconcert.events import Event, LinkClosed
from pgconcert.postgres import tabletasks
from pgconcert.postgres.schemafiles import script
from pgconcert.postgres.taskcheck import table_sql
from pgconcert.taskstore import CheckPlace, ReleaseTasks, TablePlace
from pgconcert.testing import eventually_async, rewrite
from tests.poolers import PgBouncer
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows
from tests.postgres.task_scenes import ORDERS, ask, enqueue, failed, ids_of, make_orders, runner, tasking
from tests.servers import Server

# what cannot be used

WRONG = {
    "no table": (ORDERS._replace(table="nowhere"), "no table nowhere"),
    "no name of a table": (ORDERS._replace(table="or ders"), "or ders"),
    "no id": (ORDERS._replace(id="number"), "no column number"),
    "no name of an id": (ORDERS._replace(id="t.id"), "no column t.id"),
    "no session": (ORDERS._replace(session="owner"), "schema show --table orders"),
    "no bigint": (ORDERS._replace(session="item"), "type bigint"),
    "no column in where": (ORDERS._replace(where="t.done is null"), "t.done is null"),
    "no SQL in where": (ORDERS._replace(where="t.done_at is is null"), "orders"),
    "no truth in where": (ORDERS._replace(where="t.item"), "orders"),
    "no column in order_by": (ORDERS._replace(order_by="t.priority"), "t.priority"),
    "no column in finish": (ORDERS._replace(finish="done = true"), "done = true"),
    "session in finish": (ORDERS._replace(finish="session_id = null"), "session_id = null"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_is_wrong_is_named(tables: str, what: str) -> None:
    """A check and a turn both fail, with the name of what is wrong; and they are asked again after it was mended."""
    place, said = WRONG[what]
    make_orders(tables, 1)
    async with tasking(tables) as store:
        a = await runner(store, place)
        for request in (lambda: ask(store, CheckPlace(place)), lambda: a.pick(start=1, finished=("1",))):
            with pytest.raises(ConfigurationError) as raised:
                await request()
            assert said in str(raised.value)
            assert not isinstance(raised.value, SchemaMissing)


async def test_it_works_as_soon_as_the_table_is_mended(tables: str) -> None:
    make_orders(tables, 1)
    place = ORDERS._replace(session="owner")
    async with tasking(tables) as store:
        a = await runner(store, place)
        with pytest.raises(ConfigurationError):
            await a.pick(start=1)
        with raw(tables) as owner:
            owner.execute("alter table orders add column owner bigint")
        assert ids_of(await a.pick(start=1)) == ["1"]


async def test_advice(tables: str) -> None:
    """What is missing, and does not stop it, is said; what `table_sql` prints makes it all well."""
    with raw(tables) as owner:
        owner.execute("create table plain (id int, due int, done bool)")
        owner.execute("insert into plain values (1, 7)")
    place = TablePlace("plain", "id", "t.done is null", "t.due desc", "done = true")
    async with tasking(tables) as store:
        with raw(tables) as owner:
            owner.execute("alter table plain add column session_id bigint")
        said = " ".join(await ask(store, CheckPlace(place)))
        assert "unique" in said
        assert "begins with" in said
        assert "what is free" in said
        with raw(tables) as owner:
            owner.execute("create unique index on plain (id)")
            for statement in table_sql(place, wake=("channel", "it's")).split(";\n\n"):
                owner.execute(statement.encode())
            owner.execute("listen channel")
            owner.execute("insert into plain values (2, 8), (3, 9)")
            heard = [(one.channel, one.payload) for one in owner.notifies(timeout=30, stop_after=1)]
        assert heard == [("channel", "it's")]
        assert await ask(store, CheckPlace(place)) == ()
        a = await runner(store, place)
        assert ids_of(await a.pick(start=3)) == ["3", "2", "1"]


@pytest.mark.parametrize(
    "place",
    [
        ORDERS,
        TablePlace(
            '"Sh op"."Or""ders"', '"I d"', "t.done_at is null and t.due < now()", "t.due desc", "delete", "Whose"
        ),
    ],
    ids=["plain", "odd"],
)
def test_the_sql_that_prepares_a_table_runs_twice(tables: str, place: TablePlace) -> None:
    with raw(tables) as owner:
        owner.execute('create schema "Sh op"')
        owner.execute(
            f"create table {place.table} ({place.id} int primary key, due timestamptz, done_at date)".encode()
        )
        for _ in range(2):
            for statement in table_sql(place, wake=("c", "m")).split(";\n\n"):
                owner.execute(statement.encode())
        assert owner.execute("select count(*) from pg_index where not indisvalid").fetchone() == (0,)


async def test_without_our_tables(server: Server) -> None:
    with server.fresh_database() as url:
        make_orders(url, 1)
        async with tasking(url) as store:
            with pytest.raises(SchemaMissing, match="schema apply"):
                await ask(store, CheckPlace(ORDERS))


async def test_a_role_without_rights(tables: str, unique: str) -> None:
    """What must be granted is named; the rest of the coordinator works on."""
    make_orders(tables, 1)
    with raw(tables) as owner:
        owner.execute(f"create role \"{unique}\" login password 'secret'".encode())
        owner.execute(f'grant usage on schema pgconcert to "{unique}"'.encode())
        owner.execute(f'grant all on all tables in schema pgconcert to "{unique}"'.encode())
        owner.execute(f'grant all on all sequences in schema pgconcert to "{unique}"'.encode())
        owner.execute(f'grant select on orders to "{unique}"'.encode())
    try:
        async with tasking(rewrite(tables, user=unique, password="secret")) as store:
            with pytest.raises(ConfigurationError, match="grant select, update on orders") as raised:
                await ask(store, CheckPlace(ORDERS))
            assert "secret" not in str(raised.value)
            await enqueue(store, 1)
            with raw(tables) as owner:
                owner.execute(f'grant update on orders to "{unique}"'.encode())
            a = await runner(store, ORDERS)
            assert ids_of(await a.pick(start=1)) == ["1"]
    finally:
        with raw(tables) as owner:
            owner.execute(f'drop owned by "{unique}"; drop role "{unique}"'.encode())


# what happens meanwhile


async def test_a_locked_table_is_unavailable_and_nothing_else(tables: str) -> None:
    """While a table is being altered its turns fail after a while; queues and other tables go on."""
    make_orders(tables, 2)
    async with tasking(tables) as store:
        a, q = await runner(store, ORDERS), await runner(store, member="q")
        assert len(ids_of(await a.pick(start=1))) == 1
        with raw(tables) as other, other.transaction():
            other.execute("lock table orders in access exclusive mode")
            stuck = asyncio.ensure_future(a.turn(finished=("1",)))
            await enqueue(store, 1)
            assert len(ids_of(await q.pick(start=1))) == 1
            with pytest.raises(Unavailable, match="others were in the way"):
                await stuck
        assert (await a.turn(finished=("1",))).refused == ()


async def test_a_table_that_is_altered_meanwhile(tables: str) -> None:
    """Columns come, go and change their types: at most some turns fail, and it goes on with the columns as they are."""
    make_orders(tables, 9)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)

        async def first() -> Any:
            for _ in range(10):
                try:
                    turned = await a.pick(start=1, most=1)
                    await a.turn(finished=tuple(ids_of(turned)))
                except Unavailable:
                    continue
                return turned.started[0].payload
            raise AssertionError("it did not come back")

        assert (await first())["item"] == "item 1"
        with raw(tables) as other:
            other.execute("alter table orders add column extra int default 5")
        assert (await first())["id"] == 2
        with raw(tables) as other:
            other.execute("alter table orders alter column item type int using 7")
        assert (await first())["item"] == 7
        with raw(tables) as other:
            other.execute("alter table orders drop column item")
        with pytest.raises((Unavailable, ConfigurationError)):
            await a.pick(start=1, most=1)
        assert {*(await first())} == {"id", "due", "done_at", "session_id", "extra"}
        with raw(tables) as other:
            other.execute("alter table orders alter column id type int")
        assert "id" in await first()


# Whoever changes a row stands here for as long as the test wants; no limit for locks ends that.
GATE = """
    create function gate() returns trigger language plpgsql as $$ begin
        while not pg_try_advisory_xact_lock_shared(77) loop perform pg_sleep(0.01); end loop;
        return new;
    end $$;
    create trigger gate before update on orders for each row execute function gate();
"""
AT_THE_GATE = "select 1 from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()"


async def test_a_dead_link_leaves_nobody_waiting(tables: str) -> None:
    make_orders(tables, 2)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
        await a.pick(start=1)
        (keeper,) = [one for one in store.tasks.keepers if one is not store.tasks.queues.keeper]
        with raw(tables) as other:
            other.execute(GATE.encode())
            other.execute("select pg_advisory_lock(77)")
            waiting = [a.turn(finished=("1",)), a.turn(finished=("1",))]
            await eventually_async(lambda: rows(tables, AT_THE_GATE) != [], what="a turn is under way")
            assert keeper.link is not None
            pid = keeper.link.pid
            keeper.bounce(keeper.link, "tests", broken=True)
            with pytest.raises(Unavailable):
                await waiting[0]
            other.execute("select pg_terminate_backend(%s)", [pid])
            session = f"select 1 from pg_stat_activity where pid = {pid}"
            await eventually_async(lambda: not rows(tables, session), what="what it was doing is undone")
        # what was not sent goes with the next link
        assert (await waiting[1]).over is False
        assert rows(tables, "select id from orders where done_at is not null") == [(1,)]


async def test_an_idle_link_closes_itself(tables: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabletasks, "_IDLE", 0.05)
    make_orders(tables, 2)
    async with tasking(tables) as store:
        closed: list[Event] = []
        store.events.subscribe(closed.append, LinkClosed)
        a = await runner(store, ORDERS)
        assert ids_of(await a.pick(start=1, most=1)) == ["1"]
        await eventually_async(lambda: bool(closed), what="the link is closed")
        assert {getattr(event, "role", None) for event in closed} == {"tasks"}
        assert ids_of(await a.pick(start=2)) == ["2"]


async def test_a_close_tells_who_waits(tables: str) -> None:
    make_orders(tables, 2)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
        waiting = a.turn(finished=("1",))
    with pytest.raises(Exception, match="closed"):
        await waiting


async def test_behind_a_transaction_pooler(server: Server, database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    """Nothing is set on a session there; the statements say themselves what they need."""
    make_orders(database, 5)
    with raw(database) as owner:
        owner.execute(script().encode())
    pooler = pgbouncer("transaction", pool_size=2)
    async with tasking(rewrite(pooler.url, dbname=str(conninfo_to_dict(database)["dbname"]))) as store:
        a = await runner(store, ORDERS)
        assert await ask(store, CheckPlace(ORDERS)) == ()
        assert ids_of(await a.pick(start=2)) == ["1", "2"]
        assert ids_of(await a.turn(finished=("1",), failed=failed("2"), start=("3",))) == ["3"]
        assert await ask(store, ReleaseTasks(place=ORDERS, session=a.session)) == 4
