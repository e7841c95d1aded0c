"""Where tasks come from: what an application says of its source.

Here stand descriptions (``QueueTasks``, ``TableTasks``, ``FunctionTasks``: data, without a connection, for both twins),
and ``TaskSource``, which an application implements for anything else. What they do stands behind the shifts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

from ..acquiring import is_number
from ..errors import ConfigurationError, SessionNotFound, given
from .task import Task

__all__ = ["Finder", "FunctionTasks", "QueueTasks", "SessionNotFound", "Source", "TableTasks", "TaskSource"]

MAX_ATTEMPTS: Final = 32_767
MAX_RETENTION: Final = 10 * 366 * 86_400.0
DEFAULT_ATTEMPTS: Final = 20


@runtime_checkable
class TaskSource(Protocol):
    """Tasks, and sessions that share them, wherever they are. Implement it for what is not one of ours.

    Every method may be ``async`` or plain; a plain one runs in a thread, one at a time. The methods may raise anything:
    it is told as an event, and asked again after a pause. A session lives for ``ttl`` seconds after its start or its
    last ``bump_session``; the runner bumps it every quarter of that, and trusts it a tenth less.
    """

    @property
    def ttl(self) -> float:
        """Seconds for which a session lives without being bumped."""
        ...

    def start_session(self) -> int | Awaitable[int]:
        """Start a session: its number, which is never used again, nor known in another database to which a finder may
        lead."""
        ...

    def bump_session(self, session: int, /) -> Awaitable[None] | None:
        """Let it live on. Raises ``SessionNotFound`` if it is over."""
        ...

    def end_session(self, session: int, /) -> Awaitable[None] | None:
        """End it; what it has is for others. Nothing happens if it is over."""
        ...

    def get_work(self, session: int, most: int | None, /) -> Iterable[Task] | Awaitable[Iterable[Task]]:
        """Let the session have its fair share, at most ``most`` tasks (``None``: no limit), and return all that it has
        now, also what it had before and has not finished. Raises ``SessionNotFound`` if it is over."""
        ...

    def finish_tasks(
        self, session: int, tasks: Sequence[Task], /
    ) -> Iterable[Task | str] | Awaitable[Iterable[Task | str] | None] | None:
        """These are done. Returns those that were finished, as tasks or ids (``None``: all): what belongs to others now
        must be refused. Raises ``SessionNotFound`` if the session is over."""
        ...


@dataclass(frozen=True, slots=True)
class QueueTasks:
    """A queue in our own tables (``pgconcert schema apply``): for tasks that have no table of their own.

    :param name: a text of 1 to 1,000 encoded bytes.
    :param attempts: after how many attempts that failed a task is *dead*: kept, told (``TaskDied``), and run again only
        on request (``pgconcert tasks retry``). 1 to 32,767; what a task was enqueued with counts, not what the runner
        says.
    :param retention: seconds for which finished tasks are kept to be looked at; 0: they are deleted when they finish.
    """

    name: str
    _: KW_ONLY
    attempts: int = DEFAULT_ATTEMPTS
    retention: float = 0.0

    def __post_init__(self) -> None:
        attempts, retention = self.attempts, self.retention
        if not is_whole(attempts) or not 1 <= attempts <= MAX_ATTEMPTS:
            raise ConfigurationError(f"attempts is a whole number from 1 to {MAX_ATTEMPTS:,}, not {given(attempts)}")
        if not is_number(retention) or not 0 <= retention <= MAX_RETENTION:
            raise ConfigurationError(f"retention is 0 to {MAX_RETENTION:,.0f} seconds, not {given(retention)}")


@dataclass(frozen=True, slots=True)
class TableTasks:
    """Tasks that are rows of a table of yours, in the same database. The table needs one more column, ``session_id
    bigint``, and two indexes: ``pgconcert schema show --table NAME`` prints the SQL.

    All texts but ``session`` are SQL and stand in statements as they are: they must come from your program, never from
    its input. The table is called ``t`` in them.

    :param table: its name, as you would write it in SQL.
    :param id: the column that names a row: unique, and of any type.
    :param where: what is to be done now, such as ``"t.done_at is null"`` or ``"t.state = 'new' and t.due <=
        clock_timestamp()"``.
    :param order_by: which come first, such as ``"t.due"``; the ``id`` decides between equals.
    :param finish: what makes a row done, so that ``where`` is false: assignments such as ``"done_at =
        clock_timestamp()"``, or ``"delete"``.
    :param make: makes the payload of a task from its row, a mapping from columns to Python values (as psycopg reads
        them); by default that mapping. If it raises, the task has failed.
    :param session: the name of the added column.

    Started tasks have the number of their session there, those that are assigned and not begun the negative number,
    free ones null. Attempts are counted in the process, so a task that fails everywhere is tried for ever.
    """

    table: str
    _: KW_ONLY
    finish: str
    id: str = "id"
    where: str = "true"
    order_by: str = ""
    make: Callable[[Mapping[str, Any]], Any] | None = None
    session: str = "session_id"

    def __post_init__(self) -> None:
        for what in ("table", "finish", "id", "where", "order_by", "session"):
            text = getattr(self, what)
            if not _is_text(text) or not (text.strip() or what == "order_by"):
                raise ConfigurationError(f"{what} of TableTasks is a text of SQL, not {given(text)}")
        if self.where.strip().lower() == "true" and self.finish.strip().lower() != "delete":
            raise ConfigurationError(
                "TableTasks needs where=..., which says what is still to be done, unless finish='delete': otherwise "
                "a finished task would be handed out again"
            )
        _check_make(self.make)


@dataclass(frozen=True, slots=True)
class FunctionTasks:
    """Tasks of a schema that has the functions of go-session-lock (``start_session``, ``bump_session``,
    ``end_session``, ``get_work``, ``finish_tasks``) and its tables ``session`` and ``work_lock``. They are used, not
    shipped.

    Runners of go-session-lock may share the same tasks at the same time. ``schema`` is where the functions are. ``id``
    is the column of its type ``session_task`` that ``finish_tasks`` wants, a ``bigint``. ``make``: as for
    ``TableTasks``. Sessions live for 120 seconds there, as those functions say it.
    """

    schema: str = "public"
    _: KW_ONLY
    id: str = "id"
    make: Callable[[Mapping[str, Any]], Any] | None = None

    def __post_init__(self) -> None:
        for what in ("schema", "id"):
            text = getattr(self, what)
            if not _is_text(text) or not 0 < len(text.encode()) <= 63:
                raise ConfigurationError(f"{what} of FunctionTasks is a name of 1 to 63 bytes, not {given(text)}")
        _check_make(self.make)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a server can be told this: no NUL, no lone surrogate."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_whole(value: object) -> TypeGuard[int]:
    """Whether this is a whole number; ``True`` is none."""
    return type(value) is int


def _check_make(make: object) -> None:
    if make is not None and not callable(make):
        raise ConfigurationError(f"make is a function of a row, not {given(make)}")


Source = QueueTasks | TableTasks | FunctionTasks | TaskSource
"""What a runner takes its tasks from."""

Finder = Callable[[], Source | Awaitable[Source]]
"""Asked anew at each tick and each heartbeat, so the tasks may move to another database. What it returns is used from
then on; a session that is not known there is over, and another is begun."""
