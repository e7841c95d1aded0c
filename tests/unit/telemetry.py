"""Providers of OpenTelemetry that keep everything in memory, so that it can be read back."""

from __future__ import annotations

import re
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from pgconcert.instrument.spans import SPANS, SpanRow

__all__ = ["Telemetry", "about", "place"]


def about(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def place(span: ReadableSpan) -> SpanContext:
    """Which trace a span belongs to, and its number there."""
    context: SpanContext | None = span.context
    assert context is not None
    return context


class Telemetry:
    """Providers that keep everything in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader])
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def providers(self) -> dict[str, Any]:
        return {"tracer_provider": self.tracer_provider, "meter_provider": self.meter_provider}

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (one,) = self.spans(name)
        return one

    def points(self) -> dict[str, list[Any]]:
        """The points of each metric."""
        data = self.reader.get_metrics_data()
        scopes = [] if data is None else [scope for one in data.resource_metrics for scope in one.scope_metrics]
        return {metric.name: [*metric.data.data_points] for scope in scopes for metric in scope.metrics}

    def value(self, name: str, **attributes: str) -> float:
        """The one point of a metric that has these attributes, with dots written as two underscores."""
        wanted = {key.replace("__", "."): text for key, text in attributes.items()}
        (one,) = [point for point in self.points()[name] if wanted.items() <= dict(point.attributes).items()]
        return one.count if isinstance(one, HistogramDataPoint) else one.value

    def check(self) -> None:
        """Every span of ours is as the table says."""
        for span in self.exporter.get_finished_spans():
            if span.instrumentation_scope is not None and span.instrumentation_scope.name == "pgconcert":
                (row,) = [row for row in SPANS if _fits(row, span.name)]
                assert span.kind.name == row.kind.upper()
                assert about(span).keys() <= {*row.attributes, "pgconcert.coordinator"}

    def close(self) -> None:
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


def _fits(row: SpanRow, name: str) -> bool:
    if row.name == "wait for {kind}" and name == "wait for lock":
        return False
    return re.fullmatch(re.sub(r"\{.*?\}", ".+", row.name), name) is not None
