"""Runners over go-session-lock's functions: what that library promises, and what it does not keep.

Theory: the functions are those of `sharedwork.py`, and the database has no table of ours. A tick is so long that within
a test none comes but the first, unless the test wants one; what is true is read by another connection.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest

from pgconcert import AsyncCoordinator, Coordinator, FunctionTasks, Task
from pgconcert.errors import ConfigurationError
from pgconcert.events import RunnerFailed, RunnerSessionLost, RunnerSessionStarted, TasksRefused
from pgconcert.testing import eventually, eventually_async
from tests.postgres.scenes import seen, statements
from tests.postgres.sharedwork import PlainRunner, SharedWork, shared_work

TASKS = FunctionTasks("errands")
NEVER = 3600.0
OFTEN = 0.1


@pytest.fixture
def work(database: str) -> Iterator[SharedWork]:
    with shared_work(database, TASKS.schema) as made:
        yield made


@asynccontextmanager
async def coordinator(work: SharedWork) -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(work.url, name="runners") as c:
        yield c


class Tasker:
    """Notes what it gets; waits while the gate is closed; returns what `answer` makes of it."""

    def __init__(self, answer: Callable[[Sequence[Task]], Sequence[Task] | None] = lambda _: None) -> None:
        self.calls: list[list[str]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self._answer = answer

    async def __call__(self, tasks: Sequence[Task]) -> Sequence[Task] | None:
        self.calls.append([task.id for task in tasks])
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._answer(tasks)

    @property
    def seen(self) -> list[int]:
        return [int(name) for call in self.calls for name in call]


async def test_a_backlog_is_drained_within_one_tick_and_no_batch_is_empty(work: SharedWork) -> None:
    work.add(25)
    tasker = Tasker()
    async with coordinator(work) as c:
        async with c.runner("errands", tasker, TASKS, tick=NEVER, batch=10):
            await eventually_async(lambda: len(work.done()) == 25)
        assert [len(call) for call in tasker.calls] == [10, 10, 5]
        assert sorted(tasker.seen) == [*range(1, 26)]
        assert work.living() == []


async def test_an_idle_tick_is_one_call(work: SharedWork) -> None:
    tasker = Tasker()
    async with coordinator(work) as c, c.runner("errands", tasker, TASKS, tick=NEVER) as runner:
        await eventually_async(lambda: runner.statistics().turns == 1, what="the first tick is over")
        turns = runner.statistics().turns
        sent = statements(c, "tasks")
        runner.wake()
        await eventually_async(lambda: runner.statistics().turns == turns + 1)
        await eventually_async(lambda: statements(c, "tasks") - sent == 2)  # the settings, and get_work
    assert tasker.calls == []


async def test_the_cap_holds(work: SharedWork) -> None:
    work.add(10)
    tasker = Tasker()
    tasker.gate.clear()
    async with coordinator(work) as c, c.runner("errands", tasker, TASKS, tick=NEVER, tasks_per_session=3) as runner:
        await eventually_async(lambda: bool(tasker.calls))
        assert tasker.calls == [["1", "2", "3"]]
        assert work.owners() == {runner.session_id: 3, None: 7}
        tasker.gate.set()
        await eventually_async(lambda: len(work.done()) == 10)
    assert max(map(len, tasker.calls)) == 3


async def test_only_what_was_completed_is_finished_and_the_rest_comes_again(work: SharedWork) -> None:
    work.add(4)
    tasker = Tasker(lambda tasks: [task for task in tasks if int(task.id) % 2 or task.attempt > 1])
    async with coordinator(work) as c, c.runner("errands", tasker, TASKS, tick=OFTEN):
        await eventually_async(lambda: len(work.done()) == 4)
    assert tasker.calls[0] == ["1", "2", "3", "4"]
    assert sorted(tasker.seen) == [1, 2, 2, 3, 4, 4]


async def test_a_tasker_that_raises_finishes_nothing_and_is_asked_again_after_a_rest(work: SharedWork) -> None:
    work.add(2)

    def answer(tasks: Sequence[Task]) -> None:
        if tasks[0].attempt == 1:
            raise LookupError("not yet")

    tasker = Tasker(answer)
    async with coordinator(work) as c:
        failed = seen(c, RunnerFailed)
        async with c.runner("errands", tasker, TASKS, tick=OFTEN):
            await eventually_async(lambda: len(work.done()) == 2)
        assert [event.code for event in failed] == ["run tasks"]
        assert "not yet" in failed[0].error
    assert sorted(tasker.seen) == [1, 1, 2, 2]


async def test_a_payload_that_cannot_be_made_stops_nobody_else(work: SharedWork) -> None:
    work.add(3)
    asked: list[int] = []

    def make(row: object) -> int:
        number: int = row["id"]  # type: ignore[index]
        asked.append(number)
        if number == 2 and asked.count(2) == 1:
            raise LookupError("what is this?")
        return number

    payloads: list[int] = []

    def tasker(tasks: Sequence[Task]) -> None:
        payloads.extend(task.payload for task in tasks)

    async with coordinator(work) as c:
        failed = seen(c, RunnerFailed)
        async with c.runner("errands", tasker, FunctionTasks("errands", make=make), tick=OFTEN):
            await eventually_async(lambda: len(work.done()) == 3)
        assert any("what is this?" in event.error for event in failed)
    assert sorted(payloads) == [1, 2, 3]


async def test_a_session_that_is_over_cancels_the_work_and_another_begins(work: SharedWork) -> None:
    work.add(2)
    tasker = Tasker()
    tasker.gate.clear()
    async with coordinator(work) as c:
        lost, started = seen(c, RunnerSessionLost), seen(c, RunnerSessionStarted)
        # another call may begin, so the source is asked while the first is under way, and not by the heartbeat alone
        async with c.runner("errands", tasker, TASKS, tick=OFTEN, concurrency=3) as runner:
            await eventually_async(lambda: len(tasker.calls) == 2)
            first = runner.session_id
            assert first is not None
            work.expire(first)
            await eventually_async(lambda: bool(lost))
            tasker.gate.set()
            await eventually_async(lambda: len(work.done()) == 2)
            assert runner.session_id != first
        assert [(event.session, event.tasks) for event in lost] == [(first, 2)]
        assert [event.session for event in started] == [first, runner.statistics().lost_sessions + first]
    assert tasker.cancelled == 2


async def test_the_late_work_of_a_thread_is_refused_and_told(work: SharedWork) -> None:
    work.add(1)
    gate, entered, lost_seen = asyncio.Event(), asyncio.Event(), list[bool]()
    loop = asyncio.get_running_loop()

    def tasker(tasks: Sequence[Task]) -> None:
        loop.call_soon_threadsafe(entered.set)
        if tasks[0].attempt == 1 and not gate.is_set():
            asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
            lost_seen.append(tasks[0].lost)

    async with coordinator(work) as c:
        lost, refused = seen(c, RunnerSessionLost), seen(c, TasksRefused)
        async with c.runner("errands", tasker, TASKS, tick=OFTEN, concurrency=2) as runner:
            await entered.wait()
            first = runner.session_id
            assert first is not None
            other = await asyncio.to_thread(PlainRunner, work)
            assert await asyncio.to_thread(other.get_work_of, work, first) == [1]
            await eventually_async(lambda: bool(lost))
            gate.set()
            await eventually_async(lambda: bool(refused))
            assert work.done() == []
            await asyncio.to_thread(other.finish, [1])
            await asyncio.to_thread(other.close)
    assert lost_seen == [True]
    assert [(event.session, event.ids) for event in refused] == [(first, ("1",))]


async def test_stop_when_idle_ends_the_session_before_it_returns(work: SharedWork) -> None:
    tasker = Tasker()
    async with coordinator(work) as c:
        runner = c.runner("errands", tasker, TASKS, tick=NEVER)
        await runner.stop()  # before the start
        runner = c.runner("errands", tasker, TASKS, tick=NEVER)
        await runner.start()
        assert work.living() == [runner.session_id]
        await runner.stop()
        assert work.living() == []
        await runner.stop()
        assert work.execute("select count(*)::int from session") == [(1,)]
    assert tasker.calls == []


async def test_stop_waits_for_the_task_under_way_and_begins_no_other(work: SharedWork) -> None:
    work.add(3)
    tasker = Tasker()
    tasker.gate.clear()
    async with coordinator(work) as c:
        runner = c.runner("errands", tasker, TASKS, tick=OFTEN, batch=1)
        await runner.start()
        await eventually_async(lambda: bool(tasker.calls))
        stopping = asyncio.create_task(runner.stop())
        await eventually_async(lambda: runner.state == "stopping")
        tasker.gate.set()
        await stopping
        assert tasker.calls == [["1"]]
        assert work.done() == [1]
        assert work.living() == []


async def test_stop_cancels_what_takes_too_long_and_leaves_it_to_others(work: SharedWork) -> None:
    work.add(1)
    tasker = Tasker()
    tasker.gate.clear()
    async with coordinator(work) as c:
        runner = c.runner("errands", tasker, TASKS, tick=OFTEN)
        await runner.start()
        await eventually_async(lambda: bool(tasker.calls))
        await runner.stop(timeout=0)
        assert (tasker.cancelled, work.done(), work.living()) == (1, [], [])
        async with c.runner("errands", Tasker(), TASKS, tick=NEVER):
            await eventually_async(lambda: work.done() == [1])


async def test_stop_ends_an_endless_backlog(work: SharedWork) -> None:
    work.add(5)

    def answer(_: Sequence[Task]) -> None:
        work.add(5)

    tasker = Tasker(answer)
    async with coordinator(work) as c:
        runner = c.runner("errands", tasker, TASKS, tick=NEVER, batch=5)
        await runner.start()
        await eventually_async(lambda: len(tasker.calls) > 5)
        await runner.stop()
        calls = len(tasker.calls)
        assert len(work.done()) == calls * 5
        assert work.living() == []
    assert len(tasker.calls) == calls


async def test_runners_of_both_kinds_share_until_nothing_is_left(work: SharedWork) -> None:
    work.add(200)
    having: dict[int, str] = {}
    twice: list[int] = []
    by: dict[str, int] = {}

    def begin(who: str, ids: list[int]) -> None:
        twice.extend(number for number in ids if having.setdefault(number, who) != who)
        by[who] = by.get(who, 0) + len(ids)

    def ours(who: str) -> Callable[[Sequence[Task]], Awaitable[None]]:
        async def tasker(tasks: Sequence[Task]) -> None:
            begin(who, [int(task.id) for task in tasks])
            await asyncio.sleep(0.005)

        return tasker

    def theirs() -> None:
        plain.run(lambda ids, _: begin("theirs", ids))

    plain = await asyncio.to_thread(PlainRunner, work, 10)
    async with coordinator(work) as c:
        taskers = [c.runner("errands", ours(who), TASKS, tick=OFTEN, tasks_per_session=10) for who in ("a", "b")]
        async with c.runners(*taskers):
            await asyncio.to_thread(theirs)
            await eventually_async(lambda: len(work.done()) == 200)
    await asyncio.to_thread(plain.close)
    assert twice == []
    assert sum(by.values()) == 200
    assert work.living() == []


async def test_a_group_of_runners_starts_and_stops_as_one(work: SharedWork) -> None:
    work.add(4)
    tasker = Tasker()
    async with coordinator(work) as c:
        good = c.runner("errands", tasker, TASKS, tick=NEVER)
        bad = c.runner("others", tasker, FunctionTasks("nowhere"), tick=NEVER)
        with pytest.raises(ConfigurationError, match='there is no schema "nowhere"'):
            await c.runners(good, bad).start()
        assert (good.state, work.living()) == ("stopped", [])


async def test_functions_that_have_moved_to_another_schema_are_found_there(work: SharedWork) -> None:
    work.add(1)
    with shared_work(work.url, "moved") as moved:
        source = TASKS
        tasker = Tasker()
        async with coordinator(work) as c:
            lost = seen(c, RunnerSessionLost)
            async with c.runner("errands", tasker, lambda: source, tick=OFTEN):
                await eventually_async(lambda: work.done() == [1])
                stranger = await asyncio.to_thread(PlainRunner, moved)  # its number is that of our session
                moved.add(3)
                assert len(await asyncio.to_thread(stranger.get_work)) == 3
                source = FunctionTasks("moved")
                await eventually_async(lambda: len(moved.living()) == 2)
                assert moved.owners() == {stranger.session: 3}
                await asyncio.to_thread(stranger.close)
                await eventually_async(lambda: len(moved.done()) == 3)
            assert len(lost) <= 1
        assert moved.living() == []


def test_the_blocking_twin_does_the_same(work: SharedWork) -> None:
    work.add(5)
    got: list[str] = []

    def tasker(tasks: Sequence[Task]) -> None:
        got.extend(task.id for task in tasks)

    with Coordinator(work.url) as c, c.runner("errands", tasker, TASKS, tick=NEVER):
        eventually(lambda: len(work.done()) == 5)
    assert sorted(got) == ["1", "2", "3", "4", "5"]
    assert work.living() == []
