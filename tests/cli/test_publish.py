"""``pgconcert publish``: what any listener sees of it, lines as a stream, and each code."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from pgconcert.cli.messaging import code_of
from pgconcert.errors import (
    ChannelInvalid,
    NotifyQueueFull,
    PayloadTooLarge,
    PoolerRefused,
    PublishUncertain,
    StatementFailed,
    Unavailable,
)
from pgconcert.pubsub.envelope import parse
from tests.cli.messages import heard, observer, run, until_answered
from tests.cli.shell import LIMIT, environment


def publish(url: str, *arguments: str, said: bytes = b"") -> tuple[int, str]:
    done = run("publish", *arguments, "--url", url, said=said)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_an_argument_is_a_plain_notification(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        assert publish(database, unique, "order 42 is paid: ü") == (0, "")
        assert heard(listener, 1) == ["order 42 is paid: ü"]


def test_an_empty_argument_is_an_empty_message(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        assert publish(database, unique, "", said=b"not this") == (0, "")
        assert heard(listener, 1) == [""]


@pytest.mark.parametrize("body", [b"two\nlines\n", b"\x00\xff", b""], ids=["text", "bytes", "nothing"])
def test_standard_input_byte_for_byte(database: str, unique: str, body: bytes) -> None:
    with observer(database, unique) as listener:
        assert publish(database, unique, said=body) == (0, "")
        (payload,) = heard(listener, 1)
    assert (parse(payload.encode()).payload if b"\xff" in body else payload.encode()) == body


def test_headers_and_an_id_travel_in_an_envelope(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        assert publish(database, unique, "x", "--header", "a=1=2", "--header", "b=", "--id") == (0, "")
        envelope = parse(heard(listener, 1)[0].encode())
    assert envelope.payload == b"x"
    assert dict(envelope.headers) == {"a": "1=2", "b": ""}
    assert envelope.id


def test_each_line_is_a_message(database: str, unique: str) -> None:
    """Equal ones too, an empty one, and the last without a line break; in their order."""
    lines = [str(number // 2) for number in range(2000)]
    lines[1000] = ""
    with observer(database, unique) as listener:
        code, errors = publish(database, unique, "--lines", said="\n".join(lines).encode())
        assert (code, errors) == (0, "pgconcert: 2000 messages published\n")
        assert heard(listener, 2000) == lines


def test_lines_of_nothing(database: str, unique: str) -> None:
    assert publish(database, unique, "--lines") == (0, "pgconcert: 0 messages published\n")


def test_a_line_is_sent_when_it_is_there(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgconcert", "publish", unique, "--lines", "--url", database],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
        )  # fmt: skip
        try:
            assert process.stdin
            process.stdin.write(b"first\nsec")
            process.stdin.flush()
            assert heard(listener, 1) == ["first"]
            process.stdin.write(b"ond\n")
            process.stdin.flush()
            assert heard(listener, 1) == ["second"]
            until_answered(database, "pgconcert publish")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, errors) == (130, b"pgconcert: 2 messages published\n")


def test_a_signal_ends_the_reading(database: str, unique: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgconcert", "publish", unique, "--lines", "--url", database],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        with observer(database, unique) as listener:
            assert process.stdin
            process.stdin.write(b"it runs\n")
            process.stdin.flush()
            assert heard(listener, 1) == ["it runs"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 143
    finally:
        process.kill()
        process.communicate()


def test_json_is_checked_and_sent_as_it_is_written(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        assert publish(database, unique, "--json", said=b' {"a": 1.0e2}\n') == (0, "")
        assert heard(listener, 1) == ['{"a": 1.0e2}']


@pytest.mark.parametrize("wrong", ["{", "NaN", ""])
def test_what_is_not_json_is_refused(database: str, unique: str, wrong: str) -> None:
    code, errors = publish(database, unique, "--json", wrong)
    assert code == 2
    assert errors.startswith("pgconcert: the payload is not JSON: ")
    assert "leave out --json" in errors


def test_a_line_that_is_not_json_ends_it(database: str, unique: str) -> None:
    with observer(database, unique) as listener:
        code, errors = publish(database, unique, "--json", "--lines", said=b'1\n{"a": 2}\n{\n4\n')
        assert heard(listener, 2) == ["1", '{"a": 2}']
        assert publish(database, unique, "the next") == (0, "")
        assert heard(listener, 1) == ["the next"]
    assert code == 2
    first, second = errors.splitlines()
    assert first.startswith("pgconcert: line 3: the payload is not JSON: ")
    assert second == "pgconcert: 2 messages published, 1 not"


def test_a_line_that_is_too_large_ends_it(database: str, unique: str) -> None:
    """There are no tables in this database."""
    said = b"\n".join([b"1", b"2", b"x" * 9000, b"4"])
    with observer(database, unique) as listener:
        code, errors = publish(database, unique, "--lines", said=said)
        assert heard(listener, 2) == ["1", "2"]
        assert publish(database, unique, "the next") == (0, "")
        assert heard(listener, 1) == ["the next"]
    assert code == 78
    assert errors.startswith("pgconcert: line 3: a payload of 9000 bytes does not fit")
    assert "pgconcert schema apply" in errors
    assert errors.endswith("pgconcert: 2 messages published, 1 not\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pgconcert:pulse", "x"], "kept for the library"),
        (["x" * 64, "x"], "64 bytes"),
        (["a", "x", "--header", "novalue"], "'novalue' is not NAME=VALUE"),
        (["a", "x", "--lines"], "leave PAYLOAD out"),
        ([], "CHANNEL"),
    ],
)
def test_a_wrong_call(arguments: list[str], said: str) -> None:
    code, errors = publish("postgresql://127.0.0.1:1/nobody", *arguments)
    assert code == 2
    assert said in " ".join(errors.split())


def test_no_server() -> None:
    code, errors = publish("postgresql://ann:hunter2@127.0.0.1:1/x", "a", "x")
    assert code == 69
    assert errors.startswith("pgconcert: the server cannot be reached: the notification was not sent: 127.0.0.1:1: ")
    assert errors.count("\n") == 1
    assert "hunter2" not in errors


def test_an_address_that_reaches_nobody() -> None:
    code, errors = publish("memory://here", "a", "x")
    assert (code, errors) == (
        78,
        "pgconcert: memory://here reaches no other process; give the address of a server\n",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ChannelInvalid("x"), 2),
        (PayloadTooLarge("x"), 78),
        (PoolerRefused("x"), 78),
        (NotifyQueueFull("x"), 75),
        (PublishUncertain("x"), 74),
        (Unavailable("x"), 69),
        (StatementFailed("x"), 70),
    ],
    ids=lambda value: type(value).__name__,
)
def test_codes_tell_what_retrying_is_good_for(error: Exception, code: int) -> None:
    assert code_of(error) == code


def test_help_has_examples_and_codes() -> None:
    text = run("publish", "--help").stdout.decode()
    assert "tail -f app.log | pgconcert publish logs --lines" in text
    assert "74  uncertain" in text
