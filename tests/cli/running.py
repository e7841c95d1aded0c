"""`pgconcert run` and `pgconcert lead` under test: a running one that can be talked to, one that has ended, a command
that tells of itself.

Here live helpers without assertions of their own. Theory: what is waited for is said by the command on its standard
output, or seen in `/proc` and on the server; nothing is guessed from time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from pgconcert.keys import KeySpace
from pgconcert.postgres.operator import Operator
from pgconcert.testing import AdvisoryLock, advisory_locks, eventually
from tests import nursery
from tests.cli.shell import LIMIT
from tests.processes import Worker

PROGRAM = "from pgconcert.cli import main; main()"

TALKER = """
import os, select, signal, sys

code, *names = sys.argv[1:]
# a handler in Python misses a signal that comes right before a long call; the interpreter's own writes each of them
awake, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
for name in names:
    signal.signal(getattr(signal, name), lambda number, frame: None)
os.write(1, f"ready {os.getpid()}\\n".encode())
while True:
    ready, _, _ = select.select([awake, 0], [], [])
    if awake in ready:
        for number in os.read(awake, 64):
            os.write(1, f"{signal.Signals(number).name}\\n".encode())
    elif not os.read(0, 4096):
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
    return nursery.run(
        [sys.executable, "-c", PROGRAM, command, *arguments],
        said=said, text=True, timeout=LIMIT, env=kept | {"COLUMNS": "100"} | environment,
    )  # fmt: skip


def in_vain(
    *arguments: str, command: str = "run", wait: float | None = None, holder: str
) -> subprocess.CompletedProcess[str]:
    """A call that does not get what it wants, because of somebody whom it names. Its time is asserted by the caller.

    When its time is over it asks who is in the way, for a quarter of a second, and a call whose time is over before it
    has a connection asks nobody. So on a busy machine a call may end without a name, which is lawful: then it is made
    again, with twice the time, if it has any.
    """
    end = time.monotonic() + LIMIT
    while True:
        waits = () if wait is None else ("--wait", f"{wait:g}")
        done = finished(*waits, *arguments, command=command)
        assert done.returncode == 75, done.stderr
        limit = 0.0 if wait is None else wait
        assert f" was not acquired within {limit:g} s; " in done.stderr
        if f"held by {holder}" in done.stderr:
            return done
        assert time.monotonic() < end, done.stderr
        wait = wait and wait * 2


@contextmanager
def waiting(*arguments: str, command: str = "run", holder: str) -> Iterator[Running]:
    """A call that has said for whom it waits. It is made again while it could not find out in time, as with
    ``in_vain``."""
    end = time.monotonic() + LIMIT
    while True:
        with Running("-v", *arguments, command=command) as running:
            running.until_said("\n")
            said = running.errors()
            if f"held by {holder}" in said:
                yield running
                return
        assert time.monotonic() < end, said


class Running(Worker):
    """`pgconcert run` (or another command) with these arguments, running; see `Worker` for how it is talked to."""

    def __init__(self, *arguments: str, command: str = "run") -> None:
        super().__init__(PROGRAM, command, *arguments)

    def expect(self, prefix: str, limit: float = LIMIT) -> str:
        return super().expect(prefix, limit)

    def wait(self, limit: float = LIMIT) -> int:
        return super().wait(limit)

    def errors(self) -> str:
        """What is on its standard error so far."""
        return os.pread(self._errors.fileno(), 65536, 0).decode()

    def until_said(self, text: str) -> None:
        """Wait until its standard error has a text."""
        eventually(lambda: text in self.errors() or self.returncode is not None, LIMIT, what=f"it says {text!r}")
        assert text in self.errors(), self.errors()

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
    eventually(lambda: not advisory_locks(url), LIMIT, what="nothing is left in pg_locks")


def until_waited_for(url: str) -> None:
    """Wait until somebody has marked interest in a key."""
    eventually(lambda: any(isinstance(lock.key, tuple) for lock in advisory_locks(url)), LIMIT, what="somebody waits")


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
    eventually(lambda: not any(map(state, pids)), LIMIT, what=f"{pids} are dead")
