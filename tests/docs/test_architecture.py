"""The map is true: every source file is in a room of the architecture page, and every room that it names is there.

Here lives that comparison. A row names files, of which all have the folder of the first, or whole folders.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()
SOURCE = ROOT / "src/pgconcert"


def rooms() -> set[str]:
    """Files and folders that the table of rooms names, as paths below the package."""
    named: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", PAGE, flags=re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            if "/" in name:
                folder = name[: name.rindex("/") + 1]
            named.add(name if "/" in name else folder + name)
    return named


def test_every_file_is_in_a_room() -> None:
    named = rooms()
    files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*.py") if not path.name.startswith("__")]
    assert len(files) > 50
    homeless = [
        str(file)
        for file in files
        if str(file) not in named and not any(f"{folder}/" in named for folder in file.parents)
    ]
    assert homeless == []


def test_every_room_is_there() -> None:
    assert [name for name in sorted(rooms()) if not (SOURCE / name).exists()] == []
