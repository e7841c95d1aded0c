"""What a subscriber gets: a ``Message``, or a ``Gap`` where messages are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from ..errors import DecodeFailed

__all__ = ["NO_HEADERS", "Gap", "GapReason", "Message"]

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})

GapReason = Literal["overflow", "reconnect", "takeover", "payload", "claim", "filter"]
"""Why messages are missing: the subscriber was too slow; the connection was down; this process has just taken over from
another; a large payload was gone, or could not be had; it is not known which process handles it; a filter raised."""


class Message(NamedTuple):
    """One message. Nothing in it can be changed, so subscribers share it unharmed.

    ``payload`` is always bytes; ``text`` and ``json()`` read it. ``pid`` is the server process that sent it, ``own``
    whether this coordinator did. ``received`` is when it arrived here, in seconds since the epoch. ``id``, ``headers``
    and ``reply_to`` come from an envelope; a plain notification has none. ``malformed`` says why something that looks
    like an envelope is delivered as it came.
    """

    channel: str
    payload: bytes
    pid: int
    own: bool
    received: float
    id: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    reply_to: str | None = None
    malformed: str | None = None

    @property
    def text(self) -> str:
        """The payload as text. Raises ``DecodeFailed`` if it is none."""
        try:
            return self.payload.decode()
        except UnicodeDecodeError as error:
            raise DecodeFailed(
                f"a message of {len(self.payload)} bytes on {self.channel!r} is not text: {error.reason} at byte "
                f"{error.start}; read message.payload",
                self.payload,
            ) from None

    def json(self) -> Any:
        """What the payload says in JSON. Raises ``DecodeFailed`` if it says nothing."""
        try:
            return json.loads(self.payload)
        except (ValueError, RecursionError) as error:
            raise DecodeFailed(
                f"a message of {len(self.payload)} bytes on {self.channel!r} is not JSON: {error}; read message.text",
                self.payload,
            ) from None

    def __repr__(self) -> str:
        shown = repr(self.payload[:40]) + ("…" if len(self.payload) > 40 else "")
        return f"<Message {self.channel!r} {shown} from {self.pid}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Messages are missing here. ``count`` is how many, ``None`` when nobody can know; ``since`` and ``until`` (seconds
    since the epoch) when they were lost. ``channels`` are those concerned."""

    reason: GapReason
    count: int | None
    since: float
    until: float
    channels: tuple[str, ...] = ()

    def joined(self, other: Gap) -> Gap:
        """This gap and a later one as one; the reason is the later one's."""
        count = None if self.count is None or other.count is None else self.count + other.count
        channels = self.channels + tuple(name for name in other.channels if name not in self.channels)
        return Gap(
            reason=other.reason,
            count=count,
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            channels=channels,
        )

    def __str__(self) -> str:
        many = "an unknown number of messages is" if self.count is None else f"{self.count} messages are"
        where = f" on {', '.join(map(repr, self.channels[:3]))}" if self.channels else ""
        return f"{many} missing{where} ({self.reason}, {self.until - self.since:.3f} s)"
