"""How requests about tasks become the parameters of their statements. Pure.

An id that can be none of a queue (a text that is no number) is not said to the server: nobody has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from ..taskstore import (
    DiscardTasks,
    Enqueue,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    QueuePlace,
    Recall,
    ReleaseTasks,
    RetryTasks,
    Turn,
)
from .desk import Request
from .sessionparameters import integers, texts
from .storestatements import array, packed
from .taskstatements import Part

__all__ = [
    "Ids",
    "Values",
    "check_values",
    "dead_tasks",
    "enqueued",
    "fit_enqueued",
    "is_id",
    "look_filters",
    "move_values",
    "queue_ids",
    "recall_values",
    "release_values",
    "share_values",
    "table_ids",
    "task_filters",
    "turn_parts",
    "turn_values",
]

Values = Mapping[str, bytes]
Ids = Callable[[Iterable[str]], bytes]

_MAX: Final = 2**63 - 1
_MOST: Final = 2**31 - 1
_LONGEST_REST: Final = 10 * 366 * 86_400.0
_LONGEST_ERROR: Final = 10_000
_TASKS_AT_ONCE: Final = 1000
_BYTES_AT_ONCE: Final = 1 << 20


def is_id(text: str) -> bool:
    """Whether a queue can have a task of this id."""
    return text.isascii() and text.isdecimal() and text[0] != "0" and len(text) < 20 and int(text) <= _MAX


def queue_ids(ids: Iterable[str]) -> bytes:
    """An array of ids of a queue, of those that can be some."""
    return array([one.encode() for one in ids if is_id(one)])


def table_ids(ids: Iterable[str]) -> bytes:
    """An array of ids of a table, as texts."""
    return texts([*ids])


def turn_parts(turn: Turn) -> frozenset[Part]:
    """What a turn says and asks."""
    parts: set[Part] = set()
    if turn.finished:
        parts.add("finished")
        if isinstance(turn.place, QueuePlace) and turn.place.retention > 0:
            parts.add("kept")
    if turn.failed:
        parts.add("failed")
    if turn.released:
        parts.add("released")
    if turn.start:
        parts.add("start")
    if turn.pick is not None:
        parts.add("pick")
    return frozenset(parts)


def turn_values(turn: Turn, ids: Ids, utf8: bool) -> Values:
    """For a turn. ``utf8``: whether the database takes every text."""
    failures = [*{failure.id: failure for failure in turn.failed}.values()]
    if isinstance(turn.place, QueuePlace):
        failures = [failure for failure in failures if is_id(failure.id)]
    most, begin, resting = (None, 0, 0) if turn.pick is None else turn.pick
    return {
        **_place(turn.place),
        **_runner(turn.runner.namespace, turn.runner.name),
        "session": b"%d" % turn.session,
        "finished": ids(dict.fromkeys(turn.finished)),
        "failed": ids(failure.id for failure in failures),
        "errors": texts([_said(failure.error, utf8) for failure in failures]),
        "retries": array([repr(_rest(failure.retry_in)).encode() for failure in failures]),
        "released": ids(dict.fromkeys(turn.released)),
        "start": ids(dict.fromkeys(turn.start)),
        "most": b"-1" if most is None else b"%d" % min(max(most, 0), _MOST),
        "begin": b"%d" % min(max(begin, 0), _MOST),
        "resting": b"%d" % min(max(resting, 0), _MOST),
    }


def check_values(place: Any, ids: Ids) -> Values:
    """For a turn of a session that nobody has, which does nothing."""
    nothing: dict[str, bytes] = {name: ids(()) for name in ("finished", "failed", "released", "start")}
    nothing |= dict.fromkeys(("errors", "retries"), b"{}")
    nothing |= dict.fromkeys(("session", "most", "begin", "resting", "retention"), b"0")
    return {**nothing, **_place(place), **_runner("", "")}


def recall_values(recall: Recall, ids: Ids) -> Values:
    """For a recall."""
    return {**_place(recall.place), "session": b"%d" % recall.session, "keep": ids(recall.keep)}


def release_values(release: ReleaseTasks) -> Values:
    """For a release of everything."""
    return {**_place(release.place), "session": b"%d" % release.session}


def share_values(look: LookAtShares) -> Values:
    """For a look at shares."""
    return {**_place(look.place), **_runner(look.runner.namespace, look.runner.name)}


def move_values(move: Move) -> Values:
    """For a move. Who gives is named once."""
    moves = {giver: count for giver, count in move.moves if abs(giver) <= _MAX}
    return {
        **_place(move.place),
        "session": b"%d" % move.session,
        "givers": integers([*moves]),
        "counts": integers([min(count, _MOST) for count in moves.values()]),
    }


def enqueued(batch: Sequence[Request[Enqueue]]) -> Sequence[bytes]:
    """For new tasks, several requests at once."""
    tasks = [(request.what.place, task) for request in batch for task in request.what.tasks]
    return (
        texts([place.namespace for place, _ in tasks]),
        texts([place.name for place, _ in tasks]),
        array([packed(task.payload) for _, task in tasks]),
        _numbers(task.run_at for _, task in tasks),
        _numbers(task.run_in for _, task in tasks),
        integers([task.attempts for _, task in tasks]),
    )


def fit_enqueued(queue: Sequence[Request[Enqueue]]) -> int:
    """How many requests leave together: at least one, however much it is."""
    count = size = 0
    for place, request in enumerate(queue):
        count += len(request.what.tasks)
        size += sum(len(task.payload) for task in request.what.tasks)
        if place and (count > _TASKS_AT_ONCE or size > _BYTES_AT_ONCE):
            return place
    return len(queue)


def of_queue(place: QueuePlace) -> tuple[bytes, bytes]:
    """Namespace and name."""
    return place.namespace.encode(errors="replace"), place.name.encode(errors="replace")


def look_filters(look: LookAtQueues) -> dict[str, bytes]:
    """By which columns queues are looked for, and their values."""
    wanted = {"namespace": look.namespace, "queue": look.name}
    return {column: value.encode(errors="replace") for column, value in wanted.items() if value is not None}


def task_filters(look: LookAtTasks) -> tuple[bytes, ...]:
    """Namespace, queue and how many."""
    return (*of_queue(look.place), b"%d" % min(max(look.limit, 0), _MOST))


def dead_tasks(asked: RetryTasks | DiscardTasks) -> tuple[bytes, ...]:
    """Namespace, queue, and ids, if some are named."""
    return (*of_queue(asked.place), *(() if asked.ids is None else (queue_ids(asked.ids),)))


def _place(place: Any) -> dict[str, bytes]:
    if not isinstance(place, QueuePlace):
        return {}
    namespace, queue = of_queue(place)
    return {"namespace": namespace, "queue": queue, "retention": repr(float(place.retention)).encode()}


def _runner(namespace: str, name: str) -> dict[str, bytes]:
    return {"runner_namespace": namespace.encode(errors="replace"), "runner": name.encode(errors="replace")}


def _said(error: str, utf8: bool) -> str:
    text = error.replace("\0", "\\0")[:_LONGEST_ERROR]
    return text if utf8 else text.encode("ascii", "backslashreplace").decode()


def _rest(seconds: float) -> float:
    return min(max(seconds, 0.0), _LONGEST_REST) if not math.isnan(seconds) else 0.0


def _numbers(values: Iterable[float | None]) -> bytes:
    return array([b"NULL" if value is None else repr(float(value)).encode() for value in values])
