"""Our queues: every queue of a database on one link, the link *tasks*.

What is finished and was kept for long enough is purged by those who work (``purge.py``).
"""

from __future__ import annotations

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
from .purge import Purge
from .queuestatements import look_at_queues, look_at_tasks, queue_statements
from .rowtasks import RowTasks
from .schemafiles import checked
from .sessionclauses import PLANS
from .taskclauses import queue_rows
from .taskparameters import dead_tasks, enqueued, fit_enqueued, look_filters, queue_ids, task_filters
from .taskrows import count, payload_of, queue_info, settle_enqueued, task_info

__all__ = ["QueueTasks"]

_DOUBT: Final = " (nobody knows whether the tasks are in the queue)"


class QueueTasks(RowTasks):
    """All queues. ``schema`` is where the tables are; raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, schema: str) -> None:
        super().__init__(context)
        self._schema = checked(schema)
        self._words = queue_rows(schema)
        self._sql = queue_statements(schema)
        self.purge = Purge(self.keeper, self._loop, self._sql.purge)
        """Of what is finished and was kept for long enough."""

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
            self.purge.now_and_then()
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
