"""`pgconcert run` and `pgconcert lead` under test: a running one that can be talked to, one that has ended, a command
that tells of itself.

Here live helpers without assertions of their own. Theory: what is waited for is said by the command on its standard
output, or seen in `/proc` and on the server; nothing is guessed from time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psycopg

from pgconcert.keys import KeySpace
from pgconcert.postgres.operator import Operator
from pgconcert.testing import AdvisoryLock, advisory_locks, eventually
from tests.processes import Worker

PROGRAM = "from pgconcert.cli import main; main()"

TALKER = """
import os, signal, sys

def heard(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())

code, *names = sys.argv[1:]
for name in names:
    signal.signal(getattr(signal, name), heard)
os.write(1, f"ready {os.getpid()}\\n".encode())
sys.stdin.read()
sys.exit(int(code))
"""
"""It says "ready" and its number, names the signals it gets, and ends with a code when its standard input ends."""

WITH_TRAP = 'trap : INT TERM HUP QUIT USR1 USR2; "$@"; exit $?'
"""A shell between us and the command, which outlives the signals; its child is then a grandchild of ours."""


def talker(code: int, *signals: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", TALKER, str(code), *signals]


def behind_shell(*command: str) -> list[str]:
    return ["sh", "-c", WITH_TRAP, "sh", *command]


def finished(
    *arguments: str, said: str = "", command: str = "run", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`pgconcert run` (or another command) with these arguments, at its end."""
    unwanted = {"PGCONCERT_URL", "DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"} - {*environment}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, command, *arguments],
        input=said, capture_output=True, text=True, timeout=30, env=kept | {"COLUMNS": "100"} | environment,
    )  # fmt: skip


class Running(Worker):
    """`pgconcert run` (or another command) with these arguments, running; see `Worker` for how it is talked to."""

    def __init__(self, *arguments: str, command: str = "run") -> None:
        super().__init__(PROGRAM, command, *arguments)

    def errors(self) -> str:
        """What is on its standard error so far."""
        return os.pread(self._errors.fileno(), 65536, 0).decode()

    def end_input(self) -> None:
        """Close the standard input that it shares with the command."""
        self._to.close()

    def close_output(self) -> None:
        """Read no more of what it says."""
        self._from.close()

    def guard(self) -> int:
        """The number of the guard, which is its only child."""
        return guard_of(self.pid)


def children_of(pid: int) -> list[int]:
    """The child processes of a process with one thread."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def guard_of(master: int) -> int:
    """The number of the guard, which is the only child of `pgconcert run`."""
    (pid,) = children_of(master)
    return pid


def state(pid: int) -> str:
    """The letter of the kernel for what a process does; empty when it is no more (or dead and not yet collected)."""
    with suppress(OSError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return letter.replace("Z", "")
    return ""


def locks_of(url: str, key: int | str, namespace: str = "") -> list[AdvisoryLock]:
    """The granted locks of a key."""
    value = KeySpace(namespace).key(key).value
    return [lock for lock in advisory_locks(url) if lock.key == value and lock.granted]


def until_free(url: str) -> None:
    """Wait until no advisory lock of any kind is left on the database."""
    eventually(lambda: not advisory_locks(url), what="nothing is left in pg_locks")


def until_waited_for(url: str) -> None:
    """Wait until somebody has marked interest in a key."""
    eventually(lambda: any(isinstance(lock.key, tuple) for lock in advisory_locks(url)), what="somebody waits")


def is_free(url: str, key: str) -> bool:
    """Whether somebody else would get the key now."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("select pg_try_advisory_lock(%s)", (KeySpace().key(key).value,)).fetchone()
    return row == (True,)


def end_session(url: str, key: str) -> None:
    """End the server session that holds a key."""
    (lock,) = locks_of(url, key)
    with Operator(url) as operator:
        assert operator.end_session(lock.pid)


def until_dead(*pids: int) -> None:
    eventually(lambda: not any(map(state, pids)), what=f"{pids} are dead")
