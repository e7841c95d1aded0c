"""The words of a coordinator for threads for everything that hangs on a session: the twin of ``sessions/verbs.py``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import CoordinatorClosed
from ..sessions.timing import DEFAULT_TTL, timing
from ..store import LookAtSessions, SessionInfo
from .engine import Call, not_in_a_loop

if TYPE_CHECKING:
    from ..sessions.register import SessionRegister
    from .acquiring import Register
    from .election import Election
    from .groups import Group
    from .jobs import JobHold, JobLock, StopEvent

__all__ = ["Holding"]


class Holding:
    """What a coordinator can do because it has sessions."""

    @abstractmethod
    def _holding(self) -> SessionRegister[Register]:
        """What the primitives share, if the coordinator is open and its backend has sessions."""

    def job_lock(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL,
        interval: float | None = None,
        check: float | None = None,
        timeout: float | None = None,
        hold_at_least: float = 0.0,
        data: Any = None,
    ) -> JobLock:
        """A lock that hangs on a session of this process. Nothing is sent before it is entered or acquired.

        It survives reconnects, works through any pooler, has no limit on count, and gives a fencing token. It is lost
        when no heartbeat was answered for ``ttl`` less a margin of a tenth (at most 2 s).

        :param name: a text of 1 to 1,000 encoded bytes; not the same as a lock of that name.
        :param ttl: seconds after the last heartbeat until others may take over (0.1 to 86,400).
        :param interval: seconds between heartbeats, 0.01 or more; ``ttl / 4`` by default, less than ``ttl / 2``.
        :param check: seconds after which whoever waits looks again, at the latest; ``ttl / 2`` by default. A release is
            taken up at once, and the end of a holder's time when it comes.
        :param timeout: seconds after which a heartbeat without an answer has failed; ``interval / 2`` by default, less
            than ``interval``; both together less than ``ttl`` without the margin. How long to wait for the lock is said
            to ``acquire``.
        :param hold_at_least: seconds after it was acquired before which nobody gets it, if it is given back sooner.
        :param data: anything with a JSON form, shown beside the holder.
        """
        from .jobs import JobLock

        times = timing(ttl, interval, check, timeout)
        return JobLock(self._holding(), name, times, hold_at_least=hold_at_least, data=data)

    def run_in_job_lock(
        self,
        name: str,
        fn: Callable[[JobHold], object],
        *,
        service: str | None = None,
        ttl: float = DEFAULT_TTL,
        interval: float | None = None,
        check: float | None = None,
        timeout: float | None = None,
        hold_at_least: float = 0.0,
        data: Any = None,
        stop: StopEvent | None = None,
    ) -> None:
        """Keep ``fn`` running in at most one process at a time, until ``stop`` is set.

        ``fn`` is called with the hold, whose ``check`` raises when it is lost. When it returns or raises
        (``JobFailed``, an event), the lock is released, and after a pause that grows while runs are short it is waited
        for again; so another process may be next. Raises what cannot get better: ``ConfigurationError``,
        ``SchemaMissing``, ``CoordinatorClosed``.

        :param service: which of your services this is, shown beside the holder.
        :param stop: ends it when it is set: ``hold.check()`` raises then, and this returns when ``fn`` has ended.
            Without it, Ctrl-C and closing the coordinator end it.

        The other parameters are as for ``job_lock``.
        """
        from .jobs import run_in_job_lock

        run_in_job_lock(
            self._holding(),
            name,
            fn,
            timing(ttl, interval, check, timeout),
            service=service,
            hold_at_least=hold_at_least,
            data=data,
            stop=stop,
        )

    def election(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL,
        interval: float | None = None,
        check: float | None = None,
        timeout: float | None = None,
    ) -> Election:
        """An election: at most one leader at a time, whom anybody may observe.

        :param name: a text of 1 to 1,000 encoded bytes.

        The other parameters are as for ``job_lock``.
        """
        from .election import Election

        return Election(self._holding(), name, timing(ttl, interval, check, timeout))

    def group(
        self,
        name: str,
        *,
        ttl: float = DEFAULT_TTL,
        interval: float | None = None,
        check: float | None = None,
        timeout: float | None = None,
    ) -> Group:
        """A group: who is here, and what they can do.

        :param name: a text of 1 to 1,000 encoded bytes.

        The other parameters are as for ``job_lock``.
        """
        from .groups import Group

        return Group(self._holding(), name, timing(ttl, interval, check, timeout))

    def groups(self) -> list[str]:
        """The names of all groups of this namespace, sorted: those that were made and not deleted, or have members.

        Raises ``Unavailable`` while there is no connection, ``SchemaMissing``, and ``CoordinatorClosed``."""
        from .groups import group_names

        return group_names(self._holding())

    def sessions(self) -> tuple[SessionInfo, ...]:
        """All sessions that live in this database, whatever their namespace, by number; not only ours.

        Raises ``Unavailable`` while there is no connection, ``SchemaMissing``, and ``CoordinatorClosed``."""
        holding = self._holding()
        not_in_a_loop("AsyncCoordinator")
        known: Call[tuple[SessionInfo, ...]] = Call()
        if not holding.register.crossing.post(lambda: holding.sessions.ask(LookAtSessions(), known)):
            raise CoordinatorClosed("this coordinator is closed")
        known.wait()
        return known.answer()
