"""``pgconcert listen``: what it prints and where, gaps, slow and absent readers, and its end."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from datetime import datetime

import pytest

from pgconcert.testing import eventually
from tests.cli.holding import execute
from tests.cli.messages import cut, in_time, listening, notify, run
from tests.cli.shell import LIMIT, environment, on_terminal, refused
from tests.servers import OwnServer


def test_one_channel_on_a_pipe_is_bytes(database: str, unique: str) -> None:
    with listening(unique, "--url", database, "--count", "2") as listener:
        assert listener.errors() == f"pgconcert: listening to '{unique}'\n"
        notify(database, unique, "one", "\x1b[31mtwo\tü")
        assert listener.end() == 0
        assert listener.output.read() == "one\n\x1b[31mtwo\tü\n".encode()


def test_several_channels_are_told_apart(database: str, unique: str) -> None:
    with listening(unique, "other", unique, "--url", database, "--count", "2") as listener:
        notify(database, unique, "one")
        notify(database, "other", "two")
        assert listener.end() == 0
        assert listener.output.read().decode() == f"{unique}\tone\nother\ttwo\n"


def test_a_terminal_shows_control_characters(database: str, unique: str) -> None:
    with on_terminal("listen", unique, "--url", database, "--count", "3") as listener:
        listener.expect("listening to")
        notify(database, unique, "plain ü", "\x1b[31mred")
        run("publish", unique, "--url", database, said=bytes(40))
        assert listener.end() == 0
    lines = listener.said.split("\r\n")[1:]
    assert lines == [
        f"{unique}  plain ü",
        f"{unique}  '\\x1b[31mred'",
        f"{unique}  '" + "\\x00" * 40 + "'",
        "",
    ]


def test_a_terminal_shows_that_bytes_are_no_text(database: str, unique: str) -> None:
    with on_terminal("listen", unique, "--url", database, "--count", "1") as listener:
        listener.expect("listening to")
        run("publish", unique, "--url", database, said=b"\xff" * 40)
        assert listener.end() == 0
    assert f"{unique}  (40 bytes: ff ff" in listener.said


def test_json_tells_everything(database: str, unique: str) -> None:
    with listening(unique, "--url", database, "--json", "--count", "2") as listener:
        run("publish", unique, "two\nlines", "--header", "a=b", "--id", "--url", database)
        run("publish", unique, "--url", database, said=b"\xff\x00")
        message, raw = listener.json(), listener.json()
        assert listener.end() == 0
    assert (message["channel"], message["payload"], message["headers"]) == (unique, "two\nlines", {"a": "b"})
    assert (message["own"], message["request"], message["malformed"]) == (False, False, None)
    assert len(message["id"]) > 10
    assert message["pid"] > 0
    assert datetime.fromisoformat(message["received"]).tzinfo
    assert base64.b64decode(raw["payload_base64"]) == b"\xff\x00"
    assert "payload" not in raw


@pytest.mark.parametrize("how", [["--json"], ["--no-gaps", "--json"], []], ids=["json", "no gaps", "text"])
def test_a_lost_connection_is_a_gap_in_its_place(database: str, unique: str, how: list[str]) -> None:
    with listening(unique, "--url", database, "--count", "2", *how) as listener:
        notify(database, unique, "before")
        assert "before" in listener.line()
        cut(database, "pgconcert listen")
        listener.until_said("in which nothing was heard")
        notify(database, unique, "after")
        if how == ["--json"]:
            gap = listener.json()["gap"]
            assert (gap["reason"], gap["count"], gap["channels"]) == ("reconnect", None, [unique])
            assert gap["since"] <= gap["until"]
        assert "after" in listener.line()
        assert listener.end() == 0
        assert "listen link lost" in listener.errors()
        told = f"an unknown number of messages is missing on '{unique}' (reconnect" in listener.errors()
        assert told == (not how)


def test_the_time_is_over(database: str, unique: str) -> None:
    done = in_time("listen", unique, "--url", database, lawful=lambda done: done.returncode != 69)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_time_is_over_before_the_count(database: str, unique: str) -> None:
    """A message for which the time was too short comes again, to one that has more of it."""
    written = b""
    for limit in 2, 6, 18, 54:
        with listening(unique, "--url", database, "--timeout", str(limit), "--count", "2") as listener:
            notify(database, unique, "one")
            assert listener.end() == 75
            written = listener.output.read()
        if written:
            break
    assert written == b"one\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it(database: str, unique: str, number: signal.Signals, code: int) -> None:
    with listening(unique, "--url", database) as listener:
        notify(database, unique, "one")
        assert listener.line() == "one"
        listener.signal(number)
        assert listener.end() == code
        assert listener.errors() == f"pgconcert: listening to '{unique}'\n"


@pytest.mark.parametrize("more", [[], ["a message"]], ids=["nothing is written", "something is written"])
def test_when_nobody_reads_it_ends_quietly(database: str, unique: str, more: list[str]) -> None:
    with listening(unique, "--url", database) as listener:
        listener.output.close()
        notify(database, unique, *more)
        assert listener.end() == 141
        assert listener.errors() == f"pgconcert: listening to '{unique}'\n"


def test_a_slow_reader_is_told_what_it_missed(database: str, unique: str) -> None:
    """It holds up nobody: everything is published while it reads nothing."""
    count = 40_000
    said = b"".join(b"message number %d of many\n" % number for number in range(count))
    with listening(unique, "--url", database, "--json") as listener:
        done = run("publish", unique, "--lines", "--url", database, said=said)
        assert done.stderr == b"pgconcert: 40000 messages published\n"
        # what is not with the listener yet is no more than fits between the two, and so too many are
        usage = "select pg_notification_queue_usage()"
        eventually(lambda: execute(database, usage) == [(0.0,)], LIMIT, what="the server has sent them")
        notify(database, unique, "the last")
        numbers: list[str] = []
        missed = 0
        while numbers[-1:] != ["the last"]:
            item = listener.json()
            if "gap" in item:
                assert item["gap"]["reason"] == "overflow"
                missed += item["gap"]["count"]
                if len(numbers) + missed > count:
                    break  # the last one was too many as well
            else:
                numbers.append(item["payload"])
        assert missed > 0
        assert len(numbers) + missed == count + 1
        listener.signal(signal.SIGTERM)
        assert listener.end() == 143


def test_one_process_of_several(database: str, unique: str) -> None:
    arguments = (unique, "--url", database, "--delivery", "one-process", "--json")
    with listening(*arguments) as first:
        first.until_said(f"this process handles '{unique}'")
        with listening(*arguments) as second:
            notify(database, unique, "one")
            assert first.json()["payload"] == "one"
            first.signal(signal.SIGKILL)
            second.until_said(f"this process handles '{unique}'")
            notify(database, unique, "two")
            assert second.json()["gap"]["reason"] == "takeover"
            assert second.json()["payload"] == "two"


def test_one_each_needs_the_tables(database: str, unique: str) -> None:
    done = run("listen", unique, "--url", database, "--delivery", "one-each")
    assert done.returncode == 78
    assert b"pgconcert schema apply" in done.stderr


@pytest.mark.faults
def test_a_restart_of_the_server_is_survived(own_server: OwnServer, unique: str) -> None:
    with listening(unique, "--url", own_server.url, "--json") as listener:
        with own_server.down():
            listener.until_said("attempt 1 failed")
        listener.until_said("in which nothing was heard")
        notify(own_server.url, unique, "after")
        assert listener.json()["gap"]["reason"] == "reconnect"
        assert listener.json()["payload"] == "after"


def test_no_server() -> None:
    url = "postgresql://ann:hunter2@127.0.0.1:1/x"
    done = in_time("listen", "a", "--url", url, lawful=lambda done: b"attempt 1 failed" in done.stderr)
    assert done.returncode == 69
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("pgconcert: listen link: attempt 1 failed")
    assert lines[-1].startswith("pgconcert: the server cannot be reached: listening to 'a' could not be proven within")
    assert b"hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CHANNEL"),
        (["pgconcert:pulse"], "kept for the library"),
        (["a", "--", "cat"], "write --exec before it"),
        (["a", "--exec"], "--exec needs a command"),
        (["a", "--exec", "--"], "--exec needs a command"),
        (["a", "--json", "--exec", "cat"], "leave it out with --exec"),
        (["a", "--count", "0"], "--count"),
    ],
)
def test_a_wrong_call(arguments: list[str], said: str) -> None:
    assert said in refused("listen", *arguments)


def test_help_has_examples_and_codes() -> None:
    text = run("listen", "--help").stdout.decode()
    assert "pgconcert listen orders --exec ./handle.sh -v" in text
    assert "141  nobody reads our output any more" in text


def test_a_closed_output_is_no_socket_of_ours(database: str, unique: str) -> None:
    """Else messages would be written into the connection to the server."""
    script = 'exec "$0" -m pgconcert listen "$1" --url "$2" --count 1 >&-'
    process = subprocess.Popen(
        ["sh", "-c", script, sys.executable, unique, database], stderr=subprocess.PIPE, env=environment()
    )
    try:
        assert process.stderr
        assert b"listening to" in process.stderr.readline()
        notify(database, unique, "one")
        assert process.wait(LIMIT) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.communicate()
