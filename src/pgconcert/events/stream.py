"""What every event has in common, and the stream that hands events on to the log and to their readers.

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
from typing import Any, Final, TypeVar, cast, overload

from ..errors import ConfigurationError
from ..statistics import Tally

__all__ = ["Event", "EventStream"]

E = TypeVar("E", bound="Event")

GOES_ON: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What ends a program is not for us to contain, wherever it is raised."""

logger = logging.getLogger("pgconcert")


@dataclass(frozen=True, kw_only=True)
class Event:
    """A fact. ``at`` is the wall clock in seconds, for people; never compare it between machines."""

    at: float = field(default_factory=time.time)

    @property
    def level(self) -> int:
        """The ``logging`` level of this record; 0 is not logged."""
        return logging.INFO


class EventStream:
    """Hands every event to the log and to its readers."""

    def __init__(self) -> None:
        self.readers: list[tuple[Callable[[Event], object], tuple[type[Event], ...]]] = []
        """Who reads what. Empty: nobody, and the hot path need not ask further."""
        self.tally = Tally()
        """What the machinery counts, and how often events of each kind were emitted."""

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
        level = event.level
        if level:
            self.tally.events[type(event).__name__] += 1
            try:
                logger.log(level, "%s", event, extra={"event": event})
            except BaseException as error:  # a handler that fails
                _contain(event, error)
        for reader, kinds in self.readers:
            if isinstance(event, kinds):
                try:
                    reader(event)
                except BaseException as error:
                    _contain(event, error)


def goes_on(error: BaseException) -> None:
    """Have the running loop raise what ends a program, in its next turn, and not in the middle of what others need.
    Without a loop it is raised here."""

    def again() -> None:
        raise error

    try:
        asyncio.get_running_loop().call_soon(again)
    except RuntimeError:
        raise error from None


def _contain(event: Event, error: BaseException) -> None:
    if isinstance(error, GOES_ON):
        goes_on(error)
    else:
        _complain(event, error)


def _complain(event: Event, error: BaseException) -> None:
    try:
        logger.error("a reader of events failed on: %s", event, exc_info=error)
    except (Exception, asyncio.CancelledError):
        sys.stderr.write(f"pgconcert: a reader of events and the log failed on: {event}\n")
