"""Cases of the ends of runners: stopped, cancelled, lost, closed. How they share stands in ``sharing.py``."""

from __future__ import annotations

import asyncio
import contextlib

from ... import AsyncCoordinator, AsyncRunner, AsyncTaskQueue, CoordinatorClosed, QueueTasks, SessionLost, Stopped, Task
from ...events import RunnerSessionEnded, RunnerSessionLost, RunnerSessionStarted, TasksRefused
from ...store import EndSession
from ..leaks import eventually_async
from .desks import Desk
from .sharing import FAR, SOON, Work, emptied, filled, owners, working
from .suite import Stage, cancelled_everywhere, case, raises

SOURCE = QueueTasks("queue")


async def over(stage: Stage, runner: AsyncRunner, elsewhere: AsyncCoordinator) -> None:
    """End the session of a runner, as if its time had come."""
    assert runner.session_id is not None
    assert await Desk(stage, elsewhere).ask(EndSession(runner.session_id))


async def free(queue: AsyncTaskQueue, count: int) -> None:
    """Show that so many tasks are there, and that nobody has any."""
    there = await queue.statistics()
    assert (there.waiting, there.assigned, there.started) == (count, 0, 0)
    assert await owners(queue) == ({None: count} if count else {})
    assert [task.attempt for task in await queue.tasks()] == [0] * count


async def none_alive(coordinator: AsyncCoordinator) -> None:
    """Show that no session of this coordinator is alive."""
    mine = coordinator.identity
    assert [session for session in await coordinator.sessions() if session.identity == mine] == []


@case("tasks")
async def states_of_a_runner(stage: Stage) -> None:
    """A runner runs when ``start`` returns, and has a session that everybody sees; when ``stop`` returns that is ended,
    for good."""
    a, b = await stage.open(), await stage.open()
    told: list[object] = []
    a.events.subscribe(lambda event: told.append((type(event), event.session)), RunnerSessionStarted)
    a.events.subscribe(lambda event: told.append((type(event), event.session)), RunnerSessionEnded)
    runner = a.runner("runner", Work(), SOURCE, tick=FAR)
    assert (runner.name, runner.state, runner.session_id) == ("runner", "", None)
    await runner.start()
    session = runner.session_id
    assert runner.state == "running"
    assert session in {info.id for info in await b.sessions()}
    with raises(RuntimeError):
        await runner.start()
    await runner.stop()
    assert (runner.state, runner.session_id) == ("stopped", None)
    await none_alive(a)
    assert told == [(RunnerSessionStarted, session), (RunnerSessionEnded, session)]
    for _ in range(2):
        await runner.stop()
        with raises(Stopped):
            await runner.start()
        await runner.run()


@case("tasks")
async def stopped_before_it_was_started(stage: Stage) -> None:
    """A runner that was stopped before it was started never begins."""
    c = await stage.open()
    queue, _ = await filled(c, 1)
    runner = c.runner("runner", Work(), SOURCE)
    await runner.stop()
    assert runner.state == "stopped"
    with raises(Stopped):
        await runner.start()
    await free(queue, 1)


@case("tasks")
async def stop_awaits_what_runs(stage: Stage) -> None:
    """``stop`` hands out no new task, awaits the calls that are under way, reports what they have done, and frees the
    rest; all before it returns, to however many stop it."""
    c = await stage.open()
    queue, put = await filled(c, 9)
    work = Work(gate=True)
    runner = c.runner("runner", work, SOURCE, tick=SOON, batch=2)
    await runner.start()
    await work.has_begun()
    stops = [await stage.waiting(runner.stop()) for _ in range(2)]
    assert runner.state == "stopping"
    work.gate.set()
    await asyncio.gather(*stops)
    assert work.calls == [put[:2]]
    assert work.done == put[:2]
    await free(queue, 7)
    await none_alive(c)


@case("tasks")
async def stop_loses_patience(stage: Stage) -> None:
    """When its time is over, ``stop`` cancels what is under way; those tasks are free, and no attempt was counted."""
    c = await stage.open()
    queue, _ = await filled(c, 5)
    for timeout in (0.0, 0.05):
        work = Work(gate=True)
        runner = c.runner("runner", work, SOURCE, tick=SOON, batch=2)
        await runner.start()
        await work.has_begun()
        await runner.stop(timeout)
        assert (work.cancelled, work.done, len(work.calls)) == (1, [], 1)
        await free(queue, 5)
        await none_alive(c)


@case("tasks")
async def stop_ends_an_endless_backlog(stage: Stage) -> None:
    """``stop`` ends a runner whose tasker puts a new task there for every one that it does."""
    c = await stage.open()
    queue, _ = await filled(c, 3)
    done = 0

    async def work(tasks: list[Task]) -> None:
        nonlocal done
        await queue.enqueue_many([b""] * len(tasks))
        done += len(tasks)

    runner = c.runner("runner", work, SOURCE, tick=SOON, batch=2)
    await runner.start()
    await eventually_async(lambda: done > 20, what="it goes on and on")
    await runner.stop()
    stopped = done
    await stage.settle()
    assert done == stopped
    await free(queue, 3)


@case("tasks")
async def a_tasker_may_stop_its_runner(stage: Stage) -> None:
    """A tasker that stops its own runner does not wait for itself; what it does is completed, and no more handed
    out."""
    c = await stage.open()
    queue, _ = await filled(c, 5)
    calls = 0

    async def work(tasks: list[Task]) -> None:
        nonlocal calls
        calls += 1
        await runner.stop()

    runner = c.runner("runner", work, SOURCE, tick=SOON, batch=2)
    await runner.run()
    assert (calls, runner.state) == (1, "stopped")
    await free(queue, 3)


@case("tasks")
async def a_cancelled_run_leaves_nothing(stage: Stage) -> None:
    """Whoever cancels ``run`` cancels the calls under way; their tasks are free and the session ended when it ends."""
    c = await stage.open()
    queue, _ = await filled(c, 5)
    work = Work(gate=True)
    running = asyncio.create_task(c.runner("runner", work, SOURCE, tick=SOON, batch=2).run())
    await work.has_begun()
    running.cancel()
    with raises(asyncio.CancelledError):
        await running
    assert (work.cancelled, work.done) == (1, [])
    await free(queue, 5)
    await none_alive(c)


@case("tasks")
async def a_start_cancelled_anywhere_leaves_nothing(stage: Stage) -> None:
    """``start`` may be cancelled at each of its awaits: nothing of it goes on."""
    c = await stage.open()
    queue, _ = await filled(c, 1)
    runners: list[AsyncRunner] = []

    async def started() -> AsyncRunner:
        runner = c.runner("runner", Work(gate=True), SOURCE, tick=FAR)
        runners.append(runner)
        await runner.start()
        return runner

    async for runner in cancelled_everywhere(started):
        if runner is not None:
            await runner.stop(0)
    assert len(runners) > 2
    assert all(runner.state != "running" for runner in runners)

    async def gone() -> bool:
        mine = c.identity
        return not [session for session in await c.sessions() if session.identity == mine]

    await eventually_async(gone, 20, what="no session is left of those that were cancelled")
    work = Work()
    async with c.runner("runner", work, SOURCE, tick=SOON):
        await emptied(queue)


@case("tasks")
async def a_lost_session_is_replaced(stage: Stage) -> None:
    """When its session is over a runner cancels its calls, says so, and begins another session; the tasks are done by
    whoever has them then, as another attempt."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(a, 3)
    lost: list[RunnerSessionLost] = []
    a.events.subscribe(lost.append, RunnerSessionLost)
    attempts: list[int] = []
    cancelled: list[str] = []

    async def work(task: Task) -> None:
        attempts.append(task.attempt)
        if len(attempts) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                assert task.lost
                with raises(SessionLost, task.id):
                    task.check()
                cancelled.append(task.id)
        assert not task.lost

    async with working(a.runner("runner", work, SOURCE, tick=SOON, per_task=True, ttl=60.0, interval=0.25)) as runner:
        await eventually_async(lambda: bool(attempts), what="it has begun")
        first = runner.session_id
        await over(stage, runner, b)
        await emptied(queue)
        assert cancelled == put[:1]
        assert [(event.session, event.tasks) for event in lost] == [(first, 1)]
        assert runner.session_id not in (None, first)
        assert runner.statistics().lost_sessions == 1
    assert sorted(attempts) == [1, 1, 1, 2]


@case("tasks")
async def a_late_finish_is_refused(stage: Stage) -> None:
    """What a tasker has done after its session was lost is refused, and told, for the task was another's by then."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(a, 1)
    refused: list[TasksRefused] = []
    a.events.subscribe(refused.append, TasksRefused)
    entered, finish = asyncio.Event(), asyncio.Event()
    again = Work(gate=True)

    async def work(task: Task) -> None:
        if entered.is_set():
            await again([task])
        entered.set()
        while not finish.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await finish.wait()

    def runner(of: AsyncCoordinator) -> AsyncRunner:
        return of.runner("runner", work, SOURCE, tick=SOON, per_task=True, ttl=60.0, interval=0.25, concurrency=2)

    async with working(runner(a)) as one:
        await entered.wait()
        first = one.session_id
        async with working(runner(b)) as other:
            await over(stage, one, b)
            await again.has_begun()
            finish.set()
            await eventually_async(lambda: bool(refused), 20, what="the late one is told")
            assert [(event.session, event.ids) for event in refused] == [(first, (put[0],))]
            assert [task.state for task in await queue.tasks()] == ["started"]
            again.gate.set()
            await emptied(queue)

            def counted() -> bool:
                return one.statistics().completed + other.statistics().completed == 1

            await eventually_async(counted, 20, what="the other one counts as completed")
            assert one.statistics().refused == 1


@case("tasks", "lose")
async def a_lost_connection_loses_no_task(stage: Stage) -> None:
    """Runners survive the loss of their connection, and so does their session; every task is done once."""
    c, other = await stage.open(), await stage.open()
    queue, put = await filled(other, 30)
    done: list[str] = []
    calls = 0

    async def work(tasks: list[Task]) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            await stage.lose(c)
        done.extend(task.id for task in tasks)

    async with working(c.runner("runner", work, SOURCE, tick=SOON, batch=3)) as runner:
        session = runner.session_id
        await emptied(queue)
        assert (runner.session_id, runner.statistics().lost_sessions) == (session, 0)
    assert sorted(done) == sorted(put)


@case("tasks")
async def closing_stops_runners(stage: Stage) -> None:
    """A coordinator that is closed stops its runners first: what they do may come to its end, the rest is free."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(b, 5)
    work = Work(gate=True)
    runner = a.runner("runner", work, SOURCE, tick=SOON, batch=2)
    running = asyncio.create_task(runner.run())
    await work.has_begun()
    closing = asyncio.create_task(a.close())
    await eventually_async(lambda: runner.state == "stopping", what="it is being stopped")
    with raises(CoordinatorClosed):
        a.runner("runner", work, SOURCE)
    work.gate.set()
    await closing
    await running
    assert runner.state == "stopped"
    assert work.done == put[:2]
    await free(queue, 3)
    with raises(CoordinatorClosed):
        a.queue("queue")


@case("tasks")
async def a_tasker_may_close_the_coordinator(stage: Stage) -> None:
    """A tasker that closes its coordinator leaves at once, and what it did is completed."""
    a, b = await stage.open(), await stage.open()
    queue, put = await filled(b, 5)
    done: list[str] = []

    async def work(tasks: list[Task]) -> None:
        await a.close()
        done.extend(task.id for task in tasks)

    await a.runner("runner", work, SOURCE, tick=SOON, batch=2).run()
    await a.close()
    assert done == put[:2]
    await free(queue, 3)
