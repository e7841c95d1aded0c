"""The owner of one active key: what all kinds of it have in common. ``keyowner.py`` and ``slotowner.py`` are the kinds.

Theory. Everything that happens to a key is a message to its owner: a claim, its withdrawal, a release, an answer, a
wake-up. Each message changes the owner's notes and ends in ``step``, which sends at most one statement and does nothing
while one is under way. So two attempts can never be under way at once (the server would grant both: they come from one
session), and no claim can be granted twice.

What every owner notes::

    queue    the claims that want the key, in order of arrival
    marked   this session's interest is marked on the server
    woken    somebody released the key, or the re-check is due: try again
    rest     the timer of a rest: we have just released it and others wait, who get their chance first
    busy     a statement about this key is under way, or its failure is being looked into

When the link dies everything the server knew of us is gone: what is held is lost, the queue starts anew.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from ..backend import DONE, WAITING, Claim
from ..events import EventStream
from ..hold import Waiter
from ..statistics import HoldCounts

__all__ = ["HOPELESS", "Found", "Owner", "OwnersShard", "settle"]

HOPELESS: Final = 3
"""After so many refused marks in a row, who waits lives by the re-check alone."""


class Timer(Protocol):
    """What ends by itself or is ended before; ``asyncio.TimerHandle`` is one."""

    def cancel(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """What the server says that this session has of one key: the truth after a statement has failed."""

    exclusive: bool = False
    shared: bool = False
    marked: bool = False
    gate: bool = False
    slots: frozenset[int] = frozenset()
    agreed: int = 0


class OwnersShard(Protocol):
    """What an owner asks of the shard it lives on."""

    up: bool
    events: EventStream
    counts: HoldCounts
    ask: Mapping[str, Callable[[Any], None]]
    """Send a statement about an owner's key, by the name of its verb (``verbs.py``)."""

    def retire(self, owner: Owner, /) -> None:
        """Nobody wants this key any more. Idempotent."""

    def can_mark(self, owner: Owner, /) -> bool:
        """Whether the wake channel is heard; if not, the owner is stepped when it is, or when that is given up."""
        ...

    def watch(self, owner: Owner, /) -> None: ...
    def unwatch(self, owner: Owner, /) -> None: ...

    def wake_others(self, owner: Owner, /) -> None:
        """Other processes wait: wake them, and give this owner a rest."""

    def later(self, seconds: float, call: Callable[[], None], /) -> Timer:
        """Call it then, unless the timer is cancelled; soon if the locker is being closed."""
        ...

    def look_who_agrees(self, owner: Owner, tell: Callable[[Sequence[tuple[str, int]]], None], /) -> None:
        """Ask who else holds an agreement about a semaphore: who, and the number of permits."""

    def not_ours(self, owner: Owner, /) -> None: ...
    def granted(self, claim: Claim, /) -> None: ...
    def released(self, owner: Owner, wanted: bool, /) -> None: ...
    def hold_lost(self, claim: Claim, /) -> None: ...


class Owner(ABC):
    """One active key."""

    __slots__ = (
        "busy",
        "failures",
        "impatient",
        "marked",
        "name",
        "patient",
        "queue",
        "raw",
        "refused_marks",
        "rest",
        "shard",
        "taken_at",
        "value",
        "watching",
        "woken",
    )

    def __init__(self, shard: OwnersShard, value: int, raw: bytes) -> None:
        self.shard = shard
        self.value = value
        self.raw = raw
        """The key as a parameter of a statement."""
        self.marked = False
        self.queue: deque[Claim] = deque()
        self.woken = False
        self.rest: Timer | None = None
        self.busy = False
        self.watching = False
        self.taken_at = 0.0
        """When it was last known that a claim had to wait for others: those that are older have waited."""
        self.name: int | str = value
        self.refused_marks = 0
        self.failures = 0
        self.patient = 0
        """How many in the queue wait."""
        self.impatient = 0
        """How many in the queue do not want to wait, and are there until the next answer."""

    @property
    @abstractmethod
    def held(self) -> int:
        """How many locks the server has granted to this session for this key."""

    @property
    @abstractmethod
    def claims(self) -> list[Claim]:
        """The claims that are granted."""

    @property
    @abstractmethod
    def in_use(self) -> int:
        """How many locks its claims have or want: what counts against the budget."""

    @property
    @abstractmethod
    def ours_alone(self) -> bool:
        """Whether nobody but this process keeps others waiting."""

    # messages from callers

    @abstractmethod
    def acquire(self, claim: Claim) -> None:
        """A claim arrives."""

    @abstractmethod
    def release(self, claim: Claim, done: Waiter | None) -> None:
        """A granted claim is given back."""

    @abstractmethod
    def granted(self, claim: Claim) -> bool:
        """Whether this claim is one of those that have the key."""

    def withdraw(self, claim: Claim) -> None:
        """A claim is taken back, in any state."""
        if claim.state == WAITING:
            claim.state = DONE
            self._gone(claim)
            # left where it is, because looking for it costs more the more there are; swept when half of them have left
            if (self.patient + self.impatient) * 2 < len(self.queue):
                self.queue = deque(other for other in self.queue if other.state == WAITING)
            self.step()
        elif self.granted(claim):
            claim.over = True
            self.release(claim, None)

    # messages from the server

    def wake(self) -> None:
        """Somebody released the key, or it is time to look again."""
        self.woken = True
        self.step()

    def unmarked_with(self, answer: int) -> None:
        """The mark is gone, whatever the answer."""
        self.busy = False
        self.marked = False
        if not self.queue:
            self.shard.unwatch(self)
        self.step()

    @abstractmethod
    def again(self) -> str | None:
        """If it waits for a wake-up, the verb with which it looks again; it counts as busy from now on."""

    def rested(self) -> None:
        """The others have had their chance."""
        self.rest = None
        self.step()

    @abstractmethod
    def recover(self, found: Found, verb: str, error: Exception | None) -> None:
        """A statement about this key failed, and this is what the server really holds. ``error`` ends who waits."""

    @abstractmethod
    def link_died(self, reason: str) -> None:
        """Everything the server knew of us is gone."""

    def fail(self, error: Exception, *, waiting_too: bool = True) -> None:
        """End every claim in the queue, or only those that do not want to wait."""
        for claim in self.queue:
            if claim.state == WAITING and (waiting_too or not claim.wait):
                claim.fail(error)
                self._gone(claim)
        self.queue = deque(claim for claim in self.queue if claim.state == WAITING)

    def hurry(self) -> None:
        """The locker is being closed: end what only lingers."""
        self.step()

    # the machine

    @abstractmethod
    def step(self) -> None:
        """Send the one statement that is due, if any."""

    def _send(self, verb: str) -> None:
        self.busy = True
        self.woken = False
        self.shard.ask[verb](self)

    def _join_queue(self, claim: Claim) -> None:
        self.queue.append(claim)
        if claim.wait:
            self.patient += 1
        else:
            self.impatient += 1

    def _gone(self, claim: Claim) -> None:
        """A claim in the queue does not wait any more: granted, refused, failed, or its caller has left."""
        if claim.wait:
            self.patient -= 1
        else:
            self.impatient -= 1

    def _sweep(self) -> None:
        """Drop those at the front who have left, so that a queue which is not empty has somebody who waits."""
        queue = self.queue
        while queue and queue[0].state != WAITING:
            queue.popleft()

    def _tell(self, claim: Claim) -> None:
        """A claim of the queue has the key."""
        self._gone(claim)
        self.name = claim.key.name
        claim.grant()
        shard = self.shard
        counts = shard.counts
        counts.acquired += 1
        if claim.since < self.taken_at:
            counts.waited += 1
            counts.seconds_waited += monotonic() - claim.since
        if shard.events.readers:
            shard.granted(claim)

    def _give_back(self, claim: Claim) -> None:
        """A granted claim is released by its owner."""
        claim.state = DONE
        if claim.reason is None:
            self.shard.counts.released += 1

    def _lose(self, claim: Claim, reason: str) -> None:
        claim.state = DONE
        claim.lose(reason, lambda: self.shard.hold_lost(claim))

    def _end_rest(self) -> None:
        if self.rest is not None:
            self.rest.cancel()
            self.rest = None


def settle(done: Waiter | None) -> None:
    """Tell whoever released that it is done."""
    if done is not None and not done.done():
        done.set_result(True)
