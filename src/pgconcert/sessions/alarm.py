"""A call that is to come at a time of a clock, on our event loop, and can be set again. Nothing else.

The callback of a clock may come on any thread (the clock of a test is moved by whoever moves it), so it posts itself to
the loop; and one that was posted before the alarm was set anew must not ring: so each setting has a number. An alarm
that is not set knows nobody whom it would call: so whoever has one is not kept alive by it, and goes without the
collector of circles.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from ..clock import Clock, Timer

__all__ = ["Alarm"]


class Alarm:
    """One call to come, or none."""

    __slots__ = ("_clock", "_loop", "_setting", "_timer", "due")

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._timer: Timer | None = None
        self._setting = 0
        self.due: float | None = None
        """When it rings, by the clock."""

    def set(self, due: float, call: Callable[[], None]) -> None:
        """Call at ``due``, and at no other time; the same as before, if it was to ring at that time already."""
        if due == self.due:
            return
        self.stop()
        self.due = due
        setting = self._setting
        self._timer = self._clock.call_at(due, lambda: self._post(setting, call))

    def stop(self) -> None:
        """Do not ring."""
        self._setting += 1
        self.due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _post(self, setting: int, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody is left to be told
            self._loop.call_soon_threadsafe(self._ring, setting, call)

    def _ring(self, setting: int, call: Callable[[], None]) -> None:
        if setting == self._setting:
            self._timer = self.due = None
            call()
