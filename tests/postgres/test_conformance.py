"""The conformance suite over every server found. The backends without a server: `tests/conformance/`."""

from __future__ import annotations

import pytest

from pgconcert.postgres import keeper
from pgconcert.testing.conformance import Case, cases, run
from tests.conformance.venues import postgres

every_case = pytest.mark.parametrize("case", cases(), ids=str)


@pytest.fixture(autouse=True)
def impatient(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if case.room == "hearing":
        # connections are lost so often there that the way to the next one would grow long
        monkeypatch.setattr(keeper, "_STABLE", 0.0)


@every_case
def test_postgres(case: Case, database: str) -> None:
    run(case, postgres(database))


@every_case
@pytest.mark.long
def test_postgres_on_the_engine_thread(case: Case, database: str) -> None:
    run(case, postgres(database), engine="thread")
