"""Waiting for keys that other processes have: being woken, looking again, reporting long waits; and waking others.

A releaser's statement tells whether other sessions are interested; if so the key is published on one of 256 wake
channels (by hash) *after* the unlock, on another link, so that an unlock cannot fail for reasons of signalling.
Waiters listen to the channel before they mark their interest. Whatever is lost on this way, a jittered re-check (0.75
s +- 25 %, one statement for all waited keys of a link) finds. A process that has released a wanted key rests until
the wake-up is confirmed and two round trips (at least 1 ms) have passed: without this it would always win against
those who have yet to be woken. Waiters whose wake-ups were in vain three times in a row wait a random moment, longer
the more there seem to be of them.

If the channel cannot be heard within a second, the waiter marks its interest all the same and lives by the re-check.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from time import monotonic as _now
from typing import TYPE_CHECKING, Final

from ..backend import Claim, Holder
from ..events import LockReleased, StillWaiting, WakeFailed
from .keeper import Context
from .keyowner import KeyOwner
from .link import Notification, Rows
from .listener import Listener, Registration
from .locktable import LockRow, read_row
from .messages import Publisher
from .statements import ALL_LOCKS
from .waitgraph import find_cycle, process_name

if TYPE_CHECKING:
    from .lockshard import LockShard

__all__ = ["Waiting"]

_RECHECK: Final = 0.75
_STILL_WAITING: Final = 10.0
_PATIENCE_FOR_LISTEN: Final = 1.0
_REST: Final = 0.001
_REST_MOST: Final = 0.1
_VAIN: Final = 3
_VAIN_STEP: Final = 0.00025
_VAIN_MOST: Final = 0.05


class _Bucket:
    """A wake channel that is listened to, and the owners it serves."""

    __slots__ = ("owners", "patience", "registration", "unheard")

    def __init__(self) -> None:
        self.owners: set[KeyOwner] = set()
        self.registration: Registration | None = None
        self.patience: asyncio.TimerHandle | None = None
        self.unheard = False


class Waiting:
    """The waits of one locker."""

    def __init__(
        self,
        context: Context,
        listener: Listener,
        publisher: Publisher,
        owners: Mapping[int, KeyOwner],
        shards: Sequence[LockShard],
    ) -> None:
        self._context = context
        self._loop = context.loop
        self._events = context.events
        self._listener = listener
        self._publisher = publisher
        self._owners = owners
        self._shards = shards
        self._buckets: dict[int, _Bucket] = {}
        self._watching: dict[KeyOwner, float] = {}
        self._recheck: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Wait for nothing more."""
        for bucket in [*self._buckets.values()]:
            self._close_bucket(bucket)
        self._buckets.clear()
        self._watching.clear()
        if self._recheck is not None:
            self._recheck.cancel()

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
            bucket.registration = self._listener.add(_channel(number), self._woken, lambda: self._heard(opened))
        return bucket.registration.ready or bucket.unheard

    def watch(self, owner: KeyOwner) -> None:
        """Somebody waits for this key: look again from time to time, and report long waits."""
        self._watching.setdefault(owner, _STILL_WAITING)
        if self._recheck is None:
            self._schedule_recheck()

    def unwatch(self, owner: KeyOwner) -> None:
        """Nobody waits for this key any more."""
        self._watching.pop(owner, None)
        if not owner.watching:
            return
        owner.watching = False
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
        """The channel is heard; after a reconnect too, when wake-ups may have been missed."""
        bucket.unheard = False
        if bucket.patience is not None:
            bucket.patience.cancel()
        # the registration may be ready before ``add`` has returned it
        self._loop.call_soon(self._wake_all, bucket)

    def _wake_all(self, bucket: _Bucket) -> None:
        for owner in tuple(bucket.owners):
            owner.wake()

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
        for shard in self._shards:
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
        me = process_name(self._context.application_name("lock", None), link.pid)

        def answered(rows: Rows, error: Exception | None) -> None:
            known = [read_row(row) for row in rows]
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


def _bucket_of(owner: KeyOwner) -> int:
    return int(owner.marks()[1]) & 0xFF


def _channel(bucket: int) -> str:
    return f"pgconcert:wake1:{bucket:02x}"


def _named(row: LockRow) -> Holder:
    return Holder(row.pid, row.application.removesuffix(" pgconcert-lock"))
