"""How a runner ends: by `stop`, by a cancel, by what ends a program, by the end of its loop; and groups of runners."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, CoordinatorClosed, Stopped, Unavailable
from pgconcert.events import RunnerFailed, RunnerSessionEnded, TasksRefused
from pgconcert.tasks.group import AsyncRunnerGroup
from pgconcert.tasks.runner import AsyncRunner, RunnerState
from pgconcert.tasks.task import Task
from tests.unit.runner_scenes import Scene, Script


async def nothing(_: Any) -> None:
    """Complete all."""


async def for_ever(_: Any) -> None:
    await asyncio.Event().wait()


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
        goes_on.wait(10)
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


async def test_run_that_is_cancelled_has_ended_the_session_before_it_leaves() -> None:
    scene = Scene(Script("a"), for_ever)
    running = asyncio.ensure_future(scene.runner.run())
    await scene.until(lambda: scene.runner.statistics().running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.script.released == ["a"]
    assert len(scene.script.shift.ends) == 1


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


async def test_a_start_that_is_cancelled_leaves_nothing_and_may_be_tried_again() -> None:
    scene = Scene(Script("a"), nothing)
    scene.script.gate = asyncio.Event()
    starting = asyncio.ensure_future(scene.runner.start())
    await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert scene.runner.state is RunnerState.NEW
    scene.script.gate.set()
    async with scene.runner:
        await scene.until(lambda: scene.script.done)


async def test_a_cancel_at_any_step_of_start_leaves_nothing() -> None:
    for step in range(12):
        scene = Scene(Script("a"), nothing)
        starting = asyncio.ensure_future(scene.runner.start())
        for _ in range(step):
            await asyncio.sleep(0)
        starting.cancel()
        try:
            await starting
        except asyncio.CancelledError:
            assert scene.runner.state is RunnerState.NEW
            assert all(shift.ends for shift in scene.script.shifts)
            assert scene.script.done == [] or scene.script.shifts
        else:
            await scene.runner.stop()
        assert len(asyncio.all_tasks()) == 1


async def test_a_cancel_at_any_step_of_run_ends_the_session() -> None:
    for step in range(60):
        scene = Scene(Script("abc"), nothing, batch=1)
        running = asyncio.ensure_future(scene.runner.run())
        for _ in range(step):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert all(len(shift.ends) == 1 for shift in scene.script.shifts)
        left = [task.id for task in scene.script.tasks]
        assert sorted(scene.script.done + left) == ["a", "b", "c"]
        assert len(asyncio.all_tasks()) == 1


def test_the_end_of_a_loop_ends_the_session() -> None:
    scenes: list[Scene] = []

    async def main() -> None:
        scene = Scene(Script("ab"), for_ever, batch=1, concurrency=2)
        scenes.append(scene)
        await scene.runner.start()
        await scene.until(lambda: scene.runner.statistics().running == 2)

    asyncio.run(main())
    (scene,) = scenes
    assert sorted(scene.script.released) == ["a", "b"]
    assert len(scene.script.shift.ends) == 1
    assert scene.runner.state is RunnerState.STOPPED


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt("x"), SystemExit(3)])
def test_what_ends_a_program_passes_through_run(error: BaseException, plain: bool) -> None:
    scenes: list[Scene] = []

    def fail(task: Task) -> None:
        if task.id == "b":
            raise error

    async def fail_too(task: Task) -> None:
        await asyncio.sleep(0)
        fail(task)

    async def main() -> None:
        scene = Scene(Script("abc"), fail if plain else fail_too, per_task=True)
        scenes.append(scene)
        await scene.runner.run()

    with pytest.raises(type(error)):
        asyncio.run(main())
    (scene,) = scenes
    assert scene.script.done == ["a"]
    assert [name for name, _, _ in scene.script.failed] == ["b"]
    assert [task.id for task in scene.script.tasks] == ["c"]
    assert scene.runner.state is RunnerState.STOPPED


def test_what_ends_a_program_ends_the_loop_if_nobody_waits() -> None:
    async def tasker(tasks: list[Task]) -> None:
        raise SystemExit(4)

    async def main() -> None:
        scene = Scene(Script("a"), tasker)
        await scene.runner.start()
        await asyncio.Event().wait()

    with pytest.raises(SystemExit, match="4"):
        asyncio.run(main())


async def test_a_coordinator_that_is_closed_ends_it() -> None:
    scene = Scene(Script("a"), nothing)
    scene.script.prepare = lambda shift: shift.errors.append(CoordinatorClosed("closed"))
    await scene.runner.run()
    assert scene.runner.state is RunnerState.STOPPED
    assert not scene.told(RunnerFailed)


async def test_a_dropped_runner_goes_on() -> None:
    import gc

    scene = Scene(Script(), nothing)
    await scene.runner.start()
    runner, events, script = scene.runner, scene.events, scene.script
    number = id(runner)
    del scene, runner
    gc.collect()
    (live,) = [one for one in gc.get_objects() if isinstance(one, AsyncRunner) and id(one) == number]
    assert live.state is RunnerState.RUNNING
    await live.stop()
    assert events
    assert script.shift.ends


# groups


def scenes(count: int, tasker: Any = nothing) -> list[Scene]:
    return [Scene(Script("a"), tasker) for _ in range(count)]


async def test_a_group_starts_in_order_and_stops_together() -> None:
    order: list[int] = []
    made = scenes(3)
    for number, scene in enumerate(made):
        scene.script.prepare = lambda _, number=number: order.append(number)  # type: ignore[misc]
    group = AsyncRunnerGroup(*(scene.runner for scene in made))
    async with group:
        assert order == [0, 1, 2]
        assert {runner.state for runner in group.runners} == {RunnerState.RUNNING}
    assert {runner.state for runner in group.runners} == {RunnerState.STOPPED}
    await group.stop()


async def test_a_failing_start_stops_those_that_run() -> None:
    made = scenes(3)
    made[1].script.errors.append(Unavailable("no"))
    group = AsyncRunnerGroup(*(scene.runner for scene in made))
    with pytest.raises(Unavailable, match="no"):
        await group.start()
    assert [runner.state for runner in group.runners] == [RunnerState.STOPPED, RunnerState.NEW, RunnerState.NEW]
    assert len(made[0].script.shift.ends) == 1
    assert made[2].script.shifts == []


async def test_a_group_runs_until_all_are_stopped() -> None:
    made = scenes(2)
    group = AsyncRunnerGroup(*(scene.runner for scene in made))
    running = asyncio.ensure_future(group.run())
    await made[1].until(lambda: made[1].script.done)
    await made[0].runner.stop()
    await asyncio.sleep(0.01)
    assert not running.done()
    await group.stop()
    await running


async def test_a_group_that_is_cancelled_stops_all() -> None:
    made = scenes(2, for_ever)
    group = AsyncRunnerGroup(*(scene.runner for scene in made))
    running = asyncio.ensure_future(group.run())
    await made[1].until(lambda: all(scene.runner.statistics().running for scene in made))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [scene.script.released for scene in made] == [["a"], ["a"]]


def test_what_ends_a_program_stops_the_group() -> None:
    made: list[Scene] = []

    async def fail(tasks: list[Task]) -> None:
        raise SystemExit(5)

    async def main() -> None:
        made.extend([Scene(Script("a"), for_ever), Scene(Script("a"), fail)])
        await AsyncRunnerGroup(*(scene.runner for scene in made)).run()

    with pytest.raises(SystemExit, match="5"):
        asyncio.run(main())
    assert made[0].script.released == ["a"]


async def test_a_group_is_made_of_runners() -> None:
    (scene,) = scenes(1)
    with pytest.raises(ConfigurationError, match="is none"):
        AsyncRunnerGroup(scene.runner, "w")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="once"):
        AsyncRunnerGroup(scene.runner, scene.runner)
    await AsyncRunnerGroup().run()
