"""What OpenTelemetry is told, without a server: spans and metrics of coordinators over ``memory://`` and ``null://``.

Here live tests of ``instrument/opentelemetry.py`` and the files behind it. Spans are read back from the exporter of the
SDK that keeps them in memory, and metrics from its reader.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from pgconcert import AsyncCoordinator, ConfigurationError, Coordinator, Message, QueueTasks, Task
from pgconcert.events import (
    ConnectFailed,
    LinkClosed,
    LinkLost,
    LinkOpened,
    LockAcquired,
    NameTaken,
    RunnerSessionEnded,
    TasksDone,
)
from pgconcert.instrument.metrics import METRICS, Told
from pgconcert.instrument.opentelemetry import (
    CARRIED,
    carry,
    headers,
    instrument,
    processing,
    publishing,
    traced,
    working,
)
from pgconcert.testing import eventually_async
from tests.unit.telemetry import Telemetry, about, place

OPENED: dict[str, Any] = {"server_pid": 1, "server": "s", "version": 180000, "through": "directly", "down_for": 2.0}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry()
    yield made
    made.close()
    made.check()


def message(**more: Any) -> Message:
    return Message("orders", b"payload", 1, False, 0.0, **more)


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """When it began and ended."""
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9, span.end_time / 1e9


def test_a_span_is_as_long_as_the_event_says(telemetry: Telemetry) -> None:
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, **telemetry.providers):
        c.events.emit(RunnerSessionEnded(at=1000.0, runner="mail", session=7, duration=1.5))
        done: dict[str, Any] = {"runner": "mail", "session": 7, "work": 3, "tasks": 2, "at": 1000.0, "duration": 0.25}
        c.events.emit(TasksDone(completed=2, **done))
        c.events.emit(TasksDone(completed=0, error="ValueError: a: b", **done))
    ended = telemetry.span("runner end session")
    assert seconds(ended) == (998.5, 1000.0)
    assert ended.attributes == {"pgconcert.coordinator": "c", "pgconcert.runner": "mail", "pgconcert.session": 7}
    assert (ended.parent, ended.status.status_code) == (None, StatusCode.UNSET)
    good, bad = telemetry.spans("doing work")
    assert seconds(good) == (999.75, 1000.0)
    assert about(good)["pgconcert.completed"] == 2
    assert good.status.status_code is StatusCode.UNSET
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "ValueError: a: b")
    assert about(bad)["error.type"] == "ValueError"


def test_what_the_machinery_does_belongs_to_nobody(telemetry: Telemetry) -> None:
    """An event that is told while a caller's span is open is not its child: the machinery serves many."""
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, **telemetry.providers), telemetry.tracer.start_as_current_span("mine"):
        c.events.emit(RunnerSessionEnded(runner="mail", session=7, duration=1.5))
    assert telemetry.span("runner end session").parent is None


def test_waits_are_spans_when_asked_for(telemetry: Telemetry) -> None:
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, waits=0.1, **telemetry.providers):
        c.events.emit(LockAcquired(at=1000.0, key="invoice:1", waited=0.05))
        c.events.emit(LockAcquired(at=1000.0, key=42, waited=0.5))
        c.events.emit(NameTaken(at=1000.0, kind="job", name="importer", token=9, waited=3.0))
    lock, name = telemetry.span("wait for lock"), telemetry.span("wait for job")
    assert seconds(lock) == (999.5, 1000.0)
    assert about(lock)["pgconcert.key"] == "42"
    assert lock.kind is SpanKind.CLIENT
    assert seconds(name) == (997.0, 1000.0)
    assert about(name)["pgconcert.token"] == 9
    telemetry.exporter.clear()
    with instrument(c, **telemetry.providers):
        c.events.emit(LockAcquired(key=42, waited=0.5))
    assert telemetry.exporter.get_finished_spans() == ()


@pytest.mark.parametrize("waits", [-1, "1", float("nan"), True])
def test_waits_that_cannot_be(waits: Any, telemetry: Telemetry) -> None:
    with pytest.raises(ConfigurationError, match="waits"):
        instrument(AsyncCoordinator("null://"), waits=waits, **telemetry.providers)


def test_an_outage_is_one_span(telemetry: Telemetry) -> None:
    """From the loss to the new connection, with the attempts that failed; other roles have their own."""
    c = AsyncCoordinator("null://", name="c")
    failed: dict[str, Any] = {"attempt": 1, "error": "refused", "retry_in": 1.0}
    with instrument(c, **telemetry.providers):
        c.events.emit(LinkLost(at=1000.0, role="lock", server_pid=1, reason="the server ended it", unanswered=0))
        c.events.emit(ConnectFailed(at=1001.0, role="lock", down_for=1.0, **failed))
        c.events.emit(ConnectFailed(at=1001.5, role="listen", down_for=0.5, **failed))
        assert telemetry.exporter.get_finished_spans() == ()
        c.events.emit(LinkOpened(at=1002.0, role="lock", **OPENED))
        c.events.emit(LinkOpened(at=1003.0, role="lock", **OPENED))
        outage = telemetry.span("connection outage")
        c.events.emit(ConnectFailed(at=1004.0, role="listen", down_for=3.0, **{**failed, "retry_in": None}))
        c.events.emit(LinkLost(at=1005.0, role="work", server_pid=1, reason="gone", unanswered=0))
        c.events.emit(LinkClosed(at=1006.0, role="work", server_pid=1))
        c.events.emit(LinkLost(at=1007.0, role="publish", server_pid=1, reason="gone", unanswered=0))
    assert seconds(outage) == (1000.0, 1002.0)
    assert (outage.status.status_code, outage.status.description) == (StatusCode.ERROR, "the server ended it")
    assert about(outage)["error.type"] == "LinkLost"
    assert about(outage)["db.client.connection.pool.name"] == "lock"
    assert [(event.name, event.timestamp) for event in outage.events] == [("connect failed", 1001 * 10**9)]
    _, given_up, closed, last = telemetry.spans("connection outage")
    assert seconds(given_up) == (1001.0, 1004.0)
    assert len(given_up.events) == 2
    assert seconds(closed) == (1005.0, 1006.0)
    assert about(last)["db.client.connection.pool.name"] == "publish", "close() ends what is open"


def test_what_is_closed_tells_no_more(telemetry: Telemetry) -> None:
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, **telemetry.providers) as told:
        assert telemetry.value("pgconcert.ready") == 0
        told.close()
        assert c.events.readers == []
        assert telemetry.points().get("pgconcert.ready", []) == []


def test_two_coordinators_share_instruments(telemetry: Telemetry) -> None:
    """And an attribute tells them apart; so two of one name are refused, until one has left."""
    one, two = AsyncCoordinator("null://", name="one"), AsyncCoordinator("null://", name="two")
    with instrument(one, **telemetry.providers), instrument(two, **telemetry.providers):
        two.events.emit(LockAcquired(key=1, waited=0.5))
        points = telemetry.points()
        assert {point.attributes["pgconcert.coordinator"] for point in points["pgconcert.ready"]} == {"one", "two"}
        assert telemetry.value("pgconcert.lock.wait", pgconcert__coordinator="two") == 1
        with pytest.raises(ConfigurationError, match="give each a name="):
            instrument(AsyncCoordinator("null://", name="one"), **telemetry.providers)
        with instrument(AsyncCoordinator("null://", name="one"), attributes={"shop": "2"}, **telemetry.providers):
            assert telemetry.value("pgconcert.ready", shop="2") == 0


async def test_every_metric_has_an_instrument(telemetry: Telemetry) -> None:
    """All that have a value now are there, with the names, units and kinds of the table."""
    async with AsyncCoordinator("memory://otel", name="c") as c, c.subscribe("orders") as messages, c.job_lock("j"):
        with instrument(c, **telemetry.providers):
            await c.publish("orders", "1")
            await anext(messages)
            async with c.lock("a"):
                pass
            data: Any = telemetry.reader.get_metrics_data()
    (scope,) = data.resource_metrics[0].scope_metrics
    assert scope.scope.name == "pgconcert"
    found = {metric.name: metric for metric in scope.metrics}
    table = {metric.semantic or metric.name: metric for metric in METRICS}
    assert found.keys() <= table.keys()
    assert {name for name, metric in table.items() if not (isinstance(metric.source, Told) or metric.source.labels)} - {
        "pgconcert.locks.budget",  # in memory there is none
        "pgconcert.queue.usage",
    } <= found.keys()
    for name, metric in found.items():
        assert (metric.unit, metric.description) == (table[name].unit, table[name].help)
        assert type(metric.data).__name__ == {"histogram": "Histogram", "gauge": "Gauge"}.get(table[name].kind, "Sum")
    (sent,) = [p for p in found["messaging.client.sent.messages"].data.data_points if "error.type" not in p.attributes]
    assert dict(sent.attributes) == {
        "pgconcert.coordinator": "c",
        "messaging.system": "postgresql",
        "messaging.operation.name": "publish",
    }
    (lock,) = [
        point
        for point in found["db.client.connection.count"].data.data_points
        if point.attributes["db.client.connection.pool.name"] == "lock"
    ]
    assert (lock.attributes["db.client.connection.state"], lock.attributes["db.system.name"]) == ("used", "postgresql")
    bounds = found["pgconcert.lock.wait"].data.data_points[0].explicit_bounds
    assert (bounds[0], bounds[-1]) == (0.001, 300.0), "seconds, not the milliseconds of the SDK"


async def test_runners_over_memory(telemetry: Telemetry) -> None:
    """The sessions and the work of a runner are spans; the tasks go on in the traces of those who enqueued them."""
    failing = [True]

    async def send(tasks: list[Task]) -> None:
        if failing.pop() if failing else False:
            raise ValueError("not now")

    tasker = traced(send, tracer_provider=telemetry.tracer_provider)
    async with AsyncCoordinator("memory://otel-runners", name="c") as c:
        with instrument(c, **telemetry.providers):
            with telemetry.tracer.start_as_current_span("order") as order:
                await c.queue("mail").enqueue(json=carry({"to": "anna"}))
            async with c.runner("mail", tasker, QueueTasks("mail"), tick=0.05):
                await eventually_async(lambda: len(telemetry.spans("doing work")) == 2)
    started, ended = telemetry.span("runner start session"), telemetry.span("runner end session")
    assert about(started)["pgconcert.session"] == about(ended)["pgconcert.session"]
    bad, good = telemetry.spans("run tasks")
    works = telemetry.spans("doing work")
    for span in (bad, good):
        assert span.parent is not None
        assert span.parent.span_id == order.get_span_context().span_id
        assert span.parent.is_remote
        assert place(span).trace_id == order.get_span_context().trace_id
        assert span.kind is SpanKind.CONSUMER
    assert [about(span)["pgconcert.task.attempt"] for span in (bad, good)] == [1, 2]
    assert [about(span)["pgconcert.work"] for span in (bad, good)] == [about(span)["pgconcert.work"] for span in works]
    assert (bad.status.status_code, about(bad)["error.type"]) == (StatusCode.ERROR, "ValueError")
    assert [span.status.status_code for span in works] == [StatusCode.ERROR, StatusCode.UNSET]


def test_several_tasks_have_several_senders(telemetry: Telemetry) -> None:
    payloads: list[Any] = []
    for name in ("one", "two"):
        with telemetry.tracer.start_as_current_span(name):
            payloads.append(json.dumps(carry({"n": name})).encode())
    payloads += [b"no json " + CARRIED.encode(), b"{}", json.dumps({CARRIED: "x"}).encode(), {CARRIED: {"a": 1}}]
    tasks = [Task(str(number), payload) for number, payload in enumerate(payloads)]
    with telemetry.tracer.start_as_current_span("mine") as mine:
        with working(tasks, tracer_provider=telemetry.tracer_provider):
            pass
    run = telemetry.span("run tasks")
    assert run.parent is not None
    assert run.parent.span_id == mine.get_span_context().span_id
    assert [link.context.span_id for link in run.links] == [
        place(span).span_id for name in ("one", "two") for span in telemetry.spans(name)
    ]
    assert about(run)["pgconcert.tasks"] == 6


def test_a_row_may_carry_a_context_too(telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("order") as order:
        row = carry({"id": 1})
    with working(Task("1", row), tracer_provider=telemetry.tracer_provider):
        pass
    assert place(telemetry.span("run tasks")).trace_id == order.get_span_context().trace_id
    with working(Task("1", row), link=True, tracer_provider=telemetry.tracer_provider):
        pass
    _, linked = telemetry.spans("run tasks")
    assert [one.context.span_id for one in linked.links] == [order.get_span_context().span_id]


def test_outside_of_a_trace_nothing_is_said() -> None:
    """So a message without headers stays a plain text that everybody can read."""
    assert headers() == {}
    assert headers({"own": "1"}) == {"own": "1"}
    assert carry({"a": 1}) == {"a": 1}


def test_headers_leave_out_what_does_not_fit(telemetry: Telemetry) -> None:
    """Baggage before the trace, and never what the caller has given."""
    token = context.attach(baggage.set_baggage("big", "x" * 1990))
    try:
        with telemetry.tracer.start_as_current_span("mine"):
            assert headers({"own": "1"}).keys() == {"own", "traceparent"}
            assert headers({"own": "x" * 1980}).keys() == {"own"}
    finally:
        context.detach(token)


@pytest.mark.parametrize("link", [False, True])
def test_a_message_goes_on_in_the_trace_of_its_sender(link: bool, telemetry: Telemetry) -> None:
    with publishing("orders", {"own": "1"}, tracer_provider=telemetry.tracer_provider) as told:
        assert told["own"] == "1"
    sender = telemetry.span("publish orders")
    got = message(id="an-id", headers=told)
    with processing(got, link=link, tracer_provider=telemetry.tracer_provider) as span:
        assert get_current_span() is span
    process = telemetry.span("process orders")
    assert process.attributes == {
        "messaging.system": "postgresql",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.message.body.size": 7,
        "messaging.message.id": "an-id",
    }
    assert (sender.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    if link:
        assert process.parent is None
        assert [one.context.span_id for one in process.links] == [place(sender).span_id]
    else:
        assert process.parent is not None
        assert process.parent.span_id == place(sender).span_id
        assert not process.links


@pytest.mark.parametrize("told", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32 + "-1-01"}])
def test_a_message_without_a_trace_begins_one(told: dict[str, str], telemetry: Telemetry) -> None:
    with processing(message(headers=told), tracer_provider=telemetry.tracer_provider):
        pass
    process = telemetry.span("process orders")
    assert (process.parent, [*process.links]) == (None, [])


async def test_being_cancelled_is_no_error(telemetry: Telemetry) -> None:
    with pytest.raises(asyncio.CancelledError):
        with processing(message(), tracer_provider=telemetry.tracer_provider):
            raise asyncio.CancelledError
    with pytest.raises(KeyError):
        with processing(message(), tracer_provider=telemetry.tracer_provider):
            raise KeyError("x")
    cancelled, failed = telemetry.spans("process orders")
    assert "error.type" not in about(cancelled)
    assert (about(failed)["error.type"], failed.status.status_code) == ("KeyError", StatusCode.ERROR)
    assert [event.name for event in failed.events] == ["exception"]


async def test_traced_keeps_what_it_wraps(telemetry: Telemetry) -> None:
    """Async stays async, plain stays plain, methods and values of fan-outs work, and names are kept."""
    provider = telemetry.tracer_provider
    seen: list[object] = []

    async def handler(what: object) -> str:
        """Mine."""
        seen.append(what)
        return "reply"

    class Handlers:
        def __call__(self, what: object) -> bool:
            return get_current_span().is_recording()

        async def method(self, what: object) -> bool:
            return get_current_span().is_recording()

    wrapped = traced(handler, tracer_provider=provider)
    assert (wrapped.__name__, wrapped.__doc__) == ("handler", "Mine.")
    assert asyncio.iscoroutinefunction(wrapped)
    assert await wrapped(message()) == "reply"
    assert await wrapped("a value") == "reply"
    assert len(telemetry.spans("process orders")) == 1
    plain: Callable[[object], Any] = traced(Handlers(), tracer_provider=provider)
    assert plain([Task("1")]) is True
    assert plain("a value") is False
    assert await traced(Handlers.method, tracer_provider=provider)(Handlers(), message()) is True
    with pytest.raises(ConfigurationError, match="traced"):
        traced("no function")  # type: ignore[type-var]


def test_threads_have_the_same(telemetry: Telemetry) -> None:
    """The blocking coordinator is instrumented alike, and its handlers go on in the sender's trace."""
    handled: list[str] = []
    handler = traced(lambda message: handled.append(message.text), tracer_provider=telemetry.tracer_provider)
    with Coordinator("memory://otel-threads", name="threads") as c:
        with instrument(c, waits=0.0, **telemetry.providers):
            with c.listen({"orders": handler}):
                with telemetry.tracer.start_as_current_span("order") as order:
                    c.publish("orders", "1", headers=headers())
            with c.lock("a"):
                pass
            assert telemetry.value("messaging.client.consumed.messages", pgconcert__coordinator="threads") == 1
    assert handled == ["1"]
    assert place(telemetry.span("process orders")).trace_id == order.get_span_context().trace_id
    assert telemetry.span("wait for lock")


def test_what_is_no_provider_leaves_nothing_behind(telemetry: Telemetry) -> None:
    """A mistake that is put right at once: the coordinator is not instrumented already."""
    c = AsyncCoordinator("null://", name="c")
    wrong: Any = object()
    with pytest.raises(AttributeError):
        instrument(c, tracer_provider=wrong, meter_provider=telemetry.meter_provider)
    assert c.events.readers == []
    with instrument(c, **telemetry.providers):
        assert c.events.readers
