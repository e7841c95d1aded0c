"""The commands for messages under test: with bytes on standard input, with both outputs apart, and an observer.

Here live helpers without assertions of their own. Theory: what a command sends is seen by a connection of another
driver, and what it hears is sent by one, so that nothing of ours vouches for itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import psycopg
from psycopg import sql

from pgconcert.testing import eventually
from tests import nursery
from tests.cli.shell import LIMIT, environment


def run(*arguments: str, said: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    """A command at its end. ``said`` is its standard input."""
    return nursery.run(
        [sys.executable, "-m", "pgconcert", *arguments], said=said, timeout=LIMIT, env=environment(**more)
    )  # fmt: skip


def in_time(
    *arguments: str, lawful: Callable[[subprocess.CompletedProcess[bytes]], bool]
) -> subprocess.CompletedProcess[bytes]:
    """A call that waits in vain for a short time, which is long enough for what comes before.

    How long that takes is the machine's affair: while the outcome is that of a call whose time was over sooner, it is
    made again with twice the time.
    """
    limit = 0.3
    while not lawful(done := run(*arguments, "--timeout", f"{limit:g}")) and limit < LIMIT / 2:
        limit *= 2
    return done


class Listener:
    """A command that runs, with its standard output and its standard error apart."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors
        assert process.stdout
        self.output = process.stdout

    def errors(self) -> str:
        """What is on its standard error so far."""
        return os.pread(self._errors.fileno(), 1 << 20, 0).decode()

    def until_said(self, text: str) -> None:
        """Wait until its standard error has a text."""
        eventually(lambda: text in self.errors() or self._dead(), LIMIT, what=f"it says {text!r}")
        assert text in self.errors(), self.errors()

    def _dead(self) -> bool:
        return self.process.poll() is not None

    def line(self) -> str:
        """The next line of its standard output, without its end."""
        return self.output.readline().decode().removesuffix("\n")

    def json(self) -> Any:
        """The next line, read as JSON."""
        return json.loads(self.line())

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; its code."""
        return self.process.wait(LIMIT)


@contextlib.contextmanager
def listening(*arguments: str, **more: str) -> Iterator[Listener]:
    """``pgconcert listen`` that has proven that it listens."""
    with tempfile.TemporaryFile() as errors:
        process = nursery.Popen(
            [sys.executable, "-m", "pgconcert", "listen", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environment(**more),
        )  # fmt: skip
        try:
            listener = Listener(process, errors)
            listener.until_said("listening to")
            yield listener
        finally:
            process.kill()
            process.wait()
            assert process.stdout
            process.stdout.close()


def notify(url: str, channel: str, *payloads: str) -> None:
    """Send plain notifications."""
    with psycopg.connect(url, autocommit=True) as connection:
        for payload in payloads:
            connection.execute("select pg_notify(%s, %s)", (channel, payload))


@contextlib.contextmanager
def observer(url: str, channel: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody who listens with another driver."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        yield connection


def heard(connection: psycopg.Connection[Any], count: int) -> list[str]:
    """The next payloads; fewer, if nothing comes for too long."""
    return [each.payload for each in connection.notifies(timeout=LIMIT, stop_after=count)][:count]


def until_answered(url: str, name: str) -> None:
    """Wait until the server has answered all that a program has asked: each of its sessions is idle."""
    busy = (
        "select count(*) from pg_stat_activity where application_name like %s and datname = current_database()"
        " and state <> 'idle'"
    )

    def answered() -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(busy, (f"{name}%",)).fetchone() == (0,)

    eventually(answered, LIMIT, what=f"{name} has all its answers")


def cut(url: str, name: str) -> None:
    """End the listening session of a program."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name like %s and datname = current_database()",
            (f"{name}%",),
        ).fetchone()
    assert row
    assert row[0] >= 1
