"""How long a link has been wanted in vain, and which of its failed attempts are worth a line of the log. Pure.

Attempts go on for ever, one in five seconds at the end, and a log that repeats itself twelve times a minute hides what
else is wrong. So an attempt is *told* when it is the first of an outage, when the outage has come to the next level
(``ConnectFailed.level``), or when a minute has passed since the last that was told. The others are events as well, and
logged at the level DEBUG.

Not every link is tried without a pause: some are wanted only when there is something to send, each time anew. Attempts
that lie less than a minute apart belong to one outage, whoever wanted them.
"""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Outage"]

_EVERY: Final = 60.0
_STEPS: Final = (10.0, 300.0)
"""Where ``ConnectFailed`` escalates, in seconds."""


class Outage:
    """The time without a link, from ``since``. ``failed``: how many attempts have been in vain."""

    __slots__ = ("_failed_at", "_step", "_told_at", "failed", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.failed = 0
        self._failed_at = -math.inf
        self._step = -1
        self._told_at = -math.inf

    def fails(self, now: float) -> bool:
        """An attempt has failed. Whether that only repeats what was told before."""
        self.failed += 1
        self._failed_at = now
        step = sum(now - self.since >= limit for limit in _STEPS)
        if step == self._step and now - self._told_at < _EVERY:
            return True
        self._step, self._told_at = step, now
        return False

    def recent(self, now: float) -> bool:
        """Whether an attempt has failed within the last minute."""
        return now - self._failed_at < _EVERY
