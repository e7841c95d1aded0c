"""What is optional says by which extra it is installed."""

from __future__ import annotations

import importlib
import re
import sys

import pytest


@pytest.mark.parametrize("name", ["django", "sqlalchemy"])
def test_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("pgconcert.contrib")
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"pgconcert.contrib.{name}", raising=False)
    with pytest.raises(ImportError, match=re.escape(f"pip install 'pgconcert[{name}]'")):
        importlib.import_module(f"pgconcert.contrib.{name}")
