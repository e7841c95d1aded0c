"""``pgconcert ping``: round trips, what stands in between, and pings for all listeners."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from tests.cli.messages import heard, observer, run
from tests.cli.shell import running
from tests.poolers import PgBouncer


def ping(url: str, *arguments: str) -> tuple[int, list[str], str]:
    done = run("ping", *arguments, "--url", url)
    return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()


def test_round_trips(database: str) -> None:
    code, (way, *trips, summary), errors = ping(database, "--count", "3", "--interval", "0.01")
    assert (code, errors) == (0, "")
    assert re.search(r", direct, server process \d+$", way)
    assert [re.sub(r"\d+\.\d\d", "x", trip) for trip in trips] == ["1: x ms", "2: x ms", "3: x ms"]
    found = re.fullmatch(r"3 sent, 3 came back; min/median/max (\S+)/(\S+)/(\S+) ms", summary)
    assert found
    assert float(found[1]) <= float(found[2]) <= float(found[3])


def test_ctrl_c_ends_it_with_the_summary(database: str) -> None:
    with running("ping", "--url", database, "--interval", "0.01") as pinging:
        pinging.expect(r"5: \d")
        pinging.signal(signal.SIGINT)
        assert pinging.end() == 0
    assert re.search(r"\d+ sent, \d+ came back; min/median/max", pinging.said)


def test_no_server() -> None:
    with running("ping", "--url", "postgresql://ann:hunter2@127.0.0.1:1/x") as pinging:
        pinging.expect("attempt 1 failed")
        pinging.signal(signal.SIGINT)
        assert pinging.end() == 130
    assert "hunter2" not in pinging.said


def test_nothing_comes_back_from_an_address_that_reaches_nobody() -> None:
    code, lines, errors = ping("memory://here")
    assert (code, lines) == (1, [])
    assert errors.startswith("pgconcert: nothing came back: memory://here reaches no other process")


@pytest.mark.needs("pgbouncer")
def test_a_transaction_pooler_is_named(database: str, pgbouncer: Callable[..., PgBouncer]) -> None:
    pooled = pgbouncer("transaction").url
    code, lines, errors = ping(pooled, "--count", "1")
    assert (code, lines) == (1, [])
    assert "transaction pooler" in errors
    assert "direct_url" in errors
    code, lines, errors = ping(pooled, "--count", "1", "--direct-url", database)
    assert (code, errors) == (0, "")
    assert ", direct, " in lines[0]


@pytest.mark.needs("pgbouncer")
def test_a_session_pooler_is_named(pgbouncer: Callable[..., PgBouncer]) -> None:
    code, lines, _ = ping(pgbouncer("session").url, "--count", "1")
    assert code == 0
    assert ", session pooler, " in lines[0]


def test_all_listeners_hear_a_ping(database: str) -> None:
    with observer(database, "listener_ping") as listener:
        code, lines, errors = ping(database, "--listeners", "--count", "2", "--interval", "0.01")
        assert heard(listener, 2) == ["", ""]
    assert (code, errors) == (0, "")
    assert lines[-1] == "2 sent"


def test_no_server_for_the_listeners() -> None:
    code, lines, _ = ping("postgresql://127.0.0.1:1/x", "--listeners", "--count", "1")
    assert code == 1
    assert lines[0].startswith("1: not sent: ")
    assert lines[1] == "0 sent"


def test_help_has_examples_and_codes() -> None:
    text = run("ping", "--help").stdout.decode()
    assert "pgconcert ping --listeners --count 1" in text
    assert "Exit code: 0 if one came back" in text
