"""Fan-outs over the memory backend, and what their listeners got: for the tests of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pgconcert import AsyncCoordinator
from pgconcert.events import Event
from pgconcert.pubsub.fanout import AsyncFanOut, AsyncFanOutSubscription

LIMIT = 30.0


@dataclass
class Order:
    id: int
    lines: list[str] = field(default_factory=list)


@asynccontextmanager
async def coordinators(name: str, count: int = 2) -> AsyncIterator[list[AsyncCoordinator]]:
    made = [AsyncCoordinator(f"memory://{name}") for _ in range(count)]
    for each in made:
        await each.open()
    try:
        yield made
    finally:
        for each in made:
            await each.close()


@asynccontextmanager
async def fan(name: str, **options: Any) -> AsyncIterator[AsyncFanOut[Order]]:
    async with coordinators(name, 1) as (c,):
        yield c.fanout("orders", Order, **options)


def seen(c: AsyncCoordinator, *kinds: type[Event]) -> list[Event]:
    found: list[Event] = []
    for kind in kinds:
        c.events.subscribe(found.append, kind)
    return found


async def ids(listener: AsyncFanOutSubscription[Any], count: int) -> list[int]:
    return [(await listener.get(LIMIT)).id for _ in range(count)]
