"""What one client gets, over server-sent events or a websocket: live messages, what it has missed, and gaps.

Theory. Each client has a subscription of its own, a bounded queue in this process; all of them together cost one
LISTEN. A client that is too slow fills its own queue and delays nobody; what it loses is a *gap*, and so is what nobody
heard while the connection to PostgreSQL was down. A gap is always told.

A source that can *replay* makes up for it. Its events have ids with an order, and it can give all events after an id.
When a client comes back with the id it had last, and after each gap, these are sent before anything live. So that
nothing is missing between the two and nothing comes twice, in this order: subscribe and have it proven; then replay;
then what was heard meanwhile, without what was replayed. That is known

* by the ids replayed, of which the latest are kept, somewhat more than wait in the queue; and
* of a client that comes back, by the order: what is not newer than its last id comes late to this process, and the
  client had it from another; such are left out until the first newer one is heard, for ten seconds at most.

Nothing else is left out because of its order: should the source commit events in another order than that of their ids,
a late one is sent without its id, so that the client, when it comes back, does not ask for too little or too much.

States: *entering* (not proven; after ``timeout`` seconds the client is let in all the same, and gets a gap when it is),
*replaying*, *live*. Any ends by cancellation (the client has gone, or the server ends) and with the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from ...acquiring import check_timeout, is_number
from ...coordinator import AsyncCoordinator
from ...errors import BrokerClosed, ConfigurationError, ListenerOverflow, given
from ...pubsub.message import Gap, Message
from ...pubsub.overflow import Overflow
from ..eventstream import ServerEvent

__all__ = ["Client", "Encode", "Feed", "Missed", "Order", "Replay", "TooOld", "number"]

logger = logging.getLogger("pgconcert.contrib.starlette")

_WINDOW: Final = 1000
"""Ids that are kept of a replay, besides as many as wait in the queue: for messages that are still under way."""

_LATE: Final = 10.0
"""For how many seconds a message may come late that a client had from another process."""

Encode = Callable[[Message], ServerEvent | str | None]
"""Makes the event of a message; of a text, with the message's id. ``None``: not for this client."""

Order = Callable[[str], Any]
"""What ids are compared by. Raises ``ValueError`` for what is no id."""


class TooOld(Exception):
    """Raised by ``Replay.since``: what came after this id is not kept any more, or there was never such an id. Clients
    are told of a gap."""


class Replay(Protocol):
    """A source that can tell what came after an event: a table of events, say."""

    def since(self, last_id: str, /) -> AsyncIterable[ServerEvent | tuple[str, str]]:
        """All events after that one, oldest first: pairs of id and data, or ``ServerEvent``. May raise ``TooOld``.

        Called after listening was proven, so that what it does not see yet will be heard; it must look at the source
        then, and not at a copy. Whatever else it raises ends the stream, and the client comes back with the same id.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """What a client is told of a gap. ``reason``: one of ``Gap``'s; ``"encode"``: the message could not be encoded;
    ``"unknown"``: nothing can be replayed after the id that the client gave; ``"too old"``: it is not kept any more.
    ``count``: how many messages, ``None`` when nobody knows; ``since`` and ``until`` in seconds since the epoch.
    ``replayed``: whether what is missing comes next."""

    reason: str
    count: int | None
    since: float
    until: float
    channels: tuple[str, ...]
    replayed: bool = False


class Client(Protocol):
    """The side of the network. Each method returns when the client can take more, and raises ``OSError`` when it has
    gone."""

    async def open(self) -> None: ...
    async def event(self, event: ServerEvent) -> None: ...
    async def missed(self, missed: Missed) -> None: ...
    async def idle(self) -> None: ...


def number(text: str) -> int:
    """The order of ids that are numbers: those of a ``bigint`` column. Raises ``ValueError``."""
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or int(text) >= 2**63:
        raise ValueError(f"not the number of an event: {given(text)}")
    return int(text)


class Feed:
    """Feeds one client. Made when the client asks, run once."""

    def __init__(
        self,
        coordinator: AsyncCoordinator,
        channels: tuple[str, ...],
        *,
        encode: Encode | None,
        replay: Replay | None,
        order: Order,
        after: str | None,
        where: Callable[[Message], bool] | None,
        capacity: int,
        overflow: Overflow,
        keep_alive: float | None,
        timeout: float | None,
    ) -> None:
        if keep_alive is not None and (not is_number(keep_alive) or not 0 < keep_alive <= 3600):
            raise ConfigurationError(f"keep_alive must be more than 0 to 3600 seconds, not {given(keep_alive)}")
        if replay is not None and not callable(getattr(replay, "since", None)):
            raise ConfigurationError(f"replay must be an object with since(last_id), not {given(replay)}")
        if replay is not None and overflow == "drop_newest":
            # all that falls out is replayed; but what waits would be older than the ids that we keep of a long replay
            overflow = "drop_oldest"
        self._subscription = coordinator.subscribe(
            *channels, where=where, capacity=capacity, overflow=overflow, gaps="yield"
        )
        self._encode = encode or _encoder(self._subscription.channels)
        self._replay = replay
        self._order = order
        self._after = after
        self._keep_alive = keep_alive
        self._timeout = check_timeout(timeout)
        self._last: str | None = None
        """The newest event that the client has, if it can be replayed after."""
        self._had: Any = None
        """Its order when the client came, until something newer is heard."""
        self._came = 0.0
        self._replayed: deque[str] = deque(maxlen=capacity + _WINDOW)
        self._known: set[str] = set()

    async def run(self, client: Client) -> None:
        """Feed the client until the coordinator is closed, until the client was too slow, or until we are cancelled."""
        entering = asyncio.ensure_future(self._subscription.__aenter__())
        try:
            await self._begin(client, entering)
            while True:
                try:
                    item = await self._subscription.get(self._keep_alive)
                except TimeoutError:
                    await client.idle()
                else:
                    await self._tell(client, item)
        except (BrokerClosed, ListenerOverflow):
            return
        finally:
            if not entering.done():
                entering.cancel()
            try:
                await asyncio.gather(entering, return_exceptions=True)
            finally:  # also for whoever is cancelled once more
                await self._subscription.close()

    async def _begin(self, client: Client, entering: asyncio.Future[Any]) -> None:
        self._came = time.time()
        await asyncio.wait({entering}, timeout=self._timeout)
        late = not entering.done()
        if late:
            await client.open()
            while not entering.done():
                await asyncio.wait({entering}, timeout=self._keep_alive)
                await client.idle()
        entering.result()
        if not late:
            await client.open()
        if self._after is not None:
            self._came = time.time()
            await self._come_back(client, self._after)
        elif late:
            await client.missed(self._gap("reconnect", self._came))

    async def _come_back(self, client: Client, last_id: str) -> None:
        try:
            if self._replay is None:
                raise ValueError  # nothing can be replayed after any id
            self._had = self._order(last_id)
        except ValueError:
            await client.missed(self._gap("unknown"))
            return
        self._last = last_id
        await self._catch_up(client)

    async def _catch_up(self, client: Client) -> None:
        """Send what came after the last event that the client has."""
        assert self._replay is not None
        assert self._last is not None
        try:
            async with _closing(self._replay.since(self._last)) as events:
                async for event in events:
                    found = event if isinstance(event, ServerEvent) else ServerEvent(event[1], event[0])
                    if found.id is not None:
                        self._remember(found.id)
                    await client.event(self._noted(found))
        except TooOld:
            self._last = self._had = None  # an id that never was may be higher than all that will come
            await client.missed(self._gap("too old"))

    async def _tell(self, client: Client, item: Message | Gap) -> None:
        if isinstance(item, Gap):
            told = replace(
                self._gap(item.reason, item.since, item.until),
                count=item.count,
                channels=item.channels,
                replayed=self._replay is not None and self._last is not None,
            )
            await client.missed(told)
            if told.replayed:
                await self._catch_up(client)
            return
        try:
            made = self._encode(item)
            event = ServerEvent(made, item.id) if isinstance(made, str) else made
        except Exception as error:
            logger.warning("a message on %r could not be encoded for a client: %s", item.channel, error, exc_info=True)
            await client.missed(replace(self._gap("encode", item.received), count=1, channels=(item.channel,)))
            return
        if event is not None and not self._has(event, item.received):
            await client.event(self._noted(event))

    def _has(self, event: ServerEvent, received: float) -> bool:
        """Whether the client has this live event already."""
        if event.id in self._known:
            return True
        if event.id is None or self._had is None:
            return False
        try:
            late = received - self._came <= _LATE and not self._order(event.id) > self._had
        except ValueError:
            return False
        if not late:
            self._had = None
        return late

    def _noted(self, event: ServerEvent) -> ServerEvent:
        """The event as the client shall get it: with its id only if nothing newer was sent."""
        if event.id is None or self._replay is None:
            return event
        try:
            place = self._order(event.id)
            if self._last is not None and place <= self._order(self._last):
                return replace(event, id=None)
        except ValueError:
            return replace(event, id=None)
        self._last = event.id
        return event

    def _remember(self, event_id: str) -> None:
        if len(self._replayed) == self._replayed.maxlen:
            self._known.discard(self._replayed.popleft())
        self._replayed.append(event_id)
        self._known.add(event_id)

    def _gap(self, reason: str, since: float | None = None, until: float | None = None) -> Missed:
        now = time.time()
        return Missed(
            reason=reason,
            count=None,
            since=now if since is None else since,
            until=now if until is None else until,
            channels=self._subscription.channels,
        )


def _encoder(channels: tuple[str, ...]) -> Encode:
    """The payload as text. Who hears several channels must be able to tell them apart."""
    if len(channels) == 1:
        return lambda message: message.text
    return lambda message: ServerEvent(message.text, message.id, message.channel)


@contextlib.asynccontextmanager
async def _closing(events: AsyncIterable[Any]) -> AsyncGenerator[AsyncIterator[Any], None]:
    iterator = aiter(events)
    try:
        yield iterator
    finally:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
