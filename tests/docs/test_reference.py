"""The reference is complete: every public name has its place there, and every attribute that it has or inherits.

Here live tests of the pages below `docs/reference` as Sphinx reads them. Theory: an attribute that moves to a base
class drops off its page without a warning, so what the pages hold is compared with the classes themselves.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

import pgconcert
import pgconcert.events
from pgconcert import AsyncCoordinator

DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLIC = [getattr(pgconcert, name) for name in pgconcert.__all__]
CLASSES = [value for value in PUBLIC if isinstance(value, type) and value.__module__.startswith("pgconcert")]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The full name of everything that has an entry in the reference."""
    pytest.importorskip("sphinx", reason="needs sphinx")
    from sphinx.application import Sphinx

    folder = tmp_path_factory.mktemp("reference")
    # links to other parts lead nowhere then, which `make docs` looks at
    only = {"root_doc": "reference/index", "include_patterns": ["reference/*"], "suppress_warnings": ["*"]}
    app = Sphinx(
        DOCS, DOCS, folder / "out", folder / "trees", "dummy", confoverrides=only, status=None, warning=sys.stderr
    )
    app.build()
    return {entry[0] for entry in app.env.get_domain("py").get_objects()}


def public(kind: type[Any]) -> set[str]:
    """What a class has from classes of ours. Fields of records are left out: their signature shows them."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("pgconcert")]
    fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set[str]()
    fields |= set(getattr(kind, "_fields", ()))
    return {name for base in ours for name in vars(base) if not name.startswith("_")} - fields


def places(kind: type[Any]) -> list[str]:
    """Where a name may stand: errors have a page of their own."""
    return [f"{module}.{kind.__name__}" for module in ("pgconcert", "pgconcert.errors")]


def test_every_name_and_every_attribute_has_its_place(documented: set[str]) -> None:
    missing = {}
    for kind in CLASSES:
        place = [place for place in places(kind) if place in documented]
        assert len(place) == 1, kind
        missing[place[0]] = {name for name in public(kind) if f"{place[0]}.{name}" not in documented}
    assert len(missing) > 100
    assert {place: names for place, names in missing.items() if names} == {}


def test_what_is_no_class_has_its_place_too(documented: set[str]) -> None:
    """Functions, constants and names of types."""
    others = {name for name in pgconcert.__all__ if getattr(pgconcert, name) not in CLASSES} - {"__version__"}
    assert "send_listener_ping" in others
    assert {name for name in others if f"pgconcert.{name}" not in documented} == set()


def test_every_event_has_its_place(documented: set[str]) -> None:
    """Events are made in several files, and found on one page."""
    assert {name for name in pgconcert.events.__all__ if f"pgconcert.events.{name}" not in documented} == set()


def test_what_a_coordinator_has_by_its_instance(documented: set[str]) -> None:
    """Attributes that no class has, such as `events`, are found on an object."""
    attributes = {name for name in vars(AsyncCoordinator("null://")) if not name.startswith("_")}
    assert "events" in attributes
    assert {name for name in attributes if f"pgconcert.AsyncCoordinator.{name}" not in documented} == set()


def test_what_used_to_drop_off(documented: set[str]) -> None:
    """Some that stand in base classes, by name: the rule above cannot become empty unnoticed."""
    for name in (
        "AsyncCoordinator.health",
        "AsyncCoordinator.backend",
        "AsyncHold.key",
        "AsyncHold.lost",
        "AsyncHold.permit",
    ):
        assert f"pgconcert.{name}" in documented
