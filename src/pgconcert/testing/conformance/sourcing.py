"""Cases of several runners together, in groups, and of where their tasks come from."""

from __future__ import annotations

import asyncio

from ... import AsyncRunner, QueueTasks
from ...events import RunnerSessionStarted
from ..fakesource import FakeSource
from ..leaks import eventually_async
from .quitting import none_alive
from .sharing import FAR, SOON, Work, emptied, filled, working
from .suite import Stage, case, raises


@case("tasks")
async def a_group_starts_in_order_and_stops_together(stage: Stage) -> None:
    """A group starts its runners one after the other and stops them all; if one cannot start, none is left running."""
    c = await stage.open()
    started: list[str] = []
    c.events.subscribe(lambda event: started.append(event.runner), RunnerSessionStarted)
    queues = [await filled(c, 3, name) for name in ("a", "b", "c")]
    work = Work()
    group = c.runners(*(c.runner(name, work, QueueTasks(name), tick=SOON) for name in ("a", "b", "c")))
    async with group:
        assert started == ["a", "b", "c"]
        for queue, _ in queues:
            await emptied(queue)
    assert len(work.done) == 9
    await none_alive(c)
    source = FakeSource()
    source.fail_next("start_session", ValueError("the third"))
    runners = [
        *(c.runner(name, Work(), QueueTasks(name), tick=FAR) for name in ("a", "b")),
        c.runner("third", Work(), source, tick=FAR),
        c.runner("fourth", Work(), QueueTasks("c"), tick=FAR),
    ]
    with raises(ValueError, "the third"):
        await c.runners(*runners).start()
    assert [runner.state == "running" for runner in runners] == [False] * 4
    assert started == ["a", "b", "c", "a", "b"]
    await none_alive(c)


@case("tasks")
async def a_group_runs_until_it_is_stopped(stage: Stage) -> None:
    """``run`` of a group ends when all its runners have ended; cancelled, it stops them."""
    c = await stage.open()
    for cancelled in (False, True):
        runners = [c.runner(name, Work(), QueueTasks(name), tick=FAR) for name in ("a", "b")]
        group = c.runners(*runners)
        running = asyncio.create_task(group.run())

        def all_run(runners: list[AsyncRunner] = runners) -> bool:
            return all(runner.state == "running" for runner in runners)

        await eventually_async(all_run, 20, what="all run")
        if cancelled:
            running.cancel()
            with raises(asyncio.CancelledError):
                await running
        else:
            await group.stop()
            await running
        assert [runner.state for runner in runners] == ["stopped", "stopped"]
        await none_alive(c)


@case("sessions")
async def a_source_of_ones_own(stage: Stage) -> None:
    """Tasks of a ``TaskSource`` are shared, done and reported as those of a queue; its session is ended in the end."""
    a, b = await stage.open(), await stage.open()
    source = FakeSource({f"{number}": number for number in range(10)})
    first, second = Work(gate=True), Work(gate=True)
    async with working(a.runner("runner", first, source, tick=SOON, tasks_per_session=4, batch=1)) as one:
        await eventually_async(lambda: first.got == ["0"], what="the first has begun")
        assert one.session_id in source.sessions
        async with working(b.runner("runner", second, source, tick=SOON, batch=1)) as other:
            await second.has_begun()
            assert one.session_id is not None
            assert other.session_id is not None
            assert len(source.held(one.session_id)) == 4
            assert len(source.held(other.session_id)) == 5
            first.gate.set()
            second.gate.set()
            await eventually_async(lambda: not source.outstanding, 20, what="all is done")
    assert sorted(first.done + second.done) == sorted(source.finished)
    assert source.refused == []
    assert source.sessions == ()


@case("tasks")
async def a_source_may_move(stage: Stage) -> None:
    """A function that finds the source is asked again and again; what it finds is used from then on."""
    c = await stage.open()
    queues = [await filled(c, 3, name) for name in ("a", "b", "c")]
    fake = FakeSource(["x"])
    now: list[object] = [QueueTasks("a")]
    work = Work()

    async def find() -> object:
        return now[0]

    def plain() -> object:
        return now[0]

    async with c.runner("runner", work, find, tick=SOON):  # type: ignore[arg-type]
        await emptied(queues[0][0])
        now[0] = QueueTasks("b")
        await emptied(queues[1][0])
        now[0] = fake
        await eventually_async(lambda: fake.finished == ["x"], 20, what="it has found the third")
        assert fake.sessions
    assert fake.sessions == ()
    now[0] = QueueTasks("c")
    async with c.runner("runner", work, plain, tick=SOON):  # type: ignore[arg-type]
        await emptied(queues[2][0])
    assert len(work.done) == 10
    await none_alive(c)
