"""A lock link with its share of the active keys: the statements of the lock protocol, and what to do when one fails.

A session pays for every lock it holds with every statement, so one link carries about a thousand keys. A failed
statement over session locks keeps what it had done before it failed; therefore nothing is repeated and nothing is
assumed: ``pg_locks`` is asked what this session holds, and every owner of the batch is told the truth. The answers of a
link come in the order of the questions, so at the moment of that answer the owners' notes and the server agree on
everything else. If the server cannot even be asked, the link is closed, and the server frees all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from ..backend import Claim
from ..errors import LinkLost, LockBudgetExceeded, PgconcertError, StatementFailed
from ..events import BatchReconciled
from ..keys import interest_pair
from .groupcommit import Group, Turns, Verb
from .keeper import Context, Keeper
from .keyowner import KeyOwner
from .link import Link, Notification, Rows, Statement
from .locktable import read_row
from .probe import Proof
from .statements import (
    HELD_BY_US,
    MARK,
    MARK_MANY,
    TRY,
    TRY_MANY,
    UNLOCK,
    UNLOCK_MANY,
    UNMARK,
    UNMARK_MANY,
)
from .waiting import Waiting

__all__ = ["SHARD_SIZE", "LockShard"]

SHARD_SIZE: Final = 1000
"""How many active keys one link carries."""

_MOST: Final = 1024
_BRACE: Final = ord("{")
_GIVE_UP_AFTER: Final = 3
_OUT_OF_MEMORY: Final = ("53200", "53000")
_TRANSIENT: Final = ("57014", "55P03", "40001", "40P01")


class ShardsLocker(Protocol):
    """What a shard asks of its locker."""

    context: Context
    waiting: Waiting

    def retire(self, owner: KeyOwner) -> None: ...
    def not_ours(self, owner: KeyOwner) -> None: ...
    def granted(self, claim: Claim) -> None: ...
    def released(self, owner: KeyOwner, wanted: bool) -> None: ...
    def hold_lost(self, claim: Claim) -> None: ...
    def shard_up(self, shard: LockShard, link: Link, proof: Proof) -> None: ...
    def connect_failed(self, shard: LockShard, error: PgconcertError) -> None: ...


class LockShard:
    """One lock link and the owners of its keys."""

    def __init__(self, locker: ShardsLocker) -> None:
        self._locker = locker
        self._context = locker.context
        self.owners: dict[int, KeyOwner] = {}
        self.up = False
        self.database = b""
        """The oid of our database, to find its locks among those of the server."""
        self.emptied: asyncio.TimerHandle | None = None
        """The timer that closes a shard which carries nothing."""
        self._try = self._verb("try", TRY, TRY_MANY, KeyOwner.tried_with)
        self._mark = self._verb("mark", MARK, MARK_MANY, KeyOwner.marked_with)
        self._unlock = self._verb("unlock", UNLOCK, UNLOCK_MANY, KeyOwner.unlocked_with)
        self._unmark = self._verb("unmark", UNMARK, UNMARK_MANY, KeyOwner.unmarked_with)
        self.keeper = Keeper(self._context, "lock", self)
        # what owners ask of us is done by the locker and its room for waiting
        self.events = locker.context.events
        self.retire = locker.retire
        self.not_ours = locker.not_ours
        self.granted = locker.granted
        self.released = locker.released
        self.hold_lost = locker.hold_lost
        self.can_mark = locker.waiting.can_mark
        self.watch = locker.waiting.watch
        self.unwatch = locker.waiting.unwatch
        self.wake_others = locker.waiting.wake_others
        self._tries: Group[KeyOwner]
        self.try_: Callable[[KeyOwner], None]
        self.mark: Callable[[KeyOwner], None]
        self.unlock: Callable[[KeyOwner], None]
        self.unmark: Callable[[KeyOwner], None]

    def _verb(
        self, name: str, one: Statement, many: Statement, tell: Callable[[KeyOwner, int], None]
    ) -> Verb[KeyOwner]:
        return Verb(
            name,
            one=one,
            parameters_one=_key,
            many=many,
            parameters_many=_keys,
            answered=_hand_on(tell),
            failed=lambda batch, error: self._reconcile(name, batch, error),
            fit=_fit,
        )

    # what the keeper tells us

    def link_up(self, link: Link, proof: Proof) -> None:
        """A fresh session, which holds nothing. Nothing is asked before the locker says ``start``."""
        turns = Turns(link, self._context.loop)
        self.unlock = turns.group(self._unlock).ask
        self._tries = turns.group(self._try)
        self.try_ = self._tries.ask
        self.mark = turns.group(self._mark).ask
        self.unmark = turns.group(self._unmark).ask
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

    def notified(self, notification: Notification) -> None:
        """This link listens to nothing."""

    def recheck(self, owners: Sequence[KeyOwner]) -> None:
        """Try the keys of sleeping owners again, in one statement."""
        asleep = [owner for owner in owners if owner.asleep()]
        if self.up and asleep:
            self._tries.ask_all(asleep)

    # after a failure

    def _reconcile(self, verb: str, batch: Sequence[KeyOwner], error: Exception) -> None:
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
            known = [read_row(row) for row in rows]
            keys = {row.key for row in known}
            pairs = {row.pair for row in known}
            told = _told(error)
            self._context.events.emit(
                BatchReconciled(
                    verb=verb,
                    keys=len(batch),
                    held=sum(owner.value in keys for owner in batch),
                    error=str(error),
                )
            )
            if any(owner.failures >= _GIVE_UP_AFTER for owner in batch):
                link.close(f"{verb} failed {_GIVE_UP_AFTER} times: {error}")
                return
            for owner in batch:
                owner.recover(
                    held=owner.value in keys,
                    marked=interest_pair(owner.value) in pairs,
                    unlocking=verb == "unlock",
                    error=told,
                )

        link.send(HELD_BY_US, (), answered)


def _hand_on(tell: Callable[[KeyOwner, int], None]) -> Callable[[Sequence[KeyOwner], Rows], None]:
    def answered(batch: Sequence[KeyOwner], rows: Rows) -> None:
        text = rows[0][0]
        assert text is not None
        if len(batch) == 1 and text[0] != _BRACE:
            tell(batch[0], text[0])
            return
        for owner, answer in zip(batch, text[1::2], strict=True):
            tell(owner, answer)

    return answered


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


def _fit(queue: Sequence[KeyOwner]) -> int:
    return _MOST


def _key(owner: KeyOwner) -> tuple[bytes]:
    return (owner.raw,)


def _keys(batch: Sequence[KeyOwner]) -> tuple[bytes]:
    return (b"{" + b",".join([owner.raw for owner in batch]) + b"}",)
