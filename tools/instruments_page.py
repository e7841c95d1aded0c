"""Write the page of all events, metrics and spans, from the tables and classes themselves.

    python3 tools/instruments_page.py

A test compares the page that is there with what ``page()`` returns.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

from pgconcert import events
from pgconcert.events import Event
from pgconcert.instrument.metrics import METRICS, Metric
from pgconcert.instrument.otel_metrics import ATTRIBUTES
from pgconcert.instrument.spans import SPANS, SpanRow

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/instruments.md"

HEAD = """\
# Events, metrics and spans

Written by `tools/instruments_page.py`. How to use them: [logs and events](../how-to/observe.md),
[metrics and traces](../how-to/metrics-and-traces.md).
"""

EVENTS = """
## Events

Each is a class of {doc}`pgconcert.events <events>`. All have `at`, the time in seconds since 1970. Where several levels
stand, it depends on how bad it is. What has none is not logged, and made only while somebody reads it.
"""

METRICS_HEAD = """
## Metrics

The first name is that of Prometheus, the second that of OpenTelemetry. The buckets of histograms (`_bucket`, beside
`_sum` and `_count`) go from a millisecond to five minutes. Numbers of `statistics()` and `health()` are read when
somebody collects; the others are told by events, and count from the moment when the coordinator is instrumented. All
have its name: label `coordinator`, attribute `pgconcert.coordinator`.
"""

SPANS_HEAD = """
## Spans

Of OpenTelemetry. What events make has no parent; all that belongs to a coordinator has `pgconcert.coordinator`.
"""


def kinds() -> list[type[Event]]:
    """Every kind of event, by the files in which they stand, and there in their order."""
    found = [kind for name in events.__all__ if issubclass(kind := getattr(events, name), Event) and kind is not Event]
    return sorted(found, key=lambda kind: (kind.__module__, inspect.getsourcelines(kind)[1]))


def levels(kind: type[Event]) -> str:
    """The levels that its records may have, as its ``level`` names them."""
    getter = inspect.getattr_static(kind, "level")
    source = inspect.getsource(getter.fget)
    return ", ".join(dict.fromkeys(re.findall(r"logging\.([A-Z]+)", source))) or "-"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = [*head]
    lines = [names, ["---"] * len(names), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(names: Iterable[str]) -> str:
    """Names as code, or nothing."""
    return ", ".join(f"`{name}`" for name in names)


def event_row(kind: type[Event]) -> list[str]:
    """What is said of an event."""
    said = " ".join((kind.__doc__ or "").split()).replace("``", "`")
    fields = [field.name for field in dataclasses.fields(kind) if field.name != "at"]
    return [f"`{kind.__name__}`", levels(kind), said, code(fields)]


def metric_row(metric: Metric) -> list[str]:
    """What is said of a metric."""
    labels = [f"`{label}` (`{ATTRIBUTES[label]}`)" for label in metric.source.labels]
    kind = {"updown": "gauge"}.get(metric.kind, metric.kind)
    names = f"`{metric.exposed}`<br>`{metric.semantic or metric.name}`"
    return [names, kind, metric.help, f"`{metric.source.where}`", ", ".join(labels)]


def span_row(span: SpanRow) -> list[str]:
    """What is said of a span."""
    return [f"`{span.name}`", span.kind, span.when, code(span.made_by.split(", ")), code(span.attributes)]


def page() -> str:
    """The whole page."""
    return "".join(
        (
            HEAD,
            EVENTS,
            table(("event", "level", "when", "fields"), map(event_row, kinds())),
            METRICS_HEAD,
            table(("names", "kind", "what", "fed by", "labels (attributes)"), map(metric_row, METRICS)),
            SPANS_HEAD,
            table(("span", "kind", "when", "made by", "attributes"), map(span_row, SPANS)),
        )
    )


if __name__ == "__main__":
    PAGE.write_text(page())
