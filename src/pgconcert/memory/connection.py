"""The connection of one coordinator with its world: how it breaks, and how it comes back.

Theory. A connection is a seat in the world, or nothing. Its states::

    connected   messages pass
    cut off     (a partition) messages are kept, in order, and letters stay outside; after ``network_timeout`` of this
                the connection is lost; if the cut heals before, what was kept passes, as if it had only been slow
    lost        there is no seat; ``trouble`` says why. A new one is taken at once, unless the cut lasts or somebody
                has said to stay away until ``reconnect``

The owner is told of a loss *before* the world is, so nobody else can have what the owner does not know to be lost.
Times are those of the world's clock, from the beginning of the first cut that lasts.

Everything here runs on the owner's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ..clock import Timer
from ..events import EventStream, LinkClosed, LinkLost, LinkOpened
from ..hold import Waiter
from .mailbox import Basket, Mailbox, running_on
from .table import Ask, Seat, Verdict
from .world import World

__all__ = ["Connection", "ConnectionOwner", "Follower", "settle"]

Message = Callable[[], None]


class Follower(Protocol):
    """Whoever speaks through the connection."""

    def link_up(self, seat: Seat, /) -> None:
        """There is a new seat, on which nothing was asked."""

    def link_down(self, reason: str, /) -> None:
        """All that was on the seat is lost. Others can have it when this has returned, and not before."""


class ConnectionOwner(Follower, Protocol):
    """Whoever has claims on the connection."""

    def answered(self, ask: Ask, verdict: Verdict, /) -> None:
        """The world has answered an ask; one of a seat that was lost, perhaps."""


class Connection:
    """One coordinator's way to its world."""

    def __init__(
        self,
        world: World,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        owner: ConnectionOwner,
        *,
        name: str,
        network_timeout: float,
    ) -> None:
        self.seat: Seat | None = None
        self.trouble: str | None = None
        """Why there is no connection; None while there is one."""
        self.ended = False
        self.messages = 0
        self._world = world
        self._loop = loop
        self._events = events
        self._followers: list[Follower] = [owner]
        self._name = name
        self._network_timeout = network_timeout
        self._mailbox = Mailbox(loop, owner.answered)
        self.basket = Basket(loop)
        self._away = False
        self._cuts: set[object] = set()
        self._cut_by: object | None = None
        """The first of the cuts that lasts without a gap."""
        self._kept: list[tuple[Message, Waiter | None]] = []
        self._silence: Timer | None = None
        self._lost_at: float | None = None

    def follow(self, follower: Follower) -> None:
        """Tell somebody else of the seats, too."""
        self._followers.append(follower)
        if self.seat is not None:
            follower.link_up(self.seat)

    def missing(self) -> str:
        """What to tell those who need a connection while there is none."""
        return f"there is no connection to {self._world} now: {self.trouble}"

    def post(self, call: Message) -> None:
        """Run ``call`` on the loop: now, if it is the one that runs here. From any thread."""
        if self.ended:
            return
        if running_on(self._loop):
            call()
            return
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            pass  # the loop has ended, and whoever meets our seat in the world ends that

    def send(self, message: Message, waiter: Waiter | None = None) -> None:
        """Have the world carry out a message; then the waiter gets ``True``. Kept for later while cut off."""
        if self._cuts:
            self._kept.append((message, waiter))
        else:
            self.messages += 1
            self._world.send(message)
            settle(waiter)

    def connect(self) -> None:
        """Take a seat, if there is none and nothing is against it."""
        if self.seat is not None or self.ended or self._away or self._cuts:
            return
        seat = self.seat = self._world.seat(self._name, self._mailbox, self.basket)
        self.trouble = None
        self._events.emit(
            LinkOpened(
                role="lock",
                server_pid=seat.pid,
                server=str(self._world),
                version=0,
                through="memory",
                down_for=None if self._lost_at is None else self._world.clock.now() - self._lost_at,
            )
        )
        for follower in self._followers:
            follower.link_up(seat)

    def lose(self, reason: str, stay_away: bool) -> None:
        """The connection dies."""
        self._away = stay_away
        self._break(reason)
        self.connect()

    def reconnect(self) -> None:
        """Connect again, if it was told to stay away."""
        self._away = False
        self.connect()

    def cut(self, token: object, since: float) -> None:
        """A partition begins, or has begun at ``since``."""
        self._cuts.add(token)
        if self._cut_by is not None:
            return
        self._cut_by = token
        if self.seat is not None:
            self._world.send(partial(self._world.reach, self.seat, False))
            too_long = partial(self.post, partial(self._cut_too_long, token))
            self._silence = self._world.clock.call_at(since + self._network_timeout, too_long)

    def heal(self, token: object) -> None:
        """A partition ends. Idempotent."""
        if token not in self._cuts:
            return
        self._cuts.discard(token)
        if self._cuts:
            return
        self._cut_by = None
        self._stop_silence()
        if self.seat is not None:
            self._world.send(partial(self._world.reach, self.seat, True))
        kept, self._kept = self._kept, []
        for message, waiter in kept:
            self.send(message, waiter)
        self.connect()

    def end(self, reason: str) -> None:
        """Close for good; a cut does not stop that."""
        self._break(reason, closing=True)
        self.trouble = reason
        self._cuts.clear()
        self._cut_by = None
        self.ended = True
        self._stop_silence()
        # nothing goes round in a circle any more, so the world ends with the last who has it, at once
        self._mailbox.close()
        self.basket.close()
        self._followers.clear()

    def forked(self) -> None:
        """In a forked child: neither the world nor the loop is ours."""
        self.ended = True

    def _cut_too_long(self, token: object) -> None:
        if token is self._cut_by:
            self._break(f"no answer from {self._world} within network_timeout={self._network_timeout:g} s")

    def _break(self, reason: str, *, closing: bool = False) -> None:
        seat, self.seat = self.seat, None
        if seat is None:
            return
        self.trouble = reason
        self._lost_at = self._world.clock.now()
        kept, self._kept = self._kept, []
        if closing:
            self._events.emit(LinkClosed(role="lock", server_pid=seat.pid))
        else:
            self._events.emit(LinkLost(role="lock", server_pid=seat.pid, reason=reason, unanswered=len(kept)))
        for follower in self._followers:
            follower.link_down(reason)
        self._world.send(partial(self._world.end, seat))
        for _, waiter in kept:
            settle(waiter)

    def _stop_silence(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None


def settle(waiter: Waiter | None) -> None:
    """Tell a waiter that it is done."""
    if waiter is not None and not waiter.done():
        waiter.set_result(True)
