"""What an operator does to the sessions of others. For the command line and for tests of faults; no primitive uses it.

A plain blocking connection of its own, because whoever uses this looks at coordinators from outside.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import psycopg

from ..conninfo import parse
from ..errors import StatementFailed, Unavailable
from .lockview import LOOK, Names, View, read_view

__all__ = ["SESSIONS_WITH_LOCKS", "Operator"]

SESSIONS_WITH_LOCKS: Final = """
select a.pid, coalesce(a.application_name, ''), coalesce(a.datname, ''), coalesce(a.state, ''), left(a.query, 200),
       l.classid::int8, l.objid::int8, l.objsubid = 2, l.mode, l.granted
from pg_catalog.pg_stat_activity a
left join pg_catalog.pg_locks l on l.pid = a.pid and l.locktype = 'advisory'
where a.datname is not null and coalesce(a.backend_type, 'client backend') = 'client backend'
  and a.pid <> pg_catalog.pg_backend_pid() and a.application_name <> 'pgconcert leak check'
  and (%s or a.datname = pg_catalog.current_database())
order by a.pid, l.classid, l.objid
"""
"""Every client session but this one, with the advisory locks it holds or waits for, a row for each lock."""


class Operator:
    """One connection, and what may be asked on it. Use it as ``with``, from one thread.

    :param url: a connection string, as for ``AsyncCoordinator``, but not ``embedded://``.
    :param timeout: seconds for the attempt to connect, unless the address says otherwise; at least 2.

    Raises ``ConfigurationError`` for an address that cannot be read, ``Unavailable`` when nobody answers.
    """

    def __init__(self, url: str, *, name: str = "pgconcert operator", timeout: int = 10) -> None:
        parameters: dict[str, Any] = {
            "application_name": name,
            "connect_timeout": timeout,
            "tcp_user_timeout": timeout * 1000,
            **parse(url),
        }
        try:
            self._connection = psycopg.connect(**parameters, autocommit=True)
        except psycopg.Error as error:
            raise Unavailable(f"the server cannot be reached: {_in_one_line(error)}") from error

    @property
    def server(self) -> str:
        """Where it is and what it is, for people; never a password."""
        info = self._connection.info
        place = f"{info.host}:{info.port}" if not info.host.startswith("/") else info.host
        major, minor = divmod(info.server_version, 10000)
        return f"PostgreSQL {major}.{minor} at {place}, database {info.dbname}"

    def end_session(self, pid: int) -> bool:
        """End the session of a server process, as ``pg_terminate_backend`` does. False if there is none.

        Returns at once; the session's locks are free when the server has come round to it. Raises ``StatementFailed``
        (it belongs to a more powerful user, say) or ``Unavailable``.
        """
        try:
            row = self._connection.execute("select pg_catalog.pg_terminate_backend(%s)", (pid,)).fetchone()
        except psycopg.OperationalError as error:
            raise Unavailable(f"the connection to the server is gone: {_in_one_line(error)}") from error
        except psycopg.Error as error:
            raise StatementFailed(
                f"session {pid} cannot be ended: {_in_one_line(error)}", error.sqlstate or ""
            ) from error
        return row is not None and bool(row[0])

    def look(self, names: Names, *, all_databases: bool = False) -> View:
        """The advisory locks of this database or of all, in one statement that a transaction pooler carries as well.

        Raises ``Unavailable`` when the connection is gone, ``StatementFailed`` when the server refuses.
        """
        try:
            rows = self._connection.execute(LOOK, (all_databases,), prepare=False).fetchall()
        except psycopg.Error as error:
            said = _in_one_line(error)
            if self._connection.closed:
                raise Unavailable(f"the connection to the server is gone: {said}") from error
            raise StatementFailed(f"the locks cannot be listed: {said}", error.sqlstate or "") from error
        return read_view(rows, names)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _in_one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split()) or "no answer"
