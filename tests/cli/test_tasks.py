"""`pgconcert tasks`: what is put into a queue, what is seen of it, what becomes of dead tasks; and each code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgconcert.cli.task_table import queue_as_json, task_as_json
from pgconcert.taskstore import QueueInfo, TaskInfo
from pgconcert.testing import eventually
from tests.cli.holding import execute, make_tables
from tests.cli.messages import run, until_answered
from tests.cli.shell import LIMIT, environment, on_terminal, refused

NOWHERE = "postgresql://ann:hunter2@127.0.0.1:1/x"


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


@pytest.fixture(autouse=True)
def _only_ours(database: str) -> None:
    execute(database, "truncate pgconcert.task, pgconcert.task_finished")


def tasks(url: str, *arguments: str, said: bytes = b"") -> tuple[int, str, str]:
    """Code, output and errors of `pgconcert tasks`."""
    done = run("tasks", *arguments, "--url", url, said=said)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def enqueued(url: str, *arguments: str, said: bytes = b"") -> str:
    """The id of a task that was put into a queue."""
    code, out, errors = tasks(url, "enqueue", *arguments, said=said)
    assert (code, errors) == (0, "")
    return out.removesuffix("\n")


def listed(url: str, *arguments: str) -> list[dict[str, Any]]:
    code, out, errors = tasks(url, "list", *arguments, "--json")
    assert (code, errors) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)["tasks"]
    return found


def kill(url: str, *ids: str) -> None:
    """Let the attempts of tasks be used up."""
    execute(
        url,
        "update pgconcert.task set dead = true, attempt = attempts, error = 'no good' where id = any (%s)",
        [*map(int, ids)],
    )


# putting in


def test_what_was_put_in_is_seen(database: str) -> None:
    first = enqueued(database, "mail", "to: ann ü")
    second = enqueued(database, "mail", said=b"a\nb\n")
    enqueued(database, "other", "")
    code, out, errors = tasks(database, "list", "mail")
    assert (code, errors) == (0, "")
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert rows[0] == ["task", "state", "attempt", "created", "due", "payload"]
    assert [(row[0], row[1], row[2], row[5]) for row in rows[1:]] == [
        (first, "waiting", "0 of 20", "to: ann ü"),
        (second, "waiting", "0 of 20", r"'a\nb\n'"),
    ]
    one, two = listed(database, "mail")
    assert {*one} == {
        "id", "state", "payload", "attempt", "attempts", "created", "run_at", "finished", "session", "error"
    }  # fmt: skip
    assert (one["id"], one["payload"], two["payload"]) == (first, "to: ann ü", "a\nb\n")
    assert datetime.fromisoformat(one["created"]).tzinfo
    assert (one["session"], one["error"], one["finished"]) == (None, None, None)


@pytest.mark.long
def test_bytes_stay_what_they_are(database: str) -> None:
    enqueued(database, "mail", said=b"\x00\xff")
    (task,) = listed(database, "mail")
    assert "payload" not in task
    assert task["payload_base64"] == "AP8="
    assert "(2 bytes: 00 ff)" in tasks(database, "list", "mail")[1]


def test_each_line_is_a_task(database: str) -> None:
    """Empty ones too, and the last without a line break; more than fit one statement, in their order."""
    lines = [str(number) for number in range(2500)]
    lines[1000] = ""
    code, out, errors = tasks(database, "enqueue", "mail", "--lines", said="\n".join(lines).encode())
    assert (code, out, errors) == (0, "", "pgconcert: 2500 tasks put into queue 'mail'\n")
    assert [task["payload"] for task in listed(database, "mail", "--limit", "3000")] == lines


def test_lines_of_nothing(database: str) -> None:
    said = "pgconcert: 0 tasks put into queue 'mail'\n"
    assert tasks(database, "enqueue", "mail", "--lines") == (0, "", said)


def test_a_line_that_is_not_json_ends_it(database: str) -> None:
    code, _, errors = tasks(database, "enqueue", "mail", "--json", "--lines", said=b'1\n {"a": 2} \n{\n4\n')
    assert code == 2
    assert [task["payload"] for task in listed(database, "mail")] == ["1", '{"a": 2}']
    put, wrong = errors.splitlines()
    assert put == "pgconcert: 2 tasks put into queue 'mail'"
    assert wrong.startswith("pgconcert: line 3: the payload is not JSON: ")


@pytest.mark.parametrize("wrong", ["{", "NaN", ""])
def test_what_is_not_json_is_refused(database: str, wrong: str) -> None:
    code, out, errors = tasks(database, "enqueue", "mail", "--json", wrong)
    assert (code, out) == (2, "")
    assert errors.startswith("pgconcert: the payload is not JSON: ")
    assert listed(database, "mail") == []


def test_a_line_is_put_in_when_it_is_there(database: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgconcert", "tasks", "enqueue", "mail", "--lines", "--url", database],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdin
        process.stdin.write(b"first\nsec")
        process.stdin.flush()
        put = "select convert_from(payload, 'UTF8') from pgconcert.task where queue = 'mail'"
        eventually(lambda: execute(database, put) == [("first",)], LIMIT, what="one is there")
        until_answered(database, "pgconcert tasks enqueue")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (143, b"pgconcert: 1 task put into queue 'mail'\n")


def test_not_before(database: str) -> None:
    enqueued(database, "mail", "a", "--in", "3600")
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
    local = moment.astimezone().replace(tzinfo=None)
    enqueued(database, "mail", "b", "--at", moment.isoformat(), "--attempts", "3")
    enqueued(database, "mail", "c", "--at", local.isoformat(" "))
    first, second, third = listed(database, "mail", "--state", "scheduled")
    assert (first["payload"], second["attempts"], third["attempts"]) == ("a", 3, 20)
    assert datetime.fromisoformat(first["run_at"]) > datetime.now(UTC) + timedelta(seconds=3500)
    assert datetime.fromisoformat(second["run_at"]) == datetime.fromisoformat(third["run_at"]) == moment


# looking


def test_counts(database: str) -> None:
    dead = enqueued(database, "mail", "a")
    kill(database, dead)
    enqueued(database, "mail", "b")
    enqueued(database, "mail", "c", "--in", "3600")
    enqueued(database, "print", "d")
    code, out, errors = tasks(database, "stats")
    assert (code, errors) == (0, "")
    header, mail, other = [line.split() for line in out.splitlines()]
    assert header == ["queue", "waiting", "scheduled", "assigned", "started", "dead", "finished", "oldest"]
    assert (mail[:7], mail[8]) == (["mail", "1", "1", "0", "0", "1", "0"], "s")
    assert other[:7] == ["print", "1", "0", "0", "0", "0", "0"]
    assert tasks(database, "stats", "mail")[1].splitlines()[1].split()[:7] == mail[:7]
    (queue,) = json.loads(tasks(database, "stats", "mail", "--json")[1])["queues"]
    assert {*queue} == {
        "namespace", "name", "waiting", "scheduled", "assigned", "started", "dead", "finished", "oldest"
    }  # fmt: skip
    assert (queue["name"], queue["dead"], queue["oldest"] >= 0) == ("mail", 1, True)


@pytest.mark.long
def test_what_is_not_there(database: str) -> None:
    assert tasks(database, "stats") == (0, "", "pgconcert: there is no queue\n")
    assert tasks(database, "stats", "mail") == (3, "", "pgconcert: there is no task in queue 'mail'\n")
    assert tasks(database, "list", "mail") == (0, "", "pgconcert: there is no task in queue 'mail'\n")
    said = "pgconcert: there is no dead task in queue 'mail' in namespace 'n'\n"
    assert tasks(database, "list", "mail", "--state", "dead", "--namespace", "n") == (0, "", said)
    code, out, _ = tasks(database, "stats", "mail", "--json")
    assert (code, json.loads(out)["queues"]) == (3, [])


def test_a_namespace_is_another_queue(database: str) -> None:
    enqueued(database, "mail", "a", "--namespace", "n")
    assert listed(database, "mail") == []
    assert [task["payload"] for task in listed(database, "mail", "--namespace", "n")] == ["a"]


def test_a_limit_says_that_there_may_be_more(database: str) -> None:
    tasks(database, "enqueue", "mail", "--lines", said=b"a\nb\nc")
    code, out, errors = tasks(database, "list", "mail", "--limit", "2")
    assert (code, len(out.splitlines())) == (0, 3)
    assert errors == "pgconcert: these are the first 2; there may be more: --limit\n"


def test_a_terminal_shows_hostile_texts_harmlessly(database: str) -> None:
    enqueued(database, "[bold]q", "\x1b[31mred\n" + "x" * 100)
    with on_terminal("tasks", "list", "[bold]q", "--url", database) as seen:
        assert seen.end() == 0
    assert r"'\x1b[31mred\nx" in seen.said
    assert "x..." in seen.said
    with on_terminal("tasks", "stats", "--url", database) as seen:
        assert seen.end() == 0
    assert "[bold]q" in seen.said


# deciding


def test_dead_tasks_are_run_again(database: str) -> None:
    ids = [enqueued(database, "mail", text) for text in "abcd"]
    kill(database, *ids[:3])
    assert [task["error"] for task in listed(database, "mail", "--state", "dead")] == ["no good"] * 3
    assert tasks(database, "retry", "mail", ids[0]) == (0, "1 task of queue 'mail' is due again\n", "")
    (again,) = [task for task in listed(database, "mail", "--state", "waiting") if task["id"] == ids[0]]
    assert (again["attempt"], again["attempts"]) == (0, 20)
    code, out, errors = tasks(database, "retry", "mail", ids[1], ids[3], "x", "99999999999999999999")
    assert (code, out) == (3, "1 task of queue 'mail' is due again\n")
    assert errors == "pgconcert: 3 tasks are not there or not dead: pgconcert tasks list mail --state dead\n"
    assert tasks(database, "retry", "mail", "--all") == (0, "1 task of queue 'mail' is due again\n", "")
    assert tasks(database, "retry", "mail", "--all") == (0, "0 tasks of queue 'mail' are due again\n", "")


@pytest.mark.long
def test_dead_tasks_are_deleted(database: str) -> None:
    ids = [enqueued(database, "mail", text) for text in "abcd"]
    kill(database, *ids[:3])
    assert tasks(database, "discard", "mail", ids[0], ids[0]) == (0, "1 task of queue 'mail' is deleted\n", "")
    assert tasks(database, "discard", "mail", "--all") == (0, "2 tasks of queue 'mail' are deleted\n", "")
    assert tasks(database, "discard", "mail", ids[3])[0] == 3
    assert [task["id"] for task in listed(database, "mail")] == [ids[3]]


# what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["retry", "mail"], "name the tasks, or say --all"),
        (["retry", "mail", "1", "--all"], "name the tasks, or say --all"),
        (["discard", "mail"], "name the tasks, or say --all"),
        (["list", ""], "QUEUE"),
        (["list", "x" * 1001], "has 1 to 1000 encoded bytes"),
        (["list", "mail", "--state", "lost"], "--state"),
        (["list", "mail", "--limit", "0"], "--limit"),
        (["enqueue", "mail", "x", "--lines"], "leave PAYLOAD out"),
        (["enqueue", "mail", "x", "--in", "1", "--at", "2027-01-01"], "exclude each other"),
        (["enqueue", "mail", "x", "--at", "tomorrow"], "'tomorrow' is no time such as 2027-03-01T09:30"),
        (["enqueue", "mail", "x", "--in", "-1"], "--in"),
        (["enqueue", "mail", "x", "--attempts", "0"], "--attempts"),
    ],
)
def test_a_wrong_call(arguments: list[str], said: str) -> None:
    assert said in refused("tasks", *arguments, "--url", NOWHERE)


@pytest.mark.parametrize(
    "arguments", [["list", "q"], ["stats"], ["retry", "q", "--all"], ["discard", "q", "1"], ["enqueue", "q", "x"]]
)
def test_no_server_and_no_tables(database: str, arguments: list[str]) -> None:
    code, out, errors = tasks(NOWHERE, *arguments)
    assert (code, out) == (69, "")
    assert errors.startswith("pgconcert: the server cannot be reached: ")
    assert "hunter2" not in errors
    code, out, errors = tasks(database, *arguments, "--schema", "nowhere")
    assert (code, out) == (78, "")
    assert "pgconcert schema apply --schema nowhere" in errors


def test_an_address_that_reaches_nobody() -> None:
    code, _, errors = tasks("memory://here", "enqueue", "a", "x")
    assert (code, errors) == (78, "pgconcert: memory://here reaches no other process; give the address of a server\n")


@pytest.mark.parametrize("command", ["list", "stats", "retry", "discard", "enqueue"])
def test_help_has_examples_and_codes(command: str) -> None:
    text = run("tasks", command, "--help").stdout.decode()
    assert f"pgconcert tasks {command}" in text
    assert "\n     69  the server could not be reached" in text


# pure


def test_what_is_not_known_is_null() -> None:
    queue = QueueInfo(
        namespace="", name="q", waiting=0, scheduled=0, assigned=0, started=0, dead=0, finished=1, oldest=None
    )
    assert queue_as_json(queue)["oldest"] is None
    task = TaskInfo(
        id="1", state="finished", payload=b"", attempt=1, attempts=2, created=0.0, run_at=None,
        session=2**60 + 1, error=None, finished=1.0,
    )  # fmt: skip
    made = task_as_json(task)
    assert (made["session"], made["run_at"], made["payload"]) == ("1152921504606846977", None, "")
    assert made["finished"] == "1970-01-01T00:00:01+00:00"
