"""How well we hear, and when pings are missing. Pure: nothing here talks to anybody or reads a clock; times are told.

Two things are watched, and neither stands for the other:

* *Listening* is proven by the backend, which sends notifications to itself and replaces a link that does not hear them.
  ``listening`` puts into one word what it knows.
* *Pings* come from somebody, by the channel that the programs of one database share. That they are missing says only
  that nobody sends them, or that nobody hears.

A watch judges only while a link listens, and only when it is asked in time: an event loop that stood still has not yet
read what came, and nothing was sent by it either. A judgement that comes too late is put off once more by the time that
a ping has to arrive.

::

    (quiet) --listening--> watching until ``judge_at`` = last ping + grace
       ^                       | asked then, in time: missing; watching for another grace
       \\------- deaf ---------| asked too late: watching for another (grace - interval)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from ..errors import ConfigurationError, given
from ..messenger import Hearing, Listening

__all__ = ["PingWatch", "listening"]

_JITTER: Final = 0.1
_LATE: Final = 1.0
_LONGEST: Final = 1e9


def listening(hearing: Hearing, now: float, window: float) -> Listening:
    """How well we hear at ``now``; what was heard more than ``window`` seconds ago does not count."""
    if hearing.connects == 0:
        return "unknown"
    if not hearing.proven:
        return "isolated"
    if hearing.others_at is not None and now - hearing.others_at <= window:
        return "connected"
    if hearing.own_at is not None and now - hearing.own_at <= window:
        return "solitary"
    return "isolated"


class PingWatch:
    """When to send the next ping, and when the absence of pings must be told. Times are of one clock, in seconds.

    A ping goes out every ``interval`` seconds, ten per cent more or less so that processes do not ping in step, and
    never so late that it would be missed. None for ``grace`` seconds is too long. ``ping_at`` and ``judge_at`` are when
    ``sent`` and ``missing`` are due; ``judge_at`` is ``None`` while no link listens. Raises ``ConfigurationError``.
    """

    __slots__ = ("_grace", "_interval", "_late", "_random", "_slack", "judge_at", "ping_at")

    def __init__(self, interval: float, grace: float, now: float, chance: Callable[[], float] = random.random) -> None:
        given_for: tuple[tuple[str, object], ...] = (("ping_interval", interval), ("ping_grace", grace))
        for what, value in given_for:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST:
                raise ConfigurationError(
                    f"{what} must be a number of seconds above 0, at most {_LONGEST:g}, not {given(value)}"
                )
        if grace <= interval:
            raise ConfigurationError(
                f"ping_grace ({grace:g} s) must be more than ping_interval ({interval:g} s), or each ping is missed "
                "before it can come"
            )
        self._interval = interval
        self._grace = grace
        self._slack = grace - interval
        self._late = min(_LATE, self._slack / 2)
        self._random = chance
        self.ping_at = now + self._pause()
        self.judge_at: float | None = None

    def sent(self, now: float) -> None:
        """A ping was sent, or could not be: the next one is due an interval later."""
        self.ping_at = now + self._pause()

    def listening(self, now: float) -> None:
        """Listening is proven on a fresh link; silence counts from now."""
        self.judge_at = now + self._grace

    def deaf(self) -> None:
        """No link listens; nothing can be said about pings until ``listening``."""
        self.judge_at = None

    def heard(self, now: float) -> None:
        """A ping came."""
        if self.judge_at is not None:
            self.judge_at = now + self._grace

    def missing(self, now: float) -> bool:
        """Whether pings are missing. To be asked at ``judge_at``; told once for every ``grace`` seconds of silence."""
        if self.judge_at is None or now < self.judge_at:
            return False
        late = now > self.judge_at + self._late
        self.judge_at = now + (self._slack if late else self._grace)
        return not late

    def _pause(self) -> float:
        longest = min(self._interval * (1 + _JITTER), self._interval + self._slack / 2)
        shortest = self._interval * (1 - _JITTER)
        return shortest + (longest - shortest) * self._random()
