"""``transaction.enqueue``: a task is in a queue if, and only if, the caller's transaction commits."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Any, overload

from ..keys import KeySpace
from ..postgres.guard import understood
from ..postgres.queuestatements import enqueue_sql
from ..postgres.schemafiles import DEFAULT, checked
from ..sessions.wakes import wake_channel, wake_mark
from ..tasks.newtask import NOTHING, Payload, new_task, queue_place
from ..tasks.sources import DEFAULT_ATTEMPTS, QueueTasks
from ..taskstore import wake_subject
from .connections import AsyncConnection, BlockingConnection, driver_of
from .flow import Failure, Flow, Query, on

__all__ = ["enqueue"]


@overload
def enqueue(
    conn: BlockingConnection,
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
    conn: AsyncConnection,
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
    rolled back. Returns its id. At the commit idle runners are woken. With a connection that is awaited, so is this;
    in autocommit mode it is a transaction by itself.

    ``payload``, ``json``, ``run_at``, ``run_in`` and ``attempts`` are those of ``AsyncTaskQueue.enqueue``.

    :param conn: a connection to the database that has our tables.
    :param queue: the name of the queue, or its ``QueueTasks``.
    :param namespace: that of the coordinators whose runners shall have it.
    :param schema: where the tables of pgconcert are.
    :raises PayloadInvalid, PayloadTooLarge, ConfigurationError: as ``AsyncTaskQueue.enqueue``; nothing was sent.
    :raises SchemaMissing: our tables are not in this database. ``ConfigurationError``: the role may not use them.

    Everything else that the server refuses is the driver's own error. Whoever is cancelled here, or loses the
    connection, rolls back, and there is no task; in autocommit mode there may be one.
    """
    driver = driver_of(conn, "transaction.enqueue")
    place = queue_place(KeySpace(namespace), queue)
    default = queue.attempts if isinstance(queue, QueueTasks) else DEFAULT_ATTEMPTS
    task = new_task(payload, json, run_at, run_in, attempts, default)
    subject = wake_subject(place, place.namespace)
    query = Query(
        enqueue_sql(checked(schema)),
        (
            *(place.namespace, place.name, task.run_at, task.run_in or 0.0, task.attempts, task.payload),
            *(wake_channel(place.namespace), wake_mark(subject).decode()),
        ),
    )
    return on(driver, _enqueueing(query, schema))


def _enqueueing(query: Query, schema: str) -> Flow[str]:
    try:
        found = yield query
    except Failure as failure:
        raise (understood(schema, failure.sqlstate, failure.message) or failure) from failure.error
    assert found is not None  # an insert of one row
    return str(found[0])
