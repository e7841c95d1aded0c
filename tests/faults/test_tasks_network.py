"""Runners behind a network that loses answers, is cut at any byte, or is silent for longer than a session lives.

Theory: while the session lives, a task that was handed out runs once, whatever is lost: a report that nobody answered
is said again, and what was started in a turn that nobody answered is recalled, though nobody had it in hand. So here
tasks are counted, and each has run once. When the session is lost, tasks are done by others, and whoever still comes
with a result is refused. A proxy stands between; the rows are looked at past it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator, AsyncRunner, Task
from pgconcert.events import RunnerSessionLost, TasksRefused
from pgconcert.testing import FaultProxy, eventually_async
from tests.faults.scenes import seen
from tests.faults.task_scenes import SOURCES, Ran, add, owned, tables, until_done
from tests.faults.task_tables import Kind
from tests.faults.task_worker import RUNNER
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

kinds = pytest.mark.parametrize("kind", ["queue", "table"])
quickly = pytest.mark.parametrize("kind", ["queue", pytest.param("table", marks=pytest.mark.long)])

LONG: Final = 60.0


@pytest.fixture
def place(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own."""
    with tables(server) as url:
        yield url


@asynccontextmanager
async def through(proxy: FaultProxy, server: Server, url: str) -> AsyncIterator[AsyncCoordinator]:
    """A coordinator that reaches the server by way of the proxy. A silence is for the test to end."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(url)), network_timeout=LONG, connect_timeout=LONG) as c:
        yield c
        proxy.cut()
        proxy.resume()


def runner_of(c: AsyncCoordinator, tasker: Any, kind: Kind, **how: Any) -> AsyncRunner:
    """A runner that looks often, and whose session lives for long."""
    options: dict[str, Any] = {"tick": 0.2, "ttl": LONG, "batch": 5} | how
    return c.runner(RUNNER, tasker, SOURCES[kind], **options)


def cut(proxy: FaultProxy) -> None:
    """End a silence by cutting the connections."""
    proxy.cut()
    proxy.resume()


@kinds
async def test_a_report_whose_answer_is_lost_is_said_again(
    server: Server, place: str, proxy: FaultProxy, kind: Kind
) -> None:
    ran, gate = Ran(), asyncio.Event()

    async def work(tasks: Sequence[Task]) -> None:
        await gate.wait()
        await ran.tasker(tasks)

    async with through(proxy, server, place) as c:
        refused, lost = seen(c, TasksRefused), seen(c, RunnerSessionLost)
        async with runner_of(c, work, kind) as runner:
            directions: list[Literal["to_client", "to_server"]] = ["to_client", "to_server", "to_client"]
            for number, direction in enumerate(directions, 1):
                gate.clear()
                add(place, kind, 5)
                await eventually_async(lambda: sum(one.started for one in owned(place, kind)) == 5)
                await eventually_async(lambda: runner.statistics().running == 5, what="the tasker has them")
                proxy.pause(direction)
                gate.set()
                if direction == "to_client":
                    await until_done(place, kind)
                await eventually_async(lambda n=number: len(ran) == 5 * n)  # type: ignore[misc]
                cut(proxy)
                await until_done(place, kind)
                await eventually_async(lambda n=number: runner.statistics().completed == 5 * n)  # type: ignore[misc]
        assert (refused, lost, ran.twice, len(ran)) == ([], [], [], 15)


@quickly
async def test_what_was_picked_up_in_a_turn_without_an_answer_is_recalled(
    server: Server, place: str, proxy: FaultProxy, kind: Kind
) -> None:
    ran, rounds, unanswered = Ran(), 0, 0
    async with through(proxy, server, place) as c:
        lost = seen(c, RunnerSessionLost)
        async with runner_of(c, ran.tasker, kind, tick=LONG) as runner:
            while unanswered < 2:
                rounds += 1
                assert rounds < 20
                proxy.pause("to_client")
                add(place, kind, 5)
                runner.wake()
                # if another turn was under way just now, its answer is the one that is lost
                with contextlib.suppress(AssertionError):
                    await eventually_async(lambda: sum(one.started for one in owned(place, kind)) == 5, 2.0)
                    unanswered += 1
                assert len(ran) == 5 * (rounds - 1)
                cut(proxy)
                await until_done(place, kind)
        assert (lost, ran.twice, len(ran)) == ([], [], 5 * rounds)


@kinds
async def test_cuts_at_any_byte_make_no_task_run_twice(
    server: Server, place: str, proxy: FaultProxy, kind: Kind
) -> None:
    ran, rounds, cuts = Ran(), 0, 13

    async def work(tasks: Sequence[Task]) -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        await ran.tasker(tasks)

    async with through(proxy, server, place) as c:
        refused, lost = seen(c, TasksRefused), seen(c, RunnerSessionLost)
        add(place, kind, 20)
        before = proxy.connections
        async with runner_of(c, work, kind, concurrency=2):
            while proxy.connections - before < cuts:  # some of them had nothing left to cut
                add(place, kind, 10)
                proxy.cut_after(random.randint(1, 3000), random.choice(["to_server", "to_client"]))
                done, rounds = len(ran), rounds + 1
                await eventually_async(lambda n=done: len(ran) > n, 40, what=f"work goes on after {rounds} cuts")  # type: ignore[misc]
            proxy.cut()
            await until_done(place, kind)
        assert (refused, lost, ran.twice, len(ran)) == ([], [], [], 20 + 10 * rounds)


@kinds
async def test_a_killed_server_process_makes_no_task_run_twice(server: Server, place: str, kind: Kind) -> None:
    ran = Ran()

    async def work(tasks: Sequence[Task]) -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        await ran.tasker(tasks)

    def kill() -> int:
        busy = server.execute(
            "select pid from pg_stat_activity where datname = %s and application_name ~ 'pgconcert-tasks$'",
            conninfo_to_dict(place)["dbname"],
        )
        return sum(server.kill_backend(pid) for (pid,) in busy)

    async with AsyncCoordinator(place) as c:
        refused, lost = seen(c, TasksRefused), seen(c, RunnerSessionLost)
        async with runner_of(c, work, kind, concurrency=2):
            for _ in range(12):
                add(place, kind, 20)
                await asyncio.sleep(random.uniform(0, 0.05))
                await eventually_async(kill, 30, what="there is one to be killed")
            await until_done(place, kind)
        assert (refused, lost, ran.twice, len(ran)) == ([], [], [], 240)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        pytest.param("queue", False, id="queue-async"),
        pytest.param("table", True, id="table-plain"),
        pytest.param("queue", True, id="queue-plain", marks=pytest.mark.long),
        pytest.param("table", False, id="table-async", marks=pytest.mark.long),
    ],
)
async def test_who_is_cut_off_for_too_long_is_refused(
    server: Server, place: str, proxy: FaultProxy, kind: Kind, plain: bool
) -> None:
    """Others have its tasks when its time is over; its taskers are cancelled, or learn of it."""
    ran, told, gate = Ran(), list[str](), asyncio.Event()

    async def work(tasks: Sequence[Task]) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    def work_plainly(tasks: Sequence[Task]) -> None:
        while not tasks[0].lost:
            time.sleep(0.01)
        told.append("lost")

    async with through(proxy, server, place) as far, AsyncCoordinator(place) as near:
        refused, lost = seen(far, TasksRefused), seen(far, RunnerSessionLost)
        async with runner_of(far, work_plainly if plain else work, kind, ttl=6.0) as runner:
            first = runner.session_id
            add(place, kind, 5)
            await eventually_async(lambda: sum(one.started for one in owned(place, kind)) == 5)
            await eventually_async(lambda: runner.statistics().running == 5)
            proxy.pause()
            async with runner_of(near, ran.tasker, kind):
                await until_done(place, kind)
                await eventually_async(lambda: told, 30, what="the tasker knows")
                await eventually_async(lambda: lost, 30, what="an event says so")
                # a thread that looks itself may have ended before
                assert (lost[0].session, lost[0].tasks) in {(first, 5), (first, 0 if plain else 5)}
            cut(proxy)
            await eventually_async(lambda: runner.session_id not in (first, None), 30, what="it has another session")
            if plain:
                await eventually_async(lambda: refused, 30, what="the late result is refused")
                assert sorted(refused[0].ids) == sorted(ran)
            assert (len(ran), ran.twice) == (5, [])
            assert runner.statistics().lost_sessions == 1
