"""No wake-up of a waiter is lost, in many contended cycles; and the detector finds those that are.

Theory: the waiters' re-check is set to a minute, so whoever is not woken leaves the lock unused until somebody else
comes. A key that stands free for longer than `GAP` while a process waits for it is a lost wake-up, and so is a process
that does not come to its end. Both limits are longer than a process stands still because the machine is busy.

How often the processes meet is up to the machine, so they go on until they have met often enough.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pgconcert.testing import advisory_locks, eventually
from tests.faults.history import Verdict, count, judge, read, slow_handovers
from tests.faults.worker import PROGRAM, Orders
from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(180)]

PROCESSES = 4
GAP = 10.0
RECHECK = 60.0
START_LIMIT = 60.0
END_LIMIT = 30.0
RECORDS_OF_A_HOLD = 3


def compete(
    url: str, start: Callable[..., Worker], path: Path, *, keys: int, holds: int, handovers: int, limit: float
) -> tuple[Verdict, list[str]]:
    """Run until so often a lock was held, and went from process to process; return the verdict, and the gaps."""
    history = path / f"{keys} keys"
    orders = Orders(url, str(history), keys=keys, tasks=5, longest=0.0, recheck=RECHECK)

    def enough() -> bool:
        # judging takes a while, so first those that are no more than written down
        return count(history) > RECORDS_OF_A_HOLD * holds and judge(read(history)).handovers > handovers

    run([start(PROGRAM, orders.text()) for _ in range(PROCESSES)], url, enough, limit)
    verdict = judge(read(history))
    return verdict, slow_handovers(verdict.turns, GAP)


def run(workers: list[Worker], url: str, enough: Callable[[], bool], limit: float) -> None:
    """Let them go until it is enough; then everybody finishes what it waits for."""
    for worker in workers:
        worker.expect("ready", START_LIMIT)
    for worker in workers:
        worker.send("go")
    eventually(enough, limit, what="they have met often enough")
    for worker in workers:
        worker.send("end")
    for worker in workers:
        worker.expect("done", END_LIMIT)
        assert worker.wait() == 0
    eventually(lambda: not advisory_locks(url), what="nothing is left in pg_locks")


@pytest.mark.parametrize("keys", [2, pytest.param(5, marks=pytest.mark.long)])
def test_no_wake_up_is_lost(database: str, worker: Callable[..., Worker], tmp_path: Path, keys: int) -> None:
    verdict, gaps = compete(database, worker, tmp_path, keys=keys, holds=1000, handovers=100, limit=90)
    assert verdict.wrong == []
    assert gaps == []
    assert verdict.holds > 1000 - PROCESSES * 5
    assert verdict.handovers > 100


@pytest.mark.long
@pytest.mark.timeout(500)
def test_no_wake_up_is_lost_in_100_000_cycles(database: str, worker: Callable[..., Worker], tmp_path: Path) -> None:
    for keys in (2, 3, 5):
        verdict, gaps = compete(database, worker, tmp_path, keys=keys, holds=34_000, handovers=7_000, limit=120)
        assert verdict.wrong == []
        assert gaps == []
        assert verdict.holds > 34_000 - PROCESSES * 5


def test_lost_wake_ups_are_seen(database: str, worker: Callable[..., Worker], tmp_path: Path) -> None:
    """The negative control: processes that wake nobody leave gaps, and still exclude each other.

    One ends while the other waits for it. When that one looks again is random, and may be at once."""

    def one_waits() -> bool:
        return any(isinstance(lock.key, tuple) for lock in advisory_locks(database))

    for attempt in range(10):
        history = tmp_path / f"mute {attempt}"
        orders = Orders(database, str(history), keys=1, tasks=2, longest=0.02, recheck=2.0, mute=True)
        run([worker(PROGRAM, orders.text()) for _ in range(2)], database, one_waits, 50)
        verdict = judge(read(history))
        assert verdict.wrong == []
        if slow_handovers(verdict.turns, 0.3):
            return
    raise AssertionError("nothing was missed by anybody")
