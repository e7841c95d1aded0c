"""Statements on a connection of the caller's own, inside a transaction of the caller's own.

``guard`` lets a transaction commit only what a holder may still write: a holder that was stopped for too long, or cut
off, finds out inside the transaction, where it cannot come too late any more. ``enqueue`` puts a task into a queue
if, and only if, the transaction commits.
"""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Any, overload

from psycopg import AsyncConnection, Connection

from ..errors import ConfigurationError, GuardRefused, given
from ..keys import KeySpace
from ..postgres.schemafiles import DEFAULT, checked
from ..sessions.claims import of_session
from ..sessions.hold import SessionHeld
from ..sessions.wakes import wake_channel, wake_mark
from ..tasks.newtask import NOTHING, Payload, new_task, queue_place
from ..tasks.sources import DEFAULT_ATTEMPTS, QueueTasks
from ..taskstore import wake_subject
from .psycopg import Guard, NewRow, enqueue_async, enqueue_blocking, guard_async, guard_blocking

__all__ = ["enqueue", "guard"]


@overload
def guard(conn: Connection[Any], hold: SessionHeld, *, schema: str | None = ...) -> None: ...
@overload
def guard(conn: AsyncConnection[Any], hold: SessionHeld, *, schema: str | None = ...) -> Awaitable[None]: ...
def guard(conn: Any, hold: SessionHeld, *, schema: str | None = None) -> Awaitable[None] | None:
    """Let the open transaction of ``conn`` go on only if ``hold`` is ours, and keep it ours until the transaction ends.

    Call it before the first write, or as the last statement before the commit; both are safe. From then on until the
    commit or rollback nobody else can get what is held, so end the transaction soon. Heartbeats, and whatever else
    hangs on the same session, are not held up. With a psycopg ``AsyncConnection`` it is to be awaited.

    At the isolation level ``repeatable read`` or ``serializable`` call it first: it sees the session as it was when the
    transaction began, and refuses one whose heartbeat has come since, if that would be over otherwise.

    :param conn: a psycopg connection to the database of the coordinator, in a transaction, or without autocommit.
    :param hold: of a job lock, a leadership or a membership.
    :param schema: where the tables of pgconcert are; by default where the coordinator of the hold has them.
    :raises GuardRefused: it is not ours any more, or somebody is about to change that: roll back. Nothing was changed,
        and the transaction itself is sound, but at ``repeatable read`` after a change by others.
    :raises ConfigurationError: there is no open transaction that could be guarded; ``hold`` does not hang on a session;
        or the role may not read the tables.
    :raises SchemaMissing: our tables are not in this database.
    """
    if not isinstance(hold, SessionHeld):
        raise ConfigurationError(
            f"transaction.guard needs a hold that hangs on a session, of a job lock, an election or a group, and "
            f"{given(hold)} is none: a plain lock leaves no row that could be compared. Hold a job lock instead"
        )
    claim = of_session(hold._grant)
    reason = "it was released" if claim.over else claim.reason
    session = claim.session
    if reason is not None or session is None or session.id is None or claim.token is None:
        raise GuardRefused(hold.key, reason or "its session is over")
    where = session.schema or DEFAULT if schema is None else checked(schema)
    asked = Guard(hold.key, (*claim.key.subject, session.id, claim.token), where)
    if isinstance(conn, AsyncConnection):
        return guard_async(conn, asked)
    if isinstance(conn, Connection):
        guard_blocking(conn, asked)
        return None
    raise ConfigurationError(f"transaction.guard knows connections of psycopg 3, not {given(conn)}")


@overload
def enqueue(
    conn: Connection[Any],
    queue: str | QueueTasks,
    payload: Payload = ...,
    *,
    json: Any = ...,
    run_at: datetime | None = ...,
    run_in: float | None = ...,
    attempts: int | None = ...,
    namespace: str = ...,
    schema: str = ...,
) -> str: ...
@overload
def enqueue(
    conn: AsyncConnection[Any],
    queue: str | QueueTasks,
    payload: Payload = ...,
    *,
    json: Any = ...,
    run_at: datetime | None = ...,
    run_in: float | None = ...,
    attempts: int | None = ...,
    namespace: str = ...,
    schema: str = ...,
) -> Awaitable[str]: ...
def enqueue(
    conn: Any,
    queue: str | QueueTasks,
    payload: Payload = b"",
    *,
    json: Any = NOTHING,
    run_at: datetime | None = None,
    run_in: float | None = None,
    attempts: int | None = None,
    namespace: str = "",
    schema: str = DEFAULT,
) -> Awaitable[str] | str:
    """Put a task into a queue with the transaction of ``conn``: it is there when that commits, and never was if it is
    rolled back. Returns its id. At the commit idle runners are woken. With a psycopg ``AsyncConnection`` it is to be
    awaited; in autocommit mode it is a transaction by itself.

    ``payload``, ``json``, ``run_at``, ``run_in`` and ``attempts`` are those of ``AsyncTaskQueue.enqueue``.

    :param conn: a psycopg connection to the database that has our tables.
    :param queue: the name of the queue, or its ``QueueTasks``.
    :param namespace: that of the coordinators whose runners shall have it.
    :param schema: where the tables of pgconcert are.
    :raises PayloadInvalid, PayloadTooLarge, ConfigurationError: as ``AsyncTaskQueue.enqueue``; nothing was sent.
    :raises SchemaMissing: our tables are not in this database. ``ConfigurationError``: the role may not use them.
    """
    place = queue_place(KeySpace(namespace), queue)
    default = queue.attempts if isinstance(queue, QueueTasks) else DEFAULT_ATTEMPTS
    task = new_task(payload, json, run_at, run_in, attempts, default)
    subject = wake_subject(place, place.namespace)
    asked = NewRow(
        (
            *(place.namespace, place.name, task.run_at, task.run_in or 0.0, task.attempts, task.payload),
            *(wake_channel(place.namespace), wake_mark(subject).decode()),
        ),
        checked(schema),
    )
    if isinstance(conn, AsyncConnection):
        return enqueue_async(conn, asked)
    if isinstance(conn, Connection):
        return enqueue_blocking(conn, asked)
    raise ConfigurationError(f"transaction.enqueue knows connections of psycopg 3, not {given(conn)}")
