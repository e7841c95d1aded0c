"""Traces across two coordinators and a server, and the spans of runners and of a connection that was killed.

Here live tests of ``instrument/opentelemetry.py`` on a server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from opentelemetry.trace import StatusCode

from pgconcert import AsyncCoordinator, Message, QueueTasks, Task, transaction
from pgconcert.instrument.opentelemetry import carry, headers, instrument, publishing, traced
from pgconcert.testing import eventually_async
from tests.postgres.scenes import Engine, both_engines, lock_pid, raw
from tests.unit.telemetry import Telemetry, about, place


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.close()
    made.check()


@both_engines
async def test_a_trace_goes_on_in_another_process(
    database: str, engine: Engine, unique: str, telemetry: Telemetry
) -> None:
    """From the one who publishes, through the server, to the handler of another, and from there to a third."""
    heard: asyncio.Queue[Message] = asyncio.Queue()
    provider = telemetry.tracer_provider
    async with (
        AsyncCoordinator(database, name="one", engine=engine) as one,
        AsyncCoordinator(database, name="two", engine=engine) as two,
    ):

        async def forward(message: Message) -> None:
            await two.publish(f"{unique}:2", message.payload, headers=headers())

        forwarding = traced(forward, tracer_provider=provider)
        last = traced(heard.put, tracer_provider=provider)
        async with two.listen({unique: forwarding}), one.listen({f"{unique}:2": last}):
            with telemetry.tracer.start_as_current_span("order") as order:
                with publishing(unique, {"own": "1"}, tracer_provider=provider) as told:
                    await one.publish(unique, "hello", headers=told)
            await one.publish(f"{unique}:2", "plain")
            got = {(await heard.get()).text for _ in range(2)}
    assert got == {"hello", "plain"}
    publish, process = telemetry.span(f"publish {unique}"), telemetry.span(f"process {unique}")
    assert publish.parent == order.get_span_context()
    assert process.parent is not None
    assert (process.parent.span_id, process.parent.is_remote) == (place(publish).span_id, True)
    by_trace = {place(span).trace_id: span for span in telemetry.spans(f"process {unique}:2")}
    assert len(by_trace) == 2, "the plain message began a trace of its own"
    third = by_trace.pop(order.get_span_context().trace_id)
    assert third.parent is not None
    assert third.parent.span_id == place(process).span_id
    (alone,) = by_trace.values()
    assert alone.parent is None


async def test_tasks_go_on_where_they_were_enqueued(tables: str, telemetry: Telemetry) -> None:
    """By a queue, and by a transaction of the caller's; and what the runner does are spans."""

    async def work(task: Task) -> None:
        assert task.json()["to"] == "anna"

    tasker = traced(work, tracer_provider=telemetry.tracer_provider)
    async with AsyncCoordinator(tables, name="c") as c:
        with instrument(c, waits=0.0, **telemetry.providers):
            with telemetry.tracer.start_as_current_span("first") as first:
                await c.queue("mail").enqueue(json=carry({"to": "anna"}))
            with telemetry.tracer.start_as_current_span("second") as second, psycopg.connect(tables) as conn:
                transaction.enqueue(conn, "mail", json=carry({"to": "anna"}))
            async with c.job_lock("importer"):
                pass
            async with c.runner("mail", tasker, QueueTasks("mail"), tick=0.05, per_task=True):
                await eventually_async(lambda: len(telemetry.spans("doing work")) == 2)
            assert telemetry.value("pgconcert.runner.tasks.completed", pgconcert__runner="mail") == 2
            assert telemetry.value("pgconcert.names.taken", pgconcert__kind="job", pgconcert__name="importer") == 1
    parents = {place(span).trace_id: span.parent for span in telemetry.spans("run tasks")}
    assert {parent.span_id for parent in parents.values() if parent is not None} == {
        first.get_span_context().span_id,
        second.get_span_context().span_id,
    }
    assert {about(span)["pgconcert.work"] for span in telemetry.spans("run tasks")} == {
        about(span)["pgconcert.work"] for span in telemetry.spans("doing work")
    }
    started, ended = telemetry.span("runner start session"), telemetry.span("runner end session")
    assert about(started) == about(ended)
    assert started.start_time is not None
    assert ended.end_time is not None
    assert started.start_time < ended.end_time
    assert about(telemetry.span("wait for job"))["pgconcert.name"] == "importer"


@both_engines
async def test_a_killed_connection_is_an_outage(
    database: str, engine: Engine, unique: str, telemetry: Telemetry
) -> None:
    """A span from the loss to the new connection, and the counts of both."""
    async with AsyncCoordinator(database, name="c", engine=engine) as c:
        with instrument(c, **telemetry.providers):
            hold = await c.lock(unique, on_lost="report").acquire()
            with raw(database) as server:
                server.execute("select pg_terminate_backend(%s)", [lock_pid(c)])
            await hold.wait_lost()
            async with c.lock(unique):
                pass
            await eventually_async(lambda: len(telemetry.spans("connection outage")) == 1)
            assert telemetry.value("pgconcert.links.lost", db__client__connection__pool__name="lock") == 1
            assert telemetry.value("pgconcert.locks.lost") == 1
            assert telemetry.value("pgconcert.link.outage", db__client__connection__pool__name="lock") == 1
            assert telemetry.value("db.client.connection.count", db__client__connection__pool__name="lock") == 1
    outage = telemetry.span("connection outage")
    assert outage.status.status_code is StatusCode.ERROR
    assert "terminating connection" in (outage.status.description or "")
    assert about(outage)["db.client.connection.pool.name"] == "lock"
