"""Shifts over one queue while answers are lost, questions come late, and sessions end: nothing is done by two, and
nothing is forgotten.

Theory. Each example is a story of several runners in a still world. The test keeps what each of them was handed, and
judges after each step: a task is in the hands of one whose session lives. In the end those that are left drain the
queue, in a few ticks; then every task is finished, and of each it is known who has said so, or was told that nobody
knows.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgconcert.errors import SessionLost, Unavailable
from pgconcert.store import EndSession, LookAtSessions
from pgconcert.tasks.shift import NotDone, Report
from pgconcert.tasks.storeshift import StoreShift
from pgconcert.tasks.task import Task
from pgconcert.taskstore import LookAtShares, Move, Recall, Turn
from tests.unit.ears import turns
from tests.unit.session_scenes import House, pass_time
from tests.unit.shift_scenes import Shop, shop

REQUESTS: list[Any] = [Turn, Recall, LookAtShares, Move]

WHO = st.integers(0, 2)
ROOM = st.integers(0, 3)
SAYS = st.integers(0, 2)
TURN = st.tuples(st.just("turn"), WHO, ROOM, SAYS, st.booleans())
LOST = st.tuples(st.sampled_from(["lost", "unheard"]), WHO, ROOM, SAYS, st.sampled_from(REQUESTS))
STEPS = st.one_of(
    TURN,
    TURN,
    LOST,
    LOST,
    st.tuples(st.just("cancel"), WHO, ROOM, SAYS, st.integers(0, 6)),
    st.tuples(st.sampled_from(["late", "ended", "leave"]), WHO, ROOM, SAYS, st.none()),
    st.tuples(st.sampled_from(["time", "add"]), WHO, ROOM, st.integers(1, 8), st.none()),
)

pytestmark = pytest.mark.timeout(300)  # much work for a busy processor


class Runner:
    """One of them: a shift after the other, and what was handed to it."""

    def __init__(self, shop: Shop, house: House) -> None:
        self.shop = shop
        self.house = house
        self.shift: StoreShift | None = None
        self.hand: list[Task] = []
        self.done: list[str] = []
        """What it was told nothing bad about."""
        self.refused: list[str] = []

    async def begin(self) -> StoreShift:
        if self.shift is None:
            self.shift = await self.shop.shift(self.house, every=1.0)
        return self.shift

    def report(self, how: int) -> Report:
        """What became of the first in hand."""
        some, self.hand = self.hand[:how], self.hand[how:]
        if how == 99:
            one, two = 99, 99
        else:
            one, two = (how + 1) // 2, how
            some += self.hand[:1]  # and one more is given back
            del self.hand[:1]
        self.done += [task.id for task in some[:one]]
        failed = tuple(NotDone(task, "no", 1.0) for task in some[one:two])
        return Report(tuple(some[:one]), failed, tuple(some[two:]))

    async def turn(self, room: int, how: int, pick: bool) -> None:
        shift = await self.begin()
        try:
            handed = await shift.turn(self.report(how), room, pick=pick)
        except Unavailable:
            return
        except SessionLost:
            await self.leave()
            return
        self.hand += handed.tasks
        self._refused(handed.refused)

    async def leave(self) -> None:
        shift, self.shift = self.shift, None
        if shift is not None:
            hand, self.hand = self.hand, []
            try:
                self._refused((await shift.end(Report(released=tuple(hand)))).refused)
            except Unavailable:
                pass

    def _refused(self, tasks: tuple[Task, ...]) -> None:
        for task in tasks:
            self.done.remove(task.id)
            self.refused.append(task.id)


def judge(runners: list[Runner]) -> None:
    """Those whose sessions live have different tasks."""
    handed = [task.id for runner in runners for task in runner.hand]
    assert len(handed) == len({*handed}), handed


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=12, max_size=40))
async def test_nothing_is_done_by_two_and_nothing_is_forgotten(story: list[tuple[str, int, int, int, Any]]) -> None:
    async with shop() as here:
        runners = [Runner(here, await here.house()) for _ in range(3)]
        await here.add(6)
        for what, who, room, says, how in story:
            runner = runners[who]
            store = runner.house.store
            if what == "turn":
                await runner.turn(room, says, how)
            elif what in ("lost", "unheard"):
                await runner.begin()
                store.keeps, store.deaf = {how}, what == "unheard"
                turn = asyncio.ensure_future(runner.turn(room, says, True))
                await turns(10)
                store.keeps, store.deaf = set(), False
                store.lose()
                await turn
            elif what == "cancel":
                await runner.begin()
                turn = asyncio.ensure_future(runner.turn(room, says, True))
                await turns(how)
                turn.cancel()
                await asyncio.wait([turn])
            elif what == "late":
                store.stalled = [one for one in store.stalled if harmless(one[1])]
                store.arrive_late()
                await turns()
            elif what == "ended" and runner.shift is not None:
                await here.houses[0].look(EndSession(runner.shift.session))
            elif what == "leave":
                await runner.leave()
            elif what == "time":
                await pass_time(here.clock, says / 4)
            elif what == "add":
                await here.add(says)
            judge([one for one in runners if await alive(here, one)])
        for _ in range(8):
            await pass_time(here.clock, 2.0)
            for runner in runners:
                await runner.turn(99, 99, True)
        rows = await here.tasks()
        assert {row.state for row in rows.values()} == {"finished"}
        said = [name for runner in runners for name in runner.done]
        assert len(said) == len({*said})
        # what nobody has said, or was told to be refused, nobody has finished
        assert {*rows} == {*said, *(name for runner in runners for name in runner.refused)}


def harmless(request: Any) -> bool:
    """Whether it may be carried out at any later time. What takes a task out of a hand may not, for the same session
    may have it again by then: a recall, and what has failed or was released."""
    if isinstance(request, Turn):
        return not request.failed and not request.released
    return not isinstance(request, Recall)


async def alive(here: Shop, runner: Runner) -> bool:
    if runner.shift is None:
        return False
    return runner.shift.session in {one.id for one in await here.houses[0].look(LookAtSessions())}
