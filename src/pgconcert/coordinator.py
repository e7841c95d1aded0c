"""``AsyncCoordinator``: opens a backend and hands out everything that works on it. The composition root."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import Final, Literal, Self, TypeGuard

from .backend import Backend, Health
from .conninfo import Address
from .errors import ConfigurationError, CoordinatorClosed, NotHeld
from .events import EventStream
from .hold import Hold, OnLost
from .keys import KeySpace
from .locks import AsyncLock, LockRegister, check_timeout

__all__ = ["AsyncCoordinator"]


_DAY: Final = 86400

_forks = 0
"""How many forks lie between this process and the one that imported us: cheaper to compare than ``os.getpid()``."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class AsyncCoordinator:
    """The one object of a program that coordinates. Use it as ``async with``, or ``open()`` and ``close()``.

    :param address: a connection string (libpq URL or key=value; SQLAlchemy's ``postgresql+driver://`` too), a callable
        that is asked at every connect (rotating credentials; may be async), a SQLAlchemy engine, a psycopg pool, or
        ``embedded://`` for a private server on this machine. Links are always our own; of an engine or a pool only the
        address is taken. Without one: ``PGCONCERT_URL``, ``DATABASE_URL``, libpq's environment.
    :param direct_url: a way around a transaction pooler for the links that need a session (locks, LISTEN).
    :param namespace: part of every name that we derive; coordinators that share locks share the namespace.
    :param name: who we are, for people who look at the server; the program's name by default.
    :param engine: ``"loop"`` runs the links on the event loop of the caller; ``"thread"`` on the engine thread of the
        process, so that a blocked event loop neither delays a heartbeat nor misses a loss.
    :param network_timeout: seconds after which a silent network counts as dead (at least 0.2).
    :param connect_timeout: seconds for one attempt to connect to one address; ``connect_timeout`` of the address wins.
    :param max_locks: the budget of locks held or waited for at once; half of the server's lock table by default.
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
        backend: Backend | None = None,
    ) -> None:
        self._keys = KeySpace(namespace)
        self._check(engine, network_timeout, connect_timeout, max_locks, name)
        self.events = EventStream()
        """The stream of everything that happens; see ``pgconcert.events``."""
        if backend is None:
            from .postgres.engine import PostgresBackend

            backend = PostgresBackend(
                address,
                direct_url=direct_url,
                name=name,
                network_timeout=network_timeout,
                connect_timeout=connect_timeout,
                max_locks=max_locks,
                events=self.events,
            )
        if engine == "thread":
            from .enginethread import ThreadedBackend

            backend = ThreadedBackend(backend)
        self._backend: Backend = backend
        self._register: LockRegister | None = None
        self._forks = 0
        self._state: Literal["new", "opening", "open", "closed"] = "new"
        self._by_key: dict[int, Hold] = {}
        self._closing: asyncio.Task[None] | None = None

    @staticmethod
    def _check(
        engine: object, network_timeout: object, connect_timeout: object, max_locks: object, name: object
    ) -> None:
        if engine not in ("loop", "thread"):
            raise ConfigurationError(f"engine must be 'loop' or 'thread', not {engine!r}")
        for what, seconds, least in (
            ("network_timeout", network_timeout, 0.2),
            ("connect_timeout", connect_timeout, 0.01),
        ):
            if not _is_number(seconds) or not least <= seconds <= _DAY:
                raise ConfigurationError(f"{what} must be {least} to {_DAY} seconds, not {seconds!r}")
        if max_locks is not None and (type(max_locks) is not int or max_locks < 1):
            raise ConfigurationError(f"max_locks must be a whole number of at least 1, or None, not {max_locks!r}")
        if name is not None and (not isinstance(name, str) or not name or "\0" in name):
            raise ConfigurationError(f"name must be a text without NUL, or None, not {name!r:.100}")

    async def open(self) -> None:
        """Make ready. Connections are made when first needed; an embedded server is started here."""
        if self._state != "new":
            was = "opened before fork() by the parent" if self._register and self._forks != _forks else self._state
            raise CoordinatorClosed(f"this coordinator is {was}, and can be opened once: make another")
        self._state = "opening"
        try:
            await self._backend.open()
        except BaseException:
            self._state = "closed"
            raise
        if self._state != "opening":
            await self._backend.close()
            raise CoordinatorClosed("this coordinator was closed while it was being opened")
        self._forks = _forks
        self._register = LockRegister(self._backend.locker, asyncio.get_running_loop(), self._describe_links)
        self._state = "open"

    async def close(self) -> None:
        """Release everything, lose what is still held, and close the links. Idempotent, in any state."""
        if self._state == "open" and self._forks == _forks:
            # a task of its own: a caller that is cancelled leaves, and the closing goes on
            self._closing = asyncio.get_running_loop().create_task(self._backend.close(), name="pgconcert closing")
        self._state = "closed"
        self._register = None
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def lock(self, key: int | str, *, timeout: float | None = None, on_lost: OnLost = "cancel") -> AsyncLock:
        """An exclusive lock. Nothing is sent before it is entered or acquired.

        :param key: an ``int`` of 64 bits (the server's ``bigint``, as other programs see it) or a text of 1 to 1,000
            encoded bytes.
        :param timeout: how long ``async with`` waits, in seconds; ``None`` waits for ever.
        :param on_lost: ``"cancel"`` cancels the body when the lock is lost; ``"report"`` leaves it running. Both set
            ``hold.lost`` and raise ``LockLost`` at the end of the block.
        """
        if on_lost != "cancel" and on_lost != "report":
            raise ConfigurationError(f"on_lost must be 'cancel' or 'report', not {on_lost!r}")
        register = self._register
        if register is None or self._forks != _forks:
            register = self._open_register()
        return AsyncLock(register, self._keys.key(key), None if timeout is None else check_timeout(timeout), on_lost)

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

    def health(self) -> Health:
        """How the links and locks are now. Sends nothing."""
        self._open_register()
        return self._backend.health()

    def _open_register(self) -> LockRegister:
        register = self._register
        if register is None:
            raise CoordinatorClosed(
                "this coordinator is closed"
                if self._state == "closed"
                else "this coordinator is not open yet: use it as 'async with', or await open() first"
            )
        if self._forks != _forks:
            raise CoordinatorClosed(
                "this coordinator was opened before fork() and belongs to the parent; open a new one in the child"
            )
        return register

    def _describe_links(self) -> str:
        links = [link for link in self._backend.health().links if link.role == "lock"]
        if not links or any(link.state == "ready" for link in links):
            return ""
        return f"there is no connection to the server: {links[0].last_error or links[0].state}"

    def __repr__(self) -> str:
        return f"<AsyncCoordinator {self._state}>"
