"""Job locks under random faults: what the server wrote down has never two unexpired holders, nor a late write.

Theory: see ``session_director.py`` and ``takeover_history.py``. Half of the processes go through a pooler in
transaction mode, the others through a proxy that freezes and cuts; the server crashes in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pgconcert.testing import FaultProxy
from tests.faults.session_director import Stage, history_written
from tests.needs import need
from tests.poolers import PgBouncer
from tests.processes import Worker
from tests.servers import OwnServer

pytestmark = [pytest.mark.faults, pytest.mark.needs("pgbouncer"), pytest.mark.timeout(180)]


SMOKE = 3.0
ROUNDS = 30
"""How many seconds more, at most, until all has happened that must have, on a machine that is busy."""


@pytest.fixture
def history(
    own_server: OwnServer,
    proxy: FaultProxy,
    worker: Callable[..., Worker],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Callable[[float, int], None]:
    """``history(seconds, restarts)`` runs it, and fails by what the judge finds."""

    def run(seconds: float, restarts: int) -> None:
        with (
            history_written(own_server) as url,
            closing(
                PgBouncer(
                    need(request.config, "pgbouncer"),
                    own_server,
                    url,
                    "transaction",
                    server_login_retry="0.2",
                )
            ) as pooler,
        ):
            ways = [pooler.url, proxy.url(own_server.over_tcp(url))]
            stage = Stage(own_server, url, ways, proxy, tmp_path, worker, restarts)
            stage.fill_up()
            stage.disturb(seconds)
            stage.restarts = 0
            for _ in range(ROUNDS):
                if stage.shown():
                    break
                stage.disturb(1.0)
            verdict = stage.finish()
        assert verdict.wrong == [], f"{len(verdict.wrong)} wrong, of {verdict.counts}, {stage.done}"
        for what in ("taken", "renewed", "given", "trusted", "written"):
            assert verdict.counts[what] > 0, (verdict.counts, stage.done)
        assert stage.done["refused"] > 0, (verdict.counts, stage.done)
        if seconds > SMOKE:
            assert verdict.counts["taken over"] > 0, (verdict.counts, stage.done)
            for what in ("killed", "stopped", "cut by the server", "cut", "frozen", "restarted", "lost"):
                assert stage.done[what] > 0, (verdict.counts, stage.done)

    return run


def test_no_two_holders_of_a_job_lock(history: Callable[[float, int], None]) -> None:
    history(SMOKE, 1)


@pytest.mark.long
def test_no_two_holders_of_a_job_lock_for_long(history: Callable[[float, int], None]) -> None:
    history(45.0, 4)
