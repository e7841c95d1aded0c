"""The page of events, metrics and spans is the one that its tool writes, and every kind of event is on it."""

from __future__ import annotations

import re

from pgconcert import events
from pgconcert.events import Event
from pgconcert.instrument.metrics import METRICS
from pgconcert.instrument.spans import SPANS
from tools.instruments_page import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python3 tools/instruments_page.py"


def test_everything_is_on_it() -> None:
    """Looked for on the page itself, so that what the tool forgets is missed."""
    firsts = re.findall(r"^\| `([^`]+)`(?:<br>`([^`]+)`)? \|", PAGE.read_text(), flags=re.MULTILINE)
    names = [name for row in firsts for name in row if name]
    kinds = {name for name in events.__all__ if issubclass(getattr(events, name), Event)} - {"Event"}
    assert len(kinds) > 40
    assert {*names} == (
        kinds
        | {metric.exposed for metric in METRICS}
        | {metric.semantic or metric.name for metric in METRICS}
        | {span.name for span in SPANS}
    )


def test_levels_are_told() -> None:
    """Some by name, for the tool reads them from the source."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([A-Z, -]+) \|", PAGE.read_text(), flags=re.MULTILINE))
    assert (rows["LinkOpened"], rows["LockAcquired"], rows["HoldBroken"]) == ("INFO", "-", "ERROR")
    assert rows["QueueFilling"] == "WARNING, ERROR"
