"""Signals that end a program, turned into one exception. For commands that have something to put away.

The exception comes once, and may come between any two instructions, except in two places: inside ``shielded`` it waits
for the end of the section (a process that was started is then also known), and after ``finish``, or after the
exception itself, further signals are ignored, so that nothing is left half put away by an impatient second Ctrl-C.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

__all__ = ["Ending", "Stopped"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """Somebody wants the program to end. ``code`` is what a shell expects it to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        self.code = 128 + number


class Ending:
    """Use it as ``with``, in the main thread; the handlers that were there come back at its end."""

    def __init__(self) -> None:
        self._before: dict[int, signal._HANDLER] = {}
        self._shields = 0
        self._pending: int | None = None

    def _come(self, number: int, frame: FrameType | None) -> None:
        if self._shields:
            self._pending = number
        else:
            self.finish()
            raise Stopped(number)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """What is inside runs to its end first. Keep it short."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._pending is not None and not self._shields:
            self._come(self._pending, None)

    def finish(self) -> None:
        """From now on ignore them: things are being put away."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            # What is ignored already (nohup, a job in the background) stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
