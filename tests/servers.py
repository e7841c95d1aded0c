"""The PostgreSQL servers that tests run on.

Here live `Server` (any server: statements, databases, sessions) and those we own and may break: the embedded one,
clusters made from Debian's programs, and standbys. Poolers stand in `poolers.py`.

Theory: a server is started once per run and lives to its end; what a test gets of it is a database. Everything owned
listens on TCP, so that proxies, poolers and standbys, which may run as another user, can reach it. The data
is worthless, so nothing is flushed to disk; a crash of the server process still recovers, as that loses no page cache.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgconcert.postgres.embedded import EmbeddedServer
from pgconcert.testing import ServerSession, eventually, rewrite, sessions
from tests.processes import run_as, spawn, stop, unprivileged
from tests.secretwatch import keep_secret

# Of this run, or of this worker of it: the databases of others, on a server that is shared, are none of our business.
DATABASE_PREFIX: Final = f"pgconcert_test_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}_"

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_senders": "10",
    "max_wal_size": "512MB",
}
_MEMORY: Final = Path("/dev/shm")
_ENOUGH_ROOM: Final = 8 << 30
_START_LIMIT: Final = 60.0
_STOP_SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def free_port() -> int:
    """A TCP port nobody uses at this moment, and that no connection gets by chance before it is listened on: those come
    from above 32,767."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _in_memory() -> Path | None:
    """A folder that is kept in memory, if there is one with much room: a file system on a disk has more work with the
    files of databases that come and go than the server has with the statements."""
    with contextlib.suppress(OSError):
        room = os.statvfs(_MEMORY)
        if os.access(_MEMORY, os.W_OK) and room.f_bavail * room.f_frsize > _ENOUGH_ROOM:
            return _MEMORY
    return None


def private_folder() -> Path:
    """A new folder that the unprivileged user owns if we are root; its path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="pgconcert-", dir=_in_memory()))
    if user := unprivileged():
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


class Server:
    """A server reached by `url`, whose user may create databases and see all sessions."""

    owned = False

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url
        self._admin: psycopg.Connection[Any] | None = None

    @property
    def tcp_url(self) -> str:
        """The same server over TCP."""
        return self.over_tcp(self.url)

    def over_tcp(self, url: str) -> str:
        """A URL of this server, rewritten to TCP."""
        return url

    @property
    def major(self) -> int:
        """15, 18."""
        return int(self.execute("show server_version_num")[0][0]) // 10000

    def execute(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run a statement on our own autocommit connection, made anew if it broke; return the rows, if any."""

        def run(connection: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
            cursor = connection.execute(sql.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

        if self._admin and not self._admin.closed:
            try:
                return run(self._admin)
            except psycopg.OperationalError:
                if not self._admin.closed:
                    raise
        return run(self._connect())

    def sessions(self) -> list[ServerSession]:
        """Client sessions with their advisory locks, ours left out; on a server of others, in test databases only."""
        if self._admin is None or self._admin.closed:
            self._connect()
        assert self._admin
        try:
            found = sessions(self._admin, everywhere=True)
        except psycopg.OperationalError:
            found = sessions(self._connect(), everywhere=True)
        return [s for s in found if self.owned or s.database.startswith(DATABASE_PREFIX)]

    def kill_backend(self, pid: int) -> bool:
        """End a session (`pg_terminate_backend`); False if there was none."""
        return bool(self.execute("select pg_terminate_backend(%s)", pid)[0][0])

    @contextlib.contextmanager
    def fresh_database(self) -> Iterator[str]:
        """The URL of a new database, dropped at the end with whoever is connected to it."""
        name = DATABASE_PREFIX + secrets.token_hex(6)
        self.execute(f"create database {name}")
        try:
            yield rewrite(self.url, dbname=name)
        finally:
            self.execute(f"drop database if exists {name} with (force)")

    def close(self) -> None:
        """Let go of it; a server of ours ends."""
        if self._admin:
            self._admin.close()

    def _connect(self) -> psycopg.Connection[Any]:
        if self._admin:
            self._admin.close()
        self._admin = psycopg.connect(self.url, autocommit=True, application_name="tests: administration")
        return self._admin


class OwnServer(Server):
    """A server that tests may stop and start."""

    owned = True

    def __init__(self, name: str, url: str, port: int) -> None:
        super().__init__(name, url)
        self.port = port

    def over_tcp(self, url: str) -> str:
        return rewrite(url, host="127.0.0.1", hostaddr=None, port=self.port)

    @contextlib.contextmanager
    def down(self, mode: str = "fast") -> Iterator[None]:
        """The server is stopped inside the block; "immediate" is a crash. At the end it answers again."""
        self._stop(mode)
        try:
            yield
        finally:
            self._start()
            eventually(self._answers, _START_LIMIT, what=f"server {self.name} answers")

    def restart(self, mode: str = "fast") -> None:
        """Stop and start; every session ends."""
        with self.down(mode):
            pass

    def pids(self) -> set[int]:
        """Processes that are children of ours and belong here."""
        return set()

    def _answers(self) -> bool:
        try:
            self._connect()
        except psycopg.OperationalError:
            return False
        return True

    def _stop(self, mode: str) -> None:
        raise NotImplementedError

    def _start(self) -> None:
        raise NotImplementedError


class Embedded(OwnServer):
    """pgconcert's own embedded server, in a folder that belongs to this run."""

    def __init__(self) -> None:
        self._folder, port = private_folder(), free_port()
        self._settings = _SETTINGS | {"port": str(port)}
        self._server = self._join()
        # Only TCP asks for the password; with it in every URL, a URL leads through proxies and poolers unchanged.
        password = keep_secret(str(conninfo_to_dict(self._server.tcp_url)["password"]))
        super().__init__("pg18", rewrite(self._server.url, password=password), port)
        self._pidfile = Path(self.execute("show data_directory")[0][0]) / "postmaster.pid"
        self.programs = Path(f"/proc/{self._postmaster()}/exe").resolve().parent

    def close(self) -> None:
        super().close()
        self._server.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self, mode: str) -> None:
        os.kill(self._postmaster(), _STOP_SIGNALS[mode])
        eventually(lambda: not self._pidfile.exists(), 30.0, what="the embedded server is down")

    def _start(self) -> None:
        # Only a newcomer starts a server; the old share must not be the last one when it is given back.
        before, self._server = self._server, self._join()
        before.stop()

    def _join(self) -> EmbeddedServer:
        return EmbeddedServer.start(f"embedded://{self._folder}", self._settings)

    def _postmaster(self) -> int:
        return int(self._pidfile.read_text().split()[0])


class Cluster(OwnServer):
    """A server made by `initdb` from a folder of programs; or, given a primary, its streaming standby."""

    def __init__(self, name: str, programs: Path, primary: OwnServer | None = None) -> None:
        self.programs = programs
        self._folder, self._user, self._primary = private_folder(), unprivileged(), primary
        self._data, self._log = self._folder / "data", self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        port = free_port()
        super().__init__(name, f"postgresql://postgres@/postgres?host={self._folder}&port={port}", port)
        try:
            self._make()
            self._start()
            eventually(self._answers, _START_LIMIT, what=f"server {name} answers")
        except BaseException:
            self.close()
            raise

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is one."""
        assert self.execute("select pg_promote(true, 60)") == [(True,)]

    def catch_up(self, limit: float = 30.0) -> None:
        """Wait until a standby has replayed all that its primary has written so far."""
        assert self._primary, f"{self.name} is not a standby"
        written = self._primary.execute("select pg_current_wal_lsn()::text")[0][0]

        def replayed() -> bool:
            return bool(self.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", written)[0][0])

        eventually(replayed, limit, what=f"standby {self.name} has replayed {written}")

    def pids(self) -> set[int]:
        return {self._process.pid} if self._process else set()

    def close(self) -> None:
        super().close()
        if self._process:
            self._stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make(self) -> None:
        if self._primary:
            backup: list[str | Path] = [
                self.programs / "pg_basebackup",
                "-D",
                self._data,
                "-R",
                "-c",
                "fast",
                "-X",
                "stream",
            ]
            run_as(self._user, [*backup, "-d", self._primary.tcp_url])
        else:
            initdb: list[str | Path] = [
                self.programs / "initdb",
                "-D",
                self._data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "--no-sync",
            ]
            run_as(self._user, [*initdb, "-E", "UTF8", "--locale=C"])

    def _start(self) -> None:
        settings = _SETTINGS | {"port": str(self.port), "unix_socket_directories": str(self._folder)}
        if self._primary:
            # A standby refuses to start with less room than its primary has.
            settings["max_connections"] = self._primary.execute("show max_connections")[0][0]
        command: list[str | Path] = [self.programs / "postgres", "-D", self._data]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self._process = spawn(
                command, user=self._user, at_our_death=signal.SIGINT, stdout=log, stderr=log, cwd=self._folder
            )

    def _stop(self, mode: str) -> None:
        assert self._process
        stop(self._process, _STOP_SIGNALS[mode], 30.0)
        self._process = None
