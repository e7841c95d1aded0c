"""What ``instrument`` returns, whoever is told."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Instrumentation"]


class Instrumentation:
    """A coordinator that is looked at. ``close()`` this, or use it in a ``with``."""

    def __init__(self, *stops: Callable[[], None]) -> None:
        self._stops = stops

    def close(self) -> None:
        """Tell nothing of it any more. Idempotent; from any thread."""
        for stop in self._stops:
            stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
