"""Sending from outside: the flood and the steady stream that listeners are measured with.

What may live here: one sender for each transport, and `stream`. They run in the benchmark's own process, which does
nothing else meanwhile.

Theory. What is sent must not depend on who listens, so nobody's own publisher is used. A flood is made by the server
itself where it can be (one statement, generate_series) and is one transaction: listeners are woken when all of it is in
the queue, so its maker takes no time from them. The stream is offered at a fixed rate, whether it is kept up with or
not: what is due goes out in one statement, with the stamp of that instant in each payload.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import psycopg
from candidate import Address
from pubsub_candidate import DIGITS, Transport, payload_maker, stamped

FLOOD = """
    select count(pg_notify(%(channel)s, '"' || lpad(n::text, %(digits)s, '0') || %(padding)s || '"'))
    from generate_series(1, %(count)s) n
"""
SEND = "select count(pg_notify(c, p)) from unnest(%s::text[], %s::text[]) t(c, p)"
PIECE = 5000


class Sender(Protocol):
    """Sends to whoever listens."""

    def flood(self, channel: str, count: int, size: int) -> float:
        """Send `count` different messages, as fast as possible; when (by `time.monotonic()`) the first could arrive."""
        ...

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        """Send some messages now."""
        ...


class PostgresSender:
    def __init__(self, address: Address) -> None:
        self.connection = psycopg.connect(address.url, autocommit=True, prepare_threshold=0)

    def flood(self, channel: str, count: int, size: int) -> float:
        padding = "x" * (size - DIGITS - 2)
        with self.connection.transaction():
            self.connection.execute(FLOOD, {"channel": channel, "digits": DIGITS, "padding": padding, "count": count})
            return time.monotonic()

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        channels, payloads = [channel for channel, _ in messages], [payload.decode() for _, payload in messages]
        self.connection.execute(SEND, (channels, payloads)).fetchone()


class WireSender:
    """A protocol of plain bytes over a socket, without waiting for answers."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def encode(self, channel: str, payload: bytes) -> bytes:
        raise NotImplementedError

    def flood(self, channel: str, count: int, size: int) -> float:
        make, begun = payload_maker(size, False), time.monotonic()
        for first in range(1, count + 1, PIECE):
            numbers = range(first, min(first + PIECE, count + 1))
            self.connection.sendall(b"".join(self.encode(channel, make(number).encode()) for number in numbers))
        return begun

    def send(self, messages: Sequence[tuple[str, bytes]]) -> None:
        self.connection.sendall(b"".join(self.encode(channel, payload) for channel, payload in messages))


class RedisSender(WireSender):
    def __init__(self, path: str) -> None:
        super().__init__(socket.socket(socket.AF_UNIX))
        self.connection.connect(path)
        self.connection.sendall(b"CLIENT REPLY OFF\r\n")

    def encode(self, channel: str, payload: bytes) -> bytes:
        name = channel.encode()
        return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(name), name, len(payload), payload)


class NatsSender(WireSender):
    def __init__(self, port: int) -> None:
        super().__init__(socket.create_connection(("127.0.0.1", port)))
        self.connection.recv(65536)  # the server introduces itself
        self.connection.sendall(b'CONNECT {"verbose":false,"pedantic":false}\r\n')

    def encode(self, channel: str, payload: bytes) -> bytes:
        return b"PUB %b %d\r\n%b\r\n" % (channel.encode(), len(payload), payload)


@contextlib.contextmanager
def sender(address: Address, transport: Transport) -> Iterator[Sender]:
    """A sender that is closed afterwards. The server of that transport must be there."""
    made: PostgresSender | WireSender
    if transport == "redis":
        made = RedisSender(str(address.redis_socket))
    elif transport == "nats":
        made = NatsSender(int(address.nats_port or 0))
    else:
        made = PostgresSender(address)
    with contextlib.closing(made.connection):
        yield made


def stream(sender: Sender, channel: str, rate: float, seconds: float, size: int) -> int:
    """Offer `rate` stamped messages a second; how many were sent."""
    total = int(rate * seconds)
    begun, sent = time.monotonic(), 0
    while sent < total:
        due = min(total, int((time.monotonic() - begun) * rate) + 1)
        if due > sent:
            now = time.monotonic_ns()
            sender.send([(channel, stamped(number, now, size)) for number in range(sent, due)])
            sent = due
        else:
            time.sleep(max(0.0, begun + sent / rate - time.monotonic()))
    return sent
