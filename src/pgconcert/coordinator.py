"""``AsyncCoordinator``: opens a backend and hands out everything that works on it. The composition root."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, cast, overload
from weakref import WeakSet

from .acquiring import Register
from .backend import Backend
from .channel_lock import AsyncChannelLock
from .composition import Composition, seconds
from .conninfo import Address
from .errors import BrokerClosed, ConfigurationError, CoordinatorClosed, NotHeld, given
from .hold import AsyncHold, OnLost
from .locks import AsyncLock, AsyncSemaphore
from .locksets import AsyncLockSet
from .pubsub.messaging import AsyncMessaging, Messages
from .sessions.verbs import AsyncHolding
from .tasks.verbs import AsyncTasking, stop_all

if TYPE_CHECKING:
    from .enginethread import ThreadedBackend
    from .exclusive import IfHeld, KeyOf
    from .sessions.crossed import CrossedSessions
    from .sessions.register import SessionRegister

__all__ = ["AsyncCoordinator"]

P = ParamSpec("P")
R = TypeVar("R")


class AsyncCoordinator(Composition[Register], AsyncMessaging, AsyncHolding, AsyncTasking):
    """The one object of a program that coordinates. Use it as ``async with``, or ``open()`` and ``close()``.

    :param address: a connection string (libpq URL or key=value; SQLAlchemy's ``postgresql+driver://`` too), a callable
        that is asked at every connect (rotating credentials; may be async), a SQLAlchemy engine, a psycopg pool, or
        ``embedded://`` for a private server on this machine. Links are always our own; of an engine or a pool only the
        address is taken. Without one: ``PGCONCERT_URL``, ``DATABASE_URL``, libpq's environment. ``memory://name`` is a
        world inside this process, ``null://`` grants everything; other schemes are those of installed backends.
    :param direct_url: a way around a transaction pooler for the links that need a session (locks, LISTEN).
    :param namespace: part of every name that we derive; coordinators that share locks share the namespace.
    :param name: who we are, for people who look at the server; the program's name by default.
    :param engine: ``"loop"`` runs the links on the event loop of the caller; ``"thread"`` on the engine thread of the
        process, so that a blocked event loop neither delays a heartbeat nor misses a loss.
    :param network_timeout: seconds after which a silent network counts as dead (at least 0.2).
    :param connect_timeout: seconds for one attempt to connect to one address; ``connect_timeout`` of the address wins.
    :param max_locks: the budget of locks held or waited for at once; half of the server's lock table by default.
    :param schema: the name of the schema with our tables, for what needs them (``pgconcert schema apply``).
    :param migrate: make these tables, or bring them up to date, when it is opened.
    :param reconnect_limit: how many attempts in a row to connect for listening may fail before it is given up
        (``GivenUp``); ``None``: it goes on for ever.
    :param ping_interval: seconds between the pings that we send to all listeners of the database while we listen.
    :param ping_grace: seconds without any ping after which it is looked whether we still hear; more than
        ``ping_interval``.
    :param ping_connection: ``"own"`` sends pings on a link of ours; a connection in autocommit mode, of psycopg,
        asyncpg or SQLAlchemy: there; ``None``: somebody else sends them (``send_listener_ping``).
    :param spill_ttl: seconds for which large payloads are kept for those who listen.
    :param watchdog: name what blocked the event loop when a heartbeat is late (``HeartbeatLate``), by a thread.
    :param data: anything with a JSON form, shown beside our sessions (``pgconcert status``).
    :param backend: a backend of your own instead of PostgreSQL; the parameters of connections are then unused.
    """

    def __init__(
        self,
        address: Address | None = None,
        *,
        direct_url: Address | None = None,
        namespace: str = "",
        name: str | None = None,
        engine: Literal["loop", "thread"] = "loop",
        network_timeout: float = 5.0,
        connect_timeout: float = 10.0,
        max_locks: int | None = None,
        schema: str = "pgconcert",
        migrate: bool = False,
        reconnect_limit: int | None = None,
        ping_interval: float = 300.0,
        ping_grace: float = 420.0,
        ping_connection: Any = "own",
        spill_ttl: float = 3600.0,
        watchdog: bool = False,
        data: Any = None,
        backend: Backend | None = None,
    ) -> None:
        if engine not in ("loop", "thread"):
            raise ConfigurationError(f"engine must be 'loop' or 'thread', not {given(engine)}")
        super().__init__(
            address,
            direct_url=direct_url,
            namespace=namespace,
            name=name,
            network_timeout=network_timeout,
            connect_timeout=connect_timeout,
            max_locks=max_locks,
            schema=schema,
            migrate=migrate,
            reconnect_limit=reconnect_limit,
            ping_interval=ping_interval,
            ping_grace=ping_grace,
            ping_connection=ping_connection,
            spill_ttl=spill_ttl,
            watchdog=watchdog,
            data=data,
            backend=backend,
        )
        self._threaded: ThreadedBackend | None = None
        if engine == "thread":
            from .enginethread import ThreadedBackend

            self._backend = self._threaded = ThreadedBackend(self._given)
        self._by_key: dict[int, AsyncHold] = {}
        self._open_messages: Messages | None = None
        self._session_register: SessionRegister[Register] | None = None
        self._runners = WeakSet()
        self._closing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make ready. Connections are made when first needed; an embedded server is started here."""
        self._begin_to_open()
        try:
            await self._backend.open(self.events)
        except BaseException:
            self._state = "closed"
            raise
        loop, counts = asyncio.get_running_loop(), self.events.tally.locks
        register = Register(self._backend.locker, loop, self._describe_links, counts=counts)
        try:
            self._session_register = await self._open_sessions(register)
            if self._state != "opening":
                raise CoordinatorClosed("this coordinator was closed while it was being opened")
        except BaseException:
            self._state = "closed"
            try:
                await self._close_sessions()
            finally:
                await self._backend.close()
            raise
        messenger = self._backend.messenger
        if messenger is not None:
            self._open_messages = Messages(
                messenger, register, self.events, self._keys, self._settings, "payloads" in self._capabilities
            )
        self._opened(register)

    async def close(self) -> None:
        """Release everything, lose what is still held, and close the links. Idempotent, in any state.

        Runners are stopped first: their calls may go on for ``network_timeout`` seconds and are cancelled then.
        Handlers of ``listen`` come to their end next, within their limits; until then they may publish and lock, and
        nothing new can be listened to. Called by a handler or a tasker, it leaves at once and the closing goes on.
        """
        messages = self._open_messages
        if self._state == "open" and not self._inherited:
            self._check_loop(self._open_register())
            self._state = "closing"
            works = any(one.state in ("running", "stopping") for one in self._runners)
            if not works and (messages is None or not messages.broker.drains):
                self._shut()
            # a task of its own: a caller that is cancelled leaves, and the closing goes on
            self._closing = asyncio.get_running_loop().create_task(self._end(), name="pgconcert closing")
        elif self._state != "closing":
            self._shut()
        inside = (messages is not None and messages.broker.in_handler) or any(one.inside for one in self._runners)
        if self._closing is not None and not inside:
            await asyncio.shield(self._closing)

    def _shut(self) -> None:
        self._state = "closed"
        self._register = None

    def _check_loop(self, register: Register) -> None:
        """Raise on a foreign event loop; except that links of the engine thread may outlive the loop of their owner."""
        if self._backend is self._given or register.loop.is_running():
            register.here()
        else:
            self._runners.clear()
            if self._open_messages is not None:
                self._open_messages.broker.closed = True
                self._open_messages = None

    async def _end(self) -> None:
        try:
            await stop_all(self._runners, self._network_timeout)
            if self._open_messages is not None:
                await self._open_messages.close()
        finally:
            self._shut()
            self._open_messages = None  # it refers to us, and a circle would live on until it is collected
            try:
                await self._close_sessions()
            finally:
                await self._backend.close()

    async def _open_sessions(self, register: Register) -> SessionRegister[Register] | None:
        from .sessions.claims import SessionClaim
        from .sessions.register import SessionPort, SessionRegister

        port: SessionPort | None
        if self._threaded is not None:
            from .sessions.crossed import crossed_sessions

            sessions, port = await self._threaded.build(self._make_sessions, crossed_sessions)
        else:
            sessions = port = self._make_sessions(self._backend)
        self._sessions = sessions
        if port is None:
            return None
        counts = self.events.tally.names
        waits = Register(port, register.loop, self._describe_work, register.scopes, SessionClaim, counts)
        return SessionRegister(waits, port, self._keys, self.events)

    async def _close_sessions(self) -> None:
        sessions, register = self._sessions, self._session_register
        self._sessions = self._session_register = None
        if sessions is None or register is None:
            return
        if self._threaded is not None:
            cast("CrossedSessions", register.sessions).closed = True
            await self._threaded.there(sessions.close)
        else:
            await sessions.close()

    def _holding(self) -> SessionRegister[Register]:
        self._checked("sessions")
        assert self._session_register is not None
        return self._session_register

    def _sharing(self, source: object = None) -> SessionRegister[Register]:
        self._check_sharing(source)
        return self._holding()

    def _messages(self) -> Messages:
        messages = self._open_messages
        if self._state == "closed":
            raise BrokerClosed("this coordinator is closed")
        self._checked("messages").here()
        assert messages is not None
        return messages

    def _listens(self) -> bool:
        messages = self._open_messages
        return messages is not None and messages.broker.listens

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def lock(
        self, key: int | str, *, shared: bool = False, timeout: float | None = None, on_lost: OnLost = "cancel"
    ) -> AsyncLock:
        """A lock. Nothing is sent before it is entered or acquired.

        :param key: an ``int`` of 64 bits (the server's ``bigint``, as other programs see it) or a text of 1 to 1,000
            encoded bytes.
        :param shared: together with other readers; it excludes exclusive locks only.
        :param timeout: how long ``async with`` waits, in seconds; ``None`` waits for ever.
        :param on_lost: ``"cancel"`` cancels the body when the lock is lost; ``"report"`` leaves it running. Both set
            ``hold.lost`` and raise ``LockLost`` at the end of the block.
        """
        register = self._checked_for(on_lost, shared)
        return AsyncLock(register, self._keys.key(key), seconds(timeout), on_lost, shared)

    def lock_all(
        self,
        keys: Iterable[int | str],
        *,
        shared: bool = False,
        timeout: float | None = None,
        on_lost: OnLost = "cancel",
    ) -> AsyncLockSet:
        """Several locks, all or nothing, in an order that makes deadlocks between such sets impossible.

        :param keys: at least one; the same key twice counts once. The other parameters are as for ``lock``.
        """
        register = self._checked_for(on_lost, shared)
        return AsyncLockSet(register, self._lock_keys(keys), seconds(timeout), on_lost, shared)

    def semaphore(
        self, name: str, permits: int, *, timeout: float | None = None, on_lost: OnLost = "cancel"
    ) -> AsyncSemaphore:
        """A semaphore: at most ``permits`` holders at a time, over all processes.

        :param name: a text of 1 to 1,000 encoded bytes; not the same as a lock of that name.
        :param permits: 1 to 1,000; all who use it at a time must say the same number.

        ``timeout`` and ``on_lost`` are as for ``lock``.
        """
        register = self._checked_for(on_lost, False)
        self._checked("semaphores")
        return AsyncSemaphore(register, self._keys.semaphore(name, permits), seconds(timeout), on_lost, False)

    @overload
    def exclusive(
        self, key: KeyOf, *, timeout: float | None = None, if_held: Literal["wait"] = "wait", on_lost: OnLost = "cancel"
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]: ...
    @overload
    def exclusive(
        self, key: KeyOf, *, timeout: None = None, if_held: Literal["skip"], on_lost: OnLost = "cancel"
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | None]]]: ...
    def exclusive(
        self, key: KeyOf, *, timeout: float | None = None, if_held: IfHeld = "wait", on_lost: OnLost = "cancel"
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R | None]]]:
        """Decorate a coroutine function: one call of it runs at a time, over all processes. Each is a block under the
        lock ``key``. The coordinator must be open when it is called, not before.

        :param key: as for ``lock``; or a function that gets the arguments of the call and returns the key, so that only
            calls for the same thing wait for each other.
        :param timeout: how long a call waits, in seconds; then it raises ``AcquireTimeout``. ``None`` waits for ever.
        :param if_held: ``"wait"``, or ``"skip"``: a call that finds the lock held returns ``None`` at once.
        :param on_lost: as for ``lock``.

        A call raises what the function raises, and what a block under the lock raises: ``LockLost`` when it was lost.
        It is not re-entrant: a function that calls itself gets ``WouldDeadlock``.
        """
        from .exclusive import exclusive, key_of

        waits = seconds(timeout)
        find = key_of(self._keys, key, waits, if_held)
        _check_on_lost(on_lost)
        return exclusive(lambda found: self.lock(found, timeout=waits, on_lost=on_lost), find, if_held)

    def channel_lock(self, channel: str, *, acquire_interval: float = 30.0) -> AsyncChannelLock:
        """The right to handle a channel, for one process at a time: what ``subscribe(delivery="one-process")`` takes
        care of by itself, for those who want to do it themselves.

        :param channel: the name of the channel; 1 to 63 encoded bytes.
        :param acquire_interval: for how many seconds a process that stands by leaves a lock alone that nobody has (0.01
            to 86,400), and how long it pauses while it cannot wait. A release is taken up at once, a death in a second.
        """
        return AsyncChannelLock(self._checked(None), self._keys, self.events, channel, acquire_interval)

    async def acquire_lock(self, key: int | str) -> bool:
        """Try to take a lock, at once, and keep it until ``release_lock``. For code that is neutral of its backend."""
        hold = await self.lock(key, on_lost="report").try_acquire()
        if hold is None:
            return False
        self._by_key[self._keys.key(key).value] = hold
        return True

    async def release_lock(self, key: int | str) -> None:
        """Release what ``acquire_lock`` of this coordinator took.

        Raises ``NotHeld`` for anything else, and ``LockLost`` if it was lost meanwhile.
        """
        hold = self._by_key.pop(self._keys.key(key).value, None)
        if hold is None:
            raise NotHeld(f"{key!r} was not acquired with acquire_lock() of this coordinator")
        hold.check()
        await hold.release()

    def _checked_for(self, on_lost: object, shared: bool) -> Register:
        _check_on_lost(on_lost)
        return self._checked_mode(shared)


def _check_on_lost(on_lost: object) -> None:
    if on_lost != "cancel" and on_lost != "report":
        raise ConfigurationError(f"on_lost must be 'cancel' or 'report', not {given(on_lost)}")
