"""The checks after every test and the rules for missing programs, shown on tests that break them.

The broken tests run in a pytest of their own, on the same server.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import importing_tests
from tests.servers import Server

ROOT = Path(__file__).resolve().parents[2]

LEAKS = """
import asyncio, subprocess, threading, psycopg, pytest
import tests.conftest, tests.coroutines

tests.coroutines._GRACE = 0.3
kept = []

def keep(thing):
    tests.conftest.LEAK_LIMIT = 0.3  # it will not end
    kept.append(thing)
    return thing

def test_clean(database):
    tests.conftest.LEAK_LIMIT = 30.0  # it will
    with psycopg.connect(database) as connection:
        connection.execute("select pg_advisory_xact_lock(1)")

def test_thread():
    leave = keep(threading.Event())
    threading.Thread(target=leave.wait, name="lingering", daemon=True).start()

def test_process():
    keep(subprocess.Popen(["sleep", "60"]))

def test_session(database):
    keep(psycopg.connect(database, application_name="forgotten session"))

def test_lock(database):
    connection = keep(psycopg.connect(database, autocommit=True, application_name="forgotten lock"))
    connection.execute("select pg_advisory_lock(4711)")

async def test_task():
    keep(asyncio.create_task(asyncio.sleep(60), name="forgotten task"))

def test_that_fails_anyway(database):
    keep(psycopg.connect(database, application_name="unmentioned"))
    raise RuntimeError("the real cause")

def test_end():
    for thing in kept:
        getattr(thing, "kill", getattr(thing, "set", getattr(thing, "close", getattr(thing, "done", None))))()
"""

NEEDS = """
import pytest

@pytest.mark.needs("faketime")
def test_marked():
    pass

def test_asked(request):
    from tests.needs import need
    need(request.config, "faketime")
"""


@pytest.fixture
def run_pytest(tmp_path: Path) -> Callable[..., str]:
    def run(source: str, *args: str, **environment: str) -> str:
        test = tmp_path / "test_inner.py"
        test.write_text(source)
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml")]
        command += ["-p", "no:randomly", "-p", "no:cacheprovider", "-rA", "--tb=short", *args, str(test)]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=importing_tests() | environment,
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    return run


def test_what_is_left_behind_is_named(server: Server, run_pytest: Callable[..., str]) -> None:
    said = run_pytest(LEAKS, PGCONCERT_TEST_URL=server.url)
    summary = {
        line.split("::")[1].split("[")[0].split(" ")[0]: line for line in said.splitlines() if line.startswith("ERROR")
    }
    assert sorted(summary) == ["test_lock", "test_process", "test_session", "test_thread"], said
    assert "thread lingering" in said
    assert ": sleep 60" in said
    assert "(forgotten session)" in said
    assert "(forgotten lock) holds advisory ExclusiveLock 4711" in said
    assert "task forgotten task" in said
    assert "unmentioned" not in said.partition("short test summary")[2]
    assert "2 failed, 6 passed, 4 errors" in said


def test_a_missing_program_skips_and_names_its_package(run_pytest: Callable[..., str]) -> None:
    said = run_pytest(NEEDS, PATH="/nowhere")
    assert "2 skipped" in said
    assert "needs faketime: apt-get install faketime" in said


def test_with_require_all_a_missing_program_fails(run_pytest: Callable[..., str]) -> None:
    said = run_pytest(NEEDS, "--require-all", PATH="/nowhere")
    assert "needs faketime: apt-get install faketime" in said
    assert "skipped" not in said
    assert "1 failed, 1 error" in said
