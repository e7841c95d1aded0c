"""Seeing what a test left behind: tasks, threads, server sessions, advisory locks; and waiting for it to go.

Here live ``eventually``, the one place where tests may wait in real time, and snapshots to compare before and after.

Theory: most ends are not instant (a server needs a moment to notice a closed socket), so a leak is what is still there
after a bounded wait, never what is there at first sight. One statement reads sessions and locks together, and leaves
out the connections that ask, of which the last one may not be gone yet.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

import psycopg

from ..postgres.operator import SESSIONS_WITH_LOCKS

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """An advisory lock that a session holds or waits for; ``key`` is the bigint or the pair of ints it was asked by."""

    key: int | tuple[int, int]
    mode: str
    granted: bool
    pid: int
    application_name: str

    def __str__(self) -> str:
        verb = "holds" if self.granted else "waits for"
        return (
            f"server process {self.pid} ({self.application_name or 'no name'}) {verb} advisory {self.mode} {self.key}"
        )


@dataclass(frozen=True, slots=True)
class ServerSession:
    """A client's session on the server, with its advisory locks; ``query`` is the last one, cut at 200 characters."""

    pid: int
    application_name: str
    database: str
    state: str
    query: str
    locks: tuple[AdvisoryLock, ...] = ()

    def __str__(self) -> str:
        name = self.application_name or "no name"
        return f"server process {self.pid} ({name}) on {self.database}: {self.state}, last query {self.query!r}"


def sessions(where: str | psycopg.Connection[Any], *, everywhere: bool = False) -> list[ServerSession]:
    """Client sessions on the database of ``where`` (with ``everywhere``, on all of its server), without those that ask.

    ``where`` is a connection string, or an open connection in autocommit mode (in a transaction the server would answer
    from the same picture for ever).
    """
    with _connection(where) as connection:
        rows = connection.execute(SESSIONS_WITH_LOCKS, (everywhere,)).fetchall()
    found: dict[int, ServerSession] = {}
    locks: dict[int, list[AdvisoryLock]] = {}
    for pid, name, database, state, query, high, low, is_pair, mode, granted in rows:
        found[pid] = ServerSession(pid, name, database, state, query)
        if mode is not None:
            locks.setdefault(pid, []).append(AdvisoryLock(_key(high, low, is_pair), mode, granted, pid, name))
    return [
        ServerSession(s.pid, s.application_name, s.database, s.state, s.query, tuple(locks.get(s.pid, ())))
        for s in found.values()
    ]


def advisory_locks(where: str | psycopg.Connection[Any], *, everywhere: bool = False) -> list[AdvisoryLock]:
    """Advisory locks held or waited for by ``sessions(where)``."""
    return [lock for session in sessions(where, everywhere=everywhere) for lock in session.locks]


@dataclass(frozen=True)
class Snapshot:
    """What exists at one moment, to be compared with later: ``Snapshot.take(url)``, the test, ``snapshot.check(url)``.

    Tasks are seen only when taken and compared inside the running event loop.
    """

    tasks: frozenset[asyncio.Task[Any]] = frozenset()
    threads: frozenset[threading.Thread] = frozenset()
    sessions: frozenset[int] = frozenset()
    locks: frozenset[AdvisoryLock] = field(default=frozenset())

    @classmethod
    def take(cls, where: str | psycopg.Connection[Any] | None = None, *, everywhere: bool = False) -> Snapshot:
        """Look at this process and, if ``where`` is given, at the server (see ``sessions``)."""
        there = [] if where is None else sessions(where, everywhere=everywhere)
        return cls(
            tasks=frozenset(_tasks()),
            threads=frozenset(threading.enumerate()),
            sessions=frozenset(session.pid for session in there),
            locks=frozenset(lock for session in there for lock in session.locks),
        )

    def leaks(self, where: str | psycopg.Connection[Any] | None = None, *, everywhere: bool = False) -> list[str]:
        """What is there now and was not then, one line each."""
        there = [] if where is None else sessions(where, everywhere=everywhere)
        found = [f"task {task.get_name()}: {task.get_coro()}" for task in _tasks() - self.tasks]
        found += [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self.threads]
        found += [str(session) for session in there if session.pid not in self.sessions]
        found += [str(lock) for session in there for lock in session.locks if lock not in self.locks]
        return found

    def check(
        self, where: str | psycopg.Connection[Any] | None = None, *, everywhere: bool = False, limit: float = 10.0
    ) -> None:
        """Wait up to ``limit`` seconds until nothing is left over; raise ``AssertionError`` that names what is.

        Blocks the calling thread, so a task has no time to end meanwhile: await what you started before.
        """
        left: list[str] = []

        def nothing_left() -> bool:
            left[:] = self.leaks(where, everywhere=everywhere)
            return not left

        try:
            eventually(nothing_left, limit)
        except AssertionError:
            raise AssertionError(f"left behind after {limit:g} s:\n  " + "\n  ".join(left)) from None


def eventually(predicate: Callable[[], T], limit: float = 30.0, *, what: str | None = None) -> T:
    """Ask until the answer is true, and return it.

    After ``limit`` seconds raise ``AssertionError`` with the last answer. Blocks the calling thread.
    ``what`` names the condition in the error.
    """
    for last_chance, pause in _pauses(limit):
        answer = predicate()
        if answer:
            return answer
        if last_chance:
            raise _gave_up(predicate, what, limit, answer)
        time.sleep(pause)
    raise AssertionError("unreachable")


@overload
async def eventually_async(
    predicate: Callable[[], Coroutine[Any, Any, T]], limit: float = 30.0, *, what: str | None = None
) -> T: ...


@overload
async def eventually_async(predicate: Callable[[], T], limit: float = 30.0, *, what: str | None = None) -> T: ...


async def eventually_async(predicate: Callable[[], Any], limit: float = 30.0, *, what: str | None = None) -> Any:
    """``eventually`` for coroutines: the loop runs between the questions, and the predicate may be a coroutine.

    It is not interrupted at the limit.
    """
    for last_chance, pause in _pauses(limit):
        asked = predicate()
        answer = await asked if inspect.isawaitable(asked) else asked
        if answer:
            return answer
        if last_chance:
            raise _gave_up(predicate, what, limit, answer)
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


def _pauses(limit: float) -> Iterator[tuple[bool, float]]:
    """(is this the last question, how long to wait after it), without end."""
    end = time.monotonic() + limit
    pause = _FIRST_PAUSE
    while True:
        left = end - time.monotonic()
        yield left <= 0, max(0.0, min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE)


def _gave_up(predicate: object, what: str | None, limit: float, answer: object) -> AssertionError:
    name = what or getattr(predicate, "__qualname__", repr(predicate))
    return AssertionError(f"{name}: not true within {limit:g} s; the last answer was {answer!r}")


def _tasks() -> set[asyncio.Task[Any]]:
    try:
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    except RuntimeError:
        return set()


def _key(high: int, low: int, is_pair: bool) -> int | tuple[int, int]:
    return (_signed(high, 32), _signed(low, 32)) if is_pair else _signed(high << 32 | low, 64)


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


@contextmanager
def _connection(where: str | psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    if isinstance(where, psycopg.Connection):
        yield where
    else:
        with psycopg.connect(where, autocommit=True, application_name="pgconcert leak check") as connection:
            yield connection
