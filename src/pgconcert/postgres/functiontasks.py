"""Tasks of a schema with go-session-lock's functions, on a link of its own: how such a schema is asked.

Theory. What those functions do, and how long it takes, is not ours to say, so nothing else stands on this link, and
each request is a transaction by itself: its statements leave in one Sync, behind the settings that they need
(``functionstatements.py``). A request is in one of these states, and is settled once::

    waiting (for a link) --> under way --answered--> settled
         |                       |-- the link died: Unavailable, nobody knows what became of it
         +-- no link can be had: its error

Nothing is asked again here, for whoever asks does so anyway, after a pause. SQLSTATE SL001 is an answer, not an error:
the session is over. Who waits for the lock row of the schema longer than ``lock_timeout`` gets ``Unavailable``. A call
that takes longer than ``network_timeout`` looks like a dead network, and its link is closed.

*Finish* is checked, which the functions themselves do not: under the lock row, which every pick-up takes, the session
is renewed (so it lives), and only those are finished that ``get_tasks_for_session`` says to be its own. The lock makes
the answer hold until the commit.

A link that nobody has used for a minute closes itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ..errors import (
    ConfigurationError,
    CoordinatorClosed,
    LinkLost,
    PgconcertError,
    StatementFailed,
    Unavailable,
)
from ..messenger import Answer
from ..store import Request as Asked
from ..taskstore import BumpWork, CheckPlace, EndWork, FinishWork, FunctionPlace, GetWork, StartWork, TaskRow
from .context import PATIENCE
from .desk import IN_THE_WAY, Request
from .functioncheck import advice, check
from .functionstatements import ROLE_PATH, SETTINGS, function_statements
from .keeper import Context, Keeper
from .link import Link, Rows, Statement
from .probe import Proof
from .rowvalues import RowReader
from .schemafiles import NOT_PERMITTED, UNDEFINED, identifier
from .sessionparameters import texts

__all__ = ["FunctionOwner"]

T = TypeVar("T")

_IDLE: Final = 60.0
_SESSION_NOT_FOUND: Final = "SL001"
_MOST: Final = 2**31 - 1
_HOW_TO: Final = "FunctionTasks needs the functions, the tables and the type of go-session-lock in that schema"


class _Call(NamedTuple):
    """What a request is on the wire: its statements, how the rows of the last are read, what SL001 means."""

    verb: str
    statements: Sequence[tuple[Statement, Sequence[bytes | None]]]
    read: Callable[[Rows], Any]
    over: Any = None
    then: _Call | None = None
    """What is asked next, if this can be read; its answer counts."""


class FunctionOwner:
    """Owns the link to one schema. Raises ``ConfigurationError`` for what can be none."""

    def __init__(self, context: Context, place: FunctionPlace) -> None:
        self._loop = context.loop
        self._place = place
        self._schema = place.schema.encode()
        self._sql = function_statements(place.schema, place.id)
        self._lock_timeout = b"%dms" % max(1, round(context.network_timeout * 250))
        self._path: bytes | None = None
        self._waiting: deque[Request[Asked[Any]]] = deque()
        self._under_way = 0
        self._idle: asyncio.TimerHandle | None = None
        self._columns: tuple[bytes | None, RowReader] = (None, RowReader(()))
        self._closed = False
        self.keeper = Keeper(context, "tasks", self, patience=PATIENCE)

    def ask(self, request: Asked[T], answer: Answer[T]) -> None:
        """Carry out a request about this place."""
        asked: Request[Asked[Any]] = Request(request, answer)
        if self._closed:
            asked.fail(CoordinatorClosed("the coordinator was closed"))
            return
        self._rest_not()
        if self.keeper.link is not None and self._path is not None:
            self._send(self.keeper.link, asked, self._call(request))
        else:
            self._waiting.append(asked)
            self.keeper.want()

    async def close(self) -> None:
        """Close the link; whoever still waits is told."""
        self._closed = True
        self._rest_not()
        await self.keeper.close()
        self._give_up(CoordinatorClosed("the coordinator was closed"))

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Learn the path of the role, then send what has waited."""

        def known(rows: Rows, error: Exception | None) -> None:
            if isinstance(error, LinkLost):
                return
            if error is not None:
                self._give_up(error)
                self.keeper.unwant("it could not be used")
                return
            path = (rows[0][0] if rows else None) or b""
            self._path = identifier(self._place.schema).encode() + (b", " + path if path.strip() else b"")
            waiting, self._waiting = self._waiting, deque()
            for request in waiting:
                self._send(link, request, self._call(request.what))
            self._rest_later()

        link.send_together(((ROLE_PATH, ()),), known)

    def link_down(self, reason: str) -> None:
        """What was under way has been told by the link; what was not sent waits for the next."""
        self._path = None

    def connect_failed(self, error: PgconcertError) -> None:
        """Whoever waits is told."""
        self._give_up(error)
        if self.keeper.link is None:
            self.keeper.unwant()

    # the way there and back

    def _send(self, link: Link, request: Request[Asked[Any]], call: _Call) -> None:
        def reply(rows: Rows, error: Exception | None) -> None:
            self._under_way -= 1
            self._rest_later()
            if error is not None:
                self._failed(request, call, error)
                return
            try:
                answer = call.read(rows)
            except ConfigurationError as wrong:
                request.fail(wrong)
            except Exception:
                request.fail(Unavailable(f"the answer to {call.verb} could not be read"))
                raise
            else:
                if call.then is None:
                    request.settle(answer)
                else:
                    self._send(link, request, call.then)

        self._under_way += 1
        settings = SETTINGS, (self._path, self._lock_timeout)
        link.send_together((settings, *call.statements), reply)

    def _failed(self, request: Request[Asked[Any]], call: _Call, error: Exception) -> None:
        where = f"{call.verb} in schema {self._place.schema!r}"
        if not isinstance(error, StatementFailed):
            request.fail(Unavailable(f"the link died before the server confirmed {where}: {error}"))
        elif error.sqlstate == _SESSION_NOT_FOUND:
            request.settle(call.over)
        elif error.sqlstate in IN_THE_WAY:
            request.fail(Unavailable(f"others were in the way of {where}: {error}"))
        elif error.sqlstate in UNDEFINED or error.sqlstate == NOT_PERMITTED:
            request.fail(ConfigurationError(f"{where} is not possible: {error}. {_HOW_TO}, and the right to use them"))
        else:
            request.fail(StatementFailed(f"{where} failed: {error}", error.sqlstate))

    def _rest_later(self) -> None:
        self._rest_not()
        if not self._under_way and not self._closed:
            self._idle = self._loop.call_later(_IDLE, self.keeper.unwant, "it was not used for a minute")

    def _rest_not(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _give_up(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, deque()
        for request in waiting:
            request.fail(error)

    # requests as statements

    def _call(self, asked: Asked[Any]) -> _Call:
        sql = self._sql
        match asked:
            case StartWork():
                return _Call("start_session", [(sql.start, ())], _number)
            case BumpWork():
                return _Call("bump_session", [(sql.bump, (_id(asked.session),))], lambda _: True, False)
            case EndWork():
                return _Call("end_session", [(sql.end, (_id(asked.session),))], lambda _: None)
            case GetWork():
                most = None if asked.most is None else b"%d" % min(asked.most, _MOST)
                return _Call("get_work", [(sql.get_work, (_id(asked.session), most, self._schema))], self._tasks)
            case FinishWork():
                session = _id(asked.session)
                statements = [
                    (sql.lock, ()),
                    (sql.bump, (session,)),
                    (sql.finish, (session, texts(asked.ids))),
                ]
                return _Call("finish_tasks", statements, _finished)
            case _:
                assert isinstance(asked, CheckPlace)
                inside = _Call("look", [(sql.look_inside, (self._schema,))], lambda rows: advice(self._place, rows))
                return _Call("look", [(sql.look, (self._schema,))], lambda rows: check(self._place, rows), then=inside)

    def _tasks(self, rows: Rows) -> tuple[TaskRow, ...]:
        if not rows:
            return ()
        columns = rows[0][0]
        if self._columns[0] != columns:
            self._columns = columns, RowReader(json.loads(columns or b"[]"))
        read = self._columns[1].read
        if any(row[1] is None for row in rows):
            raise ConfigurationError(
                f"get_work in schema {self._place.schema!r} gave a task whose {self._place.id!r} is null, so it has "
                "no name; FunctionTasks(id=...) says which column names a task"
            )
        return tuple(TaskRow((row[1] or b"").decode(), 0, read(row[2:])) for row in rows)  # type: ignore[arg-type]


def _id(session: int) -> bytes:
    return b"%d" % session


def _number(rows: Rows) -> int:
    return int(rows[0][0] or 0)


def _finished(rows: Rows) -> tuple[str, ...]:
    return tuple(json.loads(rows[0][0] or b"[]")) if rows else ()
