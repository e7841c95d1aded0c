"""``pgconcert schema``: what each command says and does, and the exit codes that deployments ask for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgconcert.postgres.schemafiles import grants, script, versions
from pgconcert.sessions.wakes import wake_channel, wake_mark
from pgconcert.taskstore import TablePlace, wake_subject
from pgconcert.testing import rewrite
from tests.cli.shell import LIMIT, environment, on_terminal, refused, run
from tests.servers import Server

NEWEST = max(versions())
ALL = ", ".join(map(str, versions()))


@pytest.fixture
def empty(server: Server) -> Iterator[str]:
    """The URL of a database of this test's own."""
    with server.fresh_database() as url:
        yield url


def execute(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def schema(*arguments: str, url: str) -> tuple[int, str]:
    """Exit code, and the lines of both outputs."""
    done = run("schema", *arguments, "--url", url)
    return done.returncode, done.stdout + done.stderr


def test_from_nothing_to_nothing(empty: str) -> None:
    """Missing, made, current, removed."""
    missing = (3, "schema pgconcert: missing; make it with: pgconcert schema apply\n")
    assert schema("check", url=empty) == missing
    assert schema("apply", url=empty) == (0, f"schema pgconcert: applied version {ALL}\n")
    assert schema("apply", url=empty) == (0, "schema pgconcert: nothing was missing\n")
    assert schema("check", url=empty) == (0, f"schema pgconcert: current: version {NEWEST} is there\n")
    code, said = schema("drop", url=empty)
    assert code == 2
    assert "removes every table of pgconcert in schema pgconcert, with its rows; add --yes" in said
    assert schema("check", url=empty)[0] == 0
    gone = "schema pgconcert: no table of ours is there"
    assert schema("drop", "--yes", url=empty) == (0, f"{gone}, and the schema is gone\n")
    assert schema("drop", "--yes", url=empty) == (0, f"{gone}\n")
    assert schema("check", url=empty) == missing


def test_another_name(empty: str) -> None:
    named = ("--schema", "con cert")
    assert schema("check", *named, url=empty) == (
        3,
        "schema con cert: missing; make it with: pgconcert schema apply --schema 'con cert'\n",
    )
    assert schema("apply", *named, url=empty)[0] == 0
    assert schema("check", *named, url=empty)[0] == 0
    assert schema("check", url=empty)[0] == 3


def test_old_and_newer(empty: str) -> None:
    """A newer one is fine; an old one names the command."""
    execute(empty, script())
    execute(empty, "insert into pgconcert.version (version) values (1000)")
    assert schema("check", url=empty) == (
        0,
        f"schema pgconcert: newer: version 1000 is there, and this library knows {NEWEST}, and works with it\n",
    )
    execute(empty, f"delete from pgconcert.version where version = {NEWEST}")
    code, said = schema("check", url=empty)
    assert code == 3
    assert said.startswith("schema pgconcert: old: ")
    assert said.endswith("bring it up with: pgconcert schema apply\n")


@pytest.mark.long
def test_for_programs(server: Server, empty: str) -> None:
    """Every field, for a role that lacks rights, too."""
    done = run("schema", "check", "--json", "--url", empty)
    assert (done.returncode, json.loads(done.stdout)) == (
        3,
        {
            "version": 1,
            "schema": "pgconcert",
            "verdict": "missing",
            "applied": [],
            "missing": [*versions()],
            "known": NEWEST,
            "grants": [],
        },
    )
    execute(empty, script())
    server.execute("create role poor login password 'x'")
    poor = rewrite(server.over_tcp(empty), user="poor", password="x")
    wanted = grants("pgconcert", "poor")
    try:
        code, said = schema("check", url=poor)
        assert code == 1
        assert "permission denied for schema pgconcert" in said
        assert wanted[0] in said
        for grant in wanted[:2]:
            execute(empty, grant)
        done = run("schema", "check", "--json", "--url", poor)
        assert done.returncode == 4
        assert json.loads(done.stdout)["grants"] == wanted
        code, said = schema("check", url=poor)
        assert code == 4
        assert f"this role lacks rights; the owner runs: {wanted[2]};" in said
        for grant in wanted[2:]:
            execute(empty, grant)
        assert schema("check", url=poor)[0] == 0
        assert schema("apply", url=poor) == (0, "schema pgconcert: nothing was missing\n")
    finally:
        execute(empty, "drop owned by poor")
        server.execute("drop role poor")


def test_show_is_what_another_tool_runs(empty: str) -> None:
    """Without a server it prints SQL and nothing else; run as one transaction, it is what ``apply`` makes."""
    done = run("schema", "show")
    assert (done.returncode, done.stdout, done.stderr) == (0, script(), "")
    parts = [run("schema", "show", "--version", str(version), "--schema", "app").stdout for version in versions()]
    assert parts == [script("app", version) for version in versions()]
    for part in parts:
        with psycopg.connect(empty) as tool:
            tool.execute(part.encode())
    assert schema("check", "--schema", "app", url=empty)[0] == 0


def test_show_on_a_terminal_breaks_no_line() -> None:
    with on_terminal("schema", "show", columns=40) as shown:
        assert shown.end() == 0
        assert shown.said.replace("\r\n", "\n") == script()


def test_what_a_table_of_tasks_needs(empty: str) -> None:
    """Statement by statement it makes the table fit, also when it is run again; and inserts wake."""
    execute(empty, script())
    execute(empty, "create table parcel (number int primary key, sent timestamptz, due timestamptz)")
    of_table = ["--id", "number", "--where", "t.sent is null", "--order-by", "t.due", "--finish", "sent = now()"]
    done = run("schema", "show", "--table", "parcel", *of_table, "--wake", "--namespace", "n")
    assert (done.returncode, done.stderr) == (0, "")
    statements = psql_statements(done.stdout)
    for statement in [*statements, *statements]:
        execute(empty, statement)
    place = TablePlace("parcel", "number", "t.sent is null", "t.due", "sent = now()")
    with psycopg.connect(empty, autocommit=True) as listener:
        listener.execute(sql.SQL("listen {}").format(sql.Identifier(wake_channel("n"))))
        execute(empty, "insert into parcel values (1), (2)")
        (told,) = listener.notifies(timeout=LIMIT, stop_after=1)
    assert told.payload == wake_mark(wake_subject(place, "n")).decode()
    indexes = [
        definition for (definition,) in execute(empty, "select indexdef from pg_indexes where tablename = 'parcel'")
    ]
    assert len(indexes) == 3
    assert any("(due, number) WHERE ((session_id IS NULL) AND (sent IS NULL))" in each for each in indexes)


def psql_statements(text: str) -> list[str]:
    """SQL as ``psql`` sends it: each statement by itself. A function's body has semicolons."""
    body = re.compile(r"\$wake\$.*?\$wake\$", re.DOTALL)
    bodies = body.findall(text)
    parts = body.sub("BODY", text).split(";\n")
    return [part.replace("BODY", bodies[0]) if bodies else part for part in parts if part.strip()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--where", "x"], "--where is for --table"),
        (["--order-by", "x"], "--order-by is for --table"),
        (["--wake"], "--wake is for --table"),
        (["--namespace", "x"], "--namespace is for --table"),
        (["--table", "t", "--namespace", "x"], "--namespace is for --wake"),
        (["--table", "t", "--version", "1"], "--version is of our tables"),
    ],
)
def test_options_of_another_kind_of_table(arguments: list[str], said: str) -> None:
    assert said in refused("schema", "show", *arguments)


def test_wrong_calls() -> None:
    done = run("schema", "show", "--version", "77")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: there is no version 77 of the schema; there are 1 to {NEWEST}\n"
    code, said = schema("apply", "--schema", "x" * 64, url="postgresql://127.0.0.1:1/x")
    assert code == 1
    assert said.startswith("Error: schema must be a text of 1 to 63 encoded bytes")


@pytest.mark.parametrize("command", [["apply"], ["check"], ["drop", "--yes"]])
def test_no_server(command: list[str]) -> None:
    code, said = schema(*command, url="postgresql://ann:hunter2@127.0.0.1:1/x")
    assert code == 1
    assert said.startswith("Error: 127.0.0.1:1: ")
    assert "hunter2" not in said
    done = run("schema", *command)
    assert done.returncode == 1
    assert "no database address" in done.stderr


def test_help_has_examples_and_exit_codes() -> None:
    assert "pgconcert schema check || pgconcert schema apply" in run("schema", "--help").stdout
    for command in ("apply", "show", "check", "drop"):
        said = run("schema", command, "--help").stdout
        assert f"  pgconcert schema {command}" in said
        assert "Exit code: 0" in said


@pytest.mark.long
def test_ten_processes_at_once(empty: str) -> None:
    """As ten instances of a program that start together: one makes the tables, all succeed."""
    command = [sys.executable, "-m", "pgconcert", "schema", "apply", "--url", empty]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
        for _ in range(10)
    ]
    said = [process.communicate(timeout=LIMIT) for process in started]
    assert [process.returncode for process in started] == [0] * 10
    assert sorted(said) == [
        (f"schema pgconcert: applied version {ALL}\n", ""),
        *[("schema pgconcert: nothing was missing\n", "")] * 9,
    ]
