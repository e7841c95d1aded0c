"""Sets of locks that overlap at random, in eight processes, while some are killed and stopped, and sessions end.

Theory: a deadlock would show as a process that does not come to its end after the faults have stopped, and long before
that as one that stops taking turns. Exclusion is judged key by key, as it is for single locks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.faults.director import directed
from tests.faults.history import Verdict, longest_wait
from tests.faults.worker import Orders
from tests.processes import Worker
from tests.servers import Server

pytestmark = pytest.mark.faults

PROCESSES = 8
KEYS = 8
MANY = 30
"""So many turns a process cannot ask for in vain."""
LONG = 15.0
"""Seconds that nobody waits, on a busy machine either."""


def check(verdict: Verdict) -> None:
    """No overlap; and every process that lived for a while took turns, none of which waited for very long."""
    assert verdict.wrong == []
    print(f"{verdict.holds} locks held, the longest wait was {longest_wait(verdict.turns):.3f} s")
    asked = Counter(turn.pid for turn in verdict.turns)
    entered = Counter(turn.pid for turn in verdict.turns if turn.entered is not None)
    # whoever asked less was killed soon after its start
    assert [pid for pid, turns in asked.items() if turns >= MANY and not entered[pid]] == []
    assert longest_wait(verdict.turns) < LONG


def orders(url: str, path: Path, engine: Literal["loop", "thread"]) -> Orders:
    """Two tasks in each process, with sets of one to four of the keys."""
    return Orders(
        url, str(path / "history"), keys=KEYS, tasks=2, longest=0.01, cancel=0.1, engine=engine, wants="set", together=4
    )


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.long
@pytest.mark.timeout(150)
def test_no_deadlock_and_no_overlap(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    def enough(verdict: Verdict, faults: Counter[str]) -> bool:
        return verdict.holds > 100 and verdict.handovers > 50

    verdict, faults = directed(server, worker, orders(database, tmp_path, engine), 3.0, PROCESSES, enough)
    check(verdict)
    assert enough(verdict, faults)
    assert faults.total() > 0


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_no_deadlock_and_no_overlap_for_long(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    def enough(verdict: Verdict, faults: Counter[str]) -> bool:
        return verdict.holds > 1000 and verdict.handovers > 500 and faults["killed"] > 0

    verdict, faults = directed(server, worker, orders(database, tmp_path, engine), 30.0, PROCESSES, enough)
    check(verdict)
    assert enough(verdict, faults)
