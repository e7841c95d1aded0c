"""What `pgconcert status` and `watch` show of sessions, and of what hangs on them, and what they leave out."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pgconcert import AsyncCoordinator, QueueTasks, Task
from pgconcert.cli.session_changes import entry_changes
from pgconcert.cli.session_look import sort
from pgconcert.store import Entry, Kind, SessionInfo, Subject
from pgconcert.testing import rewrite
from tests.cli.holding import execute, let_expire, make_tables, until_waiting
from tests.cli.running import Running, talker
from tests.cli.shell import on_terminal, run, running
from tests.cli.working import folder_of_functions, working
from tests.servers import Server

TABLES = "job locks, elections, groups and runners need tables, which are missing or old in schema"


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


@pytest.fixture(autouse=True)
def _only_ours(database: str) -> None:
    """Groups stay, as do the rows of what was held once; each test has its own."""
    execute(database, "truncate pgconcert.entry, pgconcert.session, pgconcert.waiting, pgconcert.term")


async def status(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = await asyncio.to_thread(run, "status", "--json", *arguments)
    assert done.stderr == ""
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


async def shown(*arguments: str) -> dict[str, list[list[str]]]:
    """The plain tables by their first header; cells are two blanks apart."""
    done = await asyncio.to_thread(run, "status", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, list[list[str]]] = {}
    for block in done.stdout.split("\n\n"):
        rows = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in block.splitlines()]
        found[rows[0][0]] = rows
    return found


async def test_all_of_it(database: str) -> None:
    async with (
        AsyncCoordinator(database, name="one", data={"rack": 4}) as one,
        AsyncCoordinator(database, name="two") as two,
        one.job_lock("importer", data="ä") as hold,
        one.election("scheduler").lead() as leadership,
        one.group("workers", ttl=20).join(member_id="a", capabilities={"gpu": True}) as membership,
        two.group("workers").join(member_id="b"),
    ):
        await two.group("empty").create()
        waiting = asyncio.create_task(two.job_lock("importer").acquire())
        await asyncio.to_thread(until_waiting, database, "importer")
        await one.job_lock("importer").request_release()
        tables = await shown("--url", database)
        assert [*tables] == ["job lock", "election", "group", "session"]
        header, row = tables["job lock"]
        assert header == ["job lock", "held by", "since", "expires in", "token", "waiting", "release", "data"]
        assert row[0] == "importer"
        assert row[1].startswith("one (pid ")
        assert row[4:] == [str(hold.token), "1", "requested", '"\\u00e4"']
        header, row = tables["election"]
        assert header == ["election", "led by", "since", "expires in", "token", "waiting"]
        assert (row[0], row[4:]) == ("scheduler", [str(leadership.token), "0"])
        header, empty, a, b = tables["group"]
        assert header == ["group", "member", "process", "since", "expires in", "token", "capabilities"]
        assert empty == ["empty", *"------"]
        assert (a[:2], a[5:]) == (["workers", "a"], [str(membership.token), '{"gpu":true}'])
        assert (b[:2], b[6]) == (["workers", "b"], "-")
        header, *rows = tables["session"]
        assert header == ["session", "application", "pid", "host", "since", "ttl", "expires in", "holds", "data"]
        assert sorted((row[1], row[5], row[7], row[8]) for row in rows) == [
            ("one", "20 s", "1", '{"rack":4}'),
            ("one", "40 s", "2", '{"rack":4}'),
            ("two", "40 s", "1", "-"),
        ]
        await hold.release()
        await (await waiting).release()


async def test_every_field_for_programs(database: str) -> None:
    async with (
        AsyncCoordinator(database, name="one", namespace="n", data=[1]) as one,
        one.job_lock("importer", data={"a": 1}) as hold,
        one.group("workers").join(member_id="a", capabilities=7),
    ):
        code, answer = await status("--url", database)
        assert code == 0
        assert (answer["version"], answer["locks"], answer["trouble"]) == (1, [], None)
        (session,) = answer["sessions"]
        assert {*session} == {
            "id", "identity", "application", "host", "pid", "data", "ttl", "since", "expires_in", "holds"
        }  # fmt: skip
        assert (session["application"], session["data"], session["ttl"], session["holds"]) == ("one", [1], 40, 2)
        assert session["identity"] == one.identity
        assert datetime.fromisoformat(session["since"]).tzinfo
        (job,) = answer["job_locks"]
        assert {*job} == {"namespace", "name", "session", "since", "token", "data", "waiting", "release_requested"}
        assert job["session"].keys() == session.keys() - {"holds"}
        assert (job["namespace"], job["name"], job["token"]) == ("n", "importer", str(hold.token))
        assert (job["data"], job["waiting"], job["release_requested"]) == ({"a": 1}, 0, False)
        assert answer["elections"] == []
        (group,) = answer["groups"]
        assert (group["namespace"], group["name"]) == ("n", "workers")
        (member,) = group["members"]
        assert (member["member"], member["data"]) == ("a", 7)


async def test_runners(database: str) -> None:
    async def nothing(tasks: list[Task]) -> None:
        pass

    async with AsyncCoordinator(database, name="one") as one, AsyncCoordinator(database, name="two") as two:
        async with (
            one.runner("mail", nothing, QueueTasks("mail")) as first,
            two.runner("mail", nothing, QueueTasks("mail")) as second,
            two.runner("print", nothing, QueueTasks("print")),
        ):
            tables = await shown("--url", database)
            assert [*tables] == ["runner", "session"]
            header, *rows = tables["runner"]
            assert header == ["runner", "process", "since", "expires in", "session", "share"]
            ids = {first.session_id, second.session_id}
            assert {(row[0], int(row[4]), row[5]) for row in rows[:2]} == {("mail", each, "1 of 2") for each in ids}
            assert (rows[2][0], rows[2][5]) == ("print", "1 of 1")
            code, answer = await status("mail", "--url", database)
            assert (code, len(answer["runners"]), len(answer["sessions"])) == (0, 2, 2)
            seen = answer["runners"][0]
            assert (seen["name"], {int(each["session"]["id"]) for each in answer["runners"]}) == ("mail", ids)
            assert seen["member"]
        code, answer = await status("mail", "--url", database)
        assert (code, answer["runners"]) == (3, [])


async def test_namespaces_are_a_column_when_there_is_one(database: str) -> None:
    async with (
        AsyncCoordinator(database) as plain,
        AsyncCoordinator(database, namespace="billing") as billing,
        plain.job_lock("a"),
    ):
        assert (await shown("--url", database))["job lock"][0][:2] == ["job lock", "held by"]
        async with billing.job_lock("a"):
            header, *rows = (await shown("--url", database))["job lock"]
            assert header[:2] == ["job lock", "namespace"]
            assert [row[:2] for row in rows] == [["a", "-"], ["a", "billing"]]
            _, answer = await status("--namespace", "billing", "--url", database)
            assert [job["namespace"] for job in answer["job_locks"]] == ["billing"]
            assert len(answer["sessions"]) == 1


async def test_what_nobody_has_is_left_out(database: str) -> None:
    async with AsyncCoordinator(database) as c:
        async with c.job_lock("a"), c.election("b").lead(), c.group("c").join():
            pass
        await c.group("c").delete()
    done = await asyncio.to_thread(run, "status", "--url", database)
    assert done.stdout.startswith("no advisory lock is held or waited for in database pgconcert_test_")
    assert len(done.stdout.splitlines()) == 1
    assert execute(database, "select count(*) > 1 from pgconcert.entry") == [(True,)]


async def test_names_and_exit_codes(database: str) -> None:
    async with AsyncCoordinator(database) as c, c.job_lock("a"), c.group("g").join(), c.lock("l"):
        await c.group("empty").create()
        for names, code in (["a"], 0), (["g"], 0), (["l"], 0), (["x"], 3), (["x", "a"], 0), (["empty"], 3):
            done = await asyncio.to_thread(run, "status", *names, "--url", database)
            assert done.returncode == code
            missing = [line for line in done.stdout.splitlines() if line.startswith("nobody holds or waits for")]
            assert [line.split()[5] for line in missing] == (["x"] if "x" in names else [])
            assert ("job lock" in done.stdout) == ("a" in names)
        _, answer = await status("g", "--url", database)
        assert (answer["job_locks"], answer["locks"], len(answer["groups"])) == ([], [], 1)
        assert [session["holds"] for session in answer["sessions"]] == [2], "also what was not asked for"


async def test_missing_tables_are_one_line(database: str) -> None:
    async with AsyncCoordinator(database) as c, c.lock("l"):
        done = await asyncio.to_thread(run, "status", "--schema", "nowhere", "--url", database)
        assert (done.returncode, done.stderr) == (0, "")
        *_, lock, last = done.stdout.splitlines()
        assert " exclusive " in lock
        assert last == f"{TABLES} nowhere: pgconcert schema apply --schema nowhere"
        _, answer = await status("--schema", "nowhere", "--url", database)
        assert answer["trouble"] == last
        assert answer["sessions"] == answer["job_locks"] == answer["elections"] == answer["groups"] == []
        assert answer["runners"] == []


def test_a_role_without_rights_is_told_in_one_line(server: Server, database: str) -> None:
    server.execute("create role bare login password 'x'")
    try:
        done = run("status", "--url", rewrite(server.over_tcp(database), user="bare", password="x"))
        assert (done.returncode, done.stderr) == (0, "")
        first, last = done.stdout.splitlines()
        assert first.startswith("no advisory lock is held")
        assert last.startswith("job locks, elections, groups and runners cannot be seen: ")
    finally:
        server.execute("drop role bare")


def test_a_schema_that_can_be_none() -> None:
    done = run("status", "--schema", "", "--url", "postgresql://ann:hunter2@127.0.0.1:1/x")
    assert done.returncode == 1
    assert "hunter2" not in done.stderr


async def test_a_terminal_shows_hostile_texts_harmlessly(database: str) -> None:
    async with AsyncCoordinator(database, name="[bold]x") as c, c.job_lock("a\x1b[31mb\nc"):
        with on_terminal("status", "--url", database) as seen:
            assert await asyncio.to_thread(seen.end) == 0
    assert r"'a\x1b[31mb\nc'" in seen.said
    assert "[bold]x (pid " in seen.said


# watch


@pytest.mark.long
def test_a_line_for_each_change(database: str, tmp_path: Path) -> None:
    folder = folder_of_functions(tmp_path)
    with running("watch", "--url", database, "--interval", "0.05") as watching:
        watching.expect("no advisory lock")
        with Running("importer", "--url", database, "--", *talker(0), command="lead") as leader:
            watching.expect(rf"election importer  taken  token \d+  .* \(pid {leader.pid} on ")
            leader.expect("ready")
            leader.kill()
            let_expire(database, leader.pid)
        watching.expect(rf"election importer  lost  token \d+  .* \(pid {leader.pid} on ")
        job = ("--job", "j", "--namespace", "n", "--url", database)
        with Running(*job, "--", *talker(0)) as runner:
            watching.expect(rf"job lock j in namespace n  taken  token \d+  .* \(pid {runner.pid} on ")
            runner.end_input()
            assert runner.wait() == 0
        watching.expect("job lock j in namespace n  released  token")
        with working(folder, "work:batch", "--queue", "q", "--url", database) as worker:
            watching.expect(rf"runner q  taken  token \d+  work:batch \(pid {worker.process.pid} on ")
            worker.signal(signal.SIGTERM)
            assert worker.end() == 0
        watching.expect("runner q  gone  token")
        watching.signal(signal.SIGINT)
        assert watching.end() == 130
    for told in watching.said.splitlines():
        assert datetime.fromisoformat(told.split("  ")[0]).tzinfo


async def test_the_tables_on_a_terminal(database: str) -> None:
    async with AsyncCoordinator(database, name="one") as c:
        async with c.group("workers").join(member_id="first"):
            with on_terminal("watch", "workers", "--url", database, "--interval", "0.05", rows=24) as watching:
                await asyncio.to_thread(watching.expect, "first")
                watching.expect("expires in")
                others = [await c.group("workers").join(member_id=f"other {number}").acquire() for number in range(20)]
                await asyncio.to_thread(watching.expect, r"and \d+ more, for which the terminal has no room")
                watching.type("q")
                assert await asyncio.to_thread(watching.end) == 0
            for other in others:
                await other.leave()


# pure


def session(number: int) -> SessionInfo:
    return SessionInfo(
        id=number, uuid="u", host="h", pid=number, application="app", data=None, ttl=40, started=0, expires_in=30
    )


def entry(
    name: str, holder: int | None, token: int, kind: Kind = "job", *, given: bool = False, waiting: int = 0
) -> Entry:
    return Entry(
        subject=Subject(kind, "", name),
        session=None if holder is None else session(holder),
        token=token,
        since=1.0,
        data=None,
        given=given,
        release_requested=False,
        waiting=waiting,
    )


CHANGES = [
    ([], [], []),
    ([], [entry("a", 1, 7)], [("taken", 7)]),
    ([entry("a", None, 6)], [entry("a", 1, 7)], [("taken", 7)]),
    ([entry("a", 1, 7)], [entry("a", 1, 7)], []),
    ([entry("a", 1, 7)], [entry("a", None, 7, given=True)], [("released", 7)]),
    ([entry("a", 1, 7)], [entry("a", None, 7)], [("lost", 7)]),
    ([entry("a", 1, 7)], [], [("released", 7)]),
    ([entry("a", 1, 7)], [entry("a", 2, 8)], [("released", 7), ("taken", 8)]),
    ([entry("a", 1, 7)], [entry("a", 1, 9)], [("released", 7), ("taken", 9)]),
    ([entry("a", 1, 7, "runner")], [entry("a", None, 7, "runner")], [("gone", 7)]),
    ([entry("a", 1, 7, "runner")], [], [("gone", 7)]),
    ([entry("a", 1, 7), entry("b", None, 3)], [entry("a", None, 7), entry("b", 1, 4)], [("lost", 7), ("taken", 4)]),
]


@pytest.mark.parametrize(("before", "after", "told"), CHANGES)
def test_changes_between_two_looks(before: list[Entry], after: list[Entry], told: list[tuple[str, int]]) -> None:
    assert [(change.what, change.entry.token) for change in entry_changes(before, after)] == told


def test_what_is_waited_for_is_shown_though_nobody_has_it() -> None:
    seen = sort([session(1)], [entry("a", None, 7, waiting=1), entry("b", None, 7), entry("c", None, 1, "group")])
    assert [each.subject.name for each in seen.jobs] == ["a"]
    assert seen.groups == (("", "c"),)
    assert not seen.held
