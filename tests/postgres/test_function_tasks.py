"""Tasks of a schema with go-session-lock's functions, on every server: requests, shares, and runners of others.

Theory: the functions are those of `sharedwork.py`; what is true is read from the tables by another connection.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from pgconcert.errors import (
    SessionLost,
)
from pgconcert.tasks.shift import Report
from pgconcert.tasks.sourceshift import SourceShift
from pgconcert.taskstore import BumpWork, EndWork, FinishWork, GetWork, StartWork
from tests.postgres.sharedwork import PlainRunner, SharedWork, ask, begin, owner_of, place_of, shared_work, source_of

NOTHING = Report()


@pytest.fixture
def work(database: str) -> Iterator[SharedWork]:
    with shared_work(database, "errands") as made:
        yield made


# the requests


async def test_a_session_is_started_bumped_and_ended(work: SharedWork) -> None:
    async with owner_of(work) as owner:
        place = place_of(work)
        session = await ask(owner, StartWork(place))
        assert work.living() == [session]
        assert await ask(owner, BumpWork(place, session)) is True
        await ask(owner, EndWork(place, session))
        assert work.living() == []
        assert await ask(owner, BumpWork(place, session)) is False
        assert await ask(owner, GetWork(place, session, None)) is None
        assert await ask(owner, FinishWork(place, session, ("1",))) is None
        await ask(owner, EndWork(place, session))  # twice, or one that never was, is nothing
        await ask(owner, EndWork(place, 10**15))
        assert await ask(owner, BumpWork(place, 10**15)) is False


async def test_an_expired_session_never_comes_back(work: SharedWork) -> None:
    async with owner_of(work) as owner:
        session = await ask(owner, StartWork(place_of(work)))
        work.expire(session)
        assert await ask(owner, BumpWork(place_of(work), session)) is False
        assert await ask(owner, GetWork(place_of(work), session, None)) is None
        assert work.living() == []


async def test_a_task_has_its_columns_as_psycopg_reads_them(work: SharedWork) -> None:
    work.execute(
        "insert into errand (note, due, price, tags, on_day) values "
        "('one', '2024-02-03 04:05:06+02', 1.50, array['a', 'b'], '2024-02-03'), (null, null, null, null, null)"
    )
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        session = await source.start_session()
        one, two = await source.get_work(session, None)
        assert (one.id, two.id) == ("1", "2")
        assert one.payload == {
            "id": 1,
            "note": "one",
            "due": datetime(2024, 2, 3, 2, 5, 6, tzinfo=UTC),
            "price": Decimal("1.50"),
            "tags": ["a", "b"],
            "on_day": date(2024, 2, 3),
        }
        assert two.payload == dict.fromkeys(one.payload) | {"id": 2}


async def test_a_value_that_python_has_not_concerns_its_task_alone(work: SharedWork) -> None:
    work.execute("insert into errand (on_day) values ('infinity'), (null)")
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        one, two = await source.get_work(await source.start_session(), None)
        assert isinstance(one.payload, Exception)
        assert "column 'on_day'" in str(one.payload)
        assert two.payload["on_day"] is None


async def test_make_makes_the_payload_and_its_error_concerns_its_task_alone(work: SharedWork) -> None:
    work.add(2)

    def make(row: Any) -> str:
        if row["id"] == 1:
            raise LookupError("not this one")
        return f"made of {row['note']}"

    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema, make=make)
        one, two = await source.get_work(await source.start_session(), None)
        assert isinstance(one.payload, LookupError)
        assert two.payload == "made of errand 2"


async def test_a_column_that_is_added_while_we_run_is_seen(work: SharedWork) -> None:
    work.add(1)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        session = await source.start_session()
        (task,) = await source.get_work(session, None)
        assert "weight" not in task.payload
        work.execute("alter type session_task add attribute weight float8 cascade")
        work.execute(
            "create or replace function get_tasks_for_session(in_session_id bigint) returns setof session_task "
            "language sql stable as $$ select id, note, due, price, tags, on_day, 1.5::float8 from errand "
            "where not done and session_id = in_session_id order by id $$"
        )
        (task,) = await source.get_work(session, None)
        assert task.payload["weight"] == 1.5


# whose a task is


async def test_only_what_is_the_sessions_own_is_finished(work: SharedWork) -> None:
    work.add(4)
    async with owner_of(work) as owner:
        place = place_of(work)
        mine, theirs = await ask(owner, StartWork(place)), await ask(owner, StartWork(place))
        for session, ids in ((mine, ["1", "2"]), (theirs, ["3", "4"])):
            rows = await ask(owner, GetWork(place, session, None))
            assert rows is not None
            assert [row.id for row in rows] == ids
        assert await ask(owner, FinishWork(place, mine, ("1", "3", "99", "words"))) == ("1",)
        assert work.done() == [1]
        assert await ask(owner, FinishWork(place, mine, ("3",))) == ()
        assert await ask(owner, FinishWork(place, mine, ())) == ()
        assert work.done() == [1]


async def test_a_late_finish_of_a_session_that_is_over_is_refused(work: SharedWork) -> None:
    work.add(2)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        shift = await begin(source)
        tasks = (await shift.turn(NOTHING, 2, pick=True)).tasks
        work.expire(shift.session)
        other = await begin(source)
        assert [task.id for task in (await other.turn(NOTHING, 2, pick=True)).tasks] == ["1", "2"]
        with pytest.raises(SessionLost, match="is over, or was never there"):
            await shift.turn(Report(finished=tasks), 0, pick=False)
        assert (await shift.end(NOTHING)).refused == tasks
        assert work.done() == []
        await other.end(NOTHING)


async def test_a_session_is_renewed_by_what_it_finishes(work: SharedWork) -> None:
    work.add(1)
    async with owner_of(work) as owner:
        place = place_of(work)
        session = await ask(owner, StartWork(place))
        await ask(owner, GetWork(place, session, None))
        work.execute("update session set expires = now() at time zone 'utc' + interval '60 s'")
        await ask(owner, FinishWork(place, session, ("1",)))
        ((left,),) = work.execute("select expires - now() at time zone 'utc' from session")
        assert left.total_seconds() > 100


# shares


@pytest.mark.parametrize(("cap", "shares"), [(None, [4, 4, 2]), (3, [3, 3, 3]), (0, [0, 0, 0]), (2**40, [4, 4, 2])])
async def test_three_sessions_share_by_the_ceil_rule(work: SharedWork, cap: int | None, shares: list[int]) -> None:
    work.add(10)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        shifts = [await begin(source, cap) for _ in range(3)]
        got = [len((await shift.turn(NOTHING, 100, pick=True)).tasks) for shift in shifts]
        assert got == shares
        for shift in shifts:
            await shift.end(NOTHING)


async def test_who_joins_later_gets_nothing_until_something_is_finished(work: SharedWork) -> None:
    work.add(10)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        first = await begin(source)
        tasks = (await first.turn(NOTHING, 100, pick=True)).tasks
        assert len(tasks) == 10
        second = await begin(source)
        assert (await second.turn(NOTHING, 100, pick=True)).tasks == ()
        work.add(2)
        assert len((await second.turn(NOTHING, 100, pick=True)).tasks) == 2
        await first.end(Report(finished=tasks))
        await second.end(NOTHING)
        assert len(work.done()) == 10


async def test_what_a_session_has_moves_when_it_ends_and_when_its_time_is_over(work: SharedWork) -> None:
    work.add(6)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        shifts = [await begin(source) for _ in range(3)]
        for shift in shifts:
            await shift.turn(NOTHING, 100, pick=True)
        assert sorted(work.owners().values()) == [2, 2, 2]
        await shifts[0].end(NOTHING)
        work.expire(shifts[1].session)
        await shifts[2].turn(NOTHING, 100, pick=True)
        assert work.owners() == {shifts[2].session: 6}
        await shifts[1].end(NOTHING)
        await shifts[2].end(NOTHING)


# with runners of go-session-lock


class Ledger:
    """Who has what this instant, and what was done: errors as they happen."""

    def __init__(self) -> None:
        self.having: dict[int, int] = {}
        self.done: list[int] = []
        self.twice: list[int] = []
        self.shares: dict[int, int] = {}

    def begin(self, ids: list[int], session: int) -> None:
        self.twice += [number for number in ids if self.having.setdefault(number, session) != session]

    def end(self, ids: list[int], session: int) -> None:
        for number in ids:
            del self.having[number]
        self.done += ids
        self.shares[session] = self.shares.get(session, 0) + len(ids)


async def test_our_runners_and_theirs_share_the_same_tasks(work: SharedWork) -> None:
    work.add(300)
    ledger = Ledger()

    def take(ids: list[int], session: int) -> None:
        ledger.begin(ids, session)
        ledger.end(ids, session)

    def theirs(runner: PlainRunner) -> None:
        try:
            runner.run(take)
        finally:
            runner.close()

    async def ours(shift: SourceShift) -> None:
        report, numbers = NOTHING, list[int]()
        while numbers or work.owners():
            handed = await shift.turn(report, 3, pick=True)
            assert handed.refused == ()
            ledger.end(numbers, shift.session)
            numbers = [int(task.id) for task in handed.tasks]
            ledger.begin(numbers, shift.session)
            report = Report(finished=handed.tasks)
        await shift.end(report)

    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        shifts = [await begin(source, 7) for _ in range(2)]
        runners = [await asyncio.to_thread(PlainRunner, work, 7) for _ in range(2)]
        for runner in runners:
            assert len(await asyncio.to_thread(runner.get_work)) == 7
        for shift in shifts:
            assert (await shift.turn(NOTHING, 0, pick=True)).more
        everybody = [*(shift.session for shift in shifts), *(runner.session for runner in runners)]
        assert [work.owners()[session] for session in everybody] == [7, 7, 7, 7]
        async with asyncio.TaskGroup() as group:
            for runner in runners:
                group.create_task(asyncio.to_thread(theirs, runner))
            for shift in shifts:
                group.create_task(ours(shift))
    assert ledger.twice == []
    assert sorted(ledger.done) == work.done() == [*range(1, 301)]
    assert {*ledger.shares} == {*everybody}
    assert min(ledger.shares.values()) >= 7
    assert work.living() == []


async def test_our_shares_and_theirs_follow_one_rule(work: SharedWork) -> None:
    work.add(10)
    async with owner_of(work) as owner:
        source = source_of(owner, schema=work.schema)
        theirs = await asyncio.to_thread(PlainRunner, work)
        try:
            shifts = [await begin(source), await begin(source)]
            assert len(await asyncio.to_thread(theirs.get_work)) == 4
            assert len((await shifts[0].turn(NOTHING, 100, pick=True)).tasks) == 4
            assert len((await shifts[1].turn(NOTHING, 100, pick=True)).tasks) == 2
            for shift in shifts:
                await shift.end(NOTHING)
            assert len(await asyncio.to_thread(theirs.get_work)) == 10
        finally:
            await asyncio.to_thread(theirs.close)
        shift = await begin(source)
        assert len((await shift.turn(NOTHING, 100, pick=True)).tasks) == 10
        await shift.end(NOTHING)
