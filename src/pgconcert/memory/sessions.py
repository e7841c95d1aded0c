"""Sessions as a world of this process keeps them: one coordinator's end of the port ``Store``.

Theory. The world has the ledger (``ledger.py``) and carries requests out, one after the other. A request is under way
until the world has answered, which is at once unless a cut keeps it or another thread is at it. When the connection is
lost, what is under way fails with ``Unavailable``: it may have been carried out. Without a connection it fails at once,
for nobody tries to connect while one is missing here. A session lives by its time, not by the connection.

Whoever had a store may have it for long; so at its end it lets go of the world, which ends with its last backend.

Everything here runs on the event loop of the backend, except ``expire_sessions``.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any, TypeVar

from ..clock import Clock
from ..errors import CoordinatorClosed, Unavailable
from ..messenger import Answer
from ..store import Request
from .connection import Connection
from .table import Seat
from .tasks import unsupported
from .world import World

__all__ = ["MemoryStore"]

T = TypeVar("T")


class MemoryStore:
    """The port ``Store`` in a world."""

    def __init__(self, world: World, connection: Connection) -> None:
        self._clock = world.clock
        self._world: World | None = world
        self._connection: Connection | None = connection
        """Both are None when it is closed."""
        self._numbers = itertools.count()
        self._under_way: dict[int, Answer[Any]] = {}
        connection.follow(self)

    # the port

    schema = None
    """There are no tables."""

    @property
    def clock(self) -> Clock:
        """The clock of the world."""
        return self._clock

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Ask the world."""
        world, connection = self._world, self._connection
        if world is None or connection is None or connection.ended:
            whose = "is closed" if connection is None else "belongs to the parent"
            answer.set_exception(CoordinatorClosed(f"the coordinator {whose}"))
        elif connection.seat is None:
            answer.set_exception(Unavailable(connection.missing()))
        elif (error := unsupported(request, world)) is not None:
            answer.set_exception(error)
        else:
            number = next(self._numbers)
            self._under_way[number] = answer
            told = partial(self._answered, number)
            connection.send(partial(world.carry_out, connection.seat, request, self, told))

    def bounce(self, reason: str) -> None:
        """Give up what is under way. The seat stays, and with it all locks."""
        if self._connection is not None and self._connection.seat is not None:
            self._lose(reason)

    def close(self, reason: str) -> None:
        """The end: nothing is under way any more. Idempotent."""
        self._world = self._connection = None
        self._lose(reason)

    def expire_sessions(self) -> None:
        """The time of all our sessions is over, as the world sees it. From any thread, also while cut off."""
        world = self._world
        if world is not None:
            world.send(partial(world.expire_sessions, self))

    # what the connection tells us

    def link_up(self, seat: Seat) -> None:
        """There is a new seat; nothing waits for it."""

    def link_down(self, reason: str) -> None:
        """The seat was lost."""
        self._lose(reason)

    # inside

    def _answered(self, number: int, result: Any) -> None:
        answer = self._under_way.pop(number, None)
        if answer is not None and not answer.done():
            answer.set_result(result)

    def _lose(self, reason: str) -> None:
        lost, self._under_way = self._under_way, {}
        for answer in lost.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"the connection was lost before the answer: {reason}"))
