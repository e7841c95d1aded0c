"""What a coordinator says of runners and queues before it makes them, and how it ends with them."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from pgconcert import AsyncCoordinator, ConfigurationError, CoordinatorClosed, QueueTasks, TableTasks, Task
from pgconcert.events import Event, LinkClosed, RunnerSessionEnded
from pgconcert.testing import FakeSource, eventually_async

SOURCE = QueueTasks("queue")


async def nothing(tasks: list[Task]) -> None:
    """A tasker that completes what it gets."""


def memory(engine: str = "loop") -> AsyncCoordinator:
    return AsyncCoordinator(f"memory://{secrets.token_hex(8)}", engine="thread" if engine == "thread" else "loop")


async def test_a_backend_without_sessions_shares_nothing() -> None:
    async with AsyncCoordinator("null://") as c:
        for source in (SOURCE, FakeSource()):
            with pytest.raises(ConfigurationError, match="NullBackend has no"):
                c.runner("runner", nothing, source)
        with pytest.raises(ConfigurationError, match="NullBackend has no tasks"):
            c.queue("queue")
        with pytest.raises(ConfigurationError, match="NullBackend has no tasks"):
            await c.queues()


async def test_a_world_in_memory_has_no_tables() -> None:
    async with memory() as c:
        runner = c.runner("runner", nothing, TableTasks("orders", finish="delete"))
        with pytest.raises(ConfigurationError, match="memory"):
            await runner.start()
        assert await c.sessions() == ()


async def test_only_an_open_coordinator_shares() -> None:
    c = memory()
    for _ in range(2):
        for use in (lambda: c.runner("runner", nothing, SOURCE), lambda: c.queue("queue"), c.runners):
            with pytest.raises(CoordinatorClosed):
                use()
        await c.close()


async def test_a_group_may_be_empty() -> None:
    async with memory() as c, c.runners() as group:
        assert group.runners == ()


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_runners_end_before_what_they_stand_on(engine: str) -> None:
    c = memory(engine)
    await c.open()
    told: list[Event] = []
    c.events.subscribe(told.append)
    await c.runner("runner", nothing, SOURCE).start()
    await c.close()
    kinds = [type(event) for event in told]
    assert kinds.index(RunnerSessionEnded) < kinds.index(LinkClosed)


@pytest.mark.parametrize("engine", ["loop", "thread"])
async def test_closing_loses_patience(engine: str) -> None:
    address = f"memory://{secrets.token_hex(8)}"
    entered = asyncio.Event()
    cancelled: list[str] = []

    async def work(task: Task) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(task.id)

    async with AsyncCoordinator(address) as other:
        queue = other.queue("queue")
        put = await queue.enqueue("a")
        async with AsyncCoordinator(
            address, network_timeout=1.0, engine="thread" if engine == "thread" else "loop"
        ) as c:
            await c.runner("runner", work, SOURCE, per_task=True).start()
            await entered.wait()
        assert cancelled == [put]
        assert (await queue.statistics()).waiting == 1


async def test_a_runner_that_never_ran_holds_up_nothing() -> None:
    c = memory()
    await c.open()
    runner = c.runner("runner", nothing, SOURCE)
    closing = asyncio.create_task(c.close())
    await asyncio.sleep(0)
    with pytest.raises(CoordinatorClosed, match="closed"):
        c.lock("a")
    await closing
    assert runner.state == "stopped"


def test_an_event_loop_that_ended_takes_its_runners_along() -> None:
    """Links on the engine thread outlive it; the runner does not, and closing elsewhere does not stumble over it."""
    c = memory("thread")
    done: list[str] = []

    async def work(tasks: list[Task]) -> None:
        done.extend(task.id for task in tasks)

    async def begin() -> None:
        await c.open()
        await c.queue("queue").enqueue("a")
        await c.runner("runner", work, SOURCE).start()
        await eventually_async(lambda: bool(done))

    asyncio.run(begin())
    asyncio.run(c.close())
    with pytest.raises(CoordinatorClosed):
        c.queue("queue")
