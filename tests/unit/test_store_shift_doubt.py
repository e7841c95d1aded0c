"""The shift over a store in doubt: answers that are lost, late or not waited for, and the loss of the session itself.

On a world in memory. What is asked when all is answered, and the end, are tested in `test_store_shift.py`.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert.errors import SessionLost, Unavailable
from pgconcert.events import RunnerFailed
from pgconcert.store import EndSession, Look, LookAtSessions
from pgconcert.tasks import storeshift
from pgconcert.tasks.shift import Report
from pgconcert.taskstore import LookAtShares, Move, Recall, ReleaseTasks, Turn
from tests.unit.ears import turns
from tests.unit.session_scenes import pass_time
from tests.unit.shift_scenes import NOTHING, failed, finished, ids, lost_on_the_way, shop

# lost answers


@pytest.mark.parametrize("carried_out", [True, False])
async def test_a_report_without_an_answer_is_said_again_and_counts(carried_out: bool) -> None:
    async with shop() as here:
        await here.add(3)
        shift = await here.shift()
        one, two, three = (await shift.turn(NOTHING, 3, pick=True)).tasks
        house = here.houses[-1]
        house.store.deaf = not carried_out
        report = Report((one,), failed(two).failed, (three,))
        lost = await lost_on_the_way(house, shift.turn(report, 0, pick=False), Turn)
        house.store.deaf = False
        with pytest.raises(Unavailable):
            await lost
        handed = await shift.turn(NOTHING, 0, pick=False)
        assert handed.refused == ()
        assert await here.states() == ["finished", "scheduled", "waiting"]
        assert {(task.id, task.attempt) for task in (await here.tasks()).values()} == {("1", 1), ("2", 1), ("3", 0)}


@pytest.mark.parametrize("carried_out", [True, False])
async def test_what_was_handed_out_without_an_answer_is_found(carried_out: bool) -> None:
    async with shop() as here:
        await here.add(5)
        shift = await here.shift()
        house = here.houses[-1]
        house.store.deaf = not carried_out
        lost = await lost_on_the_way(house, shift.turn(NOTHING, 2, pick=True), Turn)
        house.store.deaf = False
        with pytest.raises(Unavailable):
            await lost
        house.store.kinds()
        handed = await shift.turn(NOTHING, 2, pick=True)
        assert [(task.id, task.attempt) for task in handed.tasks] == [("1", 1), ("2", 1)]
        assert house.store.kinds() == {"Recall": 1, "Turn": 1}
        await shift.turn(finished(*handed.tasks), 3, pick=True)
        assert len(await here.owned(shift, "started")) == 3


async def test_what_is_in_hand_stays_there_when_all_is_in_doubt() -> None:
    async with shop() as here:
        await here.add(4)
        shift = await here.shift()
        one, two = (await shift.turn(NOTHING, 2, pick=True)).tasks
        lost = await lost_on_the_way(here.houses[-1], shift.turn(finished(one), 1, pick=True), Turn)
        with pytest.raises(Unavailable):
            await lost
        handed = await shift.turn(NOTHING, 1, pick=True)
        assert ids(handed) == ["3"]
        assert sorted(await here.owned(shift, "started")) == ["2", "3"]
        assert (await shift.turn(finished(two, *handed.tasks), 1, pick=True)).refused == ()


async def test_several_answers_in_a_row_may_be_lost() -> None:
    async with shop() as here:
        await here.add(2)
        shift = await here.shift()
        (one,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
        house = here.houses[-1]
        for kind, report in ((Turn, finished(one)), (Turn, NOTHING), (Recall, NOTHING), (Turn, NOTHING)):
            lost = await lost_on_the_way(house, shift.turn(report, 1, pick=True), kind)
            with pytest.raises(Unavailable):
                await lost
        handed = await shift.turn(NOTHING, 1, pick=True)
        assert ids(handed) == ["2"]
        assert handed.refused == ()


async def test_what_is_carried_out_late_is_found_at_a_tick() -> None:
    async with shop() as here:
        await here.add(3)
        shift = await here.shift(every=5.0)
        house = here.houses[-1]
        house.store.deaf = True
        lost = await lost_on_the_way(house, shift.turn(NOTHING, 3, pick=True), Turn)
        house.store.deaf = False
        with pytest.raises(Unavailable):
            await lost
        await shift.turn(NOTHING, 0, pick=False)  # there is nothing to be recalled yet
        house.store.arrive_late()
        await turns()
        assert len(await here.owned(shift, "started")) == 3
        assert ids(await shift.turn(NOTHING, 3, pick=True)) == ["1", "2", "3"]
        assert len(await here.owned(shift, "started")) == 3


async def test_a_task_that_was_started_is_handed_out_although_the_next_question_failed() -> None:
    async with shop() as here:
        await here.add(4)
        other = await here.shift()
        await other.turn(NOTHING, 1, pick=True)
        await here.add(1)
        shift = await here.shift()
        # its share is three, and one was free
        lost = await lost_on_the_way(here.houses[-1], shift.turn(NOTHING, 2, pick=True), LookAtShares)
        with pytest.raises(Unavailable):
            await lost
        assert await here.owned(shift, "started") == ["5"]
        assert ids(await shift.turn(NOTHING, 2, pick=True)) == ["5"]


async def test_an_answer_that_is_lost_behind_what_was_started_loses_nothing() -> None:
    async with shop() as here:
        await here.add(6)
        other = await here.shift()
        await other.turn(NOTHING, 1, pick=True)
        shift = await here.shift()
        lost = await lost_on_the_way(here.houses[-1], shift.turn(NOTHING, 1, pick=True), Move)
        with pytest.raises(Unavailable):
            await lost
        handed = await shift.turn(NOTHING, 1, pick=True)
        assert ids(handed) == ["4"]
        assert sorted(await here.owned(shift, "assigned")) == ["5", "6"]


async def test_a_turn_that_is_cancelled_leaves_what_it_took_to_the_next_one() -> None:
    for step in range(8):
        async with shop() as here:
            await here.add(6)
            other = await here.shift()
            await other.turn(NOTHING, 1, pick=True)
            shift = await here.shift()
            turn = asyncio.ensure_future(shift.turn(NOTHING, 2, pick=True))
            await turns(step)
            if turn.cancel():
                await asyncio.wait([turn])
            if not turn.cancelled():
                continue
            handed = await shift.turn(NOTHING, 2, pick=True)
            assert len(handed.tasks) == 2
            assert sorted(await here.owned(shift, "started")) == sorted(ids(handed))
            assert (await shift.turn(finished(*handed.tasks), 0, pick=False)).refused == ()


# the loss


async def test_a_session_that_the_server_ends_is_lost_and_told_once() -> None:
    async with shop() as here:
        await here.add(2)
        shift = await here.shift()
        (one,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
        told: list[str] = []
        shift.when_lost(told.append)
        await here.houses[0].look(EndSession(shift.session))
        with pytest.raises(SessionLost):
            await shift.turn(finished(one), 1, pick=True)
        assert told == [shift.lost]
        shift.when_lost(told.append)
        assert told == [shift.lost] * 2
        store = here.houses[-1].store
        store.kinds()
        assert (await shift.end(NOTHING)).refused == (one,)
        assert set(store.kinds()) == {"EndSession"}  # so that it is renewed no more
        assert here.houses[-1].sessions == []
        assert await shift.end(NOTHING) == ((), (), (), False, None, 0, 0)


async def test_a_session_that_nobody_renews_is_lost_by_the_clock_alone_and_nobody_is_asked() -> None:
    async with shop() as here:
        await here.add(1)
        shift = await here.shift()
        (one,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
        store = here.houses[-1].store
        store.deaf = True
        here.clock.advance(9.0)  # the loop has not run yet
        assert shift.lost
        store.kinds()
        with pytest.raises(SessionLost):
            await shift.turn(finished(one), 1, pick=True)
        assert (await shift.end(NOTHING)).refused == (one,)
        assert shift.lost
        assert store.count(EndSession, Turn) == 0
        store.deaf = False
        await pass_time(here.clock, 2.0)
        assert here.houses[-1].sessions == []


async def test_an_answer_that_comes_when_the_trust_has_ended_hands_out_nothing() -> None:
    async with shop() as here:
        await here.add(1)
        shift = await here.shift()
        store = here.houses[-1].store
        store.keeps = {Turn}
        turn = asyncio.ensure_future(shift.turn(NOTHING, 1, pick=True))
        await turns()
        store.deaf = True
        here.clock.advance(9.0)
        store.deliver()
        with pytest.raises(SessionLost):
            await turn
        store.keeps.clear()
        store.deaf = False
        store.lose()


async def test_a_runner_whose_entry_was_revoked_has_lost_its_session() -> None:
    from pgconcert.store import Revoke

    async with shop() as here:
        shift = await here.shift()
        (entry,) = await here.houses[0].look(Look(kind="runner"))
        told: list[str] = []
        shift.when_lost(told.append)
        here.houses[-1].engine.ask(Revoke(entry.subject), asyncio.get_running_loop().create_future())
        await turns(10)
        await pass_time(here.clock, 3.0)
        assert told
        await shift.end(NOTHING)
        await turns()
        assert here.houses[-1].sessions == []


async def test_a_last_report_without_an_answer_does_not_keep_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storeshift, "_LAST_WORD", 0.02)
    async with shop() as here:
        await here.add(3)
        shift = await here.shift()
        one, _ = (await shift.turn(NOTHING, 2, pick=True)).tasks
        house = here.houses[-1]
        house.store.keeps = {Turn, ReleaseTasks}
        assert (await shift.end(finished(one))).refused == (one,)
        (told,) = house.told(RunnerFailed)
        assert (told.code, told.error) == (  # type: ignore[attr-defined]
            "finish tasks",
            "the last report has no answer: TimeoutError",
        )
        assert shift.session not in {info.id for info in await here.houses[0].look(LookAtSessions())}
        house.store.keeps = set()
        house.store.kept.clear()
