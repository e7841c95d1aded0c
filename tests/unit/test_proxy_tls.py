"""The fault proxy with TLS towards the client, before a plain echo server."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgconcert.testing import FaultProxy, eventually
from pgconcert.testing.certificate import self_signed
from tests.needs import need
from tests.unit.echo import GSS_REQUEST, SSL_REQUEST, Echo, converse, dial, drain

pytestmark = pytest.mark.timeout(300)  # much work for a busy processor


@pytest.fixture
def tls_proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port, tls=True) as running:
        yield running


def secure(proxy: FaultProxy, *, ask: bytes = SSL_REQUEST) -> ssl.SSLSocket:
    plain = dial(proxy)
    if ask:
        plain.sendall(ask)
        assert plain.recv(1) == b"S"
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_tls_towards_the_client_plain_towards_the_server(echo: Echo, tls_proxy: FaultProxy) -> None:
    with secure(tls_proxy) as client:
        converse(client, b"secret")
        assert echo.reads == [b"secret"]
        big = os.urandom(1_000_000)
        sender = threading.Thread(target=echo.connections[0].sendall, args=(big,))
        sender.start()
        found, largest = b"", 0
        while len(found) < len(big):
            record = client.recv(1 << 20)  # one record at a time
            largest = max(largest, len(record))
            found += record
        sender.join()
        assert found == big
        assert largest == 16384
        eventually(lambda: tls_proxy.bytes_to_client == len(big) + 6)
        # It says goodbye as TLS wants it, so the client's end of stream is no error.
        echo.connections[0].shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_a_client_says_goodbye_in_tls(echo: Echo, tls_proxy: FaultProxy) -> None:
    with secure(tls_proxy) as client:
        converse(client, b"x")
        converse(client, b"last")
        client.unwrap().close()
    eventually(lambda: echo.ends == ["FIN"])
    assert b"".join(echo.reads) == b"xlast"
    eventually(lambda: tls_proxy.open_connections == 0)


def test_tls_with_every_byte_apart(echo: Echo, tls_proxy: FaultProxy) -> None:
    tls_proxy.split(1)
    with secure(tls_proxy) as client:
        text = os.urandom(500)
        converse(client, text)
        assert b"".join(echo.reads) == text


def test_tls_pause_and_cut(tls_proxy: FaultProxy) -> None:
    with secure(tls_proxy) as client:
        converse(client, b"x")
        tls_proxy.pause("to_client")
        client.sendall(b"y")
        client.settimeout(0.15)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(30)
        tls_proxy.resume()
        assert client.recv(1) == b"y"
        tls_proxy.cut(rst=False)
        assert client.recv(1) == b""


def test_gss_is_declined_and_then_tls_accepted(tls_proxy: FaultProxy) -> None:
    with dial(tls_proxy) as client:
        client.sendall(GSS_REQUEST)
        assert client.recv(1) == b"N"
        client.sendall(SSL_REQUEST)
        assert client.recv(1) == b"S"


def test_tls_without_asking_first(tls_proxy: FaultProxy) -> None:
    with secure(tls_proxy, ask=b"") as client:
        converse(client, b"direct")


def test_a_client_that_does_not_want_tls_passes_in_clear(tls_proxy: FaultProxy) -> None:
    with dial(tls_proxy) as client:
        converse(client, b"a start-up message that asks for nothing")


def test_a_client_that_leaves_during_the_handshake(tls_proxy: FaultProxy) -> None:
    with dial(tls_proxy) as client:
        client.sendall(SSL_REQUEST)
        assert client.recv(1) == b"S"
    with dial(tls_proxy) as client:
        client.sendall(SSL_REQUEST)
        assert client.recv(1) == b"S"
        client.sendall(b"this is not a handshake")
        with pytest.raises(ConnectionResetError):
            drain(client)
    eventually(lambda: tls_proxy.open_connections == 0)
    with secure(tls_proxy) as client:
        converse(client, b"others are not disturbed")


def test_the_certificate_can_be_made_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    need(request.config, "openssl")
    monkeypatch.setitem(sys.modules, "cryptography", None)
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    assert key.stat().st_mode & 0o777 == 0o600
    names = subprocess.run(
        ["openssl", "x509", "-in", certificate, "-noout", "-ext", "subjectAltName"], capture_output=True, text=True
    ).stdout
    assert "DNS:localhost" in names
    assert "IP Address:127.0.0.1" in names
