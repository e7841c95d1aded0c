"""Handlers in the background for threads: the twin of ``AsyncListening``, which does its work on the engine.

Theory. Which message is whose turn, order, replies, errors and the bounded end are those of asyncio
(``pubsub/listening.py``); what runs on a thread is the handler and nothing else (``handlers.py``). A thread cannot be
cancelled: a handler that closing has given up runs on, and what it returns is thrown away.

A handler that closes its own listening would wait for itself; so there closing is begun and not waited for.

One that was entered by ``with``, and whose exit has not begun because of an interrupt, is closed when it is dropped;
one that was opened goes on without anybody who has it.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ..acquiring import check_timeout
from ..errors import CoordinatorClosed
from ..pubsub.broker import Broker
from ..pubsub.delivery import Delivery
from ..pubsub.listening import AsyncListening, Reply
from ..pubsub.message import Gap, Message
from ..pubsub.overflow import Overflow
from .engine import not_in_a_loop
from .handlers import check_plain
from .mail import Messages

__all__ = ["ChannelSubscription", "GapHandler", "Handler", "Listening"]

Handler = Callable[[Message], Reply]
"""Gets a message. What it returns is the reply, when the message is a request."""

GapHandler = Callable[[Gap], object]
"""Gets to know that messages are missing."""

_TWIN: Final = "AsyncCoordinator"


class ChannelSubscription(Protocol):
    """A consumer of one channel, for ``Coordinator.attach``; ``FanOut`` is one."""

    @property
    def channel(self) -> str:
        """What it listens to."""
        ...

    def deliver(self, raw: bytes, /) -> object:
        """Get the payload of a message; raising is contained and told."""
        ...


class Listening:
    """Handlers of channels, while they run. ``with`` it, or ``open()`` it, and ``close()`` it.

    Made by ``Coordinator.listen``, which explains the parameters.
    """

    def __init__(
        self,
        messages: Messages,
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
        self._messages = messages
        self._entered = False

        def on_thread(handler: Any, what: str) -> Any:
            check_plain(handler, what)
            return messages.threads.on_thread(handler) if callable(handler) else handler

        self._inner = AsyncListening(
            messages.broker,
            messages.register,
            {name: on_thread(handler, f"the handler of {name!r}") for name, handler in handlers.items()},
            catch_all=on_thread(catch_all, "catch_all"),
            on_gap=on_thread(on_gap, "on_gap"),
            concurrency=concurrency,
            capacity=capacity,
            overflow=overflow,
            delivery=delivery,
            close_timeout=close_timeout,
            timeout=timeout,
        )

    @property
    def channels(self) -> tuple[str, ...]:
        """What it listens to."""
        return self._inner.channels

    @property
    def active(self) -> bool:
        """Whether messages come here: with ``delivery="one-process"`` only while this process is the one, for all
        channels."""
        return self._inner.active

    def open(self) -> Self:
        """Begin. Returns when listening is proven; failing or interrupted, nothing stays behind."""
        inner, threads = self._inner, self._messages.threads
        closing = partial(_closing, self._messages.broker, inner)

        async def begin() -> None:
            threads.join()
            try:
                _ = await inner.open()
            except BaseException:
                threads.leave()
                raise
            inner._ended.add_done_callback(lambda ended: threads.leave())

        def undo(begun: None) -> None:
            _ = closing(0)

        self._messages.run(begin, undo)
        return self

    def __enter__(self) -> Self:
        self.open()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self, timeout: float | None = None) -> None:
        """End. What is queued is handled, and handlers that run are awaited, for ``timeout`` seconds
        (``close_timeout`` by default); then they are left alone. Idempotent, in any state. Interrupted, or called by a
        handler, it leaves at once and the closing goes on."""
        check_timeout(timeout)
        messages = self._messages
        begin = partial(_closing, messages.broker, self._inner, timeout)
        if messages.threads.inside:
            messages.engine.crossing.post(begin)
            return
        not_in_a_loop(_TWIN)
        try:
            messages.engine.follow(begin)
        except CoordinatorClosed:
            pass  # the engine has ended, and everything with it

    def wait_closed(self, timeout: float | None = None) -> bool:
        """Return when it has ended: by ``close()``, or because the coordinator was closed. False after ``timeout``
        seconds."""
        limit = check_timeout(timeout)
        ended = self._inner._ended
        if ended.done():
            return True
        not_in_a_loop(_TWIN)
        try:
            return self._messages.engine.follow(lambda: ended, limit)
        except CoordinatorClosed:
            return True

    def __del__(self) -> None:
        if getattr(self, "_entered", False) and self._inner._state == "open":
            shown = repr(self)
            if self._messages.engine.crossing.post(partial(_closing, self._messages.broker, self._inner, 0)):
                warnings.warn(f"{shown} was dropped without close", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        return repr(self._inner).replace("AsyncListening", "Listening", 1)


def _closing(broker: Broker, listening: AsyncListening, timeout: float | None) -> asyncio.Future[Any]:
    return broker.loop.create_task(listening.close(timeout), name="pgconcert closing a listening")
