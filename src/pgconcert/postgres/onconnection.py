"""Notifications on a connection of the caller's: sent when its transaction commits, gone when it rolls back.

Any driver's connection with ``execute`` will do: psycopg's (blocking or async) and asyncpg's. What ``execute`` returns
is returned: to be awaited, if the driver's is.
"""

from __future__ import annotations

from typing import Any, Final

from ..messenger import PING_CHANNEL

__all__ = ["notify_on", "send_listener_ping"]

_PING: Final = f"select pg_notify('{PING_CHANNEL}', '')"


def notify_on(connection: Any, channel: str, payload: bytes) -> Any:
    """Send a notification on ``connection``, in its transaction if it is in one. Channel and payload were checked."""
    if type(connection).__module__.partition(".")[0] == "asyncpg":
        return connection.execute("select pg_notify($1, $2)", channel, payload.decode())
    return connection.execute("select pg_notify(%s, %s)", (channel, payload.decode()))


def send_listener_ping(connection: Any) -> Any:
    """Send a ping to all listeners of the database, on a connection of yours: psycopg's (blocking or async) or
    asyncpg's. Returns what its ``execute`` returns, to be awaited if that is async.

    For programs that ping from outside, beside coordinators with ``ping_connection=None``.
    """
    return connection.execute(_PING)
