"""Each fixture and check does what it says; a broken one would make other tests pass for nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert.testing import advisory_locks, eventually, sessions
from tests import coroutines
from tests.coroutines import LoopFactory, run
from tests.poolers import PgBouncer
from tests.processes import Worker, children
from tests.servers import Cluster, OwnServer, Server

SLEEPER = "import sys; print('ready', *sys.argv[1:]); [print('heard', line.strip()) for line in sys.stdin]"


def test_the_server_is_the_one_named(server: Server) -> None:
    if server.name.startswith("pg"):
        assert server.name == f"pg{server.major}"
    with psycopg.connect(server.tcp_url) as connection:
        assert connection.execute("show server_version_num").fetchone() == server.execute("show server_version_num")[0]


def test_the_database_is_fresh(server: Server, database: str) -> None:
    with psycopg.connect(database) as connection:
        assert connection.execute(
            "select count(*) from pg_class where relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)
        assert connection.info.dbname.startswith("pgconcert_test_")
    with server.fresh_database() as other:
        assert other != database
        psycopg.connect(other).close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(other)


def test_unique_names_differ(unique: str, request: pytest.FixtureRequest) -> None:
    assert unique.startswith("test_unique_names_differ:")
    assert len(unique) < 60


def test_sessions_and_locks_are_seen(server: Server, database: str) -> None:
    with psycopg.connect(database, autocommit=True, application_name="seen") as one:
        one.execute("select pg_advisory_lock(-5), pg_advisory_lock_shared(7, -8)")
        (session,) = sessions(database)
        assert (session.pid, session.application_name) == (one.info.backend_pid, "seen")
        assert session.database == one.info.dbname
        assert {(lock.key, lock.mode, lock.granted) for lock in advisory_locks(database)} == {
            (-5, "ExclusiveLock", True),
            ((7, -8), "ShareLock", True),
        }
        assert sessions(one) == []
        assert {lock.pid for s in server.sessions() for lock in s.locks} == {one.info.backend_pid}
        assert server.kill_backend(one.info.backend_pid)
        eventually(lambda: sessions(database) == [])
        assert not server.kill_backend(one.info.backend_pid)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart(own_server: OwnServer, mode: str) -> None:
    started = own_server.execute("select pg_postmaster_start_time()")
    with own_server.down(mode), pytest.raises(psycopg.OperationalError):
        psycopg.connect(own_server.url)
    assert own_server.execute("select pg_postmaster_start_time()") != started
    psycopg.connect(own_server.tcp_url).close()


def test_the_administrator_survives_a_restart_unasked(own_server: OwnServer) -> None:
    pid = own_server.execute("select pg_backend_pid()")[0][0]
    os.kill(pid, signal.SIGTERM)
    assert own_server.execute("select 1") == [(1,)]
    with pytest.raises(psycopg.errors.UndefinedTable):
        own_server.execute("select * from missing")


def test_pgbouncer_in_transaction_mode(pgbouncer: Callable[..., PgBouncer]) -> None:
    pooler = pgbouncer("transaction", pool_size=1)
    with (
        psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as one,
        psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as two,
    ):
        behind = [connection.execute("select pg_backend_pid()").fetchall()[0][0] for connection in (one, two)]
        assert behind[0] == behind[1]
        assert behind[0] not in {one.info.backend_pid, two.info.backend_pid}


def test_pgbouncer_in_session_mode(pgbouncer: Callable[..., PgBouncer]) -> None:
    pooler = pgbouncer("session", pool_size=2)
    with psycopg.connect(pooler.url, autocommit=True) as one, psycopg.connect(pooler.url, autocommit=True) as two:
        behind = {connection.execute("select pg_backend_pid()").fetchall()[0][0] for connection in (one, two)}
        assert len(behind) == 2


def test_a_standby_follows_and_is_promoted(server: Server, standby: Cluster) -> None:
    assert standby.execute("select pg_is_in_recovery()") == [(True,)]
    assert standby.major == server.major
    with server.fresh_database() as url:
        name = conninfo_to_dict(url)["dbname"]
        standby.catch_up()
        assert standby.execute("select count(*) from pg_database where datname = %s", name) == [(1,)]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        standby.execute("create table x ()")
    standby.promote()
    assert standby.execute("select pg_is_in_recovery()") == [(False,)]
    standby.execute("create table x ()")
    assert server.execute("select pg_is_in_recovery()") == [(False,)]


def test_a_worker_speaks_and_listens(worker: Callable[..., Worker]) -> None:
    process = worker(SLEEPER, "one", "two")
    assert process.expect("ready") == "one two"
    process.send("hello")
    assert process.expect("heard") == "hello"
    process.stop_signal()
    process.send("are you there?")
    with pytest.raises(AssertionError, match=r"within 0\.2 s"):
        process.expect("heard", 0.2)
    process.cont()
    assert process.expect("heard") == "are you there?"
    process.kill()
    assert process.returncode == -signal.SIGKILL


def test_a_worker_that_fails_tells_why(worker: Callable[..., Worker]) -> None:
    process = worker("import pgconcert, tests.servers; print('so far'); raise SystemExit('out of luck')")
    with pytest.raises(AssertionError, match=r"(?s)ended with 1 before .*so far.*out of luck"):
        process.expect("ready")
    assert process.wait() == 1


def test_a_worker_is_gone_after_close() -> None:
    with Worker(SLEEPER) as process:
        process.expect("ready")
        assert process.pid in children()
        process.stop_signal()
    assert process.pid not in children()


@pytest.mark.both_loops
async def test_coroutines_run_on_both_loops(loop_factory: LoopFactory, request: pytest.FixtureRequest) -> None:
    wanted = request.node.callspec.params["loop_factory"]
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == wanted


@hypothesis.given(st.integers())
@hypothesis.settings(max_examples=5)
async def test_hypothesis_runs_coroutines(number: int) -> None:
    await asyncio.sleep(0)
    assert isinstance(number, int)
    assert asyncio.current_task() is not None


def test_a_task_that_outlives_its_test_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coroutines, "_GRACE", 0.3)

    async def forgetful() -> None:
        task = asyncio.create_task(asyncio.sleep(60), name="forgotten")
        assert not task.done()

    with pytest.raises(AssertionError, match="task forgotten"):
        run(forgetful())
