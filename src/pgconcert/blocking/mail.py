"""What an open coordinator for threads has for its messages: the broker on the engine, and what stands beside it there.

Theory. It is made when the coordinator is opened and closed on the engine when that is closed, in this order: handlers
come to their end, within their limits; everybody who listens gets the last word; what their inboxes still have is put
into the hands of their threads (``feed.py``), because soon there is no engine left to ask; the threads of handlers end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar

from ..errors import BrokerClosed, ConfigurationError, CoordinatorClosed, given
from ..events import EventStream
from ..keys import KeySpace
from ..messenger import Messenger
from ..pubsub import messaging
from ..pubsub.broker import NOTHING, plain
from ..pubsub.channels import check_channel
from ..pubsub.messaging import Settings
from ..pubsub.pings import Reconnected
from ..pubsub.subscription import AsyncReceiver
from .acquiring import Register
from .engine import Call, Engine, not_in_a_loop
from .feed import Feed
from .handlers import HandlerThreads

__all__ = ["Messages"]

T = TypeVar("T")


def _nothing(result: object) -> None:
    """Undo nothing."""


class Messages(messaging.Messages):
    """Everything about messages that an open coordinator has. Touched on the engine, but for what is never changed."""

    def __init__(
        self,
        messenger: Messenger,
        register: Register,
        events: EventStream,
        keys: KeySpace,
        settings: Settings,
        payloads: bool,
        handler_threads: int,
    ) -> None:
        super().__init__(messenger, register.on_engine, events, keys, settings, payloads)
        self.engine: Engine = register.engine
        self.threads = HandlerThreads(register.engine.loop, register.crossing, handler_threads)
        self._feeds: set[Feed[Any, Any]] = set()
        self._ending: set[asyncio.Future[None]] = set()
        self._over = False

    def feed(self, feed: Feed[Any, Any]) -> None:
        """A subscription was entered."""
        if self._over:
            feed.drain()
        else:
            self._feeds.add(feed)

    def end(self, feed: Feed[Any, Any], receiver: AsyncReceiver[Any, Any]) -> asyncio.Future[None]:
        """A subscription is to be closed. Returns its end, which comes whoever waits for it."""
        feed.close()
        self._feeds.discard(feed)
        ending = self.broker.loop.create_task(receiver.close(), name="pgconcert closing a subscription")
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return ending

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], undo: Callable[[T], None] = _nothing) -> T:
        """Run a coroutine on the engine from any thread, as ``Engine.run`` does. Raises ``BrokerClosed`` at its end."""
        not_in_a_loop("AsyncCoordinator")
        try:
            return self.engine.run(work, undo=undo)
        except BrokerClosed:
            raise
        except CoordinatorClosed as ended:
            raise BrokerClosed("this coordinator is closed") from ended

    def publish(
        self,
        channel: str,
        payload: object,
        json: object = NOTHING,
        headers: Mapping[str, str] | None = None,
        message_id: bool | str = False,
    ) -> None:
        """Send a message from any thread: checked and encoded here and, unless it is large, sent in one crossing."""
        not_in_a_loop("AsyncCoordinator")
        broker = self.broker
        if json is NOTHING and headers is None and message_id is False and (wire := plain(payload)) is not None:
            name = check_channel(channel)
        else:
            message = broker.outgoing(channel, payload, json, headers, message_id)
            small = broker.wire(message)
            if small is None:
                self.run(lambda: broker.send(message))
                return
            name, wire = message.channel, small
        call: Call[bool] = Call()
        if not self.engine.crossing.post(partial(broker.messenger.publish, name, wire, call)):
            raise BrokerClosed("this coordinator is closed")
        call.wait()
        try:
            call.answer()
        except Exception:
            broker.counts.failed += 1
            raise
        broker.counts.published += 1

    def on_reconnect(self, hook: Callable[[Reconnected], object], initial: bool) -> Callable[[], None]:
        """Call a hook on a thread whenever listening was proven. From any thread; returns the way to stop it."""
        if not callable(hook):
            raise ConfigurationError(f"a hook must be callable, not {given(hook)}")
        post = self.engine.crossing.post
        stops: list[Callable[[], None]] = []

        def begin() -> None:
            self.threads.join()
            stops.append(self.home.on_reconnect(self.threads.on_thread(hook), initial))

        def end() -> None:
            if stops:
                stops.pop()()
                self.threads.leave()

        def stop() -> None:
            post(end)

        post(begin)
        return stop

    async def close(self) -> None:
        """End everything that listens."""
        try:
            await super().close()
        finally:
            self._over = True
            for feed in self._feeds:
                feed.drain()
            self._feeds.clear()
            self.threads.close()
