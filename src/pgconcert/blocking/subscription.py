"""The consumer's end of a subscription for threads: a ``with`` around an iterator. Internal of every kind of consumer.

Theory. The subscription itself is that of asyncio (``pubsub/subscription.py``) and lives on the engine; what comes to a
thread comes through a feed (``feed.py``). Several threads may take from one subscription: each message goes to one of
them.

States as with asyncio. Entering and leaving are asked of the engine; who is interrupted on the way in has entered
nothing, and what was begun on the way out goes on. Python may raise ``KeyboardInterrupt`` between the entry and the
block, or before the exit has begun: then the subscription is left when it is dropped, with a ``ResourceWarning``.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from ..acquiring import check_timeout
from ..errors import BrokerClosed, CoordinatorClosed, MessagesLost
from ..pubsub.delivery import Delivery, Where
from ..pubsub.message import Gap, Message
from ..pubsub.overflow import Gaps, Item, Overflow, SubscriptionStatistics
from ..pubsub.subscription import ENDED, AsyncReceiver, AsyncSubscription
from .engine import Call, Engine, not_in_a_loop
from .feed import Feed, batch
from .mail import Messages

__all__ = ["Receiver", "Subscription"]

I_co = TypeVar("I_co", covariant=True)
M = TypeVar("M", bound=Item)

_TWIN: Final = "AsyncCoordinator"
_NOTHING: Final[Any] = object()


class Receiver(Generic[I_co, M]):
    """Something to receive from. ``with`` it, then iterate, or ``get()``."""

    def __init__(self, messages: Messages, inner: AsyncReceiver[I_co, M], most: int) -> None:
        self._entered = False
        self._messages = messages
        self._engine: Engine = messages.engine
        self._inner = inner
        self._feed: Feed[I_co | Gap, M] = Feed(inner._inbox, most, inner._given, messages.broker.loop)
        self._pops = self._feed.pops
        self._raises = inner._gaps == "raise"

    @property
    def statistics(self) -> SubscriptionStatistics:
        """How many messages came, wait, and were missed, and why."""
        statistics = self._inner.statistics
        in_hand = sum(not isinstance(item, Gap) for item in [*self._feed.ready])
        return replace(statistics, queued=statistics.queued + in_hand)

    def get(self, timeout: float | None = None) -> I_co:
        """The next message; with ``gaps="yield"`` a ``Gap`` where messages are missing.

        Raises ``TimeoutError`` after ``timeout`` seconds, ``MessagesLost`` at a gap with ``gaps="raise"`` (go on after
        it), ``ListenerOverflow`` at the end of a subscription that was too slow, and ``BrokerClosed`` when this
        subscription or its coordinator is closed. Interrupted, it takes nothing.
        """
        item: Any = self._next(check_timeout(timeout))
        if item.__class__ is Gap and self._raises:
            raise MessagesLost(item)
        return item  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[I_co]:
        if not self._entered:
            raise self._not_open()
        return self

    def __next__(self) -> I_co:
        # the hot path; and from taking a message to returning it nothing looks for signals, here and in ``get``
        item: Any = _NOTHING
        try:
            for taken in self._pops:
                item = taken
                break
        except IndexError:
            pass
        if item is _NOTHING:
            try:
                item = self._next(None)
            except BrokerClosed:
                if self._feed.closed:
                    raise StopIteration from None
                raise
        if item.__class__ is Gap and self._raises:
            raise MessagesLost(item)
        return item  # type: ignore[no-any-return]

    def _next(self, timeout: float | None) -> I_co | Gap:
        feed = self._feed
        post = self._engine.crossing.post
        end = None if timeout is None else time.monotonic() + timeout
        left = timeout
        call: Call[bool] | None = None
        try:
            while True:
                ended = feed.ended  # before looking: what was in hand before the end is still to be had
                item = self._take()
                if item is not _NOTHING:
                    return item  # type: ignore[no-any-return]
                if ended is not None:
                    raise copy.copy(ended)  # of its own, for each thread that gets it leaves its traceback there
                if not self._entered:
                    raise self._not_open()
                not_in_a_loop(_TWIN)
                call = Call()
                if not post(partial(feed.ask, call, left != 0)):
                    if feed.ended is None:
                        feed.ended = BrokerClosed("the coordinator was closed")
                    continue
                if not call.wait(left or None) or not call.answer():
                    raise TimeoutError(f"no message came within {timeout:g} s")
                if end is not None:
                    left = max(end - time.monotonic(), 0.0)
        except BaseException:
            if call is not None:
                post(partial(feed.forget, call))
            raise

    def _take(self) -> Any:
        """What is in hand first."""
        try:
            for item in self._pops:
                return item
        except IndexError:
            pass
        return _NOTHING

    def _not_open(self) -> Exception:
        if self._feed.closed:
            return BrokerClosed(ENDED)
        return RuntimeError("this subscription is not open: use it as 'with', and receive inside the block")

    def __enter__(self) -> Self:
        not_in_a_loop(_TWIN)
        if self._entered:
            raise RuntimeError("a subscription is entered once; ask the coordinator for another")
        feed, inner, messages = self._feed, self._inner, self._messages

        async def enter() -> None:
            await inner.__aenter__()
            messages.feed(feed)

        def leave(entered: None) -> None:
            _ = messages.end(feed, inner)

        self._entered = True
        try:
            messages.run(enter, undo=leave)
        except BaseException:
            feed.closed = True
            self._engine.crossing.post(feed.close)  # for those who wait already
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Receive nothing more; what is queued is dropped. Idempotent. Whoever iterates comes to the end."""
        feed = self._feed
        if not self._entered or feed.closed:
            return
        not_in_a_loop(_TWIN)
        try:
            self._engine.follow(partial(self._messages.end, feed, self._inner))
        except CoordinatorClosed:
            feed.close()  # the engine has ended, and nobody else is there

    def __del__(self) -> None:
        if not getattr(self, "_entered", False) or self._feed.closed or self._feed.ended is not None:
            return
        shown = repr(self)
        if self._engine.crossing.post(partial(self._messages.end, self._feed, self._inner)):
            warnings.warn(f"{shown} was dropped without close", ResourceWarning, stacklevel=1)

    @property
    def _state(self) -> str:
        return "closed" if self._feed.closed else "open" if self._entered else "new"


class Subscription(Receiver[I_co, Message]):
    """The messages of some channels. Made by ``Coordinator.subscribe``, which explains the parameters."""

    _inner: AsyncSubscription[I_co]

    def __init__(
        self,
        messages: Messages,
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
        inner: AsyncSubscription[I_co] = AsyncSubscription(
            messages.broker,
            messages.register,
            channels,
            capacity=capacity,
            overflow=overflow,
            gaps=gaps,
            where=where,
            skip_own=skip_own,
            delivery=delivery,
            timeout=timeout,
        )
        # who is no longer the one must not have messages in hand
        super().__init__(messages, inner, 1 if delivery == "one-process" else batch(capacity))

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return self._inner.channels

    @property
    def active(self) -> bool:
        """Whether messages come here. With ``delivery="one-process"`` only while this process is the one, for all
        channels of the subscription."""
        return self._state == "open" and self._feed.ended is None and self._inner.active

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.channels[:3])) + (" …" if len(self.channels) > 3 else "")
        state = "standing by" if self._state == "open" and not self.active else self._state
        return f"<Subscription {shown} {state}, {self.statistics.queued} queued>"
