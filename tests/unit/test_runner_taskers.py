"""What a runner makes of its tasker: all kinds of them, calls beside each other, what they answer, and how they fail.

What the runner asks of its source, and when, is tested in `test_runner.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pgconcert.events import RunnerFailed, RunnerSessionStarted, TasksBegun, TasksDone
from pgconcert.tasks.task import Task
from pgconcert.testing import eventually_async
from tests.unit.runner_scenes import Scene, Script, nothing


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
