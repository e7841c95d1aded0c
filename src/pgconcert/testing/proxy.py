"""A TCP proxy that breaks the network on purpose, for tests.

Here live ``FaultProxy`` (what a test sees) and ``_Connection`` (one client and its way to the server); how bytes are
read and written stands in ``wire.py``.

Theory: the proxy has a thread and an event loop of its own, so it goes on working, or goes on being silent, while the
loop under test is blocked. Every order is carried out on that loop before the call returns: after ``pause()`` not one
more byte passes. Between the reader and the writer of each direction stands a short queue of (due time, bytes), so a
delay is latency and not a smaller bandwidth, and a slow receiver still slows the sender down.

What a thread cannot do is run while another one keeps the interpreter to itself: a call into C that waits for the
network without letting go of it, as psycopg's ``Connection.cancel`` does, waits for ever behind a proxy of the same
process. ``cancel_safe``, and all that psycopg does otherwise, is not of that kind.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from psycopg.conninfo import conninfo_to_dict

from .certificate import self_signed
from .urls import rewrite
from .wire import Direction, DirectionName, End, Pipe

T = TypeVar("T")

_SSL_REQUEST: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_GSS_REQUEST: Final = (8).to_bytes(4, "big") + (80877104).to_bytes(4, "big")
_TLS_HANDSHAKE: Final = 0x16
_PATIENCE: Final = 10.0


class FaultProxy:
    """Stands between clients and one server and disturbs what they say to each other, as told.

    ``target_host`` is a name, an address, or a folder of Unix sockets (it begins with "/"), as in libpq. With ``tls``
    the proxy speaks TLS towards clients that ask for it, with a throw-away certificate (``certificate``), and plain
    towards the server. Use it as ``with FaultProxy(...) as proxy:``, in tests of either kind; the methods may be called
    from any thread, and have taken effect when they return. If the server cannot be reached, the client is reset.

    A ``direction`` of ``None`` means both.
    """

    def __init__(self, target_host: str, target_port: int, *, tls: bool = False) -> None:
        self.target_host = target_host
        self.target_port = target_port
        self.connections = 0
        """How many connections clients have opened so far, refused ones left out."""
        self._tls = tls
        self._rules: dict[DirectionName, Direction] = {}
        self._live: set[_Connection] = set()
        self._refusing = False
        self._port: int | None = None
        self._certificate: Path | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @classmethod
    def to(cls, conninfo: str, *, tls: bool = False) -> Self:
        """A proxy to the server a libpq connection string or URL names; PGHOST and PGPORT fill in.

        Raises ValueError if no host is named, or several.
        """
        parts = conninfo_to_dict(conninfo)
        host = str(parts.get("hostaddr") or parts.get("host") or os.environ.get("PGHOST", ""))
        port = str(parts.get("port") or os.environ.get("PGPORT") or 5432)
        if not host:
            raise ValueError("the connection string names no host for the proxy to connect to: add host=...")
        if "," in host or "," in port:
            raise ValueError(f"a proxy stands before one server, not before {host} {port}: make one for each")
        return cls(host, int(port), tls=tls)

    # What a test asks

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1 where the proxy listens."""
        if self._port is None:
            raise RuntimeError("the proxy is not started: use it in a with statement")
        return self._port

    @property
    def certificate(self) -> Path:
        """The file to give as ``sslrootcert``; only with ``tls=True``, for localhost and 127.0.0.1."""
        if self._certificate is None:
            raise RuntimeError("the proxy has no certificate: give tls=True and use it in a with statement")
        return self._certificate

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._live)

    @property
    def bytes_to_server(self) -> int:
        """Payload bytes passed on to the server so far, counted when a chunk has left."""
        return self._rules["to_server"].forwarded if self._rules else 0

    @property
    def bytes_to_client(self) -> int:
        """Payload bytes passed on to clients so far, counted when a chunk has left."""
        return self._rules["to_client"].forwarded if self._rules else 0

    def url(self, conninfo: str, **changes: str | int | None) -> str:
        """The same connection string by way of this proxy, with other libpq parameters replaced if given."""
        return rewrite(conninfo, **({"host": "127.0.0.1", "hostaddr": None, "port": self.port} | changes))

    # What a test orders

    def pause(self, direction: DirectionName | None = None) -> None:
        """Become a black hole: connections stay, nothing is read or passed on, new ones meet silence."""
        self._each(direction, lambda rules: rules.flows.clear())

    def resume(self, direction: DirectionName | None = None) -> None:
        """End a pause; what has waited flows on."""
        self._each(direction, lambda rules: rules.flows.set())

    def delay(self, seconds: float, direction: DirectionName | None = None) -> None:
        """Pass on what is read from now on ``seconds`` later, in order; 0 ends it."""
        if seconds < 0:
            raise ValueError(f"a delay cannot be negative: {seconds}")
        self._each(direction, lambda rules: setattr(rules, "delay", seconds))

    def split(self, size: int | None, direction: DirectionName | None = None) -> None:
        """Write at most ``size`` bytes at a time, under TLS of the encrypted stream; None ends it.

        Each piece costs about 0.1 ms. Most pieces arrive alone; a receiver that is kept waiting may find several.
        """
        if size is not None and size < 1:
            raise ValueError(f"the size of a piece must be at least 1 byte: {size}")
        self._each(direction, lambda rules: setattr(rules, "piece", size))

    def cut_after(self, n_bytes: int, direction: DirectionName) -> None:
        """Reset all connections once exactly ``n_bytes`` more payload bytes, of all together, have arrived."""
        if n_bytes < 1:
            raise ValueError(f"cut_after needs at least 1 byte, not {n_bytes}: use cut()")
        self._each(direction, lambda rules: setattr(rules, "allowance", n_bytes))

    def cut(self, *, rst: bool = True) -> None:
        """End all connections on both sides, with a reset or with a FIN. New ones are welcome."""
        self._order(lambda: self._cut(rst=rst))

    def refuse(self) -> None:
        """Reset new connections at once; present ones stay."""
        self._order(lambda: setattr(self, "_refusing", True))

    def accept(self) -> None:
        """Take new connections again."""
        self._order(lambda: setattr(self, "_refusing", False))

    # Life

    def start(self) -> None:
        """Listen, in a thread of its own. ``with`` does it."""
        if self._thread:
            raise RuntimeError("the proxy is already started")
        started: concurrent.futures.Future[None] = concurrent.futures.Future()

        def work() -> None:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                try:
                    runner.run(self._serve(started))
                except BaseException as failure:
                    if started.done():
                        raise
                    started.set_exception(failure)

        self._thread = threading.Thread(target=work, name=f"FaultProxy to port {self.target_port}", daemon=True)
        self._thread.start()
        try:
            started.result(_PATIENCE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Reset every connection, close every socket, end the thread. May be called twice."""
        if self._loop and self._stop:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                raise RuntimeError(f"the proxy's thread did not end within {_PATIENCE:g} s")
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"port {self._port}, {len(self._live)} connections" if self._thread else "closed"
        return f"<FaultProxy to {self.target_host} {self.target_port}: {state}>"

    # On the proxy's own loop

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as cleanup:
            context = None
            if self._tls:
                folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pgconcert-")))
                self._certificate, key = self_signed(folder)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self._certificate, key)
                context.set_alpn_protocols(["postgresql"])
            listener = cleanup.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
            listener.setblocking(False)
            self._port = listener.getsockname()[1]
            self._rules = {"to_server": Direction(), "to_client": Direction()}
            self._loop, self._stop = loop, asyncio.Event()
            tasks: set[asyncio.Task[None]] = set()
            loop.add_reader(listener, lambda: self._welcome(listener, context, tasks))
            started.set_result(None)
            try:
                await self._stop.wait()
            finally:
                loop.remove_reader(listener)
                self._cut(rst=True)
                await asyncio.gather(*tasks, return_exceptions=True)
                self._loop = self._stop = None

    def _welcome(self, listener: socket.socket, context: ssl.SSLContext | None, tasks: set[asyncio.Task[None]]) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        client = End(sock)
        if self._refusing:
            client.drop(rst=True)
            return
        self.connections += 1
        connection = _Connection(self, client, context)
        self._live.add(connection)
        connection.task = asyncio.get_running_loop().create_task(connection.run())
        tasks.add(connection.task)

        def forget(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            self._live.discard(connection)

        connection.task.add_done_callback(forget)

    def _cut(self, *, rst: bool) -> None:
        for connection in list(self._live):
            connection.cut(rst=rst)

    def _each(self, direction: DirectionName | None, change: Callable[[Direction], None]) -> None:
        if direction not in ("to_server", "to_client", None):
            raise ValueError(f"a direction is 'to_server' or 'to_client', not {direction!r}")

        def carry_out() -> None:
            for name, rules in self._rules.items():
                if direction in (None, name):
                    change(rules)

        self._order(carry_out)

    def _order(self, action: Callable[[], T]) -> T:
        loop = self._loop
        if loop is None:
            raise RuntimeError("the proxy is not running: use it in a with statement")
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        def carry_out() -> None:
            try:
                answer.set_result(action())
            except BaseException as failure:
                answer.set_exception(failure)

        loop.call_soon_threadsafe(carry_out)
        return answer.result(_PATIENCE)


class _Connection:
    """One client's connection and the one to the server that belongs to it."""

    task: asyncio.Task[None]

    def __init__(self, proxy: FaultProxy, client: End, context: ssl.SSLContext | None) -> None:
        self._proxy = proxy
        self._client = client
        self._context = context
        self._server: End | None = None
        self._inward, self._outward = proxy._rules["to_server"], proxy._rules["to_client"]

    async def run(self) -> None:
        try:
            await self._carry()
        except* OSError:
            # One side broke; the other learns of it in the same way.
            self._drop(rst=True)
        finally:
            self._drop(rst=False)

    def cut(self, *, rst: bool) -> None:
        self._drop(rst=rst)
        self.task.cancel()

    def _drop(self, *, rst: bool) -> None:
        for end in (self._client, self._server):
            if end:
                end.drop(rst=rst)

    async def _carry(self) -> None:
        first = await self._negotiate(self._context) if self._context else b""
        await self._inward.flows.wait()
        host, port = self._proxy.target_host, self._proxy.target_port
        address: tuple[str, int] | str = (host, port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if host.startswith(("/", "@")):
            family, address = socket.AF_UNIX, f"{host}/.s.PGSQL.{port}".replace("@", "\0", 1)
        self._server = End(socket.socket(family))
        await self._server.connect(address)
        async with asyncio.TaskGroup() as group:
            for source, sink, rules, head in (
                (self._client, self._server, self._inward, first),
                (self._server, self._client, self._outward, b""),
            ):
                pipe = Pipe(head)
                group.create_task(self._read(source, pipe, rules))
                group.create_task(self._write(sink, pipe, rules))

    async def _negotiate(self, context: ssl.SSLContext) -> bytes:
        """Answer the client's requests for encryption; return what it sent that belongs to the server."""
        while True:
            head = b""
            while len(head) < 8:
                more = await self._client.receive(self._inward, 8 - len(head))
                if not more:
                    return head
                head += more
            if head == _GSS_REQUEST:
                await self._client.send(b"N", self._outward)
                continue
            direct = head[0] == _TLS_HANDSHAKE
            if head != _SSL_REQUEST and not direct:
                # A cancel request, for one, comes in clear even from a client that uses TLS otherwise.
                return head
            if not direct:
                await self._client.send(b"S", self._outward)
            await self._client.accept_tls(context, head if direct else b"", self._inward, self._outward)
            return b""

    async def _read(self, source: End, pipe: Pipe, rules: Direction) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await pipe.has_room()
            data = await source.receive(rules)
            pipe.put(loop.time() + rules.delay, data)
            if not data:
                return

    async def _write(self, sink: End, pipe: Pipe, rules: Direction) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await pipe.get()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            if not data:
                await sink.finish(rules)
                return
            await rules.flows.wait()
            admitted, last = rules.admit(data)
            await sink.send(admitted, rules)
            rules.forwarded += len(admitted)
            if last:
                await sink.arrived()
                self._proxy._cut(rst=True)
