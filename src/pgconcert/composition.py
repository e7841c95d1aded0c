"""What the coordinators of both worlds have in common: their settings, their keys, whether they may be used now."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from .acquiring import check_timeout, is_number
from .backend import Backend, Capability, Health, LinkHealth, Options
from .backends import backend_for
from .conninfo import Address
from .errors import ConfigurationError, CoordinatorClosed, given
from .events import EventStream
from .identity import default_name
from .keys import KeySpace, LockKey
from .locksets import in_order
from .pubsub.messaging import Settings
from .pubsub.pings import PingSender
from .statistics import Statistics

if TYPE_CHECKING:
    from weakref import WeakSet

    from .sessions.engine import Sessions
    from .tasks.runner import AsyncRunner

__all__ = ["Composition"]

R = TypeVar("R")

_DAY: Final = 86400
_NOT_OPEN: Final = {
    "new": "the coordinator is not open yet",
    "opening": "the coordinator is being opened",
    "closing": "the coordinator is being closed",
    "closed": "the coordinator is closed",
}
_INHERITED: Final = "the coordinator was opened before fork() and belongs to the parent"

_forks = 0
"""How many forks lie between this process and the one that imported us: cheaper to compare than ``os.getpid()``."""


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Composition(Generic[R]):
    """A coordinator without its verbs. ``R`` is the register that its locks share; there is one while it is open."""

    _open_it = "use it as 'async with', or await open() first"
    _runners: WeakSet[AsyncRunner]

    def __init__(
        self,
        address: Address | None,
        *,
        direct_url: Address | None,
        namespace: str,
        name: str | None,
        network_timeout: float,
        connect_timeout: float,
        max_locks: int | None,
        schema: str,
        migrate: bool,
        reconnect_limit: int | None,
        ping_interval: float,
        ping_grace: float,
        ping_connection: Any,
        spill_ttl: float,
        watchdog: bool,
        data: Any,
        backend: Backend | None,
    ) -> None:
        self._keys = KeySpace(namespace)
        for what, seconds, least in (
            ("network_timeout", network_timeout, 0.2),
            ("connect_timeout", connect_timeout, 0.01),
        ):
            if not is_number(seconds) or not least <= seconds <= _DAY:
                raise ConfigurationError(f"{what} must be {least} to {_DAY} seconds, not {given(seconds)}")
        if max_locks is not None and (type(max_locks) is not int or max_locks < 1):
            raise ConfigurationError(f"max_locks must be a whole number of at least 1, or None, not {given(max_locks)}")
        called: object = name
        if called is not None and (not isinstance(called, str) or not called or "\0" in called):
            raise ConfigurationError(f"name must be a text without NUL, or None, not {given(called)}")
        if reconnect_limit is not None and (type(reconnect_limit) is not int or reconnect_limit < 1):
            raise ConfigurationError(
                f"reconnect_limit must be a whole number of attempts from 1, or None, not {given(reconnect_limit)}"
            )
        if migrate is not True and migrate is not False:
            raise ConfigurationError(f"migrate must be True or False, not {given(migrate)}")
        if watchdog is not True and watchdog is not False:
            raise ConfigurationError(f"watchdog must be True or False, not {given(watchdog)}")
        self._about = None if data is None else _as_json(data)
        self._watchdog = watchdog
        self._called = name or default_name()
        self._network_timeout = float(network_timeout)
        self._sessions: Sessions | None = None
        self._settings = Settings(
            ping_interval=ping_interval,
            ping_grace=ping_grace,
            ping_connection=ping_connection,
            spill_ttl=spill_ttl,
            publish_on=partial(_publish_on, schema, spill_ttl),
            ping_on=_ping_on,
        )
        self.events = EventStream()
        """The stream of everything that happens; see ``pgconcert.events``."""
        if backend is None:
            options = Options(
                direct_url=direct_url,
                name=name,
                network_timeout=network_timeout,
                connect_timeout=connect_timeout,
                max_locks=max_locks,
                schema=schema,
                migrate=migrate,
                reconnect_limit=reconnect_limit,
            )
            backend = backend_for(address, options)
        elif address is not None or direct_url is not None:
            raise ConfigurationError("a backend= was given, so no address is used: leave address and direct_url out")
        if isinstance(backend, type) or not hasattr(backend, "capabilities"):
            raise ConfigurationError(
                f"backend must be an object with the ports of pgconcert.Backend, not {given(backend)}; an address is "
                "the first argument"
            )
        self._given = backend
        self._backend = backend
        self._capabilities = backend.capabilities
        self._register: R | None = None
        self._forks = _forks
        self._was_open = False
        self._statements = 0
        """The most that ``statistics`` has told."""
        self._state: Literal["new", "opening", "open", "closing", "closed"] = "new"

    @property
    def backend(self) -> Backend:
        """The backend behind it: for tests that break it, and for tools. Its ports belong to this coordinator."""
        return self._given

    def health(self) -> Health:
        """How the links, locks and sessions are now, for a readiness probe. Sends nothing; from any thread, in any
        state. ``ready`` is false before ``open``, from the beginning of ``close`` on, and in a forked child."""
        register = self._register
        if register is None or self._inherited:
            state = _NOT_OPEN.get(self._state, _INHERITED)
            return Health(ready=False, links=(), locks_held=0, locks_waited_for=0, lock_budget=None, troubles=(state,))
        health = self._backend.health()
        if (sessions := self._sessions) is not None:
            health = replace(health, sessions=sessions.health())
        troubles = (*self._troubles_of_state(), *troubles_of(health, self._listens()))
        return replace(health, ready=health.ready and not troubles, troubles=troubles)

    def statistics(self) -> Statistics:
        """What has been counted since it was made. Sends nothing; from any thread, in any state: before ``open`` all
        is 0, and after ``close`` it is what was counted in all."""
        links: tuple[LinkHealth, ...] = ()
        if self._was_open and not self._inherited:
            with contextlib.suppress(CoordinatorClosed):  # a backend of somebody else's may be silent after its end
                links = self._backend.health().links
        statements = self.events.tally.statements + sum(link.statements for link in links)
        # a link that goes at this very moment is missing in both
        self._statements = statements = max(statements, self._statements)
        return self.events.tally.statistics(statements, tuple(runner.statistics() for runner in self._known_runners()))

    @property
    def name(self) -> str:
        """Who we are, for people: ``name=``, or what the program is called. In any state."""
        return self._called

    @property
    def identity(self) -> str:
        """Who we are among those who hold something by a session: a uuid, made when it was opened, and the host."""
        self._checked("sessions")
        assert self._sessions is not None
        return self._sessions.identity

    def _make_sessions(self, backend: Backend) -> Sessions | None:
        """The engine of sessions over the store of a backend, if it has one; on the loop of the backend."""
        from .sessions.engine import Sessions

        if "sessions" not in self._capabilities or (store := backend.store) is None:
            return None
        return Sessions(
            store,
            backend.messenger if "messages" in self._capabilities else None,
            asyncio.get_running_loop(),
            self.events,
            namespace=self._keys.namespace,
            application=self._called.encode("ascii", "replace").decode(),  # whatever the database can spell
            data=self._about,
            watchdog=self._watchdog,
            network_timeout=self._network_timeout,
        )

    def _begin_to_open(self) -> None:
        if self._state != "new":
            was = "opened before fork() by the parent" if self._register and self._inherited else self._state
            raise CoordinatorClosed(f"this coordinator is {was}, and can be opened once: make another")
        self._state = "opening"

    def _opened(self, register: R) -> None:
        self._forks = _forks
        self._register = register
        self._state = "open"
        self._was_open = True

    def _listens(self) -> bool:
        """Whether anybody wants to hear anything."""
        raise NotImplementedError

    def _troubles_of_state(self) -> tuple[str, ...]:
        return () if self._state == "open" else (_NOT_OPEN.get(self._state, _INHERITED),)

    def _known_runners(self) -> list[AsyncRunner]:
        while True:
            try:
                return [*self._runners]
            except RuntimeError:
                continue  # another thread has made one at this instant

    @property
    def _inherited(self) -> bool:
        return self._forks != _forks

    def _lock_keys(self, keys: Iterable[int | str]) -> list[LockKey]:
        return in_order(keys, self._keys.key)

    def _checked(self, needed: Capability | None) -> R:
        """The register, if it is open and its backend can do what is needed."""
        if needed is not None and needed not in self._capabilities:
            what = {
                "shared": "shared locks",
                "messages": "messages: it can neither publish nor listen",
                "sessions": "sessions: it keeps neither job locks nor elections nor groups, and runners share nothing",
                "tasks": "tasks: it keeps no queues",
            }.get(needed, needed)
            raise ConfigurationError(f"the backend {type(self._given).__name__} has no {what}")
        register = self._register
        if register is None or self._forks != _forks:
            register = self._open_register()
        return register

    def _checked_mode(self, shared: object) -> R:
        if shared is not True and shared is not False:
            raise ConfigurationError(f"shared must be True or False, not {given(shared)}")
        return self._checked("shared" if shared else None)

    def _check_sharing(self, source: object) -> None:
        """Raise unless the backend has what a source needs, and, for all but a queue by its name, runners may be made
        now."""
        from .tasks.sources import FunctionTasks, QueueTasks, TableTasks

        queue = isinstance(source, str)
        if self._state == "closing" and not queue:
            raise CoordinatorClosed("this coordinator is being closed: no runner begins any more")
        self._checked("tasks" if queue or isinstance(source, (QueueTasks, TableTasks, FunctionTasks)) else "sessions")

    def _open_register(self) -> R:
        register = self._register
        if register is None:
            raise CoordinatorClosed(
                "this coordinator is closed"
                if self._state == "closed"
                else f"this coordinator is not open yet: {self._open_it}"
            )
        if self._inherited:
            raise CoordinatorClosed(
                "this coordinator was opened before fork() and belongs to the parent; open a new one in the child"
            )
        return register

    def _describe_links(self, role: str = "lock") -> str:
        links = [link for link in self._backend.health().links if link.role == role]
        if not links or any(link.state == "ready" for link in links):
            return ""
        return f"there is no connection to the server: {links[0].last_error or links[0].state}"

    def _describe_work(self) -> str:
        return self._describe_links("work")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state}>"


def _publish_on(schema: str, spill_ttl: float, connection: Any, channel: str, payload: bytes) -> Any:
    from .transaction.publishing import publish_on  # drivers are not for those who give no connection

    return publish_on(connection, channel, payload, schema=schema, spill_ttl=spill_ttl)


def _ping_on(connection: object) -> PingSender:
    from .transaction.publishing import Pinger

    if isinstance(connection, str) or not getattr(connection, "allow_thread_sharing", True):
        raise ConfigurationError(
            f"ping_connection must be 'own', None, or a connection that any thread may use, not {given(connection)}: "
            "Django's belong to the thread that made them"
        )
    return Pinger(connection, "ping_connection=")


def _as_json(data: object) -> str | None:
    from .sessions.register import as_json

    return as_json(data, "data of a coordinator")


def troubles_of(health: Health, listens: bool) -> tuple[str, ...]:
    """Why an open coordinator is not ready, by what is known of its parts. ``listens``: somebody wants to hear."""
    troubles: list[str] = []
    links_up = True
    reachable = any(link.state == "ready" for link in health.links)  # what failed before is over then
    for link in health.links:
        if link.state not in ("ready", "idle"):
            links_up = False
            why = f": {link.last_error}" if link.last_error else ""
            troubles.append(f"the {link.role} link is not up ({link.state}){why}")
        elif link.state == "idle" and link.last_error and not reachable:
            troubles.append(f"the {link.role} link could not be opened: {link.last_error}")
    listens = listens or any(link.role == "listen" and link.state == "ready" for link in health.links)
    if links_up and listens and health.hearing is not None and not health.hearing.proven:
        troubles.append("listening is not proven")
    for session in health.sessions:
        if session.id is None:
            troubles.append("a session is being started")
        elif session.trusted_for <= 0:
            troubles.append(f"session {session.id} is trusted no longer")
    if not health.ready and not troubles:
        troubles.append("the backend says that it is not")
    return tuple(troubles)


def seconds(timeout: float | None) -> float | None:
    """Check a ``timeout``."""
    return None if timeout is None else check_timeout(timeout)
