"""A backend in one file: exclusive locks between the coordinators of one event loop. Read it to write your own.

Here live `ToyBackend` (the ports `Backend` and `Locker`) and `make` (the factory that an entry point names). The
theory: every key has a *line* of claims, and the first of the line has the lock. So there is nothing to keep in step:
a lock is free when its line is gone, and whoever leaves the head of a line hands the lock to the next.

It shows what a backend must do and nothing that it may leave out. No shared locks, no semaphores: the capabilities say
so, and the coordinator refuses them. No threads and no network, so there is one world for each name in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Sequence

from pgconcert.backend import DONE, GRANTED, Capability, Claim, Describer, Health, Holder, Options
from pgconcert.errors import CoordinatorClosed
from pgconcert.events import EventStream, HoldBroken, HoldDropped
from pgconcert.hold import Grant, Waiter
from pgconcert.keys import LockKey

World = dict[int, dict[Claim, "ToyBackend"]]
"""The line of every key: claims in the order in which they came, each with the backend it came through."""

_worlds: dict[str, World] = {}
_numbers = itertools.count(1)


class ToyBackend:
    """The backend of one coordinator. Coordinators exclude each other if their backends share a world."""

    def __init__(self, world: World, name: str | None = None) -> None:
        self._world = world
        self._holder = Holder(next(_numbers), name or "toy")
        self._claims: set[Claim] = set()
        self._closed = False
        self._events = EventStream()
        self._loop: asyncio.AbstractEventLoop

    messenger = store = None  # the ports for messages and for sessions: it has neither

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Exclusive locks inside one process."""
        return frozenset(("exclusion",))

    @property
    def locker(self) -> ToyBackend:
        """The other port. A backend with more to do gives it an object of its own."""
        return self

    async def open(self, events: EventStream) -> None:
        """Remember whom to tell, and the loop to come back to."""
        self._events = events
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Who waits learns it, who holds has lost, and everything is free for others."""
        self._closed = True
        for claim in [*self._claims]:
            claim.fail(CoordinatorClosed("the coordinator was closed while this lock was waited for"))
        self.lose_connection("the coordinator was closed")

    def health(self) -> Health:
        """Nothing can be wrong with a dictionary. No budget is kept."""
        states = [claim.state for claim in [*self._claims]]
        held = states.count(GRANTED)
        return Health(ready=True, links=(), locks_held=held, locks_waited_for=len(states) - held, lock_budget=None)

    # the port Locker

    def acquire(self, claim: Claim) -> None:
        """Join the line; whoever does not want to wait joins only if it is empty."""
        if self._closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        line = self._world.setdefault(claim.key.value, {})
        if line and not claim.wait:
            claim.refuse()
            return
        line[claim] = self
        self._claims.add(claim)
        if len(line) == 1:
            claim.grant()

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        """There is no journey that they could share."""
        for claim in claims:
            self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        """Leave the line, wherever in it the claim is."""
        self._leave(claim)

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        """Leave the head of the line."""
        self.release_all((claim,), waiter)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        """Leave several lines. A claim that was lost has left already, and is as free as the others."""
        for claim in claims:
            self._leave(claim)
        if waiter is not None and not waiter.done():
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None:
        """A finaliser runs in any thread and between any two lines of ours, so it only leaves a message."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and all waiting with it
            self._loop.call_soon_threadsafe(self._dropped, claim)

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """The first of the line."""
        line = self._world.get(key.value, {})
        waiter.set_result([backend._holder for backend in [*line.values()][:1]])

    # what can go wrong: called by tests

    def lose_connection(self, reason: str = "the connection was cut by the test") -> None:
        """Lose what is held. Who waits waits on, as a waiter does that comes back after a reconnect."""
        for claim in [claim for claim in self._claims if claim.state == GRANTED]:
            claim.lose(reason, functools.partial(self._events.emit, HoldBroken(key=claim.key.name, reason=reason)))
            self._leave(claim)

    # the line

    def _leave(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        claim.state = DONE
        self._claims.discard(claim)
        line = self._world.get(claim.key.value, {})
        if line.pop(claim, None) is None:
            return
        if not line:
            del self._world[claim.key.value]
        elif (first := next(iter(line))).state != GRANTED:
            first.grant()

    def _dropped(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        self._leave(claim)
        self._events.emit(HoldDropped(key=claim.key.name))


def make(address: str, options: Options) -> ToyBackend:
    """The factory: `toy://name` is the world of that name."""
    return ToyBackend(_worlds.setdefault(address, {}), options.name)
