"""One session of this process: what is known of its row, until when it is trusted, what hangs on it. Pure bookkeeping.

States, and who moves them (``heart.py``)::

    starting --the server has its row--> alive --ended by us--> ended
        \\--it could not be made--> over    \\--trusted no longer, or over on the server--> over

*Trust.* The server lets a session live for ``ttl`` from the instant at which it carries out a heartbeat, which is after
the instant at which we sent it. So until ``sent + ttl - margin`` of the last heartbeat that was answered, nobody else
can have taken what hangs on it. An answer that comes late extends nothing beyond that; one that does not come neither
extends nor ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..backend import Claim
from ..clock import Clock
from .answers import Told
from .timing import Timing

__all__ = ["Session", "Who"]

_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


@dataclass(frozen=True, slots=True)
class Who:
    """Who we are, as the rows of our sessions say it. ``data`` is a JSON text."""

    uuid: str
    host: str
    pid: int
    application: str
    data: str | None


class Session:
    """See the module."""

    __slots__ = (
        "_clock",
        "_fork",
        "claims",
        "ending",
        "id",
        "idle_since",
        "reason",
        "revision",
        "schema",
        "sent",
        "state",
        "suspect_until",
        "timing",
        "trusted_until",
        "users",
        "waiting",
    )

    def __init__(self, clock: Clock, timing: Timing, sent: float, schema: str | None = None) -> None:
        self._clock = clock
        self._fork = _forks
        self.timing = timing
        self.state: Literal["starting", "alive", "ended", "over"] = "starting"
        self.id: int | None = None
        self.revision = 0
        self.schema = schema
        """Where its row is, for guards."""
        self.reason: str | None = None
        """Why it is over."""
        self.sent = sent
        """When the last heartbeat left."""
        self.trusted_until = self._until(sent)
        self.claims: set[Claim] = set()
        """What was granted and hangs on it."""
        self.users: set[object] = set()
        """Who else needs it: names with a mark there, or a request under way."""
        self.idle_since: float | None = None
        self.suspect_until = sent
        """Until when something that nobody here knows of may come to hang on it."""
        self.waiting: list[Callable[[Exception | None], None]] = []
        """Who waits for its start."""
        self.ending: Told[Any] | None = None
        """Who waits for its end, if it is to end as soon as it was started."""

    def answered(self, sent: float) -> None:
        """A heartbeat that was sent then is answered: the session lives."""
        self.trusted_until = max(self.trusted_until, self._until(sent))

    def suspect(self) -> None:
        """Something was asked for it without an answer, which may be carried out late: up to a ttl, and the heartbeat
        that follows is to look too."""
        self.suspect_until = self._clock.now() + self.timing.ttl + self.timing.interval

    def distrust(self) -> str | None:
        """Why what hangs on it cannot be relied upon; ``None`` while it can. From any thread, at any time."""
        if self.reason is not None:
            return self.reason
        if self._fork != _forks:
            return "forked"
        if self._clock.now() >= self.trusted_until:
            return self.untrusted()
        return None

    def untrusted(self) -> str:
        """What is said of a session whose trust has ended."""
        timing = self.timing
        return (
            f"no heartbeat of its session was answered for {timing.ttl - timing.margin:g} s; others may take over "
            f"after ttl={timing.ttl:g} s"
        )

    def _until(self, sent: float) -> float:
        return sent + self.timing.ttl - self.timing.margin

    def __repr__(self) -> str:
        return f"<Session {self.id} {self.state} with {len(self.claims)} holds>"
