"""The fault proxy before a plain echo server: every fault, seen from the sockets of both sides."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgconcert.testing import FaultProxy, eventually
from pgconcert.testing.certificate import self_signed
from tests.needs import need

SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
GSS_REQUEST = (8).to_bytes(4, "big") + (80877104).to_bytes(4, "big")


class Echo:
    """Sends back what it gets and keeps a record; every connection has a thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._threads: list[threading.Thread] = []
        self.connections: list[socket.socket] = []
        self.reads: list[bytes] = []
        self.ends: list[str] = []
        self._accepting = threading.Thread(target=self._accept, name="echo: accept")
        self._accepting.start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            thread = threading.Thread(target=self._echo, args=(connection,), name="echo")
            self._threads.append(thread)
            thread.start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                end = "FIN"
                while data := connection.recv(65536):
                    self.reads.append(data)
                    try:
                        connection.sendall(data)
                    except ConnectionError:
                        end = "RST"  # what had come before it can still be read
            except OSError:
                end = "RST"
            self.ends.append(end)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(socket.create_server(("127.0.0.1", 0)))
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy("127.0.0.1", echo.port) as running:
        yield running


def dial(proxy: FaultProxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def exactly(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = client.recv(size - len(found))
        assert more, f"the stream ended after {len(found)} of {size} bytes"
        found += more
    return found


def silent(client: socket.socket, seconds: float = 0.15) -> bool:
    """Nothing comes for a while: the one thing that can only be seen by waiting."""
    before = client.gettimeout()
    client.settimeout(seconds)
    try:
        return not client.recv(1, socket.MSG_PEEK) and False
    except TimeoutError:
        return True
    finally:
        client.settimeout(before)


def flood(client: socket.socket) -> None:
    while True:
        client.sendall(bytes(1 << 20))


def drain(client: socket.socket) -> bytes:
    found = b""
    while more := client.recv(65536):
        found += more
    return found


def converse(client: socket.socket, text: bytes) -> None:
    client.sendall(text)
    assert exactly(client, len(text)) == text


def test_bytes_pass_and_are_counted(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"hello")
        big = os.urandom(3_000_000)
        sender = threading.Thread(target=client.sendall, args=(big,))
        sender.start()
        assert exactly(client, len(big)) == big
        sender.join()
        eventually(lambda: proxy.bytes_to_client == len(big) + 5)
        assert (proxy.connections, proxy.open_connections) == (1, 1)
        assert proxy.bytes_to_server == len(big) + 5
        # A half-closed connection goes on in the other direction.
        client.sendall(b"last")
        client.shutdown(socket.SHUT_WR)
        assert exactly(client, 4) == b"last"
        assert client.recv(1) == b""
    eventually(lambda: proxy.open_connections == 0)
    assert echo.ends == ["FIN"]


def test_pause_is_a_black_hole(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"before")
        proxy.pause()
        client.sendall(b"during")
        with dial(proxy) as late:
            late.sendall(b"late")
            assert silent(client)
            assert silent(late)
            assert len(echo.connections) == 1
            assert proxy.bytes_to_server == 6
            proxy.resume()
            assert exactly(client, 6) == b"during"
            assert exactly(late, 4) == b"late"


def test_while_paused_the_sender_feels_a_full_window(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.pause("to_server")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            flood(client)
        assert proxy.bytes_to_server == 1


def test_pause_one_direction(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"1")
        proxy.pause("to_client")
        client.sendall(b"2")
        eventually(lambda: echo.reads == [b"1", b"2"])
        assert silent(client)
        proxy.resume("to_client")
        assert exactly(client, 1) == b"2"
        proxy.pause("to_server")
        client.sendall(b"3")
        assert silent(client)
        echo.connections[0].sendall(b"from the server")
        assert exactly(client, 15) == b"from the server"
        assert echo.reads == [b"1", b"2"]


def test_cut_resets_both_sides_and_new_connections_pass(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.cut()
        assert proxy.open_connections <= 1
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        eventually(lambda: echo.ends == ["RST"])
    with dial(proxy) as client:
        converse(client, b"y")


def test_cut_with_fin(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.pause()
        client.sendall(b"unread bytes must not turn the FIN into a reset")
        proxy.cut(rst=False)
        assert client.recv(1) == b""
        eventually(lambda: echo.ends == ["FIN"])
        assert echo.reads == [b"x"]


def test_refuse_and_accept(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.refuse()
        with pytest.raises(ConnectionResetError), dial(proxy) as refused:
            refused.recv(1)
        converse(client, b"the present one stays")
        proxy.accept()
        with dial(proxy) as later:
            converse(later, b"y")
    assert proxy.connections == 2
    assert len(echo.connections) == 2


def test_delay_is_latency_and_not_bandwidth(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        proxy.delay(0.1, "to_server")
        started = time.monotonic()
        for number in range(10):
            client.sendall(b"%d" % number)
            time.sleep(0.01)  # so that they travel apart: a proxy that slept for each would need a second
        assert exactly(client, 10) == b"0123456789"
        elapsed = time.monotonic() - started
        assert 0.19 <= elapsed < 0.8, elapsed
        proxy.delay(0)
        started = time.monotonic()
        converse(client, b"x")
        assert time.monotonic() - started < 0.1


def test_split_at_every_byte(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.split(1)
        text = bytes(range(256))
        converse(client, text)
        assert b"".join(echo.reads) == b"x" + text
        # A reader that is kept from the processor finds several bytes together.
        assert len(echo.reads) > 64
        proxy.split(None)
        converse(client, b"whole again")
        assert echo.reads[-1] == b"whole again"


@pytest.mark.parametrize("n_bytes", [1, 7, 70_000])
def test_cut_after_to_the_byte(echo: Echo, proxy: FaultProxy, n_bytes: int) -> None:
    with dial(proxy) as client:
        converse(client, b"before")
        echo.reads.clear()
        proxy.cut_after(n_bytes, "to_server")
        with pytest.raises(ConnectionError):
            flood(client)
        eventually(lambda: len(echo.ends) == 1)
        assert sum(map(len, echo.reads)) == n_bytes
    with dial(proxy) as client:
        converse(client, bytes(200))


def test_cut_after_towards_the_client(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"before")
        proxy.cut_after(3, "to_client")
        client.sendall(b"abcdef")
        assert exactly(client, 3) == b"abc"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_reset_from_the_server_reaches_the_client() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        FaultProxy("127.0.0.1", listener.getsockname()[1]) as proxy,
        dial(proxy) as client,
    ):
        server, _ = listener.accept()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        eventually(lambda: proxy.open_connections == 0)


def test_without_a_server_the_client_is_reset() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with FaultProxy("127.0.0.1", nobody.getsockname()[1]) as proxy:
            with pytest.raises(ConnectionResetError), dial(proxy) as client:
                client.recv(1)


def test_a_unix_socket_as_target(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / ".s.PGSQL.5999"))
    listener.listen()
    echo = Echo(listener)
    try:
        with FaultProxy.to(f"host={tmp_path} port=5999 dbname=x") as proxy, dial(proxy) as client:
            converse(client, b"through a folder")
            proxy.cut()
            eventually(lambda: len(echo.ends) == 1)
    finally:
        echo.close()


def test_it_works_while_the_caller_blocks(proxy: FaultProxy) -> None:
    async def blocked() -> None:
        with dial(proxy) as client:
            converse(client, b"a blocking call inside a coroutine")
            proxy.pause()
            proxy.resume()
            converse(client, b"and after orders from it")

    asyncio.run(blocked())


def test_nothing_is_left_after_close(echo: Echo) -> None:
    gc.collect()
    threads, files = threading.active_count(), os.listdir("/proc/self/fd")  # noqa: PTH208
    clients = []
    with FaultProxy("127.0.0.1", echo.port, tls=True) as proxy:
        folder = proxy.certificate.parent
        clients = [dial(proxy) for _ in range(5)]
        clients[0].sendall(SSL_REQUEST)
        proxy.pause()
        clients[1].sendall(bytes(100))
    for client in clients:
        client.close()
    assert not folder.exists()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= len(files)  # noqa: PTH208
    with pytest.raises(RuntimeError, match="not running"):
        proxy.pause()
    proxy.close()


def test_misuse_is_named(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="byte: 0"):
        proxy.split(0)
    with pytest.raises(ValueError, match="-1"):
        proxy.delay(-1)
    with pytest.raises(ValueError, match="not 0"):
        proxy.cut_after(0, "to_client")
    with pytest.raises(ValueError, match="sideways"):
        proxy.pause("sideways")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="already"):
        proxy.start()
    with pytest.raises(ValueError, match="one for each"):
        FaultProxy.to("host=a,b")
    with pytest.raises(RuntimeError, match="with statement"):
        FaultProxy("127.0.0.1", 1).port  # noqa: B018


# TLS


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
        client.settimeout(10)
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
