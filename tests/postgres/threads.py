"""Threads of tests of the blocking twin, and what they wait for.

Here live a thread that keeps its result, and the conditions by which a test knows that others wait. Theory: a thread
that hangs must fail its test and not the run, so all are daemons and every wait for one is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually

T = TypeVar("T")

ENGINE: Final = "pgconcert-engine"


class Running(Generic[T]):
    """A function in a thread of its own, begun at once."""

    def __init__(self, work: Callable[[], T], name: str | None = None) -> None:
        self._work = work
        self._result: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    @property
    def ended(self) -> bool:
        """Whether it has come to its end."""
        return not self._thread.is_alive()

    def result(self, limit: float = 20.0) -> T:
        """Wait for its end; its result, or its error."""
        self._thread.join(limit)
        assert self.ended, f"{self._thread.name} still runs after {limit:g} s"
        if self._error is not None:
            raise self._error
        return self._result

    def error(self, limit: float = 20.0) -> BaseException | None:
        """Wait for its end; its error, if any."""
        self._thread.join(limit)
        assert self.ended, f"{self._thread.name} still runs after {limit:g} s"
        return self._error


def engines() -> int:
    """How many engine threads there are in this process."""
    return sum(thread.name == ENGINE for thread in threading.enumerate())


def until_waiting(coordinator: Coordinator, keys: int = 1) -> None:
    """Wait until so many keys are waited for."""
    eventually(lambda: coordinator.health().locks_waited_for >= keys, what=f"{keys} keys are waited for")


def until_idle(coordinator: Coordinator) -> None:
    """Wait until nothing is held and nothing is waited for: every release that was handed in has been carried out."""

    def idle() -> bool:
        health = coordinator.health()
        return not health.locks_held and not health.locks_waited_for

    eventually(idle, what="nothing is held or waited for")


def scopes(coordinator: Coordinator) -> dict[Any, Any]:
    """Which thread is inside what, as the coordinator has noted it."""
    assert coordinator._register is not None
    return coordinator._register.scopes.held
