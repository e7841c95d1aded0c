"""The verbs of messages, as ``Coordinator`` has them: the twins of those in ``pubsub/messaging.py``.

Theory. What takes several steps runs on the engine, and one step is one crossing. Whoever is interrupted leaves; what
it has handed in may be done all the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ..acquiring import check_timeout
from ..events import EventStream
from ..messenger import Hearing
from ..messenger import Listening as HowWell
from ..pubsub.broker import NOTHING
from ..pubsub.delivery import Delivery, Where
from ..pubsub.health import listening
from ..pubsub.message import Gap, Message
from ..pubsub.messaging import Settings, attached, pairs, subscribed
from ..pubsub.overflow import Gaps, Overflow
from ..pubsub.pings import Reconnected
from .handlers import check_plain
from .listening import ChannelSubscription, GapHandler, Handler, Listening
from .mail import Messages
from .subscription import Subscription

if TYPE_CHECKING:
    from ..pubsub.codec import Codec
    from .fanout import FanOut

__all__ = ["Hook", "Messaging"]

T = TypeVar("T")

Hook = Callable[[Reconnected], object]
"""Is called after listening was proven, at first and again; where state is loaded that notifications keep fresh."""


class Messaging:
    """Publishing and listening. A part of ``Coordinator``."""

    events: EventStream
    _settings: Settings

    def _messages(self) -> Messages:
        """What there is, if the coordinator is open and its backend carries messages."""
        raise NotImplementedError

    def publish(
        self,
        channel: str,
        payload: bytes | bytearray | memoryview | str = b"",
        *,
        json: Any = NOTHING,
        headers: Mapping[str, str] | None = None,
        id: bool | str = False,  # noqa: A002
    ) -> None:
        """Send a message to whoever listens to ``channel``; with no listener it is dropped. Returns when the server has
        committed it.

        :param channel: 1 to 63 encoded bytes, used as it is; names with ``pgconcert:`` in front are the library's.
        :param payload: bytes or text. Text without NUL travels as it is, so any program that listens can read it.
        :param json: instead of a payload: a value that is sent as JSON.
        :param headers: texts that travel beside the payload, at most 2,000 bytes in all.
        :param id: ``True`` gives the message an id of its own, which ``delivery="one-each"`` needs; or the id, 1 to 64
            printable ASCII characters.

        More than 7,999 bytes, with all, and at most 64 MiB, are kept in a table for ``spill_ttl`` seconds and
        announced; that needs ``pgconcert schema apply``. Messages of one thread arrive in the order of sending.
        Raises ``ChannelInvalid``, ``PayloadInvalid``, ``PayloadTooLarge``; ``Unavailable``: not sent;
        ``PublishUncertain``: the connection died before the answer, and it is never sent again by us;
        ``NotifyQueueFull``; ``StatementFailed``: the server refused it (a character that its encoding does not
        have, say); ``BrokerClosed``. Interrupted, the message may be sent all the same.
        """
        self._messages().publish(channel, payload, json, headers, id)

    def publish_many(self, messages: Iterable[tuple[str, bytes | bytearray | memoryview | str]]) -> None:
        """Send several messages, each a pair of channel and payload, in their order and with as few statements as
        possible. All are checked before the first is sent. Raises what ``publish`` raises for a message that is wrong,
        and ``PublishManyFailed``, which tells which were not sent. They are not one transaction."""
        ours = self._messages()
        outgoing = [ours.broker.outgoing(*pair) for pair in pairs(messages)]
        ours.run(lambda: ours.broker.send_all(outgoing))

    def notify(self, channel: str, text: str) -> None:
        """Send a text: ``publish`` for code that is neutral of its backend."""
        self.publish(channel, text)

    @overload
    def subscribe(
        self,
        *channels: str,
        capacity: int = 1024,
        overflow: Overflow = "drop_newest",
        gaps: Literal["count", "raise"] = "count",
        where: Where | None = None,
        skip_own: bool = False,
        delivery: Delivery = "all",
        timeout: float | None = None,
    ) -> Subscription[Message]: ...
    @overload
    def subscribe(
        self,
        *channels: str,
        capacity: int = 1024,
        overflow: Overflow = "drop_newest",
        gaps: Literal["yield"],
        where: Where | None = None,
        skip_own: bool = False,
        delivery: Delivery = "all",
        timeout: float | None = None,
    ) -> Subscription[Message | Gap]: ...
    def subscribe(
        self,
        *channels: str,
        capacity: int = 1024,
        overflow: Overflow = "drop_newest",
        gaps: Gaps = "count",
        where: Where | None = None,
        skip_own: bool = False,
        delivery: Delivery = "all",
        timeout: float | None = None,
    ) -> Subscription[Any]:
        """Receive the messages of some channels: ``with`` it, and iterate. Everything that is sent after the entry is
        heard, in order per channel, until the connection is lost; what is missed is told.

        :param channels: at least one; 1 to 63 encoded bytes each.
        :param capacity: how many messages wait for a slow consumer, 1 to 10,000,000. It delays nobody but itself. A
            sixteenth of it, at most 64 and at least 1, is taken at once and waits besides.
        :param overflow: what becomes of a message when that many wait: ``"drop_newest"`` drops it, ``"drop_oldest"``
            the oldest one, ``"error"`` ends the subscription with ``ListenerOverflow`` behind what is queued.
        :param gaps: how missing messages are told: ``"count"`` in ``statistics``, ``"yield"`` as a ``Gap`` in their
            place, ``"raise"`` as ``MessagesLost`` (and the subscription goes on).
        :param where: a quick function of a message: whether this subscriber wants it. It runs on the engine thread.
        :param skip_own: leave out what this coordinator has sent.
        :param delivery: ``"all"``: every subscriber gets every message. ``"one-process"``: one of all subscribers gets
            them, ``active`` tells whether it is this one; another takes over when it leaves or dies, and begins with a
            ``Gap`` ("takeover"). ``"one-each"``: each message goes to one of all subscribers, at most; publish with
            ``id=True``; needs ``pgconcert schema apply``.
        :param timeout: how long the entry waits for the proof that listening works, in seconds; ``None`` for ever.

        The entry raises ``Unavailable`` after ``timeout``, ``GivenUp`` at the ``reconnect_limit``, ``BrokerClosed`` if
        the coordinator is closed meanwhile, and ``ConfigurationError`` for what waiting does not mend. Interrupted, it
        leaves nothing behind.
        Several threads may take from one subscription: each message goes to one of them.
        """
        messages = self._messages()
        return Subscription(
            messages,
            subscribed(channels, capacity, overflow, gaps, where, skip_own),
            capacity=capacity,
            overflow=overflow,
            gaps=gaps,
            where=where,
            skip_own=skip_own,
            delivery=delivery,
            timeout=check_timeout(timeout),
        )

    def listen(
        self,
        handlers: Mapping[str, Handler],
        *,
        catch_all: Handler | None = None,
        on_gap: GapHandler | None = None,
        concurrency: int = 1,
        capacity: int = 1024,
        overflow: Overflow = "drop_newest",
        delivery: Delivery = "all",
        close_timeout: float = 10.0,
        timeout: float | None = None,
    ) -> Listening:
        """Hand the messages of channels to handlers in the background: ``with`` it, or ``open()`` it and ``close()``
        it. It is open when listening is proven.

        :param handlers: for each channel a plain function of a ``Message``. It runs on one of the ``handler_threads``
            of the coordinator. What it returns (bytes or text) is the reply, if the message is a request.
        :param catch_all: gets the messages of all channels that this coordinator hears, whoever wanted them.
        :param on_gap: gets a ``Gap`` where messages are missing.
        :param concurrency: how many run at once for each channel; with more than 1 the order is given up.
        :param close_timeout: how many seconds closing waits for what is queued and running.

        ``capacity``, ``overflow``, ``delivery`` and ``timeout`` are as for ``subscribe``. Whatever a handler raises is
        contained and told by ``HandlerFailed``.
        """
        return Listening(
            self._messages(),
            handlers,
            catch_all=catch_all,
            on_gap=on_gap,
            concurrency=concurrency,
            capacity=capacity,
            overflow=overflow,
            delivery=delivery,
            close_timeout=close_timeout,
            timeout=check_timeout(timeout),
        )

    def attach(self, subscription: ChannelSubscription, *, timeout: float | None = None) -> Listening:
        """Let a consumer of your own hear its channel: an object with ``channel`` and ``deliver(payload)``. Open and
        close it like ``listen``."""
        channel, deliver = attached(subscription)
        check_plain(deliver, "deliver")

        def handler(message: Message) -> Any:
            return deliver(message.payload)

        return self.listen({channel: handler}, timeout=timeout)

    def request(
        self,
        channel: str,
        payload: bytes | bytearray | memoryview | str = b"",
        *,
        json: Any = NOTHING,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Message:
        """Send a request to whoever handles ``channel`` with ``listen``, and return the first reply.

        Every listener handles it; later replies are dropped. Raises ``RequestTimeout`` when nobody answers within
        ``timeout`` seconds, ``RequestFailed`` when the first answer is an error (a handler raised, or its reply could
        not be sent), and what ``publish`` raises. Interrupted, it leaves at once; the request may be handled all the
        same.
        """
        messages = self._messages()
        limit = check_timeout(timeout)
        return messages.run(lambda: messages.requests.request(channel, payload, json, headers, limit))

    @overload
    def fanout(
        self,
        channel: str,
        type: type[T],
        *,
        codec: Codec[T] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> FanOut[T]: ...
    @overload
    def fanout(
        self,
        channel: str,
        type: Any,
        *,
        codec: Codec[Any] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> FanOut[Any]: ...
    def fanout(
        self,
        channel: str,
        type: Any,  # noqa: A002
        *,
        codec: Codec[Any] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> FanOut[Any]:
        """A channel whose messages are values of a type.

        :param type: a dataclass, or what else has a form (lists, unions, enums, dates ...: ``codecs_types.py``), a
            ``msgspec.Struct``, a pydantic model, ``bytes``, ``str``, or plain JSON (``dict``, ``list``, ``object``).
        :param codec: an object with ``encode(value) -> bytes`` and ``decode(bytes) -> value`` instead.
        :param overflow: the policy of its listeners, where they do not say otherwise.
        """
        from .fanout import FanOut  # codecs are not for those who do without

        return FanOut(self._messages(), channel, type, codec, overflow, self._settings.publish_on)

    def bounce(self, reason: str = "somebody asked for it") -> None:
        """Replace the listen link by a fresh one, without waiting. Nothing happens while one is being made, so a
        hundred calls make one new link. Subscribers get a gap, as after any reconnect."""
        messages = self._messages()
        messages.engine.crossing.post(lambda: messages.broker.messenger.bounce(reason))

    def on_reconnect(self, hook: Hook, *, initial: bool = True) -> Callable[[], None]:
        """Call ``hook``, a plain function, with a ``Reconnected`` whenever listening was proven: where state is loaded
        that messages keep fresh. Nothing sent after its start is missed. Returns the way to stop it.
        Listening begins with the first subscription or handler; a request alone is none.

        :param initial: also at the first time; at once, if it was proven before.

        It runs on one of the ``handler_threads``. If it raises it is told (``HookFailed``) and called again, after a
        pause that grows from 0.5 to 30 s.
        """
        messages = self._messages()
        check_plain(hook, "a hook")
        return messages.on_reconnect(hook, initial)

    @property
    def listening(self) -> HowWell:
        """How well this coordinator hears: ``"unknown"`` (never listened), ``"isolated"`` (not even itself),
        ``"solitary"`` (only itself) or ``"connected"`` (other sessions too), within the last ``ping_grace`` seconds."""
        hearing: Hearing = self._messages().broker.messenger.hearing()
        return listening(hearing, time.monotonic(), self._settings.ping_grace)
