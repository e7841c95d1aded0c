"""What happens to sessions and to what hangs on them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .stream import Event

__all__ = [
    "HeartbeatFailed",
    "HeartbeatLate",
    "JobFailed",
    "NameGiveFailed",
    "NameReleased",
    "NameTaken",
    "ReleaseRequested",
    "SessionEnded",
    "SessionLost",
    "SessionStarted",
]


@dataclass(frozen=True, kw_only=True)
class SessionStarted(Event):
    """A session was started; it is renewed every ``interval`` seconds, and over ``ttl`` seconds after the last time."""

    session: int
    ttl: float
    interval: float

    def __str__(self) -> str:
        return f"session {self.session} started: ttl {self.ttl:g} s, a heartbeat every {self.interval:g} s"


@dataclass(frozen=True, kw_only=True)
class SessionEnded(Event):
    """We ended a session of ours; nothing hangs on it any more."""

    session: int

    @property
    def level(self) -> int:
        return logging.DEBUG

    def __str__(self) -> str:
        return f"session {self.session} ended"


@dataclass(frozen=True, kw_only=True)
class SessionLost(Event):
    """A session is trusted no longer, or is over on the server. The ``holds`` that hung on it are lost."""

    session: int
    holds: int
    reason: str

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"session {self.session} is lost with {self.holds} holds: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class HeartbeatLate(Event):
    """A heartbeat left ``delay`` seconds after it was due, because the event loop was blocked, or the process stopped.
    ``trusted_for``: what was left then, below 0 if the trust was over. ``stack``: where the loop was, with
    ``watchdog=True``."""

    delay: float
    trusted_for: float
    stack: str | None = None

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        left = f"for {self.trusted_for:.3f} s more" if self.trusted_for > 0 else f"until {-self.trusted_for:.3f} s ago"
        text = (
            f"a heartbeat was {self.delay:.3f} s late because the event loop was blocked, or the process stopped; our "
            f"sessions were trusted {left}"
        )
        return f"{text}; it was here:\n{self.stack}" if self.stack else text


@dataclass(frozen=True, kw_only=True)
class HeartbeatFailed(Event):
    """A heartbeat failed, or nobody knows whether it did. Tried again after ``retry_in`` seconds; our sessions are
    trusted for ``trusted_for`` seconds more. A warning; an error if the next attempt comes too late for the trust."""

    error: str
    failures: int
    retry_in: float
    trusted_for: float

    @property
    def level(self) -> int:
        return logging.WARNING if self.retry_in < self.trusted_for else logging.ERROR

    def __str__(self) -> str:
        return (
            f"heartbeat failed ({self.failures} in a row): {self.error}; our sessions are trusted for "
            f"{self.trusted_for:.3f} s more, next attempt in {self.retry_in:.3f} s"
        )


@dataclass(frozen=True, kw_only=True)
class NameTaken(Event):
    """A job lock, a leadership or a membership became ours after ``waited`` seconds."""

    kind: str
    name: str
    token: int
    waited: float

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} taken after {self.waited:.3f} s with token {self.token}"


@dataclass(frozen=True, kw_only=True)
class NameReleased(Event):
    """A job lock, a leadership or a membership was given back. ``wanted``: other processes wait for it."""

    kind: str
    name: str
    wanted: bool

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} released{', others wait for it' if self.wanted else ''}"


@dataclass(frozen=True, kw_only=True)
class NameGiveFailed(Event):
    """Something could not be given back; it is free when its session is over."""

    kind: str
    name: str
    error: str

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} could not be given back: {self.error}; it is free when its session is over"


@dataclass(frozen=True, kw_only=True)
class ReleaseRequested(Event):
    """Somebody has asked for something of ours to be given back."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"the release of {self.kind} {self.name!r} was requested"


@dataclass(frozen=True, kw_only=True)
class JobFailed(Event):
    """What ``run_in_job_lock`` keeps running has raised, or its lock could not be waited for. It goes on after
    ``retry_in`` seconds, wherever."""

    name: str
    error: BaseException
    retry_in: float

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return (
            f"the job under lock {self.name!r} failed ({type(self.error).__name__}: {self.error}); again in "
            f"{self.retry_in:.1f} s"
        )
