"""``Coordinator``: the twin of ``AsyncCoordinator`` for threads. Its backend lives on the engine thread."""

from __future__ import annotations

import atexit
import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar, overload
from weakref import WeakSet

from ..backend import Backend
from ..composition import Composition, seconds
from ..conninfo import Address
from ..errors import BrokerClosed, ConfigurationError, CoordinatorClosed, NotHeld, given
from ..tasks.verbs import stop_all
from .acquiring import Register
from .channel_lock import ChannelLock
from .engine import Engine, not_in_a_loop
from .handlers import HandlerThreads
from .hold import Hold
from .holding import Holding
from .locks import Lock, Semaphore
from .locksets import LockSet
from .mail import Messages
from .messaging import Messaging
from .sharing import Sharing

if TYPE_CHECKING:
    from ..exclusive import IfHeld, KeyOf
    from ..sessions.engine import Sessions
    from ..sessions.register import SessionRegister

__all__ = ["Coordinator"]

P = ParamSpec("P")
R = TypeVar("R")

_TWIN: Final = "AsyncCoordinator"
_FAREWELL: Final = 3.0
_MOST_THREADS: Final = 1000


class Coordinator(Composition[Register], Messaging, Holding, Sharing):
    """The one object of a program that coordinates. Use it as ``with``, or ``open()`` and ``close()``.

    :param address: a connection string (libpq URL or key=value; SQLAlchemy's ``postgresql+driver://`` too), a callable
        that is asked at every connect (rotating credentials; may be async), a SQLAlchemy engine, a psycopg pool, or
        ``embedded://`` for a private server on this machine. Links are always our own; of an engine or a pool only the
        address is taken. Without one: ``PGCONCERT_URL``, ``DATABASE_URL``, libpq's environment. ``memory://name`` is a
        world inside this process, ``null://`` grants everything; other schemes are those of installed backends.
    :param direct_url: a way around a transaction pooler for the links that need a session (locks, LISTEN).
    :param namespace: part of every name that we derive; coordinators that share locks share the namespace.
    :param name: who we are, for people who look at the server; the program's name by default.
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
    :param ping_connection: ``"own"`` sends pings on a link of ours; a connection in autocommit mode, of psycopg or
        SQLAlchemy: there; ``None``: somebody else sends them (``send_listener_ping``).
    :param spill_ttl: seconds for which large payloads are kept for those who listen.
    :param watchdog: name what blocked the engine's loop when a heartbeat is late (``HeartbeatLate``), by a thread.
    :param data: anything with a JSON form, shown beside our sessions (``pgconcert status``).
    :param handler_threads: how many threads run the handlers of ``listen`` and the hooks of ``on_reconnect``, at most.
    :param backend: a backend of your own instead of PostgreSQL; the parameters of connections are then unused.

    Any thread may use it. If it is still open when the interpreter exits, it is closed then. After ``fork`` it belongs
    to the parent.
    """

    _open_it = "use it as 'with', or call open() first"

    def __init__(
        self,
        address: Address | None = None,
        *,
        direct_url: Address | None = None,
        namespace: str = "",
        name: str | None = None,
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
        handler_threads: int = 8,
        backend: Backend | None = None,
    ) -> None:
        if type(handler_threads) is not int or not 1 <= handler_threads <= _MOST_THREADS:
            raise ConfigurationError(f"handler_threads must be 1 to {_MOST_THREADS}, not {given(handler_threads)}")
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
        self._handler_threads = handler_threads
        self._open_messages: Messages | None = None
        self._session_register: SessionRegister[Register] | None = None
        self._by_key: dict[int, Hold] = {}
        self._runners = WeakSet()
        self._taskers: HandlerThreads | None = None

    def open(self) -> None:
        """Make ready. Connections are made when first needed; an embedded server is started here."""
        not_in_a_loop(_TWIN)
        self._begin_to_open()
        engine: Engine | None = None
        try:
            engine = Engine()
            engine.run(lambda: self._backend.open(self.events))
            if self._state != "opening":
                raise CoordinatorClosed("this coordinator was closed while it was being opened")
            register = Register(engine, self._backend.locker, self._describe_links, counts=self.events.tally.locks)
            self._session_register = self._open_sessions(engine, register)
            self._taskers = HandlerThreads(engine.loop, engine.crossing, sys.maxsize, "tasker")
            messenger = self._backend.messenger
            if messenger is not None:
                self._open_messages = Messages(
                    messenger,
                    register,
                    self.events,
                    self._keys,
                    self._settings,
                    "payloads" in self._capabilities,
                    self._handler_threads,
                )
            self._opened(register)
            _open.add(self)
        except BaseException:
            self._state = "closed"
            self._register = None
            self._open_messages = None
            if engine is not None:
                with contextlib.suppress(Exception):
                    engine.finish(self._backend.close)
            raise

    def close(self) -> None:
        """Release everything, lose what is still held, and close the links. Idempotent, in any state.

        Runners are stopped first: their calls may go on for ``network_timeout`` seconds, and are not waited for any
        longer. Handlers come to their end next, within their limits. Interrupted, or called by a handler or a tasker,
        it leaves at once and the closing goes on; called again it waits for its end.
        """
        self._close(None)

    def _close(self, timeout: float | None) -> None:
        register = self._register
        failure: Exception | None = None
        patience = self._network_timeout if timeout is None else timeout / 3

        async def end() -> None:
            await self._end(patience)

        if register is not None and not self._inherited:
            messages = self._open_messages
            taskers = self._taskers
            if (messages is not None and messages.threads.inside) or (taskers is not None and taskers.inside):
                register.engine.finish(end, wait=False)
                return
            not_in_a_loop(_TWIN)
            try:
                register.engine.finish(end, timeout)
            except Exception as error:
                failure = error
        # noted at its end, so that whoever was interrupted on the way finds it as it was
        self._register = None
        self._session_register = None
        self._open_messages = None
        self._state = "closed"
        _open.discard(self)
        if failure is not None:
            raise failure

    async def _end(self, patience: float) -> None:
        self._state = "closing"
        try:
            await stop_all(self._runners, patience)
            if self._open_messages is not None:
                await self._open_messages.close()
        finally:
            if self._taskers is not None:
                self._taskers.close()
            sessions, self._sessions = self._sessions, None
            try:
                if sessions is not None:
                    await sessions.close()
            finally:
                await self._backend.close()

    def _open_sessions(self, engine: Engine, register: Register) -> SessionRegister[Register] | None:
        from ..sessions.claims import SessionClaim
        from ..sessions.register import SessionRegister

        async def made() -> Sessions | None:
            return self._make_sessions(self._backend)

        sessions: Sessions | None = engine.run(made)
        self._sessions = sessions
        if sessions is None:
            return None
        counts = self.events.tally.names
        waits = Register(engine, sessions, self._describe_work, register.scopes, SessionClaim, counts)
        return SessionRegister(waits, sessions, self._keys, self.events)

    def _holding(self) -> SessionRegister[Register]:
        self._checked("sessions")
        assert self._session_register is not None
        return self._session_register

    def _sharing(self, source: object = None) -> SessionRegister[Register]:
        self._check_sharing(source)
        return self._holding()

    def _tasker_threads(self) -> HandlerThreads:
        assert self._taskers is not None
        return self._taskers

    def _messages(self) -> Messages:
        if self._state != "closed":
            self._checked("messages")
            if (messages := self._open_messages) is not None:
                return messages
        raise BrokerClosed("this coordinator is closed")

    def _listens(self) -> bool:
        messages = self._open_messages
        return messages is not None and messages.broker.listens

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def lock(self, key: int | str, *, shared: bool = False, timeout: float | None = None) -> Lock:
        """A lock. Nothing is sent before it is entered or acquired.

        :param key: an ``int`` of 64 bits (the server's ``bigint``, as other programs see it) or a text of 1 to 1,000
            encoded bytes.
        :param shared: together with other readers; it excludes exclusive locks only.
        :param timeout: how long ``with`` waits, in seconds; ``None`` waits for ever.
        """
        register = self._checked_mode(shared)
        return Lock(register, self._keys.key(key), seconds(timeout), shared)

    def lock_all(self, keys: Iterable[int | str], *, shared: bool = False, timeout: float | None = None) -> LockSet:
        """Several locks, all or nothing, in an order that makes deadlocks between such sets impossible.

        :param keys: at least one; the same key twice counts once. The other parameters are as for ``lock``.
        """
        register = self._checked_mode(shared)
        return LockSet(register, self._lock_keys(keys), seconds(timeout), shared)

    def semaphore(self, name: str, permits: int, *, timeout: float | None = None) -> Semaphore:
        """A semaphore: at most ``permits`` holders at a time, over all processes.

        :param name: a text of 1 to 1,000 encoded bytes; not the same as a lock of that name.
        :param permits: 1 to 1,000; all who use it at a time must say the same number.

        ``timeout`` is as for ``lock``.
        """
        register = self._checked("semaphores")
        return Semaphore(register, self._keys.semaphore(name, permits), seconds(timeout), False)

    @overload
    def exclusive(
        self, key: KeyOf, *, timeout: float | None = None, if_held: Literal["wait"] = "wait"
    ) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    @overload
    def exclusive(
        self, key: KeyOf, *, timeout: None = None, if_held: Literal["skip"]
    ) -> Callable[[Callable[P, R]], Callable[P, R | None]]: ...
    def exclusive(
        self, key: KeyOf, *, timeout: float | None = None, if_held: IfHeld = "wait"
    ) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
        """Decorate a plain function: one call of it runs at a time, over all processes. Each is a block under the
        lock ``key``. The coordinator must be open when it is called, not before.

        :param key: as for ``lock``; or a function that gets the arguments of the call and returns the key, so that only
            calls for the same thing wait for each other.
        :param timeout: how long a call waits, in seconds; then it raises ``AcquireTimeout``. ``None`` waits for ever.
        :param if_held: ``"wait"``, or ``"skip"``: a call that finds the lock held returns ``None`` at once.

        A call raises what the function raises, and what a block under the lock raises: ``LockLost`` when it was lost.
        It is not re-entrant: a function that calls itself gets ``WouldDeadlock``.
        """
        from ..exclusive import key_of
        from .exclusive import exclusive

        waits = seconds(timeout)
        find = key_of(self._keys, key, waits, if_held)
        return exclusive(lambda found: self.lock(found, timeout=waits), find, if_held)

    def channel_lock(self, channel: str, *, acquire_interval: float = 30.0) -> ChannelLock:
        """The right to handle a channel, for one process at a time: what ``subscribe(delivery="one-process")`` takes
        care of by itself, for those who want to do it themselves.

        :param channel: the name of the channel; 1 to 63 encoded bytes.
        :param acquire_interval: for how many seconds a process that stands by leaves a lock alone that nobody has (0.01
            to 86,400), and how long it pauses while it cannot wait. A release is taken up at once, a death in a second.
        """
        return ChannelLock(self._checked(None), self._keys, self.events, channel, acquire_interval)

    def acquire_lock(self, key: int | str) -> bool:
        """Try to take a lock, at once, and keep it until ``release_lock``. For code that is neutral of its backend."""
        hold = self.lock(key).try_acquire()
        if hold is None:
            return False
        self._by_key[self._keys.key(key).value] = hold
        return True

    def release_lock(self, key: int | str) -> None:
        """Release what ``acquire_lock`` of this coordinator took.

        Raises ``NotHeld`` for anything else, and ``LockLost`` if it was lost meanwhile.
        """
        hold = self._by_key.pop(self._keys.key(key).value, None)
        if hold is None:
            raise NotHeld(f"{key!r} was not acquired with acquire_lock() of this coordinator")
        hold.check()
        hold.release()


_open: weakref.WeakSet[Coordinator] = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the interpreter: release what is held, but never hang."""
    for coordinator in [*_open]:
        with contextlib.suppress(Exception):
            coordinator._close(_FAREWELL)


atexit.register(_close_all)
