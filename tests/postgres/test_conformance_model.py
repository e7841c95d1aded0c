"""The queues of PostgreSQL and the model of the port, whatever is asked of them in whatever order.

The machine stands in `tests/conformance/taskmachine.py`, the model beside it; there it runs over `memory://`.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from pgconcert import AsyncCoordinator
from pgconcert.store import Request
from tests.conformance.taskmachine import Tasks

T = TypeVar("T")


class Ground:
    """A coordinator on a loop of its own, and a connection beside that moves time."""

    def __init__(self, runner: asyncio.Runner, coordinator: AsyncCoordinator, beside: psycopg.Connection) -> None:
        self._runner = runner
        self._coordinator = coordinator
        self._beside = beside

    def ask(self, request: Request[T]) -> T:
        return self._runner.run(self._asked(request))

    async def _asked(self, request: Request[T]) -> T:
        store = self._coordinator.backend.store
        assert store is not None
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        store.ask(request, answer)
        return await answer

    def expire(self, session: int) -> None:
        self._beside.execute("update pgconcert.session set expires = clock_timestamp() where id = %s", (session,))


def play(url: str, examples: int) -> None:
    """Let the machine run on this database."""
    with asyncio.Runner() as runner, psycopg.connect(url, autocommit=True) as beside:
        coordinator = AsyncCoordinator(url, migrate=True)
        runner.run(coordinator.open())
        ground = Ground(runner, coordinator, beside)

        class OnTheServer(Tasks):
            def __init__(self) -> None:
                super().__init__(ground)

        how = settings(max_examples=examples, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])
        try:
            run_state_machine_as_test(OnTheServer, settings=how)
        finally:
            runner.run(coordinator.close())


def test_postgres_is_as_the_model_says(database: str) -> None:
    play(database, 5)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_postgres_is_as_the_model_says_for_long(database: str) -> None:
    play(database, 40)
