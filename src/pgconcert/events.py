"""One frozen record for each fact that happens, and the stream that hands them on.

Logs, metrics, traces and tests read the same stream; nothing in the machinery knows its readers. A record says in
words what happened (``str(event)``) and carries the numbers as fields. Every event is also logged on the logger
``pgconcert`` at its ``level``, with the record itself as ``extra["event"]``; how often locks are taken and released is
not logged, and those records are made only while somebody listens to them.

Readers are called where the event happens (with ``engine="thread"``, on the engine's thread): be quick, never wait.
A reader that raises is reported on the log and keeps its place.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, overload

from .errors import ConfigurationError

__all__ = [
    "BatchReconciled",
    "ConnectFailed",
    "Event",
    "EventStream",
    "HoldBroken",
    "HoldDropped",
    "LinkClosed",
    "LinkLost",
    "LinkOpened",
    "LockAcquired",
    "LockReleased",
    "ReleaseRefused",
    "SettingRefused",
    "StillWaiting",
    "WakeFailed",
]

E = TypeVar("E", bound="Event")

logger = logging.getLogger("pgconcert")


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fact. ``at`` is the wall clock in seconds, for people; never compare it between machines."""

    at: float = field(default_factory=time.time)

    @property
    def level(self) -> int:
        """The ``logging`` level of this record; 0 is not logged."""
        return logging.INFO


@dataclass(frozen=True, kw_only=True)
class LinkOpened(Event):
    """A link was connected, probed and given its settings. ``through`` says what stands in between."""

    role: str
    server_pid: int
    server: str
    version: int
    through: str

    def __str__(self) -> str:
        return (
            f"{self.role} link open: {self.server}, backend {self.server_pid}, version {self.version}, {self.through}"
        )


@dataclass(frozen=True, kw_only=True)
class LinkClosed(Event):
    """A link was closed by us because nothing needs it any more."""

    role: str
    server_pid: int

    @property
    def level(self) -> int:
        return logging.DEBUG

    def __str__(self) -> str:
        return f"{self.role} link closed (backend {self.server_pid})"


@dataclass(frozen=True, kw_only=True)
class LinkLost(Event):
    """A link died. ``unanswered`` statements were under way."""

    role: str
    server_pid: int
    reason: str
    unanswered: int

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"{self.role} link lost (backend {self.server_pid}, {self.unanswered} unanswered): {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ConnectFailed(Event):
    """An attempt to connect failed; the next one follows in ``retry_in`` seconds."""

    role: str
    attempt: int
    error: str
    retry_in: float
    down_for: float

    @property
    def level(self) -> int:
        return logging.WARNING if self.down_for < 10 else logging.ERROR

    def __str__(self) -> str:
        return (
            f"{self.role} link: attempt {self.attempt} failed, down for {self.down_for:.1f} s, "
            f"next in {self.retry_in:.2f} s: {self.error}"
        )


@dataclass(frozen=True, kw_only=True)
class SettingRefused(Event):
    """The server, or a proxy in front of it, refused a setting that makes the link safer."""

    role: str
    setting: str
    error: str

    @property
    def level(self) -> int:
        return logging.WARNING

    def __str__(self) -> str:
        return f"{self.role} link: setting {self.setting} refused: {self.error}"


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


class EventStream:
    """Hands every event to the log and to its readers."""

    def __init__(self) -> None:
        self.readers: list[tuple[Callable[[Event], object], tuple[type[Event], ...]]] = []
        """Who reads what. Empty: nobody, and the hot path need not ask further."""

    @overload
    def subscribe(self, reader: Callable[[Event], object], /) -> Callable[[], None]: ...
    @overload
    def subscribe(self, reader: Callable[[E], object], kind: type[E], /, *kinds: type[E]) -> Callable[[], None]: ...
    def subscribe(self, reader: Callable[[Any], object], /, *kinds: type[Event]) -> Callable[[], None]:
        """Call ``reader`` with each event of ``kinds`` (all, if none is named). Returns the way to stop it."""
        if not callable(reader):
            raise ConfigurationError(f"a reader of events must be callable, not {reader!r:.100}")
        for kind in cast("tuple[object, ...]", kinds):
            if not (isinstance(kind, type) and issubclass(kind, Event)):
                raise ConfigurationError(
                    f"{kind!r:.100} is no kind of event: name classes of pgconcert.events, one by one"
                )
        entry = (reader, kinds or (Event,))
        self.readers = [*self.readers, entry]

        def unsubscribe() -> None:
            self.readers = [known for known in self.readers if known is not entry]

        return unsubscribe

    def wants(self, kind: type[Event]) -> bool:
        """Whether anybody reads ``kind``: events of the hot path are made only then."""
        return bool(self.readers) and any(issubclass(kind, kinds) for _, kinds in self.readers)

    def emit(self, event: Event) -> None:
        """Log the event and hand it to its readers. Whatever they raise, the machinery that emits goes on."""
        if event.level:
            try:
                logger.log(event.level, "%s", event, extra={"event": event})
            except (Exception, asyncio.CancelledError) as error:
                _complain(event, error)  # a handler that fails
        for reader, kinds in self.readers:
            if isinstance(event, kinds):
                try:
                    reader(event)
                except (Exception, asyncio.CancelledError) as error:
                    _complain(event, error)


def _complain(event: Event, error: BaseException) -> None:
    try:
        logger.error("a reader of events failed on: %s", event, exc_info=error)
    except (Exception, asyncio.CancelledError):
        sys.stderr.write(f"pgconcert: a reader of events and the log failed on: {event}\n")
