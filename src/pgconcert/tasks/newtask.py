"""What an application says when it puts a task into a queue, checked: pure functions, without a connection.

Both twins and ``transaction.enqueue`` read their arguments here. What is too large, too late or no payload is refused
before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, get_args

from ..acquiring import is_number
from ..errors import ConfigurationError, PayloadInvalid, PayloadTooLarge, given
from ..keys import KeySpace
from ..pubsub.broker import MAX_PAYLOAD, NOTHING
from ..pubsub.envelope import json_bytes, payload_bytes
from ..sessions.register import subject_of
from ..taskstore import NewTask, QueuePlace, TaskState
from .sources import DEFAULT_ATTEMPTS, MAX_ATTEMPTS, QueueTasks

__all__ = ["MAX_LOOK", "NOTHING", "Payload", "check_look", "new_task", "new_tasks", "queue_place", "task_ids"]

Payload = bytes | bytearray | memoryview | str

MAX_LOOK: Final = 100_000
"""The most tasks that one look may ask for."""

_LONGEST: Final = 100 * 366 * 86_400.0
"""The longest ``run_in``: a hundred years."""
_END: Final = 253_402_300_799.0
"""The last second of the year 9999."""


def queue_place(keys: KeySpace, queue: str | QueueTasks) -> QueuePlace:
    """Where a queue is, for the store. Raises ``KeyInvalid``."""
    tasks = queue if isinstance(queue, QueueTasks) else None
    name = subject_of("queue", keys, queue if tasks is None else tasks.name).name
    return QueuePlace(keys.namespace, name, 0.0 if tasks is None else tasks.retention)


def new_task(
    payload: Payload = b"",
    json: Any = NOTHING,
    run_at: datetime | None = None,
    run_in: float | None = None,
    attempts: int | None = None,
    default: int = DEFAULT_ATTEMPTS,
) -> NewTask:
    """One task; ``default`` attempts, where none are said. Raises ``PayloadInvalid``, ``ConfigurationError``."""
    if json is not NOTHING:
        if payload != b"":
            raise ConfigurationError("give a payload or json=, not both")
        payload = json_bytes(json)
    return _task(payload, *_when(run_at, run_in), default if attempts is None else attempts)


def new_tasks(
    payloads: Iterable[Payload | NewTask],
    run_at: datetime | None = None,
    run_in: float | None = None,
    attempts: int | None = None,
    default: int = DEFAULT_ATTEMPTS,
) -> tuple[NewTask, ...]:
    """Several; what is a ``NewTask`` stays as it is. Raises as ``new_task``, and names the one that is wrong."""
    if isinstance(payloads, (str, bytes, bytearray, memoryview)):
        raise PayloadInvalid(
            f"enqueue_many takes several payloads, and {given(payloads)} is one: use enqueue, or a list"
        )
    if not isinstance(payloads, Iterable):
        raise ConfigurationError(f"enqueue_many takes an iterable of payloads, not {given(payloads)}")
    when = _when(run_at, run_in)
    tries = default if attempts is None else attempts
    _task(b"", *when, tries)  # what is wrong with all of them is no one's fault
    made = []
    for number, one in enumerate(payloads):
        try:
            made.append(_task(*one) if isinstance(one, NewTask) else _task(one, *when, tries))
        except ConfigurationError as error:
            error.add_note(f"this was number {number} of the payloads, from 0")
            raise
    return tuple(made)


def task_ids(ids: tuple[str, ...]) -> tuple[str, ...] | None:
    """The ids that a caller named; none at all means all. Raises ``ConfigurationError``."""
    for one in ids:
        if not isinstance(one, str):
            raise ConfigurationError(f"the id of a task is a text, not {given(one)}")
    return ids or None


def check_look(state: object, limit: object) -> None:
    """Check what somebody wants to see of a queue. Raises ``ConfigurationError``."""
    states = get_args(TaskState)
    if state is not None and state not in states:
        raise ConfigurationError(f"state is one of {', '.join(states)}, or None for all, not {given(state)}")
    if type(limit) is not int or not 1 <= limit <= MAX_LOOK:
        raise ConfigurationError(f"limit is a whole number from 1 to {MAX_LOOK:,}, not {given(limit)}")


def _task(payload: Payload, run_at: float | None, run_in: float | None, attempts: int) -> NewTask:
    raw = payload_bytes(payload)
    if len(raw) > MAX_PAYLOAD:
        raise PayloadTooLarge(f"a payload of {len(raw):,} bytes is larger than the largest of all, {MAX_PAYLOAD:,}")
    if type(attempts) is not int or not 1 <= attempts <= MAX_ATTEMPTS:
        raise ConfigurationError(f"attempts is a whole number from 1 to {MAX_ATTEMPTS:,}, not {given(attempts)}")
    if run_at is not None and run_in is not None:
        raise ConfigurationError("give run_at or run_in, not both")
    if run_at is not None and (not is_number(run_at) or not 0 <= run_at <= _END):
        raise ConfigurationError(
            f"run_at is from 1970 to the end of 9999 (of a NewTask in seconds since 1970), not {given(run_at)}"
        )
    if run_in is not None and (not is_number(run_in) or not 0 <= run_in <= _LONGEST):
        raise ConfigurationError(f"run_in is 0 to {_LONGEST:,.0f} seconds, not {given(run_in)}")
    return NewTask(raw, run_at, run_in, attempts)


def _when(run_at: datetime | None, run_in: float | None) -> tuple[float | None, float | None]:
    if run_at is None:
        return None, run_in
    if not isinstance(run_at, datetime):
        raise ConfigurationError(f"run_at is a datetime with a time zone, not {given(run_at)}")
    if run_at.utcoffset() is None:
        raise ConfigurationError(
            f"run_at={run_at.isoformat()} has no time zone, so nobody knows when that is: datetime.now(UTC), or "
            ".astimezone(), gives it one"
        )
    # what has passed is due: at once, and not before 1970
    return max(run_at.timestamp(), 0.0), run_in
