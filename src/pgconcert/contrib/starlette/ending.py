"""How streams learn that the server is about to end, and how several things run until the first of them is over.

Theory. A stream has no end of its own, and a server that stops in good order waits for all responses *before* it says a
word to the application (``lifespan.shutdown``): each would wait for the other. So the streams must be told by what
tells the server, which is a signal. While the application lives, our handler stands before the server's: it calls that
one first, and then begins the end. Only handlers that exist are called so; where the default action would end the
process, nothing is put in its place. A server that ends without a signal (uvicorn's ``limit_max_requests``) says so in
its ``should_exit``, at which we look every half second. Outside of the main thread there are no handlers, and by them
no server to be found: there streams end when the server cancels them.

States: *not begun* --signal, ``should_exit``, end of the application--> *begun*. There is no way back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final

__all__ = ["Ending", "until_first"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_LOOKS: Final = 0.5


class Ending:
    """Whether the server is about to end. Made on the event loop of the application."""

    def __init__(self) -> None:
        self._begun = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}
        self._pid = os.getpid()
        self._servers: list[Any] = []

    def watch(self) -> None:
        """Stand before the handlers of the server."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if callable(before):
                self._before[number] = before
                server = getattr(before, "__self__", None)
                if hasattr(server, "should_exit"):
                    self._servers.append(server)
                signal.signal(number, self._come)

    def unwatch(self) -> None:
        """Put back the handlers that were there, unless others stand before us: to these we go on to hand through."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._come:
                signal.signal(number, before)

    def begin(self) -> None:
        """Let all streams end. Idempotent."""
        self._begun.set()

    async def look(self) -> None:
        """Begin when the server is to end, if no signal tells us before."""
        while self._servers and not self._begun.is_set():
            if any(server.should_exit is True for server in self._servers):
                self.begin()
            else:
                await asyncio.sleep(_LOOKS)

    async def wait(self) -> None:
        """Return when the end has begun."""
        await self._begun.wait()

    def _come(self, number: int, frame: FrameType | None) -> None:
        try:
            self._before[signal.Signals(number)](number, frame)
        finally:
            if self._pid == os.getpid():
                with contextlib.suppress(RuntimeError):  # the loop is closed, and with it every stream
                    self._loop.call_soon_threadsafe(self.begin)


async def until_first(*works: Coroutine[Any, Any, object]) -> None:
    """Run all until the first is over, and cancel the rest. Raises what it raised; cancelled, it cancels all."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        over = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in over:
        task.result()
