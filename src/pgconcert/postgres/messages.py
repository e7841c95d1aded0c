"""Publishing: NOTIFY on a link of its own, by group commit.

A NOTIFY waits for the server's notify lock at its commit, so nothing else may stand behind it on a link. One statement
never carries the same (channel, payload) twice, because the server would deliver it once: a second equal message ends
the batch and opens the next, which keeps the order.

What a caller learns: ``None`` when the server has committed; ``StatementFailed`` for its own message (a failed batch is
sent again singly: a notification leaves nothing behind); ``PublishUncertain`` when the link died after sending;
``Unavailable`` when it was never sent. Nothing is ever sent twice after a death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from ..errors import LinkLost, PgconcertError, PublishUncertain, Unavailable
from .groupcommit import Group, Turns, Verb
from .keeper import Context, Keeper
from .link import Link, Notification, Rows
from .probe import Proof
from .statements import NOTIFY, NOTIFY_MANY, PING

__all__ = ["Publisher"]

_MOST: Final = 2000
_FAREWELL: Final = 0.5
_FAREWELL_TURNS: Final = 3


class _Message(NamedTuple):
    channel: bytes
    payload: bytes
    told: Callable[[Exception | None], None]


class Publisher:
    """Owns the publish link."""

    def __init__(self, context: Context) -> None:
        self._loop = context.loop
        self._group: Group[_Message] | None = None
        self._waiting: list[_Message] = []
        self._again = 0
        self._verb = Verb(
            "notify",
            one=NOTIFY,
            parameters_one=lambda message: message[:2],
            many=NOTIFY_MANY,
            parameters_many=_arrays,
            answered=self._answered,
            failed=self._failed,
            fit=_distinct,
        )
        self.keeper = Keeper(context, "publish", self)

    def publish(self, channel: str, payload: str, told: Callable[[Exception | None], None]) -> None:
        """Hand in a message. The caller has checked channel and size. ``told`` is called once with its fate."""
        message = _Message(channel.encode(), payload.encode(), told)
        if self._group is not None:
            self._group.ask(message)
        else:
            self._waiting.append(message)
            self.keeper.want()

    @property
    def idle(self) -> bool:
        """Whether every message has met its fate."""
        return not self._waiting and not self._again and (self._group is None or self._group.idle)

    async def close(self) -> None:
        """Publish what was handed in, if that is quick, and nothing more."""
        link = self.keeper.link
        # answers come in order: behind this ping the batch under way is done, and what was queued has left
        for _ in range(_FAREWELL_TURNS):
            if self.idle or link is None or link.dead is not None:
                break
            await asyncio.wait([link.execute(PING)], timeout=_FAREWELL)
        await self.keeper.close()

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """Send what has waited."""
        self._group = Turns(link, self._loop).group(self._verb)
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self._group.ask(message)

    def link_down(self, reason: str) -> None:
        """What was under way is uncertain; what was not sent is not."""
        if self._group is None:
            return
        sent, unsent = self._group.take_back()
        self._group = None
        for message in sent:
            message.told(PublishUncertain(f"the link died before the server confirmed the notification: {reason}"))
        for message in unsent:
            message.told(Unavailable(f"the notification was not sent: {reason}"))

    def connect_failed(self, error: PgconcertError) -> None:
        """Without a link nothing is sent: whoever waits is told, and decides."""
        waiting, self._waiting = self._waiting, []
        self.keeper.unwant()
        for message in waiting:
            message.told(error)

    def notified(self, notification: Notification) -> None:
        """This link listens to nothing."""

    # what the group tells us

    def _answered(self, batch: Sequence[_Message], rows: Rows) -> None:
        for message in batch:
            message.told(None)

    def _failed(self, batch: Sequence[_Message], error: Exception) -> None:
        link = self.keeper.link
        if len(batch) == 1 or link is None:
            for message in batch:
                message.told(error)
            return
        for message in batch:
            self._again += 1
            link.send(NOTIFY, message[:2], self._one_fate(message))

    def _one_fate(self, message: _Message) -> Callable[[Rows, Exception | None], None]:
        def told(rows: Rows, error: Exception | None) -> None:
            self._again -= 1
            if isinstance(error, LinkLost):
                error = PublishUncertain(f"the link died before the server confirmed the notification: {error}")
            message.told(error)

        return told


def _distinct(queue: Sequence[_Message]) -> int:
    seen: set[tuple[bytes, bytes]] = set()
    for message in queue[:_MOST]:
        if message[:2] in seen:
            break
        seen.add(message[:2])
    return len(seen)


def _arrays(batch: Sequence[_Message]) -> tuple[bytes, bytes]:
    return _text_array([message.channel for message in batch]), _text_array([message.payload for message in batch])


def _text_array(values: Sequence[bytes]) -> bytes:
    quoted = (value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') for value in values)
    return b'{"' + b'","'.join(quoted) + b'"}'
