"""Locks as a world of this process does them: the claims of one coordinator.

Theory. Every claim that lives stands in one list, in the order of arrival, with the time when it came. While there is a
connection each of them has an *ask* in the world as well; what becomes of it arrives as a letter. A letter about an ask
that the claim does not have any more (its seat was lost, or whoever asked has left) changes nothing. When the
connection is lost, what was held is lost and what does not want to wait fails; the others stay in the list, and are
asked anew, in their order, on the next connection.

Everything here runs on the event loop of the backend, except where it says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from ..backend import DONE, GRANTED, WAITING, Claim, Describer, Holder
from ..clock import Timer
from ..errors import CoordinatorClosed, LockBudgetExceeded, Unavailable
from ..events import EventStream, HoldBroken, HoldDropped, LockAcquired, LockReleased, StillWaiting
from ..hold import Grant, Waiter
from ..keys import LockKey
from .connection import Connection, settle
from .table import Ask, Seat, Verdict
from .world import World

__all__ = ["MemoryLocker"]

_STILL_WAITING: Final = 10.0


class MemoryLocker:
    """The port ``Locker`` in a world."""

    def __init__(
        self,
        world: World,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        *,
        name: str,
        network_timeout: float,
        budget: int,
    ) -> None:
        self.connection = Connection(world, loop, events, self, name=name, network_timeout=network_timeout)
        self.budget = budget
        self.closed = False
        self._world = world
        self._clock = world.clock
        self._events = events
        self._name = name
        self._loop = loop
        self._claims: dict[Claim, float] = {}
        self._asks: dict[Claim, Ask] = {}
        self._keys: dict[int, int] = {}
        self._permits: dict[int, int] = {}
        self._reported: dict[Claim, float] = {}
        self._patience: Timer | None = None
        self._counts = events.tally.locks
        world.members.add(self)
        self.connection.connect()

    # the port

    def acquire(self, claim: Claim) -> None:
        """Hand in a claim."""
        if self.closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        value = claim.key.value
        permits = claim.key.permits
        if self._keys.get(value, 0) < self._permits.get(value, 1):
            used = self._in_use()
            if used >= self.budget:
                claim.fail(_over_budget(used, self.budget))
                return
        seat = self.connection.seat
        if seat is None and not claim.wait:
            claim.fail(self._unavailable())
            return
        self._claims[claim] = now = self._clock.now()
        self._keys[value] = self._keys.get(value, 0) + 1
        if permits:
            self._permits.setdefault(value, permits)
        if seat is not None:
            self._ask(claim, seat)
        if claim.wait and claim.state == WAITING and self._patience is None:
            self._lose_patience_at(now + _STILL_WAITING)

    def _in_use(self) -> int:
        """Each key once, but of a semaphore each permit."""
        permits = sum(min(self._keys[value], most) - 1 for value, most in self._permits.items())
        return len(self._keys) + permits

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        """Hand in several claims."""
        for claim in claims:
            self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        """Take a claim back."""
        if claim.state == GRANTED:
            claim.over = True
            self.release(claim, None)
        elif claim.state == WAITING:
            claim.state = DONE
            ask = self._forget(claim)
            if ask is not None:
                self.connection.send(partial(self._world.leave, ask, None))

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        """Release a granted claim."""
        self.release_all((claim,), waiter)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        """Release several granted claims."""
        messages = [message for claim in claims if (message := self._give_back(claim)) is not None]
        if not messages:
            settle(waiter)  # lost meanwhile: the world has freed them
        for message in messages:
            self.connection.send(message, waiter if message is messages[-1] else None)

    def drop(self, claim: Grant) -> None:
        """Release a claim whose hold was thrown away. Finalisers run in any thread, in the middle of anything."""
        if not self.closed:
            try:
                self._loop.call_soon_threadsafe(self._drop, claim)
            except RuntimeError:
                pass  # the loop has ended, and whoever meets our seat in the world ends that

    def confirm(self, claim: Grant, waiter: Waiter) -> None:
        """Tell whether a claim is held: the answer waits as long as a cut lasts."""
        if claim.over or claim.reason is not None or self.connection.seat is None:
            waiter.set_result(False)
        else:
            self.connection.send(_nothing, waiter)

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """Ask who holds a key."""
        seat = self.connection.seat
        if seat is None:
            waiter.set_result(())
            return

        def told(holders: Sequence[Holder], cycle: Sequence[str]) -> None:
            if not waiter.done():
                waiter.set_result(holders)

        self.connection.send(partial(self._world.look, seat, key.value, told))

    @property
    def held(self) -> int:
        """How many locks are held now. Safe from any thread."""
        return sum(claim.state == GRANTED for claim in [*self._claims])

    @property
    def waited_for(self) -> int:
        """How many keys are waited for now. Safe from any thread."""
        return len({claim.key.value for claim in [*self._claims] if claim.state == WAITING})

    def close(self, reason: str, error: str) -> None:
        """Give everything back: who holds has lost, and who waits is told."""
        if self.closed:
            return
        self.closed = True
        waiting = [claim for claim in self._claims if claim.state == WAITING]
        for claim in waiting:
            self._forget(claim)
        for claim in waiting:
            claim.fail(CoordinatorClosed(error))
        self.connection.end(reason)
        if self._patience is not None:
            self._patience.cancel()
        self._world.leave_for_good(self)

    def forked(self) -> None:
        """In a forked child: nothing is ours any more."""
        self.closed = True
        self.connection.forked()
        for claim in self._claims:
            if claim.state == GRANTED:
                claim.forked()

    @property
    def seat(self) -> Seat | None:
        """The connection now. From any thread."""
        return self.connection.seat

    def failed_over(self, reason: str) -> None:
        """The world goes on elsewhere. From any thread."""
        self.connection.post(partial(self.connection.lose, reason, False))

    # what the connection tells us

    def answered(self, ask: Ask, verdict: Verdict) -> None:
        """The world has answered an ask."""
        claim = ask.claim
        if self._asks.get(claim) is not ask or claim.state != WAITING:
            return
        if verdict is True:
            claim.permit = ask.permit
            claim.grant()
            counts = self._counts
            counts.acquired += 1
            if ask.queued:
                counts.waited += 1
                counts.seconds_waited += self._clock.now() - self._claims[claim]
            if self._events.readers and self._events.wants(LockAcquired):
                waited = self._clock.now() - self._claims[claim]
                self._events.emit(LockAcquired(key=claim.key.name, waited=waited))
            return
        self._forget(claim)
        if verdict is False:
            claim.refuse()
        else:
            claim.fail(verdict)

    def link_up(self, seat: Seat) -> None:
        """There is a new connection: those who wait ask again, in their order."""
        for claim in [*self._claims]:
            if claim.state == WAITING and claim not in self._asks:
                self._ask(claim, seat)

    def link_down(self, reason: str) -> None:
        """The connection was lost, and with it what was held."""
        self._asks.clear()
        held = [claim for claim in self._claims if claim.state == GRANTED]
        hasty = [claim for claim in self._claims if claim.state == WAITING and not claim.wait]
        for claim in (*held, *hasty):
            self._forget(claim)
        for claim in hasty:
            claim.fail(self._unavailable())
        for claim in held:
            claim.state = DONE
            claim.lose(reason, partial(self._broken, claim))

    # inside

    def _ask(self, claim: Claim, seat: Seat) -> None:
        ask = self._asks[claim] = Ask(seat, claim)
        self.connection.send(partial(self._world.ask, ask))

    def _give_back(self, claim: Grant) -> Callable[[], None] | None:
        assert isinstance(claim, Claim)
        if claim.state != GRANTED:
            return None
        claim.state = DONE
        self._counts.released += 1
        ask = self._forget(claim)
        if ask is None:
            return None
        told = None
        if self._events.readers and self._events.wants(LockReleased):
            told = partial(self._released, claim.key.name)
        return partial(self._world.leave, ask, told)

    def _forget(self, claim: Claim) -> Ask | None:
        """Strike a claim from the list. The ask that it had in the world, if any."""
        if self._claims.pop(claim, None) is not None:
            value = claim.key.value
            self._keys[value] -= 1
            if not self._keys[value]:
                del self._keys[value]
                self._permits.pop(value, None)
        if self._reported:
            self._reported.pop(claim, None)
        return self._asks.pop(claim, None)

    def _unavailable(self) -> Unavailable:
        return Unavailable(self.connection.missing())

    def _drop(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        self.release(claim, None)
        self._events.emit(HoldDropped(key=claim.key.name))

    def _broken(self, claim: Claim) -> None:
        self._counts.lost += 1
        self._events.emit(HoldBroken(key=claim.key.name, reason=claim.reason or ""))

    def _released(self, name: int | str, wanted: bool) -> None:
        self._events.emit(LockReleased(key=name, wanted=wanted))

    # long waits

    def _lose_patience_at(self, when: float) -> None:
        self._patience = self._clock.call_at(when, lambda: self.connection.post(self._impatient))

    def _impatient(self) -> None:
        """Report who has waited long: of each key the first, because the others wait for it."""
        now = self._clock.now()
        self._patience = None
        firsts: dict[int, Claim] = {}
        overdue: list[tuple[Claim, float]] = []
        following: list[float] = []
        for claim, since in self._claims.items():
            if claim.state != WAITING:
                continue
            first = firsts.setdefault(claim.key.value, claim) is claim
            due = self._reported.get(claim, since) + _STILL_WAITING
            if due <= now:
                self._reported[claim] = now
                due = now + _STILL_WAITING
                if first:
                    overdue.append((claim, now - since))
            following.append(due)
        for claim, waited in overdue:
            self._report(claim, waited)
        if following:
            self._lose_patience_at(min(following))

    def _report(self, claim: Claim, waited: float) -> None:
        name, seat = claim.key.name, self.connection.seat
        if seat is None:
            return

        def told(holders: Sequence[Holder], cycle: tuple[str, ...]) -> None:
            holder = str(holders[0]) if holders else None
            if holder and holders[0].pid == seat.pid:
                holder = f"{self._name}, in this process"
            self._events.emit(StillWaiting(key=name, waited=waited, holder=holder, cycle=cycle))

        self.connection.send(partial(self._world.look, seat, claim.key.value, told))


def _over_budget(used: int, budget: int) -> LockBudgetExceeded:
    return LockBudgetExceeded(
        f"{used} locks are held or waited for by this coordinator, and its budget is {budget}; give it a larger "
        "max_locks, or hold fewer locks at once"
    )


def _nothing() -> None:
    """Ask the world for nothing."""
