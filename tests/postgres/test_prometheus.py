"""What Prometheus is told of real work, and of a connection that was killed.

Here live tests of ``instrument/prometheus.py`` on a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pgconcert import AsyncCoordinator, Coordinator, HoldLost, QueueTasks, Task
from pgconcert.instrument.prometheus import instrument
from pgconcert.postgres import queuewatch
from pgconcert.testing import eventually, eventually_async
from tests.postgres.scenes import Engine, both_engines, lock_pid, raw, role_pids
from tests.unit.exposition import values


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    made = CollectorRegistry()
    yield made
    assert generate_latest(made) == b"", "whoever is closed leaves nothing in the registry"


async def held_and_killed(coordinator: AsyncCoordinator, key: str, url: str) -> None:
    """Hold a lock until the server has ended the session that has it."""
    async with coordinator.lock(key):
        with raw(url) as server:
            server.execute("select pg_terminate_backend(%s)", [lock_pid(coordinator)])
        await asyncio.Event().wait()


@both_engines
async def test_work_and_a_killed_connection(
    database: str, engine: Engine, unique: str, registry: CollectorRegistry
) -> None:
    """Locks, messages and polls are counted, and so are the losses when the server ends our sessions."""
    async with (
        AsyncCoordinator(database, name="one", engine=engine) as one,
        AsyncCoordinator(database, name="two") as two,
    ):
        with instrument(one, registry), instrument(two, registry):
            async with two.subscribe(unique) as messages:
                await one.publish(unique, "hello")
                assert (await anext(messages)).text == "hello"
                fanout = two.fanout(unique, str)
                fanout.enable_recovery()
                fanout.polled(5)
                with raw(database) as server:
                    server.execute("select pg_terminate_backend(%s)", role_pids(two, "listen"))
                await eventually_async(lambda: values(registry, "two")["pgconcert_listener_outage_seconds_count"] == 1)

            async with one.lock(unique):
                found = values(registry, "one")
                assert (found["pgconcert_locks_held"], found["pgconcert_ready"]) == (1, 1)
                assert found["pgconcert_links{role=lock,state=ready}"] == 1
                assert found["pgconcert_locks_budget"] > 1
            with pytest.raises(HoldLost):
                await held_and_killed(one, unique, database)
            async with one.lock(unique):
                pass  # over another connection
            await eventually_async(lambda: values(registry, "one")["pgconcert_locks_released_total"] == 2)
            found, other = values(registry, "one"), values(registry, "two")

    assert {name: found[f"pgconcert_locks_{name}_total"] for name in ("acquired", "released", "lost", "timed_out")} == {
        "acquired": 3,
        "released": 2,
        "lost": 1,
        "timed_out": 0,
    }
    assert found["pgconcert_lock_wait_seconds_count"] == 3
    assert found["pgconcert_lock_wait_seconds_bucket{le=+Inf}"] == 3
    assert found["pgconcert_links_lost_total{role=lock}"] == 1
    assert found["pgconcert_links_opened_total{role=lock}"] == 2
    assert found["pgconcert_link_outage_seconds_count{role=lock}"] == 1
    assert found["pgconcert_events_total{event=HoldBroken}"] == 1
    assert found["pgconcert_statements_total"] > 3
    assert found["pgconcert_link_round_trip_seconds{role=lock}"] > 0
    assert found["pgconcert_messages_published_total"] == 1
    assert other["pgconcert_messages_received_total"] == 1
    assert other["pgconcert_gaps_total{reason=reconnect}"] == 1
    assert other["pgconcert_links_lost_total{role=listen}"] == 1
    assert other["pgconcert_fanout_poll_saved_total{channel=" + unique + "}"] == 5
    assert other["pgconcert_locks_acquired_total"] == 0


async def test_how_full_the_queue_is(
    database: str, unique: str, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said before it was looked at."""
    monkeypatch.setattr(queuewatch, "_SELDOM", 0.0)
    async with AsyncCoordinator(database, name="c") as c:
        with instrument(c, registry):
            assert "pgconcert_queue_usage_ratio" not in values(registry)
            await c.publish(unique, "1")
            await c.publish(unique, "2")
            await eventually_async(lambda: c.health().queue_usage is not None)
            assert 0 <= values(registry)["pgconcert_queue_usage_ratio"] < 1


async def test_runners_and_names(tables: str, registry: CollectorRegistry) -> None:
    """Tasks by what became of them, and what hangs on sessions by its name."""

    async def work(tasks: list[Task]) -> list[Task]:
        if any(task.text() == "bad" for task in tasks):
            raise ValueError("bad")
        return tasks

    async with AsyncCoordinator(tables, name="c") as c:
        with instrument(c, registry):
            await c.queue("mail").enqueue_many(["good", "good"])
            await c.queue("mail").enqueue("bad", attempts=1)
            async with c.job_lock("importer"), c.runner("mail", work, QueueTasks("mail"), tick=0.05, batch=1):
                await eventually_async(
                    lambda: "pgconcert_runner_tasks_dead_total{runner=mail}" in values(registry, "c")
                )
                await eventually_async(
                    lambda: values(registry, "c")["pgconcert_runner_tasks_completed_total{runner=mail}"] == 2
                )
                during = values(registry, "c")
            after = values(registry, "c")
    assert during["pgconcert_sessions_alive"] >= 1
    assert 0 < during["pgconcert_session_trust_seconds"] <= 40
    assert during["pgconcert_runner_tasks_running{runner=mail}"] == 0
    assert after["pgconcert_runner_tasks_handed_total{runner=mail}"] == 3
    assert after["pgconcert_runner_tasks_failed_total{runner=mail}"] == 1
    assert after["pgconcert_runner_tasks_dead_total{runner=mail}"] == 1
    assert after["pgconcert_runner_work_seconds_count{runner=mail}"] == 3
    assert after["pgconcert_runner_failures_total{code=run tasks,runner=mail}"] == 1
    assert after["pgconcert_names_taken_total{kind=job,name=importer}"] == 1
    assert after["pgconcert_names_released_total{kind=job,name=importer}"] == 1
    assert after["pgconcert_name_wait_seconds_count{kind=job}"] == 1


def test_threads_too(database: str, unique: str, registry: CollectorRegistry) -> None:
    """The blocking coordinator says the same, of a killed connection too."""
    with Coordinator(database, name="threads") as c, instrument(c, registry):
        hold = c.lock(unique).acquire()
        with raw(database) as server:
            (pid,) = [link.server_pid for link in c.health().links if link.role == "lock"]
            server.execute("select pg_terminate_backend(%s)", [pid])
        eventually(lambda: hold.lost)
        eventually(lambda: values(registry, "threads")["pgconcert_locks_lost_total"] == 1)
        found = values(registry, "threads")
    assert found["pgconcert_links_lost_total{role=lock}"] == 1
    assert found["pgconcert_locks_held"] == 0
