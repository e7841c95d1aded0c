"""The verbs of messages, as ``AsyncCoordinator`` has them. What they do stands in the files around."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from ..acquiring import Register, check_timeout, is_number
from ..errors import BrokerClosed, ConfigurationError, given
from ..events import EventStream
from ..keys import KeySpace
from ..messenger import Hearing, Listening, Messenger
from .broker import NOTHING, Broker, plain
from .channels import check_channel
from .delivery import Delivery, Where, check_filter
from .health import PingWatch, listening
from .listening import AsyncListening, ChannelSubscription, GapHandler, Handler
from .message import Gap, Message
from .overflow import Gaps, Overflow, check_policies
from .pings import Home, Hook, PingSender
from .requests import Requests
from .subscription import AsyncSubscription

if TYPE_CHECKING:
    from .codec import Codec
    from .fanout import AsyncFanOut

__all__ = ["AsyncMessaging", "Messages", "Settings", "attached", "subscribed"]

T = TypeVar("T")

_LONGEST_TTL: Final = 10_000_000

PublishOn = Callable[[Any, str, bytes], Any]
"""Sends a payload on a connection of the caller's."""


class Settings:
    """What a coordinator was told about its messages. Checked when it is made."""

    def __init__(
        self,
        *,
        ping_interval: float,
        ping_grace: float,
        ping_connection: object,
        spill_ttl: float,
        publish_on: PublishOn,
        ping_on: Callable[[object], PingSender],
    ) -> None:
        PingWatch(ping_interval, ping_grace, 0.0)
        if not is_number(spill_ttl) or not 1 <= spill_ttl <= _LONGEST_TTL:
            raise ConfigurationError(f"spill_ttl must be 1 to {_LONGEST_TTL} seconds, not {given(spill_ttl)}")
        self.ping_interval = ping_interval
        self.ping_grace = ping_grace
        own = isinstance(ping_connection, str) and ping_connection == "own"
        self.pinger: PingSender | Literal["own"] | None = "own" if own else None
        if not own and ping_connection is not None:
            self.pinger = ping_on(ping_connection)
        self.spill_ttl = spill_ttl
        self.publish_on = publish_on


class Messages:
    """Everything about messages that an open coordinator has."""

    def __init__(
        self,
        messenger: Messenger,
        register: Register,
        events: EventStream,
        keys: KeySpace,
        settings: Settings,
        payloads: bool,
    ) -> None:
        self.broker = Broker(messenger, register.loop, events, keys, payloads=payloads, spill_ttl=settings.spill_ttl)
        self.register = register
        self.requests = Requests(self.broker)
        self.home = Home(self.broker, settings.ping_interval, settings.ping_grace, settings.pinger)
        self.broker.on_wanted = self.home.wanted

    async def close(self) -> None:
        """End everything that listens."""
        await self.broker.close()
        self.requests.fail(BrokerClosed("the coordinator was closed"))


class AsyncMessaging:
    """Publishing and listening. A part of ``AsyncCoordinator``."""

    events: EventStream
    _settings: Settings

    def _messages(self) -> Messages:
        """What there is, if the coordinator is open and its backend carries messages."""
        raise NotImplementedError

    async def publish(
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
        announced; that needs ``pgconcert schema apply``. Messages of one task arrive in the order of sending.
        Raises ``ChannelInvalid``, ``PayloadInvalid``, ``PayloadTooLarge``; ``Unavailable``: not sent;
        ``PublishUncertain``: the connection died before the answer, and it is never sent again by us;
        ``NotifyQueueFull``; ``StatementFailed``: the server refused it (a character that its encoding does not
        have, say); ``BrokerClosed``. Cancelled, the message may be sent all the same.
        """
        broker = self._messages().broker
        if json is NOTHING and headers is None and id is False and (wire := plain(payload)) is not None:
            answer: asyncio.Future[bool] = broker.loop.create_future()
            broker.messenger.publish(check_channel(channel), wire, answer)
            try:
                if answer.done():
                    answer.exception()  # read, should we be cancelled here
                    await asyncio.sleep(0)  # whoever publishes in a loop lets others have a turn, on every backend
                await answer
            except Exception:
                broker.counts.failed += 1
                raise
            broker.counts.published += 1
        else:
            await broker.send(broker.outgoing(channel, payload, json, headers, id))

    async def publish_many(self, messages: Iterable[tuple[str, bytes | bytearray | memoryview | str]]) -> None:
        """Send several messages, each a pair of channel and payload, in their order and with as few statements as
        possible. All are checked before the first is sent. Raises what ``publish`` raises for a message that is wrong,
        and ``PublishManyFailed``, which tells which were not sent. They are not one transaction."""
        broker = self._messages().broker
        await broker.send_all([broker.outgoing(*pair) for pair in pairs(messages)])

    async def notify(self, channel: str, text: str) -> None:
        """Send a text: ``publish`` for code that is neutral of its backend."""
        await self.publish(channel, text)

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
    ) -> AsyncSubscription[Message]: ...
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
    ) -> AsyncSubscription[Message | Gap]: ...
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
    ) -> AsyncSubscription[Any]:
        """Receive the messages of some channels: ``async with`` it, and iterate. Everything that is sent after the
        entry is heard, in order per channel, until the connection is lost; what is missed is told.

        :param channels: at least one; 1 to 63 encoded bytes each.
        :param capacity: how many messages wait for a slow consumer, 1 to 10,000,000. It delays nobody but itself.
        :param overflow: what becomes of a message when that many wait: ``"drop_newest"`` drops it, ``"drop_oldest"``
            the oldest one, ``"error"`` ends the subscription with ``ListenerOverflow`` behind what is queued.
        :param gaps: how missing messages are told: ``"count"`` in ``statistics``, ``"yield"`` as a ``Gap`` in their
            place, ``"raise"`` as ``MessagesLost`` (and the subscription goes on).
        :param where: a quick function of a message: whether this subscriber wants it.
        :param skip_own: leave out what this coordinator has sent.
        :param delivery: ``"all"``: every subscriber gets every message. ``"one-process"``: one of all subscribers gets
            them, ``active`` tells whether it is this one; another takes over when it leaves or dies, and begins with a
            ``Gap`` ("takeover"). ``"one-each"``: each message goes to one of all subscribers, at most; publish with
            ``id=True``; needs ``pgconcert schema apply``.
        :param timeout: how long the entry waits for the proof that listening works, in seconds; ``None`` for ever.

        The entry raises ``Unavailable`` after ``timeout``, ``GivenUp`` at the ``reconnect_limit``, ``BrokerClosed`` if
        the coordinator is closed meanwhile, and ``ConfigurationError`` for what waiting does not mend. Cancelled, it
        leaves nothing behind.
        """
        messages = self._messages()
        names = subscribed(channels, capacity, overflow, gaps, where, skip_own)
        return AsyncSubscription(
            messages.broker,
            messages.register,
            names,
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
    ) -> AsyncListening:
        """Hand the messages of channels to handlers in the background: ``async with`` it, or ``await`` it and
        ``close()`` it. It is open when listening is proven.

        :param handlers: for each channel a function of a ``Message``, async or plain. A plain one runs on the event
            loop, so it must be quick. What it returns (bytes or text) is the reply, if the message is a request.
        :param catch_all: gets the messages of all channels that this coordinator hears, whoever wanted them.
        :param on_gap: gets a ``Gap`` where messages are missing.
        :param concurrency: how many run at once for each channel; with more than 1 the order is given up.
        :param close_timeout: how many seconds closing waits for what is queued and running.

        ``capacity``, ``overflow``, ``delivery`` and ``timeout`` are as for ``subscribe``. Whatever a handler raises is
        contained and told by ``HandlerFailed``.
        """
        messages = self._messages()
        return AsyncListening(
            messages.broker,
            messages.register,
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

    def attach(self, subscription: ChannelSubscription, *, timeout: float | None = None) -> AsyncListening:
        """Let a consumer of your own hear its channel: an object with ``channel`` and ``deliver(payload)``. Open and
        close it like ``listen``."""
        channel, deliver = attached(subscription)

        def handler(message: Message) -> Any:
            return deliver(message.payload)

        return self.listen({channel: handler}, timeout=timeout)

    async def request(
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
        not be sent), and what ``publish`` raises. Cancelled, it leaves at once; the request may be handled all the
        same.
        """
        if timeout is None:
            raise ConfigurationError("a request needs a timeout: how many seconds its answer may take")
        requests = self._messages().requests
        return await requests.request(channel, payload, json, headers, check_timeout(timeout))

    @overload
    def fanout(
        self,
        channel: str,
        type: type[T],
        *,
        codec: Codec[T] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> AsyncFanOut[T]: ...
    @overload
    def fanout(
        self,
        channel: str,
        type: Any,
        *,
        codec: Codec[Any] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> AsyncFanOut[Any]: ...
    def fanout(
        self,
        channel: str,
        type: Any,  # noqa: A002
        *,
        codec: Codec[Any] | None = None,
        overflow: Overflow = "drop_newest",
    ) -> AsyncFanOut[Any]:
        """A channel whose messages are values of a type.

        :param type: a dataclass, or what else has a form (lists, unions, enums, dates ...: ``codecs_types.py``), a
            ``msgspec.Struct``, a pydantic model, ``bytes``, ``str``, or plain JSON (``dict``, ``list``, ``object``).
        :param codec: an object with ``encode(value) -> bytes`` and ``decode(bytes) -> value`` instead.
        :param overflow: the policy of its listeners, where they do not say otherwise.
        """
        from .fanout import AsyncFanOut  # codecs are not for those who do without

        return AsyncFanOut(self._messages().broker, channel, type, codec, overflow, self._settings.publish_on)

    def bounce(self, reason: str = "somebody asked for it") -> None:
        """Replace the listen link by a fresh one, without waiting. Nothing happens while one is being made, so a
        hundred calls make one new link. Subscribers get a gap, as after any reconnect."""
        self._messages().broker.messenger.bounce(reason)

    def on_reconnect(self, hook: Hook, *, initial: bool = True) -> Callable[[], None]:
        """Call ``hook``, async or plain, with a ``Reconnected`` whenever listening was proven: where state is loaded
        that messages keep fresh. Nothing sent after its start is missed. Returns the way to stop it.
        Listening begins with the first subscription or handler; a request alone is none.

        :param initial: also at the first time; at once, if it was proven before.

        If it raises it is told (``HookFailed``) and called again, after a pause that grows from 0.5 to 30 s.
        """
        return self._messages().home.on_reconnect(hook, initial)

    @property
    def listening(self) -> Listening:
        """How well this coordinator hears: ``"unknown"`` (never listened), ``"isolated"`` (not even itself),
        ``"solitary"`` (only itself) or ``"connected"`` (other sessions too), within the last ``ping_grace`` seconds."""
        hearing: Hearing = self._messages().broker.messenger.hearing()
        return listening(hearing, time.monotonic(), self._settings.ping_grace)


def pairs(messages: Iterable[object]) -> Iterator[tuple[object, object]]:
    """The pairs of channel and payload that ``publish_many`` is given. Raises ``ConfigurationError``."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Iterable):
        raise ConfigurationError(f"publish_many() takes pairs of channel and payload, not {given(messages)}")
    for message in messages:
        if not isinstance(message, (tuple, list)) or len(message) != 2:
            raise ConfigurationError(
                f"publish_many() takes pairs of channel and payload, and was given {given(message)}"
            )
        yield message[0], message[1]


def subscribed(
    channels: tuple[str, ...], capacity: object, overflow: object, gaps: object, where: object, skip_own: object
) -> tuple[str, ...]:
    """Check what a subscription shall be: its channels, each once."""
    if not channels:
        raise ConfigurationError("subscribe() needs at least one channel")
    for name in channels:
        check_channel(name)
    check_policies(capacity, overflow, gaps)
    check_filter(where)
    if skip_own is not True and skip_own is not False:
        raise ConfigurationError(f"skip_own must be True or False, not {given(skip_own)}")
    return tuple(dict.fromkeys(channels))


def attached(subscription: object) -> tuple[str, Callable[[bytes], Any]]:
    """Check a consumer of somebody's own: its channel, and how it gets payloads."""
    channel = getattr(subscription, "channel", None)
    # a fan-out that has listeners listens by itself, and must not be told twice
    deliver = getattr(subscription, "deliver_unheard", None) or getattr(subscription, "deliver", None)
    if not isinstance(channel, str) or not callable(deliver):
        raise ConfigurationError(
            f"attach() takes an object with channel (a text) and deliver(payload), not {given(subscription)}"
        )
    return channel, deliver
