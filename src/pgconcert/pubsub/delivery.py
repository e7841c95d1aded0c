"""Who of the many that listen handles a message: what every way has in common, and the filter before it.

A way of delivery is a sink for each channel, which stands before the inbox of a subscription: everybody (no sink at
all), one process (``oneprocess.py``), or one for each message (``oneeach.py``).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from ..errors import ConfigurationError, given
from ..events import EventStream, HandlerFailed
from ..events.stream import GOES_ON, goes_on
from .message import Gap, Message
from .overflow import Item, Sink

__all__ = ["Deliverer", "Delivery", "Filtered", "Where", "check_filter", "wanted"]

T = TypeVar("T")

Delivery = Literal["all", "one-process", "one-each"]
"""Who handles a message: every subscriber; those of one process for each channel; for each message one of all."""

Where = Callable[[Message], object]
"""A filter: whether a subscriber wants a message."""


def check_filter(where: object) -> None:
    """Raise ``ConfigurationError`` for what cannot be asked about every message."""
    if where is not None and not callable(where):
        raise ConfigurationError(f"where must be a function of one message or value, not {given(where)}")
    if inspect.iscoroutinefunction(where):
        raise ConfigurationError("where must be a plain function: it is called for every message, and not awaited")


def wanted(where: Callable[[T], object], value: T, item: Item, gap: Callable[[Gap], None], events: EventStream) -> bool:
    """What a filter says about a value, which came as ``item``. If it raises, the value is missed, and that is told."""
    try:
        return bool(where(value))
    except BaseException as error:
        at = item.received
        gap(Gap(reason="filter", count=1, since=at, until=at, channels=(item.channel,)))
        events.emit(HandlerFailed(channel=item.channel, error=error))
        if isinstance(error, GOES_ON):
            goes_on(error)
        return False


class Filtered:
    """Only what a subscriber wants. A filter that raises costs the message, and is told."""

    def __init__(self, inner: Sink[Message], events: EventStream, where: Where | None, skip_own: bool) -> None:
        self._inner = inner
        self._events = events
        self._where = where
        self._skip_own = skip_own
        self.gap = inner.gap
        self.fail = inner.fail

    def put(self, message: Message) -> None:
        """Queue it, if it is wanted."""
        if self._skip_own and message.own:
            return
        if self._where is None or wanted(self._where, message, message, self.gap, self._events):
            self._inner.put(message)


class Deliverer(ABC):
    """What stands before the inbox of one subscription: a sink for each of its channels."""

    sinks: Mapping[str, Sink[Message]]

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether messages come through."""

    @property
    def pending(self) -> int:
        """How many messages have come of which it is not known yet whether they come through."""
        return 0

    @abstractmethod
    async def begin(self, timeout: float | None) -> None:
        """Return when registered. Raises what stands against it."""

    @abstractmethod
    async def end(self) -> None:
        """Give everything back. Idempotent, in any state."""
