"""Runners behind a pooler, with a server that crashes and flushes late, and beside a program that locks their table.

Theory: a heartbeat never stands behind the SQL of an application, for that goes over a link of its own; and a task that
was told to be finished stays so, whatever its role says about commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator
from pgconcert.events import RunnerFailed, RunnerSessionLost, TasksRefused
from pgconcert.testing import eventually_async
from tests.faults.scenes import down, seen
from tests.faults.task_scenes import SOURCES, Ran, add, owned, tables, until_done
from tests.faults.task_tables import Kind
from tests.faults.task_worker import RUNNER
from tests.needs import need
from tests.poolers import PgBouncer
from tests.postgres.jobscenes import until_renewed
from tests.postgres.scenes import raw
from tests.servers import OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

kinds = pytest.mark.parametrize("kind", ["queue", "table"])


@pytest.fixture
def place(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own."""
    with tables(server) as url:
        yield url


@kinds
@pytest.mark.needs("pgbouncer")
async def test_through_a_pooler_in_transaction_mode(
    server: Server, place: str, kind: Kind, request: pytest.FixtureRequest
) -> None:
    """Its few server processes serve several runners, and nobody's settings or names get in the way."""
    ran = Ran()
    program = need(request.config, "pgbouncer")
    with closing(PgBouncer(program, server, place, "transaction", pool_size=2)) as pooler:
        add(place, kind, 300)
        async with AsyncExitStack() as stack:
            every = [
                await stack.enter_async_context(AsyncCoordinator(pooler.url, network_timeout=60)) for _ in range(3)
            ]
            failed = [seen(c, RunnerFailed) for c in every]
            refused = [seen(c, TasksRefused) for c in every]
            async with AsyncExitStack() as runners:
                for c in every:
                    await runners.enter_async_context(
                        c.runner(RUNNER, ran.tasker, SOURCES[kind], tick=0.2, batch=3, tasks_per_session=20)
                    )
                await until_done(place, kind)
            assert (failed, refused) == ([[]] * 3, [[]] * 3)
        assert (ran.twice, len(ran)) == ([], 300)


@kinds
@pytest.mark.parametrize("commits", ["off", "local"])
async def test_what_is_finished_stays_finished_when_the_server_crashes(
    own_server: OwnServer, place: str, kind: Kind, commits: str
) -> None:
    own_server.execute(f"alter database {conninfo_to_dict(place)['dbname']} set synchronous_commit = {commits}")
    ran = Ran()
    async with AsyncCoordinator(place, connect_timeout=5.0) as c:
        refused, lost = seen(c, TasksRefused), seen(c, RunnerSessionLost)
        async with c.runner(RUNNER, ran.tasker, SOURCES[kind], tick=0.2, batch=1, ttl=60.0) as runner:
            for number in (1, 2, 3):
                add(place, kind, 20)
                await eventually_async(lambda n=number: runner.statistics().completed == 20 * n, 40)  # type: ignore[misc]
                async with down(own_server, "immediate"):
                    pass
        assert (refused, lost, ran.twice, len(ran)) == ([], [], [], 60)


async def test_a_locked_table_of_the_application_holds_nobody_up(server: Server, place: str, unique: str) -> None:
    ran = Ran()
    async with AsyncCoordinator(place) as c:
        failed, lost = seen(c, RunnerFailed), seen(c, RunnerSessionLost)
        async with c.runner(RUNNER, ran.tasker, SOURCES["table"], tick=0.2, ttl=60.0, interval=1.0) as runner:
            session = runner.session_id
            assert session is not None
            add(place, "table", 20)
            await until_done(place, "table")
            with raw(place) as other, other.transaction():
                other.execute("insert into public.work default values")
                other.execute("lock table public.work in access exclusive mode")
                runner.wake()
                await eventually_async(lambda: failed, 30.0, what="it says that it cannot look for work")
                await until_renewed(place, session)
                async with c.job_lock(unique):
                    pass
                stopping = c.runner(f"{unique} other", ran.tasker, SOURCES["queue"])
                await stopping.start()
                await stopping.stop()
            assert {event.code for event in failed} == {"get work"}
            await until_done(place, "table")
            assert (runner.session_id, lost) == (session, [])
        assert (ran.twice, len(ran)) == ([], 21)


async def test_a_runner_stops_beside_a_locked_table(server: Server, place: str) -> None:
    """Its session is over when it has stopped, so its tasks are for others though nobody could release them."""
    started, ran = asyncio.Event(), Ran()

    async def work(tasks: object) -> None:
        started.set()
        await asyncio.Event().wait()

    async with AsyncCoordinator(place) as c, AsyncCoordinator(place) as other:
        add(place, "table", 5)
        runner = c.runner(RUNNER, work, SOURCES["table"], tick=0.2, ttl=60.0)
        await runner.start()
        await started.wait()
        session = runner.session_id
        with raw(place) as stranger, stranger.transaction():
            stranger.execute("lock table public.work in access exclusive mode")
            await runner.stop(0.1)
            ended = stranger.execute("select ended is not null from pgconcert.session where id = %s", [session])
            assert ended.fetchall() == [(True,)]
        async with other.runner(RUNNER, ran.tasker, SOURCES["table"], tick=0.2):
            await until_done(place, "table")
        assert (ran.twice, len(ran), owned(place, "table")) == ([], 5, [])
