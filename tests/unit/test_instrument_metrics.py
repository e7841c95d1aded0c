"""The table of metrics, and what Prometheus gets of it, without a server.

Here live tests of ``instrument/metrics.py``, and of ``instrument/prometheus.py`` over ``memory://``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from pgconcert import AsyncCoordinator, ConfigurationError, Coordinator
from pgconcert.events import HandlerFailed, LockAcquired, NameTaken, QueueFilling
from pgconcert.instrument.metrics import METRICS, Read, Told, look
from pgconcert.instrument.otel_metrics import ATTRIBUTES
from pgconcert.instrument.prometheus import instrument, metrics_app
from tests.unit.exposition import by_name, openly, plain, values

BASE_UNITS = {"s": "_seconds", "1": "_ratio"}


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    made = CollectorRegistry()
    yield made
    assert generate_latest(made) == b"", "whoever is closed leaves nothing in the registry"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: Any) -> None:
    """What promtool would look at: characters, base units, suffixes, a help text; and the dots of OpenTelemetry."""
    assert re.fullmatch(r"pgconcert(\.[a-z]+(_[a-z]+)*)+", metric.name)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.exposed)
    assert metric.family.endswith(BASE_UNITS.get(metric.unit, ""))
    assert metric.unit in ("s", "1", "") or re.fullmatch(r"\{[a-z]+\}", metric.unit)
    assert metric.exposed.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(total|count|sum|bucket|info|milliseconds|counter|gauge)$", metric.family)
    assert metric.help.endswith(".")
    assert "\n" not in metric.help
    for label in metric.source.labels:
        assert re.fullmatch(r"[a-z]+", label)
        assert label in ATTRIBUTES


def test_names_are_there_once() -> None:
    names = [metric.family for metric in METRICS]
    assert len({*names}) == len(names) > 40
    told = [metric.semantic or metric.name for metric in METRICS]
    assert len({*told}) == len(told)
    assert [one for one in told if any(other.startswith(f"{one}.") for other in told)] == [], "a name is no namespace"


def test_no_key_is_a_label() -> None:
    """What has as many values as an application has users would fill any memory."""
    fields = {label for metric in METRICS if isinstance(metric.source, Told) for label in metric.source.labels}
    assert fields <= {"role", "kind", "name", "channel", "runner", "code"}


async def test_every_source_can_be_read() -> None:
    async with AsyncCoordinator("memory://metrics") as c, c.job_lock("importer"):
        now = look(c)
        for metric in METRICS:
            if isinstance(metric.source, Read):
                for sample in metric.source.samples(now):
                    assert isinstance(sample.value, (int, float))
                    assert {*sample.labels} == {*metric.source.labels}


@pytest.mark.parametrize("metric", [m for m in METRICS if isinstance(m.source, Told)], ids=lambda metric: metric.name)
def test_every_event_has_the_fields_that_are_told(metric: Any) -> None:
    fields = metric.source.kind.__dataclass_fields__
    assert {*metric.source.labels, metric.source.amount, metric.source.less} - {None} <= fields.keys()


def test_a_histogram_has_the_right_buckets(registry: CollectorRegistry) -> None:
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, registry):
        for waited in (0.0005, 0.001, 0.3, 1000.0):
            c.events.emit(LockAcquired(key="k", waited=waited))
        found = values(registry)
    buckets = {name: value for name, value in found.items() if name.startswith("pgconcert_lock_wait_seconds_bucket")}
    counts = [*buckets.values()]
    assert counts == sorted(counts)
    assert buckets["pgconcert_lock_wait_seconds_bucket{le=0.001}"] == 2
    assert buckets["pgconcert_lock_wait_seconds_bucket{le=0.25}"] == 2
    assert buckets["pgconcert_lock_wait_seconds_bucket{le=0.5}"] == 3
    assert buckets["pgconcert_lock_wait_seconds_bucket{le=+Inf}"] == 4
    assert found["pgconcert_lock_wait_seconds_count"] == 4
    assert found["pgconcert_lock_wait_seconds_sum"] == pytest.approx(1000.3015)


def test_what_has_no_labels_is_there_from_the_beginning(registry: CollectorRegistry) -> None:
    """A rate is seen from the first event on; and a coordinator that is not open is exposed as not ready."""
    with instrument(AsyncCoordinator("null://", name="c"), registry):
        found = values(registry)
    assert found["pgconcert_sessions_lost_total"] == 0
    assert found["pgconcert_ready"] == 0
    assert found["pgconcert_locks_acquired_total"] == 0


def test_both_formats_are_read_by_their_parsers(registry: CollectorRegistry) -> None:
    c = AsyncCoordinator("null://", name='a "name"\nof \\ mine')
    with instrument(c, registry, labels={"zone": "é"}):
        c.events.emit(HandlerFailed(channel='a"b\\c\n', error=ValueError("wrong")))
        both = by_name(plain(registry)), by_name(openly(registry))
    for metric in METRICS:
        for families in both:
            family = families[metric.family]
            assert (family.documentation, family.type) == (
                metric.help,
                "gauge" if metric.kind == "updown" else metric.kind,
            )
        assert both[1][metric.family].unit == BASE_UNITS.get(metric.unit, "").strip("_")
    for families in both:
        (sample,) = families["pgconcert_handlers_failed"].samples
        assert sample.labels == {"coordinator": 'a "name"\nof \\ mine', "zone": "é", "channel": 'a"b\\c\n'}


def test_two_coordinators_are_told_apart(registry: CollectorRegistry) -> None:
    one, two = AsyncCoordinator("null://", name="one"), AsyncCoordinator("null://", name="two")
    with instrument(one, registry) as first, instrument(two, registry):
        two.events.emit(QueueFilling(usage=0.6, blocker=None))
        samples = by_name(plain(registry))["pgconcert_queue_filling"].samples
        counts = {sample.labels["coordinator"]: sample.value for sample in samples}
        assert counts == {"one": 0, "two": 1}
        first.close()
        assert b'"one"' not in generate_latest(registry)
        assert b'"two"' in generate_latest(registry)
        first.close()


def test_two_of_one_name_are_refused(registry: CollectorRegistry) -> None:
    """Their samples would be the same series, and one of them false."""
    one, two = AsyncCoordinator("null://", name="c"), AsyncCoordinator("null://", name="c")
    with instrument(one, registry):
        with pytest.raises(ConfigurationError, match="give each a name="):
            instrument(two, registry)
        with instrument(two, registry, labels={"coordinator": "another"}):
            assert b'coordinator="another"' in generate_latest(registry)
    with instrument(two, registry):
        assert two.events.readers
    assert (one.events.readers, two.events.readers) == ([], [])


@pytest.mark.parametrize("labels", [{"le": "x"}, {"channel": "x"}, {"a-b": "x"}, {"__a": "x"}, {"a": 1}, {"": "x"}])
def test_labels_that_cannot_be(labels: Any, registry: CollectorRegistry) -> None:
    with pytest.raises(ConfigurationError, match="labels="):
        instrument(AsyncCoordinator("null://"), registry, labels=labels)


def test_a_name_that_somebody_has_already() -> None:
    registry = CollectorRegistry()
    Counter("pgconcert_sessions_lost", "mine", registry=registry)
    c = AsyncCoordinator("null://", name="c")
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        instrument(c, registry)
    assert c.events.readers == []


def test_labels_that_are_left_out_are_added_up(registry: CollectorRegistry) -> None:
    c = AsyncCoordinator("null://", name="c")
    with instrument(c, registry, without={"name"}):
        for name in ("a", "b", "c"):
            c.events.emit(NameTaken(kind="job", name=name, token=1, waited=0.1))
        found = values(registry)
    assert found["pgconcert_names_taken_total{kind=job}"] == 3
    assert found["pgconcert_name_wait_seconds_count{kind=job}"] == 3


async def test_the_recovery_by_the_names_of_elephantine(registry: CollectorRegistry) -> None:
    """Channels that are alike as names share one, and are told apart by a label: nothing fails or is mixed."""
    async with AsyncCoordinator("memory://metrics", name="c") as c:
        with instrument(c, registry, elephantine_names=True):
            for channel, found in (("a-b", 3), ("a.b", 4), ("é", 1)):
                fanout = c.fanout(channel, str)
                fanout.enable_recovery()
                fanout.polled(found)
                fanout.polled(found)
            told = values(registry)
    assert told["pg_fanout_a_b_poll_saved_total{channel=a-b}"] == 6
    assert told["pg_fanout_a_b_poll_saved_total{channel=a.b}"] == 8
    assert told["pg_fanout___poll_saved_total{channel=é}"] == 2
    assert told["pg_fanout_a_b_poll_saved_streak{channel=a-b}"] == 2
    assert told["pgconcert_fanout_poll_saved_total{channel=a.b}"] == 8
    assert told["pgconcert_fanout_poll_streak{channel=a.b}"] == 2


async def test_the_application_answers(registry: CollectorRegistry) -> None:
    with instrument(AsyncCoordinator("null://", name="c"), registry):
        transport = httpx.ASGITransport(metrics_app(registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/metrics")
            opened = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert (answer.status_code, answer.text) == (200, generate_latest(registry).decode())
        assert opened.headers["content-type"] == CONTENT_TYPE_LATEST


def test_nothing_is_lost_between_threads(registry: CollectorRegistry) -> None:
    """Events come from several threads while others collect."""
    c = AsyncCoordinator("null://", name="c")
    over = threading.Event()

    def work() -> None:
        for _ in range(2000):
            c.events.emit(LockAcquired(key="k", waited=0.1))

    def collect() -> None:
        while not over.is_set():
            generate_latest(registry)

    with instrument(c, registry):
        threads = [threading.Thread(target=work) for _ in range(4)]
        reader = threading.Thread(target=collect)
        for thread in (*threads, reader):
            thread.start()
        for thread in threads:
            thread.join()
        over.set()
        reader.join()
        found = values(registry)
    assert found["pgconcert_lock_wait_seconds_count"] == 8000
    assert found["pgconcert_lock_wait_seconds_bucket{le=0.1}"] == 8000
    assert found["pgconcert_lock_wait_seconds_sum"] == pytest.approx(800)


def test_threads_have_the_same(registry: CollectorRegistry) -> None:
    with Coordinator("memory://metrics", name="threads") as c, instrument(c, registry):
        with c.lock("a"):
            assert values(registry)["pgconcert_locks_held"] == 1
        c.publish("orders", "1")
        found = values(registry)
    assert found["pgconcert_locks_held"] == 0
    assert found["pgconcert_lock_wait_seconds_count"] == 1
    assert found["pgconcert_messages_published_total"] == 1
    assert found["pgconcert_messages_published_total{error=failed}"] == 0
    assert found["pgconcert_ready"] == 1


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry", "opentelemetry")],
)
def test_a_missing_package_is_named(module: str, package: str, extra: str) -> None:
    """Whoever has not installed the extra is told its name; the library itself does without."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import pgconcert.instrument\n"
        f"try: import pgconcert.instrument.{module}\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"pip install 'pgconcert[{extra}]'" in said


FORKED = """
import os, sys, threading, warnings
from prometheus_client import CollectorRegistry, generate_latest
from pgconcert import AsyncCoordinator
from pgconcert.events import LockAcquired
from pgconcert.instrument import prometheus

registry = CollectorRegistry()
c = AsyncCoordinator("null://", name="c")
looked_at = prometheus.instrument(c, registry)
c.events.emit(LockAcquired(key="k", waited=0.1))
(one,) = prometheus._collectors[registry].exposed
taken, over = threading.Event(), threading.Event()

def count():
    with one._lock, prometheus._mutex:
        taken.set()
        over.wait()

counting = threading.Thread(target=count)
counting.start()
taken.wait()
warnings.simplefilter("ignore")
pid = os.fork()
if not pid:
    c.events.emit(LockAcquired(key="k", waited=0.1))
    told = "pgconcert_lock_wait_seconds_count{coordinator=\\"c\\"} 2.0" in generate_latest(registry).decode()
    looked_at.close()
    os._exit(0 if told else 1)
try:
    for _ in range(100):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        over.wait(0.1)
    else:
        os.kill(pid, 9)
        status = os.waitpid(pid, 0)[1]
finally:
    over.set()
    counting.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_collects_while_its_parent_counts() -> None:
    """The thread that had the mutexes is not there in the child."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
