"""Who runs processes that compete for job locks, does things to them and to the server, and asks the judge.

Theory: what became of sessions and entries is written down by triggers and judged as ``takeover_history.py`` says. What
was written under a guard is judged here: the trigger of that table looks at the row of the lock, which the guard holds
still, and notes whether the token is the current one; and the tokens of one name never fall, in the order in which rows
were written, because a token is taken only after all that was guarded by the one before it has been committed.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgconcert.postgres.schemafiles import script
from pgconcert.testing import FaultProxy
from tests.faults.session_worker import PROGRAM, Orders
from tests.faults.takeover_history import TRIGGERS, Verdict, judge, told, versions
from tests.processes import Worker
from tests.servers import OwnServer, Server

__all__ = ["Stage", "history_written"]

PROCESSES: Final = 4
END_LIMIT: Final = 40.0

WRITTEN: Final = """
    create table written (seq bigserial primary key, name text not null, token bigint not null, is_current boolean);
    create function is_current() returns trigger language plpgsql as $$ begin
        new.is_current = exists (select from pgconcert.entry e
                                  where e.kind = 'job' and e.name = new.name and e.token = new.token
                                    and e.session_id is not null);
        return new;
    end $$;
    create trigger is_current before insert on written for each row execute function is_current();
"""


@contextlib.contextmanager
def history_written(server: Server) -> Iterator[str]:
    """The URL of a database with our tables, which writes their history, and a table that holders write."""
    with server.fresh_database() as url:
        with psycopg.connect(url, autocommit=True) as owner:
            for text in (script(), TRIGGERS, WRITTEN):
                owner.execute(text.encode())
        yield url


@dataclass
class Stage:
    """The processes of one run. ``url`` leads straight to the database, ``ways`` are those that the processes go."""

    server: OwnServer
    url: str
    ways: list[str]
    proxy: FaultProxy
    folder: Path
    start: Callable[..., Worker]
    restarts: int = 1
    workers: list[Worker] = field(default_factory=list)
    stopped: dict[int, float] = field(default_factory=dict)
    thawing: float | None = None
    done: Counter[str] = field(default_factory=Counter)

    def fill_up(self) -> None:
        """Start processes until all places are taken."""
        new: list[Worker] = []
        while len(self.workers) + len(new) < PROCESSES:
            self.ways.append(self.ways.pop(0))
            new.append(self.start(PROGRAM, Orders(self.ways[0], self.url, str(self.folder)).text()))
        for worker in new:
            worker.expect("ready", END_LIMIT)
        self.workers += new

    def disturb(self, seconds: float) -> None:
        """For so long."""
        began = time.monotonic()
        restarts = [began + seconds * (number + 1) / (self.restarts + 1) for number in range(self.restarts)]
        faults = [self.kill, self.stop, self.stop, self.end_sessions, self.end_sessions, self.cut, self.freeze]
        while (now := time.monotonic()) < began + seconds:
            time.sleep(random.uniform(0.05, 0.3))
            self.wake(now)
            if restarts and now >= restarts[0]:
                restarts.pop(0)
                self.server.restart("immediate")
                self.done["restarted"] += 1
            random.choice(faults)()
        self.wake(None)

    def kill(self) -> None:
        """SIGKILL, and another one in its place."""
        if self.done["killed"] * 10 > self.done.total():
            return  # a new process takes its time to begin
        worker = self.workers.pop(random.randrange(len(self.workers)))
        self.stopped.pop(worker.pid, None)
        worker.kill()
        self.done["killed"] += 1
        self.fill_up()

    def stop(self) -> None:
        """SIGSTOP, mostly for longer than a session lives."""
        running = [worker for worker in self.workers if worker.pid not in self.stopped]
        if len(running) > 2:
            worker = random.choice(running)
            worker.stop_signal()
            self.stopped[worker.pid] = time.monotonic() + random.uniform(0.3, 2.0)
            self.done["stopped"] += 1

    def wake(self, now: float | None) -> None:
        """Let those go on whose time has come; all, if no time is given."""
        for worker in self.workers:
            due = self.stopped.get(worker.pid)
            if due is not None and (now is None or due <= now):
                del self.stopped[worker.pid]
                worker.cont()
        if self.thawing is not None and (now is None or self.thawing <= now):
            self.thawing = None
            self.proxy.resume()

    def end_sessions(self) -> None:
        """End some server processes."""
        with contextlib.suppress(psycopg.OperationalError):
            self.server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = %s and backend_type = 'client backend' and random() < 0.3",
                conninfo_to_dict(self.url)["dbname"],
            )
            self.done["cut by the server"] += 1

    def cut(self) -> None:
        """End the connections of those that go through the proxy."""
        self.proxy.cut()
        self.done["cut"] += 1

    def freeze(self) -> None:
        """Silence for those that go through the proxy; one direction or both."""
        if self.thawing is None:
            self.proxy.pause(random.choice(["to_server", "to_client", None]))
            self.thawing = time.monotonic() + random.uniform(0.1, 1.5)
            self.done["frozen"] += 1

    def shown(self) -> bool:
        """Whether all that a run must have seen has happened: also that a guard was refused."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(
                "select exists (select from written)"
                " and exists (select from pgconcert.audit where relation = 'session' and"
                " old->'expires' < new->'expires')"
                " and exists (select from pgconcert.audit where relation = 'entry' and (new->>'given')::bool)"
            ).fetchone()
        told = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return row == (True,) and any(one["beliefs"] for one in told) and any("refused" in one["done"] for one in told)

    def finish(self) -> Verdict:
        """Let everybody come to an end; what the history says."""
        for worker in self.workers:
            worker.send("end")
        for worker in self.workers:
            worker.expect("done", END_LIMIT)
            assert worker.wait() == 0
        for path in self.folder.glob("*.json"):
            self.done.update(json.loads(path.read_text())["done"])
        verdict = judge(versions(self.url), told(self.folder))
        self._judge_writes(verdict)
        return verdict

    def _judge_writes(self, verdict: Verdict) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            written = connection.execute("select seq, name, token, is_current from written order by seq").fetchall()
        tokens: dict[str, int] = {}
        for seq, name, token, is_current in written:
            verdict.counts["written"] += 1
            if not is_current:
                verdict.wrong.append(f"row {seq} of {name} was written with token {token}, which was not current")
            if token < tokens.get(name, 0):
                verdict.wrong.append(f"row {seq} of {name} was written with token {token} after {tokens[name]}")
            tokens[name] = token
