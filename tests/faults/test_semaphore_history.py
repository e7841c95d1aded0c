"""Semaphores while processes are killed and stopped, and their sessions ended, at random.

Theory: in the history each permit is a key of its own, so two holders of one number would be an overlap; and the number
of all who were inside at one instant is counted besides, which needs no numbers. The window between the end of a
session and the moment its holder hears of it is judged as it is for locks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.director import directed
from tests.faults.history import Verdict, crowd
from tests.faults.worker import Orders
from tests.processes import Worker
from tests.servers import Server

pytestmark = pytest.mark.faults

PROCESSES = 8
PERMITS = 4


def check(verdict: Verdict) -> None:
    """Never more than the permits, each at most once; and they were all in use."""
    assert verdict.wrong == []
    assert crowd(verdict.turns) == PERMITS
    assert {turn.key for turn in verdict.turns if turn.entered is not None} == set(range(PERMITS))


def orders(url: str, path: Path, engine: Literal["loop", "thread"]) -> Orders:
    """Three tasks in each process, which leave now and then."""
    return Orders(url, str(path / "history"), tasks=3, cancel=0.2, engine=engine, wants="permit", permits=PERMITS)


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.long
def test_never_more_than_the_permits(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    verdict, faults = directed(server, worker, orders(database, tmp_path, engine), 3.0, PROCESSES)
    check(verdict)
    assert verdict.holds > 100
    assert faults.total() > 0


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_never_more_than_the_permits_for_long(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    verdict, faults = directed(server, worker, orders(database, tmp_path, engine), 35.0, PROCESSES)
    check(verdict)
    assert verdict.holds > 1000
    assert verdict.told
    assert min(faults[kind] for kind in ("killed", "stopped", "lock", "listen", "publish")) > 0
