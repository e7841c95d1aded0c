"""Where go-session-lock's functions are: how names are found, what is missing, and the link to them, on every server.

Theory: the functions are those of `sharedwork.py`, broken in one way for each test.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import pytest

from pgconcert.errors import (
    ConfigurationError,
    CoordinatorClosed,
    SessionNotFound,
    StatementFailed,
    Unavailable,
)
from pgconcert.postgres import functiontasks
from pgconcert.postgres.link import Statement
from pgconcert.tasks.shift import Report
from pgconcert.taskstore import BumpWork, CheckPlace, FunctionPlace, StartWork
from pgconcert.testing import FaultProxy, eventually_async
from tests.poolers import PgBouncer
from tests.postgres.scenes import BUSY, raw
from tests.postgres.sharedwork import SharedWork, ask, begin, owner_of, place_of, shared_work, source_of
from tests.servers import Server

NOTHING = Report()


@pytest.fixture
def work(database: str) -> Iterator[SharedWork]:
    with shared_work(database, "errands") as made:
        yield made


# where names are found


async def test_names_are_found_in_the_schema_whatever_it_is_called(database: str) -> None:
    with shared_work(database, "Odd  \"name\", 'two'") as work:
        work.add(1)
        async with owner_of(work) as owner:
            shift = await begin(source_of(owner, schema=work.schema))
            tasks = (await shift.turn(NOTHING, 1, pick=True)).tasks
            await shift.end(Report(finished=tasks))
            assert work.done() == [1]


async def test_what_the_schema_has_not_is_found_where_the_role_looks(work: SharedWork) -> None:
    work.execute("create schema aside")
    work.execute("alter table errand set schema aside")
    work.execute("set search_path to errands, aside")
    work.add(1)
    ((name,),) = work.execute("select current_database()")
    work.execute(f'alter database {name} set search_path to "$user", aside')
    try:
        async with owner_of(work) as owner:
            shift = await begin(source_of(owner, schema=work.schema))
            tasks = (await shift.turn(NOTHING, 1, pick=True)).tasks
            await shift.end(Report(finished=tasks))
            assert work.done() == [1]
    finally:
        work.execute(f"alter database {name} reset search_path")
        work.execute("drop schema aside cascade")


async def test_dates_come_in_iso_form_whatever_the_database_says(work: SharedWork) -> None:
    ((name,),) = work.execute("select current_database()")
    work.execute(f"alter database {name} set datestyle to 'SQL, DMY'")
    work.execute("insert into errand (on_day) values (date '2024-02-03')")
    try:
        async with owner_of(work) as owner:
            source = source_of(owner, schema=work.schema)
            (task,) = await source.get_work(await source.start_session(), None)
            assert task.payload["on_day"] == date(2024, 2, 3)
    finally:
        work.execute(f"alter database {name} reset datestyle")


# what is missing


async def checked(work: SharedWork, **place: str) -> tuple[str, ...]:
    found = FunctionPlace(**({"schema": work.schema} | place))
    async with owner_of(work, place=found) as owner:
        return await ask(owner, CheckPlace(found))


async def test_the_look_gives_advice(work: SharedWork) -> None:
    (advice,) = await checked(work)
    assert 'create index concurrently on "errands".session (expires)' in advice
    work.execute("create index on session (expires)")
    assert await checked(work) == ()


EMPTY = "create or replace function {} returns int language sql as 'select null::int'"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("drop function get_work(bigint, int)", "lacks function get_work"),
        ("drop function get_tasks_for_session(bigint)", "lacks function get_tasks_for_session"),
        ("drop table session", "lacks table session"),
        ("drop table work_lock", "lacks table work_lock"),
        ("delete from work_lock", 'insert into "errands".work_lock'),
        (EMPTY.format("get_task_count()"), "get_task_count.. in schema .* returns null"),
        (EMPTY.format("get_task_count_for_session(in_session_id bigint)"), "for_session.0. in schema .* returns null"),
    ],
)
async def test_what_is_missing_is_named_before_a_session_is_started(work: SharedWork, broken: str, words: str) -> None:
    work.execute(broken)
    with pytest.raises(ConfigurationError, match=words):
        await checked(work)
    async with owner_of(work) as owner:
        with pytest.raises(ConfigurationError, match=words):
            await begin(source_of(owner, schema=work.schema))


async def test_a_schema_or_a_column_that_is_not_there_is_named(work: SharedWork) -> None:
    with pytest.raises(ConfigurationError, match='there is no schema "nowhere"'):
        await checked(work, schema="nowhere")
    with pytest.raises(ConfigurationError, match="no column 'number', only id, note"):
        await checked(work, id="number")
    with pytest.raises(ConfigurationError, match="'note' of session_task in schema \"errands\" is no whole number"):
        await checked(work, id="note")


async def test_functions_that_vanish_while_we_run_are_named_and_missed_no_longer_than_they_are(
    work: SharedWork,
) -> None:
    work.add(1)
    async with owner_of(work) as owner:
        shift = await begin(source_of(owner, schema=work.schema))
        ((body,),) = work.execute("select pg_get_functiondef('get_work'::regproc)")
        work.execute("drop function get_work(bigint, int)")
        with pytest.raises(ConfigurationError, match="get_work in schema 'errands' is not possible"):
            await shift.turn(NOTHING, 1, pick=True)
        work.execute(body)
        assert len((await shift.turn(NOTHING, 1, pick=True)).tasks) == 1
        await shift.end(NOTHING)


async def test_an_error_of_their_functions_names_the_place_and_has_their_words(work: SharedWork) -> None:
    work.execute(
        "create or replace function finish_tasks(in_task_ids bigint[]) returns void language plpgsql as "
        "$$ begin raise exception 'the till is closed' using errcode = 'XX999'; end $$"
    )
    work.add(1)
    async with owner_of(work) as owner:
        shift = await begin(source_of(owner, schema=work.schema))
        tasks = (await shift.turn(NOTHING, 1, pick=True)).tasks
        words = "finish_tasks in schema 'errands' failed: the till is closed"
        with pytest.raises(StatementFailed, match=words) as told:
            await shift.turn(Report(finished=tasks), 0, pick=False)
        assert told.value.sqlstate == "XX999"
        work.execute(
            "create or replace function finish_tasks(in_task_ids bigint[]) returns void language sql as "
            "$$ update errand set done = true where id = any (in_task_ids) $$"
        )
        await shift.end(NOTHING)
        assert work.done() == [1]


async def test_a_task_without_a_name_is_told(work: SharedWork) -> None:
    work.add(1)
    work.execute(
        "create or replace function get_tasks_for_session(in_session_id bigint) returns setof session_task "
        "language sql stable as $$ select null::bigint, note, due, price, tags, on_day from errand $$"
    )
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        session = await source.start_session()
        with pytest.raises(ConfigurationError, match="a task whose 'id' is null"):
            await source.get_work(session, None)
        await source.bump_session(session)


# the link


async def test_who_keeps_the_lock_row_makes_nobody_wait_for_ever(work: SharedWork) -> None:
    async with owner_of(work, network_timeout=8.0) as owner:
        source = source_of(owner, schema=work.schema)
        session = await source.start_session()
        with raw(work.url) as other:
            other.execute("begin")
            other.execute("select from errands.work_lock where id = 1 for update")
            with pytest.raises(Unavailable, match="others were in the way of get_work"):
                await source.get_work(session, None)
            other.execute("rollback")
        assert await source.get_work(session, None) == ()


async def test_a_link_that_is_cut_is_told_and_made_again(work: SharedWork, server: Server) -> None:
    work.add(1)
    async with owner_of(work) as owner:
        shift = await begin(source_of(owner, schema=work.schema))
        with raw(work.url) as other:
            other.execute("begin")
            other.execute("select from errands.work_lock where id = 1 for update")
            turn = asyncio.create_task(shift.turn(NOTHING, 1, pick=True))
            await eventually_async(lambda: owner.keeper.link is not None and owner.keeper.link.unanswered > 0)
            assert owner.keeper.link is not None
            server.kill_backend(owner.keeper.link.pid)
            with pytest.raises(Unavailable, match="before the server confirmed get_work in schema 'errands'"):
                await turn
        assert [task.id for task in (await shift.turn(NOTHING, 1, pick=True)).tasks] == ["1"]
        await shift.end(NOTHING)


async def test_a_finish_whose_answer_is_lost_is_done_once_and_not_refused(work: SharedWork, proxy: FaultProxy) -> None:
    work.add(2)
    async with owner_of(work, url=proxy.url(work.url)) as owner:
        shift = await begin(source_of(owner, schema=work.schema))
        tasks = (await shift.turn(NOTHING, 2, pick=True)).tasks
        proxy.pause("to_client")
        turn = asyncio.create_task(shift.turn(Report(finished=tasks), 0, pick=False))
        await eventually_async(lambda: work.done() == [1, 2], what="it is done, and nobody knows")
        proxy.cut()
        with pytest.raises(Unavailable, match="before the server confirmed finish_tasks"):
            await turn
        proxy.resume()
        assert (await shift.turn(NOTHING, 2, pick=True)).refused == ()
        await shift.end(NOTHING)
        assert work.living() == []


async def test_a_link_that_nobody_uses_closes_itself_and_comes_back(
    work: SharedWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functiontasks, "_IDLE", 0.05)
    async with owner_of(work) as owner:
        place = place_of(work)
        session = await ask(owner, StartWork(place))
        await eventually_async(lambda: owner.keeper.health().state == "idle", what="the link is closed")
        assert owner.keeper.link is None
        assert await ask(owner, BumpWork(place, session)) is True


async def test_a_link_that_comes_back_with_nobody_waiting_closes_itself_too(
    work: SharedWork, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owner_of(work) as owner:
        await ask(owner, StartWork(place_of(work)))
        monkeypatch.setattr(functiontasks, "_IDLE", 0.05)
        assert owner.keeper.link is not None
        server.kill_backend(owner.keeper.link.pid)
        await eventually_async(lambda: owner.keeper.health().state == "idle", what="it came back, and is closed")


async def test_a_link_of_which_the_path_cannot_be_learned_is_not_used(
    work: SharedWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with owner_of(work) as owner:
        with monkeypatch.context() as broken:
            broken.setattr(functiontasks, "ROLE_PATH", Statement(b"", b"select 1 / 0"))
            with pytest.raises(StatementFailed, match="division by zero"):
                await ask(owner, StartWork(place_of(work)))
        assert await ask(owner, StartWork(place_of(work))) == work.living()[0]


async def test_a_closed_owner_answers_everybody(work: SharedWork) -> None:
    async with owner_of(work) as owner:
        waiting = asyncio.ensure_future(ask(owner, StartWork(place_of(work))))
        await asyncio.sleep(0)
        await owner.close()
        with pytest.raises(CoordinatorClosed):
            await waiting
        with pytest.raises(CoordinatorClosed):
            await ask(owner, StartWork(place_of(work)))


async def test_without_a_server_it_is_unavailable(work: SharedWork) -> None:
    async with owner_of(work, url="postgresql://127.0.0.1:1/nothing") as owner:
        with pytest.raises(Unavailable):
            await ask(owner, StartWork(place_of(work)))


async def test_a_start_whose_caller_has_left_is_ended(work: SharedWork) -> None:
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        await source.end_session(0)  # the link is there
        with raw(work.url) as other:
            other.execute("begin")
            other.execute("lock table errands.session in access exclusive mode")
            starting = asyncio.create_task(source.start_session())
            await eventually_async(lambda: bool(waiting(work)), what="it waits for the table")
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            other.execute("commit")
        # begun, ended, and nothing of both under way any more
        await eventually_async(lambda: not work.execute(BUSY) and not work.living())
        assert work.execute("select is_called from session_id_seq") == [(True,)]


def waiting(work: SharedWork) -> list[Any]:
    return work.execute(
        "select pid from pg_locks where not granted and database = "
        "(select oid from pg_database where datname = current_database())"
    )


async def test_everything_works_behind_a_transaction_pooler(
    work: SharedWork, pgbouncer: Callable[..., PgBouncer]
) -> None:
    pooler = pgbouncer("transaction", pool_size=2)
    work.add(4)
    async with owner_of(work, url=pooler.url) as owner:
        source = source_of(owner, schema=work.schema)
        shifts = [await begin(source), await begin(source)]
        turns = [await shift.turn(NOTHING, 2, pick=True) for shift in shifts]
        assert [[task.id for task in turn.tasks] for turn in turns] == [["1", "2"], ["3", "4"]]
        ends = [shift.end(Report(finished=turn.tasks)) for shift, turn in zip(shifts, turns, strict=True)]
        await asyncio.gather(*ends)
        assert work.done() == [1, 2, 3, 4]


async def test_a_session_that_the_source_does_not_know_is_told(work: SharedWork) -> None:
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        for method in (source.bump_session(7), source.get_work(7, None), source.finish_tasks(7, ())):
            with pytest.raises(SessionNotFound, match="session 7 of schema 'errands'"):
                await method
