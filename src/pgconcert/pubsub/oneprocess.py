"""One process handles a channel, the others stand by.

For each channel there is a lock, and who has it is active; the others listen as well and throw away, so that taking
over needs no LISTEN. States: *standby --lock granted, stream proven--> active --lock lost--> standby*.

After the grant a proof runs through the own stream: what comes before its return was sent while another process was
active, or nobody, and is thrown away. So no message is handled twice because of a take-over; what nobody handled is
covered by the gap with which a take-over begins. If the proof fails, the lock goes back: whoever does not hear must not
keep others from it.

The lock and the messages come by two connections, and a process that was stopped finds both readable when it goes on.
So what comes after a pause of 50 ms is kept back until the lock's own connection has answered: then the lock was ours
when it came, or the loss is known. A lost lock ends the activity at once, and what was queued of that
channel is dropped, because another process may handle messages now.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final, cast

from ..acquiring import Register
from ..backend import Confirming
from ..errors import BrokerClosed, Unavailable
from ..events import ActiveChanged
from ..hold import AsyncHold
from ..keys import LockKey
from ..locks import AsyncLock
from .broker import Broker
from .channels import HANDLER_KEY
from .delivery import Deliverer
from .message import Gap, Message
from .overflow import ENDED, Inbox, Sink

__all__ = ["OneProcess", "one_process_key"]

_PAUSE: Final = 0.5
_FLOW: Final = 0.05
_MOST_KEPT: Final = 10_000


class OneProcess(Deliverer):
    """One turn for each channel."""

    def __init__(
        self,
        broker: Broker,
        locks: Register,
        channels: tuple[str, ...],
        inbox: Inbox[Message],
        inner: Sink[Message],
    ) -> None:
        self._broker = broker
        self._tasks: list[asyncio.Task[object]] = []
        self._turns = {name: _Turn(broker, locks, name, inbox, inner) for name in channels}
        self.sinks = self._turns

    @property
    def active(self) -> bool:
        return all(turn.active for turn in self._turns.values())

    async def begin(self, timeout: float | None) -> None:
        registered = [turn.registered for turn in self._turns.values()]
        self._tasks = [
            self._broker.task(turn.run(), f"pgconcert one process for {name}") for name, turn in self._turns.items()
        ]
        for turn, task in zip(self._turns.values(), self._tasks, strict=True):
            task.add_done_callback(turn.over)
        done, _ = await asyncio.wait(registered, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        failures = [failure for future in done if (failure := future.exception()) is not None]
        if failures:
            raise failures[0]
        if len(done) < len(registered):
            raise Unavailable(f"the locks of delivery='one-process' could not be asked for within {timeout:g} s")

    async def end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class _Turn:
    """The turns of this process with one channel."""

    def __init__(
        self, broker: Broker, locks: Register, channel: str, inbox: Inbox[Message], inner: Sink[Message]
    ) -> None:
        self._broker = broker
        self._put = inner.put
        self._locks = locks
        self._channel = channel
        self._inbox = inbox
        self._locker = cast("Confirming", locks.locker)
        self._hold: AsyncHold | None = None
        self._kept: list[Message | Gap] | None = None
        """What came after a pause, and waits for a word of the lock's connection."""
        self._flowed = -_FLOW
        self._standby_since = time.time()
        self.registered: asyncio.Future[None] = broker.loop.create_future()
        self.fail = inbox.fail

    @property
    def active(self) -> bool:
        """Whether this process handles the channel now."""
        return self._hold is not None and not self._hold.lost

    def put(self, message: Message) -> None:
        """Queue it, while it is our turn."""
        hold = self._hold
        if hold is None or hold.lost:
            return
        now = time.monotonic()
        if self._kept is None and now - self._flowed < _FLOW:
            self._flowed = now
            self._put(message)
        else:
            self._keep(message, hold)

    def gap(self, gap: Gap) -> None:
        """Messages were missed, while it was our turn."""
        if self._kept is not None:
            self._kept.append(gap)
        elif self.active:
            self._inbox.gap(gap)

    def _keep(self, message: Message, hold: AsyncHold) -> None:
        """Keep a message back until it is known that the lock was ours when it came."""
        if self._kept is None:
            self._kept = []
            confirmed: asyncio.Future[bool] = self._broker.loop.create_future()
            confirmed.add_done_callback(self._confirmed)
            self._locker.confirm(hold._grant, confirmed)
        if len(self._kept) < _MOST_KEPT:
            self._kept.append(message)
        else:
            at = message.received
            lost = Gap(reason="overflow", count=1, since=at, until=at, channels=(self._channel,))
            last = self._kept[-1]
            if isinstance(last, Gap):
                self._kept[-1] = last.joined(lost)
            else:
                self._kept.append(lost)

    def _confirmed(self, confirmed: asyncio.Future[bool]) -> None:
        kept, self._kept = self._kept, None
        if confirmed.cancelled() or not confirmed.result() or not self.active:
            return  # the loss is told where it is noticed
        self._flowed = time.monotonic()
        for item in kept or ():
            if isinstance(item, Gap):
                self._inbox.gap(item)
            else:
                self._put(item)

    async def run(self) -> None:
        """Take turns, until cancelled."""
        try:
            while True:
                hold, waited = await self._granted()
                try:
                    proven = await self._proven()
                    if proven and not hold.lost:
                        await self._be_active(hold, waited)
                finally:
                    self._hold = None
                    await hold.release()
                if not proven:
                    await asyncio.sleep(_PAUSE)  # who hears may go first
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not self.registered.done():
                self.registered.set_exception(error)
            else:
                self._inbox.fail(error)

    def over(self, task: asyncio.Task[object]) -> None:
        """The task has ended, before its first step perhaps."""
        if not self.registered.done():
            self.registered.set_exception(BrokerClosed(ENDED))
        if not self.registered.cancelled():
            self.registered.exception()  # read: an entry that was left does not ask

    async def _granted(self) -> tuple[AsyncHold, bool]:
        lock = AsyncLock(self._locks, one_process_key(self._broker, self._channel), None, "report", False)
        while True:
            try:
                hold = None if self.registered.done() else await lock.try_acquire()
                if hold is not None:
                    return hold, False
                self._registered()
                return await lock.acquire(math.inf), True
            except Unavailable:
                await asyncio.sleep(_PAUSE)

    async def _proven(self) -> bool:
        """Return when everything is heard that was sent before we had the lock. False if we do not hear."""
        answer: asyncio.Future[float] = self._broker.loop.create_future()
        self._broker.messenger.prove(answer)
        try:
            await answer
        except Unavailable:
            return False
        self._broker.forget_held(self._channel, self)
        return True

    async def _be_active(self, hold: AsyncHold, waited: bool) -> None:
        now = time.time()
        if waited:
            self._inbox.gap(
                Gap(reason="takeover", count=None, since=self._standby_since, until=now, channels=(self._channel,))
            )
        self._hold = hold
        self._registered()
        self._tell(True, "it took over" if waited else "nobody else did")
        reason = await hold.wait_lost()
        self._hold = None
        self._standby_since = time.time()
        kept, self._kept = self._kept or (), None
        dropped = self._inbox.drop(self._channel) + sum(isinstance(item, Message) for item in kept)
        if dropped:
            self._inbox.gap(
                Gap(
                    reason="takeover",
                    count=dropped,
                    since=now,
                    until=self._standby_since,
                    channels=(self._channel,),
                )
            )
        self._tell(False, reason)

    def _registered(self) -> None:
        if not self.registered.done():
            self.registered.set_result(None)

    def _tell(self, active: bool, reason: str) -> None:
        self._broker.events.emit(ActiveChanged(channel=self._channel, active=active, reason=reason))


def one_process_key(broker: Broker, channel: str) -> LockKey:
    """The lock of a channel that one process handles: that of ``channel_lock`` too."""
    return broker.keys.key(HANDLER_KEY + channel)
