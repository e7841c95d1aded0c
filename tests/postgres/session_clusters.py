"""Servers of one test's own, for what cannot be done to one that is shared: another clock, a late flush, an upgrade.

Here live helpers without assertions of their own. Theory: a cluster is made from the programs of the server that the
test was given, so it is of the same version.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import psycopg
import pytest

from pgconcert.postgres.schemafiles import script
from pgconcert.testing import rewrite
from tests.processes import run_as
from tests.servers import Cluster, Embedded, Server

LATE_FLUSH: Final = {"wal_writer_delay": "10s", "wal_writer_flush_after": "1GB", "bgwriter_delay": "10s"}
"""With these a commit that does not wait for its flush is lost in a crash, and not only perhaps."""


class OwnCluster(Cluster):
    """A cluster with settings of its own."""

    def __init__(self, name: str, programs: Path, **settings: str) -> None:
        self._own_settings = settings
        super().__init__(name, programs)

    @property
    def data(self) -> Path:
        """The folder of its data."""
        return self._data

    def rise_again(self) -> None:
        """Stop, come back as a standby of nobody, and be promoted: the next timeline."""
        self._stop("fast")
        run_as(self._user, ["touch", self._data / "standby.signal"])
        with self.down_already():
            pass
        self.promote()

    @contextmanager
    def down_already(self) -> Iterator[None]:
        """As ``down``, for one that is stopped."""
        stop, self._stop = self._stop, lambda mode: None  # type: ignore[method-assign]
        try:
            with self.down():
                yield
        finally:
            self._stop = stop  # type: ignore[method-assign]

    def become_upgrade_of(self, old: OwnCluster) -> None:
        """``pg_upgrade`` from the other cluster into this one, which must be new. The other one stays down."""
        old._stop("fast")
        with self.down():
            run_as(
                self._user,
                [
                    *("sh", "-c", 'cd "$0" && exec "$@"', self._folder, self.programs / "pg_upgrade"),
                    *("-b", old.programs, "-B", self.programs, "-d", old.data, "-D", self.data, "-U", "postgres"),
                    *("-s", self._folder, "-p", str(old.port), "-P", str(self.port)),
                ],
            )

    def _make(self) -> None:
        super()._make()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in self._own_settings.items())


class WrongClock(OwnCluster):
    """A server whose wall clock a test moves while it runs."""

    def set_clock(self, offset: float) -> None:
        """From now on its clock is ahead of the machine's by so many seconds."""
        self._offset.write_text(f"{offset:+g}")

    def _start(self) -> None:
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        assert libraries, "faketime has its library elsewhere"
        self._offset = self._folder / "offset"
        self.set_clock(0)
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LD_PRELOAD", str(libraries[0]))
            environment.setenv("FAKETIME_TIMESTAMP_FILE", str(self._offset))
            environment.setenv("FAKETIME_NO_CACHE", "1")
            environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            super()._start()


def programs_of(server: Server) -> Path:
    """The programs of a server, to make another from; without them the test skips."""
    if not isinstance(server, (Embedded, Cluster)):
        pytest.skip("PGCONCERT_TEST_URL names a server without programs to make another from")
    return server.programs


@contextmanager
def own_cluster(server: Server, **settings: str) -> Iterator[OwnCluster]:
    """A cluster of this test's own, with our tables in its first database."""
    with closing(OwnCluster("own", programs_of(server), **settings)) as running:
        with_tables(running.url)
        yield running


def with_tables(url: str) -> None:
    """Make our tables."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(script().encode())


def dumped(cluster: Cluster, url: str) -> bytes:
    """What pg_dump says of a database."""
    return _run(cluster, "pg_dump", "-d", url)


def restored(cluster: Cluster, dump: bytes, database: str) -> str:
    """The URL of a new database into which a dump was restored."""
    cluster.execute(f"create database {database}")
    url = rewrite(cluster.url, dbname=database)
    _run(cluster, "psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, given=dump)
    return url


def _run(cluster: Cluster, program: str, *arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run([cluster.programs / program, *arguments], input=given, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout
