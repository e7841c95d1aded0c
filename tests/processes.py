"""Processes of the tests: servers and workers that never outlive us.

Here live `spawn` (a child that the kernel ends with us, as an unprivileged user if asked) and `Worker` (a Python
program that speaks lines over pipes). Theory: a test that is killed runs no cleanup, so the kernel does it: a child
asks for a signal at its parent's death. Every wait for a worker's line is bounded and fails with all it has said.
"""

import os
import pwd
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from tests.nursery import Popen
from tests.secretwatch import look

_ROOT: Final = Path(__file__).resolve().parents[1]


def unprivileged() -> pwd.struct_passwd | None:
    """The user for programs that refuse to run as root; None if we are not root."""
    return None if os.geteuid() else pwd.getpwnam("nobody")


def spawn(
    command: Sequence[str | Path],
    *,
    user: pwd.struct_passwd | None = None,
    at_our_death: signal.Signals = signal.SIGKILL,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a program that gets a signal when this process dies."""
    if user:
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return Popen([str(part) for part in command], at_our_death=at_our_death, **options)


def importing_tests() -> dict[str, str]:
    """An environment in which `tests` can be imported, besides all that can be here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


def stop(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM, limit: float = 30.0) -> None:
    """Signal and wait; after `limit` seconds SIGKILL."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def run_as(
    user: pwd.struct_passwd | None, command: Sequence[str | Path], **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; RuntimeError with its words if it fails."""
    options: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"LC_ALL": "C"} | environment,
        **options,
    )
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done


def children() -> dict[int, str]:
    """Our child processes: number and command line (empty for one that is dead but not yet waited for)."""
    found: dict[int, str] = {}
    for listing in Path("/proc/self/task").glob("*/children"):
        try:
            numbers = listing.read_text().split()
        except OSError:
            continue
        for number in numbers:
            try:
                command = Path(f"/proc/{number}/cmdline").read_bytes()
            except OSError:
                command = b""
            found[int(number)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


class Worker:
    """A Python process that answers in lines. `program` is a path, or source text; ``fresh`` is as in `nursery.py`.

    Use it as a context manager, or through the `worker` fixture; it is killed at the end in any state.
    """

    def __init__(self, program: str | Path, *args: str, fresh: bool = False) -> None:
        if isinstance(program, Path):
            self.name, how = program.name, [str(program)]
        else:
            self.name, how = "worker", ["-c", program]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the worker
        self._process = spawn(
            [sys.executable, "-u", *how, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=importing_tests(),
            fresh=fresh,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._from.fileno(), False)
        self._rest = b""
        self.heard: list[str] = []
        """Every line read so far."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def send(self, line: str) -> None:
        """Write one line to its standard input."""
        self._to.write(line.encode() + b"\n")
        self._to.flush()

    def expect(self, prefix: str, limit: float = 30.0) -> str:
        """Read lines until one begins with `prefix`; return what follows it, without blanks around.

        AssertionError after `limit` seconds, or when the worker ends before.
        """
        end = time.monotonic() + limit
        while True:
            while b"\n" in self._rest:
                raw, self._rest = self._rest.split(b"\n", 1)
                line = raw.decode(errors="replace")
                self.heard.append(line)
                if line.startswith(prefix):
                    return line[len(prefix) :].strip()
            with selectors.DefaultSelector() as selector:
                selector.register(self._from, selectors.EVENT_READ)
                ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"{self.name} did not say {prefix!r} within {limit:g} s; {self._story()}")
            more = os.read(self._from.fileno(), 65536)
            if not more:
                code = self._process.wait()
                raise AssertionError(f"{self.name} ended with {code} before it said {prefix!r}; {self._story()}")
            self._rest += more

    def wait(self, limit: float = 30.0) -> int:
        """Wait for its end; return the code. AssertionError after `limit` seconds."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {limit:g} s; {self._story()}") from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def stop_signal(self) -> None:
        """SIGSTOP: it stays, frozen, with all its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """SIGCONT: it goes on."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it if it lives, and close the pipes."""
        self.kill()
        self._errors.seek(0)
        look(f"the standard error of {self.name}", self._errors.read().decode(errors="replace"))
        for pipe in (self._to, self._from, self._errors):
            try:
                pipe.close()
            except BrokenPipeError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _story(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4000))
        errors = self._errors.read().decode(errors="replace")
        return f"it said {self.heard[-20:]} and, on standard error:\n{errors}"
