"""The watch over the server's queue of notifications, while we publish.

Theory. The queue is one for all databases. Its end moves only when every session that listens has read it, which a
session does between its transactions, and only while its client reads. One that does not fills the queue for all, and
when it is full nobody can notify. So how full it is is asked for over the publish link, behind what is published: every
five seconds, every second from half full on. From then on the server itself names the session that is last, in a notice
to one of those who notify, every five seconds; whoever did not get it guesses. Levels, by usage::

    below 0.5   nothing
    0.5         an event, which names who seems to hold it up: once, until usage has fallen below again
    0.8         what we publish leaves after a pause, which doubles up to 100 ms
    0.95        nothing is published: ``NotifyQueueFull`` at once, until a look, one a second while anybody asks, finds
                that it has fallen

Nothing is asked while nothing is published.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Final

from ..errors import NotifyQueueFull
from ..events import EventStream, QueueFilling
from .link import Link, Rows
from .statements import QUEUE_BLOCKER, QUEUE_USAGE

__all__ = ["QueueWatch"]

_FILLING: Final = 0.5
_SLOW: Final = 0.8
_FULL: Final = 0.95
_LEVELS: Final = (_FILLING, _SLOW, _FULL)
_FALLEN: Final = 0.05
"""How far usage must fall below a level before reaching it again is news."""
_SELDOM: Final = 5.0
_OFTEN: Final = 1.0
_KNOWN: Final = 60.0
"""For how long the latest usage is told."""
_FIRST_PAUSE: Final = 0.001
_LAST_PAUSE: Final = 0.1
_FRESH: Final = 30.0
"""For how long the server's word about who holds it up is believed."""
_UNSEEN: Final = "a session that this role may not see"


class QueueWatch:
    """Knows how full the queue is, and why."""

    def __init__(self, loop: asyncio.AbstractEventLoop, events: EventStream) -> None:
        self._loop = loop
        self._events = events
        self._link: Link | None = None
        self._due = 0.0
        self._asking = False
        self._told = 0
        self._pause = 0.0
        self._blocker: str | None = None
        self.usage = 0.0
        self._looked_at = -math.inf
        self.full: float | None = None
        """The usage at which publishing was stopped; None while it goes on."""

    @property
    def known_usage(self) -> float | None:
        """The usage, if it was looked at within the last minute. Safe from any thread."""
        return self.usage if self._loop.time() - self._looked_at < _KNOWN else None

    def up(self, link: Link) -> None:
        """A fresh publish link."""
        self._link = link
        self._asking = False
        self._due = self._loop.time() + (_SELDOM if self.usage < _FILLING else 0.0)

    def down(self) -> None:
        """The link is gone."""
        self._link = None
        self._asking = False
        self.full = None

    def look(self, link: Link) -> None:
        """Ask how full it is, if it is time."""
        now = self._loop.time()
        if now < self._due or self._asking:
            return
        self._asking = True
        link.send(QUEUE_USAGE, (), lambda rows, error: self._sampled(link, rows, error))

    def pause(self) -> float:
        """How long to wait before anything is published."""
        if self.usage < _SLOW:
            self._pause = 0.0
        else:
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LAST_PAUSE)
        return self._pause

    def refuse(self) -> NotifyQueueFull | None:
        """Why nothing can be published now, if that is so."""
        if self._link is not None:
            self.look(self._link)
        if self.full is None:
            return None
        return NotifyQueueFull(f"the server's notification queue is {self.full:.0%} full{self._why()}")

    def explain(self, link: Link, error: Exception, tell: Callable[[NotifyQueueFull], None]) -> None:
        """The server has refused a notification because the queue is full: find out who holds it up, and tell."""
        self._due = 0.0

        def named(rows: Rows, failure: Exception | None) -> None:
            if failure is None:
                self._blocker = _shown(rows)
            tell(NotifyQueueFull(f"the server's notification queue is full ({error}){self._why()}"))

        link.send(QUEUE_BLOCKER, _named_by_server(link), named)

    def _why(self) -> str:
        return f"; held up by {self._blocker or _UNSEEN}: end its transaction, or let its client read"

    def _sampled(self, link: Link, rows: Rows, error: Exception | None) -> None:
        if self._link is not link:
            return
        self._asking = False
        if error is not None:
            self._due = self._loop.time() + _SELDOM
            return
        self.usage = usage = float(rows[0][0] or 0)
        self._looked_at = now = self._loop.time()
        self._due = now + (_SELDOM if usage < _FILLING else _OFTEN)
        if usage < _FULL:
            self.full = None
        while self._told and usage < _LEVELS[self._told - 1] - _FALLEN:
            self._told -= 1
        if usage >= _FILLING:
            self._asking = True
            link.send(QUEUE_BLOCKER, _named_by_server(link), lambda rows, error: self._named(link, rows, error))
        else:
            self._blocker = None

    def _named(self, link: Link, rows: Rows, error: Exception | None) -> None:
        if self._link is not link:
            return
        self._asking = False
        self._blocker = _shown(rows) if error is None else None
        level = sum(self.usage >= one for one in _LEVELS)
        if level > self._told:
            self._told = level
            self._events.emit(QueueFilling(usage=self.usage, blocker=self._blocker))
        if self.usage >= _FULL:
            self.full = self.usage


def _named_by_server(link: Link) -> tuple[bytes | None]:
    named = link.queue_held_by
    return (b"%d" % named[0],) if named is not None and monotonic() - named[1] < _FRESH else (None,)


def _shown(rows: Rows) -> str | None:
    if not rows:
        return None
    application, pid, state, wait_event, seconds, database = (
        None if value is None else value.decode(errors="replace") for value in rows[0]
    )
    doing = "does not read what it is sent" if wait_event == "ClientWrite" else state or "state hidden"
    elsewhere = f" of database {database}" if database else ""
    since = f" for {seconds} s" if seconds is not None else ""
    return f"{application or 'an unnamed session'}{elsewhere} (pid {pid}, {doing}{since})"
