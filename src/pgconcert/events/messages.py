"""What happens to messages, and to the listening for them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .stream import Event

__all__ = [
    "ActiveChanged",
    "DeliveryFailed",
    "HandlerFailed",
    "HandlersAbandoned",
    "HookFailed",
    "ListenerBounced",
    "ListenerDeaf",
    "ListenerReady",
    "MessageMalformed",
    "MessageUnclaimed",
    "MessageUndecodable",
    "MessagesMissed",
    "PingFailed",
    "PingsMissing",
    "PollFound",
    "QueueFilling",
]


@dataclass(frozen=True, kw_only=True)
class ListenerReady(Event):
    """Listening is proven: ``channels`` are heard, with those of our own. After a loss, ``deaf_for`` says how long
    nothing was heard."""

    channels: int
    initial: bool
    deaf_for: float | None

    def __str__(self) -> str:
        again = "" if self.deaf_for is None else f", after {self.deaf_for:.3f} s in which nothing was heard"
        return f"listening to {self.channels} channels{again}"


@dataclass(frozen=True, kw_only=True)
class ListenerDeaf(Event):
    """A proof of listening did not come back although the server had sent it; the connection is replaced."""

    reason: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"the listen link has gone deaf and is replaced: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ListenerBounced(Event):
    """Somebody asked for a fresh listen link."""

    reason: str

    def __str__(self) -> str:
        return f"the listen link is replaced: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MessagesMissed(Event):
    """A subscriber has missed messages, or may have: ``count`` of them, ``None`` when that cannot be known.

    ``reason`` is that of the ``Gap``. An overflow is told when it begins, and at its end with its count.
    """

    channels: tuple[str, ...]
    reason: str
    count: int | None
    since: float
    subscribers: int = 1
    why: str = ""

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        many = "an unknown number of" if self.count is None else f"{self.count}"
        who = "a subscriber" if self.subscribers == 1 else f"{self.subscribers} subscribers"
        shown = ", ".join(map(repr, self.channels[:3])) + (" …" if len(self.channels) > 3 else "")
        why = f" ({self.why})" if self.why else ""
        return f"{who} of {shown} missed {many} messages: {self.reason}{why}"


@dataclass(frozen=True, kw_only=True)
class MessageMalformed(Event):
    """A message looks like one of our envelopes and is none, or is of a version unknown here; it is delivered raw."""

    channel: str
    reason: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"a message on {self.channel!r} is delivered as it came: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MessageUndecodable(Event):
    """A message of a fan-out is not what its type demands; no listener gets it. ``raw`` is what came."""

    channel: str
    error: str
    raw: bytes

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"a message of {len(self.raw)} bytes on {self.channel!r} cannot be decoded: {self.error}"


@dataclass(frozen=True, kw_only=True)
class MessageUnclaimed(Event):
    """A message without an id came where one process shall handle each: every listener handles it.

    Told once for each channel.
    """

    channel: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return (
            f"a message on {self.channel!r} has no id, so every listener handles it; publish with id=True where "
            "delivery='one-each' is used"
        )


@dataclass(frozen=True, kw_only=True)
class ActiveChanged(Event):
    """This process has become the one that handles a channel, or is it no longer."""

    channel: str
    active: bool
    reason: str

    def __str__(self) -> str:
        state = "handles" if self.active else "stands by for"
        return f"this process {state} {self.channel!r}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class HandlerFailed(Event):
    """A handler, or a filter, raised. Other handlers and later messages are not concerned."""

    channel: str
    error: BaseException

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"a handler of {self.channel!r} raised {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class DeliveryFailed(Event):
    """A reply could not be sent."""

    channel: str
    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"a reply to a request on {self.channel!r} could not be sent: {self.error}"


@dataclass(frozen=True, kw_only=True)
class HandlersAbandoned(Event):
    """Closing took longer than its limit: ``running`` handlers had not ended, ``queued`` messages were not handled."""

    channel: str
    running: int
    queued: int

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return (
            f"closing the handlers of {self.channel!r} took too long: {self.running} had not ended, "
            f"{self.queued} messages were not handled"
        )


@dataclass(frozen=True, kw_only=True)
class HookFailed(Event):
    """A hook of ``on_reconnect`` raised; it is called again in ``retry_in`` seconds."""

    hook: str
    error: BaseException
    retry_in: float

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return (
            f"the reconnect hook {self.hook} raised {type(self.error).__name__}: {self.error}; "
            f"again in {self.retry_in:.1f} s"
        )


@dataclass(frozen=True, kw_only=True)
class PingFailed(Event):
    """A ping of ours could not be sent."""

    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"a ping could not be sent: {self.error}"


@dataclass(frozen=True, kw_only=True)
class PingsMissing(Event):
    """No ping came within ``grace`` seconds. ``deaf`` says whether listening itself failed; else nobody pings."""

    grace: float
    deaf: bool

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        why = "the listen link was deaf and is replaced" if self.deaf else "listening works, so nobody sends them"
        return f"no ping on listener_ping for {self.grace:g} s: {why}"


@dataclass(frozen=True, kw_only=True)
class PollFound(Event):
    """A poll found what a notification should have told: ``found`` items, the ``streak``-th time in a row."""

    channel: str
    found: int
    streak: int
    bounced: bool

    def __str__(self) -> str:
        then = "; the listen link is replaced" if self.bounced else ""
        return f"a poll found {self.found} items of {self.channel!r} ({self.streak} times in a row){then}"


@dataclass(frozen=True, kw_only=True)
class QueueFilling(Event):
    """The server's queue of notifications fills: ``usage`` from 0 to 1, and the session that seems to hold it up."""

    usage: float
    blocker: str | None

    @property
    def level(self) -> int:
        return logging.WARNING if self.usage < 0.8 else logging.ERROR

    def __str__(self) -> str:
        return (
            f"the server's notification queue is {self.usage:.0%} full; "
            f"held up by {self.blocker or 'a session that this role may not see'}"
        )
