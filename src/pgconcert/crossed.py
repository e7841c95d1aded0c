"""The ports of a backend on the engine thread, as a coordinator on another loop sees them.

Theory. A request crosses to the engine, and its waiter is replaced by one that settles the caller's on the caller's
loop. A claim that is granted while its caller leaves is undone as always, because leaving is a message that crosses
after it.

What an ear hears crosses like an answer, in its order: a proof is answered behind all that was heard before. Whether an
ear has left is known on its own loop; so nothing reaches it after ``unlisten``, whatever is still on the way. A loop
that stands still would let notifications pile up without end. Its ear is told so: from a fixed number on it is deaf,
and what comes is thrown away, until its loop has got as far as that word; then it is ready again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar, cast

from .backend import Claim, Confirming, Describer, Holder, Locker
from .crossing import Crossing
from .errors import BrokerClosed, CoordinatorClosed
from .hold import Grant, Waiter
from .keys import LockKey
from .messenger import Answer, Ear, Hearing, Messenger

__all__ = ["CrossedLocker", "CrossedMessenger", "CrossedWaiter"]

T = TypeVar("T")

MOST_ON_THE_WAY: Final = 1_000_000
"""How many notifications may be between the engine and the loop of one coordinator."""


class CrossedWaiter(Generic[T]):
    """Stands for a caller's future, or any other answer, on the engine's side."""

    __slots__ = ("_answer", "_back", "_settled")

    def __init__(self, answer: Answer[T], back: Crossing) -> None:
        self._answer = answer
        self._back = back
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: T, /) -> None:
        self._settled = True
        self._back.post(lambda: None if self._answer.done() else self._answer.set_result(result))

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._back.post(lambda: None if self._answer.done() else self._answer.set_exception(exception))


class CrossedLocker:
    """The port ``Locker`` of a backend on the engine thread."""

    def __init__(self, locker: Locker, there: Crossing, back: Crossing) -> None:
        self._locker = locker
        self._there = there
        self._back = back
        self.closed = False
        """Set before the closing crosses: whatever is asked later is answered here."""

    def acquire(self, claim: Claim) -> None:
        if self.closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        claim.waiter = self._crossed(claim.waiter)
        self._there.post(lambda: self._locker.acquire(claim))

    def withdraw(self, claim: Claim) -> None:
        self._there.post(lambda: self._locker.withdraw(claim))

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        if self.closed:
            for claim in claims:
                claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        for claim in claims:
            claim.waiter = self._crossed(claim.waiter)
        self._there.post(lambda: self._locker.acquire_all(claims))

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        self._give_back(waiter, lambda crossed: self._locker.release(claim, crossed))

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        self._give_back(waiter, lambda crossed: self._locker.release_all(claims, crossed))

    def _give_back(self, waiter: Waiter | None, ask: Callable[[Waiter | None], None]) -> None:
        if self.closed:
            if waiter is not None and not waiter.done():
                waiter.set_result(True)
            return
        crossed = None if waiter is None else self._crossed(waiter)
        self._there.post(lambda: ask(crossed))

    def drop(self, claim: Grant) -> None:
        self._there.post(lambda: self._locker.drop(claim))

    def confirm(self, claim: Grant, waiter: Waiter) -> None:
        """Cross as a request does. There from the backends that carry messages."""
        if self.closed:
            waiter.set_result(False)
            return
        crossed = self._crossed(waiter)
        confirming = cast("Confirming", self._locker)
        self._there.post(lambda: confirming.confirm(claim, crossed))

    def describe(self, key: LockKey, waiter: Describer) -> None:
        assert isinstance(waiter, asyncio.Future)
        if self.closed:
            waiter.set_result(())
            return
        crossed: CrossedWaiter[Sequence[Holder]] = CrossedWaiter(waiter, self._back)
        self._there.post(lambda: self._locker.describe(key, crossed))

    def _crossed(self, waiter: Waiter) -> Waiter:
        assert isinstance(waiter, asyncio.Future)
        return CrossedWaiter(waiter, self._back)


class _Counts:
    """How many notifications have left the engine, counted there, and have arrived, counted on the caller's loop."""

    __slots__ = ("arrived", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.arrived = 0


class _CrossedEar:
    """Stands for a caller's ear on the engine's side. ``over`` is set and read on the caller's loop alone."""

    __slots__ = ("_back", "_counts", "_ear", "_overrun", "over")

    def __init__(self, ear: Ear, back: Crossing, counts: _Counts) -> None:
        self.over = False
        self._ear = ear
        self._back = back
        self._counts = counts
        self._overrun = False
        """Whether what comes is thrown away. Set on the engine and reset on the caller's loop, in turns."""

    # on the engine

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        if self._overrun:
            return
        counts = self._counts
        if counts.sent - counts.arrived >= MOST_ON_THE_WAY:
            self._overrun = True
            self._back.post(self._overran)
            return
        counts.sent += 1
        self._back.post(partial(self._hear, payload, pid, own))

    def ready(self) -> None:
        self._back.post(partial(self._tell, self._ear.ready))

    def deaf(self, reason: str) -> None:
        self._back.post(partial(self._tell, self._ear.deaf, reason))

    def failed(self, error: Exception) -> None:
        self._back.post(partial(self._tell, self._ear.failed, error))

    # on the caller's loop

    def _hear(self, payload: bytes, pid: int, own: bool) -> None:
        self._counts.arrived += 1
        if not self.over:
            self._ear.heard(payload, pid, own)

    def _tell(self, call: Callable[..., None], *arguments: object) -> None:
        if not self.over:
            call(*arguments)

    def _overran(self) -> None:
        self._tell(self._ear.deaf, f"the event loop stood still while {MOST_ON_THE_WAY:,} notifications came")
        self._overrun = False  # whatever is thrown away is thrown away before this
        self._tell(self._ear.ready)


class CrossedMessenger:
    """The port ``Messenger`` of a backend on the engine thread."""

    def __init__(self, messenger: Messenger, there: Crossing, back: Crossing) -> None:
        self._messenger = messenger
        self._there = there
        self._back = back
        self._counts = _Counts()
        self._ears: dict[tuple[str, int], _CrossedEar] = {}
        self.closed = False
        """Set before the closing crosses: whatever is asked later is answered here."""

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        self._ask(partial(self._messenger.publish, channel, payload), answer)

    def listen(self, channel: str, ear: Ear) -> None:
        if (channel, id(ear)) in self._ears:
            return
        crossed = _CrossedEar(ear, self._back, self._counts)
        if self._cross(partial(self._messenger.listen, channel, crossed)):
            self._ears[channel, id(ear)] = crossed
        else:
            ear.failed(_closed())

    def unlisten(self, channel: str, ear: Ear) -> None:
        crossed = self._ears.pop((channel, id(ear)), None)
        if crossed is not None:
            crossed.over = True
            self._cross(partial(self._messenger.unlisten, channel, crossed))

    def prove(self, answer: Answer[float]) -> None:
        self._ask(self._messenger.prove, answer)

    def bounce(self, reason: str) -> None:
        self._cross(partial(self._messenger.bounce, reason))

    def hearing(self) -> Hearing:
        return self._messenger.hearing()

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        self._ask(partial(self._messenger.spill, payload, ttl), answer)

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        self._ask(partial(self._messenger.fetch, number), answer)

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        self._ask(partial(self._messenger.claim, scope, message_id), answer)

    def _ask(self, ask: Callable[[Answer[T]], None], answer: Answer[T]) -> None:
        crossed: CrossedWaiter[T] = CrossedWaiter(answer, self._back)
        if not self._cross(lambda: ask(crossed)):
            answer.set_exception(_closed())

    def _cross(self, call: Callable[[], None]) -> bool:
        """Run a call on the engine, unless that is over for us."""
        return not self.closed and self._there.post(call)


def _closed() -> BrokerClosed:
    return BrokerClosed("the coordinator is closed")
