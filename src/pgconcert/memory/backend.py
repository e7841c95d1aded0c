"""The backend of one coordinator in a world, and the ways in which a test may break it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from ..backend import Capability, Health, LinkHealth
from ..clock import Clock
from ..errors import ConfigurationError, CoordinatorClosed
from ..events import EventStream
from ..identity import default_name
from .locks import MemoryLocker
from .messages import MemoryMessenger
from .sessions import MemoryStore
from .table import BUDGET
from .world import World

__all__ = ["MemoryBackend", "Partition"]


class Partition:
    """A cut between one coordinator and its world; it lasts until ``heal``, or the end of the ``with`` block."""

    def __init__(self, heal: Callable[[Partition], None]) -> None:
        self._heal = heal

    def heal(self) -> None:
        """End it. From any thread; idempotent."""
        self._heal(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.heal()


class MemoryBackend:
    """The port ``Backend`` in a world of this process: what ``memory://name`` makes, with handles to break it.

    ``lose_connection``, ``reconnect`` and ``partition`` may be called from any thread; on the thread of the
    coordinator's event loop they have taken effect when they return, elsewhere they take effect on that loop.

    :param world: the world, or its name; all who give one name share it.
    :param clock: the clock of a world that does not exist yet: a ``FakeClock``, to let time pass by hand.
    :param name: who we are, for messages about holders; the program's name by default.
    :param network_timeout: seconds of a partition, by the world's clock, after which the connection is lost.
    :param max_locks: the budget of keys held or waited for at once; 3,200 by default, what a PostgreSQL with default
        settings gives to a coordinator.
    """

    def __init__(
        self,
        world: World | str,
        *,
        clock: Clock | None = None,
        name: str | None = None,
        network_timeout: float = 5.0,
        max_locks: int | None = None,
    ) -> None:
        if not network_timeout > 0:
            raise ConfigurationError(f"network_timeout must be a number of seconds > 0, not {network_timeout!r}")
        if max_locks is not None and max_locks < 1:
            raise ConfigurationError(f"max_locks must be at least 1, not {max_locks!r}")
        self.world = world if isinstance(world, World) else World.named(world, clock=clock)
        """The world that it shares: its ``clock``, and whether it is ``empty``."""
        self.world.check(clock)
        self._name = name or default_name()
        self._network_timeout = network_timeout
        self._budget = max_locks or BUDGET
        self._alive: asyncio.Task[None] | None = None
        self._locker: MemoryLocker | None = None
        self._messenger: MemoryMessenger | None = None
        self._store: MemoryStore | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """All but ``processes``."""
        return frozenset(("exclusion", "shared", "semaphores", "messages", "payloads", "claims", "sessions", "tasks"))

    @property
    def locker(self) -> MemoryLocker:
        """The port for locks."""
        if self._locker is None:
            raise CoordinatorClosed("this backend is not open")
        return self._locker

    @property
    def messenger(self) -> MemoryMessenger:
        """The port for messages."""
        if self._messenger is None:
            raise CoordinatorClosed("this backend is not open")
        return self._messenger

    @property
    def store(self) -> MemoryStore:
        """The port for sessions, and what hangs on them."""
        if self._store is None:
            raise CoordinatorClosed("this backend is not open")
        return self._store

    async def open(self, events: EventStream) -> None:
        """Enter the world. Raises ``ConfigurationError`` for a backend that was given to two coordinators."""
        if self._locker is not None:
            raise ConfigurationError("a backend serves one coordinator, and this one was opened already; make another")
        loop = asyncio.get_running_loop()
        locker = self._locker = MemoryLocker(
            self.world,
            loop,
            events,
            name=self._name,
            network_timeout=self._network_timeout,
            budget=self._budget,
        )
        messenger = self._messenger = MemoryMessenger(
            self.world, locker.connection, loop, events, network_timeout=self._network_timeout
        )
        store = self._store = MemoryStore(self.world, locker.connection)
        self._alive = loop.create_task(
            _as_long_as_the_loop(locker, messenger, store), name="pgconcert memory connection"
        )

    async def close(self) -> None:
        """Give everything back and leave the world."""
        if self._locker is not None and self._messenger is not None and self._store is not None:
            self._messenger.close("the coordinator was closed")
            self._store.close("the coordinator was closed")
            self._locker.close(
                "the coordinator was closed", "the coordinator was closed while this lock was waited for"
            )
        alive, self._alive = self._alive, None
        if alive is not None:
            alive.cancel()
            await asyncio.wait([alive])

    def health(self) -> Health:
        """How it is now."""
        locker = self.locker
        connection = locker.connection
        seat = connection.seat
        state = "ready" if seat is not None else "closed" if locker.closed else "waiting"
        link = LinkHealth(
            role="lock",
            state=state,
            server=str(self.world) if seat else None,
            server_pid=seat.pid if seat else None,
            through="memory" if seat else None,
            statements=connection.messages,
            round_trip=None,
            attempts=0,
            last_error=connection.trouble,
        )
        return Health(
            ready=seat is not None,
            links=(link,),
            locks_held=locker.held,
            locks_waited_for=locker.waited_for,
            lock_budget=locker.budget,
            hearing=self.messenger.hearing(),
        )

    def lose_connection(
        self, reason: str = "the connection was lost, because a test wanted it", *, reconnect: bool = True
    ) -> None:
        """Break the connection, as if the server had ended it.

        Every lock of this coordinator is lost with this reason, and then free for others; what hangs on a session
        stays. It hears no messages, and what it was publishing may or may not have been published. Who waits goes on
        waiting on the next connection, which is made at once, or with ``reconnect=False`` by ``reconnect()``; until
        then ``try_acquire`` and ``publish`` raise ``Unavailable``.
        """
        connection = self._open_locker().connection
        connection.post(partial(connection.lose, reason, not reconnect))

    def reconnect(self) -> None:
        """Connect again after ``lose_connection(reconnect=False)``; during a partition, when that is over."""
        connection = self._open_locker().connection
        connection.post(connection.reconnect)

    def partition(self) -> Partition:
        """Let nothing pass between this coordinator and its world, until the partition is healed.

        Requests get no answer. After ``network_timeout`` by the world's clock every lock of this coordinator is lost,
        and then, never before, free for others; its sessions are over when their time is. Healed earlier, it goes on as
        if nothing had happened, and what was asked meanwhile is done in its order, and what others published meanwhile
        is heard. ``close()`` of the coordinator is not held up by it.
        """
        connection = self._open_locker().connection
        cut = Partition(lambda cut: connection.post(partial(connection.heal, cut)))
        connection.post(partial(connection.cut, cut, self.world.clock.now()))
        return cut

    def expire_session(self) -> None:
        """Let the time of all sessions of this coordinator be over, as the server sees it: at once, on any thread.

        Their heartbeats find them over, and what hangs on them may be taken. Nobody is told: who waits finds out when
        it looks again.
        """
        self._open_locker()
        self.store.expire_sessions()

    def _open_locker(self) -> MemoryLocker:
        if self.locker.closed:
            raise CoordinatorClosed("this backend is closed: there is no connection to break")
        return self.locker

    def __repr__(self) -> str:
        return f"<MemoryBackend {self.world} as {self._name!r}>"


async def _as_long_as_the_loop(locker: MemoryLocker, messenger: MemoryMessenger, store: MemoryStore) -> None:
    """A program that ends without closing its coordinator cancels all tasks: so this one knows of it."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        messenger.close("its task was cancelled")
        store.close("its task was cancelled")
        locker.close("its task was cancelled", "the task that keeps the connection was cancelled")
