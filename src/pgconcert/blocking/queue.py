"""Queues for threads: the twin of ``pgconcert.tasks.queue``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from ..sessions.register import SessionRegister
from ..tasks.newtask import NOTHING, check_look, new_task, new_tasks, queue_place, task_ids
from ..tasks.queue import look_at, queue_info
from ..tasks.sources import DEFAULT_ATTEMPTS, QueueTasks
from ..taskstore import (
    DiscardTasks,
    Enqueue,
    LookAtQueues,
    LookAtTasks,
    NewTask,
    QueueInfo,
    RetryTasks,
    TaskInfo,
    TaskState,
)
from .acquiring import Register
from .watching import ask

__all__ = ["TaskQueue", "queues"]


class TaskQueue:
    """A queue of tasks in our own tables, for all processes that use the same database. Made by ``Coordinator.queue``.

    The object itself holds nothing: it may be shared by threads. Every method raises ``Unavailable`` while there is no
    connection, ``SchemaMissing`` without our tables, and ``CoordinatorClosed``.
    """

    def __init__(self, of: SessionRegister[Register], queue: str | QueueTasks) -> None:
        self._of = of
        self._place = queue_place(of.keys, queue)
        self._attempts = queue.attempts if isinstance(queue, QueueTasks) else DEFAULT_ATTEMPTS

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._place.name

    def enqueue(
        self,
        payload: bytes | bytearray | memoryview | str = b"",
        *,
        json: Any = NOTHING,
        run_at: datetime | None = None,
        run_in: float | None = None,
        attempts: int | None = None,
    ) -> str:
        """Put a task into the queue: its id. When this returns, the server has committed it, and runners that are idle
        have been told.

        :param payload: bytes or text, at most 64 MiB.
        :param json: instead of a payload: a value that is kept as JSON (``Task.json`` reads it).
        :param run_at: not before this time by the server's clock: a ``datetime`` with a time zone.
        :param run_in: not before so many seconds from now (0 to 100 years).
        :param attempts: after how many attempts that failed it is *dead* (1 to 32,767); by default as the queue says.

        Without ``run_at`` and ``run_in`` it may be run at once. If the connection dies before the answer (``LinkLost``)
        nobody knows whether it is there. Interrupted, it may be enqueued all the same. Raises ``PayloadInvalid``,
        ``PayloadTooLarge``, ``ConfigurationError``.
        """
        task = new_task(payload, json, run_at, run_in, attempts, self._attempts)
        return ask(self._of, Enqueue(place=self._place, tasks=(task,)))[0]

    def enqueue_many(
        self,
        payloads: Iterable[bytes | bytearray | memoryview | str | NewTask],
        *,
        run_at: datetime | None = None,
        run_in: float | None = None,
        attempts: int | None = None,
    ) -> tuple[str, ...]:
        """Put several tasks into the queue, all or none, in one statement: their ids, in order.

        A payload is as for ``enqueue``, or a ``NewTask``, which says for itself when it may be run and how often; the
        other parameters are for the rest. All are checked before anything is sent.
        """
        tasks = new_tasks(payloads, run_at, run_in, attempts, self._attempts)
        return ask(self._of, Enqueue(place=self._place, tasks=tasks)) if tasks else ()

    def statistics(self) -> QueueInfo:
        """How many tasks there are of each state. It counts them, so it takes longer the more there are."""
        return queue_info(self._place, ask(self._of, look_at(self._place)))

    def tasks(self, state: TaskState | None = None, limit: int = 100) -> tuple[TaskInfo, ...]:
        """The tasks of one state, or all, with their payloads, in the order in which they are run; at most ``limit``
        (1 to 100,000)."""
        check_look(state, limit)
        return ask(self._of, LookAtTasks(place=self._place, state=state, limit=limit))

    def retry(self, *ids: str) -> int:
        """Dead tasks are due at once, with as many attempts as at first: those named, or all. How many they were;
        what is not dead stays as it is."""
        return ask(self._of, RetryTasks(place=self._place, ids=task_ids(ids)))

    def discard(self, *ids: str) -> int:
        """Delete dead tasks: those named, or all. How many they were; what is not dead stays as it is."""
        return ask(self._of, DiscardTasks(place=self._place, ids=task_ids(ids)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


def queues(of: SessionRegister[Register]) -> tuple[QueueInfo, ...]:
    """The queues of this namespace that have a task, by name."""
    return ask(of, LookAtQueues(namespace=of.keys.namespace))
