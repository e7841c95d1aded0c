"""Runners and queues for threads, in a world of one process: work, ends, interrupts, and threads that end with them."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import pytest

from pgconcert import ConfigurationError, CoordinatorClosed, QueueTasks, SessionLost, Stopped, Task
from pgconcert.blocking import Coordinator, Runner, TaskQueue
from pgconcert.events import RunnerFailed, RunnerSessionStarted, TasksRefused
from pgconcert.memory import MemoryBackend
from pgconcert.testing import FakeSource, eventually
from tests.postgres.threads import Running

SOURCE = QueueTasks("queue")
FAR = 3600.0
SOON = 0.05


class Two(NamedTuple):
    """Two processes of one world, and a queue of theirs."""

    mine: Coordinator
    theirs: Coordinator
    queue: TaskQueue

    def emptied(self) -> None:
        """Wait until nothing is left to do."""

        def empty() -> bool:
            there = self.queue.statistics()
            return there.waiting + there.scheduled + there.assigned + there.started == 0

        eventually(empty, what="nothing is left to do")

    def free(self, count: int) -> None:
        """Show that so many tasks are there, and that nobody has any."""
        assert Counter(task.session for task in self.queue.tasks()) == ({None: count} if count else {})

    def sessions(self) -> list[int]:
        """What lives of mine."""
        return [session.id for session in self.theirs.sessions() if session.application == "mine"]


@pytest.fixture
def two() -> Iterator[Two]:
    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world, name="mine") as mine, Coordinator(world, name="theirs") as theirs:
        yield Two(mine, theirs, theirs.queue("queue"))


class Work:
    """A tasker that notes what it gets, and on which threads. With a gate it waits there until that is opened."""

    def __init__(self, *, gate: bool = False) -> None:
        self.got: list[str] = []
        self.done: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.gate = threading.Event()
        if not gate:
            self.gate.set()

    def __call__(self, tasks: list[Task]) -> None:
        self.threads.add(threading.current_thread())
        self.got += [task.id for task in tasks]
        assert self.gate.wait(30)
        self.done += [task.id for task in tasks]

    def begun(self) -> None:
        """Wait until it was called."""
        eventually(lambda: bool(self.got), what="it has begun")


def tasker_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "pgconcert-tasker"]


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


def test_run_blocks_until_stop(two: Two) -> None:
    work = Work()
    runner = two.mine.runner("runner", work, SOURCE, tick=SOON)
    running = Running(runner.run)
    two.queue.enqueue("a")
    eventually(lambda: bool(work.done))
    assert not runner.ended(0.01)
    runner.stop()
    running.result()
    assert runner.ended()
    runner.run()
    with pytest.raises(Stopped):
        runner.start()


@pytest.mark.parametrize("ended", ["before", "twice", "without a start"])
def test_stop_in_any_state(two: Two, ended: str) -> None:
    two.queue.enqueue("a")
    runner = two.mine.runner("runner", Work(), SOURCE, tick=FAR)
    if ended == "twice":
        runner.start()
        with pytest.raises(RuntimeError, match="started already"):
            runner.start()
        runner.stop()
    runner.stop()
    if ended != "without a start":
        with pytest.raises(Stopped):
            runner.start()
    assert runner.state == "stopped"
    assert two.sessions() == []


def test_stop_awaits_what_runs_and_frees_the_rest(two: Two) -> None:
    put = two.queue.enqueue_many(["a"] * 5)
    work = Work(gate=True)
    with two.mine.runner("runner", work, SOURCE, tick=SOON, batch=2) as runner:
        work.begun()
        stops = [Running(runner.stop) for _ in range(2)]
        eventually(lambda: runner.state == "stopping")
        work.gate.set()
        for stop in stops:
            stop.result()
    assert work.done == [*put[:2]]
    two.free(3)


def test_stop_leaves_behind_who_does_not_listen(two: Two) -> None:
    two.queue.enqueue_many(["a"] * 3)
    entered, go_on = threading.Event(), threading.Event()
    raised: list[bool] = []

    def work(task: Task) -> None:
        entered.set()
        assert go_on.wait(30)
        raised.append(task.lost)
        with pytest.raises(SessionLost):
            task.check()

    refused: list[TasksRefused] = []
    two.mine.events.subscribe(refused.append, TasksRefused)
    runner = two.mine.runner("runner", work, SOURCE, tick=SOON, per_task=True)
    runner.start()
    assert entered.wait(30)
    runner.stop(0)
    assert runner.state == "stopped"
    two.free(3)
    go_on.set()
    eventually(lambda: raised == [True])
    eventually(lambda: tasker_threads() == [], what="its thread ends behind it")


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

    with two.mine.runner("runner", work, SOURCE, tick=SOON, per_task=True, ttl=1.0) as runner:
        two.emptied()
        assert runner.statistics().lost_sessions == 1
    assert attempts == [1, 2]


def test_a_tasker_may_stop_its_runner_and_close_the_coordinator(two: Two) -> None:
    two.queue.enqueue_many(["a"] * 6)
    inside: list[bool] = []

    def stop(task: Task) -> None:
        inside.append(runner.inside)
        runner.stop()

    runner = two.mine.runner("runner", stop, SOURCE, tick=SOON, per_task=True)
    runner.run()
    assert inside == [True]
    assert not runner.inside
    two.free(5)

    def stop_all(task: Task) -> None:
        group.stop()

    group = two.mine.runners(two.mine.runner("runner", stop_all, SOURCE, tick=SOON, per_task=True))
    group.run()
    two.free(4)

    def close(task: Task) -> None:
        two.mine.close()

    two.mine.runner("runner", close, SOURCE, tick=SOON, per_task=True).run()
    two.mine.close()
    two.free(3)


def test_closing_stops_runners(two: Two) -> None:
    put = two.queue.enqueue_many(["a"] * 5)
    work = Work(gate=True)
    runner = two.mine.runner("runner", work, SOURCE, tick=SOON, batch=2)
    running = Running(runner.run)
    work.begun()
    closing = Running(two.mine.close)
    eventually(lambda: runner.state == "stopping")
    with pytest.raises(CoordinatorClosed):
        two.mine.runner("runner", work, SOURCE)
    two.mine.queue("other").enqueue("a tasker may go on")
    work.gate.set()
    closing.result()
    running.result()
    assert runner.state == "stopped"
    assert work.done == [*put[:2]]
    two.free(3)
    runner.stop()
    assert runner.ended()
    runner.wake()
    for use in (two.mine.queue, lambda name: two.mine.runner(name, work, SOURCE)):
        with pytest.raises(CoordinatorClosed):
            use("queue")
    with pytest.raises(CoordinatorClosed):
        two.mine.queues()


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


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_comes_out_of_run(two: Two, error: type[BaseException]) -> None:
    two.queue.enqueue("a")

    def work(tasks: list[Task]) -> None:
        raise error("of the tasker")

    runner = two.mine.runner("runner", work, SOURCE, tick=SOON)
    with pytest.raises(error, match="of the tasker"):
        runner.run()
    assert runner.state == "stopped"
    assert two.sessions() == []
    again = two.mine.runner("runner", work, SOURCE, tick=SOON)

    def block() -> None:
        with again:
            eventually(lambda: again.state == "stopped", what="the tasker has ended it")

    with pytest.raises(error, match="of the tasker"):
        block()
    with pytest.raises(error, match="of the tasker"):
        again.ended()
    group = two.mine.runners(two.mine.runner("other", work, QueueTasks("other")), two.mine.runner("a", work, SOURCE))
    with pytest.raises(error, match="of the tasker"):
        group.run()
    assert two.sessions() == []
    two.mine.lock("the engine lives").acquire(10).release()


def test_a_runner_that_is_dropped_in_its_block_is_stopped(two: Two) -> None:
    runner: Runner | None = two.mine.runner("runner", Work(), SOURCE, tick=FAR)
    assert runner is not None
    runner.__enter__()
    with pytest.warns(ResourceWarning, match="dropped without stop"):
        del runner
    eventually(lambda: two.sessions() == [], what="it was stopped")


def test_a_runner_that_was_started_goes_on_without_anybody(two: Two) -> None:
    work = Work()
    two.mine.runner("runner", work, SOURCE, tick=FAR).start()
    two.queue.enqueue("a")
    eventually(lambda: bool(work.done))
    two.mine.close()
    assert two.sessions() == []


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
