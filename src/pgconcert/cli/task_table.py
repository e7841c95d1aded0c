"""How queues and their tasks are shown: a table on a terminal, aligned lines elsewhere, JSON for programs. Text in,
text out. Payloads and errors come from others: they are shown without control characters, and short, except in JSON.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..taskstore import QueueInfo, TaskInfo
from .console import printable
from .lock_table import aligned

__all__ = ["print_queues", "print_tasks", "queue_as_json", "task_as_json"]

_COUNTS: Final = ("waiting", "scheduled", "assigned", "started", "dead", "finished")
_LONGEST: Final = 60
_SHOWN_BYTES: Final = 16


def print_queues(console: Console, queues: Sequence[QueueInfo]) -> None:
    """A row for each queue."""
    rows = [
        (printable(each.name), *(str(getattr(each, count)) for count in _COUNTS), _lasted(each.oldest))
        for each in queues
    ]
    _print(console, ("queue", *_COUNTS, "oldest"), rows, frozenset({*_COUNTS, "oldest"}))


def print_tasks(console: Console, tasks: Sequence[TaskInfo]) -> None:
    """A row for each task. What no task has is no column."""
    shown = {
        "finished": any(each.finished is not None for each in tasks),
        "session": any(each.session is not None for each in tasks),
        "error": any(each.error is not None for each in tasks),
    }
    rows = [
        (
            each.id,
            each.state,
            f"{each.attempt} of {each.attempts}",
            _when(each.created),
            _when(each.run_at),
            *((_when(each.finished),) if shown["finished"] else ()),
            *((str(each.session or "-"),) if shown["session"] else ()),
            _payload(each.payload),
            *((_shortened(printable(each.error or "-")),) if shown["error"] else ()),
        )
        for each in tasks
    ]
    headers = ("task", "state", "attempt", "created", "due", "finished", "session", "payload", "error")
    _print(console, [each for each in headers if shown.get(each, True)], rows, frozenset({"session"}))


def queue_as_json(queue: QueueInfo) -> dict[str, Any]:
    """For programs. The names and meanings here are documented. ``oldest`` in seconds."""
    counts = {count: getattr(queue, count) for count in _COUNTS}
    return {"namespace": queue.namespace, "name": queue.name, **counts, "oldest": queue.oldest}


def task_as_json(task: TaskInfo) -> dict[str, Any]:
    """For programs. A payload that is no text is ``payload_base64``; the number of a session is a text, because many
    readers of JSON keep 53 bits of a number."""
    payload: dict[str, str]
    try:
        payload = {"payload": task.payload.decode()}
    except UnicodeDecodeError:
        payload = {"payload_base64": base64.b64encode(task.payload).decode()}
    return {
        "id": task.id,
        "state": task.state,
        **payload,
        "attempt": task.attempt,
        "attempts": task.attempts,
        "created": _iso(task.created),
        "run_at": _iso(task.run_at),
        "finished": _iso(task.finished),
        "session": None if task.session is None else str(task.session),
        "error": task.error,
    }


def _print(console: Console, headers: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]) -> None:
    if not console.is_terminal:
        for line in aligned([headers, *rows]):
            console.print(line, markup=False)
        return
    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold", justify="right" if header in right else "left")
    for row in rows:
        made.add_row(*map(Text, row))
    console.print(made)


def _payload(payload: bytes) -> str:
    try:
        return _shortened(printable(payload.decode())) or "-"
    except UnicodeDecodeError:
        more = "..." if len(payload) > _SHOWN_BYTES else ""
        return f"({len(payload)} bytes: {payload[:_SHOWN_BYTES].hex(' ')}{more})"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _lasted(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def _when(at: float | None) -> str:
    return "-" if at is None else f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
