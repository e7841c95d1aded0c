"""Messages as a world of this process carries them: the requests of one coordinator, and its end of the port.

Theory. A request is under way until the world has answered, which is at once unless a cut keeps it or another thread is
at it. When the connection is lost, what is under way fails, as it would on a network: a notification may have been
sent. Only who fetches asks again, on the next connection, until ``network_timeout`` has passed since the request.
Listening is the matter of ``ears.py``.

Everything here runs on the event loop of the backend, except ``hearing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from ..clock import Timer
from ..errors import BrokerClosed, NotifyQueueFull, PgconcertError, PublishUncertain, Unavailable
from ..events import EventStream, QueueFilling
from ..messenger import MAX_NOTIFICATION, Answer, Ear, Hearing
from .connection import Connection
from .ears import Ears, check_channel
from .exchange import Exchange
from .table import Seat
from .world import World

__all__ = ["MemoryMessenger"]

T = TypeVar("T")


class _Request(Generic[T]):
    """What was asked and not answered yet. ``lost`` makes the error that it ends with when the connection is lost."""

    __slots__ = ("answer", "lost")

    def __init__(self, answer: Answer[T], lost: Callable[[str], PgconcertError]) -> None:
        self.answer = answer
        self.lost = lost

    def settle(self, result: T) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _Fetch(_Request[bytes | None]):
    """A request that is asked again, until the time ``until``. ``timer`` runs while there is no connection."""

    __slots__ = ("number", "timer", "until")

    def __init__(self, number: int, answer: Answer[bytes | None], until: float) -> None:
        super().__init__(answer, Unavailable)
        self.number = number
        self.until = until
        self.timer: Timer | None = None

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class MemoryMessenger:
    """The port ``Messenger`` in a world."""

    def __init__(
        self,
        world: World,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        *,
        network_timeout: float,
    ) -> None:
        self._world = world
        self._connection = connection
        self._events = events
        self._network_timeout = network_timeout
        self._closed = False
        self._ears = Ears(world, connection, loop, events)
        self._under_way: dict[_Request[Any], None] = {}
        self._fetches: dict[_Fetch, None] = {}
        connection.follow(self)

    # the port

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        """Send a notification."""
        check_channel(channel)
        assert len(payload) <= MAX_NOTIFICATION, len(payload)
        assert 0 not in payload
        request = _Request(answer, _uncertain)
        seat = self._seat_for(request)
        if seat is not None:
            told = partial(self._published, request)
            self._connection.send(partial(self._world.publish, seat, channel, payload, told))

    def listen(self, channel: str, ear: Ear) -> None:
        """Let an ear hear a channel. ``ready`` comes in a later turn of the loop, never within this call."""
        if self._over:
            ear.failed(self._over_error())
        else:
            self._ears.listen(channel, ear)

    def unlisten(self, channel: str, ear: Ear) -> None:
        """Let it hear no more. Nothing happens if it did not."""
        self._ears.unlisten(channel, ear)

    def prove(self, answer: Answer[float]) -> None:
        """Send something to ourselves, by the way of all notifications."""
        seat = self._connection.seat
        if self._over or seat is None:
            answer.set_exception(self._over_error() if self._over else self._unavailable())
        else:
            self._ears.prove(seat, answer)

    def bounce(self, reason: str) -> None:
        """Be deaf and listen anew. The seat stays, and with it all that is held and asked."""
        seat = self._connection.seat
        if not self._over and seat is not None:
            self._ears.bounce(seat, reason)

    def hearing(self) -> Hearing:
        """How listening is. Safe from any thread."""
        return self._ears.hearing()

    def spill(self, payload: bytes, ttl: float, answer: Answer[int]) -> None:
        """Keep a large payload in the world, until its time is over or the last coordinator has left."""

        def ask(exchange: Exchange, now: float) -> int:
            return exchange.spill(payload, now, ttl)

        self._keep(ask, _Request(answer, _no_answer))

    def fetch(self, number: int, answer: Answer[bytes | None]) -> None:
        """Get a large payload from the world."""
        fetch = _Fetch(number, answer, self._world.clock.now() + self._network_timeout)
        if self._over:
            fetch.fail(self._over_error())
            return
        self._fetches[fetch] = None
        self._ask_to_fetch(fetch)

    def claim(self, scope: str, message_id: str, answer: Answer[bool]) -> None:
        """Be the one who handles a message, in this world."""

        def ask(exchange: Exchange, now: float) -> bool:
            return exchange.claim(scope, message_id, now)

        self._keep(ask, _Request(answer, _no_answer))

    def close(self, reason: str) -> None:
        """The end: every ear is deaf, and nothing is under way any more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._ears.deafen(reason)
        self._ears.clear()
        self._lose_requests(reason)
        fetches, self._fetches = self._fetches, {}
        for fetch in fetches:
            fetch.stop()
            fetch.fail(self._over_error())

    # what the connection tells us

    def link_up(self, seat: Seat) -> None:
        """There is a new seat: the ears listen there, and who fetches asks again."""
        self._ears.link_up(seat)
        for fetch in [*self._fetches]:
            self._ask_to_fetch(fetch)

    def link_down(self, reason: str) -> None:
        """The seat was lost."""
        if self._closed:
            return
        self._ears.deafen(reason)
        self._ears.tell_failure_soon()
        self._lose_requests(reason)
        for fetch in [*self._fetches]:
            self._ask_to_fetch(fetch)

    # requests

    @property
    def _over(self) -> bool:
        return self._closed or self._connection.ended

    def _over_error(self) -> BrokerClosed:
        return BrokerClosed("the coordinator is closed" if self._closed else "the coordinator belongs to the parent")

    def _unavailable(self) -> Unavailable:
        return Unavailable(self._connection.missing())

    def _seat_for(self, request: _Request[Any]) -> Seat | None:
        """The seat on which a request is under way from now on; or it has failed."""
        seat = self._connection.seat
        if self._over:
            request.fail(self._over_error())
            return None
        if seat is None:
            request.fail(self._unavailable())
        else:
            self._under_way[request] = None
        return seat

    def _keep(self, ask: Callable[[Exchange, float], T], request: _Request[T]) -> None:
        seat = self._seat_for(request)
        if seat is not None:
            self._connection.send(partial(self._world.keep, seat, ask, partial(self._answered, request)))

    def _answered(self, request: _Request[T], result: T) -> None:
        if request in self._under_way:
            del self._under_way[request]
            request.settle(result)

    def _published(self, request: _Request[bool], error: NotifyQueueFull | None, filling: Seat | None) -> None:
        if filling is not None:
            usage = filling.waiting / self._world.queue_limit
            self._events.emit(QueueFilling(usage=usage, blocker=str(filling.holder())))
        if error is None:
            self._answered(request, True)
        elif request in self._under_way:
            del self._under_way[request]
            request.fail(error)

    def _lose_requests(self, reason: str) -> None:
        lost, self._under_way = self._under_way, {}
        for request in lost:
            request.fail(request.lost(reason))

    # fetching

    def _ask_to_fetch(self, fetch: _Fetch) -> None:
        """Ask, or wait for the seat on which to ask."""
        fetch.stop()
        seat = self._connection.seat
        if seat is None:
            give_up = partial(self._connection.post, partial(self._give_up, fetch))
            fetch.timer = self._world.clock.call_at(fetch.until, give_up)
            return

        def ask(exchange: Exchange, now: float) -> bytes | None:
            return exchange.fetch(fetch.number, now)

        self._connection.send(partial(self._world.keep, seat, ask, partial(self._fetched, fetch)))

    def _fetched(self, fetch: _Fetch, payload: bytes | None) -> None:
        if fetch in self._fetches:
            del self._fetches[fetch]
            fetch.settle(payload)

    def _give_up(self, fetch: _Fetch) -> None:
        if fetch in self._fetches and self._connection.seat is None:
            del self._fetches[fetch]
            fetch.fail(self._unavailable())


def _uncertain(reason: str) -> PublishUncertain:
    return PublishUncertain(f"the connection was lost before the answer, so it may have been published: {reason}")


def _no_answer(reason: str) -> Unavailable:
    return Unavailable(f"the connection was lost before the answer: {reason}")
