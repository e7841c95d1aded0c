"""The ears of one coordinator in a world: who hears which channel, and how well.

Theory. The seat of the coordinator listens in the world to every channel that has an ear here. An ear hears from its
*echo* on: the call that the world puts among the notifications, in its place, when it has carried out the request to
listen. Whatever lies before the echo in the basket, the ear does not hear. So what a lost seat has left there needs no
further care; all ears are deaf until the echo of the next one. An echo counts only if it answers the last request of
its ear, and was asked for since we were deaf. Ears are called in turns of the loop of their
own; ``deaf`` alone is called within what makes them deaf.

Everything here runs on the event loop of the backend, except ``hearing``.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from ..errors import Unavailable
from ..events import EventStream, ListenerBounced, ListenerReady
from ..messenger import Answer, Ear, Hearing
from .connection import Connection
from .mailbox import Notification
from .table import Seat
from .world import World

__all__ = ["Ears", "check_channel"]

_LONGEST_CHANNEL: Final = 63


class _Listening:
    """One ear on one channel. ``asked``: the number of the request whose echo counts; 0 is none."""

    __slots__ = ("asked", "ear", "hearing")

    def __init__(self, ear: Ear) -> None:
        self.ear = ear
        self.hearing = False
        self.asked = 0


class Ears:
    """All ears of one coordinator."""

    def __init__(
        self, world: World, connection: Connection, loop: asyncio.AbstractEventLoop, events: EventStream
    ) -> None:
        self._world = world
        self._connection = connection
        self._loop = loop
        self._events = events
        self._ears: dict[bytes, tuple[_Listening, ...]] = {}
        self._requests = itertools.count(1)
        self._deaf_at = 0
        """Requests with a lower number were asked before we were deaf."""
        self._proofs: dict[int, Answer[float]] = {}
        self._proven = False
        self._own_at: float | None = None
        self._others_at: float | None = None
        self._latency: float | None = None
        self._connects = 0
        self._deaf_since: float | None = None
        connection.basket.open_with(self._heard)

    def listen(self, channel: str, ear: Ear) -> None:
        """Let an ear hear a channel. Nothing happens if it does."""
        name = channel.encode()
        check_channel(name)
        ears = self._ears.get(name, ())
        if any(one.ear is ear for one in ears):
            return
        one = _Listening(ear)
        self._ears[name] = (*ears, one)
        seat = self._connection.seat
        if seat is None:
            self._loop.call_soon(self._tell_failure, (one,))
        else:
            self._ask(seat, (name,), (one,))

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Let it hear no more."""
        name = channel.encode()
        ears = self._ears.get(name, ())
        left = tuple(one for one in ears if one.ear is not ear)
        if len(left) == len(ears):
            return
        for one in ears:
            if one.ear is ear:
                one.hearing, one.asked = False, 0
        if left:
            self._ears[name] = left
            return
        del self._ears[name]
        seat = self._connection.seat
        if seat is not None and not self._connection.ended:
            self._connection.send(partial(self._world.unlisten, seat, name))

    def prove(self, seat: Seat, answer: Answer[float]) -> None:
        """See how long it takes that something comes back."""
        number = next(self._requests)
        self._proofs[number] = answer
        self._connection.send(partial(self._world.echo, seat, partial(self._echoed, number, time.monotonic())))

    def bounce(self, seat: Seat, reason: str) -> None:
        """Be deaf and listen anew, on the same seat. Nothing happens before listening is proven."""
        if self._proven:
            self._events.emit(ListenerBounced(reason=reason))
            self.deafen(reason)
            self._ask_for_all(seat)

    def hearing(self) -> Hearing:
        """How listening is. Safe from any thread."""
        return Hearing(
            proven=self._proven,
            own_at=self._own_at,
            others_at=self._others_at,
            latency=self._latency,
            connects=self._connects,
        )

    def link_up(self, seat: Seat) -> None:
        """There is a new seat: listen there."""
        if self._ears:
            self._ask_for_all(seat)

    def deafen(self, reason: str) -> None:
        """Nothing is heard any more, and no proof comes back."""
        if self._proven:
            self._proven = False
            self._deaf_since = self._world.clock.now()
        self._deaf_at = next(self._requests)
        proofs, self._proofs = self._proofs, {}
        for one in self._all():
            if one.hearing:
                one.hearing = False
                self._safely(one.ear.deaf, reason)
        for answer in proofs.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"the proof of listening did not come back: {reason}"))

    def tell_failure_soon(self) -> None:
        """If there is still no seat a turn later, that is a connection that could not be made: tell all ears."""
        self._loop.call_soon(self._tell_failure, self._all())

    def clear(self) -> None:
        """Nobody hears anything ever again."""
        self._ears.clear()

    # inside

    def _all(self) -> tuple[_Listening, ...]:
        return tuple(one for ones in self._ears.values() for one in ones)

    def _ask_for_all(self, seat: Seat) -> None:
        self._ask(seat, tuple(self._ears), self._all())

    def _ask(self, seat: Seat, channels: Iterable[bytes], ones: Iterable[_Listening]) -> None:
        number = next(self._requests)
        for one in ones:
            one.asked = number
        echo = partial(self._listens, number, ones, time.monotonic())
        self._connection.send(partial(self._world.listen, seat, channels, echo))

    def _listens(self, number: int, ones: Iterable[_Listening], asked: float) -> None:
        """The echo of a request to listen."""
        if number > self._deaf_at:
            self._came_back(asked)
            for one in ones:
                if one.asked == number:
                    one.hearing = True
                    self._safely(one.ear.ready)

    def _echoed(self, number: int, asked: float) -> None:
        """The echo of a proof."""
        answer = self._proofs.pop(number, None)
        if answer is not None:
            latency = self._came_back(asked)
            if not answer.done():
                answer.set_result(latency)

    def _came_back(self, asked: float) -> float:
        """Something of our own has come back: how long that took."""
        self._own_at = time.monotonic()
        latency = self._latency = self._own_at - asked
        if not self._proven:
            self._proven = True
            self._connects += 1
            since, self._deaf_since = self._deaf_since, None
            deaf_for = None if since is None else self._world.clock.now() - since
            self._events.emit(ListenerReady(channels=len(self._ears), initial=self._connects == 1, deaf_for=deaf_for))
        return latency

    def _heard(self, notification: Notification) -> None:
        if not self._proven:
            return  # it lay there before the echo
        own = notification.sender is self._connection.basket
        if own:
            self._own_at = time.monotonic()
        else:
            self._others_at = time.monotonic()
        for one in self._ears.get(notification.channel, ()):
            if one.hearing:
                self._safely(one.ear.heard, notification.payload, notification.pid, own)

    def _tell_failure(self, ones: Iterable[_Listening]) -> None:
        if self._connection.seat is None and not self._connection.ended:
            living = set(self._all())
            for one in ones:
                if one in living:
                    self._safely(one.ear.failed, Unavailable(self._connection.missing()))

    def _safely(self, call: Callable[..., None], *arguments: object) -> None:
        """Call an ear. One that raises is reported, and the others hear all the same."""
        try:
            call(*arguments)
        except Exception as error:
            self._loop.call_exception_handler({"message": "pgconcert: an ear failed", "exception": error})


def check_channel(name: bytes) -> None:
    """The layer above has seen to this."""
    assert 1 <= len(name) <= _LONGEST_CHANNEL, name
    assert 0 not in name, name
