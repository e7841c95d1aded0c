"""The table of metrics: what is counted and measured, and what feeds it. Data, and pure functions that read it.

Theory. A metric has one source. It is *told* by an event: each one adds to a counter, or is a value of a histogram; the
reader of events keeps these, from the moment when it begins to read. Or it is *read* when somebody collects, from
``statistics()`` and ``health()`` of a coordinator, which count since it was made. From this one table are made the
metrics of Prometheus, the instruments of OpenTelemetry, and the page of the documentation.

Labels have few values: roles of links, kinds, reasons, steps; or as many as the application has names: of channels that
are polled, of runners, of job locks. Keys of locks are never labels, nor is anything that a user of the application can
choose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from .. import events
from ..events import Event

if TYPE_CHECKING:
    from ..backend import Health
    from ..composition import Composition
    from ..statistics import Statistics

__all__ = ["BY_EVENT", "METRICS", "SECONDS", "Look", "Metric", "Read", "Sample", "Told", "look", "name_of", "summed"]

Kind = Literal["counter", "updown", "gauge", "histogram"]
"""``updown`` is a gauge whose values may be added up: there are so many of something now."""

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""The upper bounds of the buckets of histograms."""


class Sample(NamedTuple):
    """One value. A label whose value is empty is as good as none."""

    labels: Mapping[str, str]
    value: float


class Look(NamedTuple):
    """What a coordinator says of itself at one moment."""

    statistics: Statistics
    health: Health


@dataclass(frozen=True, slots=True)
class Told:
    """Fed by events of one kind: each adds the field ``amount`` (1 if none is named), with the field ``less`` taken
    off; ``None`` adds nothing. ``labels`` are fields, too."""

    kind: type[Event]
    amount: str | None = None
    labels: tuple[str, ...] = ()
    less: str | None = None

    @property
    def where(self) -> str:
        """In words, for people."""
        field = "" if self.amount is None else f".{self.amount}"
        return f"{self.kind.__name__}{field}" + ("" if self.less is None else f" - .{self.less}")

    def sample(self, event: Event) -> Sample | None:
        """What an event of this kind adds."""
        value: Any = 1 if self.amount is None else getattr(event, self.amount)
        if value is None:
            return None
        if self.less is not None:
            value -= getattr(event, self.less)
        return Sample({label: str(getattr(event, label)) for label in self.labels}, value)


@dataclass(frozen=True, slots=True)
class Read:
    """Read at each collection. ``where``: in words, for people."""

    where: str
    samples: Callable[[Look], Iterable[Sample]]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. ``name``: with dots, as OpenTelemetry has it; ``semantic``: the name of the semantic conventions, if
    they have one. ``unit`` is that of UCUM: ``s``, ``1`` for a share, or what is counted, in braces."""

    name: str
    kind: Kind
    unit: str
    help: str
    source: Told | Read
    semantic: str | None = None

    @property
    def base_unit(self) -> str:
        """The unit, as it ends the name of a metric of Prometheus; empty for what is counted."""
        return {"s": "seconds", "1": "ratio"}.get(self.unit, "")

    @property
    def family(self) -> str:
        """The name of the metric family of Prometheus, which is that of a counter without ``_total``."""
        return self.name.replace(".", "_") + (f"_{self.base_unit}" if self.base_unit else "")

    @property
    def exposed(self) -> str:
        """The name as it is asked for in Prometheus."""
        return self.family + ("_total" if self.kind == "counter" else "")


def look(coordinator: Composition[Any]) -> Look:
    """What a coordinator says of itself now. Sends nothing; from any thread."""
    return Look(coordinator.statistics(), coordinator.health())


def name_of(coordinator: Composition[Any]) -> str:
    """What tells it apart from others."""
    return coordinator.name


def summed(samples: Iterable[Sample], without: Iterable[str] = ()) -> dict[tuple[tuple[str, str], ...], float]:
    """Samples by their labels: empty ones, and those ``without`` which they shall be, left out; what is alike then is
    added up."""
    left_out = frozenset(without)
    sums: defaultdict[tuple[tuple[str, str], ...], float] = defaultdict(float)
    for labels, value in samples:
        sums[tuple((name, text) for name, text in labels.items() if text and name not in left_out)] += value
    return sums


def _value(path: str) -> Read:
    """One number of a look; nothing while it is ``None``."""
    get = attrgetter(path)

    def samples(now: Look) -> Iterable[Sample]:
        value = get(now)
        return () if value is None else (Sample({}, float(value)),)

    return Read(path.replace(".", "().", 1), samples)


def _each(path: str, field: str, **labels: str) -> Read:
    """A number of each record in a tuple; ``labels`` are fields of the record."""
    get, number = attrgetter(path), attrgetter(field)

    def samples(now: Look) -> Iterable[Sample]:
        for one in get(now):
            yield Sample({label: str(getattr(one, source)) for label, source in labels.items()}, number(one))

    return Read(f"{path.replace('.', '().', 1)}[].{field}", samples, tuple(labels))


def _by_key(path: str, label: str) -> Read:
    """The numbers of a mapping."""
    get = attrgetter(path)

    def samples(now: Look) -> Iterable[Sample]:
        return [Sample({label: str(key)}, value) for key, value in get(now).items()]

    return Read(f"{path.replace('.', '().', 1)}[{label}]", samples, (label,))


def _links(now: Look) -> Iterable[Sample]:
    return [Sample({"role": link.role, "state": link.state}, 1) for link in now.health.links]


def _round_trips(now: Look) -> Iterable[Sample]:
    slowest: dict[str, float] = {}
    for link in now.health.links:
        if link.round_trip is not None:
            slowest[link.role] = max(link.round_trip, slowest.get(link.role, 0.0))
    return [Sample({"role": role}, seconds) for role, seconds in slowest.items()]


def _trusted(now: Look) -> Iterable[Sample]:
    return [Sample({}, min(one.trusted_for for one in now.health.sessions))] if now.health.sessions else ()


def _published(now: Look) -> Iterable[Sample]:
    messages = now.statistics.messages
    return (Sample({"error": ""}, messages.published), Sample({"error": "failed"}, messages.failed))


def _hearing(field: str) -> Read:
    get = attrgetter(field)

    def samples(now: Look) -> Iterable[Sample]:
        value = None if now.health.hearing is None else get(now.health.hearing)
        return () if value is None else (Sample({}, float(value)),)

    return Read(f"health().hearing.{field}", samples)


def _counter(name: str, unit: str, help: str, source: Told | Read, semantic: str | None = None) -> Metric:  # noqa: A002
    return Metric(name=f"pgconcert.{name}", kind="counter", unit=unit, help=help, source=source, semantic=semantic)


def _updown(name: str, unit: str, help: str, source: Read, semantic: str | None = None) -> Metric:  # noqa: A002
    return Metric(name=f"pgconcert.{name}", kind="updown", unit=unit, help=help, source=source, semantic=semantic)


def _gauge(name: str, unit: str, help: str, source: Read) -> Metric:  # noqa: A002
    return Metric(name=f"pgconcert.{name}", kind="gauge", unit=unit, help=help, source=source)


def _seconds(name: str, help: str, source: Told) -> Metric:  # noqa: A002
    return Metric(name=f"pgconcert.{name}", kind="histogram", unit="s", help=help, source=source)


METRICS: Final[tuple[Metric, ...]] = (
    _gauge("ready", "", "Whether nothing that is needed is down: 1 or 0.", _value("health.ready")),
    _counter("events", "{event}", "Events by kind, but those of level 0.", _by_key("statistics.events", "event")),
    # connections
    _updown("links", "{connection}", "Connections of our own, by role and state.",
            Read("health().links", _links, ("role", "state")), "db.client.connection.count"),
    _counter("links.opened", "{connection}", "Connections made, probed and set.",
             Told(events.LinkOpened, labels=("role",))),
    _counter("links.lost", "{connection}", "Connections that died.", Told(events.LinkLost, labels=("role",))),
    _counter("connects.failed", "{attempt}", "Attempts to connect that failed.",
             Told(events.ConnectFailed, labels=("role",))),
    _counter("statements", "{statement}", "Statements sent on all connections.", _value("statistics.statements")),
    _seconds("link.outage", "How long a connection was down, of each that was made again.",
             Told(events.LinkOpened, "down_for", ("role",))),
    _gauge("link.round_trip", "s", "The latest round trip to the server; of the slowest connection of a role.",
           Read("health().links[].round_trip", _round_trips, ("role",))),
    # locks and permits
    _counter("locks.acquired", "{lock}", "Locks and permits granted.", _value("statistics.locks.acquired")),
    _counter("locks.released", "{lock}", "Locks and permits given back.", _value("statistics.locks.released")),
    _counter("locks.lost", "{lock}", "Locks and permits lost while held.", _value("statistics.locks.lost")),
    _counter("locks.contended", "{lock}", "Locks and permits granted after somebody else had been in the way.",
             _value("statistics.locks.waited")),
    _counter("locks.timed_out", "{wait}", "Waits for locks and permits that ended with AcquireTimeout.",
             _value("statistics.locks.timed_out")),
    _seconds("lock.wait", "Time from asking for a lock or permit to having it.", Told(events.LockAcquired, "waited")),
    _updown("locks.held", "{lock}", "Locks and permits held now.", _value("health.locks_held")),
    _updown("locks.waited_for", "{lock}", "Locks and permits waited for now.", _value("health.locks_waited_for")),
    _updown("locks.budget", "{lock}", "How many locks may be held or waited for at once.",
            _value("health.lock_budget")),
    # sessions, and what hangs on them
    _counter("names.taken", "{name}", "Job locks, leaderships and memberships taken, by name.",
             Told(events.NameTaken, labels=("kind", "name"))),
    _counter("names.released", "{name}", "Job locks, leaderships and memberships given back, by name.",
             Told(events.NameReleased, labels=("kind", "name"))),
    _counter("names.lost", "{name}", "Job locks, leaderships and memberships lost.", _value("statistics.names.lost")),
    _counter("names.timed_out", "{wait}", "Waits for them that ended with AcquireTimeout.",
             _value("statistics.names.timed_out")),
    _seconds("name.wait", "Time from asking for a job lock, leadership or membership to having it.",
             Told(events.NameTaken, "waited", ("kind",))),
    _counter("sessions.started", "{session}", "Sessions started.", Told(events.SessionStarted)),
    _counter("sessions.lost", "{session}", "Sessions lost, with all that hung on them.", Told(events.SessionLost)),
    _updown("sessions.alive", "{session}", "Sessions now.",
            Read("health().sessions", lambda now: (Sample({}, len(now.health.sessions)),))),
    _gauge("session.trust", "s", "For how long the session that ends first is trusted, if no heartbeat is answered.",
           Read("health().sessions[].trusted_for", _trusted)),
    _counter("heartbeats.failed", "{heartbeat}", "Heartbeats that failed, or had no answer.",
             Told(events.HeartbeatFailed)),
    _counter("heartbeats.late", "{heartbeat}", "Heartbeats that left late because the program stood still.",
             Told(events.HeartbeatLate)),
    # messages
    _counter("messages.published", "{message}", "Messages sent; with a label error, those that were not.",
             Read("statistics().messages.published, .failed", _published, ("error",)),
             "messaging.client.sent.messages"),
    _counter("messages.received", "{message}", "Messages that came on channels that are listened to.",
             _value("statistics.messages.received"), "messaging.client.consumed.messages"),
    _counter("messages.dropped", "{message}", "Messages lost because a subscriber was too slow.",
             _value("statistics.messages.dropped")),
    _counter("gaps", "{gap}", "How often a subscriber was told that messages are missing, by reason.",
             _by_key("statistics.messages.gaps", "reason")),
    _counter("messages.undecodable", "{message}", "Messages of fan-outs that are no value of their type.",
             Told(events.MessageUndecodable, labels=("channel",))),
    _counter("handlers.failed", "{message}", "Messages whose handler, or filter, raised.",
             Told(events.HandlerFailed, labels=("channel",))),
    _gauge("listener.proven", "", "Whether it is proven that we hear: 1 or 0.", _hearing("proven")),
    _gauge("listener.latency", "s", "How long the latest notification to ourselves took, there and back.",
           _hearing("latency")),
    _counter("listener.connects", "{connection}", "How often listening was proven on a fresh connection.",
             _hearing("connects")),
    _counter("listener.deaf", "{connection}", "Connections replaced because they did not hear what they should have.",
             Told(events.ListenerDeaf)),
    _seconds("listener.outage", "How long nothing was heard, of each loss.", Told(events.ListenerReady, "deaf_for")),
    _counter("listener.bounces", "{connection}", "Connections replaced because somebody asked for it.",
             Told(events.ListenerBounced)),
    _counter("pings.missing", "{ping}", "How often no ping had come for ping_grace seconds.",
             Told(events.PingsMissing)),
    _counter("queue.filling", "{warning}", "How often the server's notification queue reached half, 80 % and 95 %.",
             Told(events.QueueFilling)),
    _gauge("queue.usage", "1", "How full the server's notification queue is; looked at while we publish.",
           _value("health.queue_usage")),
    # the recovery of fan-outs
    _counter("fanout.poll_saved", "{item}", "Items that polls have found and no message had told of.",
             _each("statistics.recoveries", "saved", channel="channel")),
    _updown("fanout.poll_streak", "{poll}", "Polls in a row that found something, since a message came by the wire.",
            _each("statistics.recoveries", "streak", channel="channel")),
    # runners
    _counter("runner.sessions.lost", "{session}", "Sessions that runners have lost.",
             Told(events.RunnerSessionLost, labels=("runner",))),
    _seconds("runner.work", "How long taskers worked, each time. The count is their rate.",
             Told(events.TasksDone, "duration", ("runner",))),
    _counter("runner.failures", "{failure}", "What runners did and had to try again, by step.",
             Told(events.RunnerFailed, labels=("runner", "code"))),
    _counter("runner.tasks.handed", "{task}", "Tasks handed to taskers that have ended.",
             Told(events.TasksDone, "tasks", ("runner",))),
    _counter("runner.tasks.completed", "{task}", "Tasks that taskers have completed.",
             Told(events.TasksDone, "completed", ("runner",))),
    _counter("runner.tasks.failed", "{task}", "Tasks that taskers had and did not complete: failed, or cancelled.",
             Told(events.TasksDone, "tasks", ("runner",), less="completed")),
    _counter("runner.tasks.refused", "{task}", "Completed tasks that were not ours to finish any more.",
             Told(events.TasksRefused, "tasks", ("runner",))),
    _counter("runner.tasks.dead", "{task}", "Tasks of queues whose attempts are used up.",
             Told(events.TaskDied, labels=("runner",))),
    _counter("runner.tasks.moved", "{task}", "Tasks taken over from others, who had not begun them.",
             Told(events.TasksMoved, "tasks", ("runner",))),
    _updown("runner.tasks.running", "{task}", "Tasks with taskers now.",
            _each("statistics.runners", "running", runner="name")),
    _updown("runner.share", "{task}", "How many tasks each process may have; 0 where the source does not say.",
            _each("statistics.runners", "share", runner="name")),
)  # fmt: skip
"""All of them, in the order in which they are shown."""

_TOLD: Final = tuple((metric, metric.source) for metric in METRICS if isinstance(metric.source, Told))

BY_EVENT: Final[Mapping[type[Event], tuple[tuple[Metric, Told], ...]]] = {
    kind: tuple((metric, source) for metric, source in _TOLD if source.kind is kind)
    for kind in {s.kind for _, s in _TOLD}
}
"""The metrics that each kind of event feeds."""
