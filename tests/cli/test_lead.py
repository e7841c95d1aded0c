"""`pgconcert lead`: a command runs while we lead, and another one elsewhere when we do not; and who looks on."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path

import pytest

from pgconcert.cli.lead import as_json, line
from pgconcert.terms import Leader, LeaderChange
from tests.cli.holding import (
    CURIOUS,
    ends_of_terms,
    hand_over,
    holder,
    let_expire,
    make_tables,
    until_held,
    until_waiting,
)
from tests.cli.running import Running, finished, state, talker, until_dead, waiting
from tests.cli.shell import refused, running

DEAD = "postgresql://ann:hunter2@127.0.0.1:1/x"
TELL = 'echo "$PGCONCERT_LOCK $PGCONCERT_TOKEN $PGCONCERT_SESSION"; exit 7'


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


def leading(url: str, name: str, *arguments: str) -> Running:
    return Running(name, "--url", url, *arguments, command="lead")


def ready(one: Running) -> int:
    """Wait until its command runs; the number of that."""
    return int(one.expect("ready"))


def test_it_leads_runs_and_resigns_with_the_commands_code(database: str, unique: str) -> None:
    tokens = []
    for _ in range(2):
        done = finished(unique, "--url", database, "--", "sh", "-c", TELL, command="lead")
        assert (done.returncode, done.stderr) == (7, "")
        name, token, _ = done.stdout.split()
        assert name == unique
        tokens.append(int(token))
    assert tokens[0] < tokens[1]
    assert ends_of_terms(database, unique) == ["resigned", "resigned"]


def test_options_stand_on_both_sides_of_the_name(database: str, unique: str) -> None:
    done = finished("--ttl", "5", unique, "--url", database, "--", "echo", "--ttl", command="lead")
    assert (done.returncode, done.stdout) == (0, "--ttl\n")


def test_the_next_candidate_leads_when_the_command_ends(database: str, unique: str) -> None:
    with leading(database, unique, "--", *talker(3)) as first:
        ready(first)
        call = (unique, "--url", database, "--name", "heir", "--", *talker(4))
        with waiting(*call, command="lead", holder="") as second:
            until_waiting(database, unique)
            first.end_input()
            assert first.wait() == 3
            ready(second)
            assert holder(database, unique, "election") is not None
            second.end_input()
            assert second.wait() == 4
            waits, *_, leads, ended = second.errors().splitlines()
    assert waits.startswith(f"pgconcert: waiting for the leadership of '{unique}': it is held by ")
    assert leads.startswith(f"pgconcert: the leadership of '{unique}' is held with token ")
    assert ended == "pgconcert: the command ended with code 4"


@pytest.mark.parametrize(
    ("how", "said"), [("revoke", "was lost: it was taken away"), ("release", "the release of the leadership of")]
)
def test_who_must_give_way_is_a_candidate_again(database: str, unique: str, how: str, said: str) -> None:
    options = ("--interval", "2", "--", *talker(0))
    with leading(database, unique, *options) as first, leading(database, unique, *options) as second:
        one, other = (first, second) if _leads_first(database, unique, first) else (second, first)
        pid = ready(one)
        until_waiting(database, unique)
        before = holder(database, unique, "election")
        hand_over(database, unique, other.pid, how, "election")
        ready(other)
        until_dead(pid)
        after = holder(database, unique, "election")
        assert before is not None
        assert after is not None
        assert (before.pid, after.pid) == (one.pid, other.pid)
        assert after.token > before.token
        one.until_said(said)
        until_waiting(database, unique)
        os.kill(other.pid, signal.SIGTERM)
        assert other.wait() == 143
        ready(one)
        os.kill(one.pid, signal.SIGTERM)
        assert one.wait() == 143


def _leads_first(url: str, name: str, one: Running) -> bool:
    return until_held(url, name, "election").pid == one.pid


def test_a_preferred_candidate_makes_the_leader_give_way(database: str, unique: str) -> None:
    options = ("--interval", "2", "--", *talker(0))
    with leading(database, unique, *options) as first:
        ready(first)
        with leading(database, unique, "--preferred", *options) as second:
            ready(second)
            until_waiting(database, unique)
            assert "the release of the leadership of" in first.errors()
            second.end_input()
            assert second.wait() == 0
        ready(first)


def test_a_killed_leader_is_followed_by_another(database: str, unique: str) -> None:
    with leading(database, unique, "--", *talker(0)) as first:
        pid = ready(first)
        with leading(database, unique, *CURIOUS, "--", *talker(0)) as second:
            until_waiting(database, unique)
            first.kill()
            let_expire(database, first.pid)
            ready(second)
            until_dead(pid)
            assert ends_of_terms(database, unique) == ["lost", None]


def test_keep_leads_again_until_a_signal(database: str, unique: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f'echo "$PGCONCERT_TOKEN" >> {log}; test $(wc -l < {log}) -lt 3 || {{ echo ready $$; exec sleep 600; }}'
    with leading(database, unique, "--keep", "--", "sh", "-c", script) as one:
        pid = ready(one)
        os.kill(one.pid, signal.SIGTERM)
        assert one.wait() == 143
        assert state(pid) == ""
    assert ends_of_terms(database, unique) == ["resigned"] * 3


def test_a_signal_while_we_wait_ends_it(database: str, unique: str) -> None:
    with leading(database, unique, "--", *talker(0)) as first:
        ready(first)
        with leading(database, unique, "--", "true") as second:
            until_waiting(database, unique)
            os.kill(second.pid, signal.SIGHUP)
            assert second.wait() == 129
        until_waiting(database, unique, 0)


# who looks on


@pytest.mark.long
def test_an_observer_sees_every_change(database: str, unique: str) -> None:
    with running("lead", unique, "--observe", "--check", "0.3", "--url", database) as observer:
        observer.expect(r"-  nobody leads\n")
        with leading(database, unique, "--data", '"10.0.0.7:80"', "--name", "web", "--", *talker(0)) as leader:
            ready(leader)
            seen = holder(database, unique, "election")
            assert seen is not None
            observer.expect(rf'token {seen.token}  web \(pid {leader.pid} on .*\) leads  "10\.0\.0\.7:80"\n')
            leader.end_input()
            assert leader.wait() == 0
        observer.expect(rf"nobody leads: token {seen.token} was resigned\n")
        with leading(database, unique, "--", *talker(0)) as leader:
            ready(leader)
            leader.kill()
            let_expire(database, leader.pid)
        observer.expect(r"nobody leads: token \d+ was lost\n")
        observer.signal(signal.SIGINT)
        assert observer.end() == 130
    lines = observer.said.splitlines()
    assert len(lines) == 5
    for told in lines[1:-1]:
        assert datetime.fromisoformat(told.split("  ")[0]).tzinfo


def test_an_observer_for_programs(database: str, unique: str) -> None:
    with leading(database, unique, "--data", '{"port": 80}', "--", *talker(0)) as leader:
        ready(leader)
        seen = holder(database, unique, "election")
        assert seen is not None
        with running("lead", unique, "--observe", "--json", "--url", database) as observer:
            told = json.loads(observer.expect(r"\{.*\n"))
            observer.signal(signal.SIGTERM)
            assert observer.end() == 143
    assert told["election"] == unique
    assert told["token"] == str(seen.token)
    assert told["how"] is None
    assert datetime.fromisoformat(told["time"]).tzinfo
    assert (told["leader"]["pid"], told["leader"]["data"]) == (leader.pid, {"port": 80})
    assert {*told["leader"]} == {"identity", "host", "pid", "application", "data"}


def test_an_observer_that_nobody_reads_ends(database: str, unique: str) -> None:
    with Running(unique, "--observe", "--url", database, command="lead") as observer:
        observer.expect("-  nobody leads")
        observer.close_output()
        finished(unique, "--url", database, "--", "true", command="lead")
        assert observer.wait() == 141


def test_lines_of_changes_hide_nothing_and_break_nothing() -> None:
    leader = Leader(
        identity="u.h", host="h", pid=7, application="a\x1b[31m", data="\x1b\n", token=9, since=0.0, mine=False
    )
    said = line(LeaderChange(leader=leader, token=9, at=0.0, how=None))
    assert said.isprintable()
    assert "token 9  " in said
    gone = LeaderChange(leader=None, token=9, at=None, how="lost")
    assert line(gone) == "-  nobody leads: token 9 was lost"
    assert as_json("x", gone) == {"election": "x", "time": None, "token": "9", "how": "lost", "leader": None}


# wrong calls

WRONG_CALLS = [
    (["x"], "say what to run while we lead: lead NAME -- COMMAND; or look on: lead NAME --observe"),
    (["x", "--"], "say what to run while we lead"),
    (["--", "true"], "Missing argument 'NAME'"),
    (["x", "true"], "write -- before the command: lead NAME -- COMMAND"),
    (["x", "--observe", "--", "true"], "--observe looks on; leave out the command"),
    (["x", "--observe", "--preferred"], "--observe looks on; leave out the command, --preferred, --keep and --data"),
    (["x", "--json", "--", "true"], "--json is for --observe"),
    (["x", "--ttl", "0.01", "--", "true"], "ttl=0.01 s is too short"),
    (["", "--", "true"], "election has 1 to 1000 encoded bytes"),
    (["x", "--data", "[", "--", "true"], "'[' is not JSON"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS)
def test_a_wrong_call(arguments: list[str], message: str) -> None:
    assert message in refused("lead", "--url", DEAD, *arguments)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--url", DEAD], 69, "pgconcert: the server cannot be reached: "),
        ([], 78, "pgconcert: no database address: pass one"),
        (["--url", "memory://x"], 78, "pgconcert: memory://x keeps no other process out; lead needs one that does"),
    ],
)
def test_a_wrong_address(options: list[str], code: int, message: str) -> None:
    done = finished("x", *options, "--", "echo", "begun", command="lead")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert "hunter2" not in done.stderr


def test_missing_tables_are_named(database: str) -> None:
    for arguments in (["--", "true"], ["--observe"]):
        done = finished("x", "--schema", "nowhere", "--url", database, *arguments, command="lead")
        assert done.returncode == 78
        assert "pgconcert schema apply --schema nowhere" in done.stderr


def test_the_help_shows_examples_and_codes() -> None:
    text = finished("--help", command="lead").stdout
    assert "pgconcert lead scheduler -- ./scheduler.sh" in text
    for code in (69, 70, 74, 76, 78, 126, 127, 141):
        assert f"\n    {code:>3}  " in text
