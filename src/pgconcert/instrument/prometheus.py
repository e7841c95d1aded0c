"""Metrics for Prometheus. Needs ``pip install 'pgconcert[prometheus]'``.

Theory. One collector stands in a registry for all coordinators that are instrumented there, because a metric may have
one family only; the label ``coordinator`` tells them apart. What events tell is added up as they come, behind a mutex,
for they may come on the engine's thread while another thread collects. What is read from a coordinator is read once for
each collection, by the thread that collects, and nothing is sent for it::

    instrument() -> exposed --close()--> gone; with the last one the collector leaves the registry

A coordinator that is closed goes on being exposed, with its last counts and not ready, until ``close``. The mutex may
be taken twice by one thread: a hold that is thrown away while a value is added tells its end right there. A forked
child has mutexes of its own, for those of the parent may have been taken at that instant.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..errors import ConfigurationError, given
from ..events import Event
from .instrumentation import Instrumentation
from .metrics import BY_EVENT, METRICS, SECONDS, Look, Metric, Read, Sample, Told, look, name_of, summed

try:
    from prometheus_client import REGISTRY, CollectorRegistry, make_asgi_app
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise ImportError(
        "pgconcert.instrument.prometheus needs prometheus-client: pip install 'pgconcert[prometheus]'"
    ) from error

if TYPE_CHECKING:
    from ..composition import Composition
    from ..statistics import RecoveryStatistics

__all__ = ["Instrumentation", "instrument", "metrics_app"]

Labels = tuple[tuple[str, str], ...]

_TYPES: Final = {"counter": "counter", "updown": "gauge", "gauge": "gauge", "histogram": "histogram"}
_OWN: Final = frozenset({"le"}.union(*(metric.source.labels for metric in METRICS)))
_BOUNDS: Final = (*map(str, SECONDS), "+Inf")
_mutex = threading.Lock()
_collectors: Final[dict[CollectorRegistry, _Collector]] = {}
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


def instrument(
    coordinator: Composition[Any],
    registry: CollectorRegistry = REGISTRY,
    *,
    labels: Mapping[str, str] | None = None,
    without: Collection[str] = (),
    elephantine_names: bool = False,
) -> Instrumentation:
    """Expose what a coordinator of either kind does, from now on, until ``close()`` of what is returned.

    :param registry: where; the default one of ``prometheus_client``.
    :param labels: labels that every sample has besides ``coordinator``, which is the coordinator's name; they may
        replace that.
    :param without: labels to leave out: ``{"name"}``, say, where job locks have many names. What is alike then is added
        up.
    :param elephantine_names: expose what polling has found by the names of elephantine, too, so that its dashboards go
        on: ``pg_fanout_<channel>_poll_saved_total`` and ``pg_fanout_<channel>_poll_saved_streak``. Characters of
        the channel that such a name cannot have become ``_``; channels that are alike then share a name and are told
        apart by the label ``channel``.

    Raises ``ConfigurationError`` if another coordinator with these labels is exposed there: give them names.
    """
    fixed = {"coordinator": name_of(coordinator), **(labels or {})}
    checked: Mapping[Any, Any] = fixed
    for label, value in checked.items():
        if not isinstance(label, str) or not _LABEL.fullmatch(label) or not isinstance(value, str):
            raise ConfigurationError(
                f"labels= are texts by names of letters, digits and _, not {given({label: value})}"
            )
    if taken := sorted(_OWN & fixed.keys()):
        raise ConfigurationError(f"labels= may not name {', '.join(taken)}: metrics have these themselves")
    made = _Exposed(coordinator, registry, fixed, without, elephantine_names)
    with _mutex:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _Collector()
            registry.register(collector)
            _collectors[registry] = collector
        if any(one.labels == made.labels for one in collector.exposed):
            raise ConfigurationError(
                f"a coordinator with the labels {fixed} is exposed already: give each a name=, or labels= here"
            )
        collector.exposed = (*collector.exposed, made)
    made.begin()
    return Instrumentation(made.close)


def metrics_app(registry: CollectorRegistry = REGISTRY) -> Callable[..., Any]:
    """An ASGI application that answers with the metrics of a registry: mount it at ``/metrics``."""
    return make_asgi_app(registry)


class _Exposed:
    """A coordinator that is exposed, with what events have told of it."""

    def __init__(
        self,
        coordinator: Composition[Any],
        registry: CollectorRegistry,
        labels: Mapping[str, str],
        without: Collection[str],
        elephantine_names: bool,
    ) -> None:
        self.labels: Final = dict(labels)
        self._coordinator = coordinator
        self._registry = registry
        self._without = frozenset(without)
        self._elephantine = elephantine_names
        self._lock = threading.RLock()
        self._counts: dict[Metric, dict[Labels, float]] = {}
        self._stop: Callable[[], None] = _nothing
        for metric in METRICS:
            if isinstance(metric.source, Told):
                self._counts[metric] = {} if metric.source.labels else {(): 0.0}
        self._buckets: dict[Metric, dict[Labels, list[int]]] = {
            metric: {key: _no_values() for key in counts}
            for metric, counts in self._counts.items()
            if metric.kind == "histogram"
        }

    def begin(self) -> None:
        """Read events from now on."""
        self._stop = self._coordinator.events.subscribe(self._told, *BY_EVENT)

    def close(self) -> None:
        """Expose it no longer. Idempotent; from any thread."""
        self._stop()
        with _mutex:
            collector = _collectors.get(self._registry)
            if collector is None or self not in collector.exposed:
                return
            collector.exposed = tuple(one for one in collector.exposed if one is not self)
            if not collector.exposed:
                del _collectors[self._registry]
                self._registry.unregister(collector)

    def forked(self) -> None:
        """In a forked child: whoever had the mutex is not here to give it back."""
        self._lock = threading.RLock()

    def look(self) -> Look:
        """What can be read of it now."""
        return look(self._coordinator)

    def add(self, metric: Metric, family: Family, now: Look) -> None:
        """Add what is known of a metric to its family."""
        if isinstance(metric.source, Read):
            self._add(metric, family, summed(metric.source.samples(now), self._without))
            return
        with self._lock:
            counts = dict(self._counts[metric])
            buckets = {key: [*numbers] for key, numbers in self._buckets.get(metric, {}).items()}
        if metric.kind == "histogram":
            for key, numbers in buckets.items():
                self._add_histogram(metric, family, key, numbers, counts[key])
        else:
            self._add(metric, family, counts)

    def recoveries(self, now: Look) -> tuple[RecoveryStatistics, ...]:
        """What is exposed by the names of elephantine."""
        return now.statistics.recoveries if self._elephantine else ()

    def _add(self, metric: Metric, family: Family, values: Mapping[Labels, float]) -> None:
        for key, value in values.items():
            family.add_sample(metric.exposed, {**self.labels, **dict(key)}, value)

    def _add_histogram(self, metric: Metric, family: Family, key: Labels, numbers: list[int], total: float) -> None:
        labels = {**self.labels, **dict(key)}
        below = 0
        for bound, number in zip(_BOUNDS, numbers, strict=True):
            below += number
            family.add_sample(f"{metric.family}_bucket", {**labels, "le": bound}, below)
        family.add_sample(f"{metric.family}_count", labels, below)
        family.add_sample(f"{metric.family}_sum", labels, total)

    def _told(self, event: Event) -> None:
        for metric, source in BY_EVENT[type(event)]:
            sample = source.sample(event)
            if sample is not None:
                self._count(metric, sample)

    def _count(self, metric: Metric, sample: Sample) -> None:
        ((key, value),) = summed((sample,), self._without).items()
        with self._lock:
            counts = self._counts[metric]
            counts[key] = counts.get(key, 0.0) + value
            if metric.kind == "histogram":
                self._buckets[metric].setdefault(key, _no_values())[bisect_left(SECONDS, value)] += 1


class _Collector(Collector):
    """What stands in a registry."""

    def __init__(self) -> None:
        self.exposed: tuple[_Exposed, ...] = ()

    def describe(self) -> Iterable[Family]:
        """The families, without samples: for a registry that looks whether a name is taken."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Family]:
        """Everything, as it is now."""
        looks = [(one, one.look()) for one in self.exposed]
        for metric in METRICS:
            family = _family(metric)
            for one, now in looks:
                one.add(metric, family, now)
            yield family
        yield from _elephantine(looks)


def _family(metric: Metric) -> Family:
    return Family(metric.family, metric.help, _TYPES[metric.kind], metric.base_unit)


def _elephantine(looks: Iterable[tuple[_Exposed, Look]]) -> Iterable[Family]:
    families: dict[str, tuple[Family, Family]] = {}
    for one, now in looks:
        for recovery in one.recoveries(now):
            name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in recovery.channel)
            base = f"pg_fanout_{name}_poll_saved"
            if base not in families:
                families[base] = (
                    Family(base, "Items that polls have found and no message had told of.", "counter"),
                    Family(f"{base}_streak", "Polls in a row that found something.", "gauge"),
                )
            saved, streak = families[base]
            labels = {**one.labels, "channel": recovery.channel}
            saved.add_sample(f"{base}_total", labels, recovery.saved)
            streak.add_sample(f"{base}_streak", labels, recovery.streak)
    return [family for pair in families.values() for family in pair]


def _no_values() -> list[int]:
    return [0] * (len(SECONDS) + 1)


def _nothing() -> None:
    """Nothing was begun."""


def _after_fork_in_child() -> None:
    global _mutex
    _mutex = threading.Lock()
    for collector in _collectors.values():
        for one in collector.exposed:
            one.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
