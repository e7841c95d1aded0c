"""Locks as PostgreSQL does them: session-level advisory locks, many to a link, arbitrated in the process first.

The locker gives every active key its owner (``keyowner.py``) on a shard (``lockshard.py``) and does what concerns all of
them: the budget, waking other processes and being woken, the re-check, reports about long waits.

Waking. A releaser's statement tells whether other sessions are interested; if so the key is published on one of 256
wake channels (by hash) *after* the unlock, on another link, so that an unlock cannot fail for reasons of signalling.
Waiters listen to the channel before they mark their interest. Whatever is lost on this way, a jittered re-check (0.75 s
+- 25 %, one statement for all waited keys of a shard) finds. A process that has released a wanted key rests until the
wake-up is confirmed and two round trips (at least 1 ms) have passed: without this it would always win against those
who have yet to be woken. Waiters whose wake-ups were in vain three times in a row wait a random moment, longer the more
there seem to be of them.
"""

from __future__ import annotations

import asyncio
import random
from time import monotonic as _now
from typing import Final

from ..backend import Claim, Describer, Holder
from ..errors import ConfigurationError, CoordinatorClosed, LockBudgetExceeded, PgconcertError
from ..events import HoldBroken, HoldDropped, LockAcquired, LockReleased, ReleaseRefused, StillWaiting, WakeFailed
from ..hold import Grant, Waiter
from ..keys import LockKey
from .keeper import Context
from .keyowner import KeyOwner
from .link import Link, Notification, Rows
from .listener import Listener, Registration
from .lockshard import SHARD_SIZE, LockShard, signed
from .messages import Publisher
from .probe import Proof
from .statements import ALL_LOCKS, HOLDER, LOCKS_ON_SERVER
from .waitgraph import LockRow, find_cycle, process_name

__all__ = ["PostgresLocker"]

_RECHECK: Final = 0.75
_STILL_WAITING: Final = 10.0
_PATIENCE_FOR_LISTEN: Final = 1.0
_REST: Final = 0.001
_REST_MOST: Final = 0.1
_VAIN: Final = 3
_VAIN_STEP: Final = 0.00025
_VAIN_MOST: Final = 0.05
_LINGER: Final = 10.0
_FAREWELL: Final = 1.0
_SERVER_SHARE: Final = 0.75
_OUR_SHARE: Final = 0.5


class _Bucket:
    """A wake channel that is listened to, and the owners it serves."""

    __slots__ = ("owners", "patience", "registration", "unheard")

    def __init__(self) -> None:
        self.owners: set[KeyOwner] = set()
        self.registration: Registration | None = None
        self.patience: asyncio.TimerHandle | None = None
        self.unheard = False


class PostgresLocker:
    """The port ``Locker`` over advisory locks."""

    def __init__(self, context: Context, listener: Listener, publisher: Publisher, max_locks: int | None) -> None:
        self.context = context
        self._loop = context.loop
        self._events = context.events
        self._listener = listener
        self._publisher = publisher
        self._wanted_budget = max_locks
        self._owners: dict[int, KeyOwner] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._watching: dict[KeyOwner, float] = {}
        self._recheck: asyncio.TimerHandle | None = None
        self._server_room: int | None = None
        self._closed = False
        self._all_gone: asyncio.Future[None] | None = None
        self.budget = max_locks
        self.shards = [LockShard(self)]

    # the port

    def acquire(self, claim: Claim) -> None:
        """Hand in a claim."""
        if self._closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        value = claim.key.value
        owner = self._owners.get(value)
        if owner is None:
            budget = self.budget
            if budget is not None and len(self._owners) >= budget:
                claim.fail(self._over_budget(budget))
                return
            shard = self._shard_with_room()
            owner = self._owners[value] = shard.owners[value] = KeyOwner(shard, value)
        owner.acquire(claim)

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
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None:
        """Release a claim whose hold was thrown away."""
        self._events.emit(HoldDropped(key=claim.name))
        self.release(claim, None)

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """Ask who holds a key."""
        link = self._any_link()
        if link is None:
            waiter.set_result(None)
            return

        def answered(rows: Rows, error: Exception | None) -> None:
            if waiter.done():
                return
            if error is not None or not rows:
                waiter.set_result(None)
            else:
                waiter.set_result(_holder(rows[0]))

        unsigned = key.value & 0xFFFFFFFFFFFFFFFF
        link.send(HOLDER, (b"%d" % (unsigned >> 32), b"%d" % (unsigned & 0xFFFFFFFF)), answered)

    @property
    def held(self) -> int:
        """How many locks are held now."""
        return sum(owner.claim is not None for owner in [*self._owners.values()])

    @property
    def waited_for(self) -> int:
        """How many keys are waited for now."""
        return sum(bool(owner.queue) for owner in [*self._owners.values()])

    async def close(self) -> None:
        """Give everything back: who waits is told, who holds has lost, and the server has freed it when this returns."""
        self._closed = True
        for owner in [*self._owners.values()]:
            owner.fail(CoordinatorClosed("the coordinator was closed while this lock was waited for"))
            claim = owner.claim
            if claim is not None:
                if claim.lose("the coordinator was closed"):
                    self.hold_lost(claim)
                owner.release(claim, None)
            else:
                owner.step()
        if self._owners and any(shard.up for shard in self.shards):
            self._all_gone = self._loop.create_future()
            await asyncio.wait([self._all_gone], timeout=_FAREWELL)
        for bucket in [*self._buckets.values()]:
            self._close_bucket(bucket)
        self._buckets.clear()
        if self._recheck is not None:
            self._recheck.cancel()
        for shard in self.shards:
            await shard.keeper.close()

    def forked(self) -> None:
        """In a forked child: nothing is ours any more."""
        self._closed = True
        for owner in self._owners.values():
            if owner.claim is not None:
                owner.claim.reason = "forked"
        for shard in self.shards:
            shard.keeper.forked()

    # what shards and owners tell us

    def retire(self, owner: KeyOwner) -> None:
        """Nobody wants this key any more."""
        shard = owner.shard
        if shard.owners.get(owner.value) is not owner:
            return
        del shard.owners[owner.value]
        del self._owners[owner.value]
        if owner.watching:
            self.unwatch(owner)
        elif self._watching:
            self._watching.pop(owner, None)
        if not shard.owners:
            if shard is not self.shards[0]:
                self._loop.call_later(_LINGER, self._close_if_empty, shard)
            if self._all_gone is not None and not self._owners and not self._all_gone.done():
                self._all_gone.set_result(None)

    def granted(self, claim: Claim) -> None:
        """A claim was granted."""
        if self._events.wants(LockAcquired):
            self._events.emit(LockAcquired(key=claim.name, waited=_now() - claim.since))

    def hold_lost(self, claim: Claim) -> None:
        """A hold was lost."""
        self._events.emit(HoldBroken(key=claim.name, reason=claim.reason or ""))

    def not_ours(self, owner: KeyOwner) -> None:
        """The server did not know the lock that we released."""
        link = owner.shard.keeper.link
        self._events.emit(ReleaseRefused(key=owner.value, server_pid=link.pid if link else 0))

    def shard_up(self, shard: LockShard, link: Link, proof: Proof) -> None:
        """A lock link is open: learn what the server can carry."""
        self._server_room = round(proof.lock_table * _SERVER_SHARE)
        if self._wanted_budget is None:
            self.budget = max(1, round(proof.lock_table * _OUR_SHARE))
        assert self.budget is not None
        surplus = len(self._owners) - self.budget
        for owner in [*shard.owners.values()][::-1]:
            if surplus <= 0:
                break
            owner.fail(self._over_budget(self.budget))
            surplus -= 1
        if shard is not self.shards[0]:
            link.send(LOCKS_ON_SERVER, (), lambda rows, error: self._check_room(shard, rows, error))

    def shard_down(self, shard: LockShard) -> None:
        """A lock link is gone. Owners with waiters stay; the keeper connects again while there are any."""
        if not shard.owners and shard is self.shards[0] and not self._closed:
            shard.keeper.unwant()

    def connect_failed(self, shard: LockShard, error: PgconcertError) -> None:
        """Before the first connection ever, every claim learns it; later only those that do not want to wait."""
        ever_up = any(known.keeper.ever_up for known in self.shards)
        final = isinstance(error, ConfigurationError) or not ever_up
        for owner in [*shard.owners.values()]:
            for claim in [*owner.queue]:
                if final or not claim.wait:
                    owner.queue.remove(claim)
                    claim.fail(error)
            owner.step()
        if not shard.owners:
            shard.keeper.unwant()

    # waking and being woken

    def wake_others(self, owner: KeyOwner) -> None:
        """Publish that a key is free, and let its owner rest until the others have had their chance."""
        if self._events.wants(LockReleased):
            self._events.emit(LockReleased(key=owner.value, wanted=True))

        limit = self._loop.call_later(_REST_MOST, owner.rested)

        def told(error: Exception | None) -> None:
            if error is not None:
                self._events.emit(WakeFailed(keys=1, error=str(error)))
            limit.cancel()
            pause = max(_REST, 2 * (owner.shard.keeper.round_trip or 0.0))
            self._loop.call_later(min(pause, _REST_MOST), owner.rested)

        self._publisher.publish(_channel(_bucket_of(owner)), str(owner.value), told)

    def can_mark(self, owner: KeyOwner) -> bool:
        """Whether the wake channel of a key is heard. If not yet, its owner is stepped when it is, or is given up."""
        number = _bucket_of(owner)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        if not owner.watching:
            owner.watching = True
            bucket.owners.add(owner)
            self.watch(owner)
        if bucket.registration is None:
            bucket.patience = self._loop.call_later(_PATIENCE_FOR_LISTEN, self._give_up_listening, bucket)
            opened = bucket
            bucket.registration = self._listener.add(
                _channel(number), self._woken, lambda: self._heard(opened)
            )
        return bucket.registration.ready or bucket.unheard

    def watch(self, owner: KeyOwner) -> None:
        """Somebody waits for this key: look again from time to time, and report long waits."""
        self._watching.setdefault(owner, _STILL_WAITING)
        if self._recheck is None:
            self._schedule_recheck()

    def unwatch(self, owner: KeyOwner) -> None:
        """An owner needs to be woken no longer."""
        if not owner.watching:
            return
        owner.watching = False
        self._watching.pop(owner, None)
        number = _bucket_of(owner)
        bucket = self._buckets[number]
        bucket.owners.discard(owner)
        if not bucket.owners:
            del self._buckets[number]
            self._close_bucket(bucket)

    def _close_bucket(self, bucket: _Bucket) -> None:
        if bucket.patience is not None:
            bucket.patience.cancel()
        if bucket.registration is not None:
            self._listener.remove(bucket.registration)

    def _heard(self, bucket: _Bucket) -> None:
        """Called when the channel begins to be heard; again after every reconnect, when wake-ups may have been missed."""
        bucket.unheard = False
        if bucket.patience is not None:
            bucket.patience.cancel()
        # the registration may be ready before ``add`` has returned it
        self._loop.call_soon(lambda: [owner.wake() for owner in tuple(bucket.owners)])

    def _give_up_listening(self, bucket: _Bucket) -> None:
        bucket.unheard = True
        for owner in tuple(bucket.owners):
            owner.step()

    def _woken(self, notification: Notification) -> None:
        try:
            owner = self._owners.get(int(notification.payload))
        except ValueError:
            return
        if owner is None or owner.held or not owner.queue:
            return
        owner.vain += 1
        if owner.vain <= _VAIN:
            owner.wake()
        else:
            pause = random.random() * min(_VAIN_MOST, _VAIN_STEP * owner.vain)
            self._loop.call_later(pause, owner.wake)

    # the re-check

    def _schedule_recheck(self) -> None:
        self._recheck = self._loop.call_later(_RECHECK * random.uniform(0.75, 1.25), self._look_again)

    def _look_again(self) -> None:
        if not self._watching:
            self._recheck = None
            return
        self._schedule_recheck()
        for shard in self.shards:
            if shard.up:
                shard.recheck([owner for owner in self._watching if owner.shard is shard])
        now = _now()
        for owner, limit in [*self._watching.items()]:
            if owner.queue and not owner.held and now - owner.queue[0].since >= limit:
                self._watching[owner] = limit + _STILL_WAITING
                self._report_waiting(owner, owner.queue[0], now - owner.queue[0].since)

    def _report_waiting(self, owner: KeyOwner, claim: Claim, waited: float) -> None:
        link = owner.shard.keeper.link
        if link is None:
            self._events.emit(StillWaiting(key=claim.name, waited=waited, holder="nobody known: no connection"))
            return
        me = process_name(self.context.application_name("lock", None), link.pid)

        def answered(rows: Rows, error: Exception | None) -> None:
            known = [_lock_row(row) for row in rows]
            holders = [row for row in known if row.key == owner.value]
            mine = next((process_name(row.application, row.pid) for row in known if row.pid == link.pid), me)
            self._events.emit(
                StillWaiting(
                    key=claim.name,
                    waited=waited,
                    holder=str(_named(holders[0])) if holders else None,
                    cycle=find_cycle(known, mine),
                )
            )

        link.send(ALL_LOCKS, (), answered)

    # the budget

    def _over_budget(self, budget: int) -> LockBudgetExceeded:
        return LockBudgetExceeded(
            f"{len(self._owners)} locks are held or waited for by this process, and its budget is {budget}; give the "
            "coordinator a larger max_locks if the server can carry it (max_locks_per_transaction x max_connections), "
            "or hold fewer locks at once"
        )

    def _shard_with_room(self) -> LockShard:
        for shard in self.shards:
            if len(shard.owners) < SHARD_SIZE:
                shard.keeper.want()
                return shard
        shard = LockShard(self)
        self.shards.append(shard)
        shard.keeper.want()
        return shard

    def _check_room(self, shard: LockShard, rows: Rows, error: Exception | None) -> None:
        if error is not None or self._server_room is None:
            return
        used = int(rows[0][0] or 0)
        if used + len(shard.owners) > self._server_room:
            for owner in [*shard.owners.values()]:
                owner.fail(
                    LockBudgetExceeded(
                        f"the server carries {used} advisory locks, and a further {len(shard.owners)} would pass three "
                        f"quarters of its lock table ({self._server_room}); hold fewer locks at once, or raise "
                        "max_locks_per_transaction"
                    )
                )
                owner.step()

    def _close_if_empty(self, shard: LockShard) -> None:
        if not shard.owners and shard in self.shards:
            self.shards.remove(shard)
            shard.keeper.unwant()

    def _any_link(self) -> Link | None:
        return next((shard.keeper.link for shard in self.shards if shard.keeper.link is not None), None)


def _bucket_of(owner: KeyOwner) -> int:
    return int(owner.marks()[1]) & 0xFF


def _channel(bucket: int) -> str:
    return f"pgconcert:wake1:{bucket:02x}"


def _holder(row: tuple[bytes | None, ...]) -> Holder:
    application = (row[1] or b"").decode(errors="replace")
    return Holder(int(row[0] or 0), application.removesuffix(" pgconcert-lock"))


def _named(row: LockRow) -> Holder:
    return Holder(row.pid, row.application.removesuffix(" pgconcert-lock"))


def _lock_row(row: tuple[bytes | None, ...]) -> LockRow:
    high, low, kind, pid = (int(value or 0) for value in row[:4])
    application = (row[4] or b"").decode(errors="replace")
    if kind == 1:
        return LockRow(signed((high << 32) | low, 64), None, pid, application)
    return LockRow(None, (signed(high, 32), signed(low, 32)), pid, application)
