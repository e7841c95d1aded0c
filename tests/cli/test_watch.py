"""``pgconcert watch``: what changed between two looks, on a pipe and on a terminal, through a restart, to its end."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pgconcert.cli.watch import changes
from pgconcert.keys import KeySpace, interest_pair
from pgconcert.postgres.lockview import Mode, Role, SeenLock, Session
from pgconcert.testing import rewrite
from tests.cli.shell import on_terminal, run, running
from tests.servers import OwnServer, Server

KEYS = KeySpace()
FAST = ("--interval", "0.05")


def lock(
    key: int, pid: int, role: Role = "held", mode: Mode | None = "exclusive", *, slot: int | None = None
) -> SeenLock:
    session = Session(pid, "app", "ann", "local", datetime(2026, 1, 1, tzinfo=UTC))
    kind = "lock" if slot is None else "semaphore"
    return SeenLock("app", kind, None, key, None, slot, None, mode, role, session)  # type: ignore[arg-type]


def told(before: list[SeenLock], after: list[SeenLock]) -> list[tuple[str, int | None]]:
    return [(what, each.session.pid) for what, each in changes(before, after)]


def test_nothing_changes() -> None:
    assert told([lock(1, 7), lock(1, 8, "waiting")], [lock(1, 8, "waiting"), lock(1, 7)]) == []


def test_a_lock_goes_from_one_to_the_other() -> None:
    """Who waited and now holds has acquired, and did not stop waiting."""
    before = [lock(1, 7), lock(1, 8, "waiting", None)]
    assert told(before, [lock(1, 8)]) == [("released", 7), ("acquired", 8)]


def test_a_waiter_comes_and_goes() -> None:
    assert told([], [lock(1, 8, "waiting")]) == [("waiting", 8)]
    assert told([lock(1, 8, "waiting")], []) == [("stopped waiting", 8)]


def test_a_waiter_whose_mode_becomes_known_is_no_event() -> None:
    assert told([lock(1, 8, "waiting", None)], [lock(1, 8, "waiting", "exclusive")]) == []


def test_a_holder_that_changes_its_mode_is_an_event() -> None:
    assert told([lock(1, 8, mode="shared")], [lock(1, 8)]) == [("released", 8), ("acquired", 8)]


def test_two_slots_of_one_session_are_two() -> None:
    before = [lock(1, 7, slot=0, mode="permit")]
    assert told(before, [*before, lock(1, 7, slot=1, mode="permit")]) == [("acquired", 7)]


def test_another_session_with_the_same_pid_is_another() -> None:
    session = Session(7, "app", "ann", "local", datetime(2026, 1, 2, tzinfo=UTC))
    later = SeenLock("app", "lock", None, 1, None, None, None, "exclusive", "held", session)
    assert told([lock(1, 7)], [later]) == [("released", 7), ("acquired", 7)]


def advisory(connection: psycopg.Connection[Any], function: str, *values: int) -> None:
    connection.execute(f"select pg_advisory_{function}({', '.join(map(str, values))})".encode())


def connect(url: str, name: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True, application_name=name)


def test_a_line_for_each_change(database: str) -> None:
    letter = KEYS.key("letter").value
    with connect(database, "one") as one, connect(database, "two") as two:
        advisory(one, "lock", letter)
        with running("watch", "letter", "--url", database, *FAST) as watching:
            watching.expect(rf"letter  held  exclusive  pid {one.info.backend_pid}  one\n")
            advisory(two, "lock_shared", *interest_pair(letter))
            watching.expect(rf"letter  waiting  pid {two.info.backend_pid}  two\n")
            advisory(one, "unlock", letter)
            watching.expect(rf"letter  released  exclusive  pid {one.info.backend_pid}")
            advisory(two, "lock_shared", letter)
            watching.expect(rf"letter  acquired  shared  pid {two.info.backend_pid}")
            watching.signal(signal.SIGINT)
            assert watching.end() == 130
        assert "\x1b" not in watching.said
        assert len(watching.said.splitlines()) == 5
        assert watching.said.count("need tables, which are missing or old in schema pgconcert: pgconcert schema") == 1
        for line in watching.said.splitlines():
            assert datetime.fromisoformat(line.split("  ")[0]).tzinfo


def test_what_is_not_there_is_said_once(database: str) -> None:
    with (
        connect(database, "one") as one,
        running("watch", "x", "--url", database, "--all-databases", *FAST) as watching,
    ):
        watching.expect("nobody holds or waits for x in any database\n")
        advisory(one, "lock", KEYS.key("x").value)
        watching.expect(rf"{one.info.dbname}  x  acquired  exclusive")
        watching.signal(signal.SIGTERM)
        assert watching.end() == 143
    assert watching.said.count("nobody") == 1


@pytest.mark.faults
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_restart_of_the_server_is_survived(own_server: OwnServer, terminal: bool) -> None:
    with (on_terminal if terminal else running)("watch", "--url", own_server.tcp_url, *FAST) as watching:
        with connect(own_server.url, "before") as one:
            advisory(one, "lock", 42)
            watching.expect("before")
            with own_server.down():
                watching.expect("the server is away")
        if not terminal:
            watching.expect("the server is back\n")
            watching.expect(r"42  released  exclusive  pid \d+  before")
        with connect(own_server.url, "after") as one:
            advisory(one, "lock", 42)
            watching.expect("after")
            watching.signal(signal.SIGINT)
            assert watching.end() == 130


def test_a_terminal_shows_a_table_until_q(database: str) -> None:
    with connect(database, "one") as one:
        advisory(one, "lock", 42)
        with on_terminal("watch", "--url", database, *FAST) as watching:
            watching.expect("session since")
            watching.expect("one")
            advisory(one, "unlock", 42)
            watching.expect("no advisory lock is held or waited for")
            watching.type("q")
            assert watching.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_a_terminal_is_left_as_it_was(database: str, number: signal.Signals, code: int) -> None:
    with on_terminal("watch", "--url", database, *FAST) as watching:
        watching.expect("no advisory lock")
        assert not watching.echoes()
        watching.signal(number)
        assert watching.end() == code
        assert watching.echoes()


def test_ctrl_c_on_the_keyboard(database: str) -> None:
    with on_terminal("watch", "--url", database, *FAST) as watching:
        watching.expect("no advisory lock")
        watching.type("\x03")
        assert watching.end() == 130
    assert "Traceback" not in watching.said


def test_more_locks_than_lines_is_said(database: str) -> None:
    with connect(database, "one") as one:
        for key in range(30):
            advisory(one, "lock", key)
        with on_terminal("watch", "--url", database, *FAST, rows=16) as watching:
            watching.expect("and 21 more, for which the terminal has no room")
            watching.type("q")
            assert watching.end() == 0


def test_a_closed_keyboard_does_not_end_it(database: str) -> None:
    """Without a terminal on its input it goes on until a signal."""
    with running("watch", "--url", database, *FAST) as watching:
        watching.expect("no advisory lock")
        with connect(database, "one") as one:
            advisory(one, "lock", 42)
            watching.expect("42  acquired")
        watching.signal(signal.SIGINT)
        assert watching.end() == 130


def test_the_first_look_must_succeed() -> None:
    done = run("watch", "--url", "postgresql://ann:hunter2@127.0.0.1:1/x")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the server cannot be reached: ")
    assert "hunter2" not in done.stderr


def test_a_refused_look_is_shown_and_tried_again(server: Server, database: str) -> None:
    server.execute("create role dim login password 'x'")
    with connect(database, "owner") as owner:
        try:
            url = rewrite(server.over_tcp(database), user="dim", password="x")
            with running("watch", "--url", url, *FAST) as watching:
                watching.expect("no advisory lock")
                owner.execute("revoke select on pg_catalog.pg_locks from public")
                watching.expect("the server refuses, and is asked again: the locks cannot be listed: permission denied")
                owner.execute("grant select on pg_catalog.pg_locks to public")
                watching.expect("the server is back")
        finally:
            owner.execute("grant select on pg_catalog.pg_locks to public")
            server.execute("drop role dim")


@pytest.mark.parametrize("interval", ["0", "3601", "often"])
def test_a_strange_interval_is_refused(interval: str) -> None:
    done = run("watch", "--interval", interval)
    assert done.returncode == 2
    assert re.search("--interval.*" + re.escape(interval), done.stderr)
