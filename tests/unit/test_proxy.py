"""The fault proxy before a plain echo server: every fault, seen from the sockets of both sides."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from pgconcert.testing import FaultProxy, eventually
from tests.unit.echo import SSL_REQUEST, Echo, converse, dial, exactly, flood, silent


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
        proxy.delay(1.0, "to_server")
        started = time.monotonic()
        for number in range(10):
            client.sendall(b"%d" % number)
            time.sleep(0.01)  # so that they travel apart: a proxy that slept for each would need ten seconds
        assert exactly(client, 10) == b"0123456789"
        elapsed = time.monotonic() - started
        assert 1.09 <= elapsed < 9.0, elapsed
        proxy.delay(0)
        took: list[float] = []
        while not took or (took[-1] >= 1.0 and len(took) < 10):  # a busy machine may be as slow, for once
            started = time.monotonic()
            converse(client, b"x")
            took.append(time.monotonic() - started)
        assert took[-1] < 1.0


def test_split_at_every_byte(echo: Echo, proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        converse(client, b"x")
        proxy.split(1)
        text = bytes(range(256))
        # a reader that is kept from the processor finds several bytes together
        for _ in range(20):
            echo.reads.clear()
            converse(client, text)
            assert b"".join(echo.reads) == text
            if len(echo.reads) > 64:
                break
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
    eventually(lambda: threading.active_count() <= threads)  # those of the echo end by themselves
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= len(files))  # noqa: PTH208
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
