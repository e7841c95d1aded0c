"""What a channel may be called, and the channels that are ours. Pure functions; nothing here talks to anybody.

The server takes a channel for an identifier: 1 to 63 bytes, and cuts off what is longer without an error, so that two
long names become one. Names are therefore checked here, once each, and never changed. Those that begin with
``pgconcert:`` are kept for the library.
"""

from __future__ import annotations

from typing import Final

from ..errors import ChannelInvalid, given
from ..messenger import PING_CHANNEL

__all__ = [
    "HANDLER_KEY",
    "MAX_CHANNEL_BYTES",
    "PING_CHANNEL",
    "REPLY_PREFIX",
    "RESERVED",
    "check_channel",
    "reply_channel",
]

MAX_CHANNEL_BYTES: Final = 63
"""The longest name of a channel, in UTF-8 bytes: the server cuts off the rest."""

RESERVED: Final = "pgconcert:"
"""What the names of our own channels begin with."""

REPLY_PREFIX: Final = "pgconcert:reply:"
"""What a channel for the replies to somebody's requests begins with."""

_RESERVED: Final = RESERVED.encode()
_MAX_KNOWN: Final = 10_000

# Publishing asks for the same few names again and again. Names that were checked, as the server is told them.
_known: dict[str, bytes] = {}


HANDLER_KEY: Final = "pgconcert:channel:"
"""What the key of a lock begins with whose holder is the one process that handles a channel."""


def check_channel(name: object, *, ours: bool = False) -> bytes:
    """Check the name of a channel: its encoded bytes. ``ours`` allows the names that are kept for the library.

    Raises ``ChannelInvalid``.
    """
    if type(name) is str:
        encoded = _known.get(name)
        if encoded is None:
            encoded = _checked(name)
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[name] = encoded
        if not ours and encoded.startswith(_RESERVED):
            raise ChannelInvalid(f"channel {name!r} begins with {RESERVED!r}, which is kept for the library; rename it")
        return encoded
    if isinstance(name, str):
        return check_channel(str.__str__(name), ours=ours)  # the text itself: str() of an enum's member is its name
    raise ChannelInvalid(f"a channel is named by a text, not {type(name).__name__}: {given(name)}")


def reply_channel(sender: str) -> str:
    """Where ``sender``, the id of a coordinator, hears the replies to its requests."""
    return REPLY_PREFIX + sender


def _checked(name: str) -> bytes:
    try:
        encoded = name.encode()
    except UnicodeEncodeError as bad:
        raise ChannelInvalid(
            f"channel {name!r:.100} has a lone surrogate at position {bad.start}; it is not text"
        ) from None
    if not encoded:
        raise ChannelInvalid("a channel cannot be named by the empty text")
    if len(encoded) > MAX_CHANNEL_BYTES:
        raise ChannelInvalid(
            f"channel {name!r:.70}… has {len(encoded)} bytes; PostgreSQL tells at most {MAX_CHANNEL_BYTES} apart, so "
            "use a shorter name, or put what varies into the message"
        )
    if b"\0" in encoded:
        raise ChannelInvalid(f"channel {name!r:.100} contains a NUL character, which PostgreSQL cannot store")
    return encoded
