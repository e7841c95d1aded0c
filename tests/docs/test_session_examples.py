"""The examples of job locks, elections and groups: the programs themselves, killed and ended as in life."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually
from tests.postgres.threads import Running
from tests.processes import Worker

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TTL = "3"
PATIENCE = 60.0

Start = Callable[[str], Worker]

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def start(database: str, worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start an example on a database that has our tables."""
    with Coordinator(database, migrate=True):
        pass
    for name in ("IMPORTER_TTL", "SCHEDULER_TTL", "WORKERS_TTL"):
        monkeypatch.setenv(name, TTL)
    monkeypatch.setenv("PGCONCERT_URL", database)
    monkeypatch.setenv("REPORT_EVERY", "0.05")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return lambda name: worker(EXAMPLES / name)


def waiting(database: str, name: str) -> int:
    """How many sessions are known to wait for a name."""
    with psycopg.connect(database, autocommit=True) as connection:
        return connection.execute("select from pgconcert.waiting where name = %s", [name]).rowcount


def ends_in_good_order(*workers: Worker) -> None:
    for one in workers:
        one.terminate()
        assert one.wait(PATIENCE) == 0


def test_importer(start: Start) -> None:
    """One of two imports. When it is killed the other does, with a larger token; when that ends, a third does."""
    first = start("importer.py")
    token = int(first.expect(f"import by {first.pid} with token", PATIENCE))
    second = start("importer.py")
    first.kill()
    later = int(second.expect(f"import by {second.pid} with token", PATIENCE))
    assert later > token
    third = start("importer.py")
    ends_in_good_order(second)
    assert int(third.expect(f"import by {third.pid} with token", PATIENCE)) > later
    assert not any(str(first.pid) in line or str(second.pid) in line for line in third.heard)
    ends_in_good_order(third)


def test_importer_makes_room(start: Start, database: str) -> None:
    """A request ends the work, and somebody else has its chance."""
    importer = start("importer.py")
    importer.expect("import by", PATIENCE)
    with Coordinator(database) as c:
        lock = c.job_lock("importer", ttl=float(TTL))
        holder = lock.holder()
        assert holder is not None
        assert (holder.pid, holder.data) == (importer.pid, {"service": "billing"})
        # who is asked to make room takes it again when nobody is there
        waits = Running(lambda: lock.acquire(timeout=PATIENCE))
        eventually(lambda: waiting(database, "importer") == 1, PATIENCE, what="we are known to wait")
        assert lock.request_release()
        with waits.result(PATIENCE):
            assert importer.returncode is None
    ends_in_good_order(importer)


def test_scheduler(start: Start, database: str) -> None:
    """One of two leads, and both see it. Killed, asked, and ended leaders are followed by others."""
    first = start("scheduler.py")
    term = int(first.expect(f"{first.pid} leads term", PATIENCE))
    second = start("scheduler.py")
    second.expect(f"{second.pid} sees that {first.pid} leads", PATIENCE)
    first.kill()
    later = int(second.expect(f"{second.pid} leads term", PATIENCE))
    assert later > term
    third = start("scheduler.py")
    third.expect(f"{third.pid} sees that {second.pid} leads", PATIENCE)
    eventually(lambda: waiting(database, "scheduler") == 1, PATIENCE, what="the third is known to wait")
    with Coordinator(database) as c:
        assert c.election("scheduler").request_release()
    assert int(third.expect(f"{third.pid} leads term", PATIENCE)) > later
    os.kill(third.pid, signal.SIGTERM)
    second.expect(f"{second.pid} sees that nobody leads", PATIENCE)
    second.expect(f"{second.pid} leads term", PATIENCE)
    assert third.wait(PATIENCE) == 0
    ends_in_good_order(second)


def test_workers(start: Start) -> None:
    """Three share eight names, each of which belongs to one; who is killed or leaves has none any more."""
    workers = [start("workers.py") for _ in range(3)]

    def shares(those: list[Worker]) -> list[str]:
        said = [one.expect(f"{one.pid} of {len(those)} has", PATIENCE) for one in those]
        return sorted(name for share in said for name in share.split())

    names = shares(workers)
    assert len(names) == len(set(names)) == 8
    workers.pop().kill()
    assert shares(workers) == names
    ends_in_good_order(workers.pop())
    assert shares(workers) == names
    ends_in_good_order(*workers)
