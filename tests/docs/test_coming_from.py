"""What the page for users of other libraries names on our side is really there, and no name of theirs is missing.

Here lives that comparison: each name in the second column of its tables is looked up, what is not provided has its
reason in the third, and whatever the five libraries call public (`tests/docs/seednames.py`) stands in the first.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

import pgconcert
import pgconcert.events
import pgconcert.testing
from pgconcert import AsyncCoordinator, AsyncFanOut, TableTasks, conninfo, graceful_shutdown, transaction, values
from pgconcert.pubsub.delivery import Delivery
from pgconcert.pubsub.overflow import Gaps, Overflow
from tests.docs.seednames import NAMES_OF

PAGE = (Path(__file__).resolve().parents[2] / "docs/how-to/coming-from.md").read_text()
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split(" | "))
    for line in re.findall(r"^\|(?!--).*\|$", PAGE, flags=re.MULTILINE)
    if not line.startswith("| there |")
]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[1])})
CHOICES = {"delivery": Delivery, "overflow": Overflow, "gaps": Gaps}
MODULES = {"transaction": transaction, "values": values, "conninfo": conninfo}


def parameters() -> set[str]:
    """What may be given by name to a coordinator, its verbs, those of a fan-out and of a transaction, and the rest."""
    verbs: list[Callable[..., Any]] = [AsyncCoordinator, graceful_shutdown, TableTasks]
    verbs += [getattr(transaction, name) for name in transaction.__all__]
    for kind in (AsyncCoordinator, AsyncFanOut):
        verbs += [verb for name, verb in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
    return {name for verb in verbs for name in inspect.signature(verb).parameters}


def is_there(name: str) -> bool:
    """Whether a name as the page writes it is one of ours."""
    first, _, rest = name.partition(".")
    if "://" in name:
        return isinstance(AsyncCoordinator(name), AsyncCoordinator)
    if name.startswith("pgconcert "):
        command = name.split()[1]
        return (Path(pgconcert.__file__).parent / f"cli/{command}.py").is_file()
    if first == "pgconcert":
        return importlib.util.find_spec(name) is not None
    if first in MODULES:
        return rest in MODULES[first].__all__
    if first == "c":
        return hasattr(AsyncCoordinator("null://"), rest)
    if "=" in name:
        parameter, _, value = name.partition("=")
        return parameter in parameters() and (not value or value.strip('"') in get_args(CHOICES[parameter]))
    modules = (pgconcert, pgconcert.events, pgconcert.testing)
    place: Any = next((getattr(module, first) for module in modules if hasattr(module, first)), None)
    return place is not None and (not rest or hasattr(place, rest))


@pytest.mark.parametrize("name", NAMES)
def test_our_names_are_there(name: str) -> None:
    assert is_there(name)


def test_every_row_says_what_to_write_or_why_not() -> None:
    assert len(ROWS) > 60
    for there, here, why in (row if len(row) == 3 else (*row, "") for row in ROWS):
        assert there
        assert re.search(r"`", here) or (here == "not provided" and why.startswith("because ")), there


def test_a_name_that_is_not_there_is_found_out() -> None:
    for name in ("c.publsh", "AsyncFanOut.publsh", "Publsher", "ping_intervall=", 'delivery="one"', "pgconcert pong",
                 "transaction.publsh", "values.int3", "conninfo.Error", "pgconcert.instrument.promtheus"):  # fmt: skip
        assert not is_there(name), name


def there(system: str) -> set[str]:
    """Every word in code of the first column, in the tables below the heading of one library."""
    (section,) = (part for part in PAGE.split("\n## ")[1:] if part.startswith(system))
    cells = (line.strip("|").split(" | ")[0] for line in section.splitlines() if line.startswith("|"))
    return {word for cell in cells for code in re.findall(r"`([^`]+)`", cell) for word in re.findall(r"[\w-]+", code)}


@pytest.mark.parametrize("system", NAMES_OF)
def test_every_name_of_a_library_has_its_row(system: str) -> None:
    assert sorted(set(NAMES_OF[system].split()) - there(system)) == []


def test_a_name_without_a_row_is_found_out() -> None:
    assert "Publish" in there("elephantine")
    assert "notify" not in there("elephantine")  # it stands in the second column
    assert "PgIpLock" not in there("elephantine")  # it stands below another heading
