"""Tasks that are rows of a table of the application, on a real server.

Here live tests of `postgres/tabletasks.py` and the statements as tables use them: what is written into such a table,
and what may stand in it. What is said when it cannot be used: `test_table_trouble.py`.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import uuid
from typing import Any

import pytest

from pgconcert import Unavailable
from pgconcert.postgres.taskclauses import table_rows, written
from pgconcert.postgres.taskparameters import table_ids, turn_parts, turn_values
from pgconcert.postgres.taskstatements import turn_text
from pgconcert.store import EndSession
from pgconcert.taskstore import (
    CheckPlace,
    Held,
    LookAtShares,
    Move,
    Pick,
    Recall,
    ReleaseTasks,
    TablePlace,
    Turn,
    Turned,
)
from pgconcert.testing import rewrite
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import expire, rows
from tests.postgres.task_scenes import ORDERS, ask, failed, ids_of, make_orders, runner, tasking


def owners(url: str, table: str = "orders") -> dict[str, int | None]:
    """Whose each row is, by its id."""
    return dict(rows(url, f"select id::text, session_id from {table} order by id"))


async def test_the_life_of_rows(tables: str) -> None:
    """Assigned, started, finished; failed, that is assigned again; released, that is free."""
    make_orders(tables, 8)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
        turned = await a.pick(start=3)
        assert ids_of(turned) == ["1", "2", "3"]
        assert turned.assigned == ("4", "5", "6", "7", "8")
        assert (turned.sessions, turned.outstanding, turned.share, turned.next_in) == (1, 8, 8, None)
        payload = turned.started[0].payload
        assert isinstance(payload, dict)
        assert (payload["id"], payload["item"], payload["done_at"]) == (1, "item 1", None)
        assert turned.started[0].attempt == 0
        turned = await a.turn(finished=("1", "99"), failed=failed("2"), released=("3",), start=("5", "4"))
        assert turned.refused == ("99",)
        assert ids_of(turned) == ["5", "4"]
        me = a.session
        assert owners(tables) == {"1": None, "2": -me, "3": None, "4": me, "5": me, "6": -me, "7": -me, "8": -me}
        assert rows(tables, "select id from orders where done_at is not null") == [(1,)]
        assert await ask(store, Recall(place=ORDERS, session=me, keep=("6", "8"))) == ("2", "4", "5", "7")
        assert set(owners(tables).values()) == {None, -me}
        assert await ask(store, ReleaseTasks(place=ORDERS, session=me)) == 6
        assert set(owners(tables).values()) == {None}


async def test_shares_move_between_sessions(tables: str) -> None:
    make_orders(tables, 10)
    async with tasking(tables) as store:
        a, b = await runner(store, ORDERS), await runner(store, ORDERS, "b")
        turned = await a.pick(start=1)
        assert (turned.share, turned.sessions) == (5, 2)
        assert len((await b.pick()).assigned) == 5
        assert await ask(store, Move(place=ORDERS, session=b.session, moves=((a.session, 2),))) == ("4", "5")
        held = await ask(store, LookAtShares(place=ORDERS, runner=a.subject))
        assert held == (Held(a.session, 2, 1), Held(b.session, 7, 0))


@pytest.mark.parametrize("how", ["ended", "expired", "missing"])
async def test_rows_of_the_dead_come_first(tables: str, how: str) -> None:
    make_orders(tables, 6)
    async with tasking(tables) as store:
        a, b = await runner(store, ORDERS), await runner(store, ORDERS, "b")
        assert ids_of(await a.pick(start=2)) == ["1", "2"]
        if how == "ended":
            await ask(store, EndSession(a.session))
        elif how == "expired":
            expire(tables, a.session)
        else:
            with raw(tables) as other:
                other.execute("delete from pgconcert.entry where session_id = %s", [a.session])
                other.execute("delete from pgconcert.session where id = %s", [a.session])
        assert ids_of(await b.pick(start=2, most=4)) == ["1", "2"]
        late = await a.turn(finished=("1",))
        assert late == Turned(over=True)
        assert await a.pick(start=1) == Turned(over=True)
        assert [*owners(tables).values()].count(None) == 2


async def test_what_the_application_has_done_is_nobodys(tables: str) -> None:
    """A row that is done while it belongs to somebody is not started, not counted, and let go when its owner dies."""
    make_orders(tables, 4)
    async with tasking(tables) as store:
        a, b = await runner(store, ORDERS), await runner(store, ORDERS, "b")
        await a.pick(most=4)
        with raw(tables) as other:
            other.execute("update orders set done_at = clock_timestamp() where id = 1")
        assert ids_of(await a.turn(start=("1", "2"))) == ["2"]
        assert (await b.pick(start=4)).outstanding == 3
        await ask(store, EndSession(a.session))
        assert ids_of(await b.pick(start=4)) == ["2"]
        assert owners(tables)["1"] is None


async def test_rows_that_others_have_locked_are_skipped(tables: str) -> None:
    """A pick-up waits for nobody; and a row that was changed while it was locked is judged as it is then."""
    make_orders(tables, 3)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
        with raw(tables) as other, other.transaction():
            other.execute("update orders set item = 'locked' where id = 1")
            assert ids_of(await a.pick(start=3)) == ["2", "3"]
        assert ids_of(await a.pick(start=3)) == ["1"]


async def test_a_report_waits_for_a_row_a_moment_then_fails(tables: str) -> None:
    """A row that the application keeps locked cannot be finished: the whole report fails, and may be said again."""
    make_orders(tables, 3)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
        await a.pick(start=2)
        with raw(tables) as other, other.transaction():
            other.execute("select from orders where id = 1 for update")
            with pytest.raises(Unavailable, match="others were in the way"):
                await a.turn(finished=("1", "2"))
        assert (await a.turn(finished=("1", "2"))).refused == ()


ROWS = re.compile(r"\(actual rows=([\d.]+) loops=(\d+)\)")
IDS = {
    "uuid": [str(uuid.UUID(int=n)) for n in range(3)],
    "text": ['quote " and \\ and {brace}', "NULL", "a, b", "", "ümlaut 😀", "null"],
    "numeric": ["1.50", "-2"],
    "date": ["2020-02-29", "1999-12-31"],
    "char(8)": ["abc", "d"],
    "own_name": ["one", "two words"],
    "mood": ["sad", "very happy"],
}


@pytest.mark.parametrize("id_type", IDS)
async def test_ids_of_any_type(tables: str, id_type: str) -> None:
    """An id goes to the runner as text and comes back as what it was."""
    with raw(tables) as owner:
        owner.execute("create domain own_name as text check (value <> '')")
        owner.execute("create type mood as enum ('sad', 'very happy')")
        owner.execute(f'create table "Odd" ("The Id" {id_type} primary key, done bool, session_id bigint)'.encode())
        for one in IDS[id_type]:
            owner.execute(f'insert into "Odd" values (%s::text::{id_type})'.encode(), [one])
    place = TablePlace('public."Odd"', '"The Id"', "t.done is null", "", "done = true")
    async with tasking(tables) as store:
        assert len(await ask(store, CheckPlace(place))) == 2
        a = await runner(store, place)
        turned = await a.pick(start=1)
        started, assigned = ids_of(turned), turned.assigned
        assert sorted((*started, *assigned)) == sorted(IDS[id_type])
        assert ids_of(await a.turn(failed=failed(*started), start=assigned)) == [*assigned]
        assert ids_of(await a.turn(start=tuple(started))) == started
        told = await a.turn(finished=(*started, *assigned), released=())
        assert told.refused == ()
        assert rows(tables, 'select count(*) from "Odd" where done') == [(len(IDS[id_type]),)]


async def test_values_as_psycopg_reads_them(tables: str) -> None:
    with raw(tables) as owner:
        owner.execute("create domain cents as numeric(10, 2)")
        owner.execute(
            "create table wide (id int primary key, yes bool, price cents, at timestamptz, day date, doc jsonb,"
            " list int[], raw bytea, pause interval, who uuid, name char(4), nothing text, session_id bigint)"
        )
        owner.execute(
            "insert into wide values (1, true, 1.5, '2020-01-01 12:00+02', '2020-02-29', '{\"a\": [1]}', '{1,2}',"
            " '\\x00ff', '1 day 2 hours', '00000000-0000-0000-0000-000000000007', 'ab', null),"
            " (2, false, 0, 'epoch', 'infinity', 'null', '{}', '', '0', null, null, null)"
        )
        owner.execute("alter role current_user set datestyle = 'German'")
        owner.execute("alter role current_user set intervalstyle = 'sql_standard'")
    try:
        place = TablePlace("wide", "id", "true", "", "delete")
        async with tasking(tables) as store:
            a = await runner(store, place)
            one, two = (await a.pick(start=2)).started
            expected: dict[str, Any] = {
                "id": 1,
                "yes": True,
                "price": decimal.Decimal("1.50"),
                "at": dt.datetime(2020, 1, 1, 10, tzinfo=dt.UTC),
                "day": dt.date(2020, 2, 29),
                "doc": {"a": [1]},
                "list": [1, 2],
                "raw": b"\0\xff",
                "pause": dt.timedelta(days=1, hours=2),
                "who": uuid.UUID(int=7),
                "name": "ab  ",
                "nothing": None,
            }
            assert isinstance(one.payload, dict)
            assert {**one.payload, "session_id": None} == {**expected, "session_id": None}
            # what Python cannot have concerns its row alone
            assert isinstance(two.payload, Exception)
            assert "day" in str(two.payload)
            assert (await a.turn(finished=("1",), failed=failed("2"))).refused == ()
            assert owners(tables, "wide") == {"2": -a.session}
    finally:
        with raw(tables) as owner:
            owner.execute("alter role current_user reset datestyle")
            owner.execute("alter role current_user reset intervalstyle")


async def test_sql_of_the_application_stays_as_it_is(tables: str) -> None:
    """Comments, blanks inside of texts, our own words, another schema of ours: nothing is changed in it."""
    with raw(tables) as owner:
        owner.execute("create schema shop")
        owner.execute('create table shop."TASKS" (id int primary key, state text, "Session" bigint, rank int)')
        owner.execute(
            "insert into shop.\"TASKS\" values (1, 'two  blanks SCOPE', null, 1), (2, 'x', null, 2),"
            " (3, 'two  blanks SCOPE', null, 3)"
        )
    place = TablePlace(
        'shop."TASKS"',
        "id",
        "t.state = 'two  blanks SCOPE' or t.state = ' pgconcert.task' -- NOTHING more $session",
        "t.rank desc -- the COLUMNS first",
        "state = 'MOVED  pgconcert.' || t.rank -- FINISH",
        "Session",
    )
    async with tasking(tables) as store:
        a = await runner(store, place)
        assert ids_of(await a.pick(start=1, most=1)) == ["3"]
        assert ids_of(await a.pick(start=1, most=1, finished=("3",))) == ["1"]
        assert (await a.turn(finished=("1",))).refused == ()
    assert rows(tables, 'select state from shop."TASKS" order by id') == [
        ("MOVED  pgconcert.1",),
        ("x",),
        ("MOVED  pgconcert.3",),
    ]


async def test_names_are_found_by_the_path_of_the_role(tables: str) -> None:
    with raw(tables) as owner:
        owner.execute("create schema shop")
        owner.execute("create table shop.jobs (id int primary key, done bool, session_id bigint)")
        owner.execute("create function shop.wanted(int) returns bool immutable language sql as 'select $1 > 1'")
        owner.execute("insert into shop.jobs values (1), (2)")
    place = TablePlace("jobs", "id", "t.done is null and wanted(t.id)", "", "done = true")
    async with tasking(rewrite(tables, options="-csearch_path=shop,public")) as store:
        a = await runner(store, place)
        assert ids_of(await a.pick(start=5)) == ["2"]


FULL = """
    insert into orders (item, done_at, session_id)
    select 'x', case when n > 20000 then due end, case when n <= 5000 then 32768 * (2 + n % 3) end
      from generate_series(1, 60000) n, (select clock_timestamp() as due) d;
    insert into pgconcert.session (id, uuid, ttl, expires, incarnation, host, pid, application)
    select 32768 * (2 + n), 'u', ttl, expires, incarnation, 'h', 1, 'others'
      from pgconcert.session, generate_series(0, 2) n;
"""


@pytest.mark.parametrize("planned", ["before", "after"])
async def test_a_capped_turn_looks_at_little(tables: str, planned: str) -> None:
    """However many rows are done, held by others or outstanding; also if the plan was made when there was none."""
    make_orders(tables, 0)
    async with tasking(tables) as store:
        a = await runner(store, ORDERS)
    turn = Turn(place=ORDERS, runner=a.subject, session=a.session, finished=("1",), start=("2",), pick=Pick(10, 5))
    words = table_rows("pgconcert", ORDERS, "bigint", ("id", "item"))
    made = written(turn_text(turn_parts(turn), words), words)
    given = turn_values(turn, table_ids, True)
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
    assert rows(tables, f"select count(*) from orders where abs(session_id) = {a.session}") == [(10,)]
    read = [(float(found[1]) * int(found[2]), line) for line in plan if (found := ROWS.search(line))]
    assert max(read)[0] <= 100, max(read)
    assert not [line for line in plan if "Rows Removed" in line and int(line.split(":")[1]) > 100]
