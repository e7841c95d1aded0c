"""The queues of `memory://` and the model of the port, whatever is asked of them in whatever order.

The machine stands in `taskmachine.py`, the model in `taskmodel.py`. Over servers the same runs in
`tests/postgres/test_conformance_model.py`.
"""

from __future__ import annotations

import secrets
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from pgconcert.clock import FakeClock
from pgconcert.memory import World
from pgconcert.store import Request
from tests.conformance.taskmachine import Tasks

T = TypeVar("T")


class Memory:
    """A still world, in which a moment passes with each request."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.world = World.named(secrets.token_hex(8), clock=self.clock)

    def ask(self, request: Request[T]) -> T:
        self.clock.advance(0.001)
        return self.world.ledger.carry_out(request, self.clock.now(), self)

    def expire(self, session: int) -> None:
        one: Any = self.world.ledger._book.get(session)
        one.until = self.clock.now()


class MemoryTasks(Tasks):
    def __init__(self) -> None:
        super().__init__(Memory())


def test_memory_is_as_the_model_says() -> None:
    run_state_machine_as_test(MemoryTasks, settings=settings(max_examples=20, stateful_step_count=40))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_memory_is_as_the_model_says_for_long() -> None:
    run_state_machine_as_test(MemoryTasks, settings=settings(max_examples=150, stateful_step_count=60))
