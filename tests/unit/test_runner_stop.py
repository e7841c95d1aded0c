"""How a runner ends by `stop`: in any state, from inside its tasker, with calls and sources that do not end in time.

Its other ends, and those of groups, are tested in `test_runner_ends.py`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pgconcert.errors import Stopped, Unavailable
from pgconcert.events import RunnerFailed, RunnerSessionEnded, TasksRefused
from pgconcert.tasks.runner import RunnerState
from pgconcert.tasks.task import Task
from tests.unit.runner_scenes import Scene, Script, for_ever, nothing


async def test_stop_before_start_is_for_good() -> None:
    scene = Scene(Script("a"), nothing)
    await scene.runner.stop()
    await scene.runner.stop()
    assert scene.runner.state is RunnerState.STOPPED
    with pytest.raises(Stopped):
        await scene.runner.start()
    await scene.runner.run()
    assert scene.script.shifts == []


async def test_stop_of_an_idle_runner_ends_the_session_before_it_returns() -> None:
    scene = Scene(Script(), nothing)
    await scene.runner.start()
    await scene.runner.stop()
    assert len(scene.script.shift.ends) == 1
    assert len(scene.told(RunnerSessionEnded)) == 1
    await scene.runner.stop()
    assert len(scene.script.shift.ends) == 1


async def test_stop_lets_a_call_end_and_reports_it() -> None:
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        await goes_on.wait()

    scene = Scene(Script("ab"), tasker, batch=1)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    stopping = asyncio.ensure_future(scene.runner.stop())
    await scene.until(lambda: scene.runner.state is RunnerState.STOPPING)
    scene.runner.wake()
    goes_on.set()
    await stopping
    assert scene.script.done == ["a"]
    assert [task.id for task in scene.script.tasks] == ["b"]
    assert scene.script.released == []


async def test_what_ends_during_a_stop_is_reported_while_others_go_on() -> None:
    ends = {name: asyncio.Event() for name in "ab"}

    async def tasker(task: Task) -> None:
        await ends[task.id].wait()

    scene = Scene(Script("abc"), tasker, per_task=True, concurrency=2)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running == 2)
    stopping = asyncio.ensure_future(scene.runner.stop(None))
    await scene.until(lambda: scene.runner.state is RunnerState.STOPPING)
    ends["a"].set()
    await scene.until(lambda: scene.script.done == ["a"])
    assert not stopping.done()
    assert scene.script.shift.asked[-1].room == 0
    ends["b"].set()
    await stopping
    assert scene.script.done == ["a", "b"]


async def test_what_does_not_end_in_time_is_cancelled_and_released() -> None:
    cancelled: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        try:
            await for_ever(tasks)
        except asyncio.CancelledError:
            cancelled.append(tasks[0].id)
            assert tasks[0].lost
            raise

    scene = Scene(Script("a"), tasker)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    await scene.runner.stop(0.01)
    assert cancelled == ["a"]
    assert scene.script.released == ["a"]
    statistics = scene.runner.statistics()
    assert (statistics.handed, statistics.completed, statistics.failed, statistics.refused) == (1, 0, 0, 0)


async def test_what_is_completed_although_it_was_cancelled_is_finished() -> None:
    async def tasker(tasks: list[Task]) -> None:
        try:
            await for_ever(tasks)
        except asyncio.CancelledError:
            return

    scene = Scene(Script("a"), tasker)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    await scene.runner.stop(0)
    assert scene.script.done == ["a"]


async def test_who_swallows_the_cancel_is_left_behind_and_what_it_completes_then_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgconcert.tasks.engine._CLEANUP", 0.01)
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        while not goes_on.is_set():
            try:
                await goes_on.wait()
            except asyncio.CancelledError:
                pass

    scene = Scene(Script("a"), tasker)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    await scene.runner.stop(0)
    assert scene.script.released == ["a"]
    assert scene.runner.state is RunnerState.STOPPED
    goes_on.set()
    await scene.until(lambda: scene.told(TasksRefused))
    assert scene.told(TasksRefused)[0].ids == ("a",)
    assert scene.runner.statistics().refused == 1


async def test_a_thread_is_not_waited_for_longer_and_its_late_result_is_refused() -> None:
    goes_on = threading.Event()
    lost: list[bool] = []

    def tasker(tasks: list[Task]) -> None:
        goes_on.wait(30)
        lost.append(tasks[0].lost)

    scene = Scene(Script("a"), tasker)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    await scene.runner.stop(0.01)
    assert scene.script.released == ["a"]
    goes_on.set()
    await scene.until(lambda: scene.told(TasksRefused))
    assert lost == [True]
    assert scene.runner.statistics().running == 0


async def test_stop_during_an_endless_backlog() -> None:
    script = Script()

    async def tasker(tasks: list[Task]) -> None:
        script.add(*(f"{task.id}'" for task in tasks))

    script.add(*map(str, range(20)))
    scene = Scene(script, tasker, batch=5)
    await scene.runner.start()
    await scene.until(lambda: len(script.done) > 50)
    await scene.runner.stop()
    done = len(script.done)
    await asyncio.sleep(0)
    assert len(script.done) == done == scene.runner.statistics().completed
    assert len(script.tasks) == 20


async def test_tasks_of_a_turn_that_was_under_way_reach_no_tasker() -> None:
    scene = Scene(Script("a"), lambda tasks: pytest.fail("called"))
    gate = asyncio.Event()
    scene.script.prepare = lambda shift: setattr(shift, "gate", gate)
    await scene.runner.start()
    await scene.until(lambda: scene.script.shift.asked)
    stopping = asyncio.ensure_future(scene.runner.stop())
    await scene.until(lambda: scene.runner.state is RunnerState.STOPPING)
    gate.set()
    await stopping
    assert scene.script.released == ["a"]


async def test_a_source_that_does_not_answer_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgconcert.tasks.engine._CLEANUP", 0.01)
    monkeypatch.setattr("pgconcert.tasks.engine._LAST", 0.01)
    scene = Scene(Script("a"), nothing)
    scene.script.prepare = lambda shift: setattr(shift, "gate", asyncio.Event())
    await scene.runner.start()
    await scene.until(lambda: scene.script.shift.asked)

    async def no_answer(report: Any) -> Any:
        await asyncio.Event().wait()

    scene.script.shift.end = no_answer  # type: ignore[method-assign]
    await scene.runner.stop(0)
    (told,) = scene.told(RunnerFailed)
    assert told.code == "end session"
    assert "no answer within" in told.error


async def test_a_session_that_cannot_be_ended_is_told() -> None:
    scene = Scene(Script(), nothing)
    scene.script.prepare = lambda shift: setattr(shift, "end_error", Unavailable("gone"))
    await scene.runner.start()
    await scene.runner.stop()
    assert [(event.code, event.error) for event in scene.told(RunnerFailed)] == [("end session", "Unavailable: gone")]
    assert not scene.told(RunnerSessionEnded)


async def test_of_several_stops_the_first_deadline_counts_and_they_end_together() -> None:
    scene = Scene(Script("a"), for_ever)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    stops = [asyncio.ensure_future(scene.runner.stop(limit)) for limit in (None, 3600, 0.01, 3600)]
    await asyncio.gather(*stops)
    assert len(scene.script.shift.ends) == 1


async def test_a_stop_that_is_cancelled_leaves_and_the_end_goes_on() -> None:
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        await goes_on.wait()

    scene = Scene(Script("a"), tasker)
    await scene.runner.start()
    await scene.until(lambda: scene.runner.statistics().running)
    stopping = asyncio.ensure_future(scene.runner.stop())
    await scene.until(lambda: scene.runner.state is RunnerState.STOPPING)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    goes_on.set()
    await scene.until(lambda: scene.runner.state is RunnerState.STOPPED)
    assert scene.script.done == ["a"]


async def test_stop_from_inside_the_tasker_returns_and_the_end_goes_on() -> None:
    async def tasker(tasks: list[Task]) -> None:
        assert scene.runner.inside
        await scene.runner.stop()

        async def deeper() -> None:
            assert scene.runner.inside
            await scene.runner.stop()

        await asyncio.create_task(deeper())

    scene: Scene = Scene(Script("ab"), tasker, batch=1)
    await scene.runner.run()
    assert scene.script.done == ["a"]
    assert not scene.runner.inside


async def test_a_plain_tasker_is_inside_too() -> None:
    inside: list[bool] = []

    def tasker(tasks: list[Task]) -> None:
        inside.append(scene.runner.inside)

    scene = Scene(Script("a"), tasker)
    async with scene.runner:
        await scene.until(lambda: scene.script.done)
    assert inside == [True]


async def test_run_ends_with_stop() -> None:
    scene = Scene(Script("a"), nothing)
    running = asyncio.ensure_future(scene.runner.run())
    await scene.until(lambda: scene.script.done)
    await scene.runner.stop()
    await running


async def test_stop_while_it_starts() -> None:
    scene = Scene(Script("a"), nothing)
    scene.script.gate = asyncio.Event()
    starting = asyncio.ensure_future(scene.runner.start())
    ended = asyncio.ensure_future(scene.runner.ended())
    await asyncio.sleep(0.01)
    await scene.runner.stop()
    with pytest.raises(Stopped):
        await starting
    assert await ended is None
    assert scene.runner.state is RunnerState.STOPPED
    assert scene.script.shifts == []


async def test_run_is_ended_by_a_stop_while_it_starts() -> None:
    scene = Scene(Script("a"), nothing)
    scene.script.gate = asyncio.Event()
    running = asyncio.ensure_future(scene.runner.run())
    await asyncio.sleep(0.01)
    await scene.runner.stop()
    await running
