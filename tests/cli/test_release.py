"""`pgconcert release` and `pgconcert revoke`: who is asked, who loses, which kind is meant, and the codes."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from pgconcert import AsyncCoordinator
from pgconcert.testing import rewrite
from tests.cli.holding import holder, make_tables
from tests.cli.shell import LIMIT, refused, run
from tests.servers import Server

DEAD = "postgresql://ann:hunter2@127.0.0.1:1/x"
BOTH = pytest.mark.parametrize("command", ["release", "revoke"])


@pytest.fixture(autouse=True, scope="module")
def _tables(database: str) -> None:
    make_tables(database)


async def ask(command: str, *arguments: str) -> tuple[int, str, str]:
    done = await asyncio.to_thread(run, command, *arguments)
    return done.returncode, done.stdout, done.stderr


async def test_a_release_is_asked_for_and_nothing_else(database: str, unique: str) -> None:
    async with AsyncCoordinator(database, name="importer") as c, c.job_lock(unique, interval=2) as hold:
        code, said, trouble = await ask("release", unique, "--url", database)
        assert (code, trouble) == (0, "")
        assert said.startswith(f"asked for the release of job lock '{unique}' (held by importer (pid ")
        assert said.endswith(f", token {hold.token})\n")
        await asyncio.wait_for(hold.wait_release_requested(), LIMIT)
        assert not hold.lost
        assert holder(database, unique) is not None


async def test_a_revoked_job_lock_is_lost(database: str, unique: str) -> None:
    async with AsyncCoordinator(database, name="importer") as c:
        hold = await c.job_lock(unique, interval=2).acquire()
        code, said, trouble = await ask("revoke", unique, "--url", database)
        assert (code, trouble) == (0, "")
        first, second = said.splitlines()
        assert first.startswith(f"revoked job lock '{unique}' (held by importer (pid ")
        assert first.endswith(f", token {hold.token}); whoever waits gets it now")
        assert second == "who had it learns so at its next heartbeat at the latest, and may work on until then"
        assert holder(database, unique) is None
        await asyncio.wait_for(hold.wait_lost(), LIMIT)


async def test_a_leader_loses_its_leadership(database: str, unique: str) -> None:
    async with AsyncCoordinator(database, name="scheduler") as c:
        leadership = await c.election(unique, interval=2).lead().acquire()
        code, said, _ = await ask("release", unique, "--url", database)
        assert code == 0
        assert said.startswith(f"asked for the release of election '{unique}' (led by scheduler (pid ")
        code, said, _ = await ask("revoke", unique, "--url", database)
        assert code == 0
        assert said.startswith(f"revoked election '{unique}' (led by scheduler (pid ")
        await asyncio.wait_for(leadership.wait_lost(), LIMIT)


@BOTH
async def test_a_name_of_both_kinds(database: str, unique: str, command: str) -> None:
    async with AsyncCoordinator(database) as c:
        hold = await c.job_lock(unique, interval=2).acquire()
        async with c.election(unique, interval=2).lead() as leadership:
            code, said, trouble = await ask(command, unique, "--url", database)
            assert (code, said) == (2, "")
            assert trouble.startswith(f"pgconcert: '{unique}' is a job lock (held by ")
            assert "), and an election (led by " in trouble
            assert trouble.endswith("): say which with --kind job or --kind election\n")
            assert (await ask(command, unique, "--kind", "job", "--url", database))[0] == 0
            assert not leadership.lost
            assert not leadership.release_requested
        await (hold.wait_lost() if command == "revoke" else hold.release())


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "nobody holds a job lock 'x:y', and nobody leads an election 'x:y'"),
        (("--kind", "job"), "nobody holds a job lock 'x:y'"),
        (("--kind", "election"), "nobody leads an election 'x:y'"),
        (("--namespace", "n"), "and nobody leads an election 'x:y' in namespace 'n'"),
    ],
)
def test_nobody_has_it(database: str, command: str, options: tuple[str, ...], said: str) -> None:
    done = run(command, "x:y", *options, "--url", database)
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{said}; pgconcert status shows what is there\n" in done.stderr


@BOTH
async def test_names_belong_to_a_namespace(database: str, unique: str, command: str) -> None:
    async with AsyncCoordinator(database, namespace="billing") as c:
        hold = await c.job_lock(unique, interval=2).acquire()
        assert (await ask(command, unique, "--url", database))[0] == 3
        assert (await ask(command, unique, "--namespace", "billing", "--url", database))[0] == 0
        await (hold.wait_lost() if command == "revoke" else hold.release())


async def test_of_two_kinds_the_one_that_somebody_has_is_meant(database: str, unique: str) -> None:
    async with AsyncCoordinator(database) as c:
        async with c.job_lock(unique, interval=2):
            pass
        leadership = await c.election(unique, interval=2).lead().acquire()
        code, said, _ = await ask("revoke", unique, "--url", database)
        assert (code, said.split(" (")[0]) == (0, f"revoked election '{unique}'")
        await asyncio.wait_for(leadership.wait_lost(), LIMIT)


# what goes wrong


@BOTH
def test_a_server_that_is_not_there(command: str) -> None:
    done = run(command, "x", "--url", DEAD)
    assert done.returncode == 69
    assert done.stderr.startswith("pgconcert: the server cannot be reached: ")
    assert "hunter2" not in done.stderr


@BOTH
def test_missing_tables(database: str, command: str) -> None:
    done = run(command, "x", "--schema", "nowhere", "--url", database)
    assert done.returncode == 78
    assert "pgconcert schema apply --schema nowhere" in done.stderr


@BOTH
def test_a_role_without_rights(server: Server, database: str, command: str) -> None:
    server.execute("create role poor login password 'x'")
    try:
        done = run(command, "x", "--url", rewrite(server.over_tcp(database), user="poor", password="x"))
        assert done.returncode == 78
        assert "grant" in done.stderr.lower()
        assert len(done.stderr.splitlines()) == 1
    finally:
        server.execute("drop role poor")


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "has 1 to 1000 encoded bytes"),
        (("x" * 1001,), "has 1 to 1000 encoded bytes"),
        (("x", "--kind", "group"), "'group' is not one of 'job', 'election'"),
        (("x", "--namespace", "n" * 201), "namespace has 201 bytes"),
        ((), "Missing argument 'NAME'"),
        (("x", "y"), "unexpected extra argument"),
    ],
)
def test_a_wrong_call(command: str, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(command, *arguments, "--url", DEAD)


@BOTH
def test_the_help_shows_examples_and_codes(command: str) -> None:
    text = run(command, "--help").stdout
    assert f"pgconcert {command} scheduler --kind election" in text
    for code in (2, 3, 69, 70, 78):
        assert f"\n    {code:>3}  " in text


async def test_a_holder_whose_row_is_locked_keeps_it(database: str, unique: str) -> None:
    """As by a guarded transaction that is under way: it is said, and nobody has lost anything."""
    async with AsyncCoordinator(database) as c, c.job_lock(unique, interval=2) as hold:
        with psycopg.connect(database) as guarding:
            guarding.execute("select from pgconcert.entry where name = %s for share", (unique,))
            code, said, trouble = await ask("revoke", unique, "--url", database)
            assert (code, said) == (69, "")
            assert "locked" in trouble
        assert not hold.lost
