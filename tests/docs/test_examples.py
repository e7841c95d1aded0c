"""The examples of the README and of the documentation run as they stand, on a real server."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgconcert import AsyncCoordinator
from pgconcert.blocking import Coordinator

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "docs/index.md"]
EXAMPLES = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]


async def _step(*what: object) -> None:
    await asyncio.sleep(0)


async def _load() -> dict[str, object]:
    await asyncio.sleep(0)
    return {}


async def _drain() -> int:
    await asyncio.sleep(0)
    return 0


def test_there_are_examples() -> None:
    """The pattern above finds them."""
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("code", EXAMPLES)
def test_example(code: str, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example does what it says; only the address is another, and nobody sleeps."""
    with Coordinator(database, migrate=True):
        pass  # what hangs on sessions needs tables
    monkeypatch.setenv("POOLED_URL", database)
    monkeypatch.setenv("DIRECT_URL", database)
    code = code.replace('"embedded://"', "url").replace("sleep(10)", "sleep(0)")
    known: dict[str, Any] = {"url": database, "report": print, "step_one": _step, "step_two": _step}
    known |= {"read": _step, "write": _step, "use": _step, "load": _load, "drain": _drain}
    if "asyncio.run(" in code:
        exec(code, {"__name__": "__main__", **known})
        return
    if not re.search(r"\b(async|await)\b", code):
        with Coordinator(database) as threads, psycopg.connect(database, autocommit=True) as connection:
            connection.execute("create table if not exists invoice (id int, paid boolean)")
            known["connection"] = connection
            exec("import os\nfrom pgconcert import AsyncCoordinator\n" + code, {**known, "c": threads})
        return
    exec(
        "import os\nfrom pgconcert import AsyncCoordinator\nasync def example(c):\n" + textwrap.indent(code, "    "),
        known,
    )

    async def run() -> None:
        async with AsyncCoordinator(database) as c:
            await known["example"](c)

    asyncio.run(run())
