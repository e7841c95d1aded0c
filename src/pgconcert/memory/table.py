"""Who has what in a world, and who waits for it. Pure data: no thread, no loop, no clock; ``world.py`` sees to those.

Theory. A coordinator sits in the world on a *seat*, as a session sits on a server: what it asks for and what it has
hangs on the seat, and goes with it. An *ask* is one claim as the world knows it; it waits, has, or has gone. For each
key there are the asks that have it and one queue of those that wait, over all seats, in the order of their arrival. One
rule grants::

    an ask has the key as soon as it fits beside those who have it, and nobody who may go on waits before it

*Fits* is: nobody has it, or all are readers, or there is a permit left. So a writer that waits keeps later readers
outside, nobody is overtaken for ever, and an ask that does not want to wait has it at once or never.

A seat that is *out of reach* (a partition) keeps what it has, and those who wait on it are passed over until it can be
reached again: they could not be told.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from typing import Final

from ..backend import Claim, Holder
from ..errors import LockBudgetExceeded, PermitsDisagree
from .mailbox import Basket, Heard, Mailbox

__all__ = ["BUDGET", "Ask", "Seat", "Table", "Verdict"]

Verdict = bool | PermitsDisagree | LockBudgetExceeded
"""The answer to an ask: granted, refused, or not allowed."""

_LOCK_TABLE: Final = 64 * 100
"""What a PostgreSQL with default settings has room for: max_locks_per_transaction x max_connections."""

_ROOM: Final = _LOCK_TABLE * 3 // 4

BUDGET: Final = _LOCK_TABLE // 2
"""How many keys one coordinator may use at once, unless it is told otherwise."""


class Ask:
    """One claim as the world knows it."""

    __slots__ = ("claim", "had", "key", "permit", "permits", "queued", "seat", "shared", "value", "wait")

    def __init__(self, seat: Seat, claim: Claim) -> None:
        self.seat = seat
        self.claim = claim
        self.value = claim.key.value
        self.permits = claim.key.permits
        self.shared = claim.shared
        self.wait = claim.wait
        self.permit: int | None = None
        self.had = False
        self.queued = False
        """Whether somebody else was in the way."""
        self.key: _Key | None = None
        """Where it waits or has; None before and after."""


class Seat:
    """One connection of a coordinator with the world. ``pid`` is its number, which nobody else ever has."""

    __slots__ = ("application", "asks", "basket", "channels", "inside", "keys", "mailbox", "outside", "pid")

    def __init__(self, pid: int, application: str, mailbox: Mailbox[Ask, Verdict], basket: Basket) -> None:
        self.mailbox = mailbox
        self.basket = basket
        self.pid = pid
        self.application = application
        self.inside = True
        """Whether it can be reached."""
        self.asks: dict[Ask, None] = {}
        self.keys: dict[int, int] = {}
        """How many asks there are for each key."""
        self.channels: set[bytes] = set()
        self.outside: deque[Heard] = deque()
        """What would be in the basket, if the seat could be reached."""

    @property
    def waiting(self) -> int:
        """How many letters it has not taken."""
        return len(self.basket) + len(self.outside)

    def hand(self, letter: Heard) -> None:
        """Let it hear something."""
        if self.inside:
            self.basket.put(letter)
        else:
            self.outside.append(letter)

    def deliver(self) -> bool:
        """Have it read what there is. False if its event loop has ended."""
        return self.mailbox.deliver() and self.basket.deliver()

    def holder(self, shared: bool = False) -> Holder:
        """How it is named to people."""
        return Holder(self.pid, self.application, shared)


class _Key:
    __slots__ = ("has", "waits")

    def __init__(self) -> None:
        self.has: dict[Ask, None] = {}
        self.waits: OrderedDict[Ask, None] = OrderedDict()

    def fits(self, ask: Ask) -> bool:
        if ask.permits:
            return len(self.has) < ask.permits
        return not self.has or (ask.shared and next(iter(self.has)).shared)

    def take(self, ask: Ask) -> None:
        if ask.permits:
            taken = {other.permit for other in self.has}
            ask.permit = next(number for number in range(ask.permits) if number not in taken)
        ask.had = True
        self.has[ask] = None

    def go_on(self) -> list[Ask]:
        """Grant what can be granted now."""
        granted: list[Ask] = []
        while True:
            ask = next((ask for ask in self.waits if ask.seat.inside), None)
            if ask is None or not self.fits(ask):
                return granted
            del self.waits[ask]
            self.take(ask)
            granted.append(ask)


class Table:
    """All keys of a world. Whoever changes it gets back the asks that were granted by that, to tell them."""

    def __init__(self, world: str) -> None:
        self._world = world
        self._keys: dict[int, _Key] = {}
        self._used = 0

    @property
    def empty(self) -> bool:
        """Whether nobody has anything, nor waits for it."""
        return not self._keys and not self._used

    def ask(self, ask: Ask) -> Verdict | None:
        """Ask for a key. ``None``: it waits."""
        key = self._keys.get(ask.value) or _Key()
        error = self._other_permits(key, ask) or self._too_many(ask)
        if error is not None:
            return error
        waits = not key.fits(ask) or any(other.seat.inside for other in key.waits)
        if waits and not ask.wait:
            return False
        self._keys[ask.value] = ask.key = key
        seat = ask.seat
        seat.asks[ask] = None
        count = seat.keys.get(ask.value, 0)
        seat.keys[ask.value] = count + 1
        self._used += not count
        if waits:
            key.waits[ask] = None
            ask.queued = True
            return None
        key.take(ask)
        return True

    def leave(self, ask: Ask) -> list[Ask]:
        """Give back what it has, or wait no longer. Nothing happens if it has gone already."""
        key = self._forget(ask)
        return [] if key is None else self._go_on(key, ask.value)

    def end(self, seat: Seat) -> list[Ask]:
        """A seat ends, and all that it has goes with it."""
        left = [(key, ask.value) for ask in [*seat.asks] if (key := self._forget(ask)) is not None]
        return [granted for key, value in dict(left).items() for granted in self._go_on(key, value)]

    def reach(self, seat: Seat, inside: bool) -> list[Ask]:
        """A seat is out of reach, or can be reached again."""
        seat.inside = inside
        keys = {ask.value: ask.key for ask in seat.asks if ask.key is not None}
        return [granted for value, key in keys.items() for granted in self._go_on(key, value)] if inside else []

    def wanted(self, value: int, by_others_than: Seat) -> bool:
        """Whether another seat waits for a key."""
        key = self._keys.get(value)
        return key is not None and any(ask.seat is not by_others_than for ask in key.waits)

    def having(self, value: int) -> Sequence[Ask]:
        """Who has a key."""
        key = self._keys.get(value)
        return () if key is None else [*key.has]

    def holders(self, value: int) -> tuple[Holder, ...]:
        """Who has a key, as people are told: a seat once for a lock, and once for each permit of a semaphore."""
        having = self.having(value)
        seats: Iterable[Ask] = having if having and having[0].permits else {ask.seat: ask for ask in having}.values()
        return tuple(ask.seat.holder(ask.shared) for ask in seats)

    def cycle(self, start: Seat) -> tuple[str, ...]:
        """The shortest cycle of seats through ``start`` that wait for each other, or nothing."""
        came_from: dict[Seat, Seat] = {}
        front = [start]
        while front:
            following: list[Seat] = []
            for seat in front:
                for other in self._in_the_way_of(seat):
                    if other is start and seat is not start:
                        return _path(came_from, start, seat)
                    if other is not start and other not in came_from:
                        came_from[other] = seat
                        following.append(other)
            front = following
        return ()

    def _in_the_way_of(self, seat: Seat) -> Iterable[Seat]:
        waited = (ask.key for ask in seat.asks if not ask.had and ask.key is not None)
        return dict.fromkeys(holder.seat for key in waited for holder in key.has)

    def _forget(self, ask: Ask) -> _Key | None:
        key, ask.key = ask.key, None
        if key is None:
            return None
        del (key.has if ask.had else key.waits)[ask]
        seat = ask.seat
        del seat.asks[ask]
        seat.keys[ask.value] -= 1
        if not seat.keys[ask.value]:
            del seat.keys[ask.value]
            self._used -= 1
        return key

    def _go_on(self, key: _Key, value: int) -> list[Ask]:
        granted = key.go_on()
        if not key.has and not key.waits:
            self._keys.pop(value, None)
        return granted

    def _other_permits(self, key: _Key, ask: Ask) -> PermitsDisagree | None:
        other = next(iter(key.has), None) or next(iter(key.waits), None)
        if other is None or other.permits == ask.permits:
            return None
        who = "this process" if other.seat is ask.seat else str(other.seat.holder())
        return PermitsDisagree(
            f"the semaphore {ask.claim.key.name!r} is used by {who} with {other.permits} permits now, and was asked "
            f"for with {ask.permits}; give it one number everywhere (or another name), or wait until the others have "
            "stopped"
        )

    def _too_many(self, ask: Ask) -> LockBudgetExceeded | None:
        if self._used < _ROOM or ask.value in ask.seat.keys:
            return None
        return LockBudgetExceeded(
            f"the world {self._world} carries {self._used} locks, and a further one would pass three quarters of the "
            f"lock table that a server has by default ({_ROOM}); hold fewer locks at once"
        )


def _path(came_from: dict[Seat, Seat], start: Seat, last: Seat) -> tuple[str, ...]:
    path = [start, last]
    while last is not start:
        last = came_from[last]
        path.append(last)
    return tuple(str(seat.holder()) for seat in reversed(path))
