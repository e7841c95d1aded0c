"""The embedded PostgreSQL server: started by whoever comes first, shared, stopped when the last one leaves.

Here stands the user's side of the protocol: joining and leaving. Making a cluster and starting its server is
`cluster`'s matter, where things lie is `place`'s; the lock files, and the process that stops the
server after a SIGKILL, are `reaper`'s, whose docstring has the theory.

A user comes and goes in four steps, all under the gate: it takes the shared users lock, sees to a reaper, sees to a
ready server; leaving, it asks for the users lock exclusively, and if that is granted it was the last and stops the
server. The reaper exists before the server does, so a user that is killed at any point leaves nothing behind.

A forked child is not a user: it closes the descriptors it inherited, and its `EmbeddedServer.stop` does nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from ...errors import ConfigurationError, EmbeddedServerError
from . import reaper as shared
from .cluster import LIMIT, PASSWORD, start_server, wait_until_ready
from .place import Place, environment, place, server_binaries

__all__ = ["EmbeddedServer", "server_binaries"]

_OURS = frozenset({"data_directory", "unix_socket_directories"})

# Seconds to wait for another process's decision; it may be busy with a crash recovery, which has a limit of its own.
_GATE = 2 * LIMIT


class EmbeddedServer:
    """One user's share in an embedded PostgreSQL 18 server. Thread-safe; a process may hold any number of them.

    A user that never calls `stop` counts until its process ends, however it ends.
    """

    def __init__(self, where: Place, users: _LockFile, recorded: list[str]) -> None:
        self._where = where
        self._users = users
        self._stopping = threading.Lock()
        self._port, self._socket, self._listening = recorded[3:6]

    @classmethod
    def start(cls, url: str = "embedded://", settings: Mapping[str, str] | None = None) -> Self:
        """Join the server of a folder, or start it. Blocks until it accepts connections; crash recovery may take long.

        ``url`` is ``embedded://`` (the user's own folder, root's is ``/var/lib/pgconcert``) or ``embedded:///folder``.
        ``settings`` are configuration parameters of PostgreSQL, such as ``{"listen_addresses": "127.0.0.1", "port":
        "54321"}``. A server that runs already must have all that are given; parameters not given do not matter.
        By default there is no TCP port, and data is durable.

        Raises:
            ConfigurationError: the address or a setting makes no sense.
            EmbeddedServerError: no programs, no fit folder, other settings, or the server does not start; says why.
        """
        wanted = _checked(settings or {})
        with _explained(url):
            where = place(url)
            users = _LockFile(where.home, shared.USERS)
            with _gate(where.home):
                try:
                    users.take(fcntl.LOCK_SH, 30.0)
                    _ensure_reaper(where.home)
                    recorded = _ensure_server(where, wanted)
                    _check_reaper(where.home)
                except BaseException:
                    _leave(where, users)
                    raise
            return cls(where, users, recorded)

    @property
    def url(self) -> str:
        """The address over the Unix socket, which only this user (and root) can reach; no password."""
        return f"postgresql://postgres@/postgres?host={quote(self._socket, safe='/')}&port={self._port}"

    @property
    def tcp_url(self) -> str:
        """The address over TCP, with the password. Only for a server that was started with ``listen_addresses``."""
        if not self._listening:
            raise EmbeddedServerError(
                'the server has no TCP port; start it with settings={"listen_addresses": "127.0.0.1", "port": "..."}'
            )
        host = "127.0.0.1" if self._listening in {"*", "0.0.0.0"} else self._listening  # noqa: S104
        host = f"[{host}]" if ":" in host else host
        password = self._where.run(["cat", str(self._where.home / PASSWORD)]).stdout.strip()
        return f"postgresql://postgres:{password}@{host}:{self._port}/postgres"

    def stop(self) -> None:
        """Leave. The last user's leaving stops the server and returns when it is gone. Idempotent."""
        with self._stopping, _explained(str(self._where.folder)):
            if not self._users.closed:
                with _gate(self._where.home):
                    _leave(self._where, self._users)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<EmbeddedServer {self._where.folder} {'left' if self._users.closed else 'in use'}>"


class _LockFile:
    """A lock file of this process, known to the fork hooks below so that no forked child keeps the lock alive."""

    def __init__(self, home: Path, name: str) -> None:
        with _forking:
            self.fd = shared.open_lock(home, name)
            self.closed = False
            _open.add(self)
        self._path = home / name

    def take(self, operation: int, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not shared.try_lock(self.fd, operation):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {self._path} for {patience:.0f} s; is it stopped?")
            time.sleep(0.01)

    def close(self) -> None:
        with _forking:
            if not self.closed:
                self.closed = True
                _open.discard(self)
                os.close(self.fd)


_open: set[_LockFile] = set()
_forking = threading.RLock()


def _in_child() -> None:
    for file in _open:
        file.closed = True
        os.close(file.fd)
    _open.clear()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_in_child)


@contextmanager
def _gate(home: Path) -> Iterator[None]:
    with closing(_LockFile(home, shared.GATE)) as gate:
        gate.take(fcntl.LOCK_EX, _GATE)
        yield


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(f"the embedded server of {what} cannot be used: {error}") from error


def _checked(settings: Mapping[str, str]) -> dict[str, str]:
    for name, value in settings.items():
        if name in _OURS:
            raise ConfigurationError(f"{name} is chosen by the embedded server itself")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) or "\n" in value or "\0" in value:
            raise ConfigurationError(f"{name!r}={value!r} is not a parameter of PostgreSQL")
    return dict(settings)


def _leave(where: Place, users: _LockFile) -> None:
    """Stop being a user, and stop the server if that was the last one. Under the gate."""
    try:
        last = shared.try_lock(users.fd, fcntl.LOCK_EX)
        if not last:
            # The reaper may have had the lock for an instant. Now it waits for the gate and is not in the way again.
            users.take(fcntl.LOCK_SH, 30.0)
            last = shared.try_lock(users.fd, fcntl.LOCK_EX)
        if last:
            _stop_as_owner(where)
    finally:
        users.close()


def _stop_as_owner(where: Place) -> None:
    if where.account is None:
        shared.stop_server(where.home)
        return
    done = subprocess.run(
        [_python(), "-I", "-S", shared.__file__, "stop", str(where.home)],
        capture_output=True, text=True, check=False, cwd="/", env=environment(), start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise EmbeddedServerError(f"the server in {where.home} cannot be stopped: {done.stderr.strip()[-500:]}")


def _python() -> str:
    """An interpreter. In a program that embeds Python ``sys.executable`` is that program."""
    names = (sys.executable, f"{sys.prefix}/bin/python3", f"{sys.base_prefix}/bin/python3")
    found = next((n for n in names if n and re.match("python|pypy", Path(n).name) and os.access(n, os.X_OK)), None)
    if found is None:
        raise EmbeddedServerError(f"no Python interpreter found beside {sys.prefix} to look after the server")
    return found


def _ensure_reaper(home: Path) -> None:
    with closing(_LockFile(home, shared.REAPER)) as lock:
        if shared.try_lock(lock.fd, fcntl.LOCK_EX):
            # Through a shell, so that the reaper is not our child: nobody here would collect it.
            reaper = [_python(), "-I", "-S", shared.__file__, "reap", str(home), str(lock.fd)]
            subprocess.run(
                ["/bin/sh", "-c", f"{shlex.join(reaper)} </dev/null >/dev/null 2>&1 &"],
                check=True, cwd="/", env=environment(), pass_fds=[lock.fd], start_new_session=True,
            )  # fmt: skip


def _check_reaper(home: Path) -> None:
    with closing(_LockFile(home, shared.REAPER)) as lock:
        if shared.try_lock(lock.fd, fcntl.LOCK_EX):
            raise EmbeddedServerError(
                f"the process that stops the server after a crash of its users has ended at once; does "
                f"{shlex.join([_python(), '-I', '-S', shared.__file__])} run?"
            )


def _ensure_server(where: Place, wanted: Mapping[str, str]) -> list[str]:
    home = where.home
    # A server that is on its way out (the system shuts down, somebody called pg_ctl) ends sooner if asked to be fast.
    if shared.running_pid(home) is not None and shared.recorded(home)[7:8] == ["stopping"]:
        _stop_as_owner(where)
    if shared.running_pid(home) is None:
        with closing(_LockFile(home, shared.SERVER)) as lock:
            lock.take(fcntl.LOCK_EX, 30.0)
            start_server(where, wanted, lock.fd)
    else:
        started = (home / shared.DATA / "postmaster.opts").read_text(errors="surrogateescape")
        other = {name: value for name, value in wanted.items() if f'"-c" "{name}={value}"' not in started}
        if other:
            given = ", ".join(f"{name}={value}" for name, value in other.items())
            raise EmbeddedServerError(
                f"the server of {where.folder} runs already and was not started with {given}; "
                "leave the settings out, or stop its other users first"
            )
    return wait_until_ready(where)
