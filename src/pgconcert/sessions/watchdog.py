"""The watchdog: a thread that looks where the event loop stands when a heartbeat is late.

A loop that is blocked cannot tell by what; another thread can look at its stack. The loop says until when it will be
heard of; if it is not, the stack is taken once, and reported by the loop itself when it goes on (``HeartbeatLate``).
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from typing import Final

__all__ = ["Watchdog"]

_MOST_FRAMES: Final = 12


class Watchdog:
    """Made on the thread of the loop that it watches; its own thread starts with the first expectation."""

    def __init__(self) -> None:
        self._expected = _Expected(threading.get_ident())
        self._thread: threading.Thread | None = None

    def expect(self, seconds: float | None) -> None:
        """The loop will be heard of within ``seconds``; ``None``: it need not be."""
        expected = self._expected
        expected.until = None if seconds is None else time.monotonic() + seconds
        if seconds is not None and self._thread is None:
            self._thread = threading.Thread(target=_watch, args=(expected,), name="pgconcert-watchdog", daemon=True)
            self._thread.start()
        expected.changed.set()

    def seen(self) -> str | None:
        """The loop goes on; where it stood, if it was late."""
        until, stack = self._expected.looked
        return stack if until == self._expected.until else None

    def close(self) -> None:
        """End the thread and wait for it."""
        self._end()
        if self._thread is not None:
            self._thread.join()

    def _end(self) -> None:
        self._expected.closed = True
        self._expected.changed.set()

    def __del__(self) -> None:
        self._end()  # the loop has ended without close


class _Expected:
    """What the loop and the thread share. The thread does not know the watchdog, so whoever drops that ends it."""

    def __init__(self, watched: int) -> None:
        self.watched = watched
        self.changed = threading.Event()
        self.until: float | None = None
        self.looked: tuple[float | None, str | None] = (None, None)
        """For which expectation the stack was taken, and the stack."""
        self.closed = False


def _watch(expected: _Expected) -> None:
    while True:
        expected.changed.clear()
        if expected.closed:  # after the clearing, else it might be missed
            return
        until = expected.until
        if until is None or until == expected.looked[0]:
            expected.changed.wait()
        elif not expected.changed.wait(max(0.0, until - time.monotonic())) and until == expected.until:
            expected.looked = until, _look(expected.watched)


def _look(watched: int) -> str | None:
    frame = sys._current_frames().get(watched)
    return None if frame is None else "".join(traceback.format_stack(frame)[-_MOST_FRAMES:])
