"""The embedded server is never wedged: whatever a crash or a stranger left in the folder, it starts or says why not.

Here live the tests of its way from nothing to ready over what is there already. Theory: each leaves one kind of
wreck (dead processes, half a data folder, a lying number, another version) and asks the next user to start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pgconcert.errors import EmbeddedServerError
from pgconcert.postgres.embedded import EmbeddedServer, server_binaries
from pgconcert.postgres.embedded.place import place
from tests.postgres.embedded.scenes import ROOT, User, address, alive, ask, eventually, postmaster, processes


def test_data_survives_the_death_of_all_server_processes(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        old = postmaster(folder)
        for pid, what in processes(folder).items():
            if what == "server":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        eventually(lambda: not alive(old), "the postmaster is dead")
        with EmbeddedServer.start(address(folder)) as again:
            assert postmaster(folder) != old
            assert ask(again.url, "SELECT count(*) FROM kept") == 1000
            assert again.url == server.url


def test_a_dead_postmaster_whose_children_linger_is_waited_for(folder: Path) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        old = postmaster(folder)
        children = [pid for pid, what in processes(folder).items() if what == "server" and pid != old]
        for child in children:
            os.kill(child, signal.SIGSTOP)
        os.kill(old, signal.SIGKILL)
        arriving = User(folder)
        eventually(lambda: not alive(old), "the postmaster is dead")
        assert arriving.process.poll() is None
        for child in children:
            os.kill(child, signal.SIGCONT)
        assert arriving.line() == server.url
        assert ask(server.url) == 42
        arriving.leave()


@pytest.mark.parametrize(
    "delay", [0.3, *(pytest.param(tenths / 10, marks=pytest.mark.long) for tenths in (1, 2, 4, 5, 6, 7, 8, 9, 10))]
)
def test_a_starter_killed_at_any_point_leaves_nothing_in_the_way(empty: Path, delay: float) -> None:
    user = User(empty)
    with contextlib.suppress(subprocess.TimeoutExpired):
        user.process.wait(delay)
    user.kill()
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url) == 42


@pytest.mark.parametrize("content", ["reused number", pytest.param("empty", marks=pytest.mark.long)])
def test_a_stale_postmaster_pid_is_no_obstacle(folder: Path, content: str) -> None:
    with EmbeddedServer.start(address(folder)) as server:
        ask(server.url, "CREATE TABLE kept AS SELECT 7 AS number")
        stale = folder / "cluster" / "data" / "postmaster.pid"
        lines = stale.read_text().splitlines()
    # A process of the server's own user, so that PostgreSQL would believe it.
    owner = stale.parent.stat()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid if ROOT else None) as other:
        text = "\n".join([str(other.pid), *lines[1:]]) + "\n" if content == "reused number" else ""
        stale.write_text(text)
        stale.chmod(0o600)
        os.chown(stale, owner.st_uid, owner.st_gid)
        lock = folder / "cluster" / "socket" / ".s.PGSQL.5432.lock"
        lock.write_text(text)
        with EmbeddedServer.start(address(folder)) as server:
            assert ask(server.url, "SELECT number FROM kept") == 7
        assert other.poll() is None
        other.kill()


def test_a_server_that_somebody_else_started_is_left_alone(folder: Path) -> None:
    where = place(address(folder))
    control = [str(server_binaries() / "pg_ctl"), "-D", str(where.home / "data")]
    options = f"-c listen_addresses='' -k {where.home / 'socket'}"
    subprocess_log = str(where.home / "by-hand.log")
    assert where.run([*control, "-w", "-o", options, "-l", subprocess_log, "start"]).returncode == 0
    pid = postmaster(folder)
    with pytest.raises(EmbeddedServerError, match=rf"process {pid} .* not started by pgconcert"):
        EmbeddedServer.start(address(folder))
    assert postmaster(folder) == pid
    assert alive(pid)
    assert where.run([*control, "-w", "-m", "fast", "stop"]).returncode == 0


@pytest.mark.long
def test_a_half_finished_data_folder_is_swept_away(empty: Path) -> None:
    home = place(address(empty)).home
    (home / "data.new-0badcafe" / "base").mkdir(parents=True)
    for path in (home / "data.new-0badcafe", home / "data.new-0badcafe" / "base"):
        os.chown(path, home.stat().st_uid, home.stat().st_gid)
    with EmbeddedServer.start(address(empty)) as server:
        assert ask(server.url) == 42
        assert not list(home.glob("data.new-*"))


def test_another_version_is_explained(folder: Path) -> None:
    (folder / "cluster" / "data" / "PG_VERSION").write_text("15\n")
    with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 15.*PostgreSQL 18.*another folder.*pg_dumpall"):
        EmbeddedServer.start(address(folder))


def test_a_server_that_does_not_start_shows_its_log(folder: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=r"did not start(.|\n)*invalid value for parameter \"work_mem\""):
        EmbeddedServer.start(address(folder), settings={"work_mem": "plenty"})
    with EmbeddedServer.start(address(folder)) as server:
        assert ask(server.url) == 42
