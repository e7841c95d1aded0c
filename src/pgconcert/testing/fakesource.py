"""``FakeSource``: a ``TaskSource`` in memory, for tests of applications that share tasks.

Theory. It is the promise of ``TaskSource`` and nothing else: sessions with a time to live, and tasks that belong to
nobody, or to a session; those of a session that is over are free. ``get_work`` gives a session its fair share of what
is not finished, ``ceil(tasks / living sessions)``, at most ``most``; ``finish_tasks`` takes only what is the session's.
Several runners may share one source, of several coordinators and threads too: every call is one step under a lock.

A test looks at ``finished``, ``held`` and ``calls``, and disturbs by ``fail_next`` and ``expire``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from ..clock import Clock, SuspendClock
from ..errors import ConfigurationError, SessionNotFound, given
from ..tasks.task import Task

__all__ = ["Call", "FakeSource"]

Method = Literal["start_session", "bump_session", "end_session", "get_work", "finish_tasks"]


class Call(NamedTuple):
    """A call of a runner. ``tasks``: the ids that it gave to ``finish_tasks``, or got from ``get_work``. ``error``:
    what it got instead."""

    method: Method
    session: int | None
    tasks: tuple[str, ...] = ()
    error: Exception | None = None


class _Item:
    __slots__ = ("payload", "session")

    def __init__(self, payload: Any) -> None:
        self.payload = payload
        self.session: int | None = None


class FakeSource:
    """Tasks in memory. Give it to a runner as its source::

        source = FakeSource({"a": 1, "b": 2})
        async with coordinator.runner("mail", send_mails, source):
            await eventually_async(lambda: source.finished == ["a", "b"])

    :param tasks: ids, or a mapping from ids to payloads; what is handed out first comes first.
    :param ttl: seconds for which a session lives without being bumped.
    :param clock: by which sessions live; a ``FakeClock`` lets a test move it.

    It may be used from any thread.
    """

    def __init__(
        self, tasks: dict[str, Any] | Iterable[str] = (), *, ttl: float = 40.0, clock: Clock | None = None
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock or SuspendClock()
        self._ttl = ttl
        self._tasks: dict[str, _Item] = {}
        self._expires: dict[int, float] = {}
        self._last = 0
        self._failures: dict[Method, list[Exception]] = {}
        self.calls: list[Call] = []
        """Every call of a runner, in order, once it has been answered."""
        self.finished: list[str] = []
        """The ids that were finished, in order. A task that was added again may be there again."""
        self.refused: list[str] = []
        """The ids that a session reported and that were not its own."""
        self.add(tasks)

    # for the test

    @property
    def sessions(self) -> tuple[int, ...]:
        """The sessions that live."""
        with self._lock:
            return tuple(sorted(self._living()))

    @property
    def outstanding(self) -> tuple[str, ...]:
        """The ids that are not finished, in order."""
        with self._lock:
            return tuple(self._tasks)

    def held(self, session: int) -> tuple[str, ...]:
        """The ids that a session has; none if it is over."""
        with self._lock:
            return self._of(session) if session in self._living() else ()

    def add(self, tasks: dict[str, Any] | Iterable[str]) -> None:
        """More tasks: ids, or a mapping from ids to payloads. An id that is outstanding keeps its session. Runners
        find them at their next tick; ``wake`` of a runner is sooner."""
        if isinstance(tasks, str):
            raise ConfigurationError(f"tasks are several ids, or a mapping from ids to payloads, not {given(tasks)}")
        payloads = tasks if isinstance(tasks, dict) else dict.fromkeys(tasks)
        with self._lock:
            for name, payload in payloads.items():
                self._tasks.setdefault(name, _Item(payload)).payload = payload

    def fail_next(self, method: Method, error: Exception, times: int = 1) -> None:
        """Let the next calls of a method raise ``error``, and do nothing. Asked for again, these follow."""
        if method not in get_args(Method):
            raise ConfigurationError(f"a source has the methods {', '.join(get_args(Method))}, not {given(method)}")
        with self._lock:
            self._failures.setdefault(method, []).extend([error] * times)

    def expire(self, session: int) -> None:
        """Let a session be over, as if its time had come; what it has is for others."""
        with self._lock:
            self._expires.pop(session, None)

    # for the runner

    @property
    def ttl(self) -> float:
        """Seconds for which a session lives without being bumped."""
        return self._ttl

    async def start_session(self) -> int:
        """See ``TaskSource``."""
        with self._lock:
            self._begin("start_session", None)
            self._last += 1
            self._expires[self._last] = self._clock.now() + self._ttl
            self.calls.append(Call("start_session", self._last))
            return self._last

    async def bump_session(self, session: int) -> None:
        """See ``TaskSource``."""
        with self._lock:
            self._begin("bump_session", session)
            self._alive("bump_session", session)
            self._expires[session] = self._clock.now() + self._ttl
            self.calls.append(Call("bump_session", session))

    async def end_session(self, session: int) -> None:
        """See ``TaskSource``."""
        with self._lock:
            self._begin("end_session", session)
            self._expires.pop(session, None)
            self.calls.append(Call("end_session", session))

    async def get_work(self, session: int, most: int | None) -> tuple[Task, ...]:
        """See ``TaskSource``."""
        with self._lock:
            self._begin("get_work", session)
            self._alive("get_work", session)
            living = self._living()
            share = -(-len(self._tasks) // len(living))
            room = (share if most is None else min(share, most)) - len(self._of(session))
            for item in self._tasks.values():
                if room > 0 and item.session not in living:
                    item.session = session
                    room -= 1
            got = self._of(session)
            self.calls.append(Call("get_work", session, got))
            return tuple(Task(name, self._tasks[name].payload) for name in got)

    async def finish_tasks(self, session: int, tasks: Sequence[Task]) -> tuple[str, ...]:
        """See ``TaskSource``."""
        with self._lock:
            said = tuple(task.id for task in tasks)
            self._begin("finish_tasks", session, said)
            ours = {*self._of(session)} if session in self._living() else set()
            self.refused += [name for name in said if name not in ours]
            self._alive("finish_tasks", session, said)
            done = tuple(name for name in said if name in ours)
            for name in done:
                del self._tasks[name]
            self.finished += done
            self.calls.append(Call("finish_tasks", session, said))
            return done

    # under the lock

    def _begin(self, method: Method, session: int | None, tasks: tuple[str, ...] = ()) -> None:
        failures = self._failures.get(method)
        if failures:
            self._fail(method, session, tasks, failures.pop(0))

    def _alive(self, method: Method, session: int, tasks: tuple[str, ...] = ()) -> None:
        if session not in self._living():
            error = SessionNotFound(f"session {session} is over, or was never there")
            self._fail(method, session, tasks, error)

    def _fail(self, method: Method, session: int | None, tasks: tuple[str, ...], error: Exception) -> None:
        self.calls.append(Call(method, session, tasks, error))
        raise error

    def _living(self) -> set[int]:
        now = self._clock.now()
        return {session for session, expires in self._expires.items() if expires > now}

    def _of(self, session: int) -> tuple[str, ...]:
        return tuple(name for name, item in self._tasks.items() if item.session == session)

    def __repr__(self) -> str:
        return f"<FakeSource: {len(self._tasks)} tasks, {len(self.finished)} finished, {len(self.sessions)} sessions>"
