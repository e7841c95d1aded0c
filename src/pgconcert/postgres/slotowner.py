"""The owner of a semaphore: it alone speaks to the server about its slots, one statement at a time.

A semaphore of n permits is n advisory locks, its *slots*; whoever holds one has a permit. One statement tries all slots
from a random start and stops when it has as many as are wanted. All that concerns waiting is as for a lock.

Everybody who uses a semaphore must believe in the same n. So before its first try a session takes the *agreement*, a
shared lock that says "this semaphore, with n", unless somebody has one with another number, and then looks again.
Both of two who come at the same time have theirs before they look again, so at least one of them sees the other; and
who comes later takes none, and so disturbs nobody. Looking lists the server's locks, which is too dear for every cycle:
so the agreement is kept for some seconds after the last use.

What it notes beside what every owner does (``owner.py``)::

    permits  how many there are, by the word of our callers
    agreed   the number with which the agreement is held; 0 is none
    sure     nobody was found who disagrees
    slots    what the server has granted to this session: slot, and the claim that has it (None: it is to be given back)
    tried    a try has brought fewer slots than were wanted
    idle     the timer after which the agreement is given up

What ``step`` does, first match::

    busy, or no link                            nothing
    slots without a claim                       give them back (and look whether others wait)
    agreed, but not sure or with another number give up the agreement
    queue, resting or all slots are ours        nothing
    queue, not agreed                           agree, then look who disagrees
    queue, not tried                            take
    queue, not marked, not hopeless             mark and take, once the wake channel is heard (or has failed to be)
    queue, woken                                take
    queue                                       sleep: a wake-up or the re-check comes
    marked                                      unmark
    no slots, not resting                       after some seconds give up the agreement, then retire
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Final

from ..backend import WAITING, Claim
from ..errors import PermitsDisagree, Unavailable
from ..hold import Waiter
from ..keys import BEYOND
from .owner import HOPELESS, Found, Owner, OwnersShard, Timer, settle

__all__ = ["SlotOwner"]

_LINGER: Final = 5.0
_BUSY_MARK: Final = b"b"
_DISAGREE: Final = ord("d")
_NOT_OURS: Final = ord("n")
_WANTED: Final = ord("w")


class SlotOwner(Owner):
    """One active semaphore."""

    __slots__ = ("_agreeing", "_dones", "_giving", "_wanted", "agreed", "idle", "permits", "slots", "sure", "tried")

    def __init__(self, shard: OwnersShard, value: int, permits: int) -> None:
        super().__init__(shard, value, b"%d" % (value - BEYOND))
        self.permits = permits
        self.agreed = 0
        self.sure = False
        self.slots: dict[int, Claim | None] = {}
        self.tried = False
        self.idle: Timer | None = None
        self._wanted = 0
        self._giving: list[int] = []
        self._agreeing = 0
        self._dones: dict[int, Waiter] = {}

    @property
    def held(self) -> int:
        return len(self.slots)

    @property
    def claims(self) -> list[Claim]:
        return [claim for claim in self.slots.values() if claim is not None]

    @property
    def in_use(self) -> int:
        return min(self.permits, len(self.slots) + self.patient + self.impatient)

    @property
    def ours_alone(self) -> bool:
        return len(self.slots) >= self.permits

    def granted(self, claim: Claim) -> bool:
        return claim.permit is not None and self.slots.get(claim.permit) is claim

    # messages from callers

    def acquire(self, claim: Claim) -> None:
        permits = claim.key.permits
        if permits != self.permits:
            if self.claims or self.patient or self.impatient:
                claim.fail(_disagreement(claim.key.name, permits, "this process", self.permits))
                return
            self.permits = permits
        if not claim.wait and (len(self.slots) >= permits or self._somebody_sleeps()):
            claim.refuse()  # somebody here has them all, or waits and comes before
            return
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None
        self._join_queue(claim)
        if len(self.slots) >= permits:
            self.shard.watch(self)
        self.step()

    def release(self, claim: Claim, done: Waiter | None) -> None:
        if not self.granted(claim) or claim.permit is None:
            settle(done)  # lost meanwhile: the server has freed it
            return
        self._give_back(claim)
        self.slots[claim.permit] = None
        if done is not None:
            self._dones[claim.permit] = done
        self.step()

    # what the statements say

    def candidates(self) -> tuple[int, int, int, Sequence[int]]:
        """Of a take: permits, where to start, how many are wanted, and the slots that are ours already."""
        self._wanted = max(1, min(self.patient + self.impatient, self.permits - len(self.slots)))
        return self.permits, random.randrange(self.permits), self._wanted, [*self.slots]

    def agreement(self) -> int:
        """Of an agreement: the number of permits."""
        self._agreeing = self.permits
        return self.permits

    def given(self) -> Sequence[int]:
        """Of a give: the slots that go back."""
        self._giving = [slot for slot, claim in self.slots.items() if claim is None]
        return self._giving

    # messages from the server

    def taken_with(self, answer: bytes) -> None:
        """The slots that a take has brought, as ``3.7``; ``-`` is none."""
        self.busy = False
        self.failures = 0
        self._take(answer)

    def marked_with(self, answer: bytes) -> None:
        """The answer to a mark with its take."""
        self.busy = False
        self.failures = 0
        if answer == _BUSY_MARK:
            # a releaser looks at this instant: take at once, then mark again; but not for ever
            self.refused_marks += 1
            self.tried = False
            self.step()
            return
        self.marked = True
        self.refused_marks = 0
        self._take(answer)

    def given_with(self, answer: int) -> None:
        """The answer to slots that were given back."""
        self.busy = self.tried = False
        self.failures = 0
        given, self._giving = self._giving, []
        for slot in given:
            self.slots.pop(slot, None)
            if self.shard.events.readers:
                self.shard.released(self, answer == _WANTED)
        if answer == _WANTED:
            self.shard.wake_others(self)
        elif answer == _NOT_OURS:
            self.shard.not_ours(self)
        for slot in given:
            settle(self._dones.pop(slot, None))
        if self.queue:
            self.taken_at = monotonic()
        self.step()

    def agreement_taken_with(self, answer: int) -> None:
        """The agreement is ours, or was not taken because somebody has another: look who, before anything else."""
        if answer == _DISAGREE:
            self._agreeing = 0
        self.shard.look_who_agrees(self, self.agreed_with)

    def agreed_with(self, others: Sequence[tuple[str, int]]) -> None:
        """We hold the agreement, or did not take it; ``others`` hold theirs (who, and their number)."""
        self.busy = False
        self.failures = 0
        self.agreed = self._agreeing
        # if our callers have changed their minds meanwhile, it is given up and begun anew
        if self.agreed in (0, self.permits):
            other = next(((who, permits) for who, permits in others if permits != self.permits), None)
            self.sure = other is None and self.agreed != 0
            if other is not None:
                self.fail(_disagreement(self.queue[0].key.name if self.queue else "", self.permits, *other))
        self.step()

    def left_with(self, answer: int) -> None:
        """The agreement is given up, whatever the answer."""
        self.busy = self.sure = self.tried = False
        self.agreed = 0
        self.step()

    def again(self) -> str | None:
        if self.busy or self.rest is not None or not self.queue or len(self.slots) >= self.permits:
            return None
        if not self.sure or not self.tried or not (self.marked or self.refused_marks >= HOPELESS):
            return None
        self.busy = True
        self.woken = False
        self.refused_marks = 0
        return "take" if self.marked else "mark_slots"

    def recover(self, found: Found, verb: str, error: Exception | None) -> None:
        self.marked = found.marked
        self.agreed = found.agreed
        self.sure = self.sure and found.agreed == self.permits
        self.failures += 1
        self.busy = self.tried = False
        self._giving = []
        gone = [slot for slot in self.slots if slot not in found.slots]
        new = [slot for slot in found.slots if slot not in self.slots]
        for slot in gone:
            claim = self.slots.pop(slot)
            if claim is not None:
                self._lose(claim, "the server does not know it")
        self._grant(new)
        if error is not None:
            self.fail(error)
        if gone:
            self.shard.wake_others(self)  # they were given back, and nobody may have been told
            for slot in gone:
                settle(self._dones.pop(slot, None))
        self.step()

    def link_died(self, reason: str) -> None:
        self.busy = self.marked = self.sure = self.tried = False
        self.agreed = 0
        self._end_rest()
        self.refused_marks = 0
        lost = self.claims
        self.slots = {}
        self._giving = []
        dones, self._dones = self._dones, {}
        self.fail(Unavailable(f"there is no connection to the server now: {reason}"), waiting_too=False)
        for claim in lost:
            self._lose(claim, reason)
        for done in dones.values():
            settle(done)
        self.step()

    def hurry(self) -> None:
        if self.idle is not None:
            self.idle.cancel()
            self._leave()
        else:
            self.step()

    # the machine

    def step(self) -> None:
        self._sweep()
        shard = self.shard
        queue = self.queue
        if self.busy:
            return
        if not shard.up:
            if not queue:
                self._retire()
            return
        if None in self.slots.values():
            self._send("give")
        elif self.agreed and (self.agreed != self.permits or not self.sure):
            self._send("leave")
        elif queue:
            if len(self.slots) >= self.permits:
                self._refuse()
                return
            if self.rest is not None:
                return
            if not self.sure:
                self._send("agree")
            elif not self.tried:
                self._send("take")
            elif not self.marked and self.refused_marks < HOPELESS:
                if shard.can_mark(self):
                    self._send("mark_slots")
            elif self.woken:
                self._send("take")
        else:
            self.tried = False
            if self.marked:
                self._send("unmark")
            elif not self.slots and self.rest is None:
                if not self.agreed:
                    self._retire()
                elif self.idle is None:
                    self.idle = shard.later(_LINGER, self._leave)

    def _somebody_sleeps(self) -> bool:
        return not self.busy and self.patient > 0

    def _leave(self) -> None:
        self.idle = None
        if self.agreed and not self.queue and not self.slots and not self.busy and self.shard.up:
            self._send("leave")
        else:
            self.step()

    def _retire(self) -> None:
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None
        self.shard.retire(self)

    def _take(self, answer: bytes) -> None:
        found = [] if answer == b"-" else [int(slot) for slot in answer.split(b".")]
        self._grant(found)
        if self.agreed == self.permits:  # else it was asked for another number, and says nothing about this one
            self.tried = len(found) < self._wanted
            if self.tried:
                self.taken_at = monotonic()
                self._refuse()
        self.step()

    def _refuse(self) -> None:
        """Whoever does not want to wait: there is nothing for them now."""
        if self.impatient:
            for claim in self.queue:
                if not claim.wait and claim.state == WAITING:
                    claim.refuse()
                    self._gone(claim)

    def _grant(self, slots: Iterable[int]) -> None:
        """Hand new slots to those who wait, in their order. What nobody wants is given back; so is all that was asked
        for with a number of permits that is not agreed any more."""
        queue = self.queue
        agreed = self.sure and self.agreed == self.permits
        for slot in slots:
            self.slots[slot] = None
            self._sweep()
            if queue and agreed:
                claim = queue.popleft()
                claim.permit = slot
                self.slots[slot] = claim
                self._tell(claim)


def _disagreement(name: object, permits: int, who: str, theirs: int) -> PermitsDisagree:
    number = f"{theirs} permits" if theirs > 1 else "1 permit"
    return PermitsDisagree(
        f"the semaphore {name!r} is used by {who} with {number} now, and was asked for with {permits}; "
        "give it one number everywhere (or another name), or wait until the others have stopped"
    )
