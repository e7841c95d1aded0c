"""Clients that share tasks through the store itself, without the care of a runner, and the judge of what became of it.

Theory: ``task_clients.py`` says what they do, ``task_history.py`` what is judged. Sessions live for a tenth of a
second, so that they are over in the middle of everything; processes, and server processes in the middle of a statement,
are stopped for longer than that.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pgconcert.testing import eventually
from tests.conftest import Servers
from tests.faults import takeover_director
from tests.faults.takeover_director import totals
from tests.faults.task_clients import PROGRAM, Orders
from tests.faults.task_history import Verdict, judge, said, versions
from tests.faults.task_tables import Kind, add_tasks, history_written, outstanding
from tests.needs import debian_servers, need
from tests.poolers import PgBouncer
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SERVERS: Final = ["pg18", *[name for name in debian_servers() if name != "pg18"]]

LIMIT: Final = 60.0
WORTH: Final = ("taken over", "moved", "given back", "refused", "said begun")
NEVER_MIND: Final = -1.0
PROCESSES: Final = 4


@dataclass
class Crowd(takeover_director.Stage):
    """The processes of one run."""

    kind: Kind = "queue"

    def run(self, seconds: float) -> None:
        """Tasks come, and everybody is disturbed, for so long and until all has happened that a run is worth something
        for, however slow the machine is."""
        end = time.monotonic() + seconds
        with psycopg.connect(self.url, autocommit=True) as connection:
            while time.monotonic() < end or not self._is_enough(0.0):
                assert time.monotonic() < end + LIMIT, (self.done, self._counts())
                add_tasks(connection, self.kind, 30)
                self.disturb(0.3, NEVER_MIND)

    def _is_enough(self, often: float) -> bool:
        if often == NEVER_MIND:
            return True
        counts = self._counts()
        return all(counts[what] > often for what in WORTH)

    def _counts(self) -> Counter[str]:
        return judge(versions(self.url), said(self.folder)).counts

    def end(self) -> Verdict:
        """Let everything be finished and everybody come to an end; what the history says."""
        for worker in self.workers:
            worker.send("drain")
        with psycopg.connect(self.url, autocommit=True) as connection:
            eventually(lambda: not outstanding(connection, self.kind), LIMIT, what="everything is finished")
        for worker in self.workers:
            worker.send("end")
        for worker in self.workers:
            self.done.update(json.loads(worker.expect("done", LIMIT)))
            assert worker.wait() == 0
        return judge(versions(self.url), said(self.folder))


@pytest.fixture
def stress(request: pytest.FixtureRequest, worker: Callable[..., Worker], tmp_path: Path) -> Callable[..., None]:
    """``stress(server, kind, seconds, pooled=..., cuts=...)`` runs it, and fails by what the judge finds."""

    def run(server: Server, kind: Kind, seconds: float, *, pooled: bool, cuts: float) -> None:
        with history_written(server, kind, naps=0.05) as url:
            with ExitStack() as stack:
                through = url
                if pooled:
                    pooler = PgBouncer(need(request.config, "pgbouncer"), server, url, "transaction", pool_size=8)
                    stack.callback(pooler.close)
                    through = pooler.url
                crowd = Crowd(server, url, tmp_path, kind=kind)
                for _ in range(PROCESSES):
                    crowd.workers.append(worker(PROGRAM, Orders(through, str(tmp_path), kind, cuts=cuts).text()))
                for one in crowd.workers:
                    one.expect("ready", LIMIT)
                crowd.run(seconds)
                verdict = crowd.end()
            assert verdict.wrong == [], f"{len(verdict.wrong)} wrong, of {verdict.counts}, {crowd.done}"
            for what in WORTH:
                assert verdict.counts[what] > 0, f"{what}: {verdict.counts}, {crowd.done}"
            assert totals(url).deadlocks == 0
            if not crowd.done["answer lost"]:
                assert verdict.counts["finished, and told to be refused"] == 0, verdict.counts

    return run


@pytest.mark.parametrize("kind", ["queue", pytest.param("table", marks=pytest.mark.long)])
def test_no_task_is_with_two_sessions(stress: Callable[..., None], server: Server, kind: Kind) -> None:
    stress(server, kind, 2.0, pooled=False, cuts=0.0)


@pytest.mark.long
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("kind", ["queue", "table"])
def test_no_task_is_with_two_sessions_through_a_pooler_with_lost_answers(
    stress: Callable[..., None], server: Server, kind: Kind
) -> None:
    stress(server, kind, 2.0, pooled=True, cuts=0.02)


@pytest.mark.long
@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("cuts", [0.0, 0.03], ids=["", "cuts"])
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
@pytest.mark.parametrize("kind", ["queue", "table"])
@pytest.mark.parametrize("name", SERVERS)
def test_no_task_is_with_two_sessions_for_long(
    stress: Callable[..., None], server: Server, servers: Servers, name: str, kind: Kind, pooled: bool, cuts: float
) -> None:
    stress(server if name == server.name else servers.get(name), kind, 20.0, pooled=pooled, cuts=cuts)
