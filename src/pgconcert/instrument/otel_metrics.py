"""The instruments of OpenTelemetry, made of the table of metrics.

Theory. Instruments belong to a provider and cannot be taken back, so they are made once for each provider, for all
coordinators that are instrumented with it; an attribute tells these apart. What events tell is added as it comes; the
rest is observed when somebody collects, of those coordinators that are there then. So one that is closed leaves
instruments behind which say nothing of it any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, MeterProvider, Observation

from .. import __version__
from ..errors import ConfigurationError
from ..events import Event
from .metrics import BY_EVENT, METRICS, SECONDS, Metric, Read, look, summed

if TYPE_CHECKING:
    from ..composition import Composition

__all__ = ["ATTRIBUTES", "CoordinatorMetrics"]

ATTRIBUTES: Final[Mapping[str, str]] = {
    "channel": "messaging.destination.name",
    "code": "pgconcert.step",
    "error": "error.type",
    "event": "pgconcert.event",
    "kind": "pgconcert.kind",
    "name": "pgconcert.name",
    "reason": "pgconcert.reason",
    "role": "db.client.connection.pool.name",
    "runner": "pgconcert.runner",
    "state": "db.client.connection.state",
}
"""What the labels of the table are called here."""

_VALUES: Final[Mapping[tuple[str, str], str]] = {
    ("error", "failed"): "_OTHER",
    ("state", "ready"): "used",
    ("state", "idle"): "unneeded",
}
"""What the semantic conventions have a word of their own for, or mean something else by: an idle connection is open
there."""

_ALSO: Final[Mapping[str, Mapping[str, str]]] = {
    "db.client.connection.count": {"db.system.name": "postgresql"},
    "messaging.client.sent.messages": {"messaging.system": "postgresql", "messaging.operation.name": "publish"},
    "messaging.client.consumed.messages": {"messaging.system": "postgresql", "messaging.operation.name": "receive"},
}
"""Which attributes they want besides."""

_mutex: Final = threading.Lock()
_instruments: Final[WeakKeyDictionary[MeterProvider, _Instruments]] = WeakKeyDictionary()


class CoordinatorMetrics:
    """The metrics of one coordinator, until ``close``. Raises ``ConfigurationError`` if another one has these
    attributes."""

    def __init__(self, coordinator: Composition[Any], attributes: Mapping[str, str], provider: MeterProvider) -> None:
        self.coordinator: Final = coordinator
        self.attributes: Final = attributes
        with _mutex:
            if provider not in _instruments:
                _instruments[provider] = _Instruments(provider.get_meter("pgconcert", __version__))
            self._instruments = _instruments[provider]
            if any(one.attributes == attributes for one in self._instruments.watched):
                raise ConfigurationError(
                    f"a coordinator with the attributes {dict(attributes)} is instrumented already: give each a name=, "
                    "or attributes= here"
                )
            self._instruments.watched = (*self._instruments.watched, self)
        self._stop = coordinator.events.subscribe(self._told, *BY_EVENT)

    def close(self) -> None:
        """Tell nothing any more. Idempotent; from any thread."""
        self._stop()
        with _mutex:
            watched = self._instruments.watched
            self._instruments.watched = tuple(one for one in watched if one is not self)

    def _told(self, event: Event) -> None:
        for metric, source in BY_EVENT[type(event)]:
            sample = source.sample(event)
            if sample is not None:
                attributes = self.attributes_of(metric, tuple(sample.labels.items()))
                self._instruments.tell(metric, sample.value, attributes)

    def attributes_of(self, metric: Metric, labels: Iterable[tuple[str, str]]) -> dict[str, str]:
        """The attributes of a value."""
        also = _ALSO.get(metric.semantic or "", {})
        own = {ATTRIBUTES[label]: _VALUES.get((label, text), text) for label, text in labels}
        return {**self.attributes, **also, **own}


class _Instruments:
    """Those of one provider."""

    def __init__(self, meter: Meter) -> None:
        self.watched: tuple[CoordinatorMetrics, ...] = ()
        self._told: dict[Metric, Counter | Histogram] = {}
        for metric in METRICS:
            if isinstance(metric.source, Read):
                self._observe(meter, metric, metric.source)
            elif metric.kind == "histogram":
                self._told[metric] = meter.create_histogram(
                    metric.semantic or metric.name,
                    metric.unit,
                    metric.help,
                    explicit_bucket_boundaries_advisory=SECONDS,
                )
            else:
                self._told[metric] = meter.create_counter(metric.semantic or metric.name, metric.unit, metric.help)

    def tell(self, metric: Metric, value: float, attributes: Mapping[str, str]) -> None:
        """Add a value."""
        instrument = self._told[metric]
        if isinstance(instrument, Histogram):
            instrument.record(value, attributes)
        else:
            instrument.add(value, attributes)

    def _observe(self, meter: Meter, metric: Metric, source: Read) -> None:
        create = {
            "counter": meter.create_observable_counter,
            "updown": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }[metric.kind]
        create(metric.semantic or metric.name, [partial(self._observed, metric, source)], metric.unit, metric.help)

    def _observed(self, metric: Metric, source: Read, options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, one.attributes_of(metric, labels))
            for one in self.watched
            for labels, value in summed(source.samples(look(one.coordinator))).items()
        ]
