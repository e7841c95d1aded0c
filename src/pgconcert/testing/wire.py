"""What happens to bytes inside the fault proxy: the two ends of a connection, and the rules of one direction.

Here live ``End`` (a non-blocking socket, with or without TLS on top), ``Direction`` (paused, delayed, split, limited)
and ``Pipe`` (the bytes on their way in one direction). Nothing here knows about listening or about the thread.

Theory: an end reads only after it was told that it may, and asks again after every wait. So once a direction is
paused not one more byte is taken from the kernel, and the sender feels the black hole as a full window, as it would
on a real network. TLS runs over memory buffers, so the proxy decides how the encrypted bytes meet the wire: records
of up to 16 KiB, cut into any pieces. All of it runs on the proxy's own loop, in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import time
from collections import deque
from typing import Final, Literal

CHUNK: Final = 65536
_REST: Final = 50e-6
_NO_LINGER: Final = struct.pack("ii", 1, 0)

DirectionName = Literal["to_server", "to_client"]


class Direction:
    """The rules for one direction, shared by all connections of a proxy."""

    def __init__(self) -> None:
        self.flows = asyncio.Event()
        self.flows.set()
        self.delay = 0.0
        self.piece: int | None = None
        self.allowance: int | None = None
        self.forwarded = 0

    def admit(self, data: bytes) -> tuple[bytes, bool]:
        """What of ``data`` may still pass, and whether the connections are to be cut after it."""
        if self.allowance is None:
            return data, False
        admitted = data[: self.allowance]
        self.allowance -= len(admitted)
        if self.allowance:
            return admitted, False
        self.allowance = None
        return admitted, True


class End:
    """One side of a proxied connection."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()

    async def connect(self, address: tuple[str, int] | str) -> None:
        """Connect to a TCP address or, if it is text, to a Unix socket; raises OSError."""
        await asyncio.get_running_loop().sock_connect(self._sock, address)

    async def receive(self, rules: Direction, size: int = CHUNK) -> bytes:
        """The next bytes, b"" at the end of the stream. Takes nothing from the kernel while ``rules`` pause."""
        while True:
            await rules.flows.wait()
            # The first bytes may have come in one piece with the end of the handshake.
            if self._tls and (plain := self._decrypted()) is not None:
                return plain
            try:
                raw = self._sock.recv(size)
            except BlockingIOError:
                await self._ready(for_writing=False)
                continue
            if not self._tls or not raw:
                return raw
            self._incoming.write(raw)

    async def send(self, data: bytes, rules: Direction) -> None:
        """Write all of ``data``, in the pieces and with the pauses that ``rules`` ask for."""
        await self._send_raw(self._encrypted(data), rules)

    async def arrived(self) -> None:
        """Wait until all that was sent has reached the other side's kernel, where a reset cannot undo it."""
        while self._sock.family != socket.AF_UNIX and self._sock.fileno() != -1:
            if not any(fcntl.ioctl(self._sock, termios.TIOCOUTQ, bytes(4))):
                return
            # No event tells of it; a receiver with a full window decides how long it takes.
            await asyncio.sleep(_REST)

    async def finish(self, rules: Direction) -> None:
        """Say that no more will come, as a server that closes in good order does."""
        if self._tls:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            await self._send_raw(self._outgoing.read(), rules)
        await rules.flows.wait()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    async def accept_tls(self, context: ssl.SSLContext, first: bytes, inward: Direction, outward: Direction) -> None:
        """Do the server's part of a TLS handshake; ``first`` has been read already."""
        self._incoming.write(first)
        tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._outgoing.read(), outward)
                raw = await self.receive(inward)
                if not raw:
                    raise ConnectionResetError("the client left during the TLS handshake") from None
                self._incoming.write(raw)
            else:
                break
        await self._send_raw(self._outgoing.read(), outward)
        self._tls = tls

    def drop(self, *, rst: bool) -> None:
        """Close at once: with a reset, or with a FIN after what has been sent."""
        if self._sock.fileno() == -1:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        loop.remove_writer(self._sock)
        with contextlib.suppress(OSError):
            if rst:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            else:
                self._sock.shutdown(socket.SHUT_WR)
                # Bytes that lie unread in the kernel would turn the close into a reset.
                while self._sock.recv(CHUNK):
                    pass
        self._sock.close()

    def _decrypted(self) -> bytes | None:
        assert self._tls is not None
        plain = bytearray()
        while True:
            try:
                piece = self._tls.read(CHUNK)
            except ssl.SSLWantReadError:
                return bytes(plain) if plain else None
            except ssl.SSLZeroReturnError:
                piece = b""
            if not piece:
                # The client's goodbye. If bytes came before the goodbye, the next call says once more that it came.
                return bytes(plain)
            plain += piece

    def _encrypted(self, data: bytes) -> bytes:
        if not self._tls:
            return data
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        return self._outgoing.read()

    async def _send_raw(self, raw: bytes, rules: Direction) -> None:
        rest = memoryview(raw)
        while rest:
            await rules.flows.wait()
            try:
                sent = self._sock.send(rest[: rules.piece])
            except BlockingIOError:
                await self._ready(for_writing=True)
                continue
            rest = rest[sent:]
            if rules.piece:
                # The receiver needs the processor, and in the same process the interpreter, to find the piece alone.
                # The loop's own timers are far too coarse for a rest after every byte.
                time.sleep(_REST)  # noqa: ASYNC251
                await asyncio.sleep(0)

    async def _ready(self, *, for_writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        add, remove = (loop.add_writer, loop.remove_writer) if for_writing else (loop.add_reader, loop.remove_reader)
        add(self._sock, wake)
        try:
            await ready
        finally:
            # After drop() the number may already belong to another socket.
            if self._sock.fileno() != -1:
                remove(self._sock)


class Pipe:
    """Bytes on their way, with the time when they are due; an empty piece is the end of the stream."""

    def __init__(self, head: bytes) -> None:
        self._waiting: deque[tuple[float, bytes]] = deque([(0.0, head)] if head else [])
        self._size = len(head)
        self._changed = asyncio.Event()

    async def has_room(self) -> None:
        """Wait until less than one chunk lies in the pipe."""
        while self._size >= CHUNK:
            await self._change()

    def put(self, due: float, data: bytes) -> None:
        """Add bytes that are due at ``due`` on the loop's clock."""
        self._waiting.append((due, data))
        self._size += len(data)
        self._changed.set()

    async def get(self) -> tuple[float, bytes]:
        """Wait for the oldest bytes, due or not."""
        while not self._waiting:
            await self._change()
        due, data = self._waiting.popleft()
        self._size -= len(data)
        self._changed.set()
        return due, data

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
