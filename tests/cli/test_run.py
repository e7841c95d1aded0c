"""`pgconcert run` as people call it: its streams, its codes, what it says, and every way to call it wrongly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from pgconcert.cli.held_command import Reporter
from pgconcert.cli.run_child import CommandFailed, find
from pgconcert.cli.run_guard import Relative, family
from pgconcert.events import ConnectFailed, HoldBroken, LinkLost, StillWaiting
from pgconcert.keys import KeySpace
from pgconcert.testing import advisory_locks
from tests.cli.running import (
    PROGRAM,
    Running,
    finished,
    in_vain,
    locks_of,
    talker,
    until_free,
    until_waited_for,
    waiting,
)
from tests.cli.shell import LIMIT, refused
from tests.poolers import PgBouncer
from tests.servers import private_folder

DEAD = "postgresql://ann:hunter2@127.0.0.1:1/x"


@contextmanager
def held(url: str, key: int | str, *, shared: bool = False) -> Iterator[None]:
    """Somebody called `nightly` has the lock."""
    how = "pg_advisory_lock_shared" if shared else "pg_advisory_lock"
    with psycopg.connect(url, autocommit=True, application_name="nightly") as connection:
        connection.execute(f"select {how}(%s)".encode(), (KeySpace().key(key).value,))
        yield


def test_the_command_has_our_streams_environment_and_code(database: str) -> None:
    script = 'read line; echo "$line, $PGCONCERT_LOCK, $MORE"; echo complaint >&2; exit 7'
    done = finished(
        "--lock", "in voices: ä", "--url", database, "--", "sh", "-c", script, said="hello\n", MORE="more"
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("hello, in voices: ä, more\n", "complaint\n", 7)
    until_free(database)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_command_that_a_signal_ends(database: str, number: signal.Signals) -> None:
    done = finished("--lock", "a", "--url", database, "--", "sh", "-c", f"kill -{int(number)} $$")
    assert (done.returncode, done.stderr) == (128 + number, "")
    until_free(database)


def test_the_lock_is_held_while_the_command_runs(database: str) -> None:
    with Running("--lock", "a", "--namespace", "n", "--url", database, "--", *talker(0)) as running:
        running.expect("ready")
        (lock,) = locks_of(database, "a", "n")
        assert lock.mode == "ExclusiveLock"
        running.end_input()
        assert running.wait() == 0
        assert advisory_locks(database) == []


def test_a_key_is_the_servers_own_number(database: str) -> None:
    with Running("--key", "-42", "--url", database, "--", *talker(0)) as running:
        running.expect("ready")
        assert [lock.key for lock in advisory_locks(database)] == [-42]
        running.end_input()
        assert running.wait() == 0


@pytest.mark.parametrize(
    ("options", "wait"), [(["--no-wait"], None), ([], 0.0), ([], 0.2)], ids=["no wait", "a wait of nothing", "a wait"]
)
def test_a_lock_that_is_not_acquired(database: str, options: list[str], wait: float | None, tmp_path: Path) -> None:
    call = ("--lock", "a", *options, "--url", database, "--", "touch", str(tmp_path / "began"))
    with held(database, "a"):
        done = in_vain(*call, wait=wait, holder="nightly (pid ")
    assert done.stderr.startswith("pgconcert: 'a' was not acquired within ")
    assert "; it is held by nightly (pid " in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "began").exists()


def test_it_waits_and_then_runs(database: str) -> None:
    with held(database, "a"):
        running = Running("--lock", "a", "--url", database, "--", "echo", "begun")
        until_waited_for(database)
    with running:
        running.expect("begun")
        assert running.wait() == 0
        assert running.errors() == ""


def test_verbose_says_what_happens(database: str) -> None:
    with ExitStack() as stack:
        with held(database, "a"):
            running = stack.enter_context(waiting("--lock", "a", "--url", database, "--", "true", holder="nightly"))
            until_waited_for(database)
        assert running.wait() == 0
        waits, *_, got, ended = running.errors().splitlines()
    assert waits.startswith("pgconcert: waiting for 'a': it is held by nightly (pid ")
    assert got.startswith("pgconcert: 'a' is held; starting /")
    assert ended == "pgconcert: the command ended with code 0"


def test_others_see_the_commands_name_or_the_given_one(database: str) -> None:
    for options, name in ([], Path(sys.executable).name), (["--name", "billing"], "billing"):
        with Running("--lock", "a", *options, "--url", database, "--", *talker(0)) as running:
            running.expect("ready")
            in_vain("--lock", "a", "--no-wait", "--url", database, "--", "true", holder=f"{name}@")
            running.end_input()
            running.wait()


def test_shared_locks_share_and_exclude_the_others(database: str) -> None:
    with Running("--lock", "a", "--shared", "--url", database, "--", *talker(0)) as running:
        running.expect("ready")
        assert [lock.mode for lock in locks_of(database, "a")] == ["ShareLock"]
        assert finished("--lock", "a", "--shared", "--no-wait", "--url", database, "--", "true").returncode == 0
        assert finished("--lock", "a", "--no-wait", "--url", database, "--", "true").returncode == 75
        running.end_input()
        assert running.wait() == 0
    with held(database, "a", shared=True):
        assert finished("--lock", "a", "--shared", "--no-wait", "--url", database, "--", "true").returncode == 0


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_options_of_the_command_are_its_own(database: str, dashes: list[str]) -> None:
    done = finished("--lock", "a", "--url", database, *dashes, "echo", "-v", "--wait", "x", "--", "--help")
    assert done.stdout == "-v --wait x -- --help\n"


def test_the_address_may_come_from_the_environment(database: str) -> None:
    assert finished("--lock", "a", "--", "echo", "begun", PGCONCERT_URL=database).stdout == "begun\n"


def test_an_embedded_server_if_it_was_asked_for() -> None:
    folder = private_folder()
    try:
        done = finished("--lock", "a", "--url", f"embedded://{folder}", "--", "echo", "begun")
    finally:
        shutil.rmtree(folder)
    assert (done.stdout, done.stderr, done.returncode) == ("begun\n", "", 0)


# what the command inherits

DESCRIPTORS = """
import os, stat
kinds = {}
for fd in map(int, os.listdir("/proc/self/fd")):
    try:
        kinds[fd] = "socket" if stat.S_ISSOCK(os.fstat(fd).st_mode) else "other"
    except OSError:
        pass
print(os.read(int(os.environ["GIVEN"]), 5).decode(), "socket" in kinds.values())
"""


def test_descriptors_that_the_shell_opened_are_the_commands_and_none_of_ours(database: str) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"given")
    os.close(writing)
    command = [sys.executable, "-c", PROGRAM, "run", "--lock", "a", "--url", database]
    done = subprocess.run(
        [*command, "--", sys.executable, "-c", DESCRIPTORS],
        pass_fds=[reading], capture_output=True, timeout=LIMIT, env=os.environ | {"GIVEN": str(reading)},
    )  # fmt: skip
    os.close(reading)
    assert done.stdout == b"given False\n", done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed(database: str, tmp_path: Path, closed: str) -> None:
    """No socket of ours takes their place: the command finds nothing there, and ends as ever."""
    command = [sys.executable, "-c", PROGRAM, "run", "--lock", "a", "--url", database, "--"]
    look = 'ls -l /proc/$$/fd >"$0"; exit 5'
    listing = tmp_path / "listing"
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command, "sh", "-c", look, str(listing)], timeout=LIMIT
    )
    assert done.returncode == 5
    assert "socket" not in listing.read_text()
    assert listing.read_text().count("/dev/null") >= closed.count("-")
    until_free(database)


def test_what_signals_do_is_inherited(database: str) -> None:
    """Blocked and ignored signals are those that a command without us would have; with nohup, say."""
    around = ["env", "--ignore-signal=HUP", "--ignore-signal=USR1", "--block-signal=USR2"]
    look = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    command = [sys.executable, "-c", PROGRAM, "run", "--lock", "a", "--url", database, "--", *look]

    def said(*arguments: str) -> tuple[int, int]:
        done = subprocess.run([*around, *arguments], capture_output=True, text=True, timeout=LIMIT)
        # above 31 are those of the C library's threads, which do not concern anybody
        blocked, ignored = (int(word, 16) & 0x7FFFFFFF for word in done.stdout.split()[1::2])
        return blocked, ignored

    assert said(*command) == said(*look) == (1 << signal.SIGUSR2 - 1, 1 << signal.SIGHUP - 1 | 1 << signal.SIGUSR1 - 1)


# what cannot be run

NOT_RUN = {
    "no-such-command-here": (127, "command 'no-such-command-here' not found: it is in no folder of PATH"),
    "./no-such-file": (127, "command './no-such-file' not found: there is no such file"),
    "{tmp}": (126, "'{tmp}' is a folder, not a command"),
    "{tmp}/plain": (126, "'{tmp}/plain' is not executable; chmod +x makes it so"),
}


@pytest.mark.parametrize("program", NOT_RUN)
def test_a_command_that_cannot_be_run_is_found_out_first(program: str, tmp_path: Path) -> None:
    """Nobody is asked for the lock: the address leads nowhere."""
    (tmp_path / "plain").write_text("text")
    code, message = NOT_RUN[program]
    done = finished("--lock", "a", "--url", DEAD, "--", program.format(tmp=tmp_path))
    assert (done.returncode, done.stderr) == (code, f"pgconcert: {message.format(tmp=tmp_path)}\n")


def test_a_file_without_a_slash_that_is_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_text("text")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match="'plain' is not executable") as caught:
        find("plain")
    assert caught.value.code == 126


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [("#!/no/such/interpreter\n", 127, "No such file or directory"), ("no program\n", 126, "Exec format error")],
)
def test_a_program_that_the_kernel_refuses(database: str, tmp_path: Path, text: str, code: int, reason: str) -> None:
    program = tmp_path / "program"
    program.write_text(text)
    program.chmod(0o755)
    done = finished("--lock", "a", "--url", database, "--", str(program))
    assert (done.returncode, done.stderr) == (code, f"pgconcert: the command could not be started: {reason}\n")
    until_free(database)


# wrong calls

WRONG_CALLS = [
    ([], "name the lock: one of --lock NAME, --key INT, --job NAME"),
    (["--lock", "a", "--key", "1"], "name the lock: one of --lock NAME, --key INT, --job NAME"),
    (["--lock", "a", "--job", "a"], "one of --lock NAME, --key INT, --job NAME"),
    (["--lock", "a", "--keep"], "--keep is for job locks; name one with --job"),
    (["--lock", "a", "--ttl", "3"], "--ttl is for job locks"),
    (["--lock", "a", "--hold-at-least", "0"], "--hold-at-least is for job locks"),
    (["--lock", "a", "--data", "1"], "--data is for job locks"),
    (["--job", "a", "--shared"], "--shared is for locks; a job lock has one holder"),
    (["--job", "a", "--keep", "--no-wait"], "--keep waits for ever; leave out --wait and --no-wait"),
    (["--job", "a", "--keep", "--wait", "3"], "--keep waits for ever; leave out --wait and --no-wait"),
    (["--job", "a", "--ttl", "0.05"], "ttl=0.05 s is too short: at least 0.1 s"),
    (["--job", "a", "--ttl", "3", "--interval", "2"], "interval=2 s is too long for ttl=3 s"),
    (["--job", "a", "--hold-at-least", "86401"], "hold_at_least must be a number of seconds from 0 to 86400"),
    (["--job", "a", "--data", "{1}"], "'{1}' is not JSON"),
    (["--job", ""], "the name of a job lock has 1 to 1000 encoded bytes"),
    (["--lock", "a", "--wait", "1", "--no-wait"], "--wait and --no-wait exclude each other"),
    (["--lock", "a", "--wait", "-1"], "'-1' is not a number of seconds of at least 0"),
    (["--lock", "a", "--wait", "nan"], "'nan' is not a number of seconds of at least 0"),
    (["--lock", "a", "--grace", "inf"], "'inf' is not a number of seconds of at least 0"),
    (["--lock", "a", "--grace", "soon"], "'soon' is not a number of seconds of at least 0"),
    (["--key", "invoice"], "'invoice' is not a whole number; for a name use --lock"),
    (["--key", str(2**63)], "a lock key of 64 bits does not fit the server's 64"),
    (["--lock", ""], "a lock key cannot be the empty text"),
    (["--lock", "x" * 1001], "has 1001 bytes; at most 1000 are allowed"),
    (["--lock", "a", "--namespace", "x" * 201], "namespace has 201 bytes"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_CALLS)
def test_a_wrong_call(options: list[str], message: str) -> None:
    assert message in refused("run", *options, "--url", DEAD, "--", "true")


def test_a_call_without_a_command() -> None:
    done = finished("--lock", "a")
    assert done.returncode == 2
    assert "Missing argument '-- COMMAND [ARG]...'" in done.stderr


# wrong addresses

WRONG_ADDRESSES = [
    (["--url", DEAD], 69, "pgconcert: the server cannot be reached: "),
    ([], 78, "pgconcert: no database address: pass one"),
    (["--url", "postgresql://ann:hunter2@[broken/x"], 78, "pgconcert: the database address, a URL of "),
    (["--url", "memory://x"], 78, "pgconcert: memory://x keeps no other process out; run needs one that does"),
    (["--url", "null://"], 78, "pgconcert: null:// keeps no other process out; run needs one that does"),
    (["--url", DEAD, "--name", ""], 78, "pgconcert: name must be a text"),
]


@pytest.mark.parametrize(("options", "code", "message"), WRONG_ADDRESSES)
def test_a_wrong_address(options: list[str], code: int, message: str) -> None:
    done = finished("--lock", "a", *options, "--", "echo", "begun")
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message)
    assert done.stdout == ""
    assert "hunter2" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_transaction_pooler_needs_a_way_around_it(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    url = pgbouncer("transaction").url
    refused = finished("--lock", "a", "--url", url, "--", "echo", "begun")
    assert (refused.returncode, refused.stdout) == (78, "")
    assert "transaction pooler" in refused.stderr
    done = finished("--lock", "a", "--url", url, "--direct-url", database, "--", "echo", "begun")
    assert (done.returncode, done.stdout) == (0, "begun\n")


# what is said and when

EVENTS = [
    (StillWaiting(key="a", waited=12, holder="nightly (pid 7)"), True, True),
    (ConnectFailed(role="lock", attempt=9, error="refused", retry_in=1, down_for=12), True, True),
    (ConnectFailed(role="lock", attempt=1, error="refused", retry_in=1, down_for=0), False, True),
    (LinkLost(role="listen", server_pid=7, reason="closed", unanswered=0), False, True),
    (HoldBroken(key="a", reason="closed"), False, False),
]


@pytest.mark.parametrize(("event", "quiet", "verbose"), EVENTS, ids=lambda value: type(value).__name__)
def test_a_long_wait_is_reported_and_little_else(
    event: StillWaiting, quiet: bool, verbose: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for loud, said in (False, quiet), (True, verbose):
        Reporter(loud).report(event)
        assert capsys.readouterr().err == (f"pgconcert: {event}\n" if said else "")


@pytest.mark.long
def test_a_wait_of_more_than_ten_seconds_names_the_holder(database: str) -> None:
    with held(database, "a"):
        done = finished("--lock", "a", "--wait", "12", "--url", database, "--", "true")
    still, gave_up = done.stderr.splitlines()
    assert still.startswith("pgconcert: still waiting for 'a' after 1")
    assert "held by nightly (pid " in still
    assert gave_up.startswith("pgconcert: 'a' was not acquired within 12 s; it is held by nightly")


def test_the_help_shows_examples_and_codes() -> None:
    text = finished("--help").stdout
    assert "pgconcert run --lock backup -- backup.sh --full" in text
    for code in (69, 70, 74, 75, 76, 78, 126, 127):
        assert f"\n    {code:>3}  " in text


# who belongs to the command (pure)


def test_family_finds_descendants_and_forgets_the_dead() -> None:
    processes = {
        1: Relative(0, "S", "0"),
        10: Relative(1, "S", "100"),
        11: Relative(10, "S", "101"),
        12: Relative(11, "T", "102"),
        13: Relative(11, "Z", "103"),
        14: Relative(1, "S", "104"),
    }
    assert family(processes, {10: "100"}) == {10: "100", 11: "101", 12: "102"}
    # 10 has ended and its number is somebody else's now; 11, known from before, was adopted and still counts
    processes |= {10: Relative(1, "S", "900"), 11: Relative(1, "S", "101")}
    assert family(processes, {10: "100", 11: "101"}) == {11: "101", 12: "102"}
    assert family(processes, {}) == {}
