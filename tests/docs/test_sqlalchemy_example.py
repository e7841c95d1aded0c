"""The example for SQLAlchemy, run as its first line says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.timeout(120)


def test_it_tells_what_was_committed(database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "sqlalchemy_shop.py"],
        cwd=EXAMPLES,
        env=os.environ | {"DATABASE_URL": database, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        'orders: {"table":"shop_order","inserted":[1,2],"updated":[],"deleted":[]}',
        'orders: {"table":"shop_order","inserted":[],"updated":[1],"deleted":[]}',
        "customers: thank you, Ann",
        'orders: {"table":"shop_order","inserted":[],"updated":[],"deleted":[2]}',
    ]
