"""Who listens in a world, and what it keeps for messages. Pure data: no thread, no loop, no clock.

Theory. A seat listens to channels. A notification is put into the *basket* of every seat that listens to its channel,
in the order in which the world carries out what was handed in: that order is the same for everybody. For a seat that
is out of reach (a partition) it stays *outside*, and comes into the basket when the seat can be reached again.

The queue of a server holds what its slowest listener has not taken yet; when it is full nobody can publish anything, on
whatever channel. So it is here: as soon as one seat has not taken ``limit`` notifications, nothing is published.

Payloads are kept until their time is over, claims for an hour. Whoever adds something takes away what is over.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from .mailbox import Notification
from .table import Seat

__all__ = ["Exchange"]

_CLAIMED_FOR: Final = 3600.0


class Exchange:
    """Everything about messages in a world."""

    def __init__(self) -> None:
        self._listeners: dict[bytes, dict[Seat, None]] = {}
        self._slow: dict[Seat, None] = {}
        """Whose basket was half full, and is not a quarter full yet."""
        self._numbers = itertools.count(1)
        self._payloads: dict[int, tuple[float, bytes]] = {}
        self._ends: list[tuple[float, int]] = []
        self._claims: OrderedDict[tuple[str, str], float] = OrderedDict()

    def empty(self, now: float) -> bool:
        """Whether nobody listens, and nothing is kept whose time is not over."""
        kept = [end for end, _ in [*self._payloads.values()]] + [*self._claims.values()]
        return not self._listeners and all(end <= now for end in kept)

    # listening

    def listen(self, seat: Seat, channels: Iterable[bytes]) -> None:
        """A seat listens to channels from now on."""
        for channel in channels:
            self._listeners.setdefault(channel, {})[seat] = None
            seat.channels.add(channel)

    def unlisten(self, seat: Seat, channel: bytes) -> None:
        """A seat listens to a channel no more. Nothing happens if it does not."""
        listeners = self._listeners.get(channel)
        if listeners is not None and seat in listeners:
            del listeners[seat]
            seat.channels.discard(channel)
            if not listeners:
                del self._listeners[channel]

    def end(self, seat: Seat) -> None:
        """A seat ends."""
        for channel in [*seat.channels]:
            self.unlisten(seat, channel)
        self._slow.pop(seat, None)
        seat.outside.clear()

    # publishing

    def held_up_by(self, limit: int) -> Seat | None:
        """The seat because of which nothing can be published, if there is one."""
        for seat in [*self._slow]:
            if seat.waiting >= limit:
                return seat
            if seat.waiting * 4 < limit:
                del self._slow[seat]
        return None

    def publish(self, notification: Notification, limit: int) -> tuple[Sequence[Seat], Seat | None]:
        """Hand a notification out: who has got it, and a seat that has half as many as it may have, if that is new."""
        filling: Seat | None = None
        seats = [*self._listeners.get(notification.channel, ())]
        for seat in seats:
            seat.hand(notification)
            if seat.waiting * 2 >= limit and seat not in self._slow:
                self._slow[seat] = None
                filling = seat
        return seats, filling

    # what is kept

    def spill(self, payload: bytes, now: float, ttl: float) -> int:
        """Keep a payload for ``ttl`` seconds: its number, which no other ever has."""
        self._purge(now)
        number = next(self._numbers)
        self._payloads[number] = (now + ttl, payload)
        heapq.heappush(self._ends, (now + ttl, number))
        return number

    def fetch(self, number: int, now: float) -> bytes | None:
        """A kept payload, if it is still there."""
        self._purge(now)
        return self._payloads.get(number, (0.0, None))[1]

    def claim(self, scope: str, message_id: str, now: float) -> bool:
        """Whether nobody has claimed this within the last hour."""
        self._purge(now)
        if (scope, message_id) in self._claims:
            return False
        self._claims[scope, message_id] = now + _CLAIMED_FOR
        return True

    def forget(self) -> None:
        """Keep nothing: everybody has left."""
        self._payloads.clear()
        self._ends.clear()
        self._claims.clear()

    def _purge(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            del self._payloads[heapq.heappop(self._ends)[1]]
        while self._claims and next(iter(self._claims.values())) <= now:
            self._claims.popitem(last=False)
