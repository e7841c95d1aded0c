"""How rows about tasks become the answers to requests. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..taskstore import Held, QueueInfo, TaskInfo, TaskRow, TaskState, Turn, Turned
from .desk import Row
from .link import Rows
from .sessionrows import number, text, text_or_none
from .storestatements import bytes_of
from .taskparameters import is_id

__all__ = [
    "Read",
    "count",
    "held",
    "ids",
    "payload_of",
    "queue_info",
    "settle_enqueued",
    "task_info",
    "turned",
]

Read = Callable[[Row], Any]

_STATES: Final[Mapping[str, TaskState]] = {
    "waiting": "waiting",
    "scheduled": "scheduled",
    "assigned": "assigned",
    "started": "started",
    "dead": "dead",
    "finished": "finished",
}


def payload_of(row: Row) -> bytes:
    """The payload of a queue's task."""
    return bytes_of(row[0])


def turned(turn: Turn, rows: Rows, read: Read, *, queue: bool) -> Turned:
    """From the rows of a turn: see ``turn_statement``. ``read`` makes a payload of what stands behind the attempt."""
    begun: dict[str, TaskRow] = {}
    handed: list[tuple[int, TaskRow]] = []
    assigned: list[tuple[int, str]] = []
    refused: set[str] = set()
    died: list[str] = []
    summary: list[str] = []
    for row in rows:
        kind, name = row[0], text(row[1])
        if kind == b"b":
            begun[name] = TaskRow(name, int(row[3] or 0), read(row[4:]))
        elif kind == b"h":
            handed.append((int(row[2] or 0), TaskRow(name, int(row[3] or 0), read(row[4:]))))
        elif kind == b"a":
            assigned.append((int(row[2] or 0), name))
        elif kind == b"r":
            refused.add(name)
        elif kind == b"d":
            died.append(name)
        else:
            summary = name.split(",")
    if not summary:
        raise ValueError("the answer to a turn does not say whether its session is alive")
    if summary[0] != "t":
        return Turned(over=True)
    reported = dict.fromkeys((*turn.finished, *(failure.id for failure in turn.failed), *turn.released))
    nobodys = {one for one in reported if not is_id(one)} if queue else set()
    told = Turned(
        started=(
            *(begun[one] for one in dict.fromkeys(turn.start) if one in begun),
            *(task for _, task in sorted(handed, key=_first)),
        ),
        assigned=tuple(name for _, name in sorted(assigned)),
        refused=tuple(one for one in reported if one in refused or one in nobodys),
        died=tuple(died),
    )
    if len(summary) == 1:
        return told
    rests = [failure.retry_in for failure in turn.failed if queue and failure.id not in (*told.refused, *died)]
    return Turned(
        started=told.started,
        assigned=told.assigned,
        refused=told.refused,
        died=told.died,
        sessions=int(summary[1]),
        outstanding=int(summary[2]),
        share=int(summary[3]),
        next_in=min([*map(float, summary[4:]), *rests], default=None),
    )


def ids(rows: Rows) -> tuple[str, ...]:
    """Rows of one id."""
    return tuple(text(row[0]) for row in rows)


def count(rows: Rows) -> int:
    """A number."""
    return int(rows[0][0] or 0)


def held(rows: Rows) -> tuple[Held, ...]:
    """Rows of a session, and how much it has."""
    return tuple(Held(*(int(value or 0) for value in row)) for row in rows)


def queue_info(row: Row) -> QueueInfo:
    """From the columns of a queue."""
    waiting, scheduled, assigned, started, dead, finished = (int(value or 0) for value in row[2:8])
    return QueueInfo(
        namespace=text(row[0]),
        name=text(row[1]),
        waiting=waiting,
        scheduled=scheduled,
        assigned=assigned,
        started=started,
        dead=dead,
        finished=finished,
        oldest=number(row[8]),
    )


def task_info(row: Row) -> TaskInfo:
    """From the columns of a task of a queue."""
    return TaskInfo(
        id=text(row[0]),
        state=_STATES[text(row[1])],
        payload=bytes_of(row[2]),
        attempt=int(row[3] or 0),
        attempts=int(row[4] or 0),
        created=float(row[5] or 0),
        run_at=number(row[6]),
        session=None if row[7] is None else int(row[7]),
        error=text_or_none(row[8]),
        finished=number(row[9]),
    )


def _first(pair: tuple[int, TaskRow]) -> int:
    return pair[0]


def settle_enqueued(batch: Sequence[Any], rows: Rows) -> None:
    """Ids, as many for each request as it has tasks."""
    wanted = sum(len(request.what.tasks) for request in batch)
    if len(rows) != wanted:
        raise ValueError(f"{wanted} tasks were enqueued, and {len(rows)} ids came")
    found = iter(ids(rows))
    for request in batch:
        request.settle(tuple(next(found) for _ in request.what.tasks))
