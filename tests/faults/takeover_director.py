"""Who runs processes that take from each other, stops them and the server's in the middle, and asks the judge.

Theory: a server process that is stopped between the decision of a statement and its commit is what the protocol is
about, and it is stopped for longer than sessions live. The counters of the server tell whether anybody failed because
of a lock; a look at its locks, every few milliseconds, whether anybody waits for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from pgconcert.postgres.schemafiles import script
from pgconcert.testing import eventually
from tests.faults.takeover_history import TRIGGERS, Verdict, judge, told, versions
from tests.faults.takeover_worker import PROGRAM, Orders, subjects
from tests.processes import Worker
from tests.servers import Server

__all__ = ["Stage", "Totals", "history_written", "staged", "totals"]

END_LIMIT = 30.0


@contextlib.contextmanager
def history_written(server: Server) -> Iterator[str]:
    """The URL of a database with our tables, which writes their history. The names are there, because an insert may
    wait for another insert of the same name, and here nobody is to wait."""
    with server.fresh_database() as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(script().encode())
            owner.cursor().executemany(
                "insert into pgconcert.entry (kind, namespace, name, member) values (%s, %s, %s, %s)", subjects()
            )
            owner.execute(TRIGGERS.encode())
        yield url


@dataclass(frozen=True)
class Totals:
    """The counters of a database. ``rollbacks``: of statements that failed, for whatever reason."""

    deadlocks: int
    rollbacks: int


@dataclass
class Stage:
    """The processes of one run. ``url`` leads straight to the database. ``done``: what has happened."""

    server: Server
    url: str
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    def disturb(self, seconds: float, often: float) -> None:
        """Stop a process or a server process now and then, for longer than a session lives; until everything that
        the history tells of has happened more ``often`` than that, however slow the machine is."""
        end = time.monotonic() + seconds
        with psycopg.connect(self.url, autocommit=True, application_name="judge") as connection:
            while time.monotonic() < end or not self._is_enough(often):
                assert time.monotonic() < end + END_LIMIT, (self.done, judge(versions(self.url)).counts)
                self._watch(connection, random.uniform(0.02, 0.15))
                random.choice([self._stop_worker, self._stop_backend, self._stop_backend, self._guard])(connection)

    def _is_enough(self, often: float) -> bool:
        counts = judge(versions(self.url)).counts
        return all(counts[what] > often for what in ("taken over", "renewed", "revoked", "given"))

    def _stop_worker(self, connection: psycopg.Connection[Any]) -> None:
        worker = random.choice(self.workers)
        worker.stop_signal()
        self._watch(connection, random.uniform(0.05, 0.3))
        worker.cont()
        self.done["worker stopped"] += 1

    def _guard(self, connection: psycopg.Connection[Any]) -> None:
        """Somebody's guard is left open."""
        with connection.transaction():
            connection.execute("select 1 from pgconcert.entry where kind = 'job' for share skip locked")
            self._watch(connection, random.uniform(0.05, 0.3))
        self.done["guard left open"] += 1

    def _watch(self, connection: psycopg.Connection[Any], seconds: float) -> None:
        """Look for those who wait for the lock of a row."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            waiting = connection.execute(
                "select count(*) from pg_locks where not granted and locktype in ('transactionid', 'tuple')"
            ).fetchone()
            assert waiting
            self.done["looks"] += 1
            self.done["waiting"] += waiting[0]

    def _stop_backend(self, connection: psycopg.Connection[Any]) -> None:
        """A server process stops in the middle of what it does for sessions."""
        busy = connection.execute(
            "select pid from pg_stat_activity where datname = current_database() and state = 'active'"
            " and pid <> pg_backend_pid() and backend_type = 'client backend' and query ~ 'pgconcert..?session'"
        ).fetchall()
        if not busy or not self.server.owned:
            return
        (pid,) = random.choice(busy)
        os.kill(pid, signal.SIGSTOP)
        # not looked at meanwhile: it may have stopped with a lock that every look needs
        time.sleep(random.uniform(0.02, 0.25))
        os.kill(pid, signal.SIGCONT)
        self.done["statement stopped"] += 1

    def finish(self) -> Verdict:
        """Let everybody come to an end; what the history says."""
        for worker in self.workers:
            worker.send("end")
        for worker in self.workers:
            self.done.update(json.loads(worker.expect("done", END_LIMIT)))
            assert worker.wait() == 0
        return judge(versions(self.url), told(self.folder))


def totals(url: str) -> Totals:
    """The counters of a database, once everybody has left it: then they are complete."""
    with psycopg.connect(url, autocommit=True) as connection:

        def value(sql: str) -> tuple[Any, ...]:
            row = connection.execute(sql.encode()).fetchone()
            assert row
            return row

        eventually(
            lambda: value("select count(*) from pg_stat_activity where datname = current_database()") == (1,),
            END_LIMIT,
            what="all have left the database",
        )
        return Totals(
            *value("select deadlocks, xact_rollback from pg_stat_database where datname = current_database()")
        )


@contextlib.contextmanager
def staged(
    server: Server, url: str, start: Callable[..., Worker], folder: Path, *, through: str | None = None, **orders: Any
) -> Iterator[Stage]:
    """Four processes at work on a database that writes its history; ``through``: the URL by which they reach it."""
    stage = Stage(server, url, folder)
    for _ in range(4):
        stage.workers.append(start(PROGRAM, Orders(through or url, str(folder), **orders).text()))
    for worker in stage.workers:
        worker.expect("ready", END_LIMIT)
    yield stage
