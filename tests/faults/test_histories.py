"""Exclusion, liveness and tidiness while processes are killed and stopped, and their sessions ended, at random.

Theory: the processes write down what they do (`history.py`), the director what it does to them; afterwards the history
is judged as a whole. The re-check of waiters is left as it is here: a lost session of the listen link may cost a
wake-up, and that is what it is for. Whoever still waits at the end must get the lock soon, as all others leave.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pgconcert.testing import advisory_locks, eventually, sessions
from tests.faults.history import Diary, Kind, Verdict, judge, read
from tests.faults.worker import PROGRAM, Orders
from tests.processes import Worker
from tests.servers import Server

pytestmark = pytest.mark.faults

PROCESSES = 4
PAUSE = 0.12
END_LIMIT = 30.0


@dataclass
class Director:
    """Runs the workers and does things to them."""

    server: Server
    url: str
    start: Callable[..., Worker]
    orders: Orders
    diary: Diary
    workers: list[Worker] = field(default_factory=list)
    stopped: dict[int, float] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    def fill_up(self) -> None:
        """Start workers until all places are taken."""
        new = [self.start(PROGRAM, self.orders.text()) for _ in range(PROCESSES - len(self.workers))]
        for worker in new:
            worker.expect("ready")
            worker.send("go")
        self.workers += new

    def disturb(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(PAUSE * random.uniform(0.5, 1.5))
            self.wake(time.monotonic())
            random.choice([self.kill, self.stop, self.stop, self.cut, self.cut, self.cut, self.cut_a_stopped_one])()
        self.wake(None)

    def kill(self) -> None:
        worker = self.workers.pop(random.randrange(len(self.workers)))
        self.stopped.pop(worker.pid, None)
        self.diary.write(Kind.KILLED, pid=worker.pid)
        worker.kill()
        self.faults["killed"] += 1
        self.fill_up()

    def stop(self) -> None:
        running = [worker for worker in self.workers if worker.pid not in self.stopped]
        if len(running) < 2:
            return
        worker = random.choice(running)
        worker.stop_signal()
        self.stopped[worker.pid] = time.monotonic() + random.uniform(0.05, 0.6)
        self.faults["stopped"] += 1

    def wake(self, now: float | None) -> None:
        """Let those go on whose time has come; all, if no time is given."""
        for worker in self.workers:
            due = self.stopped.get(worker.pid)
            if due is not None and (now is None or due <= now):
                del self.stopped[worker.pid]
                self.diary.write(Kind.CONTINUED, pid=worker.pid)
                worker.cont()

    def cut(self, of: str = "") -> None:
        """End a session of one of the links."""
        there = [session for session in sessions(self.url) if of in session.application_name]
        role = random.choice(["lock", "lock", "listen", "publish"])
        there = [session for session in there if session.application_name.endswith(f"pgconcert-{role}")]
        if not there:
            return
        backend = random.choice(there).pid
        self.diary.write(Kind.TERMINATED, backend=backend)
        self.faults[role] += self.server.kill_backend(backend)

    def cut_a_stopped_one(self) -> None:
        if self.stopped:
            self.cut(f":{random.choice([*self.stopped])} ")

    def finish(self) -> None:
        """Everybody finishes what it waits for, in good time."""
        for worker in self.workers:
            worker.send("end")
        for worker in self.workers:
            worker.expect("done", END_LIMIT)
            assert worker.wait() == 0


def history(
    server: Server,
    url: str,
    start: Callable[..., Worker],
    path: Path,
    seconds: float,
    engine: Literal["loop", "thread"],
) -> tuple[Verdict, Counter[str]]:
    orders = Orders(url, str(path / "history"), cancel=0.2, engine=engine)
    diary = Diary(path / "history")
    director = Director(server, url, start, orders, diary)
    director.fill_up()
    director.disturb(seconds)
    director.finish()
    diary.close()
    eventually(lambda: not advisory_locks(url), what="nothing is left in pg_locks")
    return judge(read(path / "history")), director.faults


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_history_under_faults(
    server: Server,
    database: str,
    worker: Callable[..., Worker],
    tmp_path: Path,
    engine: Literal["loop", "thread"],
) -> None:
    verdict, faults = history(server, database, worker, tmp_path, 2.5, engine)
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
