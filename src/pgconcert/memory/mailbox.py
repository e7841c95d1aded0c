"""What the world tells one coordinator: letters, which reach it on its own event loop in the order of their writing.

Theory. Letters are written while the world decides, so their order is that of the decisions, whichever thread wrote
them. They are opened afterwards: at once if the thread that decided runs the coordinator's loop (so a lock that is free
costs no turn of the loop), else on that loop, which is woken once for as many letters as there are. Opening at once
opens all that came before, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Mailbox", "running_on"]

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


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
        elif not self._on_the_way:
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


def running_on(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the calling thread runs this event loop now."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
