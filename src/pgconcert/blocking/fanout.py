"""Typed messages of one channel for threads: the twin of ``AsyncFanOut``, which lives on the engine.

Theory. Values are encoded on the calling thread. Everything about listeners happens on the engine, their filters and
the decoding of what comes too; a thread that delivers or tells of a poll waits until that is done.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Generic, Literal, TypeVar, overload

from ..errors import BrokerClosed, ConfigurationError, CoordinatorClosed
from ..pubsub.codec import Codec
from ..pubsub.fanout import AsyncFanOut, AsyncFanOutSubscription, FanOutStatistics
from ..pubsub.message import Gap
from ..pubsub.overflow import Gaps, Overflow
from .engine import not_in_a_loop
from .feed import batch
from .mail import Messages
from .subscription import Receiver

__all__ = ["FanOut", "FanOutSubscription"]

T = TypeVar("T")
V = TypeVar("V")
I_co = TypeVar("I_co", covariant=True)

_CAPACITY: Final = 1024
_TWIN: Final = "AsyncCoordinator"


class FanOut(Generic[T]):
    """A channel whose messages are values of one type. Made by ``Coordinator.fanout``.

    It listens by itself while it has listeners. Whoever has a LISTEN connection of another kind hands what comes there
    to ``deliver``.
    """

    def __init__(
        self,
        messages: Messages,
        channel: str,
        kind: Any,
        codec: Codec[T] | None,
        overflow: Overflow,
        publish_on: Callable[[Any, str, bytes], Any],
    ) -> None:
        self._messages = messages
        self._inner: AsyncFanOut[T] = AsyncFanOut(messages.broker, channel, kind, codec, overflow, publish_on)

    @property
    def channel(self) -> str:
        """The channel that it publishes to and listens on."""
        return self._inner.channel

    @property
    def statistics(self) -> FanOutStatistics:
        """How many values were delivered, dropped, undecodable, and saved by polling."""
        inner = self._inner
        try:
            return self._call(lambda: inner.statistics)
        except BrokerClosed:
            return inner.statistics  # it changes no more

    def publish(self, value: T, connection: Any = None) -> None:
        """Send a value to the listeners of all processes, this one too.

        :param connection: a blocking connection of yours, of any kind that ``transaction.publish`` knows: the value is
            sent with its transaction, when that commits. Equal values of one transaction arrive once, because the
            server merges them.

        Raises ``PayloadInvalid`` for what is no value of the type, and what ``Coordinator.publish`` raises; with a
        connection of yours, what ``transaction.publish`` raises.
        """
        if connection is None:
            self._messages.publish(self.channel, self._inner._codec.encode(value))
            return
        sent = self._inner._publish_on(connection, value)
        if inspect.isawaitable(sent):
            if inspect.iscoroutine(sent):
                sent.close()
            raise ConfigurationError(
                f"this {type(connection).__name__} is an async connection, and nobody here awaits it: give a blocking "
                "one, or use AsyncCoordinator"
            )

    @overload
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Literal["count", "raise"] = "count",
        timeout: float | None = None,
    ) -> FanOutSubscription[T]: ...
    @overload
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Literal["yield"],
        timeout: float | None = None,
    ) -> FanOutSubscription[T | Gap]: ...
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Gaps = "count",
        timeout: float | None = None,
    ) -> FanOutSubscription[Any]:
        """Receive values: ``with`` it, and iterate. Every value that is published after the entry is heard.

        :param where: a quick function of a value: whether this listener wants it. If it raises, that is told
            (``HandlerFailed``), and the value is missing here (a ``Gap`` "filter"). It runs on the engine thread.
        :param overflow: the policy of this listener; by default that of the fan-out.

        ``capacity``, ``gaps`` and ``timeout`` are as for ``Coordinator.subscribe``. Each listener gets a value of its
        own.
        """
        inner = self._inner.subscribe(where, capacity=capacity, overflow=overflow, gaps=gaps, timeout=timeout)
        return FanOutSubscription(self._messages, inner, batch(capacity))

    def deliver(self, raw: bytes | bytearray | memoryview | str) -> None:
        """Offer the payload of a message that came by the wire to every listener, and end the streak of recovery.

        Raises ``DecodeFailed`` when it is no value of the type: nobody gets it, and the streak goes on.
        ``ListenerOverflow`` when it was the end of a listener with ``overflow="error"``: raised after all others were
        offered it.
        """
        self._call(lambda: self._inner.deliver(raw))

    def deliver_unheard(self, raw: bytes) -> None:
        """``deliver``, if it does not listen by itself at this moment: what ``attach`` calls."""
        self._call(lambda: self._inner.deliver_unheard(raw))

    def notify(self, value: T) -> None:
        """Offer a value to the listeners of this process alone, at once. Each gets its own, which went through the
        codec. Raises ``PayloadInvalid`` for what is no value of the type, and ``ListenerOverflow`` as ``deliver`` does.
        """
        self._call(lambda: self._inner.notify(value))

    def enable_recovery(self, threshold: int = 5, bounce: Callable[[], object] | None = None) -> None:
        """Watch whether polling finds what should have been heard: see ``polled``.

        :param threshold: after how many such polls in a row the listen link is replaced; 0 or less: never.
        :param bounce: called instead of ``Coordinator.bounce``; quick, and what it raises is contained and told.

        Called again it replaces what was enabled before: the streak begins anew, ``saved`` goes on.
        """
        self._call(lambda: self._inner.enable_recovery(threshold, bounce))

    def polled(self, found: int) -> bool:
        """Tell that a poll has found ``found`` items that no message had told of; 0 or less changes nothing, and so
        does everything while recovery is not enabled. Calls are counted, not items: the ``threshold``-th in a row,
        with no message by the wire between them, replaces the listen link. Returns whether it did."""
        return self._call(lambda: self._inner.polled(found))

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncFanOut", "FanOut", 1)

    def _call(self, work: Callable[[], V]) -> V:
        not_in_a_loop(_TWIN)
        try:
            return self._messages.engine.call(work)
        except BrokerClosed:
            raise
        except CoordinatorClosed as ended:
            raise BrokerClosed("the coordinator is closed") from ended


class FanOutSubscription(Receiver[I_co, Any]):
    """The values of a fan-out, for one listener. Made by ``FanOut.subscribe``, which explains the parameters."""

    _inner: AsyncFanOutSubscription[I_co]

    def __repr__(self) -> str:
        state = f"{self._state}, {self.statistics.queued} queued"
        return f"<FanOutSubscription {self._inner._fanout.channel!r} {state}>"
