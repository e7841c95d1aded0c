"""Pages name tests as proof; every one of them exists, and no guarantee stands without one.

A name that begins with `conformance/` is that of a case of the published suite.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`((?:tests|conformance)/[\w/]+\.py)(?:::(\w+))?`")
DEFINED = re.compile(r"^ *(?:async )?def (\w+)\(", re.MULTILINE)
CASES = ROOT / "src/pgconcert/testing"
GUARANTEES = "docs/explanation/guarantees.md"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*/*.md"))
}


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if NAMED.search(text)])
def test_every_named_test_exists(page: str) -> None:
    """A reader who looks for the proof of what a page says finds it."""
    for file, function in NAMED.findall(PAGES[page]):
        path = (CASES if file.startswith("conformance/") else ROOT) / file
        assert path.is_file(), file
        if function:
            assert function in DEFINED.findall(path.read_text()), f"{file}::{function}"


def test_every_guarantee_names_a_test() -> None:
    """No row of the tables of guarantees goes without its test."""
    promised = PAGES[GUARANTEES].split("Then what is")[1]
    rows = [line for line in promised.splitlines() if line.startswith("|") and not line.startswith(("|---", "| guar"))]
    assert len(rows) > 20
    for row in rows:
        assert NAMED.search(row), row
