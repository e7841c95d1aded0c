"""``FunctionTasks`` as a ``TaskSource``: what go-session-lock's functions say, asked through the port ``Store``.

Nothing is kept here. The session that a caller who has left will never know is ended, so that it has no share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from ..errors import SessionNotFound
from ..sessions.answers import Told, ignore
from ..sessions.register import SessionRegister
from ..taskstore import (
    BumpWork,
    CheckPlace,
    EndWork,
    FinishWork,
    FunctionPlace,
    GetWork,
    StartWork,
    TaskRow,
)
from ..watching import ask
from .sources import FunctionTasks
from .task import Task

__all__ = ["FunctionSource"]

_TTL: Final = 120.0
"""Seconds, as ``start_session`` and ``bump_session`` have them."""


class FunctionSource:
    """The tasks of one ``FunctionTasks``. Every method raises ``Unavailable``, ``ConfigurationError``,
    ``StatementFailed`` or ``CoordinatorClosed`` besides what ``TaskSource`` says."""

    ttl = _TTL

    def __init__(self, of: SessionRegister[Any], tasks: FunctionTasks) -> None:
        self._of = of
        self._make = tasks.make
        self._place = FunctionPlace(tasks.schema, tasks.id)

    async def start_session(self) -> int:
        """``start_session``, after a look whether all is there."""
        await ask(self._of, CheckPlace(self._place))
        answer: asyncio.Future[int] = self._of.register.loop.create_future()
        self._of.sessions.ask(StartWork(self._place), answer)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(self._unclaimed)
            raise

    async def bump_session(self, session: int) -> None:
        """``bump_session``."""
        if not await ask(self._of, BumpWork(self._place, session)):
            raise self._not_found(session)

    async def end_session(self, session: int) -> None:
        """``end_session``."""
        await ask(self._of, EndWork(self._place, session))

    async def get_work(self, session: int, most: int | None) -> tuple[Task, ...]:
        """``get_work``. A task that cannot be read, or made, has the error as its payload."""
        rows = await ask(self._of, GetWork(self._place, session, most))
        if rows is None:
            raise self._not_found(session)
        return tuple(Task(row.id, self._payload(row)) for row in rows)

    async def finish_tasks(self, session: int, tasks: Sequence[Task]) -> tuple[str, ...]:
        """``finish_tasks`` of those that are the session's."""
        finished = await ask(self._of, FinishWork(self._place, session, tuple(task.id for task in tasks)))
        if finished is None:
            raise self._not_found(session)
        return finished

    def _payload(self, row: TaskRow) -> Any:
        payload: Any = row.payload
        if self._make is None or isinstance(payload, Exception):
            return payload
        try:
            return self._make(payload)
        except Exception as error:
            return error

    def _not_found(self, session: int) -> SessionNotFound:
        return SessionNotFound(f"session {session} of schema {self._place.schema!r} is over, or was never there")

    def _unclaimed(self, answer: asyncio.Future[int]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._of.sessions.ask(EndWork(self._place, answer.result()), Told(ignore, ignore))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionSource) and (self._of, self._place) == (other._of, other._place)

    def __hash__(self) -> int:
        return hash(self._place)

    def __repr__(self) -> str:
        return f"<FunctionSource of schema {self._place.schema!r}>"
