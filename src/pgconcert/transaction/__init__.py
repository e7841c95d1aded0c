"""Statements on a connection of the caller's own, inside a transaction of the caller's own.

``guard`` lets a transaction commit only what a holder may still write: a holder that was stopped for too long, or cut
off, finds out inside the transaction, where it cannot come too late any more.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, overload

from psycopg import AsyncConnection, Connection

from ..errors import ConfigurationError, GuardRefused, given
from ..postgres.schemafiles import DEFAULT
from ..sessions.claims import of_session
from ..sessions.hold import SessionHeld
from .psycopg import Guard, guard_async, guard_blocking

__all__ = ["guard"]


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
    asked = Guard(hold.key, (*claim.key.subject, session.id, claim.token), schema or session.schema or DEFAULT)
    if isinstance(conn, AsyncConnection):
        return guard_async(conn, asked)
    if isinstance(conn, Connection):
        guard_blocking(conn, asked)
        return None
    raise ConfigurationError(f"transaction.guard knows connections of psycopg 3, not {given(conn)}")
