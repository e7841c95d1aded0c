"""The threads on which handlers and hooks of one coordinator run, because the engine must never wait for anybody.

Theory. Everything but a handler itself is done on the engine: it hands a job to the threads by a queue, and the thread
posts the outcome back. There are as many threads as there were jobs at once, up to a limit; they begin with the first
job and end when the last user leaves. A *user* is a listening that is open, or a hook.

A thread cannot be cancelled. Who waits for a job and leaves gets nothing; the handler runs on, its outcome is thrown
away, and its thread ends behind it. The threads are daemons, so none of them holds up the end of the program.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from queue import SimpleQueue
from typing import Any, TypeVar

from ..crossing import Crossing
from ..errors import BrokerClosed, ConfigurationError, given

__all__ = ["HandlerThreads", "check_plain", "not_awaitable"]

T = TypeVar("T")

Job = Callable[[], object]


class _Crew:
    """The threads of one time: from the first job until nobody needs them any more."""

    __slots__ = ("jobs", "threads", "under_way")

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.threads = 0
        self.under_way = 0


class HandlerThreads:
    """Runs handlers. Touched on the engine only, but for ``inside``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, crossing: Crossing, most: int, what: str = "handler") -> None:
        """``most`` threads at a time; ``what`` runs there, for people."""
        self._what = what
        self._loop = loop
        self._crossing = crossing
        self._most = most
        self._users = 0
        self._crew = _Crew()
        self._closed = False
        self._inside: set[int] = set()

    @property
    def inside(self) -> bool:
        """Whether the calling thread is one of them."""
        return threading.get_ident() in self._inside

    def join(self) -> None:
        """There is a user more."""
        self._users += 1

    def leave(self) -> None:
        """There is a user less. The threads end with the last one."""
        self._users -= 1
        if not self._users:
            self._dismiss()

    def close(self) -> None:
        """The end. Whoever runs runs on, and nothing new is begun."""
        self._closed = True
        self._dismiss()

    def on_thread(self, handler: Callable[[Any], T]) -> Callable[[Any], Awaitable[T]]:
        """A coroutine function that calls ``handler`` on one of the threads."""

        @wraps(handler, updated=())
        async def call(item: Any) -> T:
            try:
                return await self.run(partial(handler, item))
            except (Exception, asyncio.CancelledError):
                raise
            except BaseException as failure:  # what would end a thread must not end the engine
                raise RuntimeError(f"a {self._what} raised {type(failure).__name__}: {failure}") from failure

        return call

    async def run(self, work: Callable[[], T]) -> T:
        """Run something on one of the threads: what it returns or raises. Cancelled, we leave, and it runs on."""
        if self._closed:
            raise BrokerClosed("the coordinator was closed")
        crew = self._crew
        future: asyncio.Future[tuple[Any, BaseException | None]] = self._loop.create_future()
        if crew.threads <= crew.under_way and crew.threads < self._most:
            self._begin(crew)
        crew.under_way += 1
        crew.jobs.put(partial(self._do, crew, work, future))
        result, failure = await future
        if failure is not None:
            raise failure
        return result  # type: ignore[no-any-return]

    def _begin(self, crew: _Crew) -> None:
        thread = threading.Thread(target=self._work, args=(crew.jobs,), name=f"pgconcert-{self._what}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not crew.threads:
                raise
        else:
            crew.threads += 1

    def _dismiss(self) -> None:
        crew, self._crew = self._crew, _Crew()
        for _ in range(crew.threads):
            crew.jobs.put(None)

    # on the threads

    def _work(self, jobs: SimpleQueue[Job | None]) -> None:
        me = threading.get_ident()
        self._inside.add(me)
        try:
            while (job := jobs.get()) is not None:
                job()
                del job  # or it would be kept until the next one comes
        finally:
            self._inside.discard(me)

    def _do(self, crew: _Crew, work: Callable[[], object], future: asyncio.Future[Any]) -> None:
        outcome: tuple[object, BaseException | None] = (None, None)
        if not future.cancelled():
            try:
                outcome = (not_awaitable(work(), self._what), None)
            except BaseException as error:
                outcome = (None, error)
        self._crossing.post(partial(self._done, crew, future, outcome))

    def _done(self, crew: _Crew, future: asyncio.Future[Any], outcome: object) -> None:
        crew.under_way -= 1
        if not future.done():
            future.set_result(outcome)


def check_plain(handler: object, what: str) -> None:
    """Raise ``ConfigurationError`` for a coroutine function: no event loop is here to run it."""
    call = getattr(handler, "__call__", None)  # noqa: B004
    if any(_is_async(function) for function in (handler, call)):
        raise ConfigurationError(
            f"{what} must be a plain function, not the coroutine function {given(handler)}: this is the blocking twin; "
            "use AsyncCoordinator for it"
        )


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def not_awaitable(result: T, what: str) -> T:
    """What a plain function returned. Raises ``ConfigurationError`` for a coroutine, which nobody here awaits."""
    if not inspect.isawaitable(result):
        return result
    if inspect.iscoroutine(result):
        result.close()
    raise ConfigurationError(
        f"a {what} of the blocking twin returned a {type(result).__name__}, which nobody here awaits: give a plain "
        "function, or use AsyncCoordinator"
    )
