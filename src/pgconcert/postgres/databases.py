"""A database for one trial, on a server that is ours to use. For tests; no primitive uses it.

Locks and notifications of a server end at the border of a database, so one database for each test keeps tests apart
whatever names they use, and dropping it puts away whatever a test has left connected.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.conninfo import make_conninfo

__all__ = ["fresh_database"]


@contextmanager
def fresh_database(conninfo: str) -> Iterator[str]:
    """Make a database on the server of ``conninfo``, whose user must be allowed to; yields its name.

    At the end the sessions of all who are connected to it are ended, and it is dropped.
    """
    name = f"pgconcert_trial_{secrets.token_hex(8)}"
    connect = make_conninfo(conninfo, application_name="pgconcert trial")
    with psycopg.connect(connect, autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    try:
        yield name
    finally:
        with psycopg.connect(connect, autocommit=True) as connection:
            connection.execute(f"drop database if exists {name} with (force)".encode())
