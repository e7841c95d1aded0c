"""`pgconcert run` in the foreground of a terminal, as the job of an interactive shell.

Theory: the command shares our process group, or it could not read what is typed. So the terminal reaches it without us,
and what we pass on must not reach it twice; and at a loss the command and its descendants end, but not the group, which
is ours. The test's shell does what a real one does with one job; the screen is the other end of the terminal.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pgconcert.keys import KeySpace
from pgconcert.testing import eventually
from tests.cli.running import (
    PROGRAM,
    behind_shell,
    end_session,
    guard_of,
    is_free,
    state,
    talker,
    until_dead,
    until_free,
    until_waited_for,
)
from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SHELL = """
import os, signal, subprocess, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[2:], stdin=terminal, stdout=terminal, stderr=terminal, process_group=0)
os.tcsetpgrp(terminal, job.pid)
print("job", job.pid)
while True:
    status = os.waitpid(job.pid, os.WUNTRACED)[1]
    if not os.WIFSTOPPED(status):
        break
    os.tcsetpgrp(terminal, os.getpid())
    print("stopped")
    sys.stdin.readline()
    os.tcsetpgrp(terminal, job.pid)
    os.killpg(job.pid, signal.SIGCONT)
print("ended", os.waitstatus_to_exitcode(status))
job.returncode = 0
"""
"""As much of an interactive shell as has to do with one job in the foreground of a terminal."""


def pending(pid: int) -> int:
    """The signals of a process that it has not looked at yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("ShdPnd:")[2].split()[0], 16)


class Terminal:
    """A terminal with a shell that runs one job on it."""

    def __init__(self, *arguments: str) -> None:
        self._screen, follower = pty.openpty()
        try:
            command = [sys.executable, "-c", PROGRAM, "run", *arguments]
            self.shell = Worker(SHELL, os.ttyname(follower), *command)
            self.job = int(self.shell.expect("job"))
        finally:
            os.close(follower)
        self._shown = b""

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def expect(self, text: str, limit: float = 30.0) -> str:
        """Wait until the screen shows a text, and return what stands behind it in its line."""
        end = time.monotonic() + limit
        while True:
            before, found, after = self._shown.partition(text.encode())
            if found and b"\n" in after:
                line, _, self._shown = after.partition(b"\n")
                return line.decode().strip()
            ready = select.select([self._screen], [], [], max(0.0, end - time.monotonic()))[0]
            assert ready, f"the screen does not show {text!r} but {before!r}"
            self._shown += os.read(self._screen, 65536)

    def rest(self) -> str:
        """What is shown and was not asked for."""
        while select.select([self._screen], [], [], 0)[0]:
            try:
                self._shown += os.read(self._screen, 65536)
            except OSError:
                break  # nobody has it open any more
        return self._shown.decode()

    def close(self) -> None:
        self.shell.close()
        os.close(self._screen)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    running = Terminal(*arguments)
    try:
        yield running
    finally:
        running.close()


READER = ["sh", "-c", 'trap "" INT; echo "ready $$"; while read line; do echo "read: $line"; done']


def test_a_command_reads_from_the_terminal(database: str) -> None:
    with terminal("--lock", "a", "--url", database, "--", *READER) as screen:
        screen.expect("ready")
        screen.type("hello\n")
        screen.expect("read: hello")
        screen.type("\x04")
        assert screen.shell.expect("ended") == "0"


def test_ctrl_c_reaches_the_command_once(database: str) -> None:
    """The terminal has told it; we do not tell it again. What somebody else sends us we do pass on."""
    with terminal("--lock", "a", "--url", database, "--", *behind_shell(*talker(5, "SIGINT", "SIGQUIT"))) as screen:
        pid = int(screen.expect("ready"))
        for _ in range(3):
            screen.type("\x03")
            screen.expect("SIGINT")
            # two that come before the first is looked at are one, for the kernel
            eventually(lambda: not pending(screen.job) and not pending(guard_of(screen.job)))
        os.kill(screen.job, signal.SIGINT)
        screen.expect("SIGINT")
        screen.type("\x1c")
        screen.expect("SIGQUIT")
        assert state(pid)
        assert not is_free(database, "a")
        screen.type("\x04")
        assert screen.shell.expect("ended") == "5"
        assert "SIG" not in screen.rest()
    until_free(database)


def test_ctrl_c_while_it_waits(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", (KeySpace().key("a").value,))
        with terminal("--lock", "a", "--url", database, "--", "true") as screen:
            until_waited_for(database)
            screen.type("\x03")
            assert screen.shell.expect("ended") == "130"
            assert screen.rest().strip() in ("", "^C")


def test_ctrl_z_stops_the_job_and_fg_continues_it(database: str) -> None:
    with terminal("--lock", "a", "--url", database, "--", *READER) as screen:
        pid = int(screen.expect("ready"))
        screen.type("\x1a")
        screen.shell.expect("stopped")
        eventually(lambda: state(pid) == "T")
        assert not is_free(database, "a")
        screen.shell.send("fg")
        eventually(lambda: state(pid) != "T")
        screen.type("hello\n")
        screen.expect("read: hello")
        screen.type("\x04")
        assert screen.shell.expect("ended") == "0"


def test_a_loss_on_a_terminal_ends_the_family_and_nobody_else(database: str) -> None:
    """The shell ends by SIGTERM, its deaf child by SIGKILL; the group of the terminal is ours, and we live on."""
    script = '"$@" <&3 & exec 3<&-; echo "shell $$"; wait'
    command = ["sh", "-c", f"exec 3<&0; {script}", "sh", *talker(0, "SIGTERM")]
    with terminal("--lock", "a", "--grace", "0.3", "--url", database, "--", *command) as screen:
        shell, deaf = int(screen.expect("shell")), int(screen.expect("ready"))
        assert os.getpgid(deaf) == os.getpgid(shell) == screen.job
        end_session(database, "a")
        assert screen.shell.expect("ended") == "74"
        until_dead(shell, deaf)


def test_a_killed_master_on_a_terminal(database: str) -> None:
    with terminal("--lock", "a", "--grace", "0.3", "--url", database, "--", *talker(0, "SIGTERM")) as screen:
        pid = int(screen.expect("ready"))
        os.kill(screen.job, signal.SIGKILL)
        until_dead(pid)
    until_free(database)
