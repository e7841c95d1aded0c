"""``transaction.guard``: a transaction commits only what a holder may still write. The statement is in
``postgres/guard.py``, with what it locks and what it only looks at."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final, overload

from ..errors import ConfigurationError, GuardRefused, given
from ..postgres.guard import guard_sql, understood
from ..postgres.schemafiles import DEFAULT, checked
from ..sessions.claims import of_session
from ..sessions.hold import SessionHeld
from .connections import AsyncConnection, BlockingConnection, driver_of
from .flow import Failure, Flow, Query, on

__all__ = ["guard"]

_REFUSED: Final = "somebody else has it, it was revoked, or its session was not renewed in time (roll back)"
_SERIALIZATION_FAILURE: Final = "40001"


@overload
def guard(conn: BlockingConnection, hold: SessionHeld, *, schema: str | None = ...) -> None: ...
@overload
def guard(conn: AsyncConnection, hold: SessionHeld, *, schema: str | None = ...) -> Awaitable[None]: ...
def guard(conn: Any, hold: SessionHeld, *, schema: str | None = None) -> Awaitable[None] | None:
    """Let the open transaction of ``conn`` go on only if ``hold`` is ours, and keep it ours until the transaction ends.

    Call it before the first write, or as the last statement before the commit; both are safe. From then on until the
    commit or rollback nobody else can get what is held, so end the transaction soon. Heartbeats, and whatever else
    hangs on the same session, are not held up.

    At the isolation level ``repeatable read`` or ``serializable`` call it first: it sees the session as it was when the
    transaction began, and refuses one whose heartbeat has come since, if that would be over otherwise.

    :param conn: a connection to the database of the coordinator, in a transaction, or without autocommit. With one that
        is awaited, so is this.
    :param hold: of a job lock, a leadership or a membership.
    :param schema: where the tables of pgconcert are; by default where the coordinator of the hold has them.
    :raises GuardRefused: it is not ours any more, or somebody is about to change that: roll back. Nothing was changed,
        and the transaction itself is sound, but at ``repeatable read`` after a change by others.
    :raises ConfigurationError: there is no open transaction that could be guarded; ``hold`` does not hang on a session;
        or the role may not read the tables.
    :raises SchemaMissing: our tables are not in this database.

    Everything else that the server refuses is the driver's own error. Whoever is cancelled here, or loses the
    connection, does not know whether it is guarded: roll back.
    """
    if not isinstance(hold, SessionHeld):
        raise ConfigurationError(
            f"transaction.guard needs a hold that hangs on a session, of a job lock, an election or a group, and "
            f"{given(hold)} is none: a plain lock leaves no row that could be compared. Hold a job lock instead"
        )
    driver = driver_of(conn, "transaction.guard")
    claim = of_session(hold._grant)
    reason = "it was released" if claim.over else claim.reason
    session = claim.session
    if reason is not None or session is None or session.id is None or claim.token is None:
        raise GuardRefused(hold.key, reason or "its session is over")
    where = session.schema or DEFAULT if schema is None else checked(schema)
    query = Query(guard_sql(where), (*claim.key.subject, session.id, claim.token))
    return on(driver, _guarding(hold.key, query, where), "transaction.guard")


def _guarding(key: object, query: Query, schema: str) -> Flow[None]:
    try:
        found = yield query
    except Failure as failure:
        if failure.sqlstate == _SERIALIZATION_FAILURE:
            # at repeatable read: the row is not what it was when the transaction began
            raise GuardRefused(key, "it has changed hands since the transaction began (roll back)") from failure.error
        raise (understood(schema, failure.sqlstate, failure.message) or failure) from failure.error
    if found is None:
        raise GuardRefused(key, _REFUSED)
