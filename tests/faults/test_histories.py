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
    enough: Callable[[Verdict, Counter[str]], bool],
) -> Verdict:
    """Run until it is `enough`; what the history says of it."""
    orders = Orders(url, str(path / "history"), cancel=0.2, engine=engine)
    verdict, faults = directed(server, start, orders, seconds, PROCESSES, enough)
    assert enough(verdict, faults), f"{verdict.holds} holds, {verdict.handovers} handovers, {dict(faults)}"
    return verdict


@pytest.mark.timeout(150)
@pytest.mark.parametrize("engine", ["loop", pytest.param("thread", marks=pytest.mark.long)])
def test_history_under_faults(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    def enough(verdict: Verdict, faults: Counter[str]) -> bool:
        return verdict.holds > 100 and verdict.handovers > 50 and faults.total() > 5

    verdict = history(server, database, worker, tmp_path, 3.0, engine, enough)
    assert verdict.wrong == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_long_history_under_faults(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    def enough(verdict: Verdict, faults: Counter[str]) -> bool:
        each = min(faults[kind] for kind in ("killed", "stopped", "lock", "listen", "publish")) > 0
        return each and verdict.holds > 1000 and verdict.handovers > 500 and verdict.told > 0

    verdict = history(server, database, worker, tmp_path, 60.0, engine, enough)
    assert verdict.wrong == []
