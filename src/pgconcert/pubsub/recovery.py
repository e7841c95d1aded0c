"""When finding by polling what should have been heard means that the ear is deaf. Pure; nothing here talks to anybody.

A consumer that polls now and then, in case a notification got lost, tells what each poll found. One find is chance; so
many in a row that nothing was heard between them is not, and then the listen link is replaced.

::

    streak --a poll found something--> streak + 1 --threshold--> 0, and bounce
      \\--a message came by the wire--> 0
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import ConfigurationError, given
from ..statistics import RecoveryCounts

__all__ = ["Recovery"]


class Recovery:
    """Counts what polls found: ``saved`` in items, for good, ``streak`` in calls, since the last bounce or message.

    The same goes to ``counts``, those of the channel. A ``threshold`` of 0 or less counts and never bounces. ``bounce``
    must be quick; what it raises goes to whoever polled, and all has been counted by then.
    """

    __slots__ = ("_bounce", "_counts", "_threshold", "saved", "streak")

    def __init__(
        self, threshold: int = 5, bounce: Callable[[], object] = lambda: None, counts: RecoveryCounts | None = None
    ) -> None:
        if _no_count(threshold):
            raise ConfigurationError(f"threshold must be a whole number of polls, not {given(threshold)}")
        if not callable(bounce):
            raise ConfigurationError(f"bounce must be callable without arguments, not {bounce!r:.100}")
        self._threshold = threshold
        self._bounce = bounce
        self._counts = counts or RecoveryCounts()
        self._counts.streak = 0
        self.saved = 0
        self.streak = 0

    def polled(self, found: int) -> bool:
        """A poll found ``found`` items that no message had told of; 0 and less changes nothing. Whether it bounced."""
        if _no_count(found):
            raise ConfigurationError(f"found must be a whole number of items, not {given(found)}")
        if found <= 0:
            return False
        self.saved += found
        self._counts.saved += found
        self.streak += 1
        if self._threshold <= 0 or self.streak < self._threshold:
            self._counts.streak = self.streak
            return False
        self.reset()
        self._bounce()
        return True

    def reset(self) -> None:
        """A message came by the wire, so the wire works."""
        self.streak = self._counts.streak = 0


def _no_count(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int)
