"""Waiting for keys that other processes have: being woken, looking again, reporting long waits; and waking others.

A releaser's statement tells whether other sessions are interested; if so the key is published on one of 256 wake
channels (by hash) *after* the unlock, on another link, so that an unlock cannot fail for reasons of signalling.
Waiters listen to the channel before they mark their interest. Whatever is lost on this way, a jittered re-check (0.75
s +- 25 %, one statement for all waited keys of a link) finds. A process that has released a wanted key rests until
the wake-up is confirmed and two round trips (at least 1 ms) have passed: without this it would always win against
those who have yet to be woken. Nobody pauses because of wake-ups in vain: the rules that were tried favour those who
have just won, and starve the others.

If the channel cannot be heard within a second, the waiter marks its interest all the same and lives by the re-check.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from time import monotonic as _now
from typing import Final, Protocol

from ..backend import Claim, Holder
from ..events import StillWaiting, WakeFailed
from ..keys import wake_bucket
from .keeper import Context, Keeper
from .link import Rows
from .listener import Listener
from .locktable import Holders, LockRow, plain_name, read_row
from .messages import Publisher
from .owner import Owner, OwnersShard
from .statements import ALL_LOCKS
from .waitgraph import find_cycle, process_name

__all__ = ["Waiting"]

_RECHECK: Final = 0.75
_STILL_WAITING: Final = 10.0
_PATIENCE_FOR_LISTEN: Final = 1.0
_REST: Final = 0.001
_REST_MOST: Final = 0.1


class _Bucket:
    """A wake channel, the owners it serves, and the ear that hears it for them."""

    __slots__ = ("_woken", "channel", "hearing", "loop", "owners", "patience", "unheard")

    def __init__(self, channel: str, loop: asyncio.AbstractEventLoop, woken: Callable[[bytes], None]) -> None:
        self.channel = channel
        self.loop = loop
        self._woken = woken
        self.owners: set[Owner] = set()
        self.patience: asyncio.TimerHandle | None = None
        self.hearing = False
        self.unheard = False

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A wake-up."""
        self._woken(payload)

    def ready(self) -> None:
        """The channel is heard; after a reconnect too, when wake-ups may have been missed."""
        self.hearing = True
        self.unheard = False
        self.stop_patience()
        # the channel may be heard before ``listen`` has returned
        self.loop.call_soon(self._wake_all)

    def deaf(self, reason: str) -> None:
        """It is not heard any more; whoever is asleep lives by the re-check."""
        self.hearing = False

    def failed(self, error: Exception) -> None:
        """Patience has a limit of its own."""

    def give_up(self) -> None:
        """It was not heard in time: do without."""
        self.patience = None
        self.unheard = True
        for owner in tuple(self.owners):
            owner.step()

    def stop_patience(self) -> None:
        """Nobody waits for it to be heard."""
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def _wake_all(self) -> None:
        for owner in tuple(self.owners):
            owner.wake()


class _WakeUp:
    """The answer to a wake-up that was published."""

    __slots__ = ("_told",)

    def __init__(self, told: Callable[[Exception | None], None]) -> None:
        self._told = told

    def done(self) -> bool:
        return False

    def set_result(self, result: bool, /) -> None:
        self._told(None)

    def set_exception(self, exception: Exception, /) -> None:
        self._told(exception)


class WaitingShard(OwnersShard, Protocol):
    """What waiting asks of a shard."""

    keeper: Keeper
    database: bytes

    def recheck(self, owners: Sequence[Owner]) -> None: ...


class Waiting:
    """The waits of one locker."""

    def __init__(
        self,
        context: Context,
        listener: Listener,
        publisher: Publisher,
        owners: Mapping[int, Owner],
        shards: Sequence[WaitingShard],
    ) -> None:
        self._context = context
        self._loop = context.loop
        self._events = context.events
        self._listener = listener
        self._publisher = publisher
        self._owners = owners
        self._shards = shards
        self._buckets: dict[int, _Bucket] = {}
        self.watching: dict[Owner, tuple[Claim | None, float]] = {}
        """The keys that are waited for, with the claim last reported as waiting long and when to report it again."""
        self._asking = False
        self._recheck: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Wait for nothing more."""
        for bucket in [*self._buckets.values()]:
            self._close_bucket(bucket)
        self._buckets.clear()
        self.watching.clear()
        if self._recheck is not None:
            self._recheck.cancel()

    def wake_others(self, owner: Owner) -> None:
        """Publish that a key is free, and let its owner rest until the others have had their chance."""
        self._let_rest(owner, _REST_MOST)

        def told(error: Exception | None) -> None:
            if error is not None:
                self._events.emit(WakeFailed(keys=1, error=str(error)))
            if owner.rest is not None:
                round_trip = max((shard.keeper.round_trip or 0.0 for shard in self._shards), default=0.0)
                self._let_rest(owner, min(max(_REST, 2 * round_trip), _REST_MOST))

        channel = _channel(wake_bucket(owner.value)).encode()
        self._publisher.publish(channel, b"%d" % owner.value, _WakeUp(told))

    def _let_rest(self, owner: Owner, seconds: float) -> None:
        if owner.rest is not None:
            owner.rest.cancel()
        owner.rest = self._loop.call_later(seconds, owner.rested)

    def can_mark(self, owner: Owner) -> bool:
        """Whether the wake channel of a key is heard. If not yet, its owner is stepped when it is, or is given up."""
        number = wake_bucket(owner.value)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket(_channel(number), self._loop, self._woken)
            self._listener.listen(bucket.channel, bucket)
        if not owner.watching:
            owner.watching = True
            bucket.owners.add(owner)
            self.watch(owner)
        if bucket.hearing or bucket.unheard:
            return True
        if bucket.patience is None:
            bucket.patience = self._loop.call_later(_PATIENCE_FOR_LISTEN, bucket.give_up)
        return False

    def watch(self, owner: Owner) -> None:
        """Somebody waits for this key: look again from time to time, and report long waits."""
        self.watching.setdefault(owner, (None, 0.0))
        if self._recheck is None:
            self._schedule_recheck()

    def unwatch(self, owner: Owner) -> None:
        """Nobody waits for this key any more."""
        self.watching.pop(owner, None)
        if not owner.watching:
            return
        owner.watching = False
        number = wake_bucket(owner.value)
        bucket = self._buckets[number]
        bucket.owners.discard(owner)
        if not bucket.owners:
            del self._buckets[number]
            self._close_bucket(bucket)

    def _close_bucket(self, bucket: _Bucket) -> None:
        bucket.stop_patience()
        self._listener.unlisten(bucket.channel, bucket)

    def _woken(self, payload: bytes) -> None:
        try:
            owner = self._owners.get(int(payload))
        except ValueError:
            return
        if owner is None or not owner.queue:
            return
        owner.wake()

    # the re-check

    def _schedule_recheck(self) -> None:
        self._recheck = self._loop.call_later(_RECHECK * random.uniform(0.75, 1.25), self._look_again)

    def _look_again(self) -> None:
        if not self.watching:
            self._recheck = None
            return
        self._schedule_recheck()
        for shard in self._shards:
            if shard.up:
                shard.recheck([owner for owner in self.watching if owner.shard is shard])
        now = _now()
        overdue: list[tuple[Owner, Claim]] = []
        for owner, (known, limit) in self.watching.items():
            first = owner.queue[0] if owner.queue else None
            if first is not None and now - first.since >= (limit if first is known else _STILL_WAITING):
                overdue.append((owner, first))
        if overdue and not self._asking:
            for owner, first in overdue:
                self.watching[owner] = (first, now - first.since + _STILL_WAITING)
            self._report(overdue, now)

    def _report(self, overdue: Sequence[tuple[Owner, Claim]], now: float) -> None:
        """One question for all of them: listing locks costs the server and us more than a try does."""
        name = plain_name(self._context.application_name("lock", None))
        elsewhere: list[tuple[Owner, Claim]] = []
        for owner, claim in overdue:
            if owner.ours_alone:
                self._events.emit(
                    StillWaiting(key=claim.key.name, waited=now - claim.since, holder=f"{name}, in this process")
                )
            else:
                elsewhere.append((owner, claim))
        shard = next((shard for shard in self._shards if shard.keeper.link is not None), None)
        link = shard.keeper.link if shard is not None else None
        if not elsewhere or shard is None or link is None:
            return
        self._asking = True

        def answered(rows: Rows, error: Exception | None) -> None:
            self._asking = False
            if error is not None:
                return
            locks = [read_row(row) for row in rows]
            ours = next((row for row in locks if row.pid == link.pid), None)
            cycle = find_cycle(locks, process_name(ours.application, ours.pid)) if ours is not None else ()
            holders = Holders(locks)
            for owner, claim in elsewhere:
                holder = holders.of(owner.value)
                self._events.emit(
                    StillWaiting(
                        key=claim.key.name,
                        waited=now - claim.since,
                        holder=str(_named(holder)) if holder is not None else None,
                        cycle=cycle,
                    )
                )

        link.send(ALL_LOCKS, (shard.database,), answered)


def _channel(bucket: int) -> str:
    return f"pgconcert:wake1:{bucket:02x}"


def _named(row: LockRow) -> Holder:
    return Holder(row.pid, plain_name(row.application), row.shared)
