"""The owner of one key: it alone speaks to the server about that key, one statement at a time.

Theory. Everything that happens to a key is a message to its owner: a claim, its withdrawal, a release, an answer, a
wake-up. Each message changes the owner's notes and ends in ``step``, which sends at most one statement and does nothing
while one is under way. So two attempts can never be under way at once (the server would grant both: they come from one
session), and no claim can be granted twice.

What the owner notes::

    held     the server has granted the key to this session
    marked   this session's interest is marked on the server
    claim    the claim that has it (None while held: it was given back, or whoever asked has left)
    queue    the claims that want it, in order of arrival
    tried    a try was refused since the queue began to wait
    woken    somebody released it, or the re-check is due: try again
    rest     the timer of a rest: we have just released it and others wait, who get their chance first
    busy     a statement about this key is under way, or its failure is being looked into

What ``step`` does, first match::

    busy, or no link            nothing
    held, no claim              unlock (and look whether others wait)
    held, marked, empty queue   unmark
    held                        nothing
    empty queue, marked         unmark
    empty queue                 retire, unless resting
    resting                     nothing
    not tried                   try
    not marked, not hopeless    mark and try, once the wake channel is heard (or has failed to be for a while)
    woken                       try
    else                        sleep: a wake-up or the re-check comes

When the link dies everything the server knew of us is gone: the claim is lost, the queue starts anew.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from ..backend import DONE, GRANTED, WAITING, Claim
from ..errors import Unavailable
from ..events import EventStream
from ..hold import Waiter

__all__ = ["KeyOwner", "OwnersShard"]

_YES: Final = ord("t")
_BUSY_MARK: Final = ord("b")
_NOT_OURS: Final = ord("n")
_WANTED: Final = ord("w")
_HOPELESS: Final = 3


class Timer(Protocol):
    """What ends by itself or is ended before; ``asyncio.TimerHandle`` is one."""

    def cancel(self) -> None: ...


class OwnersShard(Protocol):
    """What an owner asks of the shard it lives on."""

    up: bool
    events: EventStream

    def try_(self, owner: KeyOwner, /) -> None: ...
    def mark(self, owner: KeyOwner, /) -> None: ...
    def unlock(self, owner: KeyOwner, /) -> None: ...
    def unmark(self, owner: KeyOwner, /) -> None: ...

    def retire(self, owner: KeyOwner, /) -> None:
        """Nobody wants this key any more. Idempotent."""

    def can_mark(self, owner: KeyOwner, /) -> bool:
        """Whether the wake channel is heard; if not, the owner is stepped when it is, or when that is given up."""
        ...

    def watch(self, owner: KeyOwner, /) -> None: ...
    def unwatch(self, owner: KeyOwner, /) -> None: ...

    def wake_others(self, owner: KeyOwner, /) -> None:
        """Other processes wait: wake them, and give this owner a rest."""

    def not_ours(self, owner: KeyOwner, /) -> None: ...
    def granted(self, claim: Claim, /) -> None: ...
    def released(self, owner: KeyOwner, wanted: bool, /) -> None: ...
    def hold_lost(self, claim: Claim, /) -> None: ...


class KeyOwner:
    """One active key."""

    __slots__ = (
        "busy",
        "claim",
        "done",
        "failures",
        "held",
        "left",
        "marked",
        "name",
        "queue",
        "raw",
        "refused_marks",
        "rest",
        "shard",
        "tried",
        "value",
        "watching",
        "woken",
    )

    def __init__(self, shard: OwnersShard, value: int) -> None:
        self.shard = shard
        self.value = value
        self.raw = b"%d" % value
        self.held = False
        self.marked = False
        self.claim: Claim | None = None
        self.queue: deque[Claim] = deque()
        self.tried = False
        self.woken = False
        self.rest: Timer | None = None
        self.busy = False
        self.watching = False
        self.done: Waiter | None = None
        self.name: int | str = value
        self.refused_marks = 0
        self.failures = 0
        self.left = 0

    # messages from callers

    def acquire(self, claim: Claim) -> None:
        """A claim arrives."""
        if not claim.wait and (self.claim is not None or self.queue):
            claim.refuse()  # somebody here has it, or comes before
            return
        self.queue.append(claim)
        if self.claim is not None:
            self.shard.watch(self)
        else:
            self.step()

    def withdraw(self, claim: Claim) -> None:
        """A claim is taken back, in any state."""
        if claim.state == WAITING:
            claim.state = DONE
            # left where it is, because looking for it costs more the more there are; swept when half of them have left
            self.left += 1
            if self.left * 2 > len(self.queue):
                self.queue = deque(other for other in self.queue if other.state == WAITING)
                self.left = 0
            self.step()
        elif claim.state == GRANTED and claim is self.claim:
            claim.over = True
            self.release(claim, None)

    def release(self, claim: Claim, done: Waiter | None) -> None:
        """The claim that has the key gives it back."""
        if claim is not self.claim:
            if done is not None and not done.done():
                done.set_result(True)  # lost meanwhile: the server has freed it
            return
        claim.state = DONE
        self.claim = None
        self.done = done
        self.step()

    # messages from the server

    def wake(self) -> None:
        """Somebody released the key, or it is time to look again."""
        self.woken = True
        self.step()

    def tried_with(self, answer: int) -> None:
        """The answer to a try."""
        self.busy = False
        self.failures = 0
        if answer == _YES:
            self.held = True
            self._grant()
            if self.claim is not None and not self.marked:
                return
        else:
            self.tried = True
            self._refuse()
        self.step()

    def marked_with(self, answer: int) -> None:
        """The answer to a mark with its try."""
        self.busy = False
        self.failures = 0
        if answer == _BUSY_MARK:
            # a releaser looks at this instant: try at once, then mark again; but not for ever
            self.refused_marks += 1
            self.tried = self.refused_marks >= _HOPELESS
        else:
            self.marked = True
            self.refused_marks = 0
            if answer == _YES:
                self.held = True
                self._grant()
            else:
                self._refuse()
        self.step()

    def unlocked_with(self, answer: int) -> None:
        """The answer to an unlock."""
        self.busy = self.held = self.tried = False
        self.failures = 0
        done, self.done = self.done, None
        if self.shard.events.readers:
            self.shard.released(self, answer == _WANTED)
        if answer == _WANTED:
            self.shard.wake_others(self)
        elif answer == _NOT_OURS:
            self.shard.not_ours(self)
        if done is not None and not done.done():
            done.set_result(True)
        self.step()

    def unmarked_with(self, answer: int) -> None:
        """The mark is gone, whatever the answer."""
        self.busy = False
        self.marked = False
        if not self.queue:
            self.shard.unwatch(self)
        self.step()

    def asleep(self) -> bool:
        """Whether it waits for a wake-up; if so it counts as busy from now on, because a try is being sent."""
        if self.busy or self.held or self.rest is not None or not self.tried or not self.queue:
            return False
        if not self.marked and self.refused_marks < _HOPELESS:
            return False
        self.busy = True
        self.woken = False
        return True

    def rested(self) -> None:
        """The others have had their chance."""
        self.rest = None
        self.step()

    def recover(self, *, held: bool, marked: bool, unlocking: bool, error: Exception | None) -> None:
        """A statement about this key failed; this is what the server really holds. ``error`` ends who waits."""
        self.marked = marked
        self.failures += 1
        if unlocking and not held:
            self.unlocked_with(_WANTED)  # it was unlocked, and nobody may have been told
            return
        self.busy = False
        if held and not self.held:
            self.held = True
            self._grant()
        elif error is not None and not held:
            self.fail(error)
        self.step()

    def link_died(self, reason: str) -> None:
        """Everything the server knew of us is gone."""
        self.busy = self.held = self.marked = self.tried = False
        if self.rest is not None:
            self.rest.cancel()
            self.rest = None
        self.refused_marks = 0
        claim, self.claim = self.claim, None
        done, self.done = self.done, None
        self.fail(Unavailable(f"there is no connection to the server now: {reason}"), waiting_too=False)
        if claim is not None:
            claim.state = DONE
            claim.lose(reason, lambda: self.shard.hold_lost(claim))
        if done is not None and not done.done():
            done.set_result(True)
        self.step()

    def fail(self, error: Exception, *, waiting_too: bool = True) -> None:
        """End every claim in the queue, or only those that do not want to wait."""
        for claim in self.queue:
            if waiting_too or not claim.wait:
                claim.fail(error)
        self.queue = deque(claim for claim in self.queue if claim.state == WAITING)
        self.left = 0

    # the machine

    def step(self) -> None:
        """Send the one statement that is due, if any."""
        shard = self.shard
        queue = self.queue
        while queue and queue[0].state != WAITING:
            queue.popleft()  # so that a queue which is not empty has somebody who waits
            self.left -= 1
        if self.busy:
            return
        if not shard.up:
            if not queue:
                shard.retire(self)
            return
        if self.held:
            if self.claim is None:
                self.busy = True
                shard.unlock(self)
            elif self.marked and not queue:
                self.busy = True
                shard.unmark(self)
        elif not queue:
            self.tried = False
            if self.marked:
                self.busy = True
                shard.unmark(self)
            elif self.rest is None:
                shard.retire(self)
        elif self.rest is not None:
            return
        elif not self.tried:
            self.busy = True
            self.woken = False
            shard.try_(self)
        elif not self.marked and self.refused_marks < _HOPELESS:
            if shard.can_mark(self):
                self.busy = True
                self.woken = False
                shard.mark(self)
        elif self.woken:
            self.busy = True
            self.woken = False
            shard.try_(self)

    def _grant(self) -> None:
        self.refused_marks = 0
        queue = self.queue
        while queue:
            claim = queue.popleft()
            if claim.state != WAITING:
                self.left -= 1
            else:
                claim.state = GRANTED
                self.claim = claim
                self.name = claim.name
                if not claim.waiter.done():
                    claim.waiter.set_result(True)
                if self.shard.events.readers:
                    self.shard.granted(claim)
                if queue:
                    self._refuse()  # whoever did not want to wait has lost to the one before
                return

    def _refuse(self) -> None:
        for claim in self.queue:
            if not claim.wait:
                claim.refuse()
