"""A message before it is sent: what is checked, and what is to be made of it. Pure; nothing here talks to anybody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ..errors import ConfigurationError, PayloadInvalid, PayloadTooLarge
from ..messenger import MAX_NOTIFICATION
from .channels import check_channel
from .envelope import Spill, encode, json_bytes, needs_envelope, payload_bytes

__all__ = ["MAX_PAYLOAD", "NOTHING", "Outgoing", "announced", "outgoing", "plain", "too_large"]

NOTHING: Final[Any] = type("Nothing", (), {"__repr__": lambda self: "…"})()
"""Stands for *not given* where ``None`` has a meaning."""

MAX_PAYLOAD: Final = 64 * 2**20
"""The largest payload of all, in bytes."""


class Outgoing:
    """A message that was checked: its channel, and what to make an envelope from, if it needs one."""

    __slots__ = ("channel", "enveloped", "payload", "said")

    def __init__(
        self,
        channel: bytes,
        payload: object,
        json: object,
        said: dict[str, Any],
    ) -> None:
        self.channel = channel
        if json is not NOTHING:
            if payload != b"":
                raise ConfigurationError("give a payload or json=, not both")
            self.payload = json_bytes(json)
        else:
            self.payload = payload_bytes(payload)
        self.said = said
        self.enveloped = bool(said) or needs_envelope(self.payload)

    def wire(self, sender: str | None) -> bytes | None:
        """What travels; ``None``: it is too large for a notification. Raises ``PayloadInvalid``."""
        if not self.enveloped:
            return self.payload
        wire = encode(self.payload, sender=sender, **self.said)
        return wire if len(wire) <= MAX_NOTIFICATION else None


def outgoing(
    channel: object,
    payload: object = b"",
    json: object = NOTHING,
    headers: Mapping[str, str] | None = None,
    message_id: object = False,
    **said: object,
) -> Outgoing:
    """Check a message. Raises ``ChannelInvalid``, ``PayloadInvalid``, ``ConfigurationError``."""
    if headers is not None:
        said["headers"] = headers
    if message_id is None:
        raise PayloadInvalid("id= is None: give True for an id of its own, False for none, or the id, a text")
    if message_id is not False:
        said["message_id"] = os.urandom(16).hex() if message_id is True else message_id
    return Outgoing(check_channel(channel, ours=bool(said.pop("ours", False))), payload, json, said)


def plain(payload: object) -> bytes | None:
    """What travels, if the payload travels as it is; ``None``: look closer."""
    try:
        wire = payload.encode() if type(payload) is str else payload
    except UnicodeEncodeError:
        return None
    return wire if type(wire) is bytes and not needs_envelope(wire) else None


def too_large(message: Outgoing) -> str:
    """What to say of a message that fits no notification and cannot be kept. Raises ``PayloadTooLarge`` for one that
    nobody keeps."""
    size = len(message.payload)
    if size > MAX_PAYLOAD:
        raise PayloadTooLarge(f"a payload of {size} bytes is larger than the largest of all, {MAX_PAYLOAD}")
    return f"a payload of {size} bytes does not fit a notification (at most {MAX_NOTIFICATION} with all)"


def announced(message: Outgoing, number: int, sender: str | None) -> bytes:
    """The envelope that tells where the payload of a message lies. Raises ``PayloadTooLarge``."""
    wire = encode(b"", sender=sender, spill=Spill.of(number, message.payload), **message.said)
    if len(wire) > MAX_NOTIFICATION:
        raise PayloadTooLarge(f"the headers leave no room: the envelope alone has {len(wire)} bytes")
    return wire
