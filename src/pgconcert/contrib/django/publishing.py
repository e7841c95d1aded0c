"""Messages about what a view has written: in its transaction, or after it.

Theory. *In* the transaction the message is a part of it: sent if and only if it commits. It costs: the server lets
notifying transactions commit one after the other, each with its flush to disk. *After* the commit it costs the data
nothing, and may be lost between the commit and the sending, when the process or a connection dies just then. Both are
sent after the commit only, and both vanish with a rollback, also to a savepoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from ...errors import PgconcertError
from ...pubsub.outgoing import NOTHING, outgoing
from ...transaction.publishing import publish as publish_on
from .conf import conf
from .coordinators import coordinator

__all__ = ["publish", "publish_on_commit"]

_logger = logging.getLogger("pgconcert.contrib.django")


def publish(
    channel: str,
    payload: bytes | bytearray | memoryview | str = b"",
    *,
    json: Any = NOTHING,
    headers: Mapping[str, str] | None = None,
    id: bool | str = False,  # noqa: A002
    unique: bool = False,
    using: str | None = None,
) -> None:
    """Send a message with the transaction of Django's connection: when that commits, or never. In autocommit mode it is
    sent at once. See ``pgconcert.transaction.publish``, which this is, with the alias and the schema of the settings.

    :param using: an alias of ``DATABASES``; what the setting ``PGCONCERT`` names, by default.
    """
    ours = conf()
    publish_on(
        using or ours.database,
        channel,
        payload,
        json=json,
        headers=headers,
        id=id,
        unique=unique,
        schema=ours.schema,
    )


def publish_on_commit(
    channel: str,
    payload: bytes | bytearray | memoryview | str = b"",
    *,
    json: Any = NOTHING,
    headers: Mapping[str, str] | None = None,
    id: bool | str = False,  # noqa: A002
    using: str | None = None,
) -> None:
    """Send a message by the coordinator of this process after the transaction of Django's connection has committed;
    never, if it is rolled back. In autocommit mode it is sent at once.

    The message is what its values are now, and what is wrong with it is raised now. Sending waits for the server, and a
    failure is logged (``pgconcert.contrib.django``) and not raised, since the data is committed: the message is lost
    then. Equal messages are all sent.

    ``channel``, ``payload``, ``json``, ``headers`` and ``id`` are those of ``Coordinator.publish``.

    :param using: an alias of ``DATABASES``; what the setting ``PGCONCERT`` names, by default.
    :raises ChannelInvalid, PayloadInvalid, ConfigurationError: nothing will be sent.
    """
    ours = conf()
    message = outgoing(channel, payload, json, headers, id)
    message.wire(None)  # says what is wrong with the headers and the id
    said: dict[str, Any] = {"headers": headers and {**headers}, "id": message.said.get("message_id", False)}

    def send() -> None:
        try:
            coordinator(using).publish(channel, message.payload, **said)
        except PgconcertError as error:
            _logger.error(
                "the message for channel %r was not sent after its transaction had committed: %s", channel, error
            )

    transaction.on_commit(send, using=using or ours.database, robust=True)
