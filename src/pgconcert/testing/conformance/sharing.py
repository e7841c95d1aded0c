"""Cases of sharing: how runners share the tasks of a queue, and what becomes of each.

What runners do when they are started, stopped and lost stands in ``quitting.py``, what queues tell in ``queueing.py``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from ... import AsyncCoordinator, AsyncRunner, AsyncTaskQueue, QueueTasks, Task
from ...events import RunnerFailed, TaskDied, TasksMoved
from ..leaks import eventually_async
from .suite import Stage, case

FAR = 3600.0
"""A tick that no case lives to see."""
SOON = 0.1
"""A tick for what is only found by looking."""


class Work:
    """A tasker that notes what it gets. With a gate it waits there until that is opened."""

    def __init__(self, *, gate: bool = False) -> None:
        self.calls: list[list[str]] = []
        self.done: list[str] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        if not gate:
            self.gate.set()

    async def __call__(self, tasks: list[Task]) -> None:
        self.calls.append([task.id for task in tasks])
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.done += [task.id for task in tasks]

    async def has_done(self, count: int) -> None:
        """Wait until so many tasks are done."""
        await eventually_async(lambda: len(self.done) == count, 20, what=f"{count} tasks are done")

    async def has_begun(self) -> None:
        """Wait until it was called."""
        await eventually_async(lambda: bool(self.calls), 20, what="it has begun")

    @property
    def got(self) -> list[str]:
        """What it was called with, in order."""
        return [one for call in self.calls for one in call]


@asynccontextmanager
async def working(runner: AsyncRunner) -> AsyncIterator[AsyncRunner]:
    """A block in which it works. An error in there stops it without patience, for those at a gate wait for ever."""
    await runner.start()
    try:
        yield runner
    except BaseException:
        await runner.stop(0)
        raise
    await runner.stop()


async def filled(coordinator: AsyncCoordinator, count: int, name: str = "queue") -> tuple[AsyncTaskQueue, list[str]]:
    """A queue with so many tasks, and their ids."""
    queue = coordinator.queue(name)
    return queue, [*await queue.enqueue_many([b"%d" % number for number in range(count)])]


async def emptied(queue: AsyncTaskQueue) -> None:
    """Wait until nothing is left to do."""

    async def empty() -> bool:
        there = await queue.statistics()
        return there.waiting + there.scheduled + there.assigned + there.started == 0

    await eventually_async(empty, 20, what=f"nothing is left to do in {queue}")


async def owners(queue: AsyncTaskQueue) -> dict[int | None, int]:
    """How many tasks each session has."""
    return dict(Counter(task.session for task in await queue.tasks()))


@case("tasks")
async def a_backlog_is_drained(stage: Stage) -> None:
    """A runner takes everything there is, batch after batch without waiting for a tick; each task is handed out once,
    in order, at most a batch at a time, and gone when it is done."""
    c = await stage.open()
    queue, put = await filled(c, 25)
    work = Work()
    async with c.runner("runner", work, QueueTasks("queue"), tick=FAR, batch=10) as runner:
        await emptied(queue)
        assert work.got == put
        assert max(map(len, work.calls)) <= 10
        assert all(work.calls)

        def counted() -> bool:
            told = runner.statistics()
            return (told.handed, told.completed, told.failed, told.refused, told.running) == (25, 25, 0, 0, 0)

        await eventually_async(counted, what="the runner counts what it has done")
    assert await queue.tasks() == ()


@case("tasks", "messages")
async def new_tasks_wake_a_runner(stage: Stage) -> None:
    """Tasks that are enqueued anywhere wake a runner that has nothing to do, long before its tick."""
    a, b = await stage.open(), await stage.open()
    work = Work()
    async with a.runner("runner", work, QueueTasks("queue"), tick=FAR) as runner:
        await eventually_async(lambda: runner.statistics().turns > 0, what="it has looked")
        await stage.settle()
        for number, coordinator in enumerate((a, b, b)):
            await coordinator.queue("queue").enqueue(str(number))
            await work.has_done(number + 1)


@case("tasks")
async def the_tick_is_the_guarantee(stage: Stage) -> None:
    """A runner that nobody wakes finds new tasks at its next tick; ``wake`` is sooner than that."""
    c = await stage.open()
    queue = c.queue("queue")
    work = Work()
    async with c.runner("runner", work, QueueTasks("queue"), tick=SOON):
        await queue.enqueue(run_in=0.3)
        await work.has_done(1)
    async with c.runner("runner", work, QueueTasks("queue"), tick=FAR) as runner:
        turns = runner.statistics().turns

        def looked() -> bool:
            runner.wake()
            return runner.statistics().turns > turns + 1

        await eventually_async(looked, what="it looks when it is woken")


@case("tasks")
async def not_before_it_is_due(stage: Stage) -> None:
    """A task for later is handed out when its time has come, though the tick is far, and not before."""
    c = await stage.open()
    queue = c.queue("queue")
    at = datetime.now(UTC) + timedelta(days=1)
    await queue.enqueue("tomorrow", run_at=at)
    soon = await queue.enqueue("soon", run_in=0.3)
    past = await queue.enqueue("past", run_at=at - timedelta(days=30))
    work = Work()
    async with c.runner("runner", work, QueueTasks("queue"), tick=FAR):
        await work.has_done(2)
    assert work.done == [past, soon]
    (left,) = await queue.tasks()
    assert (left.state, left.payload) == ("scheduled", b"tomorrow")
    assert left.run_at is not None
    assert abs(left.run_at - at.timestamp()) < 0.001


@case("tasks")
async def every_runner_has_its_share(stage: Stage) -> None:
    """Who comes later gets its share of what others have and have not begun; what is begun stays where it is."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(a, 10)
    moved: list[TasksMoved] = []
    b.events.subscribe(moved.append, TasksMoved)
    first, second = Work(gate=True), Work(gate=True)
    source = QueueTasks("queue")
    async with working(a.runner("runner", first, source, tick=SOON, batch=1)) as one:
        await eventually_async(lambda: first.got == put[:1], what="the first has begun one")
        async with working(b.runner("runner", second, source, tick=SOON, batch=1)) as other:

            async def fair() -> bool:
                return await owners(queue) == {one.session_id: 5, other.session_id: 5}

            await eventually_async(fair, 20, what="each has five")
            await second.has_begun()
            assert moved
            assert len(second.got) == 1
            assert put[0] not in second.got
            assert (other.statistics().sessions, other.statistics().share) == (2, 5)
            first.gate.set()
            second.gate.set()
            await emptied(queue)
    assert sorted(first.done + second.done) == sorted(put)


@case("tasks")
async def a_share_returns_with_its_runner(stage: Stage) -> None:
    """What a runner had that was stopped is for the others, who do it all."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(a, 9)
    kept, work = Work(gate=True), Work()
    one = a.runner("runner", kept, QueueTasks("queue"), tick=SOON, batch=2)
    await one.start()
    await kept.has_begun()
    async with b.runner("runner", work, QueueTasks("queue"), tick=SOON):
        await one.stop(0)
        await emptied(queue)
    assert sorted(work.done) == sorted(put)
    assert (kept.done, kept.cancelled) == ([], 1)


@case("tasks")
async def nobody_has_more_than_its_cap(stage: Stage) -> None:
    """With ``tasks_per_session`` a runner never has more, and does them all; with 0 it does none."""
    c = await stage.open()
    queue, put = await filled(c, 10)
    most: list[int] = []
    done: list[str] = []

    async def work(tasks: list[Task]) -> None:
        mine = await owners(queue)
        most.append(mine.get(runner.session_id, 0))
        done.extend(task.id for task in tasks)

    source = QueueTasks("queue")
    async with c.runner("runner", Work(), source, tick=SOON, tasks_per_session=0) as idle:
        await eventually_async(lambda: idle.statistics().turns > 2, what="it looks again and again")
        assert await owners(queue) == {None: 10}
    async with c.runner("runner", work, source, tick=SOON, tasks_per_session=3, batch=2) as runner:
        await emptied(queue)
    assert sorted(done) == sorted(put)
    assert 0 < max(most) <= 3


@case("tasks")
async def a_part_may_be_completed(stage: Stage) -> None:
    """What the tasker returns, tasks or ids, is done; the rest is run again later, as another attempt."""
    c = await stage.open()
    queue, put = await filled(c, 6)
    attempts: Counter[str] = Counter()

    async def work(tasks: list[Task]) -> Iterable[Task | str]:
        for task in tasks:
            attempts[task.id] += 1
            assert task.attempt == attempts[task.id]
        return [task if number % 4 else task.id for number, task in enumerate(tasks) if number % 2 == 0]

    async with c.runner("runner", work, QueueTasks("queue"), tick=SOON) as runner:
        await emptied(queue)
        await eventually_async(lambda: runner.statistics().completed == 6, what="all are completed")
        assert runner.statistics().failed > 0
    assert sorted(attempts) == sorted(put)


@case("tasks")
async def one_call_for_each_task(stage: Stage) -> None:
    """With ``per_task`` the tasker gets one task: ``None`` and ``True`` complete it, ``False`` does not. As many calls
    as ``concurrency`` says are under way at a time, of coroutines and of functions in threads."""
    c = await stage.open()
    queue, _ = await filled(c, 6)
    inside = most = 0
    done: list[str] = []
    met = asyncio.Event()

    async def work(task: Task) -> bool | None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 2:
            met.set()
        await met.wait()
        inside -= 1
        if task.attempt == 1 and task.text() == "3":
            return False
        done.append(task.text())
        return None if task.text() == "4" else True

    def plain(task: Task) -> None:
        done.append(task.text())

    async with working(c.runner("runner", work, QueueTasks("queue"), tick=SOON, per_task=True, concurrency=2)):
        await emptied(queue)
    assert most == 2
    assert sorted(done) == ["0", "1", "2", "3", "4", "5"]
    queue, _ = await filled(c, 6)
    async with c.runner("runner", plain, QueueTasks("queue"), tick=SOON, per_task=True, concurrency=3):
        await emptied(queue)
    assert sorted(done) == sorted("001122334455")


@case("tasks")
async def what_fails_is_run_again(stage: Stage) -> None:
    """If the tasker raises, nothing of that call is done; its tasks are run again, and the error is told."""
    c = await stage.open()
    queue, put = await filled(c, 3)
    failures: list[RunnerFailed] = []
    c.events.subscribe(failures.append, RunnerFailed)
    tries: Counter[str] = Counter()

    async def work(tasks: list[Task]) -> None:
        tries.update(task.id for task in tasks)
        if min(task.attempt for task in tasks) < 3:
            raise ValueError("not yet")

    async with c.runner("runner", work, QueueTasks("queue"), tick=SOON) as runner:
        await emptied(queue)
        await eventually_async(lambda: runner.statistics().completed == 3, what="all are completed")
    assert sorted(tries) == sorted(put)
    assert min(tries.values()) >= 3
    assert {failure.code for failure in failures} == {"run tasks"}
    assert "not yet" in failures[0].error


@case("tasks")
async def what_fails_too_often_is_dead(stage: Stage) -> None:
    """When the attempts of a task are used up it is dead: kept with its error, told, run again only on request."""
    c = await stage.open()
    queue = c.queue(QueueTasks("queue", attempts=2))
    first, second = await queue.enqueue("a"), await queue.enqueue("b", attempts=1)
    died: list[str] = []
    c.events.subscribe(lambda event: died.append(event.task), TaskDied)
    healed = False

    async def work(task: Task) -> None:
        if not healed:
            raise ValueError("broken")

    async with c.runner("runner", work, QueueTasks("queue"), tick=SOON, per_task=True):
        await eventually_async(lambda: len(died) == 2, 20, what="both are dead")
        assert died == [second, first]
        dead = {task.id: task for task in await queue.tasks("dead")}
        assert {name: (task.attempt, task.attempts) for name, task in dead.items()} == {first: (2, 2), second: (1, 1)}
        assert "broken" in (dead[first].error or "")
        assert await queue.tasks("waiting") == ()
        healed = True
        assert await queue.retry(first) == 1
        await emptied(queue)
    assert [task.id for task in await queue.tasks()] == [second]
    assert (await queue.discard(first), await queue.discard(), await queue.discard()) == (0, 1, 0)
