"""What the world tells one coordinator: letters, which reach it on its own event loop in the order of their writing.

Theory. Letters are written while the world decides, so their order is that of the decisions, whichever thread wrote
them. They are opened afterwards: at once if the thread that decided runs the coordinator's loop (so a lock that is free
costs no turn of the loop), else on that loop, which is woken once for as many letters as there are. Opening at once
opens all that came before, too.

What others publish lies in a *basket*, and is taken out in a turn of the loop of its own, never within the call of
whoever published it: so nobody is called while in the middle of something, and a burst is one wake-up. A turn takes
only so many out, because the loop has other things to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["Basket", "Heard", "Mailbox", "Notification", "running_on"]

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_IN_ONE_TURN: Final = 1000


class Mailbox(Generic[Asked, Answer]):
    """The letters of one coordinator. ``answered`` learns what became of its asks."""

    __slots__ = ("_answered", "_letters", "_loop", "_on_the_way")

    def __init__(self, loop: asyncio.AbstractEventLoop, answered: Callable[[Asked, Answer], None]) -> None:
        self._answered: Callable[[Asked, Answer], None] | None = answered
        self._loop = loop
        self._letters: deque[Callable[[], None]] = deque()
        self._on_the_way = False

    @property
    def dead(self) -> bool:
        """Whether its event loop has ended, so that nobody will ever open a letter."""
        return self._loop.is_closed()

    def write(self, letter: Callable[[], None]) -> None:
        """Add a letter. Opens nothing."""
        self._letters.append(letter)

    def answer(self, ask: Asked, verdict: Answer) -> None:
        """Write what became of an ask."""

        def letter() -> None:
            if self._answered is not None:
                self._answered(ask, verdict)

        self._letters.append(letter)

    def close(self) -> None:
        """Nobody is interested any more."""
        self._answered = None

    def deliver(self) -> bool:
        """Open the letters here and now, or have them opened on the loop. False if the loop has ended."""
        if running_on(self._loop):
            self._open()
        elif self._letters and not self._on_the_way:
            self._on_the_way = True
            try:
                self._loop.call_soon_threadsafe(self._open)
            except RuntimeError:
                self._on_the_way = False
                return False
        return True

    def _open(self) -> None:
        # cleared before the letters are read: one that is written from here on wakes the loop again
        self._on_the_way = False
        letters = self._letters
        while letters:
            letters.popleft()()


class Notification:
    """What was published, by which seat; ``sender`` is the basket of that seat."""

    __slots__ = ("channel", "payload", "pid", "sender")

    def __init__(self, channel: bytes, payload: bytes, pid: int, sender: object) -> None:
        self.channel = channel
        self.payload = payload
        self.pid = pid
        self.sender = sender


Heard = Notification | Callable[[], None]
"""What lies in a basket: a notification, or a call that has its place in the order of notifications."""


class Basket:
    """What a coordinator is to hear, in its order. ``heard`` gets the notifications."""

    __slots__ = ("_heard", "_letters", "_loop", "_on_the_way")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._heard: Callable[[Notification], None] | None = None
        self._loop = loop
        self._letters: deque[Heard] = deque()
        self._on_the_way = False

    def __len__(self) -> int:
        return len(self._letters)

    def open_with(self, heard: Callable[[Notification], None]) -> None:
        """Say who gets the notifications."""
        self._heard = heard

    def put(self, letter: Heard) -> None:
        """Add a letter. Opens nothing."""
        self._letters.append(letter)

    def close(self) -> None:
        """Nobody is interested any more."""
        self._heard = None
        self._letters.clear()

    def deliver(self) -> bool:
        """Have the letters opened on the loop. False if the loop has ended."""
        if self._loop.is_closed():
            return False
        if not self._on_the_way and self._letters:
            self._on_the_way = True
            try:
                if running_on(self._loop):
                    self._loop.call_soon(self._open)
                else:
                    self._loop.call_soon_threadsafe(self._open)
            except RuntimeError:
                self._on_the_way = False
                return False
        return True

    def _open(self) -> None:
        # cleared before the letters are read: one that is written from here on wakes the loop again
        self._on_the_way = False
        letters = self._letters
        for _ in range(min(len(letters), _IN_ONE_TURN)):
            if self._heard is None or not letters:
                return  # closed by what it has just opened
            letter = letters.popleft()
            if isinstance(letter, Notification):
                self._heard(letter)
            else:
                letter()
        self.deliver()


def running_on(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the calling thread runs this event loop now."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
