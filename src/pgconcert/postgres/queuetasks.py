"""Our queues: every queue of a database on one link, the link *tasks*.

What is finished and kept is purged by those who work: a run at most once a minute, jittered, of small statements that
skip what others have locked; between two of them, others have as much of the link as the last one took. An error of the
purge concerns nobody: the next run follows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

from ..errors import StatementFailed
from ..store import Request as Asked
from ..taskstore import (
    CheckPlace,
    DiscardTasks,
    Enqueue,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    QueueInfo,
    Recall,
    ReleaseTasks,
    RetryTasks,
    TaskInfo,
    Turn,
)
from .desk import Desk, Request, explain
from .keeper import Context
from .link import Link, Rows
from .probe import Proof
from .queuestatements import look_at_queues, look_at_tasks, queue_statements
from .rowtasks import RowTasks
from .schemafiles import checked
from .sessionclauses import PLANS
from .taskclauses import queue_rows
from .taskparameters import dead_tasks, enqueued, fit_enqueued, look_filters, queue_ids, task_filters
from .taskrows import count, payload_of, queue_info, settle_enqueued, task_info

__all__ = ["QueueTasks"]

_PURGE_EVERY: Final = 60.0
_PURGE_AT_ONCE: Final = 0.05
"""How likely it is that the first request of a process begins with a purge."""
_DOUBT: Final = " (nobody knows whether the tasks are in the queue)"


class QueueTasks(RowTasks):
    """All queues. ``schema`` is where the tables are; raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        super().__init__(context)
        self._schema = checked(schema)
        self._words = queue_rows(schema)
        self._sql = queue_statements(schema)
        self._purge_at = 0.0
        self.purging = False
        """Whether a run of the purge is under way."""

    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""
        if link.named:
            link.send(PLANS, (), _ignore)
        self._up(link)

    def explain(self, error: StatementFailed, batch: Sequence[Request[Any]]) -> None:
        """Tables or rights are missing: say what to do."""
        explain(self.keeper.link, self._schema, error, batch)

    def _hand_in(self, request: Request[Any]) -> None:
        asked = request.what
        if isinstance(asked, Enqueue) and not asked.tasks:
            request.settle(())
        elif isinstance(asked, Turn | Recall | Move | LookAtShares | ReleaseTasks | CheckPlace):
            self._about_rows(request, self._words, queue_ids, payload_of)
            self._purge_now_and_then()
        else:
            name, make = self._plan(asked)
            (self._desks.get(name) or self._new_desk(name, make())).ask(request)

    def _plan(self, asked: Asked[Any]) -> tuple[Hashable, Callable[[], Desk[Any]]]:
        sql = self._sql
        match asked:
            case Enqueue():
                return Enqueue, lambda: Desk(
                    self, "enqueueing", sql.enqueue, enqueued, settle_enqueued, fit_enqueued, doubt=_DOUBT
                )
            case LookAtTasks():
                sent = look_at_tasks(asked.state, self._schema)
                return sent.name, lambda: self._alone("look at tasks", sent, task_filters, _tasks)
            case LookAtQueues():
                sent = look_at_queues(tuple(look_filters(asked)), self._schema)
                return sent.name, lambda: self._alone("look at queues", sent, _values, _queues)
            case RetryTasks():
                sent = sql.retry_all if asked.ids is None else sql.retry
                return sent.name, lambda: self._alone("retry of tasks", sent, dead_tasks, _count)
            case _:
                assert isinstance(asked, DiscardTasks), asked
                sent = sql.discard_all if asked.ids is None else sql.discard
                return sent.name, lambda: self._alone("discarding of tasks", sent, dead_tasks, _count)

    # the purge

    def purge(self) -> None:
        """Begin a run of the purge, unless one is under way or there is no link."""
        link = self.keeper.link
        if link is not None and not self.purging:
            self.purging = True
            self._purge_some(link)

    def _purge_now_and_then(self) -> None:
        now = self._loop.time()
        if now < self._purge_at:
            return
        # one that lives for a moment has more urgent things to ask; but if all do, somebody must
        due = self._purge_at > 0 or random.random() < _PURGE_AT_ONCE
        self._purge_at = now + _PURGE_EVERY * random.uniform(1.0, 1.5)
        if due:
            self.purge()

    def _purge_some(self, link: Link) -> None:
        began = self._loop.time()

        def purged(rows: Rows, error: Exception | None) -> None:
            self.purging = False
            if error is None and rows[0][0] == b"t":
                self.purging = True
                self._loop.call_later(self._loop.time() - began, self._purge_some, link)

        link.send(self._sql.purge, (), purged)


def _values(look: LookAtQueues) -> list[bytes]:
    return [*look_filters(look).values()]


def _tasks(_: object, rows: Rows) -> tuple[TaskInfo, ...]:
    return tuple(map(task_info, rows))


def _queues(_: object, rows: Rows) -> tuple[QueueInfo, ...]:
    return tuple(map(queue_info, rows))


def _count(_: object, rows: Rows) -> int:
    return count(rows)


def _ignore(rows: Rows, error: Exception | None) -> None:
    """Without it all is well too."""
