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
from collections.abc import Iterator
from typing import IO, Any

import psycopg
from psycopg import sql

from pgconcert.testing import eventually
from tests.cli.shell import LIMIT, environment


def run(*arguments: str, said: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
    """A command at its end. ``said`` is its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "pgconcert", *arguments],
        input=said, capture_output=True, timeout=LIMIT, env=environment(**more),
    )  # fmt: skip


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
        process = subprocess.Popen(
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
