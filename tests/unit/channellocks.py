"""What the tests of channel locks share: the lock of a channel in one process or two, and what is said about it.

Theory: two coordinators are two processes to the backend. Who rests does so for ten minutes, unless a test is about the
end of it; so what happens soon happens because of a release, a loss or a look, and never by the interval.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import cast

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator
from pgconcert.blocking.channel_lock import ChannelLock
from pgconcert.channel_lock import AsyncChannelLock
from pgconcert.events import ActiveChanged
from pgconcert.memory import MemoryBackend
from pgconcert.testing import eventually_async

LONG = 600.0


def lock_of(c: AsyncCoordinator, channel: str = "orders", interval: float = LONG) -> AsyncChannelLock:
    return AsyncChannelLock(c._checked(None), c._keys, c.events, channel, interval)


def blocking_lock_of(c: Coordinator, channel: str = "orders", interval: float = LONG) -> ChannelLock:
    return ChannelLock(c._checked(None), c._keys, c.events, channel, interval)


@asynccontextmanager
async def two(world: str, interval: float = LONG) -> AsyncIterator[tuple[AsyncChannelLock, AsyncChannelLock]]:
    """The lock of one channel in two processes, both standing by."""
    async with AsyncCoordinator(world) as one, AsyncCoordinator(world) as other:
        async with lock_of(one, interval=interval) as mine, lock_of(other, interval=interval) as theirs:
            yield mine, theirs


@contextmanager
def two_for_threads(world: str) -> Iterator[tuple[ChannelLock, ChannelLock]]:
    """The same for threads."""
    with Coordinator(world) as one, Coordinator(world) as other:
        with blocking_lock_of(one) as mine, blocking_lock_of(other) as theirs:
            yield mine, theirs


def told(c: AsyncCoordinator | Coordinator) -> list[str]:
    """What is said about who handles the channel, in words."""
    words: list[str] = []
    c.events.subscribe(lambda event: words.append(str(event)), ActiveChanged)
    return words


def backend(c: AsyncCoordinator | Coordinator) -> MemoryBackend:
    return cast(MemoryBackend, c.backend)


async def turns(count: int = 30) -> None:
    """More turns of the loop than anything here needs, to see that nothing happens."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    await eventually_async(condition)
