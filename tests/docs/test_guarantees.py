"""The page of guarantees names tests; every one of them exists, and no guarantee stands without one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/explanation/guarantees.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)


def test_every_named_test_exists() -> None:
    """A reader who looks for the proof of a guarantee finds it."""
    assert len(NAMED) > 30
    for file, function in NAMED:
        path = ROOT / file
        assert path.is_file(), file
        if function:
            tree = ast.parse(path.read_text())
            names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert function in names, f"{file}::{function}"


def test_every_guarantee_names_a_test() -> None:
    """No row of the tables of guarantees goes without its test."""
    promised = PAGE.split("Then what is")[1]
    rows = [line for line in promised.splitlines() if line.startswith("|") and not line.startswith(("|---", "| guar"))]
    assert len(rows) > 20
    for row in rows:
        assert re.search(r"`tests/", row), row
