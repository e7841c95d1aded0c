"""The examples of the page on testing are tests, so they are run as tests: with the fixtures, coroutines and all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "test-your-code.md"


def test_the_examples_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    pytester.makepyfile("\n".join(examples))
    plugins = ("-p", "pgconcert.testing.pytest_plugin", "-p", "tests.coroutines")
    result = pytester.runpytest_inprocess(*plugins, "-W", "error")
    result.assert_outcomes(passed=len(examples))
    assert len(examples) >= 4


def test_every_fixture_is_listed() -> None:
    from pgconcert.testing import pytest_plugin

    fixtures = {name for name in pytest_plugin.__all__ if name.startswith("pgconcert_")}
    assert fixtures == set(re.findall(r"^\| `(pgconcert_\w+)`", PAGE.read_text(), flags=re.MULTILINE))
