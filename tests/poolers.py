"""PgBouncer in front of a test server.

Here lives only that. Theory: it is the stock program with the stock answers to start-up parameters, because what it
refuses is part of what is tested; only the pool is small, so that clients outnumber server connections at once.
"""

import shutil
import signal
from pathlib import Path
from typing import Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgconcert.testing import eventually, rewrite
from tests.processes import spawn, stop, unprivileged
from tests.servers import Server, free_port, private_folder

PoolMode = Literal["session", "transaction", "statement"]


class PgBouncer:
    """A running PgBouncer; `url` leads through it, over TCP, to the database it was made for."""

    def __init__(
        self, program: Path, server: Server, database_url: str, mode: PoolMode, *, pool_size: int = 4, **settings: str
    ) -> None:
        target = conninfo_to_dict(server.over_tcp(database_url))
        self.port = free_port()
        self._folder, user = private_folder(), unprivileged()
        place = {name: target[name] for name in ("host", "port", "dbname", "user", "password") if target.get(name)}
        options = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": self._folder,
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": pool_size,
            "max_client_conn": 500,
            "logfile": self._folder / "log",
        }
        lines = ["[databases]", "* = " + " ".join(f"{name}={value}" for name, value in place.items()), "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in (options | settings).items()]
        configuration = self._folder / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        if user:
            configuration.chmod(0o644)
        self.url = rewrite(database_url, host="127.0.0.1", hostaddr=None, port=self.port)
        with (self._folder / "output").open("wb") as output:
            self._process = spawn([program, configuration], user=user, stdout=output, stderr=output, cwd=self._folder)
        try:
            eventually(self._answers, what="PgBouncer answers")
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        """What it has written down so far."""
        return (self._folder / "log").read_text()

    def close(self) -> None:
        """End it at once, with all its connections."""
        stop(self._process, signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"PgBouncer did not start: {(self._folder / 'output').read_text()[-2000:]}")
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True
