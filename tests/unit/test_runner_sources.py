"""Runners of whole coordinators on `memory://`: queues, finders, sources of the application, both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, QueueTasks, TableTasks, Task
from pgconcert.events import RunnerFailed, RunnerSessionEnded, RunnerSessionStarted
from pgconcert.store import Look
from pgconcert.tasks.runner import AsyncRunner
from pgconcert.testing import FakeSource, eventually_async
from pgconcert.watching import ask


@asynccontextmanager
async def coordinator(unique: str, engine: Literal["loop", "thread"] = "loop") -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(f"memory://{unique}", engine=engine) as c:
        yield c


def told(c: AsyncCoordinator, *kinds: Any) -> list[Any]:
    events: list[Any] = []
    c.events.subscribe(events.append, *kinds)
    return events


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_tasks_of_a_queue_are_shared_by_two_runners(unique: str, engine: Literal["loop", "thread"]) -> None:
    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    async with coordinator(unique, engine) as c, coordinator(unique) as other:
        async with c.runner("w", tasker, QueueTasks("q"), batch=3), other.runner("w", tasker, QueueTasks("q"), batch=3):
            await c.queue("q").enqueue_many(map(str, range(50)))
            await eventually_async(lambda: len(done) == 50)
            assert sorted(done, key=int) == [*map(str, range(50))]
            entries = await ask(c._holding(), Look(kind="runner"))
            assert {entry.data for entry in entries} == {'{"source":"queue q"}'}
        statistics = await c.queue("q").statistics()
        assert (statistics.waiting, statistics.started, statistics.finished) == (0, 0, 0)


@pytest.mark.parametrize("plain", [False, True])
async def test_a_finder_is_asked_at_each_tick_and_the_tasks_may_move(unique: str, plain: bool) -> None:
    where = ["one"]
    asked = 0

    def find() -> QueueTasks:
        nonlocal asked
        asked += 1
        return QueueTasks(where[0])

    async def find_too() -> QueueTasks:
        return find()

    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    async with coordinator(unique) as c:
        events = told(c, RunnerSessionStarted, RunnerSessionEnded)
        await c.queue("one").enqueue("1")
        await c.queue("two").enqueue("2")
        async with c.runner("w", tasker, find if plain else find_too, tick=0.05):
            await eventually_async(lambda: done == ["1"])
            before = asked
            await eventually_async(lambda: asked > before + 2)
            where[0] = "two"
            await eventually_async(lambda: done == ["1", "2"])
            # there it is woken, too
            await c.queue("two").enqueue("3")
            await eventually_async(lambda: done == ["1", "2", "3"])
        assert [type(event) for event in events] == [RunnerSessionStarted, RunnerSessionEnded] * 2


async def test_a_finder_that_moves_between_a_source_and_a_queue(unique: str) -> None:
    source = FakeSource(["a"])
    where: list[Any] = [source]
    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.id if task.payload != b"q" else "q" for task in tasks)

    async with coordinator(unique) as c:
        await c.queue("q").enqueue("q")
        async with c.runner("w", tasker, lambda: where[0], tick=0.05):
            await eventually_async(lambda: done == ["a"])
            where[0] = QueueTasks("q")
            await eventually_async(lambda: done == ["a", "q"])
            where[0] = source
            source.add(["b"])
            await eventually_async(lambda: done == ["a", "q", "b"])


@pytest.mark.parametrize("found", [None, "q", QueueTasks])
async def test_a_finder_that_finds_no_source(unique: str, found: Any) -> None:
    async with coordinator(unique) as c:
        runner = c.runner("w", lambda tasks: None, lambda: found)
        with pytest.raises(ConfigurationError, match="the source of runner 'w' was looked for and is"):
            await runner.start()


async def test_a_finder_that_fails_later_is_told(unique: str) -> None:
    broken = [False]

    def find() -> QueueTasks:
        if broken[0]:
            raise OSError("no directory")
        return QueueTasks("q")

    async with coordinator(unique) as c:
        events = told(c, RunnerFailed)
        async with c.runner("w", lambda tasks: None, find, tick=0.05):
            broken[0] = True
            await eventually_async(lambda: events)
            broken[0] = False
        assert (events[0].code, events[0].error) == ("find source", "OSError: no directory")


async def test_a_start_that_fails_leaves_no_session(unique: str) -> None:
    async with coordinator(unique) as c:
        runner = c.runner("w", lambda tasks: None, TableTasks("t", finish="delete"))
        with pytest.raises(ConfigurationError, match="tables"):
            await runner.start()
        assert await ask(c._holding(), Look(kind="runner")) == ()
        assert await c.sessions() == ()


async def test_a_cancel_at_any_step_of_start_leaves_no_entry(unique: str) -> None:
    async with coordinator(unique) as c:
        for step in range(40):
            runner = c.runner("w", lambda tasks: None, QueueTasks("q"))
            starting = asyncio.ensure_future(runner.start())
            for _ in range(step):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            if not starting.cancelled():
                await runner.stop()
            entries = await ask(c._holding(), Look(kind="runner"))
            assert [entry for entry in entries if entry.session is not None] == []


async def test_a_closed_coordinator_ends_its_runners(unique: str) -> None:
    running: list[AsyncRunner] = []
    async with coordinator(unique) as c:
        runner = c.runner("w", lambda tasks: None, QueueTasks("q"))
        running.append(runner)
        waits = asyncio.ensure_future(runner.run())
        await eventually_async(lambda: runner.session_id is not None)
    await waits
    assert running[0].state == "stopped"


async def test_tasks_that_are_not_due_yet_are_done_when_they_are(unique: str) -> None:
    done: list[str] = []

    async def tasker(tasks: list[Task]) -> None:
        done.extend(task.text() for task in tasks)

    async with coordinator(unique) as c:
        async with c.runner("w", tasker, QueueTasks("q"), tick=3600):
            await c.queue("q").enqueue("later", run_in=0.2)
            await eventually_async(lambda: done == ["later"])
