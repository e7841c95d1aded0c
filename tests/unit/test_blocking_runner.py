"""Runners and queues for threads, in a world of one process: how they start and work, and what is refused.

Their ends are tested in `test_blocking_runner_ends.py`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pgconcert import ConfigurationError, QueueTasks, Stopped, Task
from pgconcert.events import RunnerFailed, RunnerSessionStarted
from pgconcert.memory import MemoryBackend
from pgconcert.testing import FakeSource, eventually
from tests.postgres.threads import Running
from tests.unit.blocking_runner_scenes import FAR, SOON, SOURCE, Two, Work, tasker_threads, two_coordinators

two = two_coordinators


def test_it_works_while_the_block_runs(two: Two) -> None:
    put = two.queue.enqueue_many(["a"] * 25)
    work = Work()
    runner = two.mine.runner("runner", work, SOURCE, tick=FAR, batch=10)
    assert (runner.name, runner.state, runner.session_id) == ("runner", "", None)
    with runner as entered:
        assert entered is runner
        assert runner.state == "running"
        assert [runner.session_id] == two.sessions()
        two.emptied()
        eventually(lambda: runner.statistics().completed == 25)
    assert runner.state == "stopped"
    assert repr(runner).startswith("<Runner 'runner' stopped")
    assert sorted(work.done) == sorted(put)
    assert threading.current_thread() not in work.threads
    assert {thread.name for thread in work.threads} == {"pgconcert-tasker"}
    assert two.sessions() == []
    eventually(lambda: tasker_threads() == [], what="the threads have ended with the runner")


def test_new_tasks_wake_it_and_so_does_wake(two: Two) -> None:
    work = Work()
    with two.mine.runner("runner", work, SOURCE, tick=FAR) as runner:
        two.queue.enqueue("a")
        eventually(lambda: len(work.done) == 1)
        turns = runner.statistics().turns

        def looked() -> bool:
            runner.wake()
            return runner.statistics().turns > turns

        eventually(looked, what="it looks when it is woken")


def test_calls_are_as_many_as_concurrency_says(two: Two) -> None:
    two.queue.enqueue_many(["a"] * 8)
    inside = 0
    most: list[int] = []
    lock = threading.Lock()
    both = threading.Barrier(2, timeout=30)

    def work(task: Task) -> bool:
        nonlocal inside
        with lock:
            inside += 1
            most.append(inside)
        both.wait()
        with lock:
            inside -= 1
        return True

    with two.mine.runner("runner", work, SOURCE, tick=SOON, per_task=True, concurrency=2):
        two.emptied()
    assert max(most) == 2
    assert len(most) == 8


def test_what_fails_is_run_again(two: Two) -> None:
    two.queue.enqueue_many(["a"] * 3)
    failures: list[RunnerFailed] = []
    two.mine.events.subscribe(failures.append, RunnerFailed)

    def work(tasks: list[Task]) -> list[str]:
        if tasks[0].attempt == 1:
            raise ValueError("not yet")
        return [task.id for task in tasks]

    with two.mine.runner("runner", work, SOURCE, tick=SOON):
        two.emptied()
    assert "not yet" in failures[0].error


def test_a_lost_session_is_told_to_who_asks(two: Two) -> None:
    two.queue.enqueue("a")
    attempts: list[int] = []
    backend = two.mine.backend
    assert isinstance(backend, MemoryBackend)

    def work(task: Task) -> None:
        attempts.append(task.attempt)
        if len(attempts) == 1:
            backend.expire_session()
            eventually(lambda: task.lost, what="the loss is known")
            task.check()

    with two.mine.runner("runner", work, SOURCE, tick=SOON, per_task=True, ttl=60.0, interval=0.25) as runner:
        two.emptied()
        assert runner.statistics().lost_sessions == 1
    assert attempts == [1, 2]


def test_a_start_that_fails_leaves_nothing_and_may_be_tried_again(two: Two) -> None:
    source = FakeSource(["a"])
    source.fail_next("start_session", ValueError("not today"))
    work = Work()
    runner = two.mine.runner("runner", work, source, tick=SOON)
    with pytest.raises(ValueError, match="not today"):
        runner.run()
    assert runner.state == ""
    assert tasker_threads() == []
    with runner:
        eventually(lambda: source.finished == ["a"])
    assert source.sessions == ()


def test_a_plain_function_may_find_the_source(two: Two) -> None:
    two.queue.enqueue("a")
    source = FakeSource(["b"])
    found: list[Any] = [SOURCE]
    work = Work()
    with two.mine.runner("runner", work, lambda: found[0], tick=SOON):
        two.emptied()
        found[0] = source
        eventually(lambda: source.finished == ["b"])
    assert len(work.done) == 2


def test_a_group_starts_in_order_and_stops_together(two: Two) -> None:
    started: list[str] = []
    two.mine.events.subscribe(lambda event: started.append(event.runner), RunnerSessionStarted)
    work = Work()
    runners = [two.mine.runner(name, work, QueueTasks(name), tick=SOON) for name in ("a", "b")]
    two.theirs.queue("a").enqueue("x")
    two.theirs.queue("b").enqueue("y")
    with two.mine.runners(*runners) as group:
        assert group.runners == tuple(runners)
        assert started == ["a", "b"]
        eventually(lambda: len(work.done) == 2)
    assert [runner.state for runner in runners] == ["stopped", "stopped"]
    assert two.sessions() == []
    source = FakeSource()
    source.fail_next("start_session", ValueError("the second"))
    failing = two.mine.runners(
        two.mine.runner("a", work, SOURCE, tick=FAR), two.mine.runner("b", work, source, tick=FAR)
    )
    for use in (failing.start, failing.run):
        with pytest.raises((ValueError, Stopped)):
            use()
        assert two.sessions() == []
    running = Running(two.mine.runners(third := two.mine.runner("a", work, SOURCE, tick=FAR)).run)
    eventually(lambda: third.state == "running")
    third.stop()
    running.result()
    assert tasker_threads() == []
    with pytest.raises(ConfigurationError, match="a group is made of runners"):
        two.mine.runners("a")  # type: ignore[arg-type]


async def _async_tasker(tasks: list[Task]) -> None:
    raise AssertionError("it ran")


async def _async_finder() -> QueueTasks:
    raise AssertionError("it ran")


class _AsyncCall:
    async def __call__(self, tasks: list[Task]) -> None:
        raise AssertionError("it ran")


@pytest.mark.parametrize("tasker", [_async_tasker, _AsyncCall()], ids=["function", "object"])
def test_what_is_async_is_refused(two: Two, tasker: Callable[[list[Task]], None]) -> None:
    with pytest.raises(ConfigurationError, match="tasker must be a plain function"):
        two.mine.runner("runner", tasker, SOURCE)
    with pytest.raises(ConfigurationError, match="must be a plain function"):
        two.mine.runner("runner", Work(), _async_finder)


def test_a_coroutine_that_comes_out_is_an_error(two: Two) -> None:
    two.queue.enqueue("a", attempts=1)
    failures: list[RunnerFailed] = []
    two.mine.events.subscribe(failures.append, RunnerFailed)

    def wrapped(tasks: list[Task]) -> Awaitable[None]:
        return _async_tasker(tasks)

    with two.mine.runner("runner", wrapped, SOURCE, tick=SOON):
        eventually(lambda: bool(failures))
    assert "a tasker of the blocking twin returned a coroutine" in failures[0].error
    assert two.queue.statistics().dead == 1


def test_from_a_running_event_loop_it_is_refused(two: Two) -> None:
    runner = two.mine.runner("runner", Work(), SOURCE)

    async def use() -> None:
        for call in (runner.start, runner.run, runner.stop, runner.ended, two.queue.statistics):
            with pytest.raises(ConfigurationError, match="AsyncCoordinator"):
                call()

    asyncio.run(use())


def test_queues_of_threads(two: Two) -> None:
    queue = two.mine.queue(QueueTasks("queue", attempts=3))
    assert (queue.name, repr(queue)) == ("queue", "<TaskQueue 'queue'>")
    first = queue.enqueue(json=[1])
    more = queue.enqueue_many(["a", b"b"], run_in=0, attempts=7)
    assert queue.enqueue_many([]) == ()
    tasks = two.queue.tasks()
    assert [(task.id, task.attempts) for task in tasks] == [(first, 3), (more[0], 7), (more[1], 7)]
    assert two.queue.statistics().waiting == 3
    assert [info.name for info in two.mine.queues()] == ["queue"]
    assert (queue.retry(), queue.discard(first)) == (0, 0)
