"""A world: what the coordinators of one ``memory://name`` share, from whatever thread and event loop.

Theory. Nobody ever waits for the world, so that a finaliser, which may run in the middle of anything, can speak to it
like everybody else. Whoever has something to say hands in a *message* and then tries for the world's one lock. Who gets
it carries out all messages that lie there, in their order; who does not get it goes away, because the one who has it
looks again after letting it go. Messages change the table (``table.py``), the exchange (``exchange.py``) and the ledger
(``ledger.py``), and write letters (``mailbox.py``), which are delivered when the lock is free again: no code of anybody
else ever runs under it.

A world is found by its name and lives as long as a backend (or a test) has it. A child made by ``fork`` finds its
worlds empty: what was in them belongs to the parent.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol, TypeVar

from ..backend import WAITING, Holder
from ..clock import Clock, RealClock
from ..errors import ConfigurationError, NotifyQueueFull
from ..store import Request
from .exchange import Exchange
from .ledger import Ledger
from .mailbox import Basket, Mailbox, Notification
from .table import Ask, Seat, Table, Verdict

__all__ = ["Member", "World"]

T = TypeVar("T")

Published = Callable[[NotifyQueueFull | None, Seat | None], None]
"""Learns why something was not published, or else which seat has its queue half full by now, if that is new."""

_FORBIDDEN: Final = frozenset("?#@ \t\r\n\0")


class Member(Protocol):
    """A coordinator in a world."""

    @property
    def seat(self) -> Seat | None:
        """Its connection now. From any thread."""

    def forked(self) -> None:
        """In a forked child: nothing is ours any more."""

    def failed_over(self, reason: str) -> None:
        """The world goes on elsewhere, and the connection with it is lost. From any thread."""


class World:
    """The shared world of one name. Get it with ``World.named``; keep it, and the name keeps its clock."""

    _worlds: Final[weakref.WeakValueDictionary[str, World]] = weakref.WeakValueDictionary()
    _finding = threading.Lock()
    _pids: Final = itertools.count(1)

    def __init__(self, name: str, clock: Clock) -> None:
        self.name: Final = name
        self.clock: Final = clock
        self.queue_limit = 1_000_000
        """How many notifications may wait for one coordinator; with so many nobody can publish. Lower it in a test."""
        self._begin()

    def _begin(self) -> None:
        self.table = Table(str(self))
        self.exchange = Exchange()
        self.ledger = Ledger(time.time() - self.clock.now())
        self.members: set[Member] = set()
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy = threading.Lock()
        self._told: dict[Seat, None] = {}

    @classmethod
    def named(cls, name: str, *, clock: Clock | None = None) -> World:
        """The world of this name in this process; made with ``clock``, if there is none yet.

        Raises ``ConfigurationError`` for a name that is empty or no name, and for a clock that is not the world's.
        """
        if not name or not _FORBIDDEN.isdisjoint(name):
            raise ConfigurationError(
                f"memory:// needs the name of a world without blanks and parameters, such as memory://test, not "
                f"{name!r:.100}; coordinators that give one name share it"
            )
        with cls._finding:
            world = cls._worlds.get(name)
            if world is None:
                world = cls._worlds[name] = cls(name, clock or RealClock())
        world.check(clock)
        return world

    def check(self, clock: Clock | None) -> None:
        """Raise ``ConfigurationError`` for a clock that is not this world's."""
        if clock is not None and self.clock is not clock:
            raise ConfigurationError(f"{self} exists already with another clock; whoever comes first decides on it")

    @property
    def empty(self) -> bool:
        """Whether nobody has anything here, waits for it or listens, no session is alive, and no task, payload or
        claim of a message is kept.

        These are kept until they are done, their time is over, or the last coordinator has left. Safe from any thread.
        """
        now = self.clock.now()
        return self.table.empty and self.exchange.empty(now) and self.ledger.empty(now)

    def send(self, message: Callable[[], None]) -> None:
        """Have a message carried out, now or by whoever is at it. Never waits."""
        self._inbox.append(message)
        while self._inbox:
            if not self._busy.acquire(blocking=False):
                return
            try:
                while self._inbox:
                    self._inbox.popleft()()
            finally:
                told, self._told = self._told, {}
                self._busy.release()
            for seat in told:
                if not seat.deliver():
                    self._inbox.append(partial(self.end, seat))

    def seat(self, application: str, mailbox: Mailbox[Ask, Verdict], basket: Basket) -> Seat:
        """A new seat. It is in the table with its first ask."""
        return Seat(next(self._pids), application, mailbox, basket)

    def leave_for_good(self, member: Member) -> None:
        """A coordinator leaves. The last one takes with it what is kept."""
        self.members.discard(member)
        self.send(self._forget)

    def fail_over(self, reason: str = "the server failed over to another, because a test wanted it") -> None:
        """Go on as another incarnation, as if a standby had been promoted: all connections are lost, and made anew.

        Sessions live on, each with one ttl of grace from now on until it is renewed; tokens have the next epoch. From
        any thread; a coordinator on another loop loses its connection there.
        """
        self.send(lambda: self.ledger.fail_over(self.clock.now()))
        members = [*self.members]
        for seat in [member.seat for member in members]:
            if seat is not None:
                # so that nobody is given what another loses, only to lose it as well
                self.send(partial(self.reach, seat, False))
        for member in members:
            member.failed_over(reason)

    # messages: carried out by ``send`` alone

    def ask(self, ask: Ask) -> None:
        """Ask for a key. The seat's mailbox gets the answer, unless it waits."""
        if ask.claim.state != WAITING:
            return  # whoever asked has left while the message was under way
        for other in self.table.having(ask.value):
            if other.seat.mailbox.dead:
                self.end(other.seat)
        verdict = self.table.ask(ask)
        if verdict is not None:
            self._answer(ask, verdict)

    def leave(self, ask: Ask, told: Callable[[bool], None] | None) -> None:
        """Give something back, or wait no longer. ``told`` learns whether another seat waits for it."""
        if told is not None:
            wanted = self.table.wanted(ask.value, ask.seat)
            self._write(ask.seat, lambda: told(wanted))
        self._granted(self.table.leave(ask))

    def end(self, seat: Seat) -> None:
        """A seat ends, and all that it has goes with it."""
        self._granted(self.table.end(seat))
        self.exchange.end(seat)

    def reach(self, seat: Seat, inside: bool) -> None:
        """A seat is out of reach, or can be reached again: then it hears what it has not heard meanwhile."""
        self._granted(self.table.reach(seat, inside))
        if inside:
            while seat.outside:
                seat.basket.put(seat.outside.popleft())
            self._told[seat] = None

    def look(self, seat: Seat, value: int, told: Callable[[tuple[Holder, ...], tuple[str, ...]], None]) -> None:
        """Who has a key, and which seats wait for each other in a circle with this one."""
        holders, cycle = self.table.holders(value), self.table.cycle(seat)
        self._write(seat, lambda: told(holders, cycle))

    def listen(self, seat: Seat, channels: Iterable[bytes], told: Callable[[], None]) -> None:
        """Listen to channels. ``told`` is called before what is published from now on is heard."""
        self.exchange.listen(seat, channels)
        self.echo(seat, told)

    def unlisten(self, seat: Seat, channel: bytes) -> None:
        """Listen to a channel no more."""
        self.exchange.unlisten(seat, channel)

    def echo(self, seat: Seat, told: Callable[[], None]) -> None:
        """Have a seat hear ``told``, behind everything that was published before."""
        seat.hand(told)
        self._told[seat] = None

    def publish(self, seat: Seat, channel: bytes, payload: bytes, told: Published) -> None:
        """Publish. ``told`` learns what came of it."""
        blocker = self.exchange.held_up_by(self.queue_limit)
        if blocker is not None:
            self._write(seat, partial(told, self._full(blocker), None))
            return
        heard, filling = self.exchange.publish(Notification(channel, payload, seat.pid, seat.basket), self.queue_limit)
        for other in heard:
            self._told[other] = None
        self._write(seat, partial(told, None, filling))

    def keep(self, seat: Seat, ask: Callable[[Exchange, float], T], told: Callable[[T], None]) -> None:
        """Ask for what is kept; ``told`` learns the answer."""
        answer = ask(self.exchange, self.clock.now())
        self._write(seat, lambda: told(answer))

    def carry_out(self, seat: Seat, request: Request[T], owner: object, told: Callable[[T], None]) -> None:
        """Carry out what is asked about sessions and tasks; ``told`` learns the answer."""
        answer = self.ledger.carry_out(request, self.clock.now(), owner)
        self._write(seat, lambda: told(answer))

    def expire_sessions(self, owner: object) -> None:
        """The time of all sessions of one coordinator is over."""
        self.ledger.expire(owner, self.clock.now())

    def _forget(self) -> None:
        if not self.members:
            self.exchange.forget()
            self.ledger.forget(self.clock.now())

    def _full(self, blocker: Seat) -> NotifyQueueFull:
        return NotifyQueueFull(
            f"{blocker.holder()} has {blocker.waiting} notifications of {self} that it has not taken, and no more "
            f"than {self.queue_limit} are kept, so nobody can publish: its event loop is blocked, or it is cut off"
        )

    def _granted(self, asks: Iterable[Ask]) -> None:
        for ask in asks:
            self._answer(ask, True)

    def _answer(self, ask: Ask, verdict: Verdict) -> None:
        ask.seat.mailbox.answer(ask, verdict)
        self._told[ask.seat] = None

    def _write(self, seat: Seat, letter: Callable[[], None]) -> None:
        seat.mailbox.write(letter)
        self._told[seat] = None

    def _forked(self) -> None:
        members = [*self.members]
        self._begin()
        for member in members:
            member.forked()

    def __str__(self) -> str:
        return f"memory://{self.name}"

    def __repr__(self) -> str:
        return f"<World {self} {len(self.members)} coordinators>"

    @classmethod
    def _after_fork_in_child(cls) -> None:
        cls._finding = threading.Lock()
        for world in [*cls._worlds.values()]:
            world._forked()


os.register_at_fork(after_in_child=World._after_fork_in_child)
