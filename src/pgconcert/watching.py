"""What changes, seen by looking: an ``async with`` around an async iterator. Elections and groups share it.

Here live the way to ask the store for one answer, the machinery that looks again and again, and the consumer's end.
What a look means is the affair of a *view*, which is pure: it says what to ask, and turns each answer into changes.

Theory. One task looks, and puts what it saw into a queue; whoever iterates takes from there, so a slow consumer misses
nothing and delays nobody. It looks again as soon as it is told that something may have changed, when something changes
by time alone (the view knows when), and after ``check`` seconds at the latest. Being told is a matter of speed: the
guarantee is to look, and that each answer carries all that happened since the one before.

An answer that does not come changes nothing: while there is no connection it looks again after a pause that grows up to
``check``, and reports nothing, for nothing is known. Any other error ends the looking; who iterates gets it behind what
was seen before.

States: *new*, *open* from the moment when the first look was answered, then *closed*. It is entered once.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import random
import warnings
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from .acquiring import Register, check_timeout
from .errors import CoordinatorClosed, GivenUp, Unavailable
from .sessions.alarm import Alarm
from .sessions.register import SessionRegister
from .store import Request, Subject

__all__ = ["AsyncChanges", "View", "ask"]

C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)
T = TypeVar("T")

_RETRY: Final = 0.1
_SPREAD: Final = 0.02
"""Seconds over which those who wait for one and the same instant are spread."""
_SOONER: Final = 0.75

_CLOSED: Final = "this observer was closed"


async def ask(register: SessionRegister[Register], request: Request[T]) -> T:
    """Ask the store, and wait for the answer. Raises ``Unavailable``, ``SchemaMissing``, ``CoordinatorClosed``."""
    register.register.here()
    answer: asyncio.Future[T] = register.register.loop.create_future()
    register.sessions.ask(request, answer)
    return await answer


class View(Protocol[C_co]):
    """What one observer knows."""

    def request(self) -> Request[Any]:
        """What to ask next."""
        ...

    def seen(self, answer: Any, /) -> tuple[Sequence[C_co], float | None]:
        """Learn an answer: what has changed, and after how many seconds something may change by time alone."""
        ...


class _Looker(Generic[C]):
    """Looks, and keeps what it saw. It does not know who takes it, so whoever is thrown away ends it."""

    def __init__(self, register: SessionRegister[Register], subject: Subject, check: float, view: View[C]) -> None:
        self.changes: deque[C] = deque()
        self.ended: Exception | None = None
        self.news = asyncio.Event()
        """Set while there may be something to take, or it has ended."""
        self._register = register
        self._subject = subject
        self._check = check
        self._view = view
        self._hint = asyncio.Event()
        self._alarm = Alarm(register.sessions.clock, register.register.loop)
        self._watch: object = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Look for the first time, and go on looking."""
        self._watch = self._register.sessions.watch(self._subject, self._hint.set)
        try:
            due = await self._look()
        except BaseException:
            self.end()
            raise
        name = f"pgconcert observing {self._subject.name}"
        self._task = self._register.register.loop.create_task(self._go_on(due), name=name)

    def end(self) -> asyncio.Task[None] | None:
        """Look no more, and forget what was seen. The task that ends."""
        self._unwatch()
        self.changes.clear()
        self._over(CoordinatorClosed(_CLOSED))
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    async def _go_on(self, due: float | None) -> None:
        vain = 0
        try:
            while True:
                await self._rest(due, vain)
                try:
                    due = await self._look()
                    vain = 0
                except GivenUp:
                    raise
                except Unavailable:
                    due = None
                    vain += 1
        except Exception as error:
            self._unwatch()
            self._over(error)

    async def _look(self) -> float | None:
        """Look, and return the time at which to look again."""
        self._hint.clear()
        sent = self._register.sessions.clock.now()
        changes, due = self._view.seen(await ask(self._register, self._view.request()))
        if changes:
            self.changes.extend(changes)
            self.news.set()
        # the answer is of some time after the sending: so this is never too late
        return None if due is None else sent + due

    async def _rest(self, due: float | None, vain: int) -> None:
        """Until it is time to look again."""
        pause = self._check
        if vain:
            pause = min(pause, _RETRY * 2 ** min(vain, 10))
        then = self._register.sessions.clock.now() + pause * random.uniform(_SOONER, 1.0)
        if due is not None:
            then = min(then, due + random.random() * _SPREAD)
        self._alarm.set(then, self._hint.set)
        try:
            await self._hint.wait()
        finally:
            self._alarm.stop()

    def _over(self, error: Exception) -> None:
        if self.ended is None:
            self.ended = error
        self.news.set()

    def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._register.sessions.unwatch(watch)


class AsyncChanges(Generic[C]):
    """Changes as they happen. ``async with`` it, then iterate, or ``get()``.

    Entering it looks for the first time, so the present state is there at once. What was seen is kept until it is
    taken, however slow that is. Several tasks may take from it: each change goes to one of them.
    """

    def __init__(self, register: SessionRegister[Register], subject: Subject, check: float, view: View[C]) -> None:
        self._looker = _Looker(register, subject, check, view)
        self._loop = register.register.loop
        self._name = subject.name
        self._pid = os.getpid()
        self._state = "new"

    async def get(self, timeout: float | None = None) -> C:
        """The next change.

        Raises ``TimeoutError`` after ``timeout`` seconds, ``CoordinatorClosed`` when this or its coordinator is closed,
        and what has ended the looking (``SchemaMissing``, ``StatementFailed``). Cancelled, it takes nothing.
        """
        if timeout is None:
            return await self._next()
        limit = check_timeout(timeout)
        within = asyncio.timeout(limit)
        try:
            async with within:
                return await self._next()
        except TimeoutError:
            if not within.expired():
                raise
            raise TimeoutError(f"nothing about {self._name!r} has changed within {limit:g} s") from None

    async def _next(self) -> C:
        self._here()
        if self._state == "new":
            raise RuntimeError("this observer is not open: enter it, and take inside the block")
        looker = self._looker
        while not looker.changes:
            if looker.ended is not None:
                raise copy.copy(looker.ended)  # of its own, for each who gets it leaves its traceback there
            looker.news.clear()
            await looker.news.wait()
        return looker.changes.popleft()

    def _put_back(self, change: C) -> None:
        """What was taken reached nobody: it is the next again."""
        if self._state == "open":
            self._looker.changes.appendleft(change)
            self._looker.news.set()

    def __aiter__(self) -> AsyncIterator[C]:
        return self

    async def __anext__(self) -> C:
        if self._state == "closed":
            raise StopAsyncIteration
        try:
            return await self._next()
        except CoordinatorClosed:
            if self.closed:
                raise StopAsyncIteration from None
            raise

    @property
    def closed(self) -> bool:
        """Whether it was left, or ``close`` was called."""
        return self._state == "closed"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("an observer is entered once; ask for another")
        self._state = "entering"
        try:
            await self._looker.begin()
        except BaseException:
            self._state = "closed"
            raise
        if self.closed:  # meanwhile
            await _ended(self._looker)
            raise CoordinatorClosed(_CLOSED)
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Look no more; what was not taken is dropped. Idempotent. Whoever iterates comes to the end."""
        if self.closed or self._pid != os.getpid():
            self._state = "closed"
            return
        self._here()
        self._state = "closed"
        await _ended(self._looker)

    def _here(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this observer belongs to another event loop; use it there")

    def _abandon(self) -> None:
        """As ``close``, without waiting for the end: for our own twin, on the loop, or when that has ended."""
        state, self._state = self._state, "closed"
        if state != "closed" and self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):
                self._looker.end()

    def _thrown_away(self) -> bool:
        """Whether it looks still, for nobody."""
        return self._state == "open" and self._pid == os.getpid() and self._looker.ended is None

    def __del__(self) -> None:
        if not hasattr(self, "_state") or not self._thrown_away():
            return
        warnings.warn(f"{self!r} was dropped without close", ResourceWarning, stacklevel=2)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all that looks
            self._loop.call_soon_threadsafe(self._looker.end)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name!r} {self._state}, {len(self._looker.changes)} to take>"


async def _ended(looker: _Looker[Any]) -> None:
    task = looker.end()
    if task is not None:
        await asyncio.wait([task])
