"""``Coordinator``: the twin of ``AsyncCoordinator`` for threads. Its backend lives on the engine thread."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from ..backend import Backend
from ..composition import Composition, seconds
from ..conninfo import Address
from ..errors import CoordinatorClosed, NotHeld
from .acquiring import Register
from .engine import Engine, not_in_a_loop
from .hold import Hold
from .locks import Lock, Semaphore
from .locksets import LockSet

__all__ = ["Coordinator"]

_TWIN: Final = "AsyncCoordinator"
_FAREWELL: Final = 3.0


class Coordinator(Composition[Register]):
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
        backend: Backend | None = None,
    ) -> None:
        super().__init__(
            address,
            direct_url=direct_url,
            namespace=namespace,
            name=name,
            network_timeout=network_timeout,
            connect_timeout=connect_timeout,
            max_locks=max_locks,
            backend=backend,
        )
        self._by_key: dict[int, Hold] = {}

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
            self._opened(Register(engine, self._backend.locker, self._describe_links))
            _open.add(self)
        except BaseException:
            self._state = "closed"
            self._register = None
            if engine is not None:
                with contextlib.suppress(Exception):
                    engine.finish(self._backend.close)
            raise

    def close(self) -> None:
        """Release everything, lose what is still held, and close the links. Idempotent, in any state.

        Interrupted, it leaves at once and the closing goes on; called again it waits for its end.
        """
        self._close(None)

    def _close(self, timeout: float | None) -> None:
        register = self._register
        failure: Exception | None = None
        if register is not None and not self._inherited:
            not_in_a_loop(_TWIN)
            try:
                register.engine.finish(self._backend.close, timeout)
            except Exception as error:
                failure = error
        # noted at its end, so that whoever was interrupted on the way finds it as it was
        self._register = None
        self._state = "closed"
        _open.discard(self)
        if failure is not None:
            raise failure

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
