"""Spans of OpenTelemetry, made of events.

Theory. An event that says how long something took becomes a span when it is over: it began so many seconds before. Such
a span has no parent, for the machinery serves many callers at once and runs in nobody's context. Only an outage is open
for a while, one for each role of links; whatever opens such a link ends it, and so does ``close``.

::

    (up) --lost, or an attempt failed--> down: a span is open --opened, or given up, or not needed any more--> ended
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from ..events import (
    ConnectFailed,
    Event,
    LinkClosed,
    LinkLost,
    LinkOpened,
    LockAcquired,
    NameTaken,
    RunnerSessionEnded,
    RunnerSessionStarted,
    TasksDone,
)
from .spans import DOING_WORK, END_SESSION, OUTAGE, START_SESSION, WAIT_FOR_LOCK, WAIT_FOR_NAME

if TYPE_CHECKING:
    from ..composition import Composition

__all__ = ["CoordinatorSpans"]

_NOWHERE: Final = Context()
"""The parent of what has none."""
_DATABASE: Final = {"db.system.name": "postgresql"}


class CoordinatorSpans:
    """The spans of one coordinator, until ``close``. ``waits``: those of waits of at least so many seconds, too."""

    def __init__(
        self, coordinator: Composition[Any], attributes: Mapping[str, str], tracer: Tracer, waits: float | None
    ) -> None:
        self._attributes = attributes
        self._tracer = tracer
        self._waits = waits
        self._outages: dict[str, Span] = {}
        readers: dict[type[Event], Callable[[Any], None]] = {
            RunnerSessionStarted: self._session_started,
            RunnerSessionEnded: self._session_ended,
            TasksDone: self._done,
            LinkLost: self._lost,
            ConnectFailed: self._failed,
            LinkOpened: self._up,
            LinkClosed: self._up,
        }
        if waits is not None:
            readers |= {LockAcquired: self._acquired, NameTaken: self._taken}
        self._readers = readers
        self._stop = coordinator.events.subscribe(self._told, *readers)

    def close(self) -> None:
        """Make no more, and end those that are open. Idempotent; from any thread."""
        self._stop()
        for role in [*self._outages]:
            self._end(role, None)

    def _told(self, event: Event) -> None:
        self._readers[type(event)](event)

    def _session_started(self, event: RunnerSessionStarted) -> None:
        about: dict[str, str | int] = {"pgconcert.runner": event.runner, "pgconcert.session": event.session}
        self._span(START_SESSION.name, event.at, event.duration, about)

    def _session_ended(self, event: RunnerSessionEnded) -> None:
        about: dict[str, str | int] = {"pgconcert.runner": event.runner, "pgconcert.session": event.session}
        self._span(END_SESSION.name, event.at, event.duration, about)

    def _done(self, event: TasksDone) -> None:
        about: dict[str, str | int] = {
            "pgconcert.runner": event.runner,
            "pgconcert.session": event.session,
            "pgconcert.work": event.work,
            "pgconcert.tasks": event.tasks,
            "pgconcert.completed": event.completed,
        }
        self._span(DOING_WORK.name, event.at, event.duration, about, error=event.error)

    def _acquired(self, event: LockAcquired) -> None:
        self._waited(WAIT_FOR_LOCK.name, event, event.waited, {"pgconcert.key": str(event.key)})

    def _taken(self, event: NameTaken) -> None:
        about: dict[str, str | int] = {"pgconcert.name": event.name, "pgconcert.token": event.token}
        self._waited(WAIT_FOR_NAME.name.format(kind=event.kind), event, event.waited, about)

    def _waited(self, name: str, event: Event, waited: float, about: Mapping[str, str | int]) -> None:
        if self._waits is not None and waited >= self._waits:
            self._span(name, event.at, waited, {**_DATABASE, **about}, SpanKind.CLIENT)

    def _lost(self, event: LinkLost) -> None:
        self._begin(event.role, event.at, event.reason, "LinkLost")

    def _failed(self, event: ConnectFailed) -> None:
        self._begin(event.role, event.at - event.down_for, event.error, "ConnectFailed")
        outage = self._outages.get(event.role)
        if outage is not None:
            attempt: dict[str, str | int] = {"pgconcert.attempt": event.attempt, "exception.message": event.error}
            outage.add_event("connect failed", attempt, _nanoseconds(event.at))
        if event.retry_in is None:
            self._end(event.role, event.at)

    def _up(self, event: LinkOpened | LinkClosed) -> None:
        self._end(event.role, event.at)

    def _begin(self, role: str, at: float, why: str, kind: str) -> None:
        if role not in self._outages:
            about = {"db.client.connection.pool.name": role, "error.type": kind}
            self._outages[role] = outage = self._tracer.start_span(
                OUTAGE.name,
                _NOWHERE,
                SpanKind.CLIENT,
                {**self._attributes, **_DATABASE, **about},
                start_time=_nanoseconds(at),
            )
            outage.set_status(Status(StatusCode.ERROR, why))

    def _end(self, role: str, at: float | None) -> None:
        outage = self._outages.pop(role, None)
        if outage is not None:
            outage.end(None if at is None else _nanoseconds(at))

    def _span(
        self,
        name: str,
        at: float,
        duration: float,
        about: Mapping[str, str | int],
        kind: SpanKind = SpanKind.INTERNAL,
        error: str | None = None,
    ) -> None:
        attributes = {**self._attributes, **about}
        began = _nanoseconds(at - duration)
        span = self._tracer.start_span(name, _NOWHERE, kind, attributes, start_time=began)
        if error is not None:
            span.set_attribute("error.type", error.partition(":")[0])
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(at))


def _nanoseconds(at: float) -> int:
    return int(at * 1e9)
