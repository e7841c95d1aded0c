"""How messages get from a subscription on the engine to the threads that take them: in batches, through a queue.

Theory. The inbox of a subscription is touched on the engine only. A *feed* stands beside it there, and moves what waits
into ``ready``, a queue that threads pop by themselves: whoever finds it empty asks the engine, which moves a batch and
wakes one thread for each item. So there is one crossing for a batch, and none while something is in hand. A batch is
small beside the capacity, so that overflow stays honest, for what is in hand counts as taken.

What is in hand belongs to no thread. One that was woken and leaves all the same (Ctrl-C, a time limit) says so, and
another is woken in its place; what it has not taken stays where it is. Taking itself cannot be torn: see ``pops``.

States: *open*, and *ended* with the error that everybody gets behind what is in hand: that of the inbox, or, when the
coordinator was closed, all that the inbox had is put into their hands first, because no engine is left that could be
asked. A feed that was *closed* by its own subscription has nothing in hand. A forked child finds every feed ended.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from typing import Any, Final, Generic, TypeVar

from ..errors import BrokerClosed, CoordinatorClosed
from ..pubsub.message import Gap
from ..pubsub.overflow import Inbox, Item
from ..pubsub.subscription import ENDED
from .engine import Call

__all__ = ["Feed", "batch"]

I = TypeVar("I")  # noqa: E741
M = TypeVar("M", bound=Item)

_MOST: Final = 64
_SHARE: Final = 16


def batch(capacity: int) -> int:
    """How many messages are moved at once, at most."""
    return min(_MOST, max(1, capacity // _SHARE))


class Feed(Generic[I, M]):
    """What stands between an inbox and its threads. Lives on the engine, but for ``ready``, ``pops`` and ``ended``."""

    def __init__(
        self, inbox: Inbox[M], most: int, given: Callable[[M | Gap], I], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.ready: Final[deque[I]] = deque()
        """What is in hand. Only the engine puts something in, and any thread takes from the front."""
        self.pops: Final = starmap(self.ready.popleft, repeat(()))
        """``for item in pops`` takes one, or raises ``IndexError``. A loop that begins looks for no signals, as a call
        would: so no handler of a signal can raise while an item is on its way from the queue to a variable."""
        self.ended: Exception | None = None
        """What is raised behind what is in hand. Set when nothing is put in hand any more."""
        self.closed = False
        """Whether its own subscription was closed."""
        self._inbox = inbox
        self._most = most
        self._given = given
        self._loop = loop
        self._getters: deque[Call[bool]] = deque()
        _feeds.add(self)

    def ask(self, call: Call[bool], stay: bool) -> None:
        """A thread has found nothing in hand. True: it shall look again. False: there is nothing, and it would not
        ``stay``."""
        if self.ready or self.ended is not None:
            call.set_result(True)
            return
        self._getters.append(call)
        self._serve()
        if not stay and not call.settled:
            self._getters.remove(call)
            call.set_result(False)

    def forget(self, call: Call[bool]) -> None:
        """A thread leaves. If it was told to look, another looks."""
        if call in self._getters:
            self._getters.remove(call)
        self._serve()

    def close(self) -> None:
        """The subscription was closed: what is in hand is dropped."""
        self.closed = True
        self._end(BrokerClosed(ENDED))
        self.ready.clear()

    def drain(self) -> None:
        """The coordinator was closed: put everything in hand."""
        while self._fill():
            pass
        self._end(BrokerClosed("the coordinator was closed"))

    def abandon(self) -> None:
        """In a forked child: there is nothing here."""
        self.ended = CoordinatorClosed("this subscription belongs to the process that was forked")
        self.ready.clear()

    def _end(self, error: Exception) -> None:
        if self.ended is None or self.closed:
            self.ended = error
        self._serve()

    def _serve(self) -> None:
        """Wake as many as will find something."""
        getters = self._getters
        woken = 0
        while getters and (len(self.ready) > woken or self._fill() or self.ended is not None):
            getters.popleft().set_result(True)
            woken += 1
        self._inbox.wake = self._woken if getters else None

    def _woken(self) -> None:
        # what comes in one read of the socket shall be one batch
        self._inbox.wake = None
        self._loop.call_soon(self._serve)

    def _fill(self) -> bool:
        """Put a batch in hand. False if there was nothing."""
        if self.ended is not None:
            return False
        inbox, ready, given = self._inbox, self.ready, self._given
        moved = 0
        try:
            while moved < self._most and (item := inbox.take()) is not None:
                ready.append(given(item))
                moved += 1
        except Exception as error:
            if not moved:
                self.ended = error
        return moved > 0


_feeds: weakref.WeakSet[Feed[Any, Any]] = weakref.WeakSet()


def _forked() -> None:
    for feed in _feeds:
        feed.abandon()
    _feeds.clear()


os.register_at_fork(after_in_child=_forked)
