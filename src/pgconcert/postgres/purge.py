"""What has become useless in our tables is deleted by those who use them.

Theory. A run is a chain of small statements that skip what others have locked; each says whether there is more. Between
two of them, others have as much of the link as the last one took. There is a run at most once a minute, jittered. Of
processes that do not live for a minute only some begin with one (``at_once``): they have more urgent things to ask, but
if all have, somebody must. An error ends the run and concerns nobody: the next one follows.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from .keeper import Keeper
from .link import Link, Rows, Statement

__all__ = ["Purge"]

_EVERY: Final = 60.0


class Purge:
    """The purge of one link. ``statement`` answers whether there is more; ``at_once`` is how likely it is that the
    first time is taken."""

    __slots__ = ("_at", "_at_once", "_keeper", "_loop", "_statement", "running")

    def __init__(
        self, keeper: Keeper, loop: asyncio.AbstractEventLoop, statement: Statement, *, at_once: float = 0.05
    ) -> None:
        self._keeper = keeper
        self._loop = loop
        self._statement = statement
        self._at_once = at_once
        self._at: float | None = None
        self.running = False
        """Whether a run is under way."""

    def now_and_then(self) -> None:
        """The tables were used: begin a run, if it is time for one."""
        now = self._loop.time()
        if self._at is not None and now < self._at:
            return
        due = self._at is not None or random.random() < self._at_once
        self._at = now + _EVERY * random.uniform(1.0, 1.5)
        if due:
            self.begin()

    def begin(self) -> None:
        """Begin a run, unless one is under way or there is no link."""
        link = self._keeper.link
        if link is not None and not self.running:
            self.running = True
            self._some(link)

    def _some(self, link: Link) -> None:
        began = self._loop.time()

        def purged(rows: Rows, error: Exception | None) -> None:
            self.running = error is None and rows[0][0] == b"t"
            if self.running:
                self._loop.call_later(self._loop.time() - began, self._some, link)

        link.send(self._statement, (), purged)
