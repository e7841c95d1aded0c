"""Finders and callers that nobody would wish for: regressions of defects that were found by attacks on the runner."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator, QueueTasks, Task
from pgconcert.events import RunnerFailed
from pgconcert.tasks import opening
from pgconcert.tasks.runner import RunnerState
from pgconcert.tasks.sources import Source
from pgconcert.testing import FakeSource, eventually_async
from tests.unit.runner_scenes import Scene, Script


async def nothing(tasks: list[Task]) -> None:
    """A tasker that completes what it gets."""


async def test_a_finder_that_never_says_the_same_twice_costs_a_session_per_tick(unique: str) -> None:
    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    places = itertools.cycle([QueueTasks("a"), QueueTasks("b")])
    asked = 0

    async def find() -> QueueTasks:
        nonlocal asked
        asked += 1
        return next(places)

    async with AsyncCoordinator(f"memory://{unique}") as c:
        for name in ("a", "b"):
            await c.queue(name).enqueue(name)
        runner = c.runner("w", tasker, find, tick=0.2)
        async with runner:
            await eventually_async(lambda: len(done) == 2)
            assert sorted(done) == ["a", "b"]
            assert asked == 2
            assert runner.session_id == 2


@pytest.mark.parametrize("first", ["ours", "elsewhere"])
async def test_tasks_move_between_our_store_and_elsewhere_at_every_look(unique: str, first: str) -> None:
    source = FakeSource()
    source.add({"elsewhere": b"elsewhere"})
    both: list[Source] = [QueueTasks("q"), source]
    places = itertools.cycle(both if first == "ours" else both[::-1])
    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    async with AsyncCoordinator(f"memory://{unique}") as c:
        await c.queue("q").enqueue("ours")
        async with c.runner("w", tasker, lambda: next(places), tick=0.05):
            await eventually_async(lambda: sorted(done) == ["elsewhere", "ours"])


async def test_what_was_done_is_reported_while_the_finder_fails() -> None:
    fails = asyncio.Event()

    async def tasker(tasks: list[Task]) -> None:
        if tasks[0].id == "a":
            script.finder_errors.extend([OSError("where is it?")] * 1000)
            await fails.wait()

    script = Script("a")
    scene = Scene(script, tasker, tick=0.05, concurrency=2)
    scene.runner._of.events.subscribe(lambda _: fails.set(), RunnerFailed)
    async with scene.runner:
        await scene.until(lambda: scene.runner.statistics().running == 1)
        script.add("b")
        await scene.until(lambda: script.done == ["a"])
        looks = script.looks
        await scene.until(lambda: script.looks > looks + 1)
        assert script.done == ["a"]  # and nothing is begun
        script.finder_errors.clear()
        await scene.until(lambda: script.done == ["a", "b"])
    assert len(script.shifts) == 1


async def test_a_shift_that_never_answered_is_left_when_the_tasks_are_elsewhere() -> None:
    script = Script("a")

    def prepare(shift: object) -> None:
        if not script.shifts:
            script.moves = True
            shift.errors.extend([OSError("no such table")] * 1000)  # type: ignore[attr-defined]

    script.prepare = prepare
    scene = Scene(script, nothing, tick=0.05)
    async with scene.runner:
        await scene.until(lambda: script.done == ["a"])
    assert len(script.shifts) == 2


@pytest.mark.parametrize("by", ["the application", "the finder"])
async def test_stop_does_not_wait_for_the_finder(unique: str, by: str) -> None:
    looking = asyncio.Event()
    stop: list[Callable[[], object]] = []

    async def find() -> QueueTasks:
        if stop:
            looking.set()
            if by == "the finder":
                await runner.stop(None)
            await asyncio.Event().wait()
        return QueueTasks("q")

    async with AsyncCoordinator(f"memory://{unique}") as c:
        runner = c.runner("w", nothing, find, tick=0.05)
        await runner.start()
        stop.append(runner.stop)
        await looking.wait()
        await runner.stop(None)
        assert runner.state is RunnerState.STOPPED
        assert await c.sessions() == ()


async def test_a_start_that_is_cancelled_twice_may_be_tried_again() -> None:
    script = Script("a")
    script.gate = asyncio.Event()
    scene = Scene(script, nothing)
    starting = asyncio.ensure_future(scene.runner.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert starting.cancelled()
    script.gate.set()
    await scene.until(lambda: scene.runner._task is None or scene.runner._task.done())
    assert scene.runner.state is RunnerState.NEW
    async with scene.runner:
        await scene.until(lambda: script.done == ["a"])


async def test_a_finder_that_does_not_answer_is_told(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner stands still meanwhile, though its session is renewed; so it has to be said."""
    monkeypatch.setattr(opening, "_SEARCH", 0.05)
    answers = True

    async def find() -> QueueTasks:
        if not answers:
            await asyncio.Event().wait()
        return QueueTasks("q")

    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    async with AsyncCoordinator(f"memory://{unique}") as c:
        failed: list[RunnerFailed] = []
        c.events.subscribe(failed.append, RunnerFailed)
        async with c.runner("w", tasker, find, tick=0.05):
            answers = False
            await eventually_async(lambda: len(failed) > 1)
            assert {event.code for event in failed} == {"find source"}
            assert "the function that finds the source of runner 'w' has not answered within 0.05 s" in failed[0].error
            answers = True
            await c.queue("q").enqueue("1")
            await eventually_async(lambda: done == ["1"])
