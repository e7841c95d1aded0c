"""``Operator``: ends other sessions, and says what went wrong without a secret."""

from __future__ import annotations

import psycopg
import pytest

from pgconcert import ConfigurationError, StatementFailed, Unavailable
from pgconcert.postgres.operator import Operator
from pgconcert.testing import eventually
from tests.servers import Server


def test_a_session_is_ended(server: Server) -> None:
    with psycopg.connect(server.url, autocommit=True) as victim, Operator(server.url) as operator:
        assert operator.end_session(victim.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            victim.execute("select pg_sleep(10)")
        eventually(lambda: not operator.end_session(victim.info.backend_pid), what="the session is gone")


def test_what_is_no_session_is_not_ended(server: Server) -> None:
    with Operator(server.url) as operator:
        assert not operator.end_session(1)


def test_the_server_is_named_without_its_password(server: Server) -> None:
    with Operator(server.tcp_url) as operator:
        assert operator.server.startswith(f"PostgreSQL {server.major}.")
        assert "127.0.0.1" in operator.server
    with pytest.raises(Unavailable):
        operator.end_session(1)


def test_a_user_without_the_right_is_told(server: Server, unique: str) -> None:
    role = f"role{abs(hash(unique))}"
    server.execute(f"create role {role} login")
    try:
        with psycopg.connect(server.url) as victim, Operator(server.url) as operator:
            operator._connection.execute(f"set role {role}".encode())
            with pytest.raises(StatementFailed, match=str(victim.info.backend_pid)) as caught:
                operator.end_session(victim.info.backend_pid)
            assert caught.value.sqlstate == "42501"
    finally:
        server.execute(f"drop role {role}")


def test_nobody_answers() -> None:
    with pytest.raises(Unavailable) as caught:
        Operator("postgresql://ann:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


def test_an_address_that_is_none() -> None:
    with pytest.raises(ConfigurationError):
        Operator("postgresql://[x")
