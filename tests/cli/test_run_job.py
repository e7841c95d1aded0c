"""`pgconcert run --job`: what the command learns, and how every end of the hold ends it, or brings it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pgconcert.testing import FaultProxy, eventually
from tests.cli.holding import CURIOUS, execute, hand_over, holder, let_expire, make_tables, until_waiting
from tests.cli.running import Running, finished, in_vain, state, talker, until_dead, waiting
from tests.cli.shell import LIMIT, run
from tests.poolers import PgBouncer

TELL = 'echo "$PGCONCERT_LOCK $PGCONCERT_TOKEN $PGCONCERT_SESSION"; exit 7'
STUBBORN = "trap '' TERM; echo ready $$; while :; do sleep 0.1; done"


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


def ready(running: Running) -> int:
    """Wait until the command runs; its number."""
    return int(running.expect("ready"))


def test_the_command_learns_name_token_and_session(database: str, unique: str) -> None:
    tokens = []
    for _ in range(2):
        done = finished("--job", f"{unique} ä", "--url", database, "--", "sh", "-c", TELL)
        assert (done.returncode, done.stderr) == (7, "")
        *name, token, session = done.stdout.split()
        assert " ".join(name) == f"{unique} ä"
        tokens.append(int(token))
        over = execute(database, "select ended is not null from pgconcert.session where id = %s", int(session))
        assert over == [(True,)]
    assert tokens[0] < tokens[1]
    assert holder(database, f"{unique} ä") is None


def test_a_job_lock_is_no_lock(database: str, unique: str) -> None:
    with Running("--lock", unique, "--url", database, "--", *talker(0)) as running:
        ready(running)
        assert finished("--job", unique, "--no-wait", "--url", database, "--", "true").returncode == 0


def test_it_is_held_and_shown_while_the_command_runs(database: str, unique: str) -> None:
    options = ("--name", "importer", "--data", '{"rows": [1, "ä"]}')
    with Running("--job", unique, *options, "--url", database, "--", *talker(0)) as running:
        ready(running)
        seen = holder(database, unique)
        assert seen is not None
        assert seen.pid == running.pid
        call = ("--job", unique, "--no-wait", "--url", database, "--", "touch", "/nonexistent/began")
        other = in_vain(*call, holder="importer")
        assert f"the job lock '{unique}' was not acquired within 0 s; it is held by importer" in other.stderr
        assert execute(database, "select data from pgconcert.entry where name = %s", unique) == [
            ('{"rows":[1,"\\u00e4"]}',)
        ]
        running.end_input()
        assert running.wait() == 0


def test_it_waits_and_then_runs(database: str, unique: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(0)) as first:
        ready(first)
        call = ("--job", unique, "--wait", "600", "--url", database, "--", *talker(0))
        with waiting(*call, holder="") as second:
            until_waiting(database, unique)
            first.end_input()
            assert first.wait() == 0
            ready(second)
            second.end_input()
            assert second.wait() == 0
            waits, *_, got, ended = second.errors().splitlines()
    assert waits.startswith(f"pgconcert: waiting for job lock '{unique}': it is held by ")
    assert got.startswith(f"pgconcert: job lock '{unique}' is held with token ")
    assert ended == "pgconcert: the command ended with code 0"


def test_not_acquired_in_time(database: str, unique: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(0)) as running:
        ready(running)
        done = in_vain("--job", unique, "--url", database, "--", "true", wait=0.2, holder="")
        assert done.stderr.startswith(f"pgconcert: the job lock '{unique}' was not acquired within ")
        assert "; it is held by " in done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_waiting(database: str, unique: str, name: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(0)) as first:
        ready(first)
        with Running("--job", unique, "--url", database, "--", "true") as second:
            until_waiting(database, unique)
            os.kill(second.pid, getattr(signal, name))
            assert second.wait() == 128 + getattr(signal, name)
            assert second.errors() == ""
        until_waiting(database, unique, 0)


def test_a_signal_is_the_commands(database: str, unique: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(5, "SIGTERM", "SIGUSR1")) as running:
        ready(running)
        for name in ("SIGUSR1", "SIGTERM", "SIGTERM"):
            os.kill(running.pid, getattr(signal, name))
            running.expect(name)
        assert holder(database, unique) is not None
        running.end_input()
        assert running.wait() == 5


# the ends of a hold


def test_a_revoked_lock_ends_the_command(database: str, unique: str) -> None:
    with Running("--job", unique, "--interval", "2", "--url", database, "--", *talker(0)) as running:
        pid = ready(running)
        assert run("revoke", unique, "--url", database).returncode == 0
        assert running.wait() == 74
        assert state(pid) == ""
        (said,) = running.errors().splitlines()
    assert said.startswith(f"pgconcert: job lock '{unique}' was lost: it was taken away (revoked)")
    assert said.endswith("; the command must end within 10 s")


@pytest.mark.long
def test_a_requested_release_ends_the_command(database: str, unique: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(0)) as running:
        pid = ready(running)
        with Running("--job", unique, "--url", database, "--", "echo", "mine") as other:
            until_waiting(database, unique)
            assert run("release", unique, "--url", database).returncode == 0
            assert running.wait() == 76
            assert state(pid) == ""
            other.expect("mine")
            assert other.wait() == 0
        assert running.errors() == (
            f"pgconcert: the release of job lock '{unique}' was requested; the command must end within 10 s\n"
        )


@pytest.mark.long
def test_a_command_that_ignores_the_end_is_killed_and_only_then_is_it_free(database: str, unique: str) -> None:
    options = ("--grace", "0.3", "--url", database)
    with Running("--job", unique, *options, "--", "sh", "-c", STUBBORN) as running:
        pid = ready(running)
        with Running(
            "--job", unique, "--url", database, "--", "sh", "-c", f"test -e /proc/{pid} || echo gone"
        ) as other:
            until_waiting(database, unique)
            assert run("release", unique, "--url", database).returncode == 0
            other.expect("gone")
            assert other.wait() == 0
        assert running.wait() == 76


def test_a_command_that_ended_before_it_was_told_to_keeps_its_code(database: str, unique: str) -> None:
    """It is revoked while the command ends: the release finds out, and says so."""
    script = "echo ready $$; read line; exit 9"
    with Running("--job", unique, "--ttl", "600", "--url", database, "--", "sh", "-c", script) as running:
        ready(running)
        # behind the back of the notifications, so that only the release can tell
        execute(database, "update pgconcert.entry set session_id = null, given = true where name = %s", unique)
        running.end_input()
        assert running.wait() == 9
        assert running.errors().startswith(f"pgconcert: job lock '{unique}' was lost before it was given back: ")


@pytest.mark.long
def test_a_network_that_goes_silent(proxy: FaultProxy, database: str, unique: str) -> None:
    """Our own clock tells. That a loss ends the command is also shown by ``test_a_stopped_runner_finds_it_lost``."""
    with Running("--job", unique, "--ttl", "10", "--url", proxy.url(database), "--", *talker(0)) as running:
        pid = ready(running)
        proxy.pause()
        until_dead(pid)
        proxy.resume()
        assert running.wait() == 74
        assert "was lost: " in running.errors()


def test_a_cut_connection_is_survived(proxy: FaultProxy, database: str, unique: str) -> None:
    with Running("--job", unique, "--url", proxy.url(database), "--", *talker(4)) as running:
        ready(running)
        before = holder(database, unique)
        proxy.cut()
        eventually(lambda: proxy.open_connections, LIMIT, what="it is connected again")
        assert holder(database, unique) == before
        running.end_input()
        assert running.wait() == 4
        assert running.errors() == ""


def test_a_killed_runner_leaves_nobody_and_the_next_one_follows(database: str, unique: str) -> None:
    with Running("--job", unique, "--url", database, "--", *talker(0)) as first:
        pid = ready(first)
        before = holder(database, unique)
        with Running("--job", unique, *CURIOUS, "--url", database, "--", *talker(0)) as second:
            until_waiting(database, unique)
            first.kill()
            until_dead(pid)
            let_expire(database, first.pid)
            ready(second)
            after = holder(database, unique)
            assert before is not None
            assert after is not None
            assert after.pid == second.pid
            assert after.token > before.token
            second.end_input()
            assert second.wait() == 0


def test_a_stopped_runner_finds_it_lost(database: str, unique: str) -> None:
    with Running("--job", unique, *CURIOUS, "--url", database, "--", *talker(0)) as first:
        pid = ready(first)
        first.stop_signal()
        let_expire(database, first.pid)
        with Running("--job", unique, *CURIOUS, "--url", database, "--", *talker(0)) as second:
            ready(second)
            assert state(pid) != "", "nobody ended it meanwhile"
            first.cont()
            assert first.wait() == 74
            until_dead(pid)
            second.end_input()
            assert second.wait() == 0


# again and again


def test_keep_runs_it_again_until_a_signal(database: str, unique: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f'echo "$PGCONCERT_TOKEN" >> {log}; test $(wc -l < {log}) -lt 4 || {{ echo ready $$; exec sleep 600; }}'
    with Running("--job", unique, "--keep", "--url", database, "--", "sh", "-c", script) as running:
        pid = ready(running)
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait() == 143
        assert state(pid) == ""
    tokens = [int(line) for line in log.read_text().split()]
    assert len(tokens) == 4
    assert sorted({*tokens}) == tokens
    assert holder(database, unique) is None


def test_keep_moves_between_processes(database: str, unique: str) -> None:
    options = ("--job", unique, "--keep", "--interval", "2", "--url", database, "--")
    with Running(*options, *talker(0)) as first:
        ready(first)
        with Running(*options, *talker(0)) as second:
            until_waiting(database, unique)
            hand_over(database, unique, second.pid)
            ready(second)
            until_waiting(database, unique)  # the first one, again
            os.kill(second.pid, signal.SIGTERM)
            assert second.wait() == 143
            ready(first)
            os.kill(first.pid, signal.SIGINT)
            assert first.wait() == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_keep_ends_in_a_pause_at_once(database: str, unique: str, number: signal.Signals) -> None:
    """Pauses double. On a busy machine the signal may come when one is over, and the command, for which it then is,
    may end with its own code all the same: then it is sent in a longer one."""
    options = ("--job", unique, "--keep", "-v", "--ttl", "80000", "--url", database)
    for rounds in range(4, 9):
        with Running(*options, "--", "true") as running:
            _until_ended(running, rounds)
            eventually(lambda: holder(database, unique) is None, LIMIT, what="it is in a pause")
            os.kill(running.pid, number)
            code = running.wait()
            assert code in (0, 128 + number)
        if code:
            return
    pytest.fail("it never ended in a pause")


def _until_ended(running: Running, rounds: int) -> None:
    eventually(lambda: running.errors().count("ended with code 0") >= rounds, LIMIT, what=f"{rounds} rounds are over")


# addresses


def test_missing_tables_are_named(database: str, unique: str) -> None:
    done = finished("--job", unique, "--schema", "nowhere", "--url", database, "--", "echo", "begun")
    assert (done.returncode, done.stdout) == (78, "")
    assert "pgconcert schema apply --schema nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.needs("pgbouncer")
def test_a_transaction_pooler_is_enough(database: str, unique: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    url = pgbouncer("transaction").url
    with Running("--job", unique, "--url", url, "--", *talker(0)) as running:
        ready(running)
        assert finished("--job", unique, "--no-wait", "--url", database, "--", "true").returncode == 75
        running.end_input()
        assert running.wait() == 0
