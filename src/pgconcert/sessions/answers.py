"""Answers that call, answers that are waited for together, and the store that is left when there is none.

These are what the engine hands to the store with its requests, or asks when it is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from ..errors import CoordinatorClosed
from ..hold import Waiter
from ..messenger import Answer
from ..store import Request

__all__ = ["ClosedStore", "Gathering", "Told", "ignore", "settle"]

T = TypeVar("T")


class Told(Generic[T]):
    """Calls one of two functions, once."""

    __slots__ = ("_failed", "_settled", "_told")

    def __init__(self, told: Callable[[T], object], failed: Callable[[Exception], object]) -> None:
        self._told = told
        self._failed = failed
        self._settled = False

    def done(self) -> bool:
        return self._settled

    def set_result(self, result: T, /) -> None:
        self._settled = True
        self._told(result)

    def set_exception(self, exception: Exception, /) -> None:
        self._settled = True
        self._failed(exception)


class Gathering:
    """Answers of which it matters only that they have come, and whether all is well."""

    __slots__ = ("_all", "_left", "error")

    def __init__(self) -> None:
        self.error: Exception | None = None
        """What one of them said, if not all is well."""
        self._left = 0
        self._all: asyncio.Future[None] | None = None

    def one(self) -> Told[Any]:
        """One more of them."""
        self._left += 1
        return Told(self._came, self._failed)

    async def wait(self, limit: float) -> None:
        """Wait until all have come, but no longer than ``limit`` seconds."""
        if self._left:
            self._all = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all], timeout=limit)

    @property
    def missing(self) -> bool:
        """Whether some have not come."""
        return self._left > 0

    def _failed(self, error: Exception) -> None:
        self.error = error
        self._came(error)

    def _came(self, _: object) -> None:
        self._left -= 1
        if not self._left and self._all is not None and not self._all.done():
            self._all.set_result(None)


class ClosedStore:
    """Stands for the store of a coordinator that is closed."""

    clock = None
    schema = None

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        answer.set_exception(CoordinatorClosed("the coordinator is closed"))

    def bounce(self, reason: str) -> None:
        """There is nothing to replace."""


def settle(waiter: Waiter | None) -> None:
    """Tell whoever waits for a release that it is over."""
    if waiter is not None and not waiter.done():
        waiter.set_result(True)


def ignore(_: object) -> None:
    """What is done with an answer that changes nothing."""
