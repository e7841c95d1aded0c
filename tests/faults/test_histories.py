"""Exclusion, liveness and tidiness while processes are killed and stopped, and their sessions ended, at random.

Theory: `director.py` says what is done to the processes, `history.py` how what they did is judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.director import directed
from tests.faults.history import Verdict
from tests.faults.worker import Orders
from tests.processes import Worker
from tests.servers import Server

pytestmark = pytest.mark.faults

PROCESSES = 4


def history(
    server: Server,
    url: str,
    start: Callable[..., Worker],
    path: Path,
    seconds: float,
    engine: Literal["loop", "thread"],
) -> tuple[Verdict, Counter[str]]:
    orders = Orders(url, str(path / "history"), cancel=0.2, engine=engine)
    return directed(server, start, orders, seconds, PROCESSES)


@pytest.mark.parametrize("engine", ["loop", pytest.param("thread", marks=pytest.mark.long)])
def test_history_under_faults(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    verdict, faults = history(server, database, worker, tmp_path, 4.0, engine)
    assert verdict.wrong == []
    assert verdict.holds > 100
    assert verdict.handovers > 50
    assert faults.total() > 5


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_long_history_under_faults(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    verdict, faults = history(server, database, worker, tmp_path, 60.0, engine)
    assert verdict.wrong == []
    assert verdict.holds > 1000
    assert verdict.handovers > 500
    assert verdict.told
    assert min(faults[kind] for kind in ("killed", "stopped", "lock", "listen", "publish")) > 0
