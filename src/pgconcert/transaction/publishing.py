"""``transaction.publish``: a message is sent if, and only if, the caller's transaction commits; and pings on
connections of the caller's.

Theory. A message is checked before anything is said, and travels as ``c.publish`` sends it, but without the id of a
coordinator. One that fits no notification takes three statements, all in the transaction: is there a table for it,
and may we use it (asked, because an error of the server would spoil the transaction); keep it; announce its number.
Whoever hears the announcement can see the row, because both are committed at once. In autocommit mode each statement is
a transaction, in that order: what can be lost between them is a row that nobody was told of, which is purged in time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Final, overload

from ..acquiring import is_number
from ..errors import ConfigurationError, PayloadTooLarge, StatementFailed, given
from ..messenger import PING_CHANNEL
from ..postgres.callerstatements import NOTIFY, ROOM, spill_sql
from ..postgres.guard import understood
from ..postgres.schemafiles import DEFAULT, NOT_PERMITTED, checked, missing_tables, not_permitted
from ..pubsub.outgoing import NOTHING, Outgoing, announced, outgoing, too_large
from .connections import AsyncConnection, BlockingConnection, driver_of
from .flow import Failure, Flow, Query, on

__all__ = ["Pinger", "publish", "publish_on", "send_listener_ping"]

Payload = bytes | bytearray | memoryview | str

_LONGEST_TTL: Final = 10_000_000
_PING: Final = Query(NOTIFY, (PING_CHANNEL.encode(), b""))


@overload
def publish(
    conn: BlockingConnection,
    channel: str,
    payload: Payload = ...,
    *,
    json: Any = ...,
    headers: Mapping[str, str] | None = ...,
    id: bool | str = ...,
    unique: bool = ...,
    schema: str = ...,
    spill_ttl: float = ...,
) -> None: ...
@overload
def publish(
    conn: AsyncConnection,
    channel: str,
    payload: Payload = ...,
    *,
    json: Any = ...,
    headers: Mapping[str, str] | None = ...,
    id: bool | str = ...,
    unique: bool = ...,
    schema: str = ...,
    spill_ttl: float = ...,
) -> Awaitable[None]: ...
def publish(
    conn: Any,
    channel: str,
    payload: Payload = b"",
    *,
    json: Any = NOTHING,
    headers: Mapping[str, str] | None = None,
    id: bool | str = False,  # noqa: A002
    unique: bool = False,
    schema: str = DEFAULT,
    spill_ttl: float = 3600.0,
) -> Awaitable[None] | None:
    """Send a message with the transaction of ``conn``: when it commits, in the order of the calls; never, if it is
    rolled back, or rolled back to a savepoint before. With a connection that is awaited, so is this; in autocommit mode
    it is sent at once.

    Of equal messages to one channel in one transaction the server sends the first alone. ``unique=True`` gives each an
    id of its own, so that all arrive.

    A transaction that notifies takes a lock of the whole server before its commit, and keeps it until the commit is on
    disk: of all databases of that server only one such transaction commits at a time. Where many transactions write,
    call ``c.publish`` after the commit instead; it costs them nothing, and is lost if the process dies in between.

    :param conn: a connection to the database of those who listen.
    :param channel: 1 to 63 encoded bytes, used as it is; names with ``pgconcert:`` in front are the library's.
    :param payload: bytes or text. Text without NUL travels as it is, so any program that listens can read it.
    :param json: instead of a payload: a value that is sent as JSON.
    :param headers: texts that travel beside the payload, at most 2,000 bytes in all.
    :param id: ``True`` gives the message an id of its own, which ``delivery="one-each"`` needs; or the id, 1 to 64
        printable ASCII characters.
    :param unique: ``id=True``, unless ``id`` is given.
    :param schema: where the tables of pgconcert are. What fits no notification (7,999 bytes with all) is kept there by
        the same transaction, up to 64 MiB.
    :param spill_ttl: seconds for which it is kept, from this call on: more than the transaction takes.
    :raises ChannelInvalid, PayloadInvalid, ConfigurationError: nothing was sent, and the transaction is sound.
    :raises PayloadTooLarge: it fits no notification, and our tables are not in this database. The transaction is sound.

    What the server refuses (a character that its encoding does not have, say) is the driver's own error, and spoils the
    transaction as any statement does; a queue of notifications that is full is refused at the commit. Whoever is
    cancelled here, or loses the connection, rolls back, and nothing is sent; in autocommit mode it may have been.
    """
    if unique is not True and unique is not False:
        raise ConfigurationError(f"unique must be True or False, not {given(unique)}")
    if not is_number(spill_ttl) or not 1 <= spill_ttl <= _LONGEST_TTL:
        raise ConfigurationError(f"spill_ttl must be 1 to {_LONGEST_TTL} seconds, not {given(spill_ttl)}")
    message = outgoing(channel, payload, json, headers, True if unique and id is False else id)
    return on(driver_of(conn, "transaction.publish"), _publishing(message, checked(schema), float(spill_ttl)))


def publish_on(connection: Any, channel: str, payload: bytes, *, schema: str, spill_ttl: float) -> Any:
    """``publish`` for a fan-out, whose connections may be of any kind: what is to be awaited, or ``None``."""
    return on(driver_of(connection, "publish(connection=)"), _publishing(outgoing(channel, payload), schema, spill_ttl))


@overload
def send_listener_ping(connection: BlockingConnection) -> None: ...
@overload
def send_listener_ping(connection: AsyncConnection) -> Awaitable[None]: ...
def send_listener_ping(connection: Any) -> Awaitable[None] | None:
    """Send a ping to all listeners of the database, on a connection of yours, of any kind that ``transaction`` knows:
    at once in autocommit mode, else when its transaction commits. With a connection that is awaited, so is this.

    For programs that ping from outside, beside coordinators with ``ping_connection=None``. Raises
    ``ConfigurationError`` for what is no connection, and else what the driver raises.
    """
    return Pinger(connection, "send_listener_ping").send()


class Pinger:
    """Sends pings on a connection of the caller's. Raises ``ConfigurationError`` for what is none."""

    def __init__(self, connection: object, verb: str) -> None:
        self._driver = driver_of(connection, verb)
        self.blocks = self._driver.blocks
        """Whether ``send`` does its work, or returns what is to be awaited."""

    def send(self) -> Awaitable[None] | None:
        """Send one. Raises what the driver raises."""
        return on(self._driver, _saying(_PING))


def _publishing(message: Outgoing, schema: str, spill_ttl: float) -> Flow[None]:
    wire = message.wire(None)
    if wire is None:
        number = yield from _keeping(message, schema, spill_ttl)
        wire = announced(message, number, None)
    yield Query(NOTIFY, (message.channel, wire))


def _keeping(message: Outgoing, schema: str, spill_ttl: float) -> Flow[int]:
    said = too_large(message)
    room = yield Query(ROOM, (schema,))
    if room is None:
        missing = missing_tables(schema, 'there is no table "message_payload"')
        raise PayloadTooLarge(f"{said}; larger ones need our tables: {missing}") from missing
    if not room[0]:
        refused = StatementFailed("permission denied for table message_payload", NOT_PERMITTED)
        raise not_permitted(schema, "your_role", refused)
    try:
        kept = yield Query(spill_sql(schema), (message.payload, spill_ttl))
    except Failure as failure:
        raise (understood(schema, failure.sqlstate, failure.message) or failure) from failure.error
    assert kept is not None  # an insert of one row
    return int(kept[0])


def _saying(query: Query) -> Flow[None]:
    yield query
