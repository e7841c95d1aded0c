"""The processes of a demo, seen from outside: start one, hear what all of them write, kill one, let all of them go.

All workers write to one pipe. The kernel keeps its order, and what a process has written stays readable after its
SIGKILL, so nothing of the history is lost by what the demo does to its processes. Every worker ends by itself when its
standard input ends; that is how they are dismissed, and why they outlive nobody.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Final, Self

from .demo_history import Kind, Record, unpack_all

__all__ = ["Stage", "WorkerFailed"]

_FAREWELL: Final = 15.0


class WorkerFailed(Exception):
    """A worker ended by itself; says what it said."""


@dataclass(frozen=True, slots=True)
class _Actor:
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def story(self) -> str:
        """The last line on its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self.process.returncode} and said nothing"

    def bury(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            with suppress(OSError):
                self.process.stdin.close()
        self.errors.close()


class Stage:
    """The workers of one part of a demo, numbered from 1. Leaving the ``with`` block kills whoever is still there.

    ``module``: the file of this package that each process runs; ``orders``: the line that it is given, made of its
    number and of the pipe on which it is heard.

    No signal interrupts a ``shielded`` section: a process that was started is known, one that is forgotten is dead.
    """

    def __init__(
        self,
        module: str,
        orders: Callable[[int, int], bytes],
        shielded: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._module, self._orders = module, orders
        self._shielded = shielded
        self._actors: dict[int, _Actor] = {}
        self._read, self._write = os.pipe()
        self._rest = b""
        self.pids: list[int] = []
        """Every process that was ever started."""
        self.killed: list[int] = []
        """Those that were ended by ``kill``."""

    def start(self, worker: int) -> None:
        """Start a process for a number that has none."""
        assert worker not in self._actors
        errors = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        with self._shielded():
            process = subprocess.Popen(
                # -P: a file in the current folder must not pose as a module.
                [sys.executable, "-P", "-m", f"{__package__}.{self._module}"],
                stdin=subprocess.PIPE, stdout=errors, stderr=errors, pass_fds=[self._write],
                process_group=0,  # Ctrl-C is for the director
            )  # fmt: skip
            self._actors[worker] = _Actor(process, errors)
            self.pids.append(process.pid)
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.write(self._orders(worker, self._write))
            process.stdin.flush()

    def hear(self, timeout: float) -> list[Record]:
        """Wait up to ``timeout`` seconds for records. Raises ``WorkerFailed`` if one has ended without being told."""
        heard = self._read_records(timeout)
        for worker, actor in self._actors.items():
            if actor.process.poll() is not None:
                raise WorkerFailed(f"worker-{worker} (pid {actor.process.pid}) failed: {actor.story()}")
        return heard

    def kill(self, worker: int) -> Record:
        """End a worker's process with SIGKILL. When this returns it is dead, and all it wrote can be heard."""
        with self._shielded():
            actor = self._actors.pop(worker)
            record = Record(Kind.KILLED, worker, actor.process.pid, time.monotonic_ns())
            actor.bury()
            self.killed.append(record.pid)
        return record

    def dismiss(self) -> list[Record]:
        """Let all workers end in their own time, and return what they still wrote. The stage cannot be used again."""
        for actor in self._actors.values():
            assert actor.process.stdin
            actor.process.stdin.close()
        os.close(self._write)
        self._write = -1
        heard: list[Record] = []
        end = time.monotonic() + _FAREWELL
        # Our end of the pipe is closed, so the last worker's death is the end of what can be read.
        while (patience := end - time.monotonic()) > 0:
            more = self._read_records(patience)
            if not more:
                break
            heard += more
        late = []
        for worker, actor in self._actors.items():
            try:
                actor.process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(worker)
        if late:
            raise WorkerFailed(f"worker-{late[0]} did not end within {_FAREWELL:g} s of being told to")
        return heard

    def _read_records(self, timeout: float) -> list[Record]:
        if not select.select([self._read], [], [], timeout)[0]:
            return []
        records, self._rest = unpack_all(self._rest + os.read(self._read, 65536))
        return records

    def close(self) -> None:
        """Kill whoever is still there. Idempotent."""
        for actor in self._actors.values():
            actor.process.kill()
        while self._actors:
            self._actors.popitem()[1].bury()
        for pipe in (self._read, self._write):
            if pipe >= 0:
                os.close(pipe)
        self._read = self._write = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
