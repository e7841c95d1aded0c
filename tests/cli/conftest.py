"""What all tests of the command line have in common: how long one of them may take.

Theory. Most of them start processes, and a busy machine may take many times as long for that as a quiet one. Each wait
is for an event and has its own generous limit (`LIMIT` in `shell.py`); that of the whole test is a net below it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.timeout(300))
