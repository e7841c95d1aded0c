"""psycopg through the fault proxy: what a database client sees of each fault."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgconcert.testing import FaultProxy, eventually, sessions
from tests.servers import Server

LONG = "select string_agg(md5(i::text), '') from generate_series(1, 20000) i"


def test_statements_pass(proxy: FaultProxy, database: str) -> None:
    with psycopg.connect(proxy.url(database)) as connection:
        row = connection.execute(LONG).fetchone()
    assert row is not None
    assert len(row[0]) == 640_000
    assert proxy.connections == 1
    assert proxy.bytes_to_client > 640_000
    assert proxy.bytes_to_server > len(LONG)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_split_changes_nothing_but_the_pieces(proxy: FaultProxy, database: str, size: int) -> None:
    proxy.split(size)
    with psycopg.connect(proxy.url(database)) as connection:
        assert connection.execute("select repeat('x', 300), 1.5").fetchall()[0][0] == "x" * 300


def test_cut_ends_the_session_on_both_sides(proxy: FaultProxy, database: str) -> None:
    with psycopg.connect(proxy.url(database), autocommit=True) as connection:
        pid = connection.info.backend_pid
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        eventually(lambda: pid not in {session.pid for session in sessions(database)})


def test_pause_keeps_the_session(proxy: FaultProxy, database: str) -> None:
    with psycopg.connect(proxy.url(database), autocommit=True) as connection:
        pid = connection.info.backend_pid
        proxy.pause()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(proxy.url(database, connect_timeout=2))
        assert pid in {session.pid for session in sessions(database)}
        proxy.resume()
        assert connection.execute("select 1").fetchone() == (1,)


def test_refused_connections(proxy: FaultProxy, database: str) -> None:
    proxy.refuse()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(proxy.url(database))
    proxy.accept()
    psycopg.connect(proxy.url(database)).close()


def test_an_answer_that_breaks_off(proxy: FaultProxy, database: str) -> None:
    with psycopg.connect(proxy.url(database), autocommit=True) as connection:
        proxy.cut_after(100_000, "to_client")
        with pytest.raises(psycopg.OperationalError):
            connection.execute(LONG)


def test_tls_verified(tls_proxy: FaultProxy, database: str) -> None:
    url = tls_proxy.url(database, sslmode="verify-full", sslrootcert=str(tls_proxy.certificate))
    with psycopg.connect(url) as connection:
        assert connection.pgconn.ssl_in_use
        row = connection.execute(LONG).fetchone()
        assert row is not None
        assert len(row[0]) == 640_000


def test_a_cancel_request_passes_the_tls_proxy(tls_proxy: FaultProxy, database: str) -> None:
    with psycopg.connect(tls_proxy.url(database, sslmode="require"), autocommit=True) as connection:
        connection.cancel_safe()
        assert connection.pgconn.ssl_in_use
    assert tls_proxy.connections == 2


def test_a_conninfo_of_key_and_value(server: Server) -> None:
    parts = conninfo_to_dict(server.url)
    with FaultProxy.to(make_conninfo("", **parts)) as proxy:
        assert "://" not in proxy.url("dbname=x")
        with psycopg.connect(proxy.url(server.over_tcp(server.url))) as connection:
            assert connection.info.port == proxy.port
