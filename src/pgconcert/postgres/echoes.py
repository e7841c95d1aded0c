"""Notifications to ourselves, on a channel that nobody else has: what proves that the listen link hears.

Theory. Whoever asks for a proof learns how long an echo took that was sent after the question. Questions of one turn
of the loop share an echo. An echo is *sent*, then *committed* (the server has answered), and *heard*; the order of the
last two is the server's. The notification leaves over the link that listens, and everything that was committed before
it stands before it in the server's queue.

An echo that is not heard within ``network_timeout``: if it was committed, and nothing else was heard meanwhile either,
the link is deaf. If others were heard, it stands behind them, and says nothing. A limit that comes late (the loop was
blocked) is extended, because the echo may be waiting unread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from time import monotonic
from typing import Final

from ..errors import LinkLost, StatementFailed, Unavailable
from ..messenger import Answer
from .link import Link, Rows
from .statements import NOTIFY

__all__ = ["LATE", "Echoes", "nobody_can_notify"]

LATE: Final = 0.2
"""The share of a limit by which looking may be late and still counts."""
_NOBODY_CAN: Final = ("54000", "55P03")  # the queue is full; the lock on it was not to be had in time


def nobody_can_notify(error: BaseException | None) -> bool:
    """Whether the server lets nobody notify now, so that there is nothing to be heard."""
    cause = error.__cause__ if isinstance(error, Unavailable) else error
    return isinstance(cause, StatementFailed) and cause.sqlstate in _NOBODY_CAN


class _Echo:
    __slots__ = ("answers", "committed", "limit", "sent")

    def __init__(self, answers: list[Answer[float]]) -> None:
        self.answers = answers
        self.sent = monotonic()
        self.committed = False
        self.limit: asyncio.TimerHandle | None = None


class Echoes:
    """The echoes of one listen link after the other. ``deaf`` is called with the link that does not hear."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float, deaf: Callable[[Link, str], None]) -> None:
        self._loop = loop
        self._timeout = timeout
        self._deaf = deaf
        self._link: Link | None = None
        self._asking: list[Answer[float]] = []
        self._under_way: dict[bytes, _Echo] = {}
        self._number = 0
        self._why_down = "nothing is listened to"
        self.channel = b""
        """Where they are heard; another one on every link."""
        self.latest: tuple[float, float] | None = None
        """When the last one was heard, and how long it took."""

    def up(self, link: Link) -> None:
        """A fresh link."""
        self._link = link
        self.channel = f"pgconcert:proof:{secrets.token_hex(8)}".encode()

    def again(self) -> None:
        """What is under way was sent before anybody listened: send it anew."""
        for echo in self._under_way.values():
            _stop(echo)
            self._asking += echo.answers
        self._under_way.clear()
        if self._link is not None and self._asking:
            self._loop.call_soon(self._send, self._link)

    def down(self, reason: str) -> None:
        """The link is gone, and so is every proof."""
        self._link = None
        self._why_down = reason
        unheard = [answer for echo in self._under_way.values() for answer in echo.answers] + self._asking
        for echo in self._under_way.values():
            _stop(echo)
        self._under_way.clear()
        self._asking = []
        for answer in unheard:
            _fail(answer, Unavailable(f"listening could not be proven: {reason}"))

    def ask(self, answer: Answer[float]) -> None:
        """Ask for a proof."""
        if self._link is None:
            _fail(answer, Unavailable(f"listening cannot be proven now, there is no connection: {self._why_down}"))
            return
        self._asking.append(answer)
        if len(self._asking) == 1:
            self._loop.call_soon(self._send, self._link)

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        """One came back."""
        echo = self._under_way.pop(payload, None)
        if echo is None:
            return
        _stop(echo)
        now = monotonic()
        took = now - echo.sent
        self.latest = now, took
        for answer in echo.answers:
            if not answer.done():
                answer.set_result(took)

    def _send(self, link: Link) -> None:
        if self._link is not link or not self._asking:
            return
        self._number += 1
        nonce = b"%d" % self._number
        asking, self._asking = self._asking, []
        echo = self._under_way[nonce] = _Echo(asking)
        self._limit(nonce, echo, self._timeout)

        def sent(rows: Rows, error: Exception | None) -> None:
            echo.committed = error is None
            if error is not None and not isinstance(error, LinkLost):
                self._give_up(nonce, f"the server refused the notification: {error}", error)

        link.send(NOTIFY, (self.channel, nonce), sent)

    def _limit(self, nonce: bytes, echo: _Echo, seconds: float) -> None:
        due = self._loop.time() + seconds
        echo.limit = self._loop.call_at(due, self._missing, nonce, echo, due)

    def _missing(self, nonce: bytes, echo: _Echo, due: float) -> None:
        link = self._link
        if link is None:
            return
        reason = f"a notification to ourselves did not come back within network_timeout={self._timeout:g} s"
        if self._loop.time() - due > self._timeout * LATE:
            self._limit(nonce, echo, self._timeout * LATE)
        elif echo.committed and link.heard_at < echo.sent:
            self._deaf(link, reason)
        else:
            self._give_up(nonce, reason, None)

    def _give_up(self, nonce: bytes, reason: str, cause: Exception | None) -> None:
        echo = self._under_way.pop(nonce, None)
        if echo is None:
            return
        _stop(echo)
        for answer in echo.answers:
            failure = Unavailable(reason)
            failure.__cause__ = cause
            _fail(answer, failure)


def _stop(echo: _Echo) -> None:
    if echo.limit is not None:
        echo.limit.cancel()


def _fail(answer: Answer[float], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
