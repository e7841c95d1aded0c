"""A writer among processes of readers that are never all outside: how long it is kept waiting, in turns of the readers.

Theory: a *reader turn* is one entry of one process. From the writer's request to its entry no process may enter more
than twenty times; time is not asserted, as it is that of the machine. That readers overlap all the while is shown from
the history: at every request of the writer some reader is inside, so it never finds the lock free by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing import eventually_async
from tests.faults.history import Diary, Kind, Turn, judge, read
from tests.faults.worker import PROGRAM, Orders
from tests.processes import Worker
from tests.servers import Server

pytestmark = pytest.mark.faults

PROCESSES = 8
TASKS = 2
LIMIT = 20
BETWEEN = 3000
"""Bytes that the readers write into the history before each request of the writer: by then all are going again."""


def turns_before(readers: Sequence[Turn], writer: Turn) -> Counter[int]:
    """How often each process of readers entered between the writer's request and its entry."""
    assert writer.entered is not None
    return Counter(
        turn.pid for turn in readers if turn.entered is not None and writer.asked < turn.entered < writer.entered
    )


def readers_inside(readers: Sequence[Turn], at: int) -> int:
    """How many readers were inside at an instant."""
    return sum(turn.entered is not None and turn.entered <= at < (turn.ended or at + 1) for turn in readers)


async def writers_wait(url: str, start: Callable[..., Worker], path: Path, writers: int) -> None:
    """Let a writer in so many times, and judge what the history says about its waits."""
    orders = Orders(url, str(path), keys=1, tasks=TASKS, longest=0.05, wants="reader")
    diary = Diary(path)
    workers = [start(PROGRAM, orders.text()) for _ in range(PROCESSES)]
    for worker in workers:
        worker.expect("ready")
        worker.send("go")
    async with AsyncCoordinator(url) as c:
        lock = c.lock("key 0")
        for number in range(writers):
            enough = path.stat().st_size + BETWEEN
            await eventually_async(partial(_has_grown, path, enough), what="the readers are going")
            diary.write(Kind.WAITING, turn=number)
            async with lock:
                diary.write(Kind.ENTERED, turn=number)
                diary.write(Kind.LEFT, turn=number)
    for worker in workers:
        worker.send("end")
    for worker in workers:
        worker.expect("done")
        assert worker.wait() == 0
    diary.close()
    verdict = judge(read(path))
    assert verdict.wrong == []
    readers = [turn for turn in verdict.turns if turn.shared]
    waits = [turn for turn in verdict.turns if not turn.shared and turn.entered is not None]
    assert len(waits) == writers
    assert len({turn.pid for turn in readers}) == PROCESSES
    assert all(readers_inside(readers, turn.asked) for turn in waits)
    entries = [turns_before(readers, turn) for turn in waits]
    most = [max(counter.values(), default=0) for counter in entries]
    totals = [counter.total() for counter in entries]
    print(f"turns of the readers during {writers} waits: {max(most)} of one process at most, {sum(totals)} in all")
    assert max(most) <= LIMIT, most
    # of all processes together too, as a rule; the first wait opens the listen link, and the machine may be busy
    assert sorted(totals)[len(totals) // 2] <= LIMIT, totals


def _has_grown(path: Path, size: int) -> bool:
    return path.stat().st_size > size


@pytest.mark.long
async def test_a_writer_gets_in(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    await writers_wait(database, worker, tmp_path / "history", 20)


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_writer_gets_in_again_and_again(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    await writers_wait(database, worker, tmp_path / "history", 300)
