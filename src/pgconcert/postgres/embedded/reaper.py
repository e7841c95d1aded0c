"""What all processes around one embedded server agree on, and the reaper, the smallest of them.

Here live the names of the lock files, the answer to "does the server live?", the way to stop it, and the reaper's own
program. Only the standard library is imported, and nothing of pgconcert: the reaper is started by the path of this
file with ``python -I -S``, so it stays small and does not depend on the application's import path.

The theory. Four files in the cluster's home are locked with flock, which the kernel undoes when a process dies:

* ``gate.lock``, exclusive: every decision to start or to stop, and every look at the server's life, is made under it.
* ``users.lock``, shared: each process that uses the server holds it for as long as it does.
* ``server.lock``, exclusive: handed down to the postmaster, which never knows it, and by it to its children. It is
  held as long as one of them lives. A process number says less: it is reused, and means nothing in another container.
* ``reaper.lock``, exclusive: handed down to the reaper, so that there is one.

The reaper sleeps in a request for the exclusive ``users.lock``. Being granted it means only that nobody was there for
an instant, so it lets go, takes the gate and asks again. It ends under the gate, and gives up ``reaper.lock`` first:
who comes through the gate afterwards sees neither a server nor a reaper and starts both.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

__all__ = [
    "DATA",
    "GATE",
    "REAPER",
    "SERVER",
    "SOCKET_LINK",
    "USERS",
    "open_lock",
    "process_exists",
    "recorded",
    "running_pid",
    "server_lives",
    "stop_server",
    "try_lock",
]

GATE = "gate.lock"
USERS = "users.lock"
SERVER = "server.lock"
REAPER = "reaper.lock"
DATA = "data"
SOCKET_LINK = "socket-folder"

# What the postmaster is asked, and how many seconds it gets before it is asked less politely. A fast shutdown writes a
# checkpoint; the two others cost a crash recovery at the next start and lose nothing.
_STOPPING = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 5.0))


def open_lock(home: Path, name: str) -> int:
    """A descriptor of a lock file, which is created if need be and belongs to whom the home belongs to."""
    path = home / name
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    if os.geteuid() == 0:
        owner = home.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
    return fd


def try_lock(fd: int, operation: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def server_lives(home: Path) -> bool:
    """Whether any process of the server lives. Under the gate, because asking takes the lock for a moment."""
    try:
        # Not created here: who is asking may be a reaper whose folder is just being deleted.
        fd = os.open(home / SERVER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(fd, fcntl.LOCK_EX):
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False
    finally:
        os.close(fd)


def recorded(home: Path) -> list[str]:
    """The lines of ``postmaster.pid``, none if there is no such file.

    Number, data folder, start time, port, socket folder, TCP address, shared memory, state; the last ones come late.
    """
    try:
        return (home / DATA / "postmaster.pid").read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return []


def process_exists(pid: int) -> bool:
    """Whether the number belongs to a process, anybody's, dead and not yet collected ones included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_pid(home: Path, *, patience: float = 30.0) -> int | None:
    """The number of the living postmaster, or ``None`` when no process of the server lives. Under the gate.

    For a moment neither is true: a postmaster has begun and not yet written its number, or it was killed and its
    children are about to notice. That is waited out for ``patience`` seconds, then ``TimeoutError`` is raised.
    """
    deadline = time.monotonic() + patience
    while server_lives(home):
        pid = next((int(line) for line in recorded(home)[:1] if line.isdecimal()), 0)
        if pid and process_exists(pid):
            return pid
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"processes of an earlier server, or of one in another container, still hold {home / SERVER} "
                f"after {patience:.0f} s, and the server's main process is not to be seen; end them and try again"
            )
        time.sleep(0.02)
    return None


def stop_server(home: Path) -> None:
    """Stop the server if it runs and wait until it is gone. Under the gate, with the rights of the server's user."""
    pid = running_pid(home)
    if pid is not None:
        _end(home, pid)
    try:
        short = (home / SOCKET_LINK).readlink()
    except OSError:
        return
    # A killed server leaves its socket; nobody but this server uses that folder, and it does not live.
    for dead in short.glob(".s.PGSQL.*"):
        dead.unlink(missing_ok=True)
    try:
        short.rmdir()
        (home / SOCKET_LINK).unlink()
    except OSError:
        pass  # somebody put something else into it: the next start uses it again


def _end(home: Path, pid: int) -> None:
    for number, patience in _STOPPING:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if _gone(home, pid, patience):
            return
    raise TimeoutError(f"process {pid}, the server of {home}, does not end, not even by SIGKILL")


def _gone(home: Path, pid: int, patience: float) -> bool:
    deadline = time.monotonic() + patience
    while process_exists(pid) and server_lives(home):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _reap(home: Path, reaper_fd: int) -> None:
    users, gate = open_lock(home, USERS), open_lock(home, GATE)
    while True:
        fcntl.flock(users, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_UN)
        fcntl.flock(gate, fcntl.LOCK_EX)
        if try_lock(users, fcntl.LOCK_EX):
            break
        fcntl.flock(gate, fcntl.LOCK_UN)
    try:
        if _stands(home, gate):
            stop_server(home)
    finally:
        os.close(reaper_fd)


def _stands(home: Path, gate: int) -> bool:
    """Whether the gate is still this path's: the folder may have been deleted, and another made in its place."""
    try:
        return os.path.samestat(os.fstat(gate), (home / GATE).stat())
    except FileNotFoundError:
        return False


def _become_owner(home: Path) -> None:
    """As root, turn into the server's user: signals then reach that user's processes only, whatever is recorded."""
    owner = home.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def main(arguments: list[str]) -> None:
    """``stop HOME`` stops the server, its caller has the gate; ``reap HOME FD`` is the reaper."""
    home = Path(arguments[1])
    os.chdir("/")
    _become_owner(home)
    if arguments[0] == "stop":
        stop_server(home)
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _reap(home, int(arguments[2]))


if __name__ == "__main__":
    main(sys.argv[1:])
