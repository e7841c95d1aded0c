"""What a runner does when its session is lost."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pgconcert.errors import SessionLost, Unavailable
from pgconcert.events import RunnerFailed, RunnerSessionEnded, RunnerSessionLost, RunnerSessionStarted, TasksRefused
from pgconcert.tasks.task import Task
from tests.unit.runner_scenes import Scene, Script, ScriptedShift


async def nothing(_: Any) -> None:
    """Complete all."""


async def test_an_idle_runner_begins_another_session_at_once() -> None:
    scene = Scene(Script(), nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns == 1)
        scene.script.shift.lose("gone")
        await scene.until(lambda: runner.session_id == 2)
        (told,) = scene.told(RunnerSessionLost)
        assert (told.session, told.tasks, told.reason) == (1, 0, "gone")
        assert runner.statistics().lost_sessions == 1
        # the first shift was left, so that its session is renewed no more
        assert len(scene.script.shifts[0].ends) == 1
        scene.script.add("a")
        runner.wake()
        await scene.until(lambda: scene.script.done)
    assert [event.session for event in scene.told(RunnerSessionEnded)] == [2]
    assert [event.session for event in scene.told(RunnerSessionStarted)] == [1, 2]


async def test_calls_are_cancelled_and_nothing_of_them_is_reported() -> None:
    cancelled: list[bool] = []
    began = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(tasks[0].lost)
            raise

    scene = Scene(Script("ab"), tasker)
    async with scene.runner as runner:
        await began.wait()
        first = scene.script.shift
        first.lose()
        await scene.until(lambda: cancelled and len(scene.script.shifts) == 2)
        assert cancelled == [True]
        assert scene.told(RunnerSessionLost)[0].tasks == 2
        assert first.ends[0] == ((), (), ())
    assert not scene.told(TasksRefused)
    assert not scene.told(RunnerFailed)
    assert runner.statistics().failed == 0


async def test_what_is_completed_all_the_same_is_refused_and_told() -> None:
    began = asyncio.Event()

    async def tasker(tasks: list[Task]) -> list[Task]:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
        return tasks[:1]

    scene = Scene(Script("ab"), tasker)
    async with scene.runner as runner:
        await began.wait()
        scene.script.shift.lose()
        await scene.until(lambda: scene.told(TasksRefused))
        (told,) = scene.told(TasksRefused)
        assert (told.session, told.ids) == (1, ("a",))
        assert scene.script.done == []
        assert (runner.statistics().refused, runner.statistics().completed) == (1, 0)


async def test_what_was_done_and_never_confirmed_is_refused_and_told() -> None:
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        await goes_on.wait()

    scene = Scene(Script("a"), tasker)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().running)
        first = scene.script.shift
        first.errors.extend([Unavailable("no answer")] * 99)
        goes_on.set()
        await scene.until(lambda: scene.told(RunnerFailed))
        assert runner.statistics().completed == 1
        first.lose()
        await scene.until(lambda: scene.told(TasksRefused))
        assert scene.told(TasksRefused)[0].ids == ("a",)
        assert (runner.statistics().refused, runner.statistics().completed) == (1, 0)


async def test_a_thread_keeps_its_place_until_it_has_returned() -> None:
    goes_on = threading.Event()
    said: list[str] = []
    began = threading.Event()

    def tasker(task: Task) -> None:
        if task.id == "a":
            began.set()
            goes_on.wait(30)
            try:
                task.check()
            except SessionLost as lost:
                said.append(lost.reason)
                raise

    scene = Scene(Script("a"), tasker, per_task=True, concurrency=2)
    async with scene.runner as runner:
        await scene.until(began.is_set)
        scene.script.shift.lose("gone")
        await scene.until(lambda: runner.session_id == 2)
        scene.script.add("b", "c", "d")
        runner.wake()
        await scene.until(lambda: len(scene.script.done) == 3)
        assert {asked.room for asked in scene.script.shift.asked} == {1}
        goes_on.set()
        await scene.until(lambda: runner.statistics().running == 0)
        scene.script.add("e")
        runner.wake()
        await scene.until(lambda: len(scene.script.done) == 4)
        assert scene.script.shift.asked[-1].room == 2
    assert said == ["gone"]
    assert not scene.told(RunnerFailed)


async def test_who_has_no_place_but_those_of_lost_calls_takes_nothing_over() -> None:
    goes_on, began = threading.Event(), threading.Event()

    def tasker(tasks: list[Task]) -> None:
        if tasks[0].id == "a":
            began.set()
            goes_on.wait(30)

    scene = Scene(Script("a"), tasker, tick=0.05)
    async with scene.runner as runner:
        await scene.until(began.is_set)
        scene.script.shift.lose("gone")
        await scene.until(lambda: runner.session_id == 2)
        scene.script.add("b")
        await asyncio.sleep(0.2)
        assert scene.script.shift.asked == []
        goes_on.set()
        await scene.until(lambda: scene.script.done == ["b"])


async def test_a_turn_without_an_answer_does_not_delay_the_next_session() -> None:
    script = Script("a")
    script.prepare = lambda shift: setattr(shift, "gate", asyncio.Event() if shift.session == 1 else None)
    scene = Scene(script, nothing)
    async with scene.runner:
        await scene.until(lambda: script.shift.asked)
        script.shift.lose()
        await scene.until(lambda: script.done == ["a"])


async def test_a_loss_that_only_the_clock_knows_is_found_before_anything_is_handed_out() -> None:
    script = Script("a")
    handed: list[int] = []

    async def tasker(tasks: list[Task]) -> None:
        handed.append(len(script.shifts))

    class Late(ScriptedShift):
        async def turn(self, *arguments: Any, **options: Any) -> Any:
            answer = await super().turn(*arguments, **options)
            if self.session == 1:
                self.lost = "its time was over when the answer came"
                script.add("a")  # it is free for others
            return answer

    script.prepare = lambda shift: setattr(shift, "__class__", Late)
    scene = Scene(script, tasker)
    async with scene.runner:
        await scene.until(lambda: script.done == ["a"])
        assert scene.runner.statistics().handed == 1
    assert handed == [2]
    assert scene.told(RunnerSessionLost)[0].reason == "its time was over when the answer came"


async def test_another_session_is_tried_again_and_again_with_pauses() -> None:
    scene = Scene(Script("a"), nothing, tick=0.1)
    async with scene.runner as runner:
        await scene.until(lambda: scene.script.done)
        scene.script.errors.extend([Unavailable("no")] * 4)
        scene.script.shift.lose()
        await scene.until(lambda: runner.session_id == 2)
        told = scene.told(RunnerFailed)
        assert [event.code for event in told] == ["start session"] * 4
        assert told[0].retry_in < told[-1].retry_in <= 0.1


async def test_sessions_that_are_lost_at_once_do_not_make_it_spin() -> None:
    script = Script()

    def lose(shift: ScriptedShift) -> None:
        shift.errors.append(SessionLost("session", "over"))
        asyncio.get_running_loop().call_soon(lambda: setattr(shift, "lost", "over"))

    script.prepare = lose
    scene = Scene(script, nothing, tick=10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with scene.runner:
        await scene.until(lambda: len(script.shifts) == 4)
        spent = loop.time() - began
    # 50, 100 and 200 ms, at least three quarters of it
    assert spent > 0.75 * 0.35 * 0.9


async def test_stop_while_another_session_is_begun() -> None:
    scene = Scene(Script(), nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns == 1)
        scene.script.gate = asyncio.Event()
        scene.script.shift.lose()
        await scene.until(lambda: runner.session_id is None)
        await asyncio.sleep(0.01)
        await runner.stop()
    assert len(scene.script.shifts) == 1


@pytest.mark.parametrize("steps", range(25))
async def test_a_loss_at_any_step_loses_no_task_and_finishes_none_twice(steps: int) -> None:
    scene = Scene(Script("abcd"), nothing, batch=1)
    async with scene.runner as runner:
        for _ in range(steps):
            await asyncio.sleep(0)
        first = scene.script.shifts[0]
        hand = [*first.hand.values()]
        first.lose()
        # the source takes back what the lost session had
        scene.script.tasks.extendleft(reversed(first.hand.values()))
        first.hand.clear()
        await scene.until(lambda: len(scene.script.done) == 4)
        assert sorted(scene.script.done) == ["a", "b", "c", "d"]
        statistics = runner.statistics()
        assert statistics.completed == 4 or statistics.refused
    assert len(hand) <= 1
    assert all(len(shift.ends) == 1 for shift in scene.script.shifts)
