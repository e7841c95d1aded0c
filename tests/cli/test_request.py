"""``pgconcert request``: replies of programs and of ``listen --exec``, errors, and each code."""

from __future__ import annotations

import json

import pytest

from tests.cli.messages import in_time, listening, run
from tests.cli.shell import LIMIT, on_terminal

HANDLER = 'read -r asked; test "$asked" != bad || exit 3; printf "%s %s" "$PGCONCERT_REQUEST" "$asked"'


def request(url: str, *arguments: str, said: bytes = b"") -> tuple[int, bytes, str]:
    done = run("request", *arguments, "--url", url, said=said)
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.mark.long
def test_replies_errors_and_bytes(database: str, unique: str) -> None:
    with listening(unique, "--url", database, "--exec", "sh", "-c", HANDLER) as handler:
        assert request(database, unique, "seven") == (0, b"1 seven", "")
        assert request(database, unique, said=b"of stdin\nand more") == (0, b"1 of stdin", "")
        code, out, errors = request(database, unique, "bad")
        assert (code, out) == (1, b"")
        assert errors == "pgconcert: the handler raised CommandFailed: sh ended with code 3\n"
        handler.until_said("sh ended with code 3")
        code, out, errors = request(database, unique, "x", "--json")
        reply = json.loads(out)
        assert (code, errors, reply["payload"], reply["headers"]) == (0, "", "1 x", {})
        assert reply["seconds"] > 0
        assert reply["pid"] > 0
        with on_terminal("request", unique, "a\tb", "--url", database) as shown:
            assert shown.end() == 0
        assert shown.said == "'1 a\\tb'\r\n"


def test_bytes_come_back_as_they_are(database: str, unique: str) -> None:
    body = bytes(range(256))
    with listening(unique, "--url", database, "--exec", "--", "cat"):
        assert request(database, unique, "--timeout", str(LIMIT), said=body) == (0, body, "")


def test_nobody_answers(database: str, unique: str) -> None:
    done = in_time("request", unique, "x", "--url", database, lawful=lambda done: done.returncode != 69)
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.decode().startswith(f"pgconcert: nobody answered a request on '{unique}' within ")


def test_no_server() -> None:
    code, out, errors = request("postgresql://ann:hunter2@127.0.0.1:1/x", "a", "x", "--timeout", "0.5")
    assert (code, out) == (69, b"")
    assert errors.startswith("pgconcert: the server cannot be reached: ")
    assert errors.count("\n") == 1
    assert "hunter2" not in errors


@pytest.mark.parametrize("arguments", [["pgconcert:x", "x"], ["a", "x", "--timeout", "0"], []])
def test_a_wrong_call(arguments: list[str]) -> None:
    assert request("postgresql://127.0.0.1:1/x", *arguments)[0] == 2


def test_help_has_examples_and_codes() -> None:
    text = run("request", "--help").stdout.decode()
    assert "pgconcert listen price --exec COMMAND" in text
    assert "75  nobody answered in time" in text
