"""The runner over a scripted source: its start, its turns, its ticks and wake-ups, and sources that fail or move.

What taskers do and answer is tested in `test_runner_taskers.py`, the runner's end in `test_runner_stop.py` and
`test_runner_ends.py`, the loss of a session in `test_runner_lost.py`.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, KeyInvalid, SchemaMissing, Unavailable
from pgconcert.events import RunnerFailed, RunnerSessionEnded, TaskDied, TasksRefused
from pgconcert.tasks.runner import RunnerState
from pgconcert.tasks.task import Task
from tests.unit.runner_scenes import Scene, Script, nothing


async def test_all_is_done_in_order_and_a_tick_begins_at_once() -> None:
    seen: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        assert isinstance(tasks, list)
        seen.extend(task.id for task in tasks)

    scene = Scene(Script("abcdefg"), tasker, batch=3)
    async with scene.runner as runner:
        await scene.until(lambda: len(scene.script.done) == 7)
        assert seen == [*"abcdefg"]
        assert runner.state is RunnerState.RUNNING
        assert runner.session_id == 1
        statistics = runner.statistics()
    assert statistics.handed == statistics.completed == 7
    assert (statistics.sessions, statistics.share, statistics.session_id) == (3, 7, 1)
    assert scene.runner.state is RunnerState.STOPPED
    assert scene.runner.session_id is None
    assert [len(asked.report.finished) for asked in scene.script.shift.asked] == [0, 3, 3, 1]
    assert [kind.__name__ for kind in map(type, scene.events)].count("RunnerSessionStarted") == 1
    assert len(scene.told(RunnerSessionEnded)) == 1


async def test_a_drain_costs_one_turn_for_each_batch() -> None:
    scene = Scene(Script(map(str, range(100))), nothing, batch=10)
    async with scene.runner as runner:
        await scene.until(lambda: len(scene.script.done) == 100)
        assert runner.statistics().turns == 11
        # what is told to be left is handed out before anything new is picked up; the tick and the end pick up
        assert [asked.pick for asked in scene.script.shift.asked] == [True, *[False] * 9, True]
    assert runner.statistics().turns == 11


async def test_what_ends_while_a_turn_is_under_way_leaves_together_with_the_next_one() -> None:
    ends = {name: asyncio.Event() for name in "abcd"}

    async def tasker(task: Task) -> None:
        await ends[task.id].wait()

    scene = Scene(Script("abcd"), tasker, per_task=True, concurrency=4)
    async with scene.runner:
        await scene.until(lambda: scene.runner.statistics().running == 4)
        gate = scene.script.shift.gate = asyncio.Event()
        ends["a"].set()
        await scene.until(lambda: len(scene.script.shift.asked) == 2)
        for name in "bcd":
            ends[name].set()
        await scene.until(lambda: scene.runner.statistics().running == 0)
        gate.set()
        await scene.until(lambda: len(scene.script.done) == 4)
        reported = [[task.id for task in asked.report.finished] for asked in scene.script.shift.asked]
    assert reported[1] == ["a"]
    assert sorted(reported[2]) == ["b", "c", "d"]


async def test_an_idle_runner_asks_once_a_tick_and_a_wake_up_is_answered_at_once() -> None:
    scene = Scene(Script(), nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns == 1)
        scene.script.add("late")
        runner.wake()
        await scene.until(lambda: scene.script.done == ["late"])
        assert runner.statistics().turns == 3  # the first, the one that was woken, and the report


async def test_many_wake_ups_cost_few_turns() -> None:
    scene = Scene(Script(), nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns == 1)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(2000):
            runner.wake()
            await asyncio.sleep(0)
        spent = loop.time() - began
        assert runner.statistics().turns <= 2 + spent / 0.02


async def test_a_tick_comes_again_and_again() -> None:
    scene = Scene(Script(), nothing, tick=0.05, jitter=1.0)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns >= 5)
        assert all(asked.pick and asked.room == 100 for asked in scene.script.shift.asked)


async def test_it_ticks_while_all_calls_are_busy_and_takes_nothing_then() -> None:
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        await goes_on.wait()

    scene = Scene(Script("ab"), tasker, batch=1, tick=0.05)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns >= 4)
        assert [(asked.room, asked.pick) for asked in scene.script.shift.asked[1:4]] == [(0, True)] * 3
        goes_on.set()
        await scene.until(lambda: scene.script.done == ["a", "b"])


async def test_next_in_wakes_it_before_the_tick() -> None:
    script = Script()
    script.prepare = lambda shift: setattr(shift, "next_in", 0.01)
    scene = Scene(script, nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns >= 3)


async def test_the_tasker_is_never_called_with_nothing() -> None:
    calls: list[int] = []

    async def tasker(tasks: list[Task]) -> None:
        calls.append(len(tasks))

    scene = Scene(Script("a"), tasker, tick=0.05)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().turns >= 6)
    assert calls == [1]


async def test_a_source_that_always_fails_does_not_make_it_spin_and_keeps_what_was_done() -> None:
    script = Script("a")
    scene = Scene(script, nothing, tick=0.2)
    async with scene.runner as runner:
        script.shift.errors.extend(Unavailable("gone") for _ in range(4))
        await scene.until(lambda: script.done == ["a"])
        assert runner.statistics().turns <= 8
        told = scene.told(RunnerFailed)
        assert len(told) == 4
        assert all(event.retry_in <= 0.2 for event in told)
        assert told[0].retry_in < told[-1].retry_in
    reports = [[task.id for task in asked.report.finished] for asked in script.shift.asked]
    assert reports.count(["a"]) == 1  # the shift keeps it, and it is not given again


async def test_what_the_source_refuses_is_told_and_not_counted_as_completed() -> None:
    script = Script("ab")
    script.prepare = lambda shift: shift.refuses.add("b")
    scene = Scene(script, nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().refused)
        assert (runner.statistics().completed, runner.statistics().refused) == (1, 1)
    (told,) = scene.told(TasksRefused)
    assert (told.tasks, told.ids, told.session) == (1, ("b",), 1)


async def test_what_has_died_is_told() -> None:
    script = Script()
    scene = Scene(script, nothing)

    async def with_a_death(shift: Any, *arguments: Any, **options: Any) -> Any:
        return (await type(shift).turn(shift, *arguments, **options))._replace(died=("x",))

    script.prepare = lambda shift: setattr(shift, "turn", partial(with_a_death, shift))
    async with scene.runner:
        await scene.until(lambda: scene.told(TaskDied))
    assert scene.told(TaskDied)[0].task == "x"


@pytest.mark.parametrize("error", [Unavailable("no"), SchemaMissing("no"), ConfigurationError("no"), OSError("no")])
async def test_a_start_that_fails_raises_and_leaves_nothing_and_may_be_tried_again(error: Exception) -> None:
    script = Script("a")
    script.errors.append(error)
    scene = Scene(script, nothing)
    with pytest.raises(type(error), match="no"):
        await scene.runner.start()
    assert scene.runner.state is RunnerState.NEW
    assert script.shifts == []
    async with scene.runner:
        await scene.until(lambda: script.done)


async def test_a_runner_is_started_once() -> None:
    scene = Scene(Script(), nothing)
    async with scene.runner:
        with pytest.raises(RuntimeError, match="started already"):
            await scene.runner.start()
        assert scene.runner.state is RunnerState.RUNNING


async def test_a_finder_that_fails_is_told_and_asked_again() -> None:
    script = Script("a")
    script.finder_errors.extend([OSError("where is it?"), OSError("where is it?")])
    scene = Scene(script, nothing, tick=0.05)
    async with scene.runner:
        await scene.until(lambda: script.looks >= 3)
    assert script.done == ["a"]
    told = scene.told(RunnerFailed)
    assert [event.code for event in told] == ["find source", "find source"]


async def test_tasks_that_have_moved_are_worked_on_where_they_are_when_all_has_ended_here() -> None:
    goes_on = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        if tasks[0].id == "a":
            await goes_on.wait()

    script = Script("a")
    scene = Scene(script, tasker, tick=0.05, concurrency=2)
    async with scene.runner:
        await scene.until(lambda: scene.runner.statistics().running == 1)
        script.moves = True
        await scene.until(lambda: not script.moves)
        script.add("b")
        turns = len(script.shift.asked)
        await asyncio.sleep(0.15)
        assert len(script.shift.asked) == turns  # nothing is taken there any more
        goes_on.set()
        await scene.until(lambda: script.done == ["a", "b"])
        assert len(script.shifts) == 2
        assert [task.id for task in script.shifts[0].ends[0].finished] == ["a"]
    assert [event.session for event in scene.told(RunnerSessionEnded)] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tick": 0.01},
        {"tick": 86_401},
        {"tick": "5"},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"tasks_per_session": -1},
        {"tasks_per_session": True},
        {"batch": 0},
        {"batch": 1.5},
        {"concurrency": 0},
        {"concurrency": 10_001},
    ],
)
async def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Scene(Script(), nothing, **wrong)


async def test_names_and_functions_that_make_no_sense_are_refused() -> None:
    scene = Scene(Script(), nothing)
    runner = scene.runner

    def made(name: Any = "w", tasker: Any = nothing, source: Any = None) -> None:
        type(runner)(
            runner._of, name, tasker, source or runner._source, tick=1, jitter=0, tasks_per_session=None, batch=1,
            concurrency=1, per_task=False, timing=runner._timing,
        )  # fmt: skip

    made()
    made(source=lambda: None)
    with pytest.raises(KeyInvalid, match="the name of a runner"):
        made(name="")
    with pytest.raises(ConfigurationError, match="a tasker is a function"):
        made(tasker=7)
    with pytest.raises(ConfigurationError, match="source of a runner"):
        made(source="mail")

    async def stream(tasks: list[Task]) -> Any:
        yield tasks

    with pytest.raises(ConfigurationError, match="async generator"):
        made(tasker=stream)
