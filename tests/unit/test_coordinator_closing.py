"""A coordinator that is closed while it opens, or used when it is closed: over a backend that we play ourselves.

Theory: whatever the order in which opening and closing are asked for and end, a backend that was opened is closed once,
nothing is left that could be used, and who waits is told. What a real backend does meanwhile is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, CoordinatorClosed
from pgconcert.backend import Capability, Claim, Describer, Health
from pgconcert.events import EventStream
from pgconcert.hold import Grant, Waiter
from pgconcert.keys import LockKey
from pgconcert.testing import eventually_async

engines = pytest.mark.parametrize("engine", ["loop", "thread"])


class Silent:
    """A locker that grants at once until it is closed, and then answers nothing."""

    def __init__(self) -> None:
        self.open = True

    def acquire(self, claim: Claim) -> None:
        if self.open:
            claim.waiter.set_result(True)

    def withdraw(self, claim: Claim) -> None: ...

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        if self.open and waiter is not None:
            waiter.set_result(True)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.acquire(claim)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        if self.open and waiter is not None:
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None: ...

    def describe(self, key: LockKey, waiter: Describer) -> None: ...


class Slow:
    """A backend that opens when the test says so, on whatever loop it is asked."""

    messenger = None
    store = None

    def __init__(self) -> None:
        self.locker = Silent()
        self.told: list[str] = []
        self.may_open = threading.Event()

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"exclusion"})

    async def open(self, events: EventStream) -> None:
        self.told.append("opening")
        await eventually_async(self.may_open.is_set)
        self.told.append("opened")

    async def close(self) -> None:
        self.told.append("closed")
        self.locker.open = False

    def health(self) -> Health:
        return Health(ready=True, links=(), locks_held=0, locks_waited_for=0, lock_budget=None)


@engines
async def test_closed_while_it_opens(engine: Literal["loop", "thread"]) -> None:
    backend = Slow()
    c = AsyncCoordinator(backend=backend, engine=engine)
    opening = asyncio.create_task(c.open())
    await eventually_async(lambda: backend.told == ["opening"])
    await asyncio.wait_for(c.close(), 30)
    backend.may_open.set()
    with pytest.raises(CoordinatorClosed, match="closed while it was being opened"):
        await asyncio.wait_for(opening, 30)
    assert backend.told == ["opening", "opened", "closed"]
    with pytest.raises(CoordinatorClosed, match="is closed"):
        c.lock("x")
    await c.close()
    assert backend.told.count("closed") == 1


@engines
async def test_cancelled_while_it_opens(engine: Literal["loop", "thread"]) -> None:
    backend = Slow()
    c = AsyncCoordinator(backend=backend, engine=engine)
    opening = asyncio.create_task(c.open())
    await eventually_async(lambda: backend.told == ["opening"])
    opening.cancel()
    await asyncio.wait([opening], timeout=30)
    assert opening.cancelled()
    with pytest.raises(CoordinatorClosed, match="is closed"):
        c.lock("x")
    await asyncio.wait_for(c.close(), 30)
    # closing is harmless in any state; on the engine thread it may have been opened all the same
    assert backend.told == ["opening", "closed"] if engine == "thread" else ["opening"]


async def test_on_the_engine_thread_a_lock_object_learns_of_the_end() -> None:
    """The locker behind is silent by then; the answer must come from this side."""
    backend = Slow()
    backend.may_open.set()
    c = AsyncCoordinator(backend=backend, engine="thread")
    await c.open()
    lock = c.lock("x")
    hold = await lock.acquire()
    await c.close()
    for use in (lock.acquire, lock.try_acquire):
        with pytest.raises(CoordinatorClosed, match="closed"):
            await asyncio.wait_for(use(), 30)
    await asyncio.wait_for(hold.release(), 30)
