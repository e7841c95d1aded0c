"""How long a session lives, how often it is renewed, how often who waits looks. Pure: numbers and their checks.

A session is trusted until the send time of its last answered heartbeat plus ``ttl`` minus ``margin``. The margin is
what a holder has to end its work before others may take over; it also covers clocks that run at different speeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ..acquiring import is_number
from ..errors import ConfigurationError, given

__all__ = ["DEFAULT_TTL", "Timing", "timing"]

DEFAULT_TTL: Final = 40.0
_LEAST: Final = 0.1
_LEAST_PAUSE: Final = 0.01
_MOST: Final = 86400.0
_WIDEST_MARGIN: Final = 2.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, all of them. ``ttl``: a session without a heartbeat is over after it. ``interval``: between heartbeats.

    ``check``: how often who waits looks again, at the latest. ``timeout``: after how long a heartbeat without an answer
    has failed. Sessions are shared by all that have the same ``ttl`` and ``interval``; of their timeouts the shortest
    counts. ``apart``: a session of its own for whoever says the same word.
    """

    ttl: float
    interval: float
    check: float
    timeout: float
    apart: str = ""

    @property
    def place(self) -> tuple[float, float, str]:
        """What is the same for all that have one session."""
        return self.ttl, self.interval, self.apart

    @property
    def margin(self) -> float:
        """By how much sooner the holder gives up than others may take over: a tenth of the ttl, at most 2 s."""
        return min(self.ttl / 10, _WIDEST_MARGIN)


def timing(
    ttl: float = DEFAULT_TTL,
    interval: float | None = None,
    check: float | None = None,
    timeout: float | None = None,
) -> Timing:
    """Check the numbers and derive what is not given: an ``interval`` of ``ttl / 4``, a ``check`` of ``ttl / 2``, a
    ``timeout`` of ``interval / 2``. What is given is at least 0.01, for shorter pauses would be none. Raises
    ``ConfigurationError``."""
    for what, value, optional in (
        ("ttl", ttl, False),
        ("interval", interval, True),
        ("check", check, True),
        ("timeout", timeout, True),
    ):
        if value is None and optional:
            continue
        if not is_number(value) or not 0 < value <= _MOST:
            raise ConfigurationError(
                f"{what} must be a number of seconds above 0 and up to {_MOST:g}, not {given(value)}"
            )
        least = _LEAST if what == "ttl" else _LEAST_PAUSE
        if value < least:
            raise ConfigurationError(f"{what}={value:g} s is too short: at least {least:g} s")
    every = ttl / 4 if interval is None else float(interval)
    if every >= ttl / 2:
        raise ConfigurationError(
            f"interval={every:g} s is too long for ttl={ttl:g} s: at least two heartbeats must fit, so it has to be "
            f"less than {ttl / 2:g} s"
        )
    limit = every / 2 if timeout is None else float(timeout)
    if limit >= every:
        raise ConfigurationError(
            f"timeout={limit:g} s is too long for interval={every:g} s: a heartbeat must have failed before the next"
        )
    times = Timing(float(ttl), every, ttl / 2 if check is None else float(check), limit)
    if every + limit >= times.ttl - times.margin:
        raise ConfigurationError(
            f"interval={every:g} s and timeout={limit:g} s are too long for ttl={ttl:g} s: a heartbeat must have "
            f"failed before trust ends, so together they have to be less than {times.ttl - times.margin:g} s"
        )
    return times
