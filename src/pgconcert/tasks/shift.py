"""The port between a runner and its source: a *shift*, one session of the runner there, from its start to its end.

Here stand the port and its words; ``storeshift.py`` keeps it over a ``Store`` (queues and tables), ``sourceshift.py``
over a ``TaskSource`` (functions, and whatever the application writes).

Theory. A runner has one shift at a time and asks it one thing at a time. What it hands out is the runner's until it is
reported: *finished*, *failed* or *released*. A report is never lost: where the source does not answer, the shift keeps
it and says it again with the next turn. When the shift is *lost* (its session is over, or trusted no longer) everything
that was handed out belongs to others: the runner cancels the work and begins another shift; what it reports then is
refused, and told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from .task import Task

__all__ = ["Handed", "NotDone", "Report", "Shift"]


class NotDone(NamedTuple):
    """A task that was not completed, and why. ``retry_in``: seconds for which it rests."""

    task: Task
    error: str
    retry_in: float


class Report(NamedTuple):
    """What has become of tasks that were handed out. ``released``: not begun, or cancelled by ``stop``."""

    finished: tuple[Task, ...] = ()
    failed: tuple[NotDone, ...] = ()
    released: tuple[Task, ...] = ()


class Handed(NamedTuple):
    """What a turn gave. ``refused``: reported as finished, and refused, because others have them (or nobody). ``died``:
    ids of tasks whose attempts are used up. ``more``: there is more of ours that was not handed out now. ``next_in``:
    seconds until something of ours that rests, or a task that is not due yet, may be run; ``None``: unknown. ``share``,
    ``sessions``: as the source told last, 0 if it never did."""

    tasks: tuple[Task, ...] = ()
    refused: tuple[Task, ...] = ()
    died: tuple[str, ...] = ()
    more: bool = False
    next_in: float | None = None
    share: int = 0
    sessions: int = 0


class Shift(Protocol):
    """See the module. All calls belong to the loop of the runner."""

    @property
    def session(self) -> int:
        """The number of the session."""
        ...

    @property
    def lost(self) -> str | None:
        """Why the shift is lost; ``None`` while it is not. It looks at the clock: a process that was stopped finds it
        so in its first line."""
        ...

    def when_lost(self, told: Callable[[str], None]) -> None:
        """Call ``told`` once, on this loop, as soon as it is known to be lost; at once if it is."""
        ...

    async def turn(self, report: Report, room: int, *, pick: bool) -> Handed:
        """Report, and get at most ``room`` tasks. ``pick``: new work may be picked up, else only what is assigned.

        Raises ``SessionLost`` if the shift is lost, ``Unavailable`` if nobody answered (ask again), and what the source
        raises."""
        ...

    async def end(self, report: Report) -> Handed:
        """Report, release everything else, and end the session. When it returns, all of it is done, or others will take
        it when the time of the session is over. Raises as ``turn``; idempotent, also when lost."""
        ...
