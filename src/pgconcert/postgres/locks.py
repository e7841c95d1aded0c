"""Locks as PostgreSQL does them: session-level advisory locks, many to a link, arbitrated in the process first.

The locker gives every active key its owner (``keyowner.py``) on a shard (``lockshard.py``), keeps the budget, and
closes. What concerns waiting stands in ``waiting.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from time import monotonic as _now
from typing import Final, cast

from ..backend import Claim, Describer, Holder
from ..errors import ConfigurationError, CoordinatorClosed, LinkLost, LockBudgetExceeded, PgconcertError, Unavailable
from ..events import HoldBroken, HoldDropped, LockAcquired, LockReleased, ReleaseRefused
from ..hold import Grant, Waiter
from ..keys import LockKey
from .keeper import Context
from .keyowner import KeyOwner
from .link import Link, Rows
from .listener import Listener
from .lockshard import SHARD_SIZE, LockShard
from .locktable import halves, numbered_halves, plain_name, read_row
from .messages import Publisher
from .owner import Owner, settle
from .probe import Proof
from .slotowner import SlotOwner
from .statements import HOLDERS, LOCKS_ON_SERVER, PING, SLOT_HOLDERS
from .waiting import Waiting

__all__ = ["PostgresLocker"]

_LINGER: Final = 10.0
_FAREWELL: Final = 1.0
_SERVER_SHARE: Final = 0.75
_OUR_SHARE: Final = 0.5


class _LastOf:
    """Several waiters in one: the real one is told with the last."""

    __slots__ = ("_left", "_waiter")

    def __init__(self, count: int, waiter: Waiter) -> None:
        self._left = count
        self._waiter = waiter

    def done(self) -> bool:
        return self._waiter.done()

    def set_result(self, result: bool, /) -> None:
        self._left -= 1
        if not self._left:
            settle(self._waiter)

    def set_exception(self, exception: Exception, /) -> None:
        self._waiter.set_exception(exception)


class PostgresLocker:
    """The port ``Locker`` over advisory locks."""

    def __init__(self, context: Context, listener: Listener, publisher: Publisher, max_locks: int | None) -> None:
        self.context = context
        self._loop = context.loop
        self._events = context.events
        self._wanted_budget = max_locks
        self._owners: dict[int, Owner] = {}
        self._semaphores: list[SlotOwner] = []
        self._server_room: int | None = None
        self._asking: dict[int, list[Describer]] = {}
        self._closed = False
        self._all_gone: asyncio.Future[None] | None = None
        self.budget = max_locks
        self.shards: list[LockShard] = []
        self.waiting = Waiting(context, listener, publisher, self._owners, self.shards)
        self.shards.append(LockShard(self))

    # the port

    def acquire(self, claim: Claim) -> None:
        """Hand in a claim."""
        if self._closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        value = claim.key.value
        owner = self._owners.get(value)
        if owner is None or (isinstance(owner, SlotOwner) and owner.in_use < owner.permits):
            budget = self.budget
            if budget is not None and self._may_be_in_use() >= budget and self._in_use() >= budget:
                claim.fail(self._over_budget(budget))
                return
        if owner is None:
            shard = self._shard_with_room()
            if claim.key.permits:
                owner = SlotOwner(shard, value, claim.key.permits)
                self._semaphores.append(owner)
            else:
                owner = KeyOwner(shard, value)
            self._owners[value] = shard.owners[value] = owner
        if not claim.wait and (trouble := _shard(owner).keeper.trouble) is not None:
            claim.fail(Unavailable(f"there is no connection to the server now: {trouble}"))
            owner.step()
            return
        owner.acquire(claim)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        """Hand in several claims, which leave in one statement for each link."""
        with ExitStack() as stack:
            for shard in self.shards:
                stack.enter_context(shard.together())
            for claim in claims:
                self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        """Take a claim back."""
        owner = self._owners.get(claim.key.value)
        if owner is not None:
            owner.withdraw(claim)

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        """Release a granted claim."""
        assert isinstance(claim, Claim)
        owner = self._owners.get(claim.key.value)
        if owner is not None:
            owner.release(claim, waiter)
        else:
            settle(waiter)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        """Release several granted claims, in one statement for each link."""
        if not claims:
            settle(waiter)
            return
        told = None if waiter is None else _LastOf(len(claims), waiter)
        with ExitStack() as stack:
            for shard in self.shards:
                stack.enter_context(shard.together())
            for claim in claims:
                self.release(claim, told)

    def drop(self, claim: Grant) -> None:
        """Release a claim whose hold was thrown away. Finalisers run in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the links with it
            self._loop.call_soon_threadsafe(self._drop, claim)

    def _drop(self, claim: Grant) -> None:
        assert isinstance(claim, Claim)
        self.release(claim, None)
        self._events.emit(HoldDropped(key=claim.key.name))

    def confirm(self, claim: Grant, waiter: Waiter) -> None:
        """Tell whether a claim is held, by the word of the connection that carries it."""
        assert isinstance(claim, Claim)
        owner = self._owners.get(claim.key.value)
        link = None if owner is None else _shard(owner).keeper.link

        def answered(rows: Rows, error: Exception | None) -> None:
            if not waiter.done():
                waiter.set_result(error is None and not claim.over and claim.reason is None)

        if link is None:
            waiter.set_result(False)
        else:
            link.send(PING, (), answered)

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """Ask who holds a key."""
        shard = next((shard for shard in self.shards if shard.keeper.link is not None), None)
        link = shard.keeper.link if shard is not None else None
        if shard is None or link is None:
            waiter.set_result(())
            return
        owner = self._owners.get(key.value)
        if owner is not None and not key.permits and owner.claims:
            claim = owner.claims[0]
            carrier = _shard(owner).keeper
            pid = carrier.link.pid if carrier.link else 0
            waiter.set_result((Holder(pid, plain_name(carrier.application), claim.shared),))
            return
        asking = self._asking.get(key.value)
        if asking is not None:
            asking.append(waiter)  # many waiters run out of time together; the server lists its locks once for all
            return
        self._asking[key.value] = [waiter]

        def answered(rows: Rows, error: Exception | None) -> None:
            found = [read_row(row) for row in rows]
            holders = tuple(Holder(row.pid, plain_name(row.application), row.shared) for row in found)
            for asker in self._asking.pop(key.value, ()):
                # an error is no answer, and whoever asked has a limit: "nobody" would be false
                if error is None and not asker.done():
                    asker.set_result(holders)

        if key.permits:
            link.send(SLOT_HOLDERS, (shard.database, *numbered_halves(key.value)), answered)
        else:
            link.send(HOLDERS, (shard.database, *halves(key.value)), answered)

    @property
    def held(self) -> int:
        """How many locks are held now."""
        return sum(len(owner.claims) for owner in [*self._owners.values()])

    @property
    def waited_for(self) -> int:
        """How many keys are waited for now."""
        return sum(bool(owner.queue) for owner in [*self._owners.values()])

    async def close(self) -> None:
        """Give everything back: who waits is told, who holds has lost, and the server has freed it at the end."""
        self._closed = True
        for owner in [*self._owners.values()]:
            owner.fail(CoordinatorClosed("the coordinator was closed while this lock was waited for"))
            for claim in owner.claims:
                claim.lose("the coordinator was closed", functools.partial(self.hold_lost, claim))
                owner.release(claim, None)
            owner.hurry()
        if self._owners and any(shard.up for shard in self.shards):
            self._all_gone = self._loop.create_future()
            await asyncio.wait([self._all_gone], timeout=_FAREWELL)
        try:
            for shard in self.shards:
                if shard.emptied is not None:
                    shard.emptied.cancel()
            for shard in [*self.shards]:
                await shard.keeper.close()
        finally:
            # last, because a link that closes sends its waiters home
            self.waiting.close()

    def forked(self) -> None:
        """In a forked child: nothing is ours any more."""
        self._closed = True
        for owner in self._owners.values():
            for claim in owner.claims:
                claim.forked()

    # what shards and owners tell us

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        """Call it then; soon, if everything is being closed."""
        return self._loop.call_later(0 if self._closed else seconds, call)

    def retire(self, owner: Owner) -> None:
        """Nobody wants this key any more."""
        shard = _shard(owner)
        if shard.owners.get(owner.value) is not owner:
            return
        del shard.owners[owner.value]
        del self._owners[owner.value]
        if isinstance(owner, SlotOwner):
            self._semaphores.remove(owner)
        if self.waiting.watching:
            self.waiting.unwatch(owner)
        if not shard.owners:
            if shard is not self.shards[0] and shard.emptied is None and not self._closed:
                shard.emptied = self._loop.call_later(_LINGER, self._close_if_empty, shard)
            if self._all_gone is not None and not self._owners and not self._all_gone.done():
                self._all_gone.set_result(None)

    def granted(self, claim: Claim) -> None:
        """A claim was granted."""
        if self._events.wants(LockAcquired):
            self._events.emit(LockAcquired(key=claim.key.name, waited=_now() - claim.since))

    def released(self, owner: Owner, wanted: bool) -> None:
        """A lock was given back."""
        if self._events.wants(LockReleased):
            self._events.emit(LockReleased(key=owner.name, wanted=wanted))

    def hold_lost(self, claim: Claim) -> None:
        """A hold was lost."""
        self._events.tally.locks.lost += 1
        self._events.emit(HoldBroken(key=claim.key.name, reason=claim.reason or ""))

    def not_ours(self, owner: Owner) -> None:
        """The server did not know the lock that we released."""
        link = _shard(owner).keeper.link
        self._events.emit(ReleaseRefused(key=owner.name, server_pid=link.pid if link else 0))

    def shard_up(self, shard: LockShard, link: Link, proof: Proof) -> None:
        """A lock link is open: learn what the server can carry."""
        self._server_room = round(proof.lock_table * _SERVER_SHARE)
        if self._wanted_budget is None:
            self.budget = max(1, round(proof.lock_table * _OUR_SHARE))
        assert self.budget is not None
        surplus = self._in_use() - self.budget
        for owner in [*shard.owners.values()][::-1]:
            if surplus <= 0:
                break
            owner.fail(self._over_budget(self.budget))
            owner.step()
            surplus -= 1
        # what we hold now the server will count; what we take from now on it may or may not
        counted = sum(owner.held or owner.marked for owner in self._started())
        link.send(LOCKS_ON_SERVER, (), lambda rows, error: self._check_room(shard, counted, rows, error))

    def connect_failed(self, shard: LockShard, error: PgconcertError) -> None:
        """Before the first connection ever, every claim learns it; later only those that do not want to wait.

        Once there was a link, the keeper goes on, wanted or not: the next claim finds one, or learns at once that
        there is none.
        """
        ever_up = any(known.keeper.ever_up for known in self.shards)
        final = isinstance(error, (ConfigurationError, CoordinatorClosed)) or not ever_up
        for owner in [*shard.owners.values()]:
            owner.fail(error, waiting_too=final)
            owner.step()
        if not shard.owners and not ever_up:
            shard.keeper.unwant()

    # the budget

    def _may_be_in_use(self) -> int:
        """A quick upper bound of what is in use."""
        return len(self._owners) + sum(owner.in_use for owner in self._semaphores)

    def _in_use(self) -> int:
        return sum(owner.in_use for owner in self._owners.values())

    def _over_budget(self, budget: int) -> LockBudgetExceeded:
        return LockBudgetExceeded(
            f"{self._in_use()} locks are held or waited for by this process, and its budget is {budget}; give the "
            "coordinator a larger max_locks if the server can carry it (max_locks_per_transaction x max_connections), "
            "or hold fewer locks at once"
        )

    def _shard_with_room(self) -> LockShard:
        for shard in self.shards:
            if len(shard.owners) + sum(one.held for one in self._semaphores if one.shard is shard) < SHARD_SIZE:
                if not shard.up:
                    shard.keeper.want()
                return shard
        shard = LockShard(self)
        self.shards.append(shard)
        shard.keeper.want()
        return shard

    def _started(self) -> list[Owner]:
        return [owner for shard in self.shards if shard.up for owner in shard.owners.values()]

    def _check_room(self, shard: LockShard, counted: int, rows: Rows, error: Exception | None) -> None:
        if isinstance(error, LinkLost):
            return
        used = 0 if error is not None else int(rows[0][0] or 0)
        # links that started at the same time have taken a share that may be missing in the count, or will take it
        used += max(0, len(self._started()) - counted)
        surplus = 0 if self._server_room is None else used + len(shard.owners) - self._server_room
        if surplus > 0:
            refusal = LockBudgetExceeded(
                f"the server carries {used} advisory locks, and a further {len(shard.owners)} would pass three "
                f"quarters of its lock table ({self._server_room}); hold fewer locks at once, or raise "
                "max_locks_per_transaction"
            )
            for owner in [*shard.owners.values()][-surplus:]:
                owner.fail(refusal)
                owner.step()
            if not shard.owners:
                # not started: the next claim connects anew, and asks anew
                shard.keeper.unwant()
                return
        shard.start()

    def _close_if_empty(self, shard: LockShard) -> None:
        shard.emptied = None
        if not shard.owners and shard in self.shards:
            self.shards.remove(shard)
            shard.keeper.unwant()
            self._events.tally.statements += shard.keeper.health().statements


def _shard(owner: Owner) -> LockShard:
    return cast(LockShard, owner.shard)
