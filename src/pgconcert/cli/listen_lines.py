"""How ``pgconcert listen`` writes a message, or a gap. Text in, bytes out.

For a pipe the payload stays what it is, and a line break ends it. On a terminal control characters are made visible,
because what comes from others must not move the cursor. JSON tells everything, in a line of its own for each.
"""

from __future__ import annotations

import base64
import json
import sys
from datetime import UTC, datetime
from typing import Any, Final

from ..errors import DecodeFailed
from ..pubsub.message import Gap, Message
from .console import printable

__all__ = ["json_line", "message_as_json", "raw_line", "raw_line_with_channel", "terminal_line"]

_SHOWN_BYTES: Final = 32


def raw_line(item: Message | Gap) -> bytes:
    """The payload."""
    return (item.payload if isinstance(item, Message) else str(item).encode()) + b"\n"


def raw_line_with_channel(item: Message | Gap) -> bytes:
    """The channel, a tab, the payload."""
    channel = item.channel.encode() + b"\t" if isinstance(item, Message) else b""
    return channel + raw_line(item)


def terminal_line(item: Message | Gap) -> bytes:
    """Channel and text, fit for a terminal."""
    line = f"{printable(item.channel)}  {_visible(item)}" if isinstance(item, Message) else str(item)
    return f"{line}\n".encode(sys.stdout.encoding, "backslashreplace")


def json_line(item: Message | Gap) -> bytes:
    """One object."""
    made = message_as_json(item) if isinstance(item, Message) else {"gap": _gap_as_json(item)}
    return json.dumps(made).encode() + b"\n"


def message_as_json(message: Message) -> dict[str, Any]:
    """For programs. The names and meanings here are documented."""
    payload: dict[str, Any]
    try:
        payload = {"payload": message.text}
    except DecodeFailed:
        payload = {"payload_base64": base64.b64encode(message.payload).decode()}
    return {
        "channel": message.channel,
        **payload,
        "id": message.id,
        "headers": dict(message.headers),
        "request": message.reply_to is not None,
        "pid": message.pid,
        "own": message.own,
        "received": _time(message.received),
        "malformed": message.malformed,
    }


def _gap_as_json(gap: Gap) -> dict[str, Any]:
    return {
        "reason": gap.reason,
        "count": gap.count,
        "since": _time(gap.since),
        "until": _time(gap.until),
        "channels": list(gap.channels),
    }


def _visible(message: Message) -> str:
    try:
        return printable(message.text)
    except DecodeFailed:
        payload = message.payload
        more = "…" if len(payload) > _SHOWN_BYTES else ""
        return f"({len(payload)} bytes: {payload[:_SHOWN_BYTES].hex(' ')}{more})"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
