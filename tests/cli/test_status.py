"""``pgconcert status`` of locks: who holds, who waits, what a role may see, and the exit codes that scripts ask for.

Nobody has made our tables here; what stands in them is the affair of ``test_status_sessions.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from pgconcert import AsyncCoordinator
from pgconcert.keys import KeySpace, agreement_pair, gate_pair, interest_pair, slot_pair
from pgconcert.testing import advisory_locks, eventually, eventually_async, rewrite
from tests.cli.shell import LIMIT, on_terminal, run
from tests.poolers import PgBouncer
from tests.servers import Server, private_folder

KEYS = KeySpace()
NO_TABLES = (
    "job locks, elections, groups and runners need tables, which are missing or old in schema pgconcert: "
    "pgconcert schema apply"
)


@contextlib.contextmanager
def somebody(url: str, name: str = "app@host:1 pgconcert-lock") -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True, application_name=name, prepare_threshold=None) as connection:
        yield connection


def take(connection: psycopg.Connection[Any], what: int | tuple[int, int], *, shared: bool = False) -> None:
    values = [what] if isinstance(what, int) else what
    function = "pg_advisory_lock_shared" if shared else "pg_advisory_lock"
    connection.execute(f"select {function}({', '.join(map(str, values))})".encode())


def status(url: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and locks of ``--json``."""
    done = run("status", "--url", url, "--json", *arguments)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["version"] == 1
    return done.returncode, answer["locks"]


async def test_locks_of_coordinators(database: str, unique: str) -> None:
    """Exclusive, shared and permits, held and waited for, under the names that the programs use."""
    letter, gpu = f"letter:{unique}", f"gpu:{unique}"
    async with AsyncCoordinator(database, name="one") as one, AsyncCoordinator(database, name="two") as two:
        async with (
            one.lock(letter, shared=True) as reading,
            one.semaphore(gpu, 1) as hold,
            two.lock("other", shared=True),
        ):
            waiting = [
                asyncio.create_task(two.lock(letter).acquire()),
                asyncio.create_task(two.semaphore(gpu, 1).acquire()),
            ]
            key = KEYS.key(letter).value
            signs = {interest_pair(key), gate_pair(key), interest_pair(KEYS.semaphore(gpu, 1).value)}
            await eventually_async(
                lambda: signs <= {lock.key for lock in advisory_locks(database)}, LIMIT, what="both wait"
            )
            code, locks = await asyncio.to_thread(status, database, letter, gpu, "other")
            await reading.release()
            await hold.release()
            for task in waiting:
                await (await task).release()
    assert code == 0
    assert [(lock["key"], lock["mode"], lock["role"], lock["application"].partition("@")[0]) for lock in locks] == [
        (f"{gpu} (semaphore, slot 0 of 1)", "permit", "held", "one"),
        (f"{gpu} (semaphore)", "permit", "waiting", "two"),
        (letter, "shared", "held", "one"),
        (letter, "exclusive", "waiting", "two"),
        ("other", "shared", "held", "two"),
    ]
    assert not any("pgconcert-" in lock["application"] for lock in locks)
    assert await asyncio.to_thread(status, database, letter, gpu) == (3, [])


def test_the_table(database: str) -> None:
    with somebody(database) as one, somebody(database, "two") as two:
        letter = KEYS.key("letter").value
        take(one, letter)
        take(two, interest_pair(letter), shared=True)
        take(two, gate_pair(letter))
        take(two, 42, shared=True)
        done = run("status", "--url", database)
        assert done.returncode == 0, done.stderr
        header, *lines, last = done.stdout.splitlines()
        assert last == NO_TABLES
        assert header.split("  ")[0] == "key"
        rows = [line.split()[:5] for line in lines]
        pids = [str(one.info.backend_pid), str(two.info.backend_pid)]
        assert rows == [
            ["42", "shared", "held", pids[1], "two"],
            [str(letter), "exclusive", "held", pids[0], "app@host:1"],
            [str(letter), "exclusive", "waiting", pids[1], "two"],
        ]
        named = run("status", "--url", database, "letter", "nobody").stdout.splitlines()
        assert [line.split()[0] for line in named[1:3]] == ["letter", "letter"]
        assert named[3].startswith("nobody holds or waits for nobody in database pgconcert_test_")


def test_a_semaphore_as_it_is_used(database: str) -> None:
    gpu = KEYS.semaphore("gpu", 4).value
    with somebody(database) as one, somebody(database, "two") as two:
        take(one, slot_pair(gpu, 2))
        for each in (one, two):
            take(each, agreement_pair(gpu, 4), shared=True)
        take(two, interest_pair(gpu), shared=True)
        code, (held, waiting) = status(database, "gpu")
        assert code == 0
        assert (held["key"], held["slot"], held["permits"]) == ("gpu (semaphore, slot 2 of 4)", 2, 4)
        assert (waiting["key"], waiting["mode"], waiting["role"]) == ("gpu (semaphore)", "permit", "waiting")
        assert held["number"] == str(gpu % 2**50)


def test_a_blocked_session_of_another_program(database: str) -> None:
    with somebody(database, "one") as one, somebody(database, "two") as two:
        take(one, (7, 8))
        blocked = threading.Thread(target=take, args=(two, (7, 8)))
        blocked.start()
        eventually(lambda: any(not lock.granted for lock in advisory_locks(database)), LIMIT, what="two is blocked")
        _, (held, waiting) = status(database)
        take_back = one.execute("select pg_advisory_unlock(7, 8)").fetchone()
        blocked.join()
        assert take_back == (True,)
        assert (held["key"], held["pair"], held["application"], held["role"]) == ("(7, 8)", [7, 8], "one", "held")
        assert (waiting["key"], waiting["application"], waiting["role"]) == ("(7, 8)", "two", "waiting")


def test_every_field_for_programs(server: Server, database: str) -> None:
    with somebody(server.over_tcp(database)) as one:
        take(one, KEYS.key("letter").value)
        done = run("status", "--url", database, "--json", "letter")
        answer = json.loads(done.stdout)
        (lock,) = answer.pop("locks")
        assert datetime.fromisoformat(answer.pop("time")).tzinfo
        kinds = ("sessions", "job_locks", "elections", "groups", "runners")
        nothing: dict[str, list[object]] = {each: [] for each in kinds}
        named = {"version": 1, "database": one.info.dbname, "namespace": "", "trouble": NO_TABLES}
        assert answer == named | nothing
        assert datetime.fromisoformat(lock.pop("session_since")).tzinfo
        assert lock.pop("client") == "127.0.0.1"
        assert lock == {
            "database": one.info.dbname,
            "kind": "lock",
            "key": "letter",
            "name": "letter",
            "number": str(KEYS.key("letter").value),
            "pair": None,
            "slot": None,
            "permits": None,
            "mode": "exclusive",
            "role": "held",
            "pid": one.info.backend_pid,
            "application": "app@host:1",
            "user": one.info.user,
        }


def test_a_plain_role_sees_who_but_not_from_where(server: Server, database: str) -> None:
    server.execute("create role plain login password 'x'")
    try:
        with somebody(database) as one:
            take(one, 42)
            url = rewrite(server.over_tcp(database), user="plain", password="x")
            _, (lock,) = status(url)
            assert (lock["pid"], lock["application"]) == (one.info.backend_pid, "app@host:1")
            assert (lock["client"], lock["session_since"]) == (None, None)
            line = run("status", "--url", url).stdout.splitlines()[1]
            assert line.split()[-2:] == ["-", "-"]
    finally:
        server.execute("drop role plain")


def test_other_databases(server: Server, database: str) -> None:
    with server.fresh_database() as other, somebody(other) as one:
        take(one, 42)
        assert status(database)[1] == []
        _, locks = status(database, "--all-databases")
        assert (one.info.dbname, "42") in [(lock["database"], lock["key"]) for lock in locks]
        lines = run("status", "--url", database, "--all-databases", "42").stdout.splitlines()
        assert lines[0].startswith("database ")
        assert lines[1].startswith(one.info.dbname)
        assert "for x in any database" in run("status", "--url", database, "--all-databases", "x").stdout


@pytest.mark.parametrize(("names", "code"), [((), 0), (("a",), 0), (("b",), 3), (("b", "a"), 0), (("waited",), 3)])
def test_exit_codes_answer_whether_it_is_held(database: str, names: tuple[str, ...], code: int) -> None:
    with somebody(database) as one:
        take(one, KEYS.key("a").value)
        take(one, interest_pair(KEYS.key("waited").value), shared=True)
        assert run("status", "--url", database, *names).returncode == code


def test_no_locks_is_a_sentence(database: str) -> None:
    done = run("status", "--url", database)
    assert done.returncode == 0
    assert done.stdout.startswith("no advisory lock is held or waited for in database pgconcert_test_")


def test_a_namespace(database: str) -> None:
    with somebody(database) as one:
        take(one, KeySpace("billing").key("a").value)
        assert status(database, "a")[0] == 3
        code, (lock,) = status(database, "--namespace", "billing", "a")
        assert (code, lock["name"]) == (0, "a")


def test_the_environment_gives_the_address(database: str) -> None:
    for variable in ("PGCONCERT_URL", "DATABASE_URL"):
        assert run("status", **{variable: database}).returncode == 0


def test_a_long_key_is_not_cut(database: str) -> None:
    name = "long:" + "z" * 300
    with somebody(database) as one:
        take(one, KEYS.key(name).value)
        assert name in run("status", "--url", database, name, COLUMNS="60").stdout
        with on_terminal("status", "--url", database, name, columns=60) as running:
            assert running.end() == 0
        assert running.said.count("z") == 300


def test_on_a_terminal(database: str) -> None:
    with somebody(database, "an app [bold]") as one:
        take(one, 42)
        with on_terminal("status", "--url", database) as running:
            assert running.end() == 0
        assert "session since" in running.said
        assert f"{one.info.backend_pid}" in running.said
        assert "an app [bold]" in running.said


@pytest.mark.needs("pgbouncer")
def test_through_a_transaction_pooler(database: str, pgbouncer: Any) -> None:
    pooler: PgBouncer = pgbouncer("transaction", pool_size=1)
    with somebody(database) as one:
        take(one, 42)
        assert status(pooler.url, "42")[0] == 0


def test_an_embedded_server_that_is_named() -> None:
    """It is started, asked and stopped; nothing of the kind happens without the word."""
    folder = private_folder()
    try:
        done = run("status", "--url", f"embedded://{folder}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"no advisory lock is held or waited for in database postgres\n{NO_TABLES}\n"
        eventually(lambda: not list(folder.rglob("postmaster.pid")), LIMIT, what="the server is gone")
    finally:
        shutil.rmtree(folder)


def test_an_embedded_server_that_cannot_be() -> None:
    done = run("status", "--url", "embedded://relative/folder")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "embedded:///" in done.stderr


def test_without_an_address_it_says_where_to_put_one() -> None:
    done = run("status")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no database address: ")
    assert "PGCONCERT_URL" in done.stderr


def test_a_server_that_is_not_there() -> None:
    done = run("status", "--url", "postgresql://ann:hunter2@127.0.0.1:1/x")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: the server cannot be reached: ")
    assert "\t" not in line
    assert "hunter2" not in line


def test_an_address_that_is_none() -> None:
    done = run("status", "--url", "postgresql://ann:hunter2@[broken/x")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the database address, a URL of ")
    assert "hunter2" not in done.stderr


def test_a_name_that_can_be_no_lock() -> None:
    done = run("status", "--url", "postgresql://127.0.0.1:1/x", "")
    assert done.returncode == 1
    assert done.stderr == "Error: a lock key cannot be the empty text\n"


def test_a_server_that_refuses_to_answer(server: Server, database: str) -> None:
    server.execute("create role blind login password 'x'")
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("revoke select on pg_catalog.pg_locks from public")
        try:
            done = run("status", "--url", rewrite(server.over_tcp(database), user="blind", password="x"))
        finally:
            owner.execute("grant select on pg_catalog.pg_locks to public")
            server.execute("drop role blind")
    assert done.returncode == 1
    assert done.stderr == "Error: the locks cannot be listed: permission denied for view pg_locks\n"


def test_help_has_examples_and_exit_codes() -> None:
    said = run("status", "--help").stdout
    assert "pgconcert status invoice:42 report" in said
    assert "3 if none is" in said
