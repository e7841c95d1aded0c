"""A plain echo server, and what the tests of the fault proxy do with their sockets."""

from __future__ import annotations

import socket
import threading

from pgconcert.testing import FaultProxy

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


def dial(proxy: FaultProxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
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
