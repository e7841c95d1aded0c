"""How runners for threads end: by `stop`, by a coordinator that is closed, by what ends a program, by being dropped.

Interrupts at every step are tested in `test_blocking_runner_interrupts.py`.
"""

from __future__ import annotations

import threading

import pytest

from pgconcert import CoordinatorClosed, QueueTasks, SessionLost, Stopped, Task
from pgconcert.blocking import Runner
from pgconcert.events import TasksRefused
from pgconcert.testing import eventually
from tests.postgres.threads import Running
from tests.unit.blocking_runner_scenes import FAR, SOON, SOURCE, Two, Work, tasker_threads, two_coordinators

two = two_coordinators


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
