"""The ports: what a primitive asks of a backend, and the words of that conversation. No backend stands here.

The port for locks is here, the one for messages in ``messenger.py``, the one for sessions in ``store.py``.

Every request is a *message*: the caller hands it in and waits on a waiter of its own; it may leave at any instant by
``withdraw``, and the backend undoes what it may have granted. No method of a ``Locker`` waits, and none raises for what
the server does: errors go to the waiter.

States of a ``Claim``: *waiting*, then *granted* (the waiter got ``True``), *refused* (``False``: only a claim that does
not wait), *failed* (an exception) or *withdrawn*. A granted claim is a ``Grant``: it ends released or lost.

Three kinds of claim, and a backend says in its ``capabilities`` which it knows: *exclusive* (one holder), *shared*
(``claim.shared``: many holders, and no exclusive one), and a *permit* of a semaphore (``claim.key.permits`` is not 0:
that many holders; ``claim.permit`` is set when it is granted).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from .events import EventStream
from .hold import Grant, Waiter
from .keys import LockKey
from .messenger import Hearing, Messenger
from .store import Store

__all__ = [
    "Backend",
    "BackendFactory",
    "Capability",
    "Claim",
    "Confirming",
    "Describer",
    "Health",
    "Holder",
    "LinkHealth",
    "Locker",
    "Options",
    "SessionHealth",
]

WAITING: Final = 0
GRANTED: Final = 1
DONE: Final = 2

Capability = Literal[
    "exclusion", "processes", "shared", "semaphores", "messages", "payloads", "claims", "sessions", "tasks"
]
"""What a backend can do: keep claims apart at all, also between processes; shared locks; semaphores; carry messages;
also those too large for a notification (``spill``, ``fetch``); let one process handle a message (``claim``); keep
sessions, and what hangs on them (``store.py``); keep queues of tasks (``taskstore.py``)."""


class Claim(Grant):
    """One attempt to get one lock: the message, and after it is granted the engine's side of the hold."""

    __slots__ = ("key", "since", "state", "wait", "waiter")

    def __init__(self, key: LockKey, waiter: Waiter, *, wait: bool, shared: bool = False) -> None:
        self.name = key.name
        self.shared = shared
        self.permit = None
        self.reason = None
        self.over = False
        self.scope = None
        self.watchers = None
        self.key = key
        self.waiter = waiter
        self.wait = wait
        self.since = time.monotonic()
        self.state = WAITING

    def grant(self) -> None:
        """End a waiting claim with success."""
        self.state = GRANTED
        if not self.waiter.done():
            self.waiter.set_result(True)

    def fail(self, error: Exception) -> None:
        """End a waiting claim with an error."""
        if self.state == WAITING:
            self.state = DONE
            if not self.waiter.done():
                self.waiter.set_exception(error)

    def refuse(self) -> None:
        """End a waiting claim that does not wait: somebody else has the lock."""
        if self.state == WAITING:
            self.state = DONE
            if not self.waiter.done():
                self.waiter.set_result(False)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock, as far as the server tells. ``pid`` is the server process of its connection."""

    pid: int
    application: str
    shared: bool = False

    def __str__(self) -> str:
        return f"{self.application or 'an unnamed session'} (pid {self.pid})"


class Describer(Protocol):
    """Waits for the answer to *who holds it?*; ``asyncio.Future`` is one."""

    def done(self) -> bool: ...
    def set_result(self, result: Sequence[Holder], /) -> None: ...


class Locker(Protocol):
    """Grants locks."""

    def acquire(self, claim: Claim) -> None:
        """Hand in a claim. Its waiter learns the outcome."""
        ...

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        """Hand in several claims that leave together where the backend can do so. Each waiter learns its outcome."""
        ...

    def withdraw(self, claim: Claim) -> None:
        """Take a claim back in any state: a lock granted meanwhile is released."""
        ...

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        """Release a granted claim. The waiter gets ``True`` when the lock is free; ``None`` is not told."""
        ...

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        """Release several granted claims together. The waiter gets ``True`` when all are free."""
        ...

    def drop(self, claim: Grant) -> None:
        """Release a granted claim whose hold was thrown away. Callable from any thread, at any time."""
        ...

    def describe(self, key: LockKey, waiter: Describer) -> None:
        """Ask who holds ``key``; nothing when nobody does, or nobody can say."""
        ...


class Confirming(Protocol):
    """What the locker of a backend that carries messages does besides, for ``delivery="one-process"``."""

    def confirm(self, claim: Grant, waiter: Waiter) -> None:
        """Tell whether a granted claim is held. ``True``: the server has answered, after this call, on the connection
        that carries the lock. ``False``: that connection is lost, or the claim is over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkHealth:
    """One link; times in seconds. ``state`` is idle (nothing needs it now), connecting, ready, waiting (for the next
    attempt), given up or closed. ``last_error``: why the last attempt failed, while it is not up; of an idle link only
    if that is less than a minute ago."""

    role: str
    state: str
    server: str | None
    server_pid: int | None
    through: str | None
    statements: int
    round_trip: float | None
    attempts: int
    last_error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHealth:
    """One session of ours; times in seconds. ``id`` is ``None`` while it is being started; ``holds`` hang on it; it is
    trusted for ``trusted_for`` more, if no heartbeat is answered."""

    id: int | None
    ttl: float
    interval: float
    holds: int
    trusted_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a coordinator is; ``str(health)`` says it in a line, ``dataclasses.asdict(health)`` has a JSON form.

    ``ready``: it is open, no link that is needed is down, what somebody wants to hear is proven to be heard, and every
    session that is needed is there and trusted. If not, ``troubles`` says why, a sentence each. A link that nothing has
    needed so far is *idle* and says nothing about the server; one that could not be opened when something needed it is
    a trouble for a minute, or until it is.

    ``queue_usage``: how full the server's notification queue is, from 0 to 1, if that was looked at within the last
    minute; it is looked at while we publish, every few seconds.
    """

    ready: bool
    links: tuple[LinkHealth, ...]
    locks_held: int
    locks_waited_for: int
    lock_budget: int | None
    hearing: Hearing | None = None
    sessions: tuple[SessionHealth, ...] = ()
    troubles: tuple[str, ...] = ()
    queue_usage: float | None = None

    def __str__(self) -> str:
        if not self.ready:
            return " ".join(f"not ready: {'; '.join(self.troubles) or 'the backend says so'}".split())
        up = sum(link.state == "ready" for link in self.links)
        return (
            f"ready: {up} links up, {self.locks_held} locks held, {self.locks_waited_for} waited for, "
            f"{len(self.sessions)} sessions"
        )


class Backend(Protocol):
    """Everything behind one coordinator."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do, known before ``open``. The rest the coordinator refuses with ``ConfigurationError``."""
        ...

    @property
    def locker(self) -> Locker:
        """The port for locks. There from ``open`` on."""
        ...

    @property
    def messenger(self) -> Messenger | None:
        """The port for messages. There from ``open`` on, if ``messages`` is among the capabilities."""
        ...

    @property
    def store(self) -> Store | None:
        """The port for sessions and what hangs on them. There from ``open`` on, if ``sessions`` is among the
        capabilities."""
        ...

    async def open(self, events: EventStream) -> None:
        """Make ready. Raises ``ConfigurationError`` for what is known to be wrong. Events go to ``events``."""
        ...

    async def close(self) -> None:
        """Give everything back and close. Holds that are still out are lost. Idempotent, in any state."""
        ...

    def health(self) -> Health:
        """How it is now. Safe from any thread; asked from ``open`` on, and after ``close`` too."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a coordinator was told, for the backend that it makes. See ``AsyncCoordinator`` for the meaning."""

    direct_url: Any = None
    name: str | None = None
    network_timeout: float = 5.0
    connect_timeout: float = 10.0
    max_locks: int | None = None
    schema: str = "pgconcert"
    migrate: bool = False
    reconnect_limit: int | None = None


BackendFactory = Callable[[str, Options], Backend]
"""What an entry point of the group ``pgconcert.backends`` is: it makes a backend for an address with its scheme."""
