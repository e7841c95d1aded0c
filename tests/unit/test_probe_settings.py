"""The settings of a session: what a server refuses is told, and what a time limit has cut off is no refusal.

Here live tests of `apply_settings` with answers that are chosen; real ones stand in `tests/postgres/test_probe.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from pgconcert.errors import StatementFailed
from pgconcert.postgres.probe import apply_settings


class Answers:
    """A link that fails to set what it is told to."""

    def __init__(self, **failures: str) -> None:
        self._failures = failures

    def execute(self, sent: object, values: Sequence[bytes]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        state = self._failures.get(values[0].decode())
        if state is None:
            answer.set_result([])
        else:
            answer.set_exception(StatementFailed(f"it failed with {state}", state))
        return answer


WANTED = {"statement_timeout": "0", "lock_timeout": "100", "search_path": ""}


async def test_what_is_refused_is_told() -> None:
    link: Any = Answers(lock_timeout="42501")
    assert await apply_settings(link, WANTED) == {"lock_timeout": "it failed with 42501"}


async def test_a_setting_that_a_time_limit_has_cut_off_is_asked_for_again() -> None:
    """The session would else be used with the limit that was to be lifted."""
    link: Any = Answers(statement_timeout="57014", search_path="42501")
    with pytest.raises(StatementFailed, match="57014"):
        await apply_settings(link, WANTED)
