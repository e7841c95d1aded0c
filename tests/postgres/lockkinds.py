"""What shared locks, sets and semaphores leave on the server, by the kind of their pairs; and who waits for them.

Here live helpers without assertions of their own. Theory: a pair's topmost four bits say what it is (`keys.py`), so a
look at the server's advisory locks tells who is interested, who keeps a gate closed and who has which slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from pgconcert import AsyncCoordinator
from pgconcert.hold import AsyncHold
from pgconcert.keys import numbered_pair
from pgconcert.testing import AdvisoryLock, advisory_locks, eventually_async
from tests.postgres.scenes import statements

T = TypeVar("T")

INTEREST: Final = 1
GATE: Final = 2
SLOT: Final = 3
AGREEMENT: Final = 4

NEVER: Final = 1_000_000.0
"""A re-check that does not come: only a wake-up helps."""


def pairs(url: str, kind: int) -> list[AdvisoryLock]:
    """The library's own locks of one kind on the database."""
    return [lock for lock in advisory_locks(url) if isinstance(lock.key, tuple) and lock.key[0] >> 28 == kind]


def locks(url: str) -> list[AdvisoryLock]:
    """The locks on the database that are keys, not pairs."""
    return [lock for lock in advisory_locks(url) if isinstance(lock.key, int)]


def slots(url: str) -> list[int]:
    """The numbers of the slots that are taken, in order; a number comes twice only if two semaphores have it."""
    return sorted(numbered_pair(lock.key)[1] for lock in pairs(url, SLOT) if isinstance(lock.key, tuple))


async def until_pairs(url: str, kind: int, count: int = 1) -> None:
    """Wait until there are so many pairs of a kind."""
    await eventually_async(lambda: len(pairs(url, kind)) == count, what=f"{count} pairs of kind {kind}")


async def started(coroutine: Coroutine[Any, Any, T], url: str, kind: int = INTEREST) -> asyncio.Task[T]:
    """A task that waits, once the server knows it by one more pair of `kind`."""
    before = len(pairs(url, kind))
    task = asyncio.create_task(coroutine)
    await until_pairs(url, kind, before + 1)
    return task


async def fence(coordinator: AsyncCoordinator) -> None:
    """A cycle on a key of nobody else: what was asked on this link before is answered afterwards."""
    async with coordinator.lock("a fence"):
        pass


async def still_waits(task: asyncio.Task[Any], *coordinators: AsyncCoordinator) -> bool:
    """Whether a task still waits after every coordinator has had its link answer twice."""
    for _ in range(2):
        for coordinator in coordinators:
            await fence(coordinator)
    return not task.done()


async def let_go(*holds: AsyncHold | None) -> None:
    """Release in the order given."""
    for hold in holds:
        assert hold is not None
        await hold.release()


async def cost_of(coroutine: Coroutine[Any, Any, object], coordinator: AsyncCoordinator) -> int:
    """How many statements a coroutine cost on the lock links of a quiet coordinator."""
    before = statements(coordinator, "lock")
    await coroutine
    return statements(coordinator, "lock") - before
