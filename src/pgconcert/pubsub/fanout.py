"""Typed messages of one channel, for any number of listeners in this process, and the recovery of who also polls.

Theory. A fan-out has a codec and listeners. Each listener is a sink of its own on the channel's route, with a queue of
its own; it decodes each message anew, so nobody shares a value with anybody, and what one does with its own (or fails
to take) concerns no other. The wire path is the same wherever a payload comes from: ``deliver`` offers it to every
listener and raises afterwards what went wrong.

What befalls a payload at one listener::

    payload --not decodable--> told once per message (MessageUndecodable), nobody gets it
       |----filter says no---> not wanted
       |----filter raises----> told (HandlerFailed), a gap "filter" for this listener
       \\----queue full-------> by the listener's policy (``overflow.py``)

Whoever polls beside listening tells what each poll found (``recovery.py``). Only what came by the wire, and could be
decoded, ends a streak; what was sent with ``notify`` never left this process.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, cast, overload

from ..acquiring import check_timeout
from ..errors import DecodeFailed, ListenerOverflow
from ..events import HandlerFailed, MessageUndecodable, PollFound
from ..events.stream import GOES_ON, goes_on
from .broker import Broker
from .channels import check_channel
from .delivery import check_filter, wanted
from .envelope import payload_bytes
from .message import Gap, Message
from .overflow import Gaps, Inbox, Overflow, check_policies
from .recovery import Recovery
from .subscription import AsyncReceiver

if TYPE_CHECKING:
    from .codec import Codec

__all__ = ["AsyncFanOut", "AsyncFanOutSubscription", "FanOutStatistics"]

T = TypeVar("T")
I_co = TypeVar("I_co", covariant=True)

_CAPACITY: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOutStatistics:
    """What a fan-out has seen. ``listeners``: how many there are now; ``delivered``: values that were queued, counted
    for each listener; ``dropped``: lost by overflow; ``undecodable``: messages that nobody got; ``saved``: items that
    polls have found; ``streak``: how many polls in a row found something."""

    listeners: int
    delivered: int
    dropped: int
    undecodable: int
    saved: int
    streak: int


class AsyncFanOut(Generic[T]):
    """A channel whose messages are values of one type. Made by ``AsyncCoordinator.fanout``.

    It listens by itself while it has listeners. Whoever has a LISTEN connection of another kind hands what comes there
    to ``deliver``.
    """

    def __init__(
        self,
        broker: Broker,
        channel: str,
        kind: Any,
        codec: Codec[T] | None,
        overflow: Overflow,
        publish_on: Callable[[Any, str, bytes], Any],
    ) -> None:
        from .codec import codec_for  # codecs are not for those who do without

        check_channel(channel)
        check_policies(_CAPACITY, overflow, "count")
        self._broker = broker
        self._channel = str.__str__(channel)
        self._codec: Codec[T] = codec_for(kind, codec)
        self._overflow: Overflow = overflow
        self._send_on = publish_on
        self._listeners: dict[_Listener[T], None] = {}
        self._recovery: Recovery | None = None
        self._delivered = 0
        self._dropped = 0
        self._undecodable = 0
        self._last_wrong: Message | None = None

    @property
    def channel(self) -> str:
        """The channel that it publishes to and listens on."""
        return self._channel

    @property
    def statistics(self) -> FanOutStatistics:
        """How many values were delivered, dropped, undecodable, and saved by polling."""
        inboxes = [listener.inbox.statistics() for listener in self._listeners]
        recovery = self._recovery
        return FanOutStatistics(
            listeners=len(self._listeners),
            delivered=self._delivered + sum(each.received for each in inboxes),
            dropped=self._dropped + sum(each.dropped for each in inboxes),
            undecodable=self._undecodable,
            saved=0 if recovery is None else recovery.saved,
            streak=0 if recovery is None else recovery.streak,
        )

    async def publish(self, value: T, connection: Any = None) -> None:
        """Send a value to the listeners of all processes, this one too.

        :param connection: a connection of yours, of any kind that ``transaction.publish`` knows: the value is sent with
            its transaction, when that commits. A blocking one blocks the event loop for that statement. Equal values of
            one transaction arrive once, because the server merges them.

        Raises ``PayloadInvalid`` for what is no value of the type, and what ``AsyncCoordinator.publish`` raises; with a
        connection of yours, what ``transaction.publish`` raises.
        """
        if connection is None:
            await self._broker.send(self._broker.outgoing(self._channel, self._codec.encode(value)))
            return
        sent = self._publish_on(connection, value)
        if inspect.isawaitable(sent):
            await sent

    def _publish_on(self, connection: Any, value: T) -> Any:
        """Send a value on a connection of the caller's: what its driver gives back, to be awaited if that is async."""
        payload = self._codec.encode(value)
        self._broker.check_open()
        return self._send_on(connection, self._channel, payload)

    @overload
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Literal["count", "raise"] = "count",
        timeout: float | None = None,
    ) -> AsyncFanOutSubscription[T]: ...
    @overload
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Literal["yield"],
        timeout: float | None = None,
    ) -> AsyncFanOutSubscription[T | Gap]: ...
    def subscribe(
        self,
        where: Callable[[T], object] | None = None,
        *,
        capacity: int = _CAPACITY,
        overflow: Overflow | None = None,
        gaps: Gaps = "count",
        timeout: float | None = None,
    ) -> AsyncFanOutSubscription[Any]:
        """Receive values: ``async with`` it, and iterate. Every value that is published after the entry is heard.

        :param where: a quick function of a value: whether this listener wants it. If it raises, that is told
            (``HandlerFailed``), and the value is missing here (a ``Gap`` "filter").
        :param overflow: the policy of this listener; by default that of the fan-out.

        ``capacity``, ``gaps`` and ``timeout`` are as for ``AsyncCoordinator.subscribe``. Each listener gets a value of
        its own.
        """
        self._broker.check_open()
        policy = self._overflow if overflow is None else overflow
        check_policies(capacity, policy, gaps)
        check_filter(where)
        if timeout is not None:
            check_timeout(timeout)
        listener = _Listener(self, Inbox((self._channel,), self._broker.events, capacity, policy, gaps), where, policy)
        return AsyncFanOutSubscription(self._broker, self, listener, gaps, timeout)

    def deliver(self, raw: bytes | bytearray | memoryview | str) -> None:
        """Offer the payload of a message that came by the wire to every listener, and end the streak of recovery.

        Raises ``DecodeFailed`` when it is no value of the type: nobody gets it, and the streak goes on.
        ``ListenerOverflow`` when it was the end of a listener with ``overflow="error"``: raised after all others were
        offered it.
        """
        self._broker.check_open()
        self._offer(payload_bytes(raw), wire=True)

    def deliver_unheard(self, raw: bytes) -> None:
        """``deliver``, if it does not listen by itself at this moment: what ``attach`` calls."""
        if not self._listeners:
            self.deliver(raw)

    def notify(self, value: T) -> None:
        """Offer a value to the listeners of this process alone, at once. Each gets its own, which went through the
        codec. Raises ``PayloadInvalid`` for what is no value of the type, and ``ListenerOverflow`` as ``deliver`` does.
        """
        self._broker.check_open()
        self._offer(self._codec.encode(value), wire=False)

    def enable_recovery(self, threshold: int = 5, bounce: Callable[[], object] | None = None) -> None:
        """Watch whether polling finds what should have been heard: see ``polled``.

        :param threshold: after how many such polls in a row the listen link is replaced; 0 or less: never.
        :param bounce: called instead of ``AsyncCoordinator.bounce``; quick, and what it raises is contained and told.

        Called again it replaces what was enabled before: the streak begins anew, ``saved`` goes on.
        """
        counts = self._broker.events.tally.recoveries[self._channel]
        recovery = Recovery(threshold, self._bounce if bounce is None else bounce, counts)
        if self._recovery is not None:
            recovery.saved = self._recovery.saved
        self._recovery = recovery

    def polled(self, found: int) -> bool:
        """Tell that a poll has found ``found`` items that no message had told of; 0 or less changes nothing, and so
        does everything while recovery is not enabled. Calls are counted, not items: the ``threshold``-th in a row,
        with no message by the wire between them, replaces the listen link. Returns whether it did."""
        recovery = self._recovery
        if recovery is None:
            return False
        streak = recovery.streak + 1
        saved = recovery.saved
        try:
            bounced = recovery.polled(found)
        except Exception as error:
            if recovery.saved == saved:
                raise  # it was no number
            self._broker.events.emit(HandlerFailed(channel=self._channel, error=error))
            bounced = True
        if recovery.saved != saved:
            self._broker.events.emit(PollFound(channel=self._channel, found=found, streak=streak, bounced=bounced))
        return bounced

    def __repr__(self) -> str:
        return f"<AsyncFanOut {self._channel!r}, {len(self._listeners)} listeners>"

    def _bounce(self) -> None:
        self._broker.messenger.bounce(f"polls of {self._channel!r} found what was not heard")

    def _heard(self) -> None:
        if self._recovery is not None:
            self._recovery.reset()

    def _offer(self, payload: bytes, *, wire: bool) -> None:
        try:
            value = self._codec.decode(payload)
        except DecodeFailed as error:
            self._tell_undecodable(payload, str(error))
            raise
        if wire:
            self._heard()
        now = time.time()
        overflown: ListenerOverflow | None = None
        for place, listener in enumerate([*self._listeners]):
            overflown = listener.offer(self._codec.decode(payload) if place else value, now) or overflown
        if overflown is not None:
            raise overflown

    def _decoded(self, message: Message) -> T:
        """What a message of the wire says. That it says nothing is told once, however many listeners ask."""
        try:
            if message.malformed is not None:
                raise DecodeFailed(message.malformed, message.payload)
            value = self._codec.decode(message.payload)
        except DecodeFailed as error:
            if message is not self._last_wrong:
                self._last_wrong = message
                self._tell_undecodable(message.payload, str(error))
            raise
        except BaseException as error:
            failure = DecodeFailed(f"the codec raised {type(error).__name__}: {error}", message.payload)
            self._tell_undecodable(message.payload, str(failure))
            if isinstance(error, GOES_ON):
                goes_on(error)
            raise failure from error
        self._last_wrong = None
        self._heard()
        return value

    def _tell_undecodable(self, raw: bytes, error: str) -> None:
        self._undecodable += 1
        self._broker.events.emit(MessageUndecodable(channel=self._channel, error=error, raw=raw))

    def _add(self, listener: _Listener[T]) -> None:
        self._listeners[listener] = None

    def _remove(self, listener: _Listener[T]) -> None:
        if listener in self._listeners:
            del self._listeners[listener]
            last = listener.inbox.statistics()
            self._delivered += last.received
            self._dropped += last.dropped


class _Value(Generic[T]):
    """One value in the queue of one listener."""

    __slots__ = ("channel", "received", "value")

    def __init__(self, channel: str, received: float, value: T) -> None:
        self.channel = channel
        self.received = received
        self.value = value


class _Listener(Generic[T]):
    """The sink of one listener."""

    def __init__(
        self, fanout: AsyncFanOut[T], inbox: Inbox[_Value[T]], where: Callable[[T], object] | None, overflow: Overflow
    ) -> None:
        self.inbox = inbox
        self.gap = inbox.gap
        self._fanout = fanout
        self._where = where
        self._ends = overflow == "error"

    def fail(self, error: Exception) -> None:
        """The end, for another reason than overflow."""
        self._ends = False
        self.inbox.fail(error)

    def put(self, message: Message) -> None:
        """A message came by the wire."""
        try:
            value = self._fanout._decoded(message)
        except DecodeFailed:
            return
        self.offer(value, message.received)

    def offer(self, value: T, received: float) -> ListenerOverflow | None:
        """Queue a value, if it is wanted. The error, if that was the end of this listener."""
        fanout, inbox = self._fanout, self.inbox
        item = _Value(fanout.channel, received, value)
        if self._where is not None and not wanted(self._where, value, item, inbox.gap, fanout._broker.events):
            return None
        queued = inbox.queued
        inbox.put(item)
        if not self._ends or inbox.queued != queued:
            return None
        self._ends = False  # it is told once: this listener has come to its end
        return ListenerOverflow(
            f"a listener of {fanout.channel!r} was too slow: its queue of {queued} values was full, and its overflow "
            "is 'error', so it has ended; all others got the value"
        )


class AsyncFanOutSubscription(AsyncReceiver[I_co, _Value[Any]]):
    """The values of a fan-out, for one listener. Made by ``AsyncFanOut.subscribe``, which explains the parameters."""

    def __init__(
        self, broker: Broker, fanout: AsyncFanOut[Any], listener: _Listener[Any], gaps: Gaps, timeout: float | None
    ) -> None:
        super().__init__(listener.inbox, gaps)
        self._broker = broker
        self._fanout = fanout
        self._listener = listener
        self._timeout = timeout

    async def _enter(self) -> None:
        self._fanout._add(self._listener)
        try:
            await self._broker.enter([self._fanout.channel], self._listener, self._timeout)
        except BaseException:
            self._fanout._remove(self._listener)
            raise

    def _leave(self) -> None:
        self._fanout._remove(self._listener)
        self._broker.leave([self._fanout.channel], self._listener)

    def _given(self, item: _Value[Any] | Gap) -> I_co:
        return cast("I_co", item if isinstance(item, Gap) else item.value)

    def __repr__(self) -> str:
        return f"<AsyncFanOutSubscription {self._fanout.channel!r} {self._state}, {self._inbox.queued} queued>"
