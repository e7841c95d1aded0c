"""The port for messages: what publishing and listening ask of a backend. No backend stands here.

A messenger carries *notifications*: a channel, a payload of at most 7,999 bytes of UTF-8 without NUL, and the number of
the server process that sent it. Envelopes, ids, headers, replies, subscriptions and their queues are built on top of it
(``pubsub/``), so that every backend has the same.

Every request is a message: the caller hands it in with an *answer*, which is settled once, and may leave any time.
No method waits, and none raises for what the server does. All calls belong to the loop on which the backend was opened,
and so do the calls to an ear, which must be quick and must not raise.

An ear's states, by what it is told::

    (new) --ready--> hearing --deaf--> not hearing --ready--> hearing ...
      \\--failed (any number of times, while there is no connection)

``ready`` comes when a notification sent from then on will be heard: the server has confirmed LISTEN, and a notification
to ourselves has come back. Between ``deaf`` and the next ``ready`` notifications were missed, nobody knows how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeVar

__all__ = ["MAX_NOTIFICATION", "PING_CHANNEL", "Answer", "Ear", "Hearing", "Listening", "Messenger"]

T_contra = TypeVar("T_contra", contravariant=True)

MAX_NOTIFICATION: Final = 7999
"""The longest payload of a notification, in encoded bytes: the server refuses 8,000."""

PING_CHANNEL: Final = "listener_ping"
"""Where listeners of one database expect a ping now and then. Other programs use it too, so the name is not ours."""


class Answer(Protocol[T_contra]):
    """Whoever waits for one answer; ``asyncio.Future`` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: T_contra, /) -> None: ...
    def set_exception(self, exception: Exception, /) -> None: ...


class Ear(Protocol):
    """Whoever hears one channel. See the module for the order of the calls."""

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A notification, in the order in which the server sent them. ``own``: a link of this backend has sent it."""

    def ready(self) -> None:
        """From now on everything is heard."""

    def deaf(self, reason: str) -> None:
        """From now on nothing is heard, until ``ready``. Called only while hearing."""

    def failed(self, error: Exception) -> None:
        """An attempt to connect failed. ``ConfigurationError``: it will not get better; ``GivenUp``, and
        ``CoordinatorClosed``: nobody tries any more; anything else: the next attempt follows."""


Listening = Literal["unknown", "isolated", "solitary", "connected"]
"""How well we hear: nothing is known yet; not even ourselves; only ourselves; other processes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """What is known about the listen link. Times are those of ``time.monotonic()``.

    ``proven``: it is up, and a notification to ourselves has come back. ``own_at`` and ``others_at``: when a
    notification of our own, and of any other session, was last heard. ``latency``: seconds that the last notification
    to ourselves took, there and back. ``connects``: how often listening was proven on a fresh link.
    """

    proven: bool = False
    own_at: float | None = None
    others_at: float | None = None
    latency: float | None = None
    connects: int = 0


class Messenger(Protocol):
    """Carries notifications. See the module."""

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        """Send a notification; whoever listens to ``channel`` hears it, in the order of handing in.

        Channel and payload were checked. ``True``: committed, if anybody listens or not. ``PublishUncertain``: the link
        died before the answer; it is never sent twice. ``Unavailable``: not sent. ``NotifyQueueFull``: not sent.
        Equal messages are delivered as often as they were handed in.
        """
        ...

    def listen(self, channel: str, ear: Ear) -> None:
        """Let an ear hear a channel. ``ready`` may be called at once, within this call."""
        ...

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Let it hear no more; nothing is called from now on."""
        ...

    def prove(self, answer: Answer[float]) -> None:
        """Send a notification to ourselves by the way of all others: the seconds that it took, once everything that
        was committed before this call has been heard. ``Unavailable`` when the link is down, goes down, or is deaf."""
        ...

    def bounce(self, reason: str) -> None:
        """Replace the listen link by a fresh one, at once. Does nothing while there is none, or one is being made."""
        ...

    def hearing(self) -> Hearing:
        """How the listen link is. Safe from any thread."""
        ...

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        """Keep a payload that is too large for a notification for ``ttl`` seconds: its number, once it is committed.
        ``SchemaMissing``, ``Unavailable``, ``StatementFailed``."""
        ...

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Get a kept payload; ``None`` when it is gone. Asks again by itself when a link dies, within
        ``network_timeout``; then ``Unavailable``."""
        ...

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        """Be the one process that handles a message: ``True`` for exactly one caller for each (scope, message_id), over
        all processes, within an hour. ``SchemaMissing``; ``Unavailable``: nobody may know whether it is ours."""
        ...
