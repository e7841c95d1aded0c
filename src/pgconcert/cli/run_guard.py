"""The guard of ``pgconcert run``: a small program that starts the command, passes signals on, and ends it.

Only the standard library is imported, and nothing of pgconcert: it is started by the path of this file with
``python -I -S``, before the lock is waited for, and speaks with its master over a socket, in lines of JSON.

The theory. Whoever holds the lock must not die and leave the command behind, and no program can clean up after its
own SIGKILL. So the command is the child of a second process, and the socket between the two tells the guard of its
master's death, because the kernel closes what a dead process had open. With the word ``go`` the master hands over
copies of the sockets of its database sessions. Nothing is ever said on them; but the server sees the end of a session
only when the last copy is closed, so after the master's SIGKILL *the lock stays held until the command is gone* and
the guard has ended. When the master itself says ``end``, because the lock is lost, the copies are closed at once.

States::

    ready --go--> running --command ends--> over
                     |                        ^
          end, or master is dead              | nobody is left; SIGKILL after the grace sees to it
                     v                        |
                   ending  ------SIGTERM------+

Whom signals reach:

* Usually the command leads a process group of its own, and a signal goes to that group.
* In the foreground of a terminal it stays in the master's group, or it could not read what is typed. The terminal
  signals the whole group by itself. The guard is a member, so what the master passes on and the guard has just got
  too is nothing new to the command: the kernel signals all members before any of them can act. Other signals go to
  the command and its descendants, as ``/proc`` lists them; without ``/proc``, to the command alone.

The command starts with the signal mask and the ignored signals that the master was started with, and without a copy of
any session: else what it leaves in the background would keep the lock.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["FORWARDED", "Reach", "Relative", "family", "reach"]

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
    signal.SIGTSTP,
)
"""What is passed on to the command."""

_LOOK: Final = 0.05
"""Nobody tells the guard of the end of processes that are not its children: while it ends them it looks, in seconds."""
_RECENT: Final = 1.0
"""How long the master may take to pass on, in seconds; what comes later was sent by somebody else."""
_READ: Final = 65536
_SESSIONS: Final = 64


class Relative(NamedTuple):
    """A process as ``/proc`` lists it. ``started`` tells it from a later one with the same number."""

    parent: int
    state: str
    started: str


def family(processes: Mapping[int, Relative], known: Mapping[int, str]) -> dict[int, str]:
    """The known processes that still live, and their descendants: number and start."""
    found = {
        pid: started
        for pid, started in known.items()
        if pid in processes and processes[pid].started == started and processes[pid].state != "Z"
    }
    while True:
        more = {
            pid: process.started
            for pid, process in processes.items()
            if process.parent in found and pid not in found and process.state != "Z"
        }
        if not more:
            return found
        found |= more


def _processes() -> dict[int, Relative]:
    """Everybody; empty without ``/proc``."""
    found: dict[int, Relative] = {}
    for listing in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *rest = listing.read_bytes().rpartition(b")")[2].decode().split()
        except OSError:
            continue  # it has ended meanwhile
        found[int(listing.parent.name)] = Relative(int(parent), state, rest[17])
    return found


class Reach(Protocol):
    """Whom signals reach."""

    def signal(self, number: int) -> None:
        """Send it; who is gone is no error."""
        ...

    def lives(self) -> bool:
        """Whether anybody is left."""
        ...


def reach(pid: int, shared: bool) -> Reach:
    """The command with this number; ``shared``: in the group of the terminal."""
    return _Family(pid) if shared else _Group(pid)


class _Group:
    """The command as leader of a process group of its own."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def signal(self, number: int) -> None:
        try:
            os.killpg(self._pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left, or nobody who may be signalled (another user by now)

    def lives(self) -> bool:
        try:
            os.killpg(self._pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


class _Family:
    """The command in the group of the terminal: known are it and its descendants."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known = {number: one.started for number, one in _processes().items() if number == pid}

    def signal(self, number: int) -> None:
        self._known = family(_processes(), self._known)
        for pid in self._known or (self._pid,):
            try:
                os.kill(pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    def lives(self) -> bool:
        self._known = family(_processes(), self._known)
        return bool(self._known)


class _Guard:
    """One command, from ``go`` to its end."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._rest = b""
        self._orders: deque[dict[str, Any]] = deque()
        self._sessions: list[int] = []
        self._got: deque[tuple[int, float]] = deque()
        """The signals that came to us, and when."""
        # The interpreter writes the number of every signal that has a handler into this socket.
        self._wakeup, self._wakeup_end = socket.socketpair()
        self._wakeup.setblocking(False)
        self._wakeup_end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_end.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *FORWARDED):
            # A handler does not outlive exec, so the command starts with the default; what is ignored stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN or number is signal.SIGCHLD:
                signal.signal(number, lambda number, frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        self._master_lives = True
        self._target: Reach | None = None
        self._pid = 0
        self._grace = 0.0
        self._code: int | None = None
        self._pressed = False
        self._deadline: float | None = None
        """Ending, and when SIGKILL is due."""
        self._killed = False

    def run(self) -> None:
        """Wait for ``go``, start the command, and stay until it has ended."""
        orders = self._await("path")
        if orders is None or (go := self._await("go")) is None:
            return
        os.environ.update(go["go"])
        self._grace = orders["grace"]
        try:
            self._start(orders)
        except OSError as error:
            self._tell(failed=error.errno or errno.ENOEXEC)
            return
        self._let_go_of_streams()
        self._tell(started=self._pid)
        while not self._over():
            self._wait()
            self._end_if_due()
        self._tell(ended=self._code, pressed=self._pressed)

    def _start(self, orders: Mapping[str, Any]) -> None:
        shared = bool(orders["shared"])
        options: dict[str, Any] = {} if shared else {"setpgroup": 0}
        self._pid = os.posix_spawn(
            orders["path"],
            orders["arguments"],
            os.environ,
            setsigmask=orders["mask"],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # the interpreter ignores these for itself
            **options,
        )
        self._target = reach(self._pid, shared)

    @staticmethod
    def _let_go_of_streams() -> None:
        """Whoever reads what the command writes must see its end when the command is gone."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.close(nothing)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        if self._master_lives:
            poll.register(self._control, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if self._deadline is None else _LOOK * 1000)]
        self._note_signals()
        self._reap()
        if self._control.fileno() in ready:
            self._hear()
            self._note_signals()
            while self._orders:
                self._obey(self._orders.popleft())
            if not self._master_lives:
                self._begin_to_end()

    def _obey(self, order: Mapping[str, Any]) -> None:
        assert self._target is not None
        if "signal" in order:
            if not self._has_come_here(order["signal"]):
                self._target.signal(order["signal"])
        elif "end" in order:
            self._close_sessions()
            self._begin_to_end()

    def _note_signals(self) -> None:
        try:
            numbers = self._wakeup.recv(_READ)
        except BlockingIOError:
            return
        now = time.monotonic()
        self._got.extend((number, now) for number in numbers)

    def _has_come_here(self, number: int) -> bool:
        """Whether we got it too, and not long ago; each counts once. Never, unless we share a group with the master."""
        now = time.monotonic()
        while self._got and now - self._got[0][1] > _RECENT:
            self._got.popleft()
        found = next((got for got in self._got if got[0] == number), None)
        if found is None:
            return False
        self._got.remove(found)
        return True

    def _begin_to_end(self) -> None:
        self._reap()  # who has just ended was not told to
        if self._deadline is not None or self._code is not None:
            return
        assert self._target is not None
        self._pressed = True
        self._deadline = time.monotonic() + self._grace
        self._target.signal(signal.SIGTERM)
        self._target.signal(signal.SIGCONT)  # who is stopped cannot end

    def _end_if_due(self) -> None:
        if self._deadline is not None and not self._killed and time.monotonic() >= self._deadline:
            assert self._target is not None
            self._target.signal(signal.SIGKILL)
            self._killed = True

    def _over(self) -> bool:
        """The command has ended; if we end it, so have all others, or SIGKILL is on its way to them."""
        assert self._target is not None
        return self._code is not None and (self._deadline is None or self._killed or not self._target.lives())

    def _reap(self) -> None:
        if self._code is not None:
            return
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)

    def _close_sessions(self) -> None:
        for session in self._sessions:
            os.close(session)
        self._sessions.clear()

    # the conversation

    def _await(self, word: str) -> dict[str, Any] | None:
        """The next order, which must have this word in it; ``None`` if the master has gone."""
        while not self._orders:
            if not self._master_lives:
                return None
            self._hear()
        order = self._orders.popleft()
        assert word in order, f"{word!r} was expected"
        return order

    def _hear(self) -> None:
        """Wait for something to arrive; keep the orders, and the sessions that come with them."""
        try:
            heard, sessions, _, _ = socket.recv_fds(self._control, _READ, _SESSIONS)
        except ConnectionError:
            heard, sessions = b"", []
        for session in sessions:
            os.set_inheritable(session, False)
            self._sessions.append(session)
        self._master_lives = bool(heard)
        *lines, self._rest = (self._rest + heard).split(b"\n")
        self._orders.extend(json.loads(line) for line in lines)

    def _tell(self, **message: object) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except ConnectionError:
            pass  # nobody is left who could be told


def main(fd: int) -> None:
    """Guard one command for the master at the other end of a socket."""
    os.set_inheritable(fd, False)
    with socket.socket(fileno=fd) as control:
        _Guard(control).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
