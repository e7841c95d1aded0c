"""The consumer's end of a subscription: an ``async with`` around an async iterator. Internal of every kind of consumer.

Theory. A subscription owns an inbox (``overflow.py``) that the broker fills; its consumer takes from it without waiting
for anybody, and waits on a future of its own only when it is empty. Several tasks may take from one subscription: each
message goes to one of them. A consumer that is cancelled while it waits leaves; if it was just told that there is
something, it tells the next.

States: *new*, *entering*, *open* from the moment when everything sent from then on will be heard, then *closed*. A
subscription is entered once. Leaving the block, or ``close``, drops what is still queued.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from ..acquiring import Register, check_timeout
from ..errors import BrokerClosed, ConfigurationError, MessagesLost, given
from .broker import Broker
from .delivery import Deliverer, Delivery, Filtered, Where
from .message import Gap, Message
from .oneeach import OneEach
from .oneprocess import OneProcess
from .overflow import ENDED, Gaps, Inbox, Item, Overflow, Sink, SubscriptionStatistics

__all__ = ["ENDED", "AsyncReceiver", "AsyncSubscription"]

I_co = TypeVar("I_co", covariant=True)
M = TypeVar("M", bound=Item)

_leaving: Final[set[asyncio.Future[None]]] = set()
"""Keeps what ends without an owner alive until then."""


class AsyncReceiver(Generic[I_co, M]):
    """Something to receive from. ``async with`` it, then iterate, or ``get()``."""

    def __init__(self, inbox: Inbox[M], gaps: Gaps) -> None:
        self._inbox = inbox
        self._gaps: Gaps = gaps
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._getters: deque[asyncio.Future[None]] = deque()
        self._state = "new"

    @abstractmethod
    async def _enter(self) -> None:
        """Return when everything sent from now on is heard. Undoes itself when it fails or is cancelled."""

    @abstractmethod
    def _leave(self) -> None:
        """Hear nothing more."""

    async def _left(self) -> None:
        """Wait for what leaving has to wait for."""

    @abstractmethod
    def _given(self, item: M | Gap) -> I_co:
        """What the consumer gets for an item of the inbox."""

    @property
    def statistics(self) -> SubscriptionStatistics:
        """How many messages came, wait, and were missed, and why."""
        return self._inbox.statistics()

    async def get(self, timeout: float | None = None) -> I_co:
        """The next message; with ``gaps="yield"`` a ``Gap`` where messages are missing.

        Raises ``TimeoutError`` after ``timeout`` seconds, ``MessagesLost`` at a gap with ``gaps="raise"`` (go on after
        it), ``ListenerOverflow`` at the end of a subscription that was too slow, and ``BrokerClosed`` when this
        subscription or its coordinator is closed. Cancelled, it takes nothing.
        """
        if timeout is None:
            return await self._next()
        async with asyncio.timeout(check_timeout(timeout)):
            return await self._next()

    async def _next(self) -> I_co:
        while True:
            item = self._taken()
            if item is not None:
                if isinstance(item, Gap) and self._gaps == "raise":
                    raise MessagesLost(item)
                return self._given(item)
            if self._state != "open":
                raise self._not_open()
            await self._wait()

    def _taken(self) -> M | Gap | None:
        try:
            return self._inbox.take()
        except BaseException:
            self._wake()  # the end is for everybody: each who waits tells the next
            raise

    async def _wait(self) -> None:
        getters = self._getters
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError("this subscription was entered on another event loop; receive there")
        getter = loop.create_future()
        getters.append(getter)
        self._inbox.wake = self._wake
        try:
            await getter
        except BaseException:
            if getter.done() and not getter.cancelled():
                self._wake()  # it was our turn, and we leave
            else:
                with contextlib.suppress(ValueError):
                    getters.remove(getter)
            raise

    def _wake(self) -> None:
        getters = self._getters
        while getters:
            getter = getters.popleft()
            if not getter.done():
                getter.set_result(None)
                break
        if not getters:
            self._inbox.wake = None

    def _not_open(self) -> Exception:
        if self._state == "closed":
            return BrokerClosed(ENDED)
        return RuntimeError("this subscription is not open: use it as 'async with', and receive inside the block")

    def __aiter__(self) -> AsyncIterator[I_co]:
        if self._state == "new":
            raise self._not_open()
        return self

    async def __anext__(self) -> I_co:
        if self._state == "closed":
            raise StopAsyncIteration
        item = self._taken()
        if item is None or isinstance(item, Gap):
            return await self._next_or_stop(item)
        return self._given(item)

    async def _next_or_stop(self, item: Gap | None) -> I_co:
        if item is not None:
            if self._gaps == "raise":
                raise MessagesLost(item)
            return self._given(item)
        try:
            return await self._next()
        except BrokerClosed:
            if self._state == "closed":
                raise StopAsyncIteration from None
            raise

    async def __aenter__(self) -> Self:
        if self._state == "closed" and self._loop is None:
            raise BrokerClosed(ENDED)  # before it was ever entered
        if self._state != "new":
            raise RuntimeError("a subscription is entered once; ask the coordinator for another")
        self._state = "entering"
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        try:
            await self._enter()
        except BaseException:
            self._state = "closed"
            self._inbox.clear()
            raise
        if self._state != "entering":  # closed meanwhile
            self._leave()
            self._inbox.clear()
            await self._left()
            raise BrokerClosed(ENDED)
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_state", "new") != "open" or self._loop is None or self._pid != os.getpid():
            return
        if self._inbox.ended:
            return  # nobody listens for it any more
        warnings.warn(f"{self!r} was dropped without close", ResourceWarning, stacklevel=2)
        self._state = "closed"
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all that listens
            self._loop.call_soon_threadsafe(self._abandoned)

    def _abandoned(self) -> None:
        self._leave()
        self._inbox.clear()
        task = asyncio.ensure_future(self._left())
        _leaving.add(task)
        task.add_done_callback(_leaving.discard)

    async def close(self) -> None:
        """Receive nothing more; what is queued is dropped. Idempotent. Whoever iterates comes to the end."""
        if self._pid and self._pid != os.getpid():
            self._state = "closed"  # what was entered before a fork belongs to the parent
        elif self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise RuntimeError("this subscription was entered on another event loop; close it there")
        state, self._state = self._state, "closed"
        if state not in ("entering", "open"):
            return
        self._leave()
        self._inbox.clear()
        for getter in self._getters:
            if not getter.done():
                getter.set_result(None)
        self._getters.clear()
        await self._left()


class AsyncSubscription(AsyncReceiver[I_co, Message]):
    """The messages of some channels. Made by ``AsyncCoordinator.subscribe``, which explains the parameters."""

    def __init__(
        self,
        broker: Broker,
        locks: Register,
        channels: tuple[str, ...],
        *,
        capacity: int,
        overflow: Overflow,
        gaps: Gaps,
        where: Where | None,
        skip_own: bool,
        delivery: Delivery,
        timeout: float | None,
    ) -> None:
        super().__init__(Inbox(channels, broker.events, capacity, overflow, gaps), gaps)
        self._broker = broker
        self._channels = channels
        self._timeout = timeout
        inbox = self._inbox

        def filtered(sink: Sink[Message]) -> Sink[Message]:
            return sink if where is None and not skip_own else Filtered(sink, broker.events, where, skip_own)

        self._deliverer: Deliverer | None = None
        sinks: Mapping[str, Sink[Message]]
        if delivery == "all":
            sinks = dict.fromkeys(channels, filtered(inbox))
        elif delivery == "one-process":
            self._deliverer = OneProcess(broker, locks, channels, inbox, filtered(inbox))
            sinks = self._deliverer.sinks
        elif delivery == "one-each":
            # before the claim: what is not wanted here is left for others
            self._deliverer = OneEach(broker, channels, inbox)
            sinks = {name: filtered(line) for name, line in self._deliverer.sinks.items()}
        else:
            raise ConfigurationError(f"delivery must be 'all', 'one-process' or 'one-each', not {given(delivery)}")
        self._by_sink: dict[Sink[Message], list[str]] = {}
        for name, sink in sinks.items():
            self._by_sink.setdefault(sink, []).append(name)

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return self._channels

    @property
    def active(self) -> bool:
        """Whether messages come here. With ``delivery="one-process"`` only while this process is the one, for all
        channels of the subscription."""
        return self._state == "open" and (self._deliverer is None or self._deliverer.active)

    @property
    def _pending(self) -> int:
        """How many messages have come of which it is not known yet whether they are for this subscriber."""
        return 0 if self._deliverer is None else self._deliverer.pending

    async def _enter(self) -> None:
        entered: list[tuple[list[str], Sink[Message]]] = []
        try:
            for sink, names in self._by_sink.items():
                entered.append((names, sink))
                await self._broker.enter(names, sink, self._timeout)
            if self._deliverer is not None:
                await self._deliverer.begin(self._timeout)
        except BaseException:
            for names, sink in entered:
                self._broker.leave(names, sink)
            await self._left()
            raise

    def _leave(self) -> None:
        for sink, names in self._by_sink.items():
            self._broker.leave(names, sink)

    async def _left(self) -> None:
        if self._deliverer is not None:
            await self._deliverer.end()

    async def __anext__(self) -> I_co:
        # the hot path: what is there is taken without a turn of the loop, and almost without a call
        inbox = self._inbox
        items = inbox.items
        if items and inbox.before is None and type(items[0]) is Message:
            inbox.queued -= 1
            return items.popleft()  # type: ignore[return-value]
        return await super().__anext__()

    def _given(self, item: Message | Gap) -> I_co:
        return item  # type: ignore[return-value]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self._channels[:3])) + (" …" if len(self._channels) > 3 else "")
        state = "standing by" if self._state == "open" and not self.active else self._state
        return f"<AsyncSubscription {shown} {state}, {self._inbox.queued} queued>"
