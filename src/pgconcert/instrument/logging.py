"""Logs for machines: a formatter that writes JSON, and a filter that adds the fields of events to records.

The coordinator logs by itself, on the logger ``pgconcert``, and hangs the event on the record (``record.event``). What
stands here shapes those records and decides nothing: which are written, and where to, is said to ``logging`` as for any
other logger. Both work for the records of all loggers, so they can be given to the one handler of a program.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from ..events import Event
from .fields import fields, kind

__all__ = ["EventFields", "JsonFormatter"]


class JsonFormatter(logging.Formatter):
    """Writes each record as one line of JSON.

    Every line has ``time`` (UTC, ISO 8601), ``level``, ``logger`` and ``message``; one of an event has ``event``, its
    kind, and ``fields`` besides; and where there is an exception, ``exception`` is its traceback.

    :param static: what every line shall have besides, such as the name of the service; anything with a JSON form.
        It cannot replace what stands above.
    """

    def __init__(self, static: dict[str, Any] | None = None) -> None:
        super().__init__()
        self._static = dict(static or {})
        json.dumps(self._static, allow_nan=False)  # what has no JSON form is found here, and not at the first line

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            **self._static,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        event = getattr(record, "event", None)
        if isinstance(event, Event):
            line["event"] = kind(event)
            line["fields"] = fields(event)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        # half a surrogate pair, as in the name of a file that is no UTF-8, cannot be written: JSON has escapes for it
        return json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


class EventFields(logging.Filter):
    """Adds the fields of events to records, for formatters that know attributes only: ``pgconcert_event`` is the kind
    (empty for what is no event), and each field is an attribute with ``pgconcert_`` in front. Lets every record pass.

    Give it to a handler: filters of a logger do not see what comes from the loggers below it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add them. Always true."""
        event = getattr(record, "event", None)
        record.pgconcert_event = ""
        if isinstance(event, Event):
            record.pgconcert_event = kind(event)
            for name, value in fields(event).items():
                setattr(record, f"pgconcert_{name}", value)
        return True
