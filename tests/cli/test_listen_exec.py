"""``pgconcert listen --exec``: what the command is given, one after the other, and how all of it ends."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from pgconcert.testing import eventually
from tests.cli.messages import listening, notify, run
from tests.cli.shell import LIMIT

TELL = 'printf "%s|%s|%s|%s|%s\\n" "$PGCONCERT_CHANNEL" "$PGCONCERT_HEADERS" "$PGCONCERT_REQUEST" "$(cat)" "$*"'


def test_what_the_command_is_given(database: str, unique: str) -> None:
    with listening(unique, "--url", database, "--exec", "sh", "-c", TELL, "sh", "-v", "--count") as listener:
        notify(database, unique, "hello")
        assert listener.line() == f"{unique}|{{}}|0|hello|-v --count"
        run("publish", unique, "hello", "--header", "a=ü", "--url", database)
        channel, headers, *_ = listener.line().split("|")
        assert (channel, json.loads(headers)) == (unique, {"a": "ü"})


def test_the_id_and_the_sender(database: str, unique: str) -> None:
    command = ["sh", "-c", 'echo "$PGCONCERT_ID $PGCONCERT_PID"']
    with listening(unique, "--url", database, "--exec", "--", *command) as listener:
        run("publish", unique, "x", "--id", "--url", database)
        name, pid = listener.line().split(" ")
        assert len(name) > 10
        assert int(pid) > 0


def test_one_at_a_time_in_order_for_each_channel(database: str, unique: str, tmp_path: Path) -> None:
    """The first takes long; the second channel does not wait for it."""
    gate = tmp_path / "gate"
    command = 'read -r x; test "$x" != slow || until test -e "$0"; do sleep 0.02; done; echo "$x"'
    with listening(unique, "quick", "--url", database, "--exec", "sh", "-c", command, str(gate)) as listener:
        notify(database, unique, "slow", "1", "2", "3")
        notify(database, "quick", "other")
        assert listener.line() == "other"
        gate.touch()
        assert [listener.line() for _ in range(4)] == ["slow", "1", "2", "3"]


def test_a_failure_is_told_and_the_next_message_comes(database: str, unique: str) -> None:
    command = 'read -r x; case "$x" in bad) exit 3;; killed) kill -9 $$;; esac; echo "$x"'
    with listening(unique, "--url", database, "--exec", "sh", "-c", command) as listener:
        notify(database, unique, "bad", "killed", "good")
        assert listener.line() == "good"
        listener.until_said("CommandFailed: sh ended with code 3")
        listener.until_said("CommandFailed: sh was ended by SIGKILL")


def test_a_command_that_reads_nothing(database: str, unique: str) -> None:
    with listening(unique, "--url", database, "--count", "1", "--exec", "true") as listener:
        run("publish", unique, "--url", database, said=b"x" * 7000)
        assert listener.end() == 0
        assert listener.errors().count("\n") == 1


def test_the_count_is_kept(database: str, unique: str) -> None:
    """What comes behind is neither handled nor answered."""
    with listening(unique, "--url", database, "--count", "2", "--exec", "cat") as listener:
        run("publish", unique, "--lines", "--url", database, said=b"1\n2\n3\n4\n")
        assert listener.end() == 0
        assert listener.output.read() == b"12"
        assert listener.errors() == f"pgconcert: listening to '{unique}'\n"


SLOW = 'touch "$0/begun"; until test -e "$0/gate"; do sleep 0.02; done; touch "$0/ended"'


def test_a_signal_lets_it_come_to_its_end(database: str, unique: str, tmp_path: Path) -> None:
    arguments = (unique, "--url", database, "--grace", "3600")
    with listening(*arguments, "--exec", "sh", "-c", SLOW, str(tmp_path)) as listener:
        notify(database, unique, "x")
        eventually((tmp_path / "begun").exists, LIMIT)
        listener.signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        assert listener.end() == 143
        assert (tmp_path / "ended").exists()


def test_the_grace_is_bounded(database: str, unique: str, tmp_path: Path) -> None:
    arguments = (unique, "--url", database, "--grace", "0.2")
    with listening(*arguments, "--exec", "sh", "-c", f"trap '' TERM; {SLOW}", str(tmp_path)) as listener:
        notify(database, unique, "x")
        eventually((tmp_path / "begun").exists, LIMIT)
        listener.signal(signal.SIGINT)
        assert listener.end() == 130
        assert not (tmp_path / "ended").exists()


def test_a_second_signal_kills(database: str, unique: str, tmp_path: Path) -> None:
    arguments = (unique, "--url", database, "--grace", "3600")
    with listening(*arguments, "--exec", "sh", "-c", SLOW, str(tmp_path)) as listener:
        notify(database, unique, "x", "y")
        eventually((tmp_path / "begun").exists, LIMIT)
        listener.signal(signal.SIGINT)
        while listener.process.poll() is None:
            listener.signal(signal.SIGINT)
            time.sleep(0.05)  # one that came too early was the first again
        assert listener.end() == 130
        assert not (tmp_path / "ended").exists()


def test_a_command_that_is_not_there() -> None:
    done = run("listen", "a", "--exec", "no-such-command")
    assert (done.returncode, done.stderr.count(b"\n")) == (127, 1)
    assert b"'no-such-command' not found" in done.stderr


def test_a_command_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    done = run("listen", "a", "--exec", str(tmp_path / "notes"))
    assert done.returncode == 126


def test_a_command_that_cannot_be_started(database: str, unique: str, tmp_path: Path) -> None:
    program = tmp_path / "no-interpreter"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    with listening(unique, "--url", database, "--count", "1", "--exec", str(program)) as listener:
        notify(database, unique, "x")
        assert listener.end() == 0
        assert f"{program} could not be started: " in listener.errors()
