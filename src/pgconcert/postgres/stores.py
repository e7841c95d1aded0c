"""The port ``Store`` over PostgreSQL: sessions on their link, tasks on theirs."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from ..messenger import Answer
from ..store import Request
from ..taskstore import (
    BumpWork,
    CheckPlace,
    DiscardTasks,
    EndWork,
    Enqueue,
    FinishWork,
    GetWork,
    LookAtQueues,
    LookAtShares,
    LookAtTasks,
    Move,
    Recall,
    ReleaseTasks,
    RetryTasks,
    StartWork,
    Turn,
)
from .sessionstore import PostgresSessionStore
from .taskstore import PostgresTaskStore

__all__ = ["PostgresStores"]

T = TypeVar("T")

_ABOUT_TASKS: Final[frozenset[type[Request[Any]]]] = frozenset(
    (
        *(Turn, Recall, LookAtShares, Move, ReleaseTasks, CheckPlace),
        *(Enqueue, LookAtQueues, LookAtTasks, RetryTasks, DiscardTasks),
        *(StartWork, BumpWork, EndWork, GetWork, FinishWork),
    )
)


class PostgresStores:
    """Both stores behind one port."""

    def __init__(self, sessions: PostgresSessionStore, tasks: PostgresTaskStore) -> None:
        self._sessions = sessions
        self._tasks = tasks

    @property
    def schema(self) -> str:
        """Where the tables are."""
        return self._sessions.schema

    @property
    def clock(self) -> None:
        """The machine's."""
        return None

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Carry out a request. See the port."""
        if type(request) in _ABOUT_TASKS:
            self._tasks.ask(request, answer)
        else:
            self._sessions.ask(request, answer)

    def bounce(self, reason: str) -> None:
        """Replace the link of sessions, if there is one. What is under way there fails with ``Unavailable``."""
        self._sessions.bounce(reason)
