"""The pulse of the listen link: when to try whether a silent link hears, and when it is deaf.

Theory. Every listen link of every process hears the channel ``pgconcert:pulse``. When a link has heard nothing at all
for a while, it notifies that channel over itself. Everybody hears this, so that among thousands of processes about one
pulse per interval is sent: whose time comes first is left to chance. States of a link::

    quiet --nothing heard for the interval--> sent --answered--> committed --nothing heard within the patience--> deaf
      ^           ^-----the server refused it----'                   |
      '--------------------anything heard after it was sent----------'

A link is deaf only if the server says that the pulse is committed. A pulse that could not be sent proves nothing and is
tried after another interval; that the server answers nothing at all is the keeper's business. A look that comes late
(the loop was blocked) decides nothing, because what was to be heard may be waiting unread. No consumer of messages can
hold this up: what counts is that the socket was read. Hearing costs nothing: who looks asks when something was heard.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Final, Literal

from .echoes import LATE
from .link import Link, Rows
from .statements import NOTIFY

__all__ = ["Heartbeat", "Pulse"]

_CHANNEL: Final = b"pgconcert:pulse"
_JITTER: Final = 22 / 15


class Pulse:
    """The decisions, without a clock or a link: it is told the time. ``next`` is when to look again."""

    def __init__(self, now: float, interval: float, patience: float, draw: Callable[[], float]) -> None:
        """``draw`` gives the factor, at least 1, by which an interval is longer."""
        self._interval = interval
        self._patience = patience
        self._draw = draw
        self._since = now
        self._sent: float | None = None
        self._committed = False
        self.next = now + interval * draw()

    def look(self, now: float, heard_at: float) -> Literal["rest", "send", "deaf"]:
        """What to do now, given when anything was last heard."""
        if self._sent is None:
            if heard_at > self._since:
                self._rest(heard_at)
            if now >= self.next:
                self._sent = now
                self._committed = False
                self.next = now + self._patience
                return "send"
        elif heard_at >= self._sent:
            self._rest(heard_at)
        elif not self._committed:
            self.next = now + self._patience
        elif now >= self.next + self._patience * LATE:
            self.next = now + self._patience * LATE
        elif now >= self.next:
            return "deaf"
        return "rest"

    def committed(self, now: float) -> None:
        """The server has accepted the pulse."""
        self._committed = True
        self.next = now + self._patience

    def refused(self, now: float) -> None:
        """The server did not: nothing is known."""
        self._rest(now)

    def _rest(self, since: float) -> None:
        self._sent = None
        self._since = since
        self.next = since + self._interval * self._draw()


class Heartbeat:
    """Sends the pulses of one listen link after the other. ``deaf`` is called with the link that does not hear."""

    channel: Final = _CHANNEL

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval: float,
        patience: float,
        deaf: Callable[[Link, str], None],
    ) -> None:
        self._loop = loop
        self._interval = interval
        self._patience = patience
        self._deaf = deaf
        self._timer: asyncio.TimerHandle | None = None
        self._nonce = b""
        self._sent = 0.0
        self.latest: tuple[float, float] | None = None
        """When the last one was heard, and how long it took."""

    def up(self, link: Link) -> None:
        """A fresh link."""
        pulse = Pulse(monotonic(), self._interval, self._patience, lambda: random.uniform(1.0, _JITTER))
        self._look_later(link, pulse)

    def down(self) -> None:
        """The link is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._nonce = b""

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """A pulse, of anybody."""
        if payload == self._nonce:
            self._nonce = b""
            now = monotonic()
            self.latest = now, now - self._sent

    def _look_later(self, link: Link, pulse: Pulse) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(max(0.0, pulse.next - monotonic()), self._look, link, pulse)

    def _look(self, link: Link, pulse: Pulse) -> None:
        now = monotonic()
        todo = pulse.look(now, link.heard_at)
        if todo == "deaf":
            self._deaf(
                link, f"the server has sent a pulse, and nothing was heard within network_timeout={self._patience:g} s"
            )
            return
        if todo == "send":
            self._send(link, pulse, now)
        self._look_later(link, pulse)

    def _send(self, link: Link, pulse: Pulse, now: float) -> None:
        self._nonce = secrets.token_hex(8).encode()
        self._sent = now

        def answered(rows: Rows, error: Exception | None) -> None:
            if link.dead is not None:
                return
            if error is None:
                pulse.committed(monotonic())
            else:
                pulse.refused(monotonic())
            self._look_later(link, pulse)

        link.send(NOTIFY, (self.channel, self._nonce), answered)
