"""`pgconcert worker` under test: functions in a file of its own, a worker that has a session.

Here live helpers without assertions of their own. Theory: what a function did it writes to standard output, which it
shares with the command, and the command itself writes to standard error only.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests import nursery
from tests.cli.holding import execute
from tests.cli.messages import Listener
from tests.cli.shell import LIMIT, environment

FUNCTIONS = """
import asyncio, os, sys, threading, time

def say(text):
    os.write(1, (text + "\\n").encode())

async def batch(tasks):
    say(f"batch of {len(tasks)}")
    for task in tasks:
        say(f"{task.id} {task.text()} {task.attempt}")

def plain(tasks):
    say("plain " + " ".join(task.text() for task in tasks))
    return [task for task in tasks if task.text() != "not this"]

async def one(task):
    say(f"one {task.text()}")

def rows(tasks):
    for task in tasks:
        say(f"row {task.payload['name']}")

async def slow(tasks):
    say("begun")
    await asyncio.sleep(3600)

async def gated(tasks):
    say("begun")
    while not os.path.exists(tasks[0].text()):
        await asyncio.sleep(0.02)
    say("ended")

async def together(tasks):
    folder = tasks[0].text()
    open(os.path.join(folder, str(os.getpid())), "w").close()
    while len(os.listdir(folder)) < 2:
        await asyncio.sleep(0.02)

def stubborn(tasks):
    say("begun")
    time.sleep(3600)

def broken(tasks):
    raise RuntimeError("no good\\x1b[31m")

def leaves(tasks):
    sys.exit(7)

class Of:
    @staticmethod
    def here(tasks):
        say("here " + tasks[0].text())

async def generator(tasks):
    yield tasks

number = 7
"""


def folder_of_functions(folder: Path) -> Path:
    """A folder with the modules that the tests name."""
    (folder / "work.py").write_text(FUNCTIONS)
    (folder / "wrong.py").write_text("import no_such_thing\n")
    (folder / "raises.py").write_text("def f(): raise LookupError('oh')\nf()\n")
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    (folder / "shop" / "mail.py").write_text("from work import plain as send\n")
    return folder


def worker(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A worker at its end."""
    return nursery.run(
        [sys.executable, "-P", "-m", "pgconcert", "worker", *arguments],
        text=True, timeout=LIMIT, env=environment(), stdin=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip


@contextlib.contextmanager
def working(folder: Path, *arguments: str) -> Iterator[Listener]:
    """A worker that has a session."""
    with tempfile.TemporaryFile() as errors:
        process = nursery.Popen(
            [sys.executable, "-P", "-m", "pgconcert", "worker", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment(), cwd=folder,
        )  # fmt: skip
        try:
            one = Listener(process, errors)
            one.until_said("has session")
            yield one
        finally:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def states(url: str, queue: str) -> list[tuple[bool, bool, int]]:
    """Of each task in a queue that is not finished: is it somebody's, is it dead, its attempts so far."""
    rows = execute(
        url, "select session_id is not null, dead, attempt from pgconcert.task where queue = %s order by id", queue
    )
    return [(held, dead, attempt) for held, dead, attempt in rows]
