"""How a runner ends without `stop`: by a cancel, by what ends a program, by the end of its loop; and groups.

Ends by `stop` are tested in `test_runner_stop.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, CoordinatorClosed, Unavailable
from pgconcert.events import RunnerFailed
from pgconcert.tasks.group import AsyncRunnerGroup
from pgconcert.tasks.runner import AsyncRunner, RunnerState
from pgconcert.tasks.task import Task
from tests.unit.runner_scenes import Scene, Script, for_ever, nothing


async def test_run_that_is_cancelled_has_ended_the_session_before_it_leaves() -> None:
    scene = Scene(Script("a"), for_ever)
    running = asyncio.ensure_future(scene.runner.run())
    await scene.until(lambda: scene.runner.statistics().running)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.script.released == ["a"]
    assert len(scene.script.shift.ends) == 1


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
    (live,) = [one for one in gc.get_objects() if id(one) == number and isinstance(one, AsyncRunner)]
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
