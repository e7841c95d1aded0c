"""What several test files of this folder share: events seen, who holds what, a stranger who competes.

Here live helpers without assertions of their own. Theory: the server is asked over a connection that no fault touches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pgconcert import AsyncCoordinator, AsyncHold
from pgconcert.events import Event
from pgconcert.keys import KeySpace
from pgconcert.testing import advisory_locks, eventually_async
from tests.servers import OwnServer

E = TypeVar("E", bound=Event)


def seen(coordinator: AsyncCoordinator, kind: type[E]) -> list[E]:
    """A list that grows with every event of one kind."""
    events: list[E] = []

    def keep(event: Event) -> None:
        assert isinstance(event, kind)
        events.append(event)

    coordinator.events.subscribe(keep, kind)
    return events


def session_of(coordinator: AsyncCoordinator, role: str = "lock") -> int | None:
    """The server process of a link; None while there is none."""
    return next((link.server_pid for link in coordinator.health().links if link.role == role), None)


def believe_silence(coordinator: AsyncCoordinator, network_timeout: float) -> None:
    """Let a silence of so many seconds count as a dead network from now on.

    A time-out that is short from the beginning also ends links of a server that is only busy, before the network is
    broken and after it."""
    backend: Any = coordinator.backend
    context = backend._listener.keeper._context
    assert context.network_timeout > 0
    object.__setattr__(context, "network_timeout", network_timeout)


def holders(url: str, key: str) -> list[int]:
    """The server processes that hold a key."""
    value = KeySpace("").key(key).value
    return [lock.pid for lock in advisory_locks(url) if lock.key == value and lock.granted]


async def until_waiting(url: str, sessions: int = 1) -> None:
    """Wait until so many sessions have marked their interest in some key: they have tried in vain, and sleep."""

    def marked() -> bool:
        return len({lock.pid for lock in advisory_locks(url) if isinstance(lock.key, tuple)}) >= sessions

    await eventually_async(marked, what=f"{sessions} sessions wait")


async def until_free(url: str) -> None:
    """Wait until no advisory lock of any kind is left on the database."""
    await eventually_async(lambda: not advisory_locks(url), what="nothing is left in pg_locks")


@asynccontextmanager
async def waiter(coordinator: AsyncCoordinator, key: str, url: str) -> AsyncIterator[asyncio.Task[AsyncHold]]:
    """A task that waits for a key which another process has; at the end its lock is released."""
    task = asyncio.create_task(coordinator.lock(key).acquire())
    try:
        await until_waiting(url)
        yield task
    finally:
        if task.done():
            await task.result().release()
        else:
            task.cancel()
            await asyncio.wait([task])


@asynccontextmanager
async def down(server: OwnServer, mode: str = "fast") -> AsyncIterator[None]:
    """The server is stopped inside the block, while the event loop runs. At the end it answers again.

    What is cancelled on its way in leaves the server stopped for a while: no hold's scope may be around it.
    """
    outage = server.down(mode)
    await asyncio.to_thread(outage.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(outage.__exit__, None, None, None)
