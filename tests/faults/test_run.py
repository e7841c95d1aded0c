"""`pgconcert run` under signals, kills and losses: the lock is never free while the command lives, and nobody is left.

Theory: three processes may be killed (the master, the guard, the command), and the session on the server; for each the
test asks who lives, who has the lock, and what the exit code is. The command says on its output what reaches it, so
every signal is counted. A killed master leaves no exit code, but its output stays open while the command lives.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pgconcert.keys import KeySpace
from pgconcert.testing import FaultProxy, eventually, sessions
from tests.cli.running import (
    PROGRAM,
    Running,
    behind_shell,
    children_of,
    end_session,
    is_free,
    locks_of,
    state,
    talker,
    until_dead,
    until_free,
    until_waited_for,
)
from tests.processes import importing_tests
from tests.servers import OwnServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

ALL = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
by_name = pytest.mark.parametrize("name", ALL)


# signals


@by_name
def test_a_signal_reaches_the_command_and_what_it_started(database: str, name: str) -> None:
    """The talker is a child of the command; it gets each signal once, as often as it is sent, and we wait for it."""
    command = behind_shell(*talker(5, *ALL))
    with Running("--lock", "a", "--url", database, "--", *command) as running:
        running.expect("ready")
        for _ in range(3):
            os.kill(running.pid, getattr(signal, name))
            running.expect(name)
        assert not is_free(database, "a")
        running.end_input()
        assert running.wait() == 5
        assert running.heard[1:] == [name] * 3
    until_free(database)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_that_a_forwarded_signal_ends(database: str, name: str) -> None:
    number = signal.Signals[name]
    reset = [sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"]
    reset[-1] += "print('ready', flush=True); sys.stdin.read()"
    with Running("--lock", "a", "--url", database, "--", *reset) as running:
        running.expect("ready")
        os.kill(running.pid, number)
        assert running.wait() == 128 + number
        assert running.errors() == ""
    until_free(database)


@by_name
def test_a_signal_ends_the_waiting_at_once(database: str, name: str, tmp_path: Path) -> None:
    began = tmp_path / "began"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
        with Running("--lock", "a", "--url", database, "--", "touch", str(began)) as running:
            until_waited_for(database)
            os.kill(running.pid, getattr(signal, name))
            assert running.wait() == 128 + getattr(signal, name)
            assert running.errors() == ""
        eventually(lambda: len(sessions(database)) == 1, what="only the holder is left")
    assert not began.exists()


def test_a_signal_ends_the_waiting_for_a_silent_server(proxy: FaultProxy, database: str) -> None:
    proxy.pause()
    with Running("--lock", "a", "--url", proxy.url(database), "--", "true") as running:
        eventually(lambda: proxy.open_connections, what="it connects")
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == 143
        assert running.errors() == ""


def test_stop_and_continue_are_passed_on(database: str) -> None:
    with Running("--lock", "a", "--url", database, "--", *talker(0)) as running:
        pid = int(running.expect("ready"))
        os.kill(running.pid, signal.SIGTSTP)
        eventually(lambda: state(running.pid) + state(pid) == "TT", what="both have stopped")
        assert not is_free(database, "a")
        os.kill(running.pid, signal.SIGCONT)
        eventually(lambda: "T" not in state(running.pid) + state(pid), what="both go on")
        running.end_input()
        assert running.wait() == 0


def test_what_the_command_leaves_behind_is_left_alone(database: str) -> None:
    """The command has ended, so the lock is free; what it put into the background is not the command."""
    script = 'sleep 600 >/dev/null 2>&1 & echo "left $!"'
    with Running("--lock", "a", "--url", database, "--", "sh", "-c", script) as running:
        left = int(running.expect("left"))
        try:
            assert running.wait() == 0
            assert is_free(database, "a")
            assert state(left)
        finally:
            os.kill(left, signal.SIGKILL)


# losses


def test_a_lost_lock_ends_the_command(database: str) -> None:
    with Running("--lock", "a", "--url", database, "--", *talker(5)) as running:
        pid = int(running.expect("ready"))
        end_session(database, "a")
        assert running.wait() == 74
        (message,) = running.errors().splitlines()
        assert message.startswith("pgconcert: 'a' was lost: ")
        assert message.endswith("; the command must end within 10 s")
        assert not state(pid)
    until_free(database)


def test_a_command_that_ends_in_its_own_way_after_a_loss(database: str) -> None:
    """It has the time it asked for, further signals reach it, and the code says lost all the same."""
    with Running("--lock", "a", "--grace", "600", "--url", database, "--", *talker(5, "SIGTERM", "SIGUSR1")) as running:
        running.expect("ready")
        end_session(database, "a")
        running.expect("SIGTERM")
        os.kill(running.pid, signal.SIGUSR1)
        running.expect("SIGUSR1")
        running.end_input()
        assert running.wait() == 74


def test_after_the_grace_all_that_is_left_is_killed(database: str) -> None:
    """The command ends by SIGTERM, and what it started does not listen."""
    script = '"$@" <&3 & exec 3<&-; echo "shell $$"; wait'
    command = ["sh", "-c", f"exec 3<&0; {script}", "sh", *talker(0, "SIGTERM")]
    with Running("--lock", "a", "--grace", "0.3", "--url", database, "--", *command) as running:
        shell, deaf = int(running.expect("shell")), int(running.expect("ready"))
        end_session(database, "a")
        assert running.wait() == 74
        until_dead(shell, deaf)


def test_a_stopped_command_ends_too(database: str) -> None:
    with Running("--lock", "a", "--url", database, "--", *talker(0)) as running:
        pid = int(running.expect("ready"))
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: state(pid) == "T")
        end_session(database, "a")
        assert running.wait() == 74


def test_a_command_that_had_ended_before_keeps_its_code(database: str) -> None:
    """The master is stopped, so it learns of the end of the command and of its session in one instant."""
    with Running("--lock", "a", "--url", database, "--", *talker(5)) as running:
        pid = int(running.expect("ready"))
        os.kill(running.pid, signal.SIGSTOP)
        eventually(lambda: state(running.pid) == "T")
        running.end_input()
        until_dead(pid)
        end_session(database, "a")
        eventually(lambda: not locks_of(database, "a"), what="the session has ended")
        os.kill(running.pid, signal.SIGCONT)
        assert running.wait() == 5


def test_a_server_that_goes_away_while_it_is_waited_for(own_server: OwnServer) -> None:
    with own_server.fresh_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
            running = Running("--lock", "a", "--url", url, "--", "echo", "begun")
            until_waited_for(url)
        with running:
            own_server.restart()
            running.expect("begun", 30)
            assert running.wait() == 0


# kills


def test_the_command_is_killed(database: str) -> None:
    with Running("--lock", "a", "--url", database, "--", *talker(0)) as running:
        os.kill(int(running.expect("ready")), signal.SIGKILL)
        assert running.wait() == 137
        assert running.errors() == ""
    until_free(database)


def test_the_guard_is_killed(database: str) -> None:
    """Nobody would end the command at our death, so it ends now, and the lock is given back after that."""
    with Running("--lock", "a", "--url", database, "--", *behind_shell(*talker(0))) as running:
        pid = int(running.expect("ready"))
        os.kill(running.guard(), signal.SIGKILL)
        assert running.wait() == 70
        assert running.errors() == (
            "pgconcert: the guard of the command was killed; the command has been killed too\n"
        )  # fmt: skip
        assert not state(pid)
    until_free(database)


def test_the_guard_is_killed_while_we_wait(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
        running = Running("--lock", "a", "--url", database, "--", "touch", str(tmp_path / "began"))
        until_waited_for(database)
        os.kill(running.guard(), signal.SIGKILL)
    with running:
        assert running.wait() == 126
        assert running.errors() == "pgconcert: the guard of the command died before it could start it\n"
    assert not (tmp_path / "began").exists()
    until_free(database)


def test_the_master_is_killed_and_the_lock_waits_for_the_command(database: str) -> None:
    """The command and what it started get SIGTERM; until they have ended nobody else gets the lock."""
    command = behind_shell(*talker(5, "SIGTERM"))
    with Running("--lock", "a", "--grace", "600", "--url", database, "--", *command) as running:
        pid, guard = int(running.expect("ready")), running.guard()
        running.kill()
        running.expect("SIGTERM")
        assert state(pid)
        assert not is_free(database, "a")
        running.end_input()
        eventually(lambda: is_free(database, "a"), what="the lock is free")
        until_dead(pid, guard)
    until_free(database)


def test_the_master_is_killed_and_the_command_does_not_listen(database: str) -> None:
    """After the grace it gets SIGKILL. Whoever gets the lock then finds nobody alive."""
    command = behind_shell(*talker(5, "SIGTERM"))
    with Running("--lock", "a", "--grace", "0.5", "--url", database, "--", *command) as running:
        pid, guard = int(running.expect("ready")), running.guard()
        running.kill()
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
            assert not state(pid)
        until_dead(guard)
    until_free(database)


def test_the_master_is_killed_while_it_waits(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
        with Running("--lock", "a", "--url", database, "--", "touch", str(tmp_path / "began")) as running:
            until_waited_for(database)
            guard = running.guard()
            running.kill()
            until_dead(guard)
    assert not (tmp_path / "began").exists()
    until_free(database)


def test_the_master_is_killed_after_the_lock_was_lost(database: str) -> None:
    """The grace that runs already runs on."""
    with Running("--lock", "a", "--grace", "3", "--url", database, "--", *talker(5, "SIGTERM")) as running:
        pid, guard = int(running.expect("ready")), running.guard()
        end_session(database, "a")
        running.expect("SIGTERM")
        running.kill()
        until_dead(pid, guard)


# competition

INCREMENT = 'for i in $(seq "$2"); do read n < "$1"; echo $((n + 1)) > "$1"; done'


def compete(url: str, counter: Path, processes: int, turns: int, each: int) -> None:
    """Every process takes the lock `turns` times, and in each turn reads and writes the counter `each` times."""
    counter.write_text("0\n")
    once = [sys.executable, "-c", PROGRAM, "run", "--lock", "a", "--url", url, "--"]
    once += ["sh", "-c", INCREMENT, "sh", str(counter), str(each)]
    series = ["sh", "-ec", 'for i in $(seq "$0"); do "$@"; done', str(turns), *once]
    running = [subprocess.Popen(series, stderr=subprocess.PIPE, env=importing_tests()) for _ in range(processes)]
    said = [line for process in running for line in process.communicate(timeout=150)[1].splitlines()]
    assert [line for line in said if b"still waiting" not in line] == []
    assert [process.returncode for process in running] == [0] * processes
    assert counter.read_text() == f"{processes * turns * each}\n"
    until_free(url)


def test_competing_shells_lose_no_update(database: str, tmp_path: Path) -> None:
    compete(database, tmp_path / "counter", 4, 1, 100)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_twenty_competing_shells_lose_no_update(database: str, tmp_path: Path) -> None:
    compete(database, tmp_path / "counter", 20, 3, 300)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_masters_are_killed_while_others_compete(database: str, tmp_path: Path) -> None:
    """Ten killed masters, each in the middle of its command: nobody ever finds another at work."""
    at_work = tmp_path / "at work"
    script = 'trap "" TERM; mkdir "$0" || echo overlap; echo begun; read line; rmdir "$0"'
    for _ in range(10):
        arguments = ["--lock", "a", "--grace", "600", "--url", database, "--", "sh", "-c", script, str(at_work)]
        with Running(*arguments) as first, Running(*arguments) as second:
            eventually(at_work.exists, what="one has begun")
            until_waited_for(database)
            holder, other = (first, second) if children_of(first.guard()) else (second, first)
            holder.kill()
            holder.end_input()
            other.expect("begun", 30)
            other.end_input()
            assert other.wait() == 0
            assert "overlap" not in first.heard + second.heard
    until_free(database)
