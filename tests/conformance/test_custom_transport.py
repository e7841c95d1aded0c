"""The conformance suite over a transport that is not ours (G4): all its cases about messages and locks hold there."""

from __future__ import annotations

from typing import Any

import pytest

from pgconcert import AsyncCoordinator, PayloadTooLarge
from pgconcert.testing.conformance import Case, Place, cases, run
from tests.conformance.pipes import Pipe, PipeBackend


def place() -> Place:
    pipe = Pipe()

    def make(**options: Any) -> AsyncCoordinator:
        return AsyncCoordinator(backend=PipeBackend(pipe, options.get("name")), **options)

    return Place(make)


PLAYED = [case for case in cases() if case.needs <= place().capabilities | place().faults]


@pytest.mark.parametrize("case", PLAYED, ids=str)
def test_custom_transport(case: Case) -> None:
    run(case, place())


def test_most_cases_about_messages_are_among_them() -> None:
    assert sum("messages" in case.needs for case in PLAYED) > 50


async def test_what_it_does_not_carry_is_refused() -> None:
    async with place().coordinator() as c:
        with pytest.raises(PayloadTooLarge):
            await c.publish("a", b"x" * 8000)
