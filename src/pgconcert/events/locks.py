"""What happens to locks, semaphores, and what is held."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from .stream import Event

__all__ = [
    "BatchReconciled",
    "HoldBroken",
    "HoldDropped",
    "LockAcquired",
    "LockReleased",
    "ReleaseRefused",
    "StillWaiting",
    "WakeFailed",
]


@dataclass(frozen=True, kw_only=True)
class LockAcquired(Event):
    """A lock was granted after ``waited`` seconds."""

    key: int | str
    waited: float

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"lock {self.key!r} acquired after {self.waited:.3f} s"


@dataclass(frozen=True, kw_only=True)
class LockReleased(Event):
    """A lock was given back. ``wanted`` says whether another process waits for it."""

    key: int | str
    wanted: bool

    @property
    def level(self) -> int:
        return 0

    def __str__(self) -> str:
        return f"lock {self.key!r} released{', others wait for it' if self.wanted else ''}"


@dataclass(frozen=True, kw_only=True)
class HoldBroken(Event):
    """Something that was held is lost."""

    key: int | str
    reason: str

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"{self.key!r} was lost: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class HoldDropped(Event):
    """A hold was thrown away without being released; it was released on behalf of its owner."""

    key: int | str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"the hold of {self.key!r} was dropped without release; it has been released now"


@dataclass(frozen=True, kw_only=True)
class StillWaiting(Event):
    """A lock is waited for since ``waited`` seconds. ``cycle`` names processes that wait for each other, if they do."""

    key: int | str
    waited: float
    holder: str | None
    cycle: tuple[str, ...] = ()

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        text = (
            f"still waiting for {self.key!r} after {self.waited:.0f} s; held by {self.holder or 'an unknown session'}"
        )
        if self.cycle:
            text += "; these processes wait for each other: " + " -> ".join(self.cycle)
        return text


@dataclass(frozen=True, kw_only=True)
class ReleaseRefused(Event):
    """The server said that a lock we released was not ours: somebody unlocked it behind our back."""

    key: int | str
    server_pid: int

    @property
    def level(self) -> int:
        return logging.ERROR

    def __str__(self) -> str:
        return f"lock {self.key!r} was not held by backend {self.server_pid} when we released it"


@dataclass(frozen=True, kw_only=True)
class BatchReconciled(Event):
    """A statement over ``keys`` locks failed; the server was asked what it had done, and ``held`` of them were held."""

    verb: str
    keys: int
    held: int
    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"{self.verb} of {self.keys} locks failed ({self.error}); the server holds {self.held} of them"


@dataclass(frozen=True, kw_only=True)
class WakeFailed(Event):
    """Waiters in other processes could not be woken; they find the lock at their next re-check."""

    keys: int
    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"could not wake waiters of {self.keys} locks: {self.error}"
