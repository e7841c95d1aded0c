"""Helpers of the tests of `memory://` and `null://`: a world of one's own, and the story that a coordinator tells."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from pgconcert import AsyncCoordinator, AsyncHold
from pgconcert.clock import FakeClock
from pgconcert.events import Event
from pgconcert.memory import MemoryBackend, World


class Story:
    """The events of one coordinator, from now on."""

    def __init__(self, c: AsyncCoordinator, *kinds: type[Event]) -> None:
        self.events: list[Event] = []
        c.events.subscribe(self.events.append, *kinds)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def words(self) -> list[str]:
        return [str(event) for event in self.events]


def still_world(name: str) -> tuple[World, FakeClock]:
    """A world in which time stands still; keep it, and `memory://name` finds it."""
    clock = FakeClock()
    return World.named(name, clock=clock), clock


def handles(c: AsyncCoordinator) -> MemoryBackend:
    """The backend, with what breaks it."""
    return cast(MemoryBackend, c.backend)


async def waiting(work: Coroutine[Any, Any, AsyncHold]) -> asyncio.Task[AsyncHold]:
    """A task that waits for something by now."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    assert not task.done()
    return task
