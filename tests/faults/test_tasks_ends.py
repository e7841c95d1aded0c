"""How processes with runners end: by SIGTERM, by SIGKILL, by stopping in the middle of things; and what a fork finds.

Theory: who stops releases what it has at once, so others have it though its session could live for long; who is killed
is succeeded when the time of its session is over. Nobody gets a task after it has stopped. A child of a fork has
neither tasks nor runners, and reports nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from pgconcert import AsyncCoordinator, AsyncRunner, RunnerState, Task
from pgconcert.testing import eventually, eventually_async
from tests.faults.task_scenes import SOURCES, Ran, add, left_to_do, owned, tables, until_done
from tests.faults.task_tables import Kind
from tests.faults.task_worker import PROGRAM, RUNNER, Orders
from tests.postgres.scenes import raw
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

kinds = pytest.mark.parametrize("kind", ["queue", "table"])
quickly = pytest.mark.parametrize("kind", ["queue", pytest.param("table", marks=pytest.mark.long)])
plainly = pytest.mark.parametrize("plain", [False, pytest.param(True, marks=pytest.mark.long)], ids=["async", "plain"])

LONG: Final = 600.0
LIMIT: Final = 40.0


@pytest.fixture
def place(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own."""
    with tables(server) as url:
        yield url


def living(url: str) -> list[int]:
    """The sessions that have not ended."""
    with raw(url) as look:
        return [session for (session,) in look.execute("select id from pgconcert.session where ended is null")]


@plainly
@kinds
def test_who_is_told_to_end_releases_at_once(
    place: str, kind: Kind, plain: bool, worker: Callable[..., Worker], tmp_path: Path
) -> None:
    Path(tmp_path, "shut").touch()
    orders = Orders(place, str(tmp_path), kind, plain=plain, calm=True, ttl=LONG, timeout=0.2)
    one = worker(PROGRAM, orders.text())
    one.expect("ready", LIMIT)
    add(place, kind, 100)
    eventually(lambda: [first.started for first in owned(place, kind)] == [40], LIMIT, what="it has begun")
    one.terminate()
    one.expect("done", LIMIT)
    assert one.wait() == 0
    assert owned(place, kind) == []
    assert living(place) == []
    Path(tmp_path, "shut").unlink()
    other = worker(PROGRAM, Orders(place, str(tmp_path), kind, calm=True).text())
    other.expect("ready", LIMIT)
    eventually(lambda: not left_to_do(place, kind), LIMIT, what="others do it")
    other.send("end")
    other.expect("done", LIMIT)


@quickly
def test_who_is_killed_is_succeeded(place: str, kind: Kind, worker: Callable[..., Worker], tmp_path: Path) -> None:
    """The tasks that it had are with the other when its session is over, those that it had begun too."""
    Path(tmp_path, "shut").touch()
    workers = [worker(PROGRAM, Orders(place, str(tmp_path), kind, calm=True, ttl=3.0).text()) for _ in range(2)]
    for one in workers:
        one.expect("ready", LIMIT)
    add(place, kind, 200)
    eventually(
        lambda: [one.assigned + one.started for one in owned(place, kind)] == [100, 100],
        LIMIT,
        what="their shares are fair",
    )
    workers[0].kill()

    def all_with_one() -> bool:
        return [one.assigned + one.started for one in owned(place, kind)] == [200] and len(living(place)) == 1

    eventually(all_with_one, LIMIT, what="the other has all of them")
    Path(tmp_path, "shut").unlink()
    eventually(lambda: not left_to_do(place, kind), LIMIT, what="all is done")
    workers[1].send("end")
    workers[1].expect("done", LIMIT)


def runner_of(c: AsyncCoordinator, tasker: Any, kind: Kind, **how: Any) -> AsyncRunner:
    """A runner whose session would live for long."""
    options: dict[str, Any] = {"tick": 0.2, "ttl": LONG} | how
    return c.runner(RUNNER, tasker, SOURCES[kind], **options)


@plainly
@kinds
async def test_stop_during_an_endless_backlog(place: str, kind: Kind, plain: bool) -> None:
    calls, stopping_since = 0, 0

    def count() -> None:
        nonlocal calls
        calls += 1

    async def work(tasks: Sequence[Task]) -> None:
        count()

    def work_plainly(tasks: Sequence[Task]) -> None:
        count()

    async with AsyncCoordinator(place) as c:
        add(place, kind, 3000)
        runner = runner_of(c, work_plainly if plain else work, kind, batch=1, concurrency=3)
        await runner.start()
        await eventually_async(lambda: calls > 50)
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)
        stopping_since = calls
        await stopping
        # what was handed to a thread may begin a moment later
        assert calls - stopping_since <= 3
        ended = calls
        assert runner.state is RunnerState.STOPPED
        assert (owned(place, kind), living(place)) == ([], [])
        assert left_to_do(place, kind) == 3000 - runner.statistics().completed > 0
        add(place, kind, 1)
        runner.wake()
        await asyncio.sleep(0.5)
        assert calls == ended


@kinds
async def test_stop_awaits_what_runs_and_releases_what_does_not_end(place: str, kind: Kind) -> None:
    begun, may_end, cancelled = asyncio.Event(), asyncio.Event(), list[str]()

    async def work(task: Task) -> None:
        begun.set()
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            cancelled.append(task.id)
            raise

    async with AsyncCoordinator(place) as c:
        add(place, kind, 10)
        runner = runner_of(c, work, kind, per_task=True, concurrency=2)
        await runner.start()
        await begun.wait()
        await eventually_async(lambda: runner.statistics().running == 2)
        stopping = asyncio.create_task(runner.stop())
        assert await asyncio.wait([stopping], timeout=0.3) == (set(), {stopping})
        may_end.set()
        await stopping
        assert (owned(place, kind), living(place), left_to_do(place, kind), cancelled) == ([], [], 8, [])
        may_end.clear()
        begun.clear()
        runner = runner_of(c, work, kind, per_task=True, concurrency=2)
        await runner.start()
        await begun.wait()
        await eventually_async(lambda: runner.statistics().running == 2)
        await asyncio.gather(runner.stop(0.1), runner.stop(0.1))
        await runner.stop()
        assert (owned(place, kind), living(place), left_to_do(place, kind), len(cancelled)) == ([], [], 8, 2)


@kinds
async def test_a_thread_that_goes_on_after_stop_is_not_waited_for(place: str, kind: Kind) -> None:
    """Its tasks are released, and its late result is refused."""
    may_end, ran = threading.Event(), Ran()

    def work(tasks: Sequence[Task]) -> None:
        may_end.wait()

    async with AsyncCoordinator(place) as c, AsyncCoordinator(place) as other:
        add(place, kind, 3)
        runner = runner_of(c, work, kind)
        await runner.start()
        await eventually_async(lambda: runner.statistics().running == 3)
        await runner.stop(0.1)
        assert (owned(place, kind), living(place), left_to_do(place, kind)) == ([], [], 3)
        async with runner_of(other, ran.tasker, kind):
            await until_done(place, kind)
            may_end.set()
        assert (len(ran), ran.twice) == (3, [])


FORK: Final = """
import asyncio, os, sys, traceback
from pgconcert import AsyncCoordinator, CoordinatorClosed
from tests.faults.task_scenes import SOURCES

url, kind, plain = sys.argv[1], sys.argv[2], sys.argv[3] == "plain"

def child(task):
    # What the child has and may do.
    assert task.lost, "the child has a task"
    try:
        c.runner("child", print, SOURCES[kind])
    except CoordinatorClosed as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the child may use the coordinator")

def fork(tasks):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            child(tasks[0])
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    print("forked", flush=True)

async def work(tasks):
    fork(tasks)

async def main():
    global c, runner
    async with AsyncCoordinator(url, name="forks") as c:
        async with c.runner("work", fork if plain else work, SOURCES[kind], tick=0.2, batch=1) as runner:
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        print("done", runner.statistics().completed, runner.statistics().lost_sessions, flush=True)

asyncio.run(main())
"""


@plainly
@kinds
def test_a_child_of_a_fork_has_no_tasks(place: str, kind: Kind, plain: bool, worker: Callable[..., Worker]) -> None:
    one = worker(FORK, place, kind, "plain" if plain else "async")
    one.expect("ready", LIMIT)
    add(place, kind, 3)
    for _ in range(3):
        one.expect("forked", LIMIT)
    eventually(lambda: not left_to_do(place, kind), LIMIT, what="the parent has done them")
    one.send("end")
    assert one.expect("done", LIMIT) == "3 0"
    assert one.wait() == 0
    assert (owned(place, kind), living(place)) == ([], [])
