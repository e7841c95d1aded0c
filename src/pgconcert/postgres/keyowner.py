"""The owner of a lock: exclusive or shared. It alone speaks to the server about its key, one statement at a time.

What it notes beside what every owner does (``owner.py``)::

    mode     what the server has granted to this session: nothing, exclusive, or shared
    claim    the claim that has it exclusively (None while held: it was given back, or whoever asked has left)
    readers  the claims that have it shared; the session's one shared lock on the server stands for all of them
    gate     this session keeps new readers of other sessions outside, because a writer of ours waits
    tried    the mode in which a try was refused since the queue began to wait
    shut     while readers of ours are inside, the mode in which the gate has refused us: to a reader that would join
             them, or to a writer that would close it

What ``step`` does, first match::

    busy, or no link                            nothing
    held, no claim and no readers               unlock (and look whether others wait)
    held, gate, but no writer is kept waiting   open the gate
    held shared, not shut to who is first       a reader joins, if the gate is open; a writer closes it
    held shared, a reader is first, not marked  mark and join, once the wake channel is heard (or has failed to be)
    held shared, woken                          join, or close the gate
    held, marked, empty queue                   unmark
    held                                        nothing
    gate, but no writer is first                open the gate (and look whether others wait)
    empty queue, marked                         unmark
    empty queue                                 retire, unless resting
    resting                                     nothing
    not tried                                   try
    not marked, not hopeless                    mark and try, once the wake channel is heard (or has failed to be)
    woken                                       try
    else                                        sleep: a wake-up or the re-check comes

Readers. A reader passes the gate with a transaction-level try in the same statement as its own; so does one that
joins readers of its own process, else a process that is never without readers would starve the writers of all others.
The statement with which a writer marks its interest finds out whether it was readers who refused it, and then closes
the gate; so a key without readers never costs a gate. The gate is open again when the writer is inside or has gone.
In the queue of one process nobody overtakes: a reader stays behind a writer that came before it. While the session
holds the key shared, it never tries it exclusively: the server would grant that to the same session.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from ..backend import WAITING, Claim
from ..errors import Unavailable
from ..hold import Waiter
from .owner import HOPELESS, Found, Owner, OwnersShard, settle

__all__ = ["KeyOwner"]

EXCLUSIVE: Final = 1
SHARED: Final = 2

_YES: Final = ord("t")
_BUSY_MARK: Final = ord("b")
_NOT_OURS: Final = ord("n")
_WANTED: Final = ord("w")
_GATE_CLOSED_BY_US: Final = ord("r")


class KeyOwner(Owner):
    """One active key of a lock."""

    __slots__ = ("claim", "done", "gate", "mode", "readers", "refused_gates", "shut", "tried")

    def __init__(self, shard: OwnersShard, value: int) -> None:
        super().__init__(shard, value, b"%d" % value)
        self.mode = 0
        self.claim: Claim | None = None
        self.readers: dict[Claim, None] = {}
        self.gate = False
        self.tried = 0
        self.shut = 0
        self.refused_gates = 0
        self.done: Waiter | None = None

    @property
    def held(self) -> int:
        return 1 if self.mode else 0

    @property
    def claims(self) -> list[Claim]:
        return [*self.readers] if self.claim is None else [self.claim]

    @property
    def in_use(self) -> int:
        return 1 if self.queue or self.claim is not None or self.readers else 0

    @property
    def ours_alone(self) -> bool:
        return self.claim is not None

    def granted(self, claim: Claim) -> bool:
        return claim is self.claim or (claim.shared and claim in self.readers)

    # messages from callers

    def acquire(self, claim: Claim) -> None:
        if not claim.wait and self._comes_too_late(claim):
            claim.refuse()
            return
        if not self.queue:
            self.shut = self.tried = 0
        self._join_queue(claim)
        if self.claim is not None or (self.readers and not claim.shared):
            self.shard.watch(self)
        self.step()

    def release(self, claim: Claim, done: Waiter | None) -> None:
        if claim is self.claim:
            self.claim = None
        elif claim in self.readers:
            del self.readers[claim]
            if self.readers:
                self._give_back(claim)
                if self.shard.events.readers:
                    self.shard.released(self, False)
                settle(done)
                return
        else:
            settle(done)  # lost meanwhile: the server has freed it
            return
        self._give_back(claim)
        self.done = done
        self.step()

    # messages from the server

    def tried_with(self, answer: int) -> None:
        """The answer to a try, in the mode in which it was made."""
        self._answered(EXCLUSIVE, answer)

    def tried_shared_with(self, answer: int) -> None:
        """The answer to a try of a reader."""
        self._answered(SHARED, answer)

    def marked_with(self, answer: int) -> None:
        """The answer to a mark with its try."""
        self._marked(EXCLUSIVE, answer)

    def marked_shared_with(self, answer: int) -> None:
        """The answer to a reader's mark with its try."""
        self._marked(SHARED, answer)

    def joined_with(self, answer: int) -> None:
        """The answer of the gate to a reader that would join those of ours who are inside."""
        self.busy = False
        self.failures = 0
        if answer == _YES:
            self.shut = 0
            self._grant(SHARED)
        else:
            self.shut = SHARED
            self.taken_at = monotonic()
            self._refuse(SHARED)
        self.step()

    def marked_to_join_with(self, answer: int) -> None:
        """The answer to a mark, and then of the gate."""
        if answer == _BUSY_MARK:
            self.busy = False
            self.refused_marks += 1
            self.shut = 0
            self.step()
            return
        self.marked = True
        self.refused_marks = 0
        self.joined_with(answer)

    def closed_with(self, answer: int) -> None:
        """The answer to a writer's closing of the gate, while readers of ours are inside."""
        self.busy = False
        self.failures = 0
        self.gate = answer == _YES
        # a reader passes it at this instant, or another writer has it: then it is closed as well
        self.refused_gates = 0 if self.gate else self.refused_gates + 1
        self.shut = EXCLUSIVE if self.refused_gates >= HOPELESS else 0
        if self.shut:
            self.refused_gates = 0
            self.shard.watch(self)
        self.step()

    def unlocked_with(self, answer: int) -> None:
        """The answer to an unlock."""
        self.busy = False
        self.mode = self.tried = self.shut = 0
        self.failures = 0
        done, self.done = self.done, None
        if self.queue:
            self.taken_at = monotonic()
        if self.shard.events.readers:
            self.shard.released(self, answer == _WANTED)
        if answer == _WANTED:
            self.shard.wake_others(self)
        elif answer == _NOT_OURS:
            self.shard.not_ours(self)
        settle(done)
        self.step()

    def opened_with(self, answer: int) -> None:
        """The gate is open."""
        self.busy = self.gate = False
        self.failures = 0
        if answer == _WANTED:
            self.shard.wake_others(self)
        self.step()

    def again(self) -> str | None:
        if self.busy or not self.queue:
            return None
        if self.mode:
            if self.mode != SHARED or self.gate or self.shut != _mode(self.queue[0]):
                return None
            verb = "close" if not self.queue[0].shared else "join" if self.marked else "mark_to_join"
        else:
            if self.rest is not None or not self.tried or not (self.marked or self.refused_marks >= HOPELESS):
                return None
            verb = self._retry() if self.marked else self._mark()
        self.refused_marks = 0
        self.busy = True
        self.woken = False
        return verb

    def recover(self, found: Found, verb: str, error: Exception | None) -> None:
        mode = EXCLUSIVE if found.exclusive else SHARED if found.shared else 0
        self.marked = found.marked
        opened = self.gate and not found.gate
        self.gate = found.gate
        self.tried = self.shut = 0  # nothing else is known, and nobody has been answered: it is tried anew
        self.failures += 1
        if verb.startswith("unlock") and not mode:
            self.unlocked_with(_WANTED)  # it was unlocked, and nobody may have been told
            return
        self.busy = False
        if mode and not self.mode:
            self._grant(mode)
        elif error is not None and (not mode or verb in ("join", "mark_to_join", "close")):
            self.fail(error)
        if opened:
            self.shard.wake_others(self)  # nobody may have been told
        self.step()

    def link_died(self, reason: str) -> None:
        self.busy = self.marked = self.gate = False
        self.mode = self.tried = self.shut = 0
        self._end_rest()
        self.refused_marks = 0
        lost = self.claims
        self.claim = None
        self.readers = {}
        done, self.done = self.done, None
        self.fail(Unavailable(f"there is no connection to the server now: {reason}"), waiting_too=False)
        for claim in lost:
            self._lose(claim, reason)
        settle(done)
        self.step()

    # the machine

    def step(self) -> None:
        shard = self.shard
        queue = self.queue
        while queue and queue[0].state != WAITING:
            queue.popleft()  # so that a queue which is not empty has somebody who waits
        if self.busy:
            return
        if not shard.up:
            if not queue:
                shard.retire(self)
            return
        mode = self.mode
        if mode:
            if self.claim is None and not self.readers:
                self.busy = True
                shard.ask["unlock" if mode == EXCLUSIVE else "unlock_shared"](self)
            elif self.gate and (mode == EXCLUSIVE or not queue or queue[0].shared):
                self._send("open")
            elif mode == SHARED and queue and not self.gate:
                self._step_beside_readers()
            elif self.marked and not queue:
                self._send("unmark")
        elif self.gate and (not queue or queue[0].shared):
            self._send("open")
        elif not queue:
            self.tried = 0
            if self.marked:
                self._send("unmark")
            elif self.rest is None:
                shard.retire(self)
        elif self.rest is not None:
            return
        elif self.tried != _mode(queue[0]):
            self.busy = True
            self.woken = False
            shard.ask["try_shared" if queue[0].shared else "try"](self)
        elif not self.marked and self.refused_marks < HOPELESS:
            if shard.can_mark(self):
                self._send(self._mark())
        elif self.woken:
            self._send(self._retry())

    def _step_beside_readers(self) -> None:
        first = self.queue[0]
        if self.shut != _mode(first):
            self._send("join" if first.shared else "close")
        elif first.shared and not self.marked and self.refused_marks < HOPELESS:
            if self.shard.can_mark(self):
                self._send("mark_to_join")
        elif self.woken:
            self._send("join" if first.shared else "close")

    def _comes_too_late(self, claim: Claim) -> bool:
        """Whether a claim that does not wait is to be refused without asking the server."""
        if self.claim is not None or (self.readers and not claim.shared):
            return True
        if not self.patient or not (self.busy and claim.shared):
            return bool(self.patient)  # whoever waits comes before it
        # but readers whose try is under way may take it along
        return any(other.state == WAITING and other.wait and not other.shared for other in self.queue)

    def _mark(self) -> str:
        return "mark_shared" if self.queue[0].shared else "mark_at_gate" if self.gate else "mark"

    def _retry(self) -> str:
        if self.queue[0].shared:
            return "try_shared"
        # a second closing would have to be undone by a second opening
        return "try" if self.gate else "retry"

    def _answered(self, mode: int, answer: int) -> None:
        self.busy = False
        self.failures = 0
        if answer == _YES:
            self._grant(mode)
            if self.claim is not None and not self.marked and not self.gate:
                return
        else:
            self.tried = mode
            self.taken_at = monotonic()
            self.gate = self.gate or answer == _GATE_CLOSED_BY_US
            self._refuse(mode)
        self.step()

    def _marked(self, mode: int, answer: int) -> None:
        self.busy = False
        self.failures = 0
        if answer == _BUSY_MARK:
            # a releaser looks at this instant: try at once, then mark again; but not for ever
            self.refused_marks += 1
            self.tried = 0
        else:
            self.marked = True
            self.refused_marks = 0
            if answer == _YES:
                self._grant(mode)
            else:
                self.tried = mode
                self.taken_at = monotonic()
                self.gate = self.gate or answer == _GATE_CLOSED_BY_US
                self._refuse(mode)
        self.step()

    def _grant(self, mode: int) -> None:
        """The server has granted it: to the writer that is first, or to all readers before the next writer."""
        self.mode = mode
        self.refused_marks = 0
        queue = self.queue
        while queue:
            claim = queue[0]
            if claim.state != WAITING:
                pass
            elif mode == EXCLUSIVE:
                if not claim.shared:
                    queue.popleft()
                    self.claim = claim
                    self._tell(claim)
                break
            elif claim.shared:
                self.readers[claim] = None
                self._tell(claim)
            else:
                break
            queue.popleft()
        if self.readers:
            done, self.done = self.done, None
            settle(done)  # a reader gave it back while another came in: for the first it is over
        if queue and (self.readers or self.claim is not None):
            self._refuse(EXCLUSIVE if self.readers else SHARED)

    def _refuse(self, mode: int) -> None:
        """Whoever does not want to wait, and needs what was just refused, or comes behind a waiting writer."""
        if not self.impatient:
            return
        writer_waits = False
        for claim in self.queue:
            if claim.state != WAITING:
                continue
            if not claim.wait and (mode == SHARED or not claim.shared or writer_waits):
                claim.refuse()
                self._gone(claim)
            elif claim.wait and not claim.shared:
                writer_waits = True


def _mode(claim: Claim) -> int:
    return SHARED if claim.shared else EXCLUSIVE
