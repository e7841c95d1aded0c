"""Who runs processes with runners, does things to them and to the server, looks at their shares, and asks the judge.

Theory: the history is judged as ``task_history.py`` says. Tasks come in portions all the time, so there is always
something to share. Now and then all is left alone for a while, with a gate shut that lets no task be completed: then
the shares must settle, whoever was killed or stopped just before. *Settled*: every task belongs to a living session of
the runners, all of which are known, and nobody has two more than another that it could give away, for it has not begun
them. That is looked at again and again until it is so; who never settles fails the test.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgconcert.testing import FaultProxy, eventually
from tests.faults.task_history import Verdict, judge, said, versions
from tests.faults.task_tables import OPEN, Kind, add_tasks, outstanding
from tests.faults.task_worker import PROGRAM, RUNNER, Orders
from tests.processes import Worker
from tests.servers import OwnServer

__all__ = ["Stage"]

LIMIT: Final = 30.0

_SHARES: Final = """
    select s.id, count(t.*) filter (where t.session_id < 0), count(t.*) filter (where t.session_id > 0)
      from pgconcert.entry e join pgconcert.session s on s.id = e.session_id
      left join (select t.session_id {open}) t on abs(t.session_id) = s.id
     where e.kind = 'runner' and e.name = %s and s.ended is null and s.expires > clock_timestamp()
     group by s.id
"""


@dataclass
class Stage:
    """The processes of one run. ``url`` leads straight to the database, ``ways`` are those that the processes go."""

    server: OwnServer
    url: str
    kind: Kind
    folder: Path
    start: Callable[..., Worker]
    ways: list[str]
    proxy: FaultProxy
    processes: int = 4
    orders: Orders = field(default_factory=lambda: Orders("", ""))
    workers: list[Worker] = field(default_factory=list)
    stopped: dict[int, float] = field(default_factory=dict)
    thawing: float | None = None
    plain: list[bool] = field(default_factory=lambda: [True, False, False, False])
    done: Counter[str] = field(default_factory=Counter)

    def fill_up(self) -> None:
        """Start processes until all places are taken; a silence ends, or they could not begin."""
        self._thaw()
        new: list[Worker] = []
        while len(self.workers) + len(new) < self.processes:
            self.ways.append(self.ways.pop(0))
            self.plain.append(self.plain.pop(0))
            orders = replace(
                self.orders, url=self.ways[0], folder=str(self.folder), kind=self.kind, plain=self.plain[0]
            )
            new.append(self.start(PROGRAM, orders.text()))
        for worker in new:
            worker.expect("ready", LIMIT)
        self.workers += new

    def disturb(self, seconds: float, tasks: int, *, restart: bool) -> None:
        """For so long, while so many tasks come. ``restart``: the server crashes in the middle of it."""
        began, added = time.monotonic(), 0
        while (now := time.monotonic()) < began + seconds:
            if restart and now > began + seconds / 2:
                restart = False
                self.restart()
            portion = min(tasks, int(tasks * (now - began) / seconds) + 100) - added
            if portion > 0:
                self.add(portion)
                added += portion
            time.sleep(random.uniform(0.05, 0.3))
            self.wake(now)
            faults = [self.kill, self.stop, self.stop, self.stop, self.leave, self.end_sessions, self.cut, self.freeze]
            random.choice(faults)()
        self.wake(None)
        self.add(tasks - added)

    def add(self, count: int) -> None:
        """So many tasks come."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            while count > 0:
                add_tasks(connection, self.kind, min(count, 200))
                count -= 200

    def kill(self) -> None:
        """SIGKILL, and another one in its place."""
        if self.done["killed"] * 8 > self.done.total():
            return  # a new process takes its time to begin
        self._take_out().kill()
        self.done["killed"] += 1
        self.fill_up()

    def leave(self) -> None:
        """SIGTERM, and another one in its place."""
        if self.done["left"] * 8 > self.done.total():
            return
        worker = self._take_out()
        worker.cont()
        worker.terminate()
        self._done(worker)
        self.done["left"] += 1
        self.fill_up()

    def stop(self) -> None:
        """SIGSTOP, mostly for longer than a session lives."""
        running = [worker for worker in self.workers if worker.pid not in self.stopped]
        if len(running) > 1:
            worker = random.choice(running)
            worker.stop_signal()
            self.stopped[worker.pid] = time.monotonic() + self.orders.ttl * random.uniform(0.2, 2.0)
            self.done["stopped"] += 1

    def wake(self, now: float | None) -> None:
        """Let those go on whose time has come; all, if no time is given."""
        for worker in self.workers:
            due = self.stopped.get(worker.pid)
            if due is not None and (now is None or due <= now):
                del self.stopped[worker.pid]
                worker.cont()
        if self.thawing is not None and (now is None or self.thawing <= now):
            self._thaw()

    def cut(self) -> None:
        """End the connections of those that go through the proxy, at once or at some byte."""
        if self.thawing is None and random.random() < 0.5:
            self.proxy.cut_after(random.randint(1, 5000), random.choice(["to_server", "to_client"]))
        else:
            self.proxy.cut()
        self.done["cut"] += 1

    def freeze(self) -> None:
        """Silence for those that go through the proxy; one direction or both."""
        if self.thawing is None:
            self.proxy.pause(random.choice(["to_server", "to_client", None]))
            self.thawing = time.monotonic() + self.orders.ttl * random.uniform(0.1, 1.5)
            self.done["frozen"] += 1

    def end_sessions(self) -> None:
        """End some server processes."""
        with contextlib.suppress(psycopg.OperationalError):
            self.server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = %s and application_name ~ 'pgconcert' and random() < 0.3",
                conninfo_to_dict(self.url)["dbname"],
            )
            self.done["cut by the server"] += 1

    def restart(self) -> None:
        """The server crashes and comes back."""
        self.server.restart("immediate")
        self.done["restarted"] += 1

    def settle(self, tasks: int) -> None:
        """Wait until all shares are fair, of so many tasks and what is left of those before."""
        gate = Path(self.folder, "shut")
        gate.touch()
        self.wake(None)
        self.add(tasks)
        told = "nothing"

        def settled() -> bool:
            nonlocal told
            told = self._unsettled(connection)
            return not told

        with psycopg.connect(self.url, autocommit=True) as connection:
            try:
                eventually(settled, LIMIT)
            except AssertionError:
                raise AssertionError(f"the shares do not settle: {told}; {self.done}") from None
        self.done["settled"] += 1
        gate.unlink()

    def _unsettled(self, connection: psycopg.Connection[Any]) -> str:
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            shares = connection.execute(_SHARES.format(open=OPEN[self.kind]).encode(), [RUNNER]).fetchall()
            total = outstanding(connection, self.kind)
        held = [assigned + started for _, assigned, started in shares]
        if len(shares) != self.processes or sum(held) != total:
            return f"of {total} tasks {sum(held)} are with {len(shares)} living sessions: {shares}"
        for session, assigned, started in shares:
            if assigned and assigned + started > min(held) + 1:
                return f"session {session} could give some of its {assigned} + {started}: {shares}"
        return ""

    def finish(self) -> Verdict:
        """Let everything be finished and everybody come to an end; what the history says."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            eventually(lambda: not outstanding(connection, self.kind), 2 * LIMIT, what="everything is finished")
        for worker in self.workers:
            worker.send("end")
        for worker in self.workers:
            self._done(worker)
        with psycopg.connect(self.url, autocommit=True) as connection:
            shares = connection.execute(_SHARES.format(open=OPEN[self.kind]).encode(), [RUNNER]).fetchall()
        assert shares == [], "who has stopped has no session"
        return judge(versions(self.url), said(self.folder))

    def _thaw(self) -> None:
        self.thawing = None
        self.proxy.resume()

    def _take_out(self) -> Worker:
        worker = self.workers.pop(random.randrange(len(self.workers)))
        self.stopped.pop(worker.pid, None)
        return worker

    def _done(self, worker: Worker) -> None:
        statistics = json.loads(worker.expect("done", LIMIT))
        assert worker.wait() == 0
        for what in ("refused", "moved", "lost_sessions"):
            self.done[what] += statistics[what]
