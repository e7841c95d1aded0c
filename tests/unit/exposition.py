"""What Prometheus reads of a registry, by its own parsers. Helpers without assertions about what is exposed."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

__all__ = ["by_name", "openly", "plain", "values"]


def by_name(families: Iterable[Metric]) -> dict[str, Metric]:
    """Families by their names."""
    return {family.name: family for family in families}


def plain(registry: CollectorRegistry) -> list[Metric]:
    """The families, by way of the text format."""
    return [*parse(generate_latest(registry).decode())]


def openly(registry: CollectorRegistry) -> list[Metric]:
    """The families, by way of OpenMetrics."""
    text: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
    return [*parse_openmetrics(text.decode())]  # type: ignore[no-untyped-call]


def values(registry: CollectorRegistry, coordinator: str | None = None) -> dict[str, float]:
    """Every sample, of one coordinator or of all, by its name and its labels without that of the coordinator. Both
    formats must say the same of which there are."""
    found = _samples(plain(registry), coordinator)
    assert _samples(openly(registry), coordinator).keys() == found.keys()
    return found


def _samples(families: Iterable[Metric], coordinator: str | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            if coordinator in (None, sample.labels["coordinator"]):
                labels = ",".join(
                    f"{key}={text}" for key, text in sorted(sample.labels.items()) if key != "coordinator"
                )
                name = f"{sample.name}{{{labels}}}" if labels else sample.name
                assert name not in found
                found[name] = sample.value
    return found
