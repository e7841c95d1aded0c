"""No wake-up of a waiter is lost, in many contended cycles; and the detector finds those that are.

Theory: the waiters' re-check is set to five seconds, so whoever is not woken leaves the lock unused for seconds. A key
that stands free for longer than `GAP` while a process waits for it is a lost wake-up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgconcert.testing import advisory_locks, eventually
from tests.faults.history import Verdict, judge, read, slow_handovers
from tests.faults.worker import PROGRAM, Orders
from tests.processes import Worker

pytestmark = pytest.mark.faults

PROCESSES = 4
GAP = 0.3
RECHECK = 5.0


def compete(
    url: str, start: Callable[..., Worker], path: Path, *, keys: int, cycles: int, limit: float
) -> tuple[Verdict, list[str]]:
    """Run all cycles; return the verdict, and the gaps."""
    history = path / f"{keys} keys"
    orders = Orders(url, str(history), keys=keys, tasks=5, cycles=cycles // PROCESSES, longest=0.0, recheck=RECHECK)
    return run([start(PROGRAM, orders.text()) for _ in range(PROCESSES)], url, history, limit)


def run(workers: list[Worker], url: str, history: Path, limit: float) -> tuple[Verdict, list[str]]:
    """Let them go all at once; return the verdict, and the gaps."""
    for worker in workers:
        worker.expect("ready")
    for worker in workers:
        worker.send("go")
    for worker in workers:
        worker.expect("done", limit)
        assert worker.wait() == 0
    eventually(lambda: not advisory_locks(url), what="nothing is left in pg_locks")
    verdict = judge(read(history))
    return verdict, slow_handovers(verdict.turns, GAP)


@pytest.mark.parametrize("keys", [2, pytest.param(5, marks=pytest.mark.long)])
def test_no_wake_up_is_lost(database: str, worker: Callable[..., Worker], tmp_path: Path, keys: int) -> None:
    verdict, gaps = compete(database, worker, tmp_path, keys=keys, cycles=1500, limit=30)
    assert verdict.wrong == []
    assert gaps == []
    assert verdict.holds >= 1500
    assert verdict.handovers > 150


@pytest.mark.long
@pytest.mark.timeout(400)
def test_no_wake_up_is_lost_in_100_000_cycles(database: str, worker: Callable[..., Worker], tmp_path: Path) -> None:
    handovers = 0
    for keys in (2, 3, 5):
        verdict, gaps = compete(database, worker, tmp_path, keys=keys, cycles=34_000, limit=120)
        assert verdict.wrong == []
        assert gaps == []
        assert verdict.holds >= 34_000
        handovers += verdict.handovers
    assert handovers > 20_000


def test_lost_wake_ups_are_seen(database: str, worker: Callable[..., Worker], tmp_path: Path) -> None:
    """The negative control: processes that wake nobody leave gaps, and still exclude each other."""
    history = tmp_path / "mute"
    orders = Orders(database, str(history), keys=1, tasks=2, cycles=30, longest=0.02, recheck=2.0, mute=True)
    verdict, gaps = run([worker(PROGRAM, orders.text()) for _ in range(2)], database, history, 50)
    assert verdict.wrong == []
    assert gaps
