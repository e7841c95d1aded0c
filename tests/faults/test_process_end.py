"""A process ends with holds out, in any way: its locks are free, and it says nothing that is not its own.

Theory: the kernel closes what an ending process leaves, so the server frees everything. What can go wrong is noise:
tasks "destroyed but pending", exceptions nobody retrieved, tracebacks of finalisers. So standard error is compared as a
whole with what the program itself wants to say.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from pgconcert.testing import eventually, sessions
from tests.processes import spawn
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

PROGRAM = """
import asyncio, os, sys, warnings
from pgconcert import AsyncCoordinator

async def main(url, engine, end):
    c = AsyncCoordinator(url, engine=engine)
    await c.open()
    other = AsyncCoordinator(url, engine=engine)
    await other.open()
    hold = await c.lock("one").acquire()
    async def wait():
        async with other.lock("one"):
            pass
    waiting = asyncio.create_task(wait())
    while not any(link.role == "listen" and link.state == "ready" for link in other.health().links):
        await asyncio.sleep(0.01)
    {scope}
        print("holds", flush=True)
        {end}

{run}
print("after", flush=True)
"""
IN_SCOPE = "async with c.lock('two'):"
NO_SCOPE = "kept = await c.lock('two').acquire()\n    if True:"
RUN = "asyncio.run(main(sys.argv[1], sys.argv[2], None))"

BY_ITSELF = {
    # what the body does at its end, exit code, last line of standard error
    "return": ("return", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "error": ("raise RuntimeError('of the program')", 1, "RuntimeError: of the program"),
    "os._exit": ("os._exit(4)", 4, ""),
}


@contextmanager
def program(source: str, url: str, engine: Engine) -> Iterator[subprocess.Popen[bytes]]:
    """It runs with every warning shown, those of finalisers too."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-u", "-W", "default", "-c", source, url, engine]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def everything_is_free(url: str) -> None:
    eventually(lambda: not sessions(url), what="no session is left")


def last_line(errors: bytes) -> str:
    lines = errors.decode().strip().splitlines()
    return lines[-1] if lines else ""


def tracebacks(errors: bytes) -> int:
    return errors.count(b"Traceback")


@pytest.mark.parametrize(("scope", "engine"), [("scope", "loop"), ("scope", "thread"), ("bare hold", "loop")])
@pytest.mark.parametrize("end", BY_ITSELF)
def test_a_program_that_ends_by_itself(server: Server, database: str, end: str, scope: str, engine: Engine) -> None:
    statement, code, last = BY_ITSELF[end]
    source = PROGRAM.format(scope=IN_SCOPE if scope == "scope" else NO_SCOPE, end=statement, run=RUN)
    with program(source, database, engine) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors.decode()
    assert said.decode().split() == (["holds", "after"] if end == "return" else ["holds"])
    assert last_line(without_reports(errors)) == last, errors.decode()
    assert tracebacks(errors) == (1 if last else 0), errors.decode()
    everything_is_free(database)


def without_reports(errors: bytes) -> bytes:
    """A hold that the program left out is reported, in one line; that is a promise, not noise."""
    report = re.compile(rb"^(.*was dropped without release.*|'(one|two)' was lost: .*)?$")
    return b"\n".join(line for line in errors.splitlines() if not report.match(line))


@both_engines
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
def test_a_program_that_gets_a_signal(server: Server, database: str, how: signal.Signals, engine: Engine) -> None:
    source = PROGRAM.format(scope=IN_SCOPE, end="await asyncio.sleep(60)", run=RUN)
    with program(source, database, engine) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holds\n"
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == -how
    errors = without_reports(errors)
    if how is signal.SIGINT:
        assert last_line(errors) == "KeyboardInterrupt"
        # asyncio's own two: the cancelled task, and the interrupt that came of it
        assert tracebacks(errors) == 2, errors.decode()
    else:
        assert errors == b""
    everything_is_free(database)
