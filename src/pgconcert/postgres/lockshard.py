"""A lock link with its share of the active keys: the statements of the lock protocol, and what to do when one fails.

A session pays for every lock it holds with every statement, so one link carries about a thousand keys. A failed
statement over session locks keeps what it had done before it failed; therefore nothing is repeated and nothing is
assumed: ``pg_locks`` is asked what this session holds, and every owner of the batch is told the truth. The answers of a
link come in the order of the questions, so at the moment of that answer the owners' notes and the server agree on
everything else. If the server cannot even be asked, the link is closed, and the server frees all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Protocol

from ..backend import Claim, Holder
from ..errors import LinkLost, LockBudgetExceeded, PgconcertError, StatementFailed
from ..events import BatchReconciled
from ..keys import numbered_pair
from .groupcommit import Group, Turns, Verb
from .keeper import Context, Keeper
from .link import Link, Rows
from .locktable import Ours, numbered_halves, plain_name, read_row
from .owner import Owner, Timer
from .probe import Proof
from .statements import AGREED, HELD_BY_US
from .verbs import VERBS, OwnerVerb
from .waiting import Waiting

__all__ = ["SHARD_SIZE", "LockShard"]

SHARD_SIZE: Final = 1000
"""How many active keys one link carries."""

_MOST: Final = 1024
_GIVE_UP_AFTER: Final = 3
_OUT_OF_MEMORY: Final = ("53200", "53000")
_TRANSIENT: Final = ("57014", "55P03", "40001", "40P01")


class ShardsLocker(Protocol):
    """What a shard asks of its locker."""

    context: Context
    waiting: Waiting

    def later(self, seconds: float, call: Callable[[], None]) -> Timer: ...
    def retire(self, owner: Owner) -> None: ...
    def not_ours(self, owner: Owner) -> None: ...
    def granted(self, claim: Claim) -> None: ...
    def released(self, owner: Owner, wanted: bool) -> None: ...
    def hold_lost(self, claim: Claim) -> None: ...
    def shard_up(self, shard: LockShard, link: Link, proof: Proof) -> None: ...
    def connect_failed(self, shard: LockShard, error: PgconcertError) -> None: ...


class LockShard:
    """One lock link and the owners of its keys."""

    def __init__(self, locker: ShardsLocker) -> None:
        self._locker = locker
        self._context = locker.context
        self.owners: dict[int, Owner] = {}
        self.up = False
        self.database = b""
        """The oid of our database, to find its locks among those of the server."""
        self.emptied: asyncio.TimerHandle | None = None
        """The timer that closes a shard which carries nothing."""
        self._verbs = {name: self._verb(name, verb) for name, verb in VERBS.items()}
        self.keeper = Keeper(self._context, "lock", self)
        # what owners ask of us is done by the locker and its room for waiting
        self.events = locker.context.events
        self.counts = self.events.tally.locks
        self.retire = locker.retire
        self.not_ours = locker.not_ours
        self.granted = locker.granted
        self.released = locker.released
        self.hold_lost = locker.hold_lost
        self.can_mark = locker.waiting.can_mark
        self.watch = locker.waiting.watch
        self.unwatch = locker.waiting.unwatch
        self.wake_others = locker.waiting.wake_others
        self.later = locker.later
        self.turns: Turns | None = None
        self.ask: Mapping[str, Callable[[Any], None]] = {}
        self._groups: dict[str, Group[Any]] = {}

    def _verb(self, name: str, verb: OwnerVerb) -> Verb[Any]:
        return Verb(
            name,
            one=verb.one,
            parameters_one=verb.one_parameters,
            many=verb.many,
            parameters_many=verb.many_parameters,
            answered=verb.answered,
            failed=lambda batch, error: self._reconcile(name, batch, error),
            fit=_fit,
        )

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """A fresh session, which holds nothing. Nothing is asked before the locker says ``start``."""
        self.turns = turns = Turns(link, self._context.loop)
        self._groups = {name: turns.group(verb) for name, verb in self._verbs.items()}
        self.ask = {name: group.ask for name, group in self._groups.items()}
        self.database = proof.database
        self._locker.shard_up(self, link, proof)

    def start(self) -> None:
        """The server has room: ask what is waiting to be asked."""
        self.up = True
        for owner in [*self.owners.values()]:
            owner.step()

    def link_down(self, reason: str) -> None:
        """The session is gone, and with it everything it held."""
        self.up = False
        for owner in [*self.owners.values()]:
            owner.link_died(f"its connection died: {reason}")

    def connect_failed(self, error: PgconcertError) -> None:
        """Nothing can be asked now."""
        self._locker.connect_failed(self, error)

    def together(self) -> AbstractContextManager[None]:
        """What is asked inside leaves together."""
        return self.turns.together() if self.turns is not None and self.up else nullcontext()

    def recheck(self, owners: Sequence[Owner]) -> None:
        """Try the keys of sleeping owners again, with one statement for each verb."""
        if not self.up:
            return
        asleep: dict[str, list[Owner]] = {}
        for owner in owners:
            verb = owner.again()
            if verb is not None:
                asleep.setdefault(verb, []).append(owner)
        for verb, batch in asleep.items():
            self._groups[verb].ask_all(batch)

    def look_who_agrees(self, owner: Owner, tell: Callable[[Sequence[tuple[str, int]]], None]) -> None:
        """Ask who else holds an agreement about a semaphore."""
        link = self.keeper.link
        if link is None or link.dead is not None:
            return

        def answered(rows: Rows, error: Exception | None) -> None:
            if isinstance(error, LinkLost):
                return
            if error is not None:
                self._reconcile("agree", [owner], error)
                return
            found = [read_row(row) for row in rows]
            tell(
                [
                    (str(Holder(row.pid, plain_name(row.application))), numbered_pair(row.pair)[1])
                    for row in found
                    if row.pair is not None and row.pid != link.pid
                ]
            )

        link.send(AGREED, (self.database, *numbered_halves(owner.value)), answered)

    # after a failure

    def _reconcile(self, verb: str, batch: Sequence[Owner], error: Exception) -> None:
        link = self.keeper.link
        if link is None or link.dead is not None:
            return

        def answered(rows: Rows, failure: Exception | None) -> None:
            if isinstance(failure, LinkLost):
                return
            if failure is not None:
                for owner in batch:
                    owner.fail(_told(error) or error)
                link.close(f"{verb} failed ({error}), and what is held could not be read: {failure}")
                return
            ours = Ours([read_row(row) for row in rows])
            told = _told(error)
            found = [ours.of(owner.value) for owner in batch]
            self._context.events.emit(
                BatchReconciled(
                    verb=verb,
                    keys=len(batch),
                    held=sum(one.exclusive or one.shared or bool(one.slots) for one in found),
                    error=str(error),
                )
            )
            if any(owner.failures >= _GIVE_UP_AFTER for owner in batch):
                link.close(f"{verb} failed {_GIVE_UP_AFTER} times: {error}")
                return
            for owner, one in zip(batch, found, strict=True):
                owner.recover(one, verb, told)

        link.send(HELD_BY_US, (), answered)


def _told(error: Exception) -> Exception | None:
    """What the callers of a failed batch are told; None if they are to be tried again."""
    state = error.sqlstate if isinstance(error, StatementFailed) else ""
    if state in _TRANSIENT:
        return None
    if state in _OUT_OF_MEMORY:
        return LockBudgetExceeded(
            f"the server's lock table is full ({error}): fewer locks at once, or a larger max_locks_per_transaction",
            state,
        )
    return error


def _fit(queue: Sequence[Owner]) -> int:
    return _MOST
