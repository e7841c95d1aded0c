"""The shift over a store: what is said and asked, balance, failing SQL, and the end. On a world in memory.

Lost and late answers, and the loss of the session, are tested in `test_store_shift_doubt.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert.errors import SessionLost, StatementFailed, Unavailable
from pgconcert.events import RunnerFailed, TasksMoved
from pgconcert.store import EndSession
from pgconcert.tasks.shift import Report
from pgconcert.tasks.storeshift import AHEAD
from pgconcert.taskstore import Enqueue, LookAtShares, Move, NewTask, ReleaseTasks, Turn
from tests.unit.ears import turns
from tests.unit.session_scenes import pass_time
from tests.unit.shift_scenes import NOTHING, PLACE, failed, finished, ids, lost_on_the_way, released, shop


async def test_a_drain_costs_one_statement_for_each_turn() -> None:
    async with shop() as here:
        await here.add(7)
        shift = await here.shift()
        store = here.houses[-1].store
        store.kinds()
        handed = await shift.turn(NOTHING, 3, pick=True)
        assert ids(handed) == ["1", "2", "3"]
        assert (handed.more, handed.share, handed.sessions) == (True, 7, 1)
        handed = await shift.turn(finished(*handed.tasks), 3, pick=False)
        assert ids(handed) == ["4", "5", "6"]
        assert not handed.more  # one is left, which would not fill the room
        handed = await shift.turn(finished(*handed.tasks), 3, pick=True)
        assert ids(handed) == ["7"]
        assert ids(await shift.turn(finished(*handed.tasks), 3, pick=True)) == []
        assert store.kinds() == {"Turn": 4}
        assert await here.states() == ["finished"] * 7


async def test_nothing_is_asked_when_there_is_nothing_to_say() -> None:
    async with shop() as here:
        shift = await here.shift()
        store = here.houses[-1].store
        store.kinds()
        await shift.turn(NOTHING, 3, pick=False)
        await shift.turn(NOTHING, 0, pick=False)
        assert store.kinds() == {}


async def test_the_whole_share_is_picked_up_at_a_tick_and_only_what_there_is_room_for_between() -> None:
    async with shop() as here:
        await here.add(5)
        shift = await here.shift(every=5.0)
        handed = await shift.turn(NOTHING, 2, pick=True)
        assert len(await here.owned(shift, "assigned")) == 3
        await here.add(50)
        handed = await shift.turn(finished(*handed.tasks), 4, pick=True)
        assert len(handed.tasks) == 4
        assert await here.owned(shift, "assigned") == []
        handed = await shift.turn(finished(*handed.tasks), 4, pick=True)
        assert await here.owned(shift, "assigned") == []
        await pass_time(here.clock, 5.0)
        handed = await shift.turn(finished(*handed.tasks), 4, pick=True)
        assert len(await here.owned(shift, "assigned")) == 41
        # busy: what is new at the next tick is assigned, and not begun
        await here.add(7)
        await pass_time(here.clock, 5.0)
        assert ids(await shift.turn(NOTHING, 0, pick=True)) == []
        assert len(await here.owned(shift, "assigned")) == 48


async def test_without_a_cap_it_takes_so_many_ahead_and_no_more() -> None:
    async with shop() as here:
        await here.add(AHEAD + 100)
        shift = await here.shift()
        handed = await shift.turn(NOTHING, 10, pick=True)
        assert handed.share == AHEAD
        assert len(await here.owned(shift, "assigned")) == AHEAD - 10


@pytest.mark.parametrize("most", [0, 1, 3])
async def test_a_cap_is_kept(most: int) -> None:
    async with shop() as here:
        await here.add(10)
        shift = await here.shift(most=most)
        handed = await shift.turn(NOTHING, 5, pick=True)
        assert len(handed.tasks) == most
        handed = await shift.turn(NOTHING, 5, pick=True)
        assert handed.tasks == ()
        assert len(await here.owned(shift, "started")) == most


async def test_failed_tasks_are_free_later_and_released_ones_at_once() -> None:
    async with shop() as here:
        await here.add(2)
        shift = await here.shift()
        one, other = (await shift.turn(NOTHING, 2, pick=True)).tasks
        await shift.turn(failed(one, retry_in=2.0), 0, pick=False)
        await shift.turn(released(other), 0, pick=False)
        assert await here.states() == ["scheduled", "waiting"]
        handed = await shift.turn(NOTHING, 2, pick=True)
        assert [(task.id, task.attempt) for task in handed.tasks] == [("2", 1)]
        assert handed.next_in == pytest.approx(2.0)
        await pass_time(here.clock, 2.0)
        handed = await shift.turn(NOTHING, 2, pick=True)
        assert [(task.id, task.attempt) for task in handed.tasks] == [("1", 2)]


async def test_what_has_died_is_told_once() -> None:
    async with shop() as here:
        await here.add(1, attempts=1)
        shift = await here.shift()
        handed = await shift.turn(NOTHING, 1, pick=True)
        assert (await shift.turn(failed(*handed.tasks), 1, pick=True)).died == ("1",)
        assert (await shift.turn(NOTHING, 1, pick=True)).died == ()
        assert await here.states() == ["dead"]


async def test_assigned_tasks_that_moved_away_are_not_handed_out() -> None:
    async with shop() as here:
        await here.add(4)
        shift, other = await here.shift(), await here.shift()
        handed = await shift.turn(NOTHING, 1, pick=True)
        assert ids(handed) == ["1"]
        await here.houses[0].look(Move(place=PLACE, session=other.session, moves=((shift.session, 1),)))
        assert ids(await shift.turn(NOTHING, 5, pick=False)) == []
        assert sorted(ids(await other.turn(NOTHING, 5, pick=True))) == ["2", "3"]


# balance


async def test_who_comes_gets_its_share_of_what_others_have_not_begun() -> None:
    async with shop() as here:
        await here.add(10)
        first = await here.shift()
        assert ids(await first.turn(NOTHING, 2, pick=True)) == ["1", "2"]
        second = await here.shift()
        handed = await second.turn(NOTHING, 2, pick=True)
        assert ids(handed) == ["6", "7"]
        assert (handed.sessions, handed.share) == (2, 5)
        assert [len(await here.owned(one, "assigned")) for one in (first, second)] == [3, 3]
        assert here.moved == [5]
        (told,) = here.houses[-1].told(TasksMoved)
        assert (told.tasks, told.session) == (5, second.session)  # type: ignore[attr-defined]


async def test_it_is_looked_at_the_shares_once_a_tick_at_most() -> None:
    async with shop() as here:
        await here.add(1)
        first = await here.shift()
        await first.turn(NOTHING, 1, pick=True)
        await here.add(1)
        second = await here.shift(every=5.0)
        handed = await second.turn(NOTHING, 5, pick=True)
        store = here.houses[-1].store
        await second.turn(finished(*handed.tasks), 5, pick=True)
        for _ in range(5):
            await second.turn(NOTHING, 5, pick=True)
        assert store.count(LookAtShares) == 1
        await pass_time(here.clock, 5.0)
        await second.turn(NOTHING, 5, pick=True)
        assert store.count(LookAtShares) == 2
        assert store.count(Move) == 0


async def test_the_cap_holds_for_what_moves() -> None:
    async with shop() as here:
        await here.add(10)
        first = await here.shift()
        await first.turn(NOTHING, 0, pick=True)
        second = await here.shift(most=2)
        await second.turn(NOTHING, 0, pick=True)
        assert len(await here.owned(second, "assigned")) == 2


# the application's SQL


async def test_what_cannot_be_finished_has_failed_and_does_not_hold_up_the_others() -> None:
    async with shop() as here:
        await here.add(9)
        shift = await here.shift()
        tasks = (await shift.turn(NOTHING, 8, pick=True)).tasks
        house = here.houses[-1]
        house.store.bad = {"3", "6"}  # type: ignore[attr-defined]
        handed = await shift.turn(Report(tasks[:6], (), tasks[6:]), 2, pick=True)
        assert ids(handed) == ["9", "7"]  # what was assigned, and what was given back in the same breath
        assert handed.refused == ()
        states = {task.id: task.state for task in (await here.tasks()).values()}
        assert [states[one] for one in ("1", "2", "4", "5")] == ["finished"] * 4
        assert [states[one] for one in ("3", "6")] == ["scheduled"] * 2
        told: list[Any] = house.told(RunnerFailed)
        assert [(event.code, event.error) for event in told] == [
            ("finish tasks", "task 3: StatementFailed: a trigger says no"),
            ("finish tasks", "task 6: StatementFailed: a trigger says no"),
        ]
        assert [event.retry_in for event in told] == [5.0, 5.0]


async def test_sql_that_fails_without_a_report_is_raised_and_is_no_doubt() -> None:
    async with shop() as here:
        shift = await here.shift()
        store: Any = here.houses[-1].store
        ask = store.ask

        def fails(request: Any, answer: Any) -> None:
            answer.set_exception(StatementFailed("division by zero", "22012"))

        store.ask = fails
        with pytest.raises(StatementFailed):
            await shift.turn(NOTHING, 1, pick=True)
        assert shift.step == "get work"
        store.ask = ask
        store.kinds()
        await here.add(1)
        assert ids(await shift.turn(NOTHING, 1, pick=True)) == ["1"]
        assert store.kinds() == {"Turn": 1}


# the end


async def test_the_end_reports_ends_the_session_and_then_frees_the_rest() -> None:
    async with shop() as here:
        await here.add(5)
        shift = await here.shift()
        one, two = (await shift.turn(NOTHING, 2, pick=True)).tasks
        store = here.houses[-1].store
        store.kinds()
        asked = store.asked
        await shift.end(Report((one,), (), (two,)))
        assert [type(request) for request in asked] == [Turn, EndSession, ReleaseTasks]
        assert await here.states() == ["finished", *["waiting"] * 4]
        assert {task.attempt for task in (await here.tasks()).values() if task.state == "waiting"} == {0}
        assert here.houses[-1].sessions == []
        with pytest.raises(SessionLost):
            await shift.turn(NOTHING, 1, pick=True)
        assert shift.lost is None


async def test_the_end_of_an_idle_shift_is_one_question() -> None:
    async with shop() as here:
        shift = await here.shift()
        await shift.turn(NOTHING, 1, pick=True)
        store = here.houses[-1].store
        store.kinds()
        await shift.end(NOTHING)
        assert store.kinds() == {"EndSession": 1}


async def test_what_is_in_hand_and_was_not_reported_is_released_at_the_end() -> None:
    async with shop() as here:
        await here.add(2)
        shift = await here.shift()
        await shift.turn(NOTHING, 2, pick=True)
        await shift.end(NOTHING)
        assert await here.states() == ["waiting", "waiting"]
        assert {task.attempt for task in (await here.tasks()).values()} == {0}


async def test_a_last_report_without_an_answer_is_said_twice_and_then_the_session_is_left() -> None:
    async with shop() as here:
        await here.add(1)
        shift = await here.shift()
        (one,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
        house = here.houses[-1]
        lost = await lost_on_the_way(house, shift.end(finished(one)), Turn)
        assert (await lost).refused == ()
        assert await here.states() == ["finished"]


@pytest.mark.parametrize("step", range(6))
async def test_an_end_that_is_cancelled_or_fails_is_renewed_no_more(step: int) -> None:
    async with shop() as here:
        await here.add(2)
        shift = await here.shift()
        tasks = (await shift.turn(NOTHING, 2, pick=True)).tasks
        house = here.houses[-1]
        ending = asyncio.ensure_future(shift.end(finished(tasks[0])))
        await turns(step)
        ending.cancel()
        await asyncio.wait([ending])
        await turns()
        assert house.sessions == [] or step == 0
        if step == 0:
            return
        await shift.end(NOTHING)
        after = await here.shift()
        handed = await after.turn(NOTHING, 5, pick=True)
        assert "2" in ids(handed)


async def test_an_end_that_nobody_answers_raises_and_is_renewed_no_more() -> None:
    async with shop() as here:
        await here.add(1)
        shift = await here.shift()
        (one,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
        house = here.houses[-1]
        house.store.deaf = True
        ending = asyncio.ensure_future(shift.end(finished(one)))
        for _ in range(3):
            await turns()
            house.store.lose()
        with pytest.raises(Unavailable):
            await ending
        assert house.sessions == []
        house.store.deaf = False


async def test_others_are_woken_by_what_a_shift_leaves() -> None:
    from pgconcert.taskstore import wake_subject

    async with shop() as here:
        await here.add(3)
        shift = await here.shift()
        await shift.turn(NOTHING, 1, pick=True)
        other = here.houses[0]
        woken: list[int] = []
        watch = other.engine.watch(wake_subject(PLACE, ""), lambda: woken.append(1))
        await turns(8)
        woken.clear()
        await shift.end(NOTHING)
        await turns(8)
        assert woken
        other.engine.unwatch(watch)
        await other.look(Enqueue(place=PLACE, tasks=(NewTask(b""),)))


async def test_who_was_robbed_while_it_was_busy_takes_its_share_back() -> None:
    """Nobody tells whom tasks were taken from; so who has some assigned looks, once a tick."""
    async with shop() as here:
        await here.add(12)
        first = await here.shift()
        assert ids(await first.turn(NOTHING, 2, pick=True)) == ["1", "2"]
        second = await here.shift()
        assert len(ids(await second.turn(NOTHING, 2, pick=True))) == 2
        move = Move(place=PLACE, session=second.session, moves=((first.session, 3),))
        assert len(await here.houses[0].look(move)) == 3
        assert [len(await here.owned(one, "assigned")) for one in (first, second)] == [1, 7]
        await pass_time(here.clock, 5.0)
        assert ids(await first.turn(NOTHING, 0, pick=True)) == []
        assert [len(await here.owned(one, "assigned")) for one in (first, second)] == [4, 4]
