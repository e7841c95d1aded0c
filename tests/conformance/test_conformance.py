"""The conformance suite over every backend that lives inside this process.

Over servers it runs in `tests/postgres/test_conformance.py`, beside all else that runs over several of them. Here also
stands the proof that a backend is found by its entry point, and that the example stays short.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing.conformance import Case, Place, Skipped, cases, run
from tests.conformance.venues import memory, null, toy, toy_by_address

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])
every_case = pytest.mark.parametrize("case", cases(), ids=str)


def playable(place: Place) -> pytest.MarkDecorator:
    """The cases that are not skipped there."""
    able = place.capabilities | place.faults
    return pytest.mark.parametrize("case", [case for case in cases() if case.needs <= able], ids=str)


@pytest.fixture
def installed_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as a distribution that is installed: its module and its metadata are on the path."""
    metadata = tmp_path / "toy_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pgconcert.backends]\ntoy = toy_backend:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setitem(sys.modules, "toy_backend", None)  # restored, hence removed, at the end
    monkeypatch.delitem(sys.modules, "toy_backend")


@pytest.mark.parametrize("engine", ["loop", pytest.param("thread", marks=pytest.mark.long)])
@every_case
def test_memory(case: Case, engine: Engine) -> None:
    run(case, memory(), engine=engine)


@every_case
@pytest.mark.long
def test_memory_on_another_event_loop(case: Case) -> None:
    uvloop = pytest.importorskip("uvloop", reason="needs uvloop")
    run(case, memory(), loop_factory=uvloop.new_event_loop)


@playable(null())
def test_null(case: Case) -> None:
    run(case, null())


@both_engines
@playable(toy())
def test_toy(case: Case, engine: Engine) -> None:
    run(case, toy(), engine=engine)


@playable(toy())
def test_toy_by_its_address(case: Case, installed_toy: None) -> None:
    run(case, toy_by_address())


def test_an_address_leads_to_the_installed_backend(installed_toy: None) -> None:
    coordinator = AsyncCoordinator("toy://somewhere")
    assert type(coordinator.backend).__module__ == "toy_backend"


def test_what_a_backend_lacks_is_skipped() -> None:
    (case,) = [case for case in cases() if case.play.__name__ == "a_reader_keeps_writers_out"]
    with pytest.raises(Skipped, match="needs shared: While anybody holds it shared"):
        run(case, toy())


def test_every_case_says_what_it_guarantees() -> None:
    titles = [case.title for case in cases()]
    assert all(title.endswith((".", ".)")) for title in titles)
    assert len({str(case) for case in cases()}) == len(titles) > 80


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "toy_backend.py").read_text().splitlines()) < 150
