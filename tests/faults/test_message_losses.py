"""Connections that break under load: nothing is lost that is not reported, nothing comes twice, and in order.

Theory: `message_director.py` says what is broken, `message_history.py` how what came is judged, number by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from pgconcert.testing import eventually
from tests.faults.message_director import cast
from tests.faults.message_history import Verdict
from tests.postgres.store_scenes import database_with_tables
from tests.processes import Worker
from tests.servers import OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Start = Callable[..., Worker]
Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])


@pytest.fixture
def tables(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own, with our tables."""
    with database_with_tables(server) as url:
        yield url


def killed(
    server: Server, url: str, start: Start, path: Path, times: int, engine: Engine
) -> tuple[Verdict, Counter[str]]:
    """The load, with so many connections broken; what the history says, and what was done."""
    with cast(server, url, start, path / "history", subscriber={"engine": engine, "slow": True}) as running:
        running.disturb(times)
        eventually(running.listening, what="somebody listens again")
        running.terminate("listen")  # so that one gap there is
        before = running.received()
        eventually(lambda: running.received() > before + 50, 30, what="messages flow again")
        eventually(lambda: len(running.listening()) == 2, what="one session listens for each process")
        return running.finish(), running.faults


@both_engines
@pytest.mark.long
def test_ten_kills_under_load(server: Server, tables: str, worker: Start, tmp_path: Path, engine: Engine) -> None:
    verdict, faults = killed(server, tables, worker, tmp_path, 10, engine)
    assert verdict.wrong == []
    assert verdict.received > 500
    assert verdict.gaps["reconnect"]
    assert faults.total() >= 10


@pytest.mark.long
@pytest.mark.timeout(300)
@both_engines
def test_a_hundred_kills_under_load(server: Server, tables: str, worker: Start, tmp_path: Path, engine: Engine) -> None:
    verdict, faults = killed(server, tables, worker, tmp_path, 100, engine)
    assert verdict.wrong == []
    assert verdict.received > 5000
    assert verdict.missed, "no message was under way in any of the breaks"
    assert min(verdict.gaps["reconnect"], verdict.gaps["overflow"], verdict.fates["uncertain"]) > 0
    assert faults.total() >= 100


def test_without_any_fault_nothing_is_missed(server: Server, tables: str, worker: Start, tmp_path: Path) -> None:
    """Large payloads, envelopes, NULs and plain texts of many publishers: all of it, and no gap."""
    # for a machine that is busy, so that no link is given up
    patient = {"network_timeout": 60.0}
    with cast(server, tables, worker, tmp_path / "history", subscriber=patient, publisher=patient) as running:
        eventually(lambda: running.received() > 1000, 60)
        verdict = running.finish()
    assert verdict.wrong == []
    assert not verdict.gaps
    assert set(verdict.fates) == {"sent"}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.long
def test_a_restart_under_load(own_server: OwnServer, tables: str, worker: Start, tmp_path: Path, mode: str) -> None:
    """The server goes and comes back, with all connections of everybody."""
    with cast(own_server, tables, worker, tmp_path / "history") as running:
        own_server.restart(mode)
        before = running.received()
        eventually(lambda: running.received() > before + 50, 30, what="messages flow again")
        verdict = running.finish()
    assert verdict.wrong == []
    assert verdict.gaps["reconnect"]
