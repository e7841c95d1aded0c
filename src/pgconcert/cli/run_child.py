"""The command of ``pgconcert run``, seen from the process that holds the lock: found, started, signalled, ended.

Here live the look for the program, the ``Child``, and what is handed to its guard; ``run_guard.py`` says why there is
a guard, and does the rest. The guard is started before the lock is waited for: what can fail fails before the lock is
taken. It leads a process group of its own, so that what kills our group with SIGKILL does not reach it; in the
foreground of a terminal it shares our group instead, and the command shares it too.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .run_guard import FORWARDED, Reach, reach

__all__ = ["CANNOT_RUN", "NOT_FOUND", "Child", "CommandFailed", "Ended", "GuardDied", "connected_sockets", "find"]

NOT_FOUND: Final = 127
CANNOT_RUN: Final = 126
"""The codes of shells."""

_JOB_CONTROL: Final = frozenset({signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH})
_GUARD: Final = Path(__file__).with_name("run_guard.py")
_READ: Final = 65536
_LOOK: Final = 0.02
_FAREWELL: Final = 10.0


class CommandFailed(Exception):
    """The command could not be started; ``code`` is what a shell would exit with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class GuardDied(Exception):
    """Somebody killed the guard; the command was then killed by us, because nobody would end it at our death."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the command ended. ``pressed``: because it was told to, since the lock was lost."""

    code: int
    pressed: bool


def find(program: str) -> str:
    """Where a program is, as a shell would find it. Raises ``CommandFailed``."""
    path = shutil.which(program)
    if path is not None:
        return path
    if os.sep in program and Path(program).is_dir():
        raise CommandFailed(f"{program!r} is a folder, not a command", CANNOT_RUN)
    if shutil.which(program, mode=os.F_OK) is not None:
        raise CommandFailed(f"{program!r} is not executable; chmod +x makes it so", CANNOT_RUN)
    where = "there is no such file" if os.sep in program else "it is in no folder of PATH"
    raise CommandFailed(f"command {program!r} not found: {where}", NOT_FOUND)


def in_foreground() -> bool:
    """Whether we run in the foreground of a terminal, where a command may want to read what is typed."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def connected_sockets() -> set[int]:
    """Descriptors of this process that are connections to somebody with an address; an unnamed pair is none."""
    found: set[int] = set()
    for name in os.listdir("/dev/fd"):  # noqa: PTH208  numbers, not paths
        try:
            asked = socket.socket(fileno=int(name))
        except OSError:
            continue  # no socket, or the descriptor of this very listing
        try:
            if asked.getpeername():
                found.add(int(name))
        except OSError:
            pass  # not connected
        finally:
            asked.detach()
    return found


class Child:
    """The command and its guard. Use it as ``with``: the guard is started at once, the command by ``go``.

    The end of the block is the end of both: a command that still runs is ended as if we had been killed.

    :param path: the program, as ``find`` found it.
    :param arguments: its arguments, the first is its own name.
    :param grace: seconds between SIGTERM and SIGKILL when the lock is lost.
    """

    def __init__(self, path: str, arguments: Sequence[str], *, grace: float) -> None:
        self._shared = in_foreground()
        self._reach: Reach | None = None
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._rest = b""
        self._control, theirs = socket.socketpair()
        # What is typed now must end us, not the interpreter of the guard with a traceback: it starts with all blocked.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            with theirs:
                theirs.set_inheritable(True)
                self._guard = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), str(theirs.fileno())],
                    close_fds=False,  # what a shell opens for the command (3>file) is for the command
                    process_group=None if self._shared else 0,
                )
        except BaseException:
            self._control.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._tell(path=path, arguments=[*arguments], grace=grace, shared=self._shared, mask=[int(n) for n in mask])
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._control.fileno(), self._hear)

    @property
    def handed_on(self) -> frozenset[signal.Signals]:
        """The signals to catch and ``signal`` on. The terminal's own job control is left to it where we share it."""
        return frozenset(FORWARDED) - (_JOB_CONTROL if self._shared else frozenset())

    async def go(self, sessions: Sequence[int], environment: Mapping[str, str]) -> None:
        """Start the command. ``sessions`` are sockets, whose copies stay open while it lives, whatever becomes of us;
        ``environment`` is added to our own.

        Raises ``CommandFailed``.
        """
        self._tell(sessions, go=[*environment.items()])
        answer = await self._answers.get()
        if answer is None:
            raise CommandFailed("the guard of the command died before it could start it", CANNOT_RUN)
        if "failed" in answer:
            number = answer["failed"]
            code = NOT_FOUND if number == errno.ENOENT else CANNOT_RUN
            raise CommandFailed(f"the command could not be started: {os.strerror(number)}", code)
        self._reach = reach(answer["started"], self._shared)

    def signal(self, number: int) -> None:
        """Pass a signal on."""
        self._tell(signal=number)

    def end(self) -> None:
        """SIGTERM, and SIGKILL after the grace, to all that is left of it."""
        self._tell(end=True)

    async def ended(self) -> Ended:
        """Wait for the end of the command, and for all others if it was told to ``end``. Raises ``GuardDied``."""
        answer = await self._answers.get()
        if answer is None:
            await self._kill()
            raise GuardDied("the guard of the command was killed; the command has been killed too")
        code = answer["ended"]
        return Ended(128 - code if code < 0 else code, answer["pressed"])

    async def _kill(self) -> None:
        assert self._reach is not None
        self._reach.signal(signal.SIGKILL)
        # Its parent is now somebody who may be slow to collect the dead, but SIGKILL is not survived.
        end = self._loop.time() + _FAREWELL
        while self._reach.lives() and self._loop.time() < end:  # noqa: ASYNC110  nobody else would tell us
            await asyncio.sleep(_LOOK)

    def _hear(self) -> None:
        try:
            heard = self._control.recv(_READ)
        except ConnectionError:
            heard = b""
        *lines, self._rest = (self._rest + heard).split(b"\n")
        for line in lines:
            self._answers.put_nowait(json.loads(line))
        if not heard:
            self._loop.remove_reader(self._control.fileno())
            self._answers.put_nowait(None)

    def _tell(self, sessions: Sequence[int] = (), /, **order: object) -> None:
        line = json.dumps(order).encode() + b"\n"
        try:
            if sessions:
                socket.send_fds(self._control, [line], sessions)
            else:
                self._control.sendall(line)
        except OSError:
            pass  # the guard is gone, or all is over; who waits for an answer learns it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._control.fileno())
        self._control.close()
        self._guard.wait()
