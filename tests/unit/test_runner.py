"""The runner over a scripted source: how it drains, reports, fails and comes back.

Its end is tested in `test_runner_stop.py`, the loss of a session in `test_runner_lost.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pgconcert.errors import ConfigurationError, KeyInvalid, SchemaMissing, Unavailable
from pgconcert.events import (
    RunnerFailed,
    RunnerSessionEnded,
    RunnerSessionStarted,
    TaskDied,
    TasksBegun,
    TasksDone,
    TasksRefused,
)
from pgconcert.tasks.runner import RunnerState
from pgconcert.tasks.task import Task
from pgconcert.testing import eventually_async
from tests.unit.runner_scenes import Scene, Script


async def nothing(_: Any) -> None:
    """Complete all."""


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


async def test_a_part_may_be_completed_and_the_rest_has_failed() -> None:
    async def tasker(tasks: list[Task]) -> list[Task | str]:
        return [tasks[0], tasks[2].id]

    scene = Scene(Script("abc"), tasker)
    async with scene.runner as runner:
        await scene.until(lambda: scene.script.failed)
        assert scene.script.done == ["a", "c"]
        assert [one[0] for one in scene.script.failed] == ["b"]
        assert 45.0 <= scene.script.failed[0][2] <= 60.0  # a tick, for the first failure
        assert runner.statistics().failed == 1
    assert not scene.told(RunnerFailed)


@pytest.mark.parametrize("plain", [False, True])
async def test_what_raises_finishes_nothing_and_rests_longer_each_time(plain: bool) -> None:
    def fail(tasks: list[Task]) -> None:
        raise ValueError("no\0good")

    async def fail_too(tasks: list[Task]) -> None:
        fail(tasks)

    script = Script("ab")
    script.tasks[1].attempt = 4
    scene = Scene(script, fail if plain else fail_too)
    async with scene.runner as runner:
        await scene.until(lambda: len(script.failed) == 2)
        assert script.done == []
        assert [(name, error) for name, error, _ in script.failed] == [
            ("a", "ValueError: no\\0good"),
            ("b", "ValueError: no\\0good"),
        ]
        rests = [retry_in for _, _, retry_in in script.failed]
        assert 45 <= rests[0] <= 60
        assert 360 <= rests[1] <= 480
        (told,) = scene.told(RunnerFailed)
        assert (told.code, told.session) == ("run tasks", 1)
        assert told.retry_in == min(rests)
        assert runner.statistics().failed == 2


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (["x"], "ValueError: the tasker returned task 'x', which was not handed to this call"),
        ([1], "TypeError: a tasker returns tasks or their ids, which are texts, not 1"),
        ("a", "TypeError: a tasker returns None for all, or an iterable of tasks or ids, not 'a'"),
        (True, "TypeError: a tasker returns None for all"),
        (7, "TypeError: a tasker returns None for all"),
    ],
)
async def test_an_answer_that_says_nothing_about_the_tasks_finishes_nothing(answer: Any, what: str) -> None:
    async def tasker(tasks: list[Task]) -> Any:
        return answer

    scene = Scene(Script("a"), tasker)
    async with scene.runner:
        await scene.until(lambda: scene.script.failed)
        assert scene.script.done == []
    (told,) = scene.told(RunnerFailed)
    assert told.error.startswith(what)


async def test_a_tasker_that_completes_nothing_does_not_spin() -> None:
    calls = 0

    async def tasker(tasks: list[Task]) -> list[Task]:
        nonlocal calls
        calls += 1
        return []

    script = Script(map(str, range(10_000)))
    scene = Scene(script, tasker, batch=1)
    async with scene.runner:
        await eventually_async(lambda: calls >= 3)
        began, before = asyncio.get_running_loop().time(), calls
        await eventually_async(lambda: calls >= before + 2)
        spent = asyncio.get_running_loop().time() - began
    # the pauses are 0.05, 0.1, 0.2, ... seconds, at least three quarters of it
    assert spent >= 0.75 * (0.1 + 0.2) * 0.9
    # failures were told at once, not after the pause
    assert len(script.failed) >= calls - 1


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


async def test_what_cannot_be_made_has_failed_and_the_others_go_on() -> None:
    got: list[Any] = []

    def make(row: Any) -> Any:
        if row == b"b":
            raise LookupError("what is b?")
        return row.decode().upper()

    async def tasker(tasks: list[Task]) -> None:
        got.extend(task.payload for task in tasks)

    script = Script("abc")
    script.tasks[2].payload = OverflowError("date is infinite")
    script.make = make
    scene = Scene(script, tasker)
    async with scene.runner:
        await scene.until(lambda: len(script.failed) == 2)
    assert got == ["A"]
    assert script.done == ["a"]
    assert [error for _, error, _ in script.failed] == [
        "LookupError: what is b?",
        "OverflowError: date is infinite",
    ]
    assert [event.error for event in scene.told(RunnerFailed)] == ["LookupError: what is b?"]


@pytest.mark.parametrize("per_task", [True, False])
async def test_a_tasker_is_not_called_when_nothing_can_be_read(per_task: bool) -> None:
    script = Script("a")
    script.tasks[0].payload = ValueError("x")
    called: list[object] = []
    scene = Scene(script, called.append, per_task=per_task)
    async with scene.runner:
        await scene.until(lambda: script.failed)
    assert not called
    assert script.failed[0][1] == "ValueError: x"


class AsyncObject:
    async def __call__(self, tasks: list[Task]) -> None:
        await asyncio.sleep(0)


def generator(tasks: list[Task]) -> Iterator[Task]:
    yield from tasks


@pytest.mark.parametrize(
    "tasker",
    [
        nothing,
        partial(nothing),
        AsyncObject(),
        lambda tasks: None,
        lambda tasks: nothing([*tasks]),
        lambda tasks: tasks[::-1],
        generator,
        lambda tasks: {task.id: 1 for task in tasks},
    ],
)
async def test_taskers_of_all_kinds(tasker: Callable[[list[Task]], Any]) -> None:
    scene = Scene(Script("abc"), tasker)
    async with scene.runner:
        await scene.until(lambda: sorted(scene.script.done) == [*"abc"])


@pytest.mark.parametrize(("answer", "done"), [(None, True), (True, True), (False, False)])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_tasker_of_one_task(answer: bool | None, done: bool, plain: bool) -> None:
    got: list[Task] = []

    def tasker(task: Task) -> bool | None:
        got.append(task)
        return answer

    async def tasker_too(task: Task) -> bool | None:
        return tasker(task)

    scene = Scene(Script("a"), tasker if plain else tasker_too, per_task=True)
    async with scene.runner:
        await scene.until(lambda: scene.script.done or scene.script.failed)
        assert bool(scene.script.done) is done
    assert [task.id for task in got] == ["a"]


async def test_calls_run_beside_each_other_and_tasks_are_spread_evenly() -> None:
    sizes: list[int] = []
    together = asyncio.Barrier(4)

    async def tasker(tasks: list[Task]) -> None:
        sizes.append(len(tasks))
        await together.wait()

    scene = Scene(Script(map(str, range(10))), tasker, concurrency=4)
    async with scene.runner:
        await scene.until(lambda: len(scene.script.done) == 10)
        assert scene.script.shift.asked[0].room == 400
    assert sizes == [3, 3, 3, 1]


async def test_the_tasks_of_a_call_cannot_be_changed_by_the_tasker() -> None:
    async def tasker(tasks: list[Task]) -> None:
        tasks.clear()

    scene = Scene(Script("ab"), tasker)
    async with scene.runner:
        await scene.until(lambda: scene.script.done == ["a", "b"])


async def test_what_the_source_refuses_is_told_and_not_counted_as_completed() -> None:
    script = Script("ab")
    script.prepare = lambda shift: shift.refuses.add("b")
    scene = Scene(script, nothing)
    async with scene.runner as runner:
        await scene.until(lambda: runner.statistics().refused)
        assert (runner.statistics().completed, runner.statistics().refused) == (1, 1)
    (told,) = scene.told(TasksRefused)
    assert (told.tasks, told.ids, told.session) == (1, ("b",), 1)


async def test_spans_of_work_are_told() -> None:
    async def tasker(tasks: list[Task]) -> list[Task]:
        if tasks[0].id == "b":
            raise ValueError("b")
        return tasks[:1]

    scene = Scene(Script("ab"), tasker, batch=1)
    async with scene.runner:
        await scene.until(lambda: len(scene.told(TasksDone)) == 2)
    begun, done = scene.told(TasksBegun), scene.told(TasksDone)
    assert [event.work for event in begun] == [event.work for event in done] == [1, 2]
    assert [(event.tasks, event.completed, event.error) for event in done] == [(1, 1, None), (1, 0, "ValueError: b")]
    assert all(event.duration > 0 for event in done)
    assert scene.told(RunnerSessionStarted)[0].duration >= 0


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
