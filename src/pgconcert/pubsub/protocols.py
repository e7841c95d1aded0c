"""The smallest interfaces of a broker, for code that is neutral of who carries its messages.

Both coordinators implement them in their own world: these are those of asyncio.
"""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["Broker", "Channel", "Publisher", "Subscriber"]

Channel = str
"""The name of a channel: 1 to 63 encoded bytes, used as it is."""


class Publisher(Protocol):
    """Sends messages."""

    async def publish(self, channel: Channel, payload: bytes | str = b"") -> None:
        """Send a message to whoever listens; with no listener it is dropped. ``BrokerClosed`` after ``close``."""
        ...

    async def close(self) -> None:
        """End. Idempotent."""
        ...


class Subscriber(Protocol):
    """Receives messages."""

    def subscribe(self, *channels: Channel) -> Any:
        """An ``async with`` around an async iterator of messages, which hears everything sent after its entry.
        ``BrokerClosed`` after ``close``."""
        ...

    async def close(self) -> None:
        """End. Idempotent. Whoever iterates gets ``BrokerClosed`` behind what is queued."""
        ...


class Broker(Publisher, Subscriber, Protocol):
    """Both."""
