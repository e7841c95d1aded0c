"""Calls that cross from one thread to the event loop of another: many calls, one wake-up.

Theory. ``post`` appends to a deque and rings. A loop that is not ours is rung by ``call_soon_threadsafe``, which is
dear, so nobody rings twice before the loop has looked: it clears that flag *before* it reads the deque, and a call that
is posted from then on rings again.

Our own engine's loop has a bell of a single write: an eventfd, or a pair of sockets where there is none. It is rung
every time, because a flag could not be trusted there: the callers are threads that a signal handler may interrupt by an
exception between any two steps (Ctrl-C), and a flag that says "rung" when nobody has would silence the bell for ever.
Whoever is interrupted before its ring was heard rings once more on its way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable

__all__ = ["Crossing", "EngineCrossing"]


class Crossing:
    """Crossing to a loop that is not ours."""

    __slots__ = ("_calls", "_loop", "_on_the_way", "closed")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._on_the_way = False
        self.closed = False
        """Whether nothing can be posted any more: the loop has ended, or it belongs to the parent of this process."""

    def post(self, call: Callable[[], object]) -> bool:
        """Run ``call`` on the loop, in the order of posting. False if the loop has ended: then it is not run."""
        self._calls.append(call)
        if not self._on_the_way:
            self._on_the_way = True
            try:
                self._loop.call_soon_threadsafe(self._run)
            except RuntimeError:
                self._calls.clear()
                self._on_the_way = False
                return False
        return True

    def _run(self) -> None:
        # cleared before the deque is read: a call posted from here on wakes the loop again
        self._on_the_way = False
        calls = self._calls
        while calls:
            call = calls.popleft()
            try:
                call()
            except Exception as error:
                self._loop.call_exception_handler({"message": "pgconcert: a crossing call failed", "exception": error})
            except BaseException:
                self._loop.call_soon(self._run)  # the others are not concerned
                raise


class EngineCrossing(Crossing):
    """Crossing to the engine's own loop. Made before the loop runs; ``close`` is called on its thread, at its end."""

    __slots__ = ("_bell", "_pair")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._bell = -1
        self._pair: tuple[socket.socket, socket.socket] | None = None
        super().__init__(loop)
        if hasattr(os, "eventfd"):
            self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = socket.socketpair()
            for end in self._pair:
                end.setblocking(False)
            self._bell = self._pair[0].fileno()
        loop.add_reader(self._bell, self._heard)

    def post(self, call: Callable[[], object]) -> bool:
        """Run ``call`` on the engine, in the order of posting. False if it has ended: then it is not run, unless it
        came at the very last moment."""
        self._calls.append(call)
        try:
            self._ring()
        except BaseException:
            self._ring()
            raise
        if not self.closed:
            return True
        # our own and no other: a call that was posted in time is still to be run
        with contextlib.suppress(ValueError):
            self._calls.remove(call)
        return False

    def later(self, call: Callable[[], object]) -> None:
        """Run ``call`` on the engine before whatever is posted next. Nobody is woken for it."""
        if not self.closed:
            self._calls.append(call)

    def _ring(self) -> None:
        if self.closed:
            return
        if self._pair is None:
            os.eventfd_write(self._bell, 1)
        else:
            try:
                self._pair[1].send(b"\0")
            except BlockingIOError:
                pass  # so many are unheard that one more makes no difference

    def _heard(self) -> None:
        if self._pair is None:
            os.eventfd_read(self._bell)
        else:
            self._pair[0].recv(4096)
        self._run()

    def close(self) -> None:
        """The loop has ended, or will not begin: whatever is posted from now on is forgotten.

        The descriptor stays open as long as somebody has this object, for a thread may be about to ring it, and its
        number would be somebody else's.
        """
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._bell)
            self._run()

    def abandon(self) -> None:
        """After a fork, in the child: close what is ours without touching the loop, whose selector is the parent's."""
        self.closed = True
        self._calls.clear()
        self._close_bell()

    def __del__(self) -> None:
        if hasattr(self, "_pair"):  # else interrupted while it was made
            self._close_bell()

    def _close_bell(self) -> None:
        bell, self._bell = self._bell, -1
        pair, self._pair = self._pair, None
        if pair is not None:
            for end in pair:
                end.close()
        elif bell >= 0:
            os.close(bell)
