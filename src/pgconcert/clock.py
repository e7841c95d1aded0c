"""The port ``Clock``: what time it is, and *call me then*. The real clock, and one that tests move by hand.

Theory. Whoever waits for a time asks a clock for both, the time and the call, so that one object decides what a second
is. A clock only goes forward, and its zero means nothing: compare its times with each other only. Callbacks may come on
any thread (the real clock's come on the event loop that asked), so whoever lives on one loop posts itself there.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol

from .errors import ConfigurationError

__all__ = ["Clock", "FakeClock", "RealClock", "SuspendClock", "Timer"]


class Timer(Protocol):
    """A call that is to come; ``asyncio.TimerHandle`` is one."""

    def cancel(self) -> None:
        """Do not call. Idempotent, and without effect after the call."""
        ...


class Clock(Protocol):
    """A clock that only goes forward."""

    def now(self) -> float:
        """The time in seconds. Safe from any thread."""
        ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call ``callback`` once ``now()`` has reached ``when``; if it has, soon, perhaps within this call.

        To be asked on the thread of a running event loop.
        """
        ...


class RealClock:
    """The machine's monotonic clock, which stands still while the machine is suspended."""

    def now(self) -> float:
        """The time in seconds."""
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call ``callback`` at that time, on the running event loop."""
        return asyncio.get_running_loop().call_later(max(0.0, when - time.monotonic()), callback)


class _Due:
    """One call of a fake clock."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.callback = _nothing  # whatever it would have called need not live until then


def _nothing() -> None:
    pass


class SuspendClock:
    """The machine's clock that goes on while the machine is suspended, where there is one (Linux); elsewhere the
    monotonic clock. A call that falls due during a suspension comes some time after it."""

    def now(self) -> float:
        """The time in seconds."""
        return _with_suspension()

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call ``callback`` at that time, on the running event loop."""
        return asyncio.get_running_loop().call_later(max(0.0, when - _with_suspension()), callback)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_with_suspension = _boottime if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic


class FakeClock:
    """A clock that stands still until a test moves it. Safe from any thread.

    ``advance`` runs what falls due on the thread that calls it, in the order of the times (of equal ones in the order
    of asking); while each of them runs, ``now()`` is its time. What they ask for is run too, if it falls due.

    :param start: the first ``now()``, in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._due: list[tuple[float, int, _Due]] = []
        self._numbers = itertools.count()
        self._state = threading.Lock()
        self._advancing = threading.RLock()

    def now(self) -> float:
        """The time in seconds."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        """Call ``callback`` when the clock has been moved to that time; now, if it has."""
        due = _Due(callback)
        with self._state:
            later = when > self._now
            if later:
                heapq.heappush(self._due, (when, next(self._numbers), due))
        if not later:
            callback()
        return due

    def advance(self, seconds: float) -> None:
        """Move the clock forward and run what falls due.

        An error of a callback is raised here; the clock then stands at its time, and the rest is run by the next call.
        Raises ``ConfigurationError`` for less than nothing.
        """
        if not 0 <= seconds < float("inf"):
            raise ConfigurationError(f"a clock goes forward by a number of seconds >= 0, not by {seconds!r}")
        with self._advancing:  # one after the other, so that the order of the times is the order of the calls
            end = self._now + seconds
            while (due := self._next(end)) is not None:
                due.callback()

    def waiting(self) -> int:
        """How many calls are still to come."""
        with self._state:
            return sum(not due.cancelled for _, _, due in self._due)

    def _next(self, end: float) -> _Due | None:
        with self._state:
            while self._due and self._due[0][0] <= end:
                when, _, due = heapq.heappop(self._due)
                if not due.cancelled:
                    self._now = max(self._now, when)
                    return due
            self._now = max(self._now, end)
            return None
