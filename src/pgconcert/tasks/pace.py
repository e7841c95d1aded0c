"""When a runner takes its next turn, and how long it lets things rest. Pure but for chance: it is told the time.

Theory. A turn that may hand out tasks is due at the first of these: the *tick*; a *wake-up*, at once, but not within 20
ms of the beginning of the turn before; the time at which the source knows that something will be due; and at once when
a call has ended, for there may be more (``eager``). Two things hold it back, whatever else is due: the *pause* after a
call in which nothing was completed, and the *back-off* after a turn that failed. What is only reported waits for the
back-off alone. So the tick is the guarantee, a flood of wake-ups costs fifty turns a second at most, and neither a
tasker that always fails nor a source that always fails makes a runner spin.

A flag is taken back when the turn that answers it begins, so what comes meanwhile leads to another turn; a turn that
fails has answered nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

__all__ = ["MOST_REST", "Pace", "rest"]

MOST_REST: Final = 3600.0
"""The longest that a failed task rests, in seconds."""

_FIRST: Final = 0.05
_GAP: Final = 0.02
_MOST_DOUBLINGS: Final = 40
_EARLIER: Final = 0.25
"""By which part a pause may be shorter than its length, so that processes do not go in step."""


def rest(tick: float, failures: int, chance: Callable[[], float] = random.random) -> float:
    """For how many seconds a task rests that has failed so often: a tick, then twice as long each time."""
    return min(MOST_REST, _doubled(tick, failures)) * (1 - _EARLIER * chance())


class Pace:
    """See the module. Times are seconds of one clock; ``tick`` and ``jitter`` as for ``AsyncCoordinator.runner``."""

    __slots__ = (
        "_began",
        "_chance",
        "_failures",
        "_jitter",
        "_next",
        "_pause",
        "_tick",
        "_tick_at",
        "_vain",
        "_woken",
        "eager",
        "retry_at",
    )

    def __init__(self, tick: float, jitter: float, chance: Callable[[], float] = random.random) -> None:
        self._tick = tick
        self._jitter = jitter
        self._chance = chance
        self._began = -math.inf
        self._tick_at = -math.inf
        self._woken = math.inf
        self._next = math.inf
        self._pause = -math.inf
        self._vain = 0
        self._failures = 0
        self.retry_at = -math.inf
        """Before this nothing is asked, because the last turn failed."""
        self.eager = False
        """Whether there may be more to do."""

    # what happens

    def woken(self, now: float) -> None:
        """There may be new tasks."""
        if self._woken == math.inf:
            soon = now - self._began < _GAP
            self._woken = self._began + _GAP * (1 + self._chance()) if soon else now

    def anew(self) -> None:
        """There is another session, and its first turn is a tick."""
        self._tick_at = -math.inf

    def call_ended(self, now: float, completed: int) -> None:
        """A call of the tasker has ended, and so many tasks are completed."""
        self.eager = True
        if completed:
            self._vain = 0
            return
        self._vain += 1
        self._pause = max(self._pause, now + self._jittered(min(self._tick, _doubled(_FIRST, self._vain))))

    def turn_begins(self, now: float, *, picks: bool) -> None:
        """A turn begins. ``picks``: it has room, and may pick up what is new."""
        self._began = now
        if picks:
            self._woken = self._next = math.inf
            self.eager = False

    def turn_ended(self, now: float, *, picked: bool, short: bool, next_in: float | None) -> None:
        """It was answered. ``short``: it handed out less than there was room for; ``next_in`` as in ``Handed``."""
        self._failures = 0
        if picked and now >= self._tick_at:
            self._tick_at = now + self._tick * (1 - self._jitter * self._chance())
        if short and not picked:
            self.eager = True
        if next_in is not None:
            self._next = min(self._next, now + next_in + _GAP * self._chance())

    def failed(self, now: float) -> float:
        """A turn, or the start of a session, has failed: after how many seconds to try again."""
        self._failures += 1
        self.eager = True
        pause = self._jittered(min(self._tick, _doubled(_FIRST, self._failures)))
        self.retry_at = now + pause
        return pause

    # what follows

    def due(self) -> float:
        """When the next turn that hands out tasks is due."""
        reason = -math.inf if self.eager else min(self._tick_at, self._woken, self._next)
        return max(reason, self._pause, self.retry_at)

    def tick_due(self) -> float:
        """When the next tick is due, if there is no room for anything else."""
        return max(self._tick_at, self.retry_at)

    def ticks(self, now: float) -> bool:
        """Whether it is time for a tick."""
        return now >= self._tick_at

    def paused(self, now: float) -> bool:
        """Whether nothing is to be handed out, because the last calls have completed nothing."""
        return now < self._pause

    def _jittered(self, seconds: float) -> float:
        return seconds * (1 - _EARLIER * self._chance())


def _doubled(first: float, times: int) -> float:
    return first * 2.0 ** min(max(times, 1) - 1, _MOST_DOUBLINGS)
