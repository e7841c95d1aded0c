"""What the tests of ``graceful_shutdown`` share: two signals that nobody else uses, and things to close."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable
from typing import Any

from pgconcert.shutdown import Shutdown, graceful_shutdown

ONE = signal.SIGUSR1
TWO = signal.SIGUSR2


def shutdown(*closing: Any, timeout: float = 10, cancel: bool = True, signals: Iterable[int] = (ONE, TWO)) -> Shutdown:
    """With the signals of these tests."""
    return graceful_shutdown(*closing, timeout=timeout, cancel=cancel, signals=signals)


def nobody(number: int, frame: object) -> None:
    raise AssertionError(f"{signal.Signals(number).name} came to where it was before")


class Thing:
    """Notes that it was closed."""

    def __init__(self, story: list[str], name: str, error: Exception | None = None) -> None:
        self.story, self.name, self.error = story, name, error

    def close(self) -> None:
        self.story.append(self.name)
        if self.error is not None:
            raise self.error


class AsyncThing(Thing):
    async def close(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().close()


class Hanging:
    """Takes for ever to close."""

    cancelled = False

    async def close(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True

    def __repr__(self) -> str:
        return "<Hanging>"
