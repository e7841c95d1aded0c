"""Who runs competing processes and does things to them: kills and stops them, and ends their sessions, at random.

Theory: the processes write down what they do (`history.py`), the director what it does to them, each just before it is
done. The re-check of waiters is left as it is: a lost session of the listen link may cost a wake-up, and that is what
it is for. Whoever still waits at the end must get what it waits for soon, as all others leave.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pgconcert.testing import advisory_locks, eventually, sessions
from tests.faults.history import Diary, Kind, Verdict, judge, read
from tests.faults.worker import PROGRAM, Orders
from tests.processes import Worker
from tests.servers import Server

__all__ = ["Director", "directed"]

PAUSE = 0.12
ENOUGH = 12
AT_MOST_LONGER = 40.0
START_LIMIT = 60.0
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
    processes: int = 4

    def fill_up(self) -> None:
        """Start workers until all places are taken."""
        new = [self.start(PROGRAM, self.orders.text()) for _ in range(self.processes - len(self.workers))]
        for worker in new:
            worker.expect("ready", START_LIMIT)
            worker.send("go")
        self.workers += new

    def disturb(self, seconds: float, enough: Callable[[], bool] = lambda: True) -> None:
        """For so long; on a busy machine, where everything takes its time, until enough has happened."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end or (
            now < end + AT_MOST_LONGER and not (self.faults.total() >= ENOUGH and enough())
        ):
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


def directed(
    server: Server,
    start: Callable[..., Worker],
    orders: Orders,
    seconds: float,
    processes: int,
    enough: Callable[[Verdict, Counter[str]], bool] = lambda verdict, faults: True,
) -> tuple[Verdict, Counter[str]]:
    """Let `processes` compete by `orders` for so long, under faults; what the history says, and the faults by kind.

    On a busy machine it goes on until what has happened so far is `enough`."""
    path = Path(orders.history)
    diary = Diary(path)
    director = Director(server, orders.url, start, orders, diary, processes=processes)
    director.fill_up()
    director.disturb(seconds, lambda: enough(judge(read(path)), director.faults))
    director.finish()
    diary.close()
    eventually(lambda: not advisory_locks(orders.url), what="nothing is left in pg_locks")
    return judge(read(path)), director.faults
