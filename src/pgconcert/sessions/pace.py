"""How long to pause between the runs of a job that is kept running. Pure but for chance.

Theory. A job that ends fast, by returning or by raising, must not be run in a hot loop. The first pause is a tenth of a
second, each further one twice as long, up to an interval of heartbeats and at most ten seconds; each a quarter more or
less by chance, so that processes do not go in step. A run that lasted as long as the longest pause brings back the
first. So a job that is done in no time is run now and then, and one that failed for a moment goes on at once.
"""

from __future__ import annotations

import random
from typing import Final

from .timing import Timing

__all__ = ["Pace"]

_FIRST: Final = 0.1
_LONGEST: Final = 10.0
_JITTER: Final = 0.25


class Pace:
    """See the module."""

    def __init__(self, timing: Timing) -> None:
        self._longest = min(timing.interval, _LONGEST)
        self._first = min(_FIRST, self._longest)
        self._next = self._first

    def after(self, ran: float) -> float:
        """The pause in seconds after a run that lasted so long."""
        if ran >= self._longest:
            self._next = self._first
        pause = self._next
        self._next = min(pause * 2, self._longest)
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)
