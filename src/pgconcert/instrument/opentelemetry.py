"""Metrics and traces for OpenTelemetry. Needs ``pip install 'pgconcert[opentelemetry]'``: its API only.

Here lives what is public; it is done by ``otel_metrics.py``, ``otel_spans.py`` (both are readers of events) and
``otel_context.py`` (traces that go on in another process). Names are those of the semantic conventions, where they have
one; all others begin with ``pgconcert.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..acquiring import is_number
from ..errors import ConfigurationError, given
from .instrumentation import Instrumentation
from .metrics import name_of

try:
    from opentelemetry.metrics import MeterProvider, get_meter_provider
    from opentelemetry.trace import TracerProvider, get_tracer
except ModuleNotFoundError as error:
    raise ImportError(
        "pgconcert.instrument.opentelemetry needs opentelemetry-api: pip install 'pgconcert[opentelemetry]'"
    ) from error

from .otel_context import CARRIED, carry, headers, processing, publishing, traced, working
from .otel_metrics import CoordinatorMetrics
from .otel_spans import CoordinatorSpans

if TYPE_CHECKING:
    from ..composition import Composition

__all__ = [
    "CARRIED",
    "Instrumentation",
    "carry",
    "headers",
    "instrument",
    "processing",
    "publishing",
    "traced",
    "working",
]


def instrument(
    coordinator: Composition[Any],
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    attributes: Mapping[str, str] | None = None,
    waits: float | None = None,
) -> Instrumentation:
    """Tell OpenTelemetry what a coordinator of either kind does, from now on, until ``close()`` of what is returned.

    :param tracer_provider: who gets the spans; the global one by default.
    :param meter_provider: who gets the metrics; the global one by default.
    :param attributes: what every metric and span has besides ``pgconcert.coordinator``, which is the coordinator's
        name; they may replace that.
    :param waits: waits for locks and names of at least so many seconds become spans; ``None``: none do.

    Raises ``ConfigurationError`` if another coordinator with these attributes is instrumented there: give them names.
    """
    wrong: object = waits
    if wrong is not None and (not is_number(wrong) or not wrong >= 0):
        raise ConfigurationError(f"waits is a number of seconds from 0, or None, not {given(wrong)}")
    told = {"pgconcert.coordinator": name_of(coordinator), **(attributes or {})}
    tracer = get_tracer("pgconcert", __version__, tracer_provider)  # what is no provider is found before anything began
    metrics = CoordinatorMetrics(coordinator, told, meter_provider or get_meter_provider())
    return Instrumentation(metrics.close, CoordinatorSpans(coordinator, told, tracer, waits).close)
