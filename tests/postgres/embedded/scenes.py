"""What the tests of the embedded server share: other processes that use it, and a look at the system from outside.

Here live helpers without assertions about the server; the fixtures that make its folder stand in `conftest.py`.

Theory: what the server and its reaper are is read from /proc, not from the files they write, so a file that lies is
seen as one. Whatever a test starts belongs to a folder; with the folder it ends, also when the test has failed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import quote

import psycopg
import pytest

from pgconcert import testing
from pgconcert.postgres.embedded import reaper as embedded_reaper

ROOT: Final = os.geteuid() == 0
only_root = pytest.mark.skipif(not ROOT, reason="needs root")

# A user in a process of its own: says its address, leaves when told to, and does not care about Ctrl-C.
USER: Final = """
import os, signal, sys
from pgconcert.postgres.embedded import EmbeddedServer
server = EmbeddedServer.start(sys.argv[1])
# Not print: the signal may come while the address is still being printed.
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
print(server.url, flush=True)
sys.stdin.readline()
server.stop()
"""


def eventually(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    testing.eventually(condition, seconds, what=what)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, FileNotFoundError):
        return False


def postmaster(folder: Path) -> int:
    return int(embedded_reaper.recorded(folder / "cluster")[0])


def processes(folder: Path) -> dict[int, str]:
    """The server's processes and the reaper of one folder, each with what it is."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if b"reap" in command and os.fsencode(folder / "cluster") in command:
                found[int(entry.name)] = "reaper"
            elif (entry / "cwd").readlink() == folder / "cluster" / "data":
                found[int(entry.name)] = "server"
    return found


def reaper(folder: Path) -> int:
    """Its number, once it sleeps or is about to: it has opened all its files, and was a shell a moment before."""

    def ready() -> list[int]:
        reapers = [pid for pid, what in processes(folder).items() if what == "reaper"]
        return [pid for pid in reapers if str(folder / "cluster" / "gate.lock") in opened(pid)]

    eventually(ready, "the reaper is at work")
    (pid,) = ready()
    return pid


def opened(pid: int) -> set[str]:
    """The files that a process has open, none if it has ended."""
    found: set[str] = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(str(entry.readlink()))
    return found


def address(folder: Path) -> str:
    return f"embedded://{quote(str(folder))}"


def ask(url: str, statement: str = "SELECT 42", *, autocommit: bool = False) -> Any:
    """The first value that the server answers, if it answers with any."""
    with psycopg.connect(url, autocommit=autocommit) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


@contextlib.contextmanager
def cleared(folder: Path) -> Iterator[Path]:
    """A folder after which nothing runs, even when the test has failed."""
    try:
        yield folder
        for user in User.of.pop(folder, []):
            user.kill()
        eventually(lambda: not processes(folder), "the server and its reaper are gone")
    finally:
        for pid in processes(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


class User:
    """Another process that uses the server; it is ended with its folder at the latest."""

    of: ClassVar[dict[Path, list[User]]] = {}

    def __init__(self, folder: Path, code: str = USER, **options: Any) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", code, address(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.of.setdefault(folder, []).append(self)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=30)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
