"""Running `pgconcert` as a shell does: to its end, on a terminal, or line by line.

Here lives only that. Theory: the environment is that of the test run without whatever would lead to a server or change
how output looks, so that a test says itself what it means.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Final

from click.testing import CliRunner

from pgconcert.cli.group import group
from tests import nursery
from tests.secretwatch import look

LIMIT: Final = 60.0
"""Seconds for anything to happen that must happen. It is never waited for: no test shows anything by its end."""

_UNWANTED: Final = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES", "PGCONCERT_URL", "DATABASE_URL"}
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: no address, no wishes about colours."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNWANTED and not name.startswith("PG")}
    return kept | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", "COLUMNS": "200"} | more


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = nursery.run(
        [sys.executable, "-m", "pgconcert", *arguments],
        text=True, timeout=LIMIT, env=environment(**more), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    look("the output of pgconcert", done.stdout + done.stderr)
    return done


def refused(*arguments: str) -> str:
    """What a call says that cannot be meant, in one line. It is made in this process, for it never comes to run."""
    called = CliRunner(env=environment()).invoke(group, arguments, prog_name="pgconcert")
    assert called.exit_code == 2, called.output
    assert called.stdout == ""
    return " ".join(called.stderr.split())


class Running:
    """A command that runs: what it says (without control characters), what is typed, how it ends."""

    def __init__(self, process: subprocess.Popen[bytes], output: int, keyboard: int | None) -> None:
        self._process, self._output, self._keyboard = process, output, keyboard
        self._raw = b""

    @property
    def said(self) -> str:
        """All of it so far."""
        return _CONTROL.sub("", self._raw.decode(errors="replace"))

    def expect(self, pattern: str, after: int = 0) -> str:
        """Wait until its text from a position on matches, and return what did; AssertionError if it never does."""
        end = time.monotonic() + LIMIT
        while not (found := re.search(pattern, self.said[after:])):
            if not self._read(end):
                raise AssertionError(f"it never said {pattern!r}, but:\n{self.said}")
        return found[0]

    def type(self, keys: str) -> None:
        """Press keys."""
        assert self._keyboard is not None
        os.write(self._keyboard, keys.encode())

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as it does unless a program changed it."""
        assert self._keyboard is not None
        return bool(termios.tcgetattr(self._keyboard)[3] & termios.ECHO)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait until it has ended; its exit code."""
        end = time.monotonic() + LIMIT
        while self._read(end):
            pass
        return self._process.wait(max(0.1, end - time.monotonic()))

    def _read(self, end: float) -> bool:
        if not select.select([self._output], [], [], max(0.0, end - time.monotonic()))[0]:
            return False
        try:
            more = os.read(self._output, 65536)
        except OSError:  # the other side of the terminal is closed
            return False
        self._raw += more
        return bool(more)


@contextlib.contextmanager
def running(*arguments: str, **more: str) -> Iterator[Running]:
    """A command whose output is a pipe."""
    reading, writing = os.pipe()
    yield from _run(arguments, more, reading, None, writing, subprocess.DEVNULL)


@contextlib.contextmanager
def on_terminal(*arguments: str, columns: int = 200, rows: int = 40, **more: str) -> Iterator[Running]:
    """A command on a terminal of its own."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    size = {"COLUMNS": str(columns), "LINES": str(rows)}
    yield from _run(arguments, size | more, leader, leader, follower, follower)


def _run(
    arguments: tuple[str, ...], more: dict[str, str], output: int, keyboard: int | None, writing: int, reading: int
) -> Iterator[Running]:
    try:
        process = nursery.Popen(
            [sys.executable, "-m", "pgconcert", *arguments],
            stdin=reading, stdout=writing, stderr=writing, env=environment(**more),
            start_new_session=keyboard is not None, terminal=keyboard is not None,
        )  # fmt: skip
    finally:
        os.close(writing)
    made = Running(process, output, keyboard)
    try:
        yield made
    finally:
        process.kill()
        process.wait()
        os.close(output)
        look("the output of pgconcert", made.said)
