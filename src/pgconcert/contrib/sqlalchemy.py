"""Messages that follow what a session of SQLAlchemy writes.

Here live ``publish_on_commit`` (one message, after the commit) and ``publish_changes`` (every flushed change of a
mapped class, inside the transaction). To say one thing inside the transaction, ``pgconcert.transaction.publish`` takes
a session as it is.

Theory of ``publish_on_commit``. A message belongs to the innermost savepoint or transaction of its session. When a
savepoint is released, its messages go to the one around it; when the outermost transaction has committed and given its
connections back, they are sent, in order; whatever ends in another way takes its messages with it. ``after_commit``
says that a transaction committed, ``after_transaction_end`` that it is over, and nothing else is looked at, so
``close`` and errors need no cases of their own. Said before a session's transaction has begun, they belong to the one
that will.

Theory of ``publish_changes``. What a flush has changed is collected by the mapper's events, and told at its end in as
few messages as hold it, on the connection that wrote it. So the messages live and die with the rows, also in
savepoints, and a flush that fails takes what was collected with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, overload
from weakref import WeakKeyDictionary, WeakSet

try:
    from sqlalchemy import event, inspect
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import Mapper, Session, SessionTransaction, object_session, scoped_session
    from sqlalchemy.util import concurrency
except ImportError as error:
    raise ImportError("pgconcert.contrib.sqlalchemy needs SQLAlchemy: pip install 'pgconcert[sqlalchemy]'") from error

from ..blocking import Coordinator
from ..blocking.engine import not_in_a_loop
from ..coordinator import AsyncCoordinator
from ..errors import ConfigurationError, PgconcertError, given
from ..messenger import MAX_NOTIFICATION
from ..postgres.schemafiles import checked
from ..pubsub.channels import check_channel
from ..pubsub.envelope import compact_json
from ..pubsub.outgoing import NOTHING, outgoing
from ..transaction.publishing import publish

__all__ = ["publish_changes", "publish_on_commit"]

_logger = logging.getLogger("pgconcert.contrib.sqlalchemy")

Change = Literal["inserted", "updated", "deleted"]
_CHANGES: Final[Mapping[str, Change]] = {
    "after_insert": "inserted",
    "after_update": "updated",
    "after_delete": "deleted",
}
_await: Callable[[Any], Any] = getattr(concurrency, "await_", None) or concurrency.await_only
_in_greenlet: Callable[[], bool] = getattr(concurrency, "in_greenlet", lambda: True)


class _Pending:
    """The messages that wait for the end of one session's transactions, which know their session: nothing here may
    keep one alive, or a session that is dropped would keep its connection for ever."""

    def __init__(self) -> None:
        self.early: list[Callable[[], None]] = []
        self.of: WeakKeyDictionary[SessionTransaction, list[Callable[[], None]]] = WeakKeyDictionary()
        self.committed: WeakSet[SessionTransaction] = WeakSet()


_waiting: WeakKeyDictionary[Session, _Pending] = WeakKeyDictionary()


@overload
def publish_on_commit(
    session: Session | scoped_session[Any],
    coordinator: Coordinator,
    channel: str,
    payload: bytes | bytearray | memoryview | str = ...,
    *,
    json: Any = ...,
    headers: Mapping[str, str] | None = ...,
    id: bool | str = ...,
) -> None: ...
@overload
def publish_on_commit(
    session: Session | AsyncSession | async_scoped_session[Any],
    coordinator: AsyncCoordinator,
    channel: str,
    payload: bytes | bytearray | memoryview | str = ...,
    *,
    json: Any = ...,
    headers: Mapping[str, str] | None = ...,
    id: bool | str = ...,
) -> None: ...
def publish_on_commit(
    session: Any,
    coordinator: Coordinator | AsyncCoordinator,
    channel: str,
    payload: bytes | bytearray | memoryview | str = b"",
    *,
    json: Any = NOTHING,
    headers: Mapping[str, str] | None = None,
    id: bool | str = False,  # noqa: A002
) -> None:
    """Send a message after the session's transaction has committed; never, if that, or the savepoint around this call,
    is rolled back. Nothing is awaited here, and nothing is sent on the session's connection.

    The message is what its values are now, and what is wrong with it is raised now. ``commit`` waits until it is sent;
    a failure is logged (``pgconcert.contrib.sqlalchemy``) and not raised, since the data is committed: the message is
    lost then. So it is when the process dies just then, or the task is cancelled inside ``commit``. A session inside
    a transaction of somebody else's connection (``join_transaction_mode``) sends at its own commit.

    ``channel``, ``payload``, ``json``, ``headers`` and ``id`` are those of ``Coordinator.publish``.

    :param session: a session. A ``Connection`` has no event after its commit: publish behind its block, or use
        ``pgconcert.transaction.publish``.
    :param coordinator: a ``Coordinator`` for a session that blocks, an ``AsyncCoordinator`` for an ``AsyncSession``;
        it must be open at the commit.
    :raises ChannelInvalid, PayloadInvalid, ConfigurationError: nothing will be sent.
    """
    message = outgoing(channel, payload, json, headers, id)
    message.wire(None)  # says what is wrong with the headers and the id
    said: dict[str, Any] = {"headers": headers and {**headers}, "id": message.said.get("message_id", False)}
    plain = _session_of(session, coordinator)

    def send() -> None:
        answer = coordinator.publish(channel, message.payload, **said)
        if answer is not None:
            _await(answer)

    pending = _waiting.get(plain)
    if pending is None:
        pending = _waiting[plain] = _Pending()
        for name, fn in (
            ("after_transaction_create", _began),
            ("after_commit", _committed),
            ("after_transaction_end", _ended),
        ):
            event.listen(plain, name, fn)
    owner = plain.get_nested_transaction() or plain.get_transaction()
    messages = pending.early if owner is None else pending.of.setdefault(owner, [])
    messages.append(_contained(channel, send))


def publish_changes(mapped: type[Any], channel: str, *, schema: str = "pgconcert") -> Callable[[], None]:
    """Tell ``channel`` of every change that a session flushes to a mapped class, or to one derived from it; in the
    transaction that makes the change. Returns the way to stop it.

    A message is JSON: ``{"table": "orders", "inserted": [7], "updated": [3, 4], "deleted": []}``, with primary keys; of
    several columns, a list for each; what has no JSON form as text. The changes of one flush are told together, in
    several messages where they do not fit into one. An ``update`` is told when a row is written.

    Statements that do not go through the session's objects (``session.execute(update(...))``, ``bulk_*``, other
    programs) have no such events: for these use a trigger. Every notifying transaction takes the server's one lock on
    its notifications at commit; where much is written at a time, use ``publish_on_commit``.

    What cannot be told (a key too large for a notification, and no tables) fails the flush: neither is written.

    :param mapped: a mapped class.
    :param schema: where our tables are.
    :raises ChannelInvalid, ConfigurationError: nothing will be told.
    """
    check_channel(channel)
    checked(schema)
    mapper = inspect(mapped, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise ConfigurationError(f"publish_changes needs a mapped class, not {given(mapped)}")
    collected: WeakKeyDictionary[Session, dict[Connection, dict[Change, list[Any]]]] = WeakKeyDictionary()
    table = str(mapper.local_table)

    def collect(change: Change) -> Callable[[Any, Connection, Any], None]:
        def note(mapper: Any, connection: Connection, target: Any) -> None:
            session = object_session(target)
            if session is None or (change == "updated" and not session.is_modified(target, include_collections=False)):
                return  # what is dirty is not always written
            key = [_plain(value) for value in mapper.primary_key_from_instance(target)]
            changes = collected.setdefault(session, {}).setdefault(connection, {})
            changes.setdefault(change, []).append(key[0] if len(key) == 1 else key)

        return note

    def begin(session: Session, *_: Any) -> None:
        collected.pop(session, None)  # of a flush that failed

    def tell(session: Session, *_: Any) -> None:
        for connection, changes in collected.pop(session, {}).items():
            for message in _messages(table, changes):
                publish(connection, channel, json=message, schema=schema)

    listeners: list[tuple[Any, str, Callable[..., None]]] = [
        *((mapped, name, collect(change)) for name, change in _CHANGES.items()),
        (Session, "before_flush", begin),
        (Session, "after_flush", tell),
    ]
    for target, name, fn in listeners:
        event.listen(target, name, fn, **({"propagate": True} if target is mapped else {}))

    def stop() -> None:
        while listeners:
            event.remove(*listeners.pop())

    return stop


def _began(session: Session, begun: SessionTransaction) -> None:
    pending = _waiting[session]
    if begun.parent is None and pending.early:
        pending.of[begun], pending.early = pending.early, []


def _committed(session: Session) -> None:
    ending = session.get_nested_transaction() or session.get_transaction()
    if ending is not None:
        _waiting[session].committed.add(ending)


def _ended(session: Session, ended: SessionTransaction) -> None:
    pending = _waiting[session]
    messages = pending.of.pop(ended, [])
    if ended not in pending.committed:
        return
    pending.committed.discard(ended)
    around = ended.parent  # what the session is in by now may be something that another listener has begun
    while around is not None and around.parent is not None and not around.nested:
        around = around.parent  # a flush is no owner
    if around is not None:
        if messages:
            pending.of.setdefault(around, []).extend(messages)
        return
    for send in messages:
        send()


def _contained(channel: str, send: Callable[[], None]) -> Callable[[], None]:
    def contained() -> None:
        try:
            send()
        except Exception as error:
            # the data is committed and the others are to be sent; what is not ours may quote the message
            what = error if isinstance(error, PgconcertError) else type(error).__name__
            _logger.error("the message for channel %r was not sent after its session had committed: %s", channel, what)

    return contained


def _session_of(session: Any, coordinator: object) -> Session:
    awaited = isinstance(session, (AsyncSession, async_scoped_session))
    if isinstance(session, (scoped_session, async_scoped_session)):
        session = session()
    if isinstance(session, AsyncSession):
        session = session.sync_session
    if not isinstance(session, Session):
        raise ConfigurationError(
            f"publish_on_commit knows sessions of SQLAlchemy, not {given(session)}; a connection or an engine has no "
            "event after its commit: publish behind the block, or use transaction.publish"
        )
    if not isinstance(coordinator, (Coordinator, AsyncCoordinator)):
        raise ConfigurationError(f"publish_on_commit needs a coordinator, not {given(coordinator)}")
    if awaited and isinstance(coordinator, Coordinator):
        raise ConfigurationError(
            "an AsyncSession commits on an event loop, which Coordinator would block: use AsyncCoordinator"
        )
    if isinstance(coordinator, Coordinator):
        not_in_a_loop("AsyncSession and AsyncCoordinator")
    elif not awaited and not _in_greenlet():
        raise ConfigurationError(
            "this session blocks, and nothing could await AsyncCoordinator at its commit: use Coordinator"
        )
    return session


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _messages(table: str, changes: Mapping[Change, list[Any]]) -> list[dict[str, Any]]:
    """The changes as messages that each fit into a notification; a single key that does not has one of its own."""
    empty: dict[str, Any] = {"table": table, "inserted": [], "updated": [], "deleted": []}
    room = MAX_NOTIFICATION - len(compact_json(empty))
    told: list[dict[str, Any]] = []
    left = 0
    for change, keys in changes.items():
        for key in keys:
            size = len(compact_json(key)) + 1
            if size > left or not told:
                told.append({name: value if name == "table" else [] for name, value in empty.items()})
                left = room
            told[-1][change].append(key)
            left -= size
    return told
