"""The tasks of one queue of a world, and where each of them lies. Who may move a task is said in ``tasks.py``.

Theory. A task lies in one place: what is free in order, what a session has with that session, what is dead or finished
beside. So a pick-up looks at no more than it takes, and neither what is finished nor what is not due costs anything.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..taskstore import TaskState

__all__ = ["QueuedTask", "TaskQueue", "in_order"]


@dataclass(slots=True, eq=False)
class QueuedTask:
    """``session``: whose it is, and ``started`` whether that has begun it. Times of the world's clock."""

    id: int
    payload: bytes
    attempts: int
    created: float
    due: float
    attempt: int = 0
    session: int | None = None
    started: bool = False
    error: str | None = None
    dead: bool = False
    finished: float | None = None

    def state(self, now: float) -> TaskState:
        """What it is now."""
        if self.finished is not None:
            return "finished"
        if self.dead:
            return "dead"
        if self.session is not None:
            return "started" if self.started else "assigned"
        return "waiting" if self.due <= now else "scheduled"


def in_order(task: QueuedTask) -> tuple[float, int]:
    """The order of tasks."""
    return task.due, task.id


@dataclass(slots=True, eq=False)
class TaskQueue:
    """The tasks of one queue, each in ``tasks`` and in one place besides, ``free`` or of a session in ``held``; what is
    dead or finished is only in ``dead`` or ``finished``, those also in ``leaving``, by when they are kept no longer."""

    tasks: dict[str, QueuedTask] = field(default_factory=dict)
    free: list[QueuedTask] = field(default_factory=list)
    held: defaultdict[int, dict[int, QueuedTask]] = field(default_factory=lambda: defaultdict(dict))
    dead: dict[str, QueuedTask] = field(default_factory=dict)
    finished: dict[int, QueuedTask] = field(default_factory=dict)
    leaving: list[tuple[float, int]] = field(default_factory=list)

    def all(self) -> Iterator[QueuedTask]:
        """Everything that is kept."""
        return itertools.chain(self.tasks.values(), self.dead.values(), self.finished.values())

    def of(self, session: int, started: bool | None = None) -> list[QueuedTask]:
        """What a session has, in order."""
        some = self.held.get(session, {}).values()
        return sorted((task for task in some if started in (None, task.started)), key=in_order)

    def ours(self, session: int, id: str, started: bool) -> QueuedTask | None:  # noqa: A002
        """A task of a session, if it is that and has been started, or has not."""
        task = self.tasks.get(id)
        return task if task is not None and (task.session, task.started) == (session, started) else None

    def due(self, now: float) -> int:
        """How many that are free are due."""
        return bisect_right(self.free, (now, float("inf")), key=in_order)

    def let_go(self, task: QueuedTask) -> None:
        """Nobody has it."""
        if task.session is not None:
            held = self.held[task.session]
            del held[task.id]
            if not held:
                del self.held[task.session]
        task.session, task.started = None, False

    def set_free(self, task: QueuedTask, due: float) -> None:
        """It waits for its time, and then for somebody."""
        self.let_go(task)
        task.due = due
        self.tasks[str(task.id)] = task
        insort(self.free, task, key=in_order)

    def assign(self, task: QueuedTask, session: int) -> None:
        """A session has it, and has not begun it. It is not in ``free``."""
        self.let_go(task)
        task.session = session
        self.held[session][task.id] = task

    def die(self, task: QueuedTask) -> str:
        """Its attempts are used up: its id."""
        self.let_go(task)
        task.dead = True
        self.dead[str(task.id)] = self.tasks.pop(str(task.id))
        return str(task.id)

    def finish(self, task: QueuedTask, now: float, retention: float) -> None:
        """It is done, and gone unless it is to be kept for some seconds."""
        session = task.session
        self.let_go(task)
        del self.tasks[str(task.id)]
        if retention > 0:
            # who finished it is still shown
            task.session, task.finished = session, now
            self.finished[task.id] = task
            heapq.heappush(self.leaving, (now + retention, task.id))

    def purge(self, now: float) -> None:
        """Drop what was kept long enough."""
        while self.leaving and self.leaving[0][0] <= now:
            del self.finished[heapq.heappop(self.leaving)[1]]
