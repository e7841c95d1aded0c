"""Handlers in the background: for each channel a subscription, and tasks that hand its messages to a handler.

Theory. A handler is called with one message at a time, in order; with ``concurrency=n`` up to n run at once for each
channel, and order is given up. A plain function runs on the event loop, so it must be quick; a coroutine may take its
time, and holds up its own channel only. Whatever a handler raises is contained and told (``HandlerFailed``), a
``CancelledError`` of its own making too.

When the message is a request, what the handler returns is the reply (``requests.py``); else it should return ``None``.

States: *new*, *open*, *closing* (nothing new comes; what is queued is handled, within a limit), *closed*. Closing takes
what time is left from the handlers that still run: they are cancelled, and what they have not reached is told
(``HandlersAbandoned``).
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ..acquiring import Register, check_timeout
from ..errors import BrokerClosed, ConfigurationError, PgconcertError, given
from ..events import DeliveryFailed, HandlerFailed, HandlersAbandoned
from ..events.stream import GOES_ON
from .broker import Broker
from .channels import check_channel
from .delivery import Delivery
from .message import Gap, Message
from .overflow import Inbox, Overflow
from .requests import answer
from .subscription import ENDED, AsyncSubscription

__all__ = ["AsyncListening", "ChannelSubscription", "GapHandler", "Handler"]

Reply = bytes | bytearray | memoryview | str | None

Handler = Callable[[Message], Awaitable[Reply] | Reply]
"""Gets a message. What it returns is the reply, when the message is a request."""

GapHandler = Callable[[Gap], object]
"""Gets to know that messages are missing."""

_MOST: Final = 10_000


class ChannelSubscription(Protocol):
    """A consumer of one channel, for ``AsyncCoordinator.attach``; ``AsyncFanOut`` is one."""

    @property
    def channel(self) -> str:
        """What it listens to."""
        ...

    def deliver(self, raw: bytes, /) -> Awaitable[object] | object:
        """Get the payload of a message; raising is contained and told."""
        ...


class AsyncListening:
    """Handlers of channels, while they run. ``async with`` it, or await it, and ``close()`` it.

    Made by ``AsyncCoordinator.listen``, which explains the parameters.
    """

    def __init__(
        self,
        broker: Broker,
        locks: Register,
        handlers: Mapping[str, Handler],
        *,
        catch_all: Handler | None,
        on_gap: GapHandler | None,
        concurrency: int,
        capacity: int,
        overflow: Overflow,
        delivery: Delivery,
        close_timeout: float,
        timeout: float | None,
    ) -> None:
        if type(concurrency) is not int or not 1 <= concurrency <= _MOST:
            raise ConfigurationError(f"concurrency must be 1 to {_MOST} handlers at once, not {given(concurrency)}")
        if not handlers and catch_all is None:
            raise ConfigurationError("listen() needs a handler: {'channel': handler, …}, or catch_all=handler")
        if not isinstance(handlers, Mapping):
            raise ConfigurationError(f"listen() takes a mapping, {{'channel': handler, …}}, not {given(handlers)}")
        for name, handler in handlers.items():
            check_channel(name)
            _check_callable(handler, f"the handler of {name!r}")
        for what, hook in (("catch_all", catch_all), ("on_gap", on_gap)):
            if hook is not None:
                _check_callable(hook, what)
        self._broker = broker
        self._concurrency = concurrency
        self._on_gap = on_gap
        if close_timeout is None:
            raise ConfigurationError("close_timeout must be a number of seconds: closing has a limit")
        self._close_timeout = check_timeout(close_timeout)
        self._subscriptions: dict[AsyncSubscription[Message | Gap], Handler] = {
            AsyncSubscription(
                broker,
                locks,
                (name,),
                capacity=capacity,
                overflow=overflow,
                gaps="yield",
                where=None,
                skip_own=False,
                delivery=delivery,
                timeout=timeout,
            ): handler
            for name, handler in handlers.items()
        }
        self._catch_all = catch_all
        self._everything: Inbox[Message] = Inbox(("*",), broker.events, capacity, overflow, "yield")
        self._workers: list[_Worker] = []
        self._state = "new"
        self._closing: asyncio.Task[object] | None = None
        self._forget: Callable[[], None] = _nothing
        self._ended: asyncio.Future[None] = broker.loop.create_future()
        self._hurry: asyncio.Future[None] = broker.loop.create_future()
        self._error: Exception | None = None
        self._pid = 0

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return tuple(name for subscription in self._subscriptions for name in subscription.channels)

    @property
    def active(self) -> bool:
        """Whether messages come here: with ``delivery="one-process"`` only while this process is the one, for all
        channels."""
        return self._state == "open" and all(subscription.active for subscription in self._subscriptions)

    async def open(self) -> Self:
        """Begin. Returns when listening is proven; failing or cancelled, nothing stays behind."""
        if self._state != "new":
            raise RuntimeError("handlers are opened once; ask the coordinator for others")
        self._state = "opening"
        self._pid = os.getpid()
        self._broker.check_here()
        try:
            for subscription, handler in self._subscriptions.items():
                await subscription.__aenter__()
                if self._state != "opening" or self._error is not None:
                    await subscription.close()
                    raise self._error or BrokerClosed(ENDED)
                self._workers.append(
                    _Worker(self._broker, subscription, handler, self._on_gap, self._concurrency, self._failed)
                )
        except BaseException:
            self._state = "closed"
            await self._end(0)
            raise
        if self._catch_all is not None:
            tap = _Tap(self._everything, self._broker)
            self._workers.append(
                _Worker(self._broker, tap, self._catch_all, self._on_gap, self._concurrency, self._failed)
            )
        self._forget = self._broker.at_end(self.close)
        self._state = "open"
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, timeout: float | None = None) -> None:
        """End. What is queued is handled, and handlers that run are awaited, for ``timeout`` seconds
        (``close_timeout`` by default); then they are cancelled. Idempotent, in any state; called again with a
        ``timeout``, it waits no longer than that. Cancelled, or called by a handler, it leaves at once and the closing
        goes on."""
        limit = self._close_timeout if timeout is None else check_timeout(timeout)
        if self._state != "new" and self._pid != os.getpid():
            self._state = "closed"  # what was opened before a fork belongs to the parent
            return
        if self._state in ("opening", "open", "closing") and asyncio.get_running_loop() is not self._broker.loop:
            raise RuntimeError("these handlers were opened on another event loop; close them there")
        if self._state == "new":
            self._state = "closed"
            self._ended.set_result(None)
        if self._closing is None and self._state in ("opening", "open"):
            self._state = "closing"
            self._close_within(limit)
        elif timeout is not None and limit is not None:
            self._broker.loop.call_later(limit, self._lose_patience)
        # a handler that closes its own listening is among those that are waited for
        if self._closing is not None and not any(worker.runs_here for worker in self._workers):
            await asyncio.shield(self._closing)

    async def wait_closed(self) -> None:
        """Return when it has ended: by ``close()``, or because the coordinator was closed. Raises what has ended it
        otherwise: ``ListenerOverflow`` (with ``overflow="error"``) or ``GivenUp``."""
        await asyncio.shield(self._ended)
        if self._error is not None:
            raise self._error

    def _failed(self, error: Exception) -> None:
        """One of the channels has come to its end, so all of it ends."""
        self._error = self._error or error
        if self._state == "open":
            self._state = "closing"
            self._close_within(self._close_timeout)

    def _lose_patience(self) -> None:
        if not self._hurry.done():
            self._hurry.set_result(None)

    def _close_within(self, limit: float | None) -> None:
        self._closing = self._broker.loop.create_task(self._end(limit), name="pgconcert closing handlers")

    async def _end(self, limit: float | None) -> None:
        try:
            running = {worker.source for worker in self._workers}
            entering = [subscription for subscription in self._subscriptions if subscription not in running]
            ends = [worker.end(limit, self._hurry) for worker in self._workers]
            await asyncio.gather(*(subscription.close() for subscription in entering), *ends)
        finally:
            self._forget()
            self._state = "closed"
            if not self._ended.done():
                self._ended.set_result(None)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.channels[:3])) + (" …" if len(self.channels) > 3 else "")
        return f"<AsyncListening {shown or 'all channels'} {self._state}>"


class _Tap:
    """The messages of all channels that are heard for anybody."""

    channels = ("*",)
    _pending = 0

    def __init__(self, inbox: Inbox[Message], broker: Broker) -> None:
        self._inbox = inbox
        self._broker = broker
        broker.tap(inbox, True)

    def stop(self) -> None:
        self._broker.tap(self._inbox, False)


class _Worker:
    """Hands the messages of one subscription to a handler."""

    def __init__(
        self,
        broker: Broker,
        source: AsyncSubscription[Message | Gap] | _Tap,
        handler: Handler,
        on_gap: GapHandler | None,
        concurrency: int,
        failed: Callable[[Exception], None],
    ) -> None:
        self._broker = broker
        self._failed = failed
        self.source = source
        self._handler = handler
        self._on_gap = on_gap
        self._inbox = source._inbox
        self._running = 0
        self._draining = False
        self._complained = False
        self._sleepers: list[asyncio.Future[None]] = []
        self._tasks = [
            broker.loop.create_task(self._work(), name=f"pgconcert handler of {source.channels[0]}")
            for _ in range(concurrency)
        ]
        broker.handlers.update(self._tasks)

    @property
    def runs_here(self) -> bool:
        """Whether the running task is one of its own."""
        return asyncio.current_task() in self._tasks

    async def end(self, limit: float | None, hurry: asyncio.Future[None]) -> None:
        """Hear nothing more, and let what is there be handled, for ``limit`` seconds or until there is a ``hurry``."""
        if isinstance(self.source, _Tap):
            self.source.stop()
        else:
            self.source._leave()
        self._draining = True
        self._wake()
        try:
            ended: asyncio.Future[Any] = asyncio.ensure_future(asyncio.wait(self._tasks))
            either: list[asyncio.Future[Any]] = [ended, hurry]
            try:
                await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            left = [task for task in self._tasks if not task.done()]
            if left:
                queued = self._inbox.queued + self.source._pending
                if self._running or queued:
                    channel = self.source.channels[0]
                    self._broker.events.emit(HandlersAbandoned(channel=channel, running=self._running, queued=queued))
                for task in left:
                    task.cancel()
                await asyncio.wait(left, timeout=1.0)
        finally:
            self._broker.handlers.difference_update(self._tasks)
            if isinstance(self.source, AsyncSubscription):
                await self.source.close()

    async def _work(self) -> None:
        inbox = self._inbox
        while True:
            try:
                item = inbox.take()
            except PgconcertError as error:
                self._wake()  # the end is for all of them
                if not isinstance(error, BrokerClosed):
                    self._failed(error)
                return
            if item is None:
                if self._draining and not self.source._pending:
                    self._wake()
                    return
                await self._sleep()
            elif isinstance(item, Gap):
                await self._call(self._on_gap, item, self.source.channels[0])
            else:
                await self._call(self._handler, item, item.channel)

    async def _call(self, handler: Callable[[Any], object] | None, item: Message | Gap, channel: str) -> None:
        if handler is None:
            return
        self._running += 1
        result: object = None
        failure: BaseException | None = None
        try:
            result = handler(item)
            if inspect.isawaitable(result):
                result = await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failure = error
        except GOES_ON:
            raise
        except BaseException as error:
            failure = error
        finally:
            self._running -= 1
        if failure is not None:
            self._broker.events.emit(HandlerFailed(channel=channel, error=failure))
        if isinstance(item, Message) and not isinstance(self.source, _Tap):
            self._answer(item, result, failure)

    def _answer(self, message: Message, result: object, failure: BaseException | None) -> None:
        if message.reply_to is not None:
            answer(self._broker, message, message.reply_to, result, failure)
        elif result is not None and not self._complained:
            self._complained = True
            error = f"the handler returned a {type(result).__name__}, but the message is no request (told once)"
            self._broker.events.emit(DeliveryFailed(channel=message.channel, error=error))

    async def _sleep(self) -> None:
        sleeper = self._broker.loop.create_future()
        self._sleepers.append(sleeper)
        self._inbox.wake = self._wake_one
        try:
            await sleeper
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)

    def _wake_one(self) -> None:
        if self._sleepers:
            sleeper = self._sleepers.pop()
            if not sleeper.done():
                sleeper.set_result(None)
        if not self._sleepers:
            self._inbox.wake = None

    def _wake(self) -> None:
        while self._sleepers:
            self._wake_one()


def _check_callable(handler: object, what: str) -> None:
    if not callable(handler):
        raise ConfigurationError(f"{what} must be callable with a message, not {given(handler)}")


def _nothing() -> None:
    """Forget nothing."""
