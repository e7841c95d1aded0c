"""A link: one libpq connection in pipeline mode under the event loop. Nothing else in the project touches libpq.

Theory. A statement leaves at once and is followed by a Sync; one entry in the queue per Sync, in the order sent. The
reader callback consumes what arrived, hands every answer to the entry at the head, and settles it only at its
``PIPELINE_SYNC``: an error at commit comes after the rows. Notifications go to ``hear`` in the same callback, one call
for each. Nothing polls: an idle link costs nothing.

Where ``named`` is false, a transaction pooler may stand in between, and one Sync at a time is on the wire: what is sent
meanwhile leaves when that is answered. PgBouncer before 1.21 gives the server to others at the first ReadyForQuery. If
it has by then read half of our next statement (its buffer has 4 kB), answers reach whom they are not for.

States: *open*, then *dead* once and for ever. A link dies when the socket says so, when the server says FATAL, when
something arrives that must not (COPY; no rows where a statement has some; what its reader cannot read), or when its
owner closes it. Dying settles every unanswered entry with ``LinkLost`` and then tells the owner, in that order,
synchronously: nothing is sent on another link before.

What bites (each has a test): after death ``get_result`` returns NULL for ever, so the second NULL in a row ends the
drain. Preparing and the first execution share a Sync, else a syntax error hides behind "does not exist". A prepared
name is a hash of the text. There is no BEGIN here: its failure would poison everybody's statements. Under TLS bytes may
wait inside the TLS layer while the socket is silent, so reading goes on until both are empty. After a fork the child
closes the descriptor and touches neither libpq nor the loop. The loop watches a copy of libpq's (``sockets.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from time import monotonic
from typing import Final, NamedTuple, Protocol

from psycopg import NotSupportedError, OperationalError, pq

from ..errors import ConfigurationError, LinkLost, StatementFailed, Unavailable
from .sockets import bytes_waiting, close_copy, copy_of, socket_ready

__all__ = ["Hear", "Link", "Reply", "Rows", "Statement", "statement"]

Rows = list[tuple[bytes | None, ...]]
Reply = Callable[[Rows, Exception | None], None]
"""Gets the rows of an answer, or the error: ``StatementFailed`` from the server, ``LinkLost`` if it never came."""

Hear = Callable[[bytes, int, bytes], object]
"""Gets a notification as it arrived: channel, server process of the sender, payload."""


class Statement(NamedTuple):
    """SQL text with its prepared name."""

    name: bytes
    sql: bytes


def statement(sql: str) -> Statement:
    """Name a statement by a hash of its text: a collision is then the same statement."""
    text = " ".join(sql.split()).encode()
    return Statement(b"pgc_" + blake2b(text, digest_size=9).hexdigest().encode(), text)


_Group = Sequence[tuple[Statement, Sequence[bytes | None]]]


class _LinkOwner(Protocol):
    def link_lost(self, link: Link, reason: str) -> None: ...


_TUPLES: Final = int(pq.ExecStatus.TUPLES_OK)
_COMMAND: Final = int(pq.ExecStatus.COMMAND_OK)
_FATAL: Final = int(pq.ExecStatus.FATAL_ERROR)
_SYNC: Final = int(pq.ExecStatus.PIPELINE_SYNC)
_ABORTED: Final = int(pq.ExecStatus.PIPELINE_ABORTED)
_EMPTY: Final = int(pq.ExecStatus.EMPTY_QUERY)
_BAD: Final = int(pq.ConnStatus.BAD)
_NO_ROWS: Final[Rows] = []
_NUMBER: Final = re.compile(rb"\d+")
_HAS_ROWS: Final = re.compile(rb"(?is)\s*(?:(?:select|with)\b|(?:insert|update|delete)\b.*\breturning\b)")


class Link:
    """One connection. All methods belong to the loop that connected it."""

    def __init__(self, connection: pq.abc.PGconn, loop: asyncio.AbstractEventLoop) -> None:
        self._pg = connection
        self._loop = loop
        self._fd = copy_of(connection.socket)
        self._in_flight: deque[tuple[Reply, Statement]] = deque()
        self._unsent: deque[tuple[_Group, Reply]] = deque()
        self._prepared: set[bytes] = set()
        self._result: pq.abc.PGresult | None = None
        self._error: StatementFailed | None = None
        self._commands = 0
        self._writing = False
        self._last_notice = ""
        self.owner: _LinkOwner | None = None
        self.hear: Hear = lambda *_: None  # most links listen to nothing
        self.queue_held_by: tuple[int, float] | None = None
        """Who holds up the server's queue of notifications, as the server last said, and when (``monotonic``)."""
        self.heard_at = 0.0
        """When notifications were last read, by ``time.monotonic()``; 0 before the first."""
        self.dead: str | None = None
        self.named = True
        self.statements = 0
        self.answers = 0
        self.signs = 0
        """How often something came, or could be sent on after a wait: life shows in the middle of an answer too."""
        self.lost_answers = 0
        self.pid = connection.backend_pid
        self.server = _server(connection)
        """Where it is connected to, for people."""
        self.version = connection.server_version
        """The server's version as a number, 180004 for 18.4."""
        self.tls = bool(connection.ssl_in_use)
        self.utf8 = connection.parameter_status(b"server_encoding") == b"UTF8"
        """Whether the database takes every text that we can send."""
        connection.nonblocking = 1
        connection.enter_pipeline_mode()
        connection.notice_handler = self._noticed
        loop.add_reader(self._fd, self._readable)

    @classmethod
    async def connect(cls, conninfo: str) -> Link:
        """Connect to the one address that ``conninfo`` names (``hostaddr`` given: libpq must not look up names here).

        Cancellation closes the socket at once. Raises ``Unavailable`` with what the server or the system said.
        """
        loop = asyncio.get_running_loop()
        try:
            connection = pq.PGconn.connect_start(conninfo.encode())
        except OperationalError as error:
            raise Unavailable(_one_line(str(error))) from None
        _open_connections.add(connection)
        try:
            # libpq wants the caller to behave as if the first poll had said "writing"
            polled = int(pq.PollingStatus.WRITING)
            while True:
                if connection.status == _BAD or polled == pq.PollingStatus.FAILED:
                    raise Unavailable(_one_line(connection.get_error_message()))
                if polled == pq.PollingStatus.OK:
                    return cls(connection, loop)
                await socket_ready(loop, connection.socket, polled == pq.PollingStatus.READING)
                polled = connection.connect_poll()
        except NotSupportedError as error:
            _finish(connection)
            raise ConfigurationError(
                f"the installed libpq cannot do what a link needs: {error}; install pgconcert[binary] or libpq 14+"
            ) from None
        except OSError as error:
            _finish(connection)
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(f"the socket cannot be watched: {error.strerror or error}") from error
        except BaseException:
            _finish(connection)
            raise

    @property
    def unanswered(self) -> int:
        """How many groups of statements wait for their answer."""
        return len(self._in_flight) + len(self._unsent)

    def send(self, sent: Statement, params: Sequence[bytes | None], reply: Reply) -> None:
        """Send one statement as a transaction of its own. ``reply`` is called once, never from inside this call."""
        if self.dead is not None or not self.named:
            self.send_together(((sent, params),), reply)
            return
        pg = self._pg
        try:
            if sent.name not in self._prepared:
                reply = self._remembering(sent, reply)
                pg.send_prepare(sent.name, sent.sql)
                self._prepared.add(sent.name)
            pg.send_query_prepared(sent.name, [*params])  # psycopg 3.2 takes lists only
            pg.pipeline_sync()
        except OperationalError as error:
            self._not_sent(reply, error)
            return
        self.statements += 1
        self._in_flight.append((reply, sent))
        self._flush()

    def send_together(self, group: _Group, reply: Reply) -> None:
        """Send several statements as one transaction, unnamed; ``reply`` gets the rows of the last."""
        if self.dead is not None:
            self._loop.call_soon(reply, _NO_ROWS, LinkLost(self.dead))
        elif self._in_flight and not self.named:
            self._unsent.append((group, reply))
        else:
            self._send_unnamed(group, reply)

    def _send_unnamed(self, group: _Group, reply: Reply) -> None:
        try:
            for sent, params in group:
                self._pg.send_query_params(sent.sql, [*params])
            self._pg.pipeline_sync()
        except OperationalError as error:
            self._not_sent(reply, error)
            return
        self.statements += len(group)
        self._in_flight.append((reply, group[-1][0]))
        self._flush()

    def _not_sent(self, reply: Reply, error: Exception) -> None:
        self._loop.call_soon(reply, _NO_ROWS, LinkLost(_one_line(str(error))))
        self._loop.call_soon(self.close, _one_line(str(error)))

    def execute(self, sent: Statement, params: Sequence[bytes | None] = ()) -> asyncio.Future[Rows]:
        """Like ``send``, for code that waits. Cancelling the future drops the answer and nothing else."""
        future: asyncio.Future[Rows] = self._loop.create_future()

        def settle(rows: Rows, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(rows)
            else:
                future.set_exception(error)
                future.exception()  # read: a caller that has left must not be missed on the log

        self.send(sent, params, settle)
        return future

    def close(self, reason: str = "closed") -> None:
        """Close now; the server frees what hangs on this session. The owner is told as for any other death."""
        self._die(reason)

    def _remembering(self, sent: Statement, reply: Reply) -> Reply:
        def settle(rows: Rows, error: Exception | None) -> None:
            if error is not None and self._commands == 0:
                self._prepared.discard(sent.name)
            reply(rows, error)

        return settle

    def _flush(self) -> None:
        try:
            left = self._pg.flush()
        except OperationalError as error:
            # never from inside a caller's request: it must not find its world changed when it returns
            self._loop.call_soon(self.close, _one_line(str(error)))
            return
        if left and not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)
        elif not left and self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    def _writable(self) -> None:
        self.signs += 1
        self._flush()

    def _readable(self) -> None:
        self.signs += 1
        reason: str | None = None
        while True:
            waiting = bytes_waiting(self._fd) if self.tls else 0
            try:
                self._pg.consume_input()
            except OperationalError as error:
                reason = _one_line(str(error))
            # answers that came before the end still count
            reason = self._drain() or reason
            if self.dead is not None:
                return
            # the server's last words end the link at once: a grant that came with them must not be believed
            if reason is not None or self._last_notice or self._pg.status == _BAD:
                self._die(self._last_notice or reason or _one_line(self._pg.get_error_message()))
                return
            if not waiting:
                break
        if self._writing:
            self._flush()

    def _drain(self) -> str | None:
        """Hand on what has arrived. Returns a reason to die, or None."""
        pg = self._pg
        queue = self._in_flight
        nulls = 0
        while queue and not pg.is_busy():
            result = pg.get_result()
            if result is None:
                nulls += 1
                if nulls == 2:
                    break
                continue
            nulls = 0
            status = result.status
            if status == _SYNC:
                answer, error = self._result, self._error
                self._result = self._error = None
                if answer is None and error is None and _HAS_ROWS.match(queue[0][1].sql):
                    return "an answer without rows came for a statement that has some: it is somebody else's"
                reply, _ = queue.popleft()
                self.answers += 1
                if self._unsent:
                    self._send_unnamed(*self._unsent.popleft())
                try:
                    reply(_rows(answer) if answer is not None and error is None else _NO_ROWS, error)
                except Exception as bug:
                    self._report(bug, "an answer's reader failed")
                    return f"an answer could not be read ({type(bug).__name__}): it is somebody else's, or a defect"
                self._commands = 0
                if self.dead is not None:
                    return None
            elif status == _TUPLES:
                self._result = result
            elif status == _COMMAND:
                self._commands += 1
            elif status == _FATAL:
                if self._error is None:
                    self._error = _failure(result)
                self._noticed(result)  # with a statement under way, the server's last words come as its result
            elif status != _ABORTED and status != _EMPTY:
                return f"the server sent {pq.ExecStatus(status).name}, which has no place on a link"
        notify = pg.notifies()
        if notify is not None:
            self._deliver(notify)
        return None

    def _deliver(self, notify: pq.misc.PGnotify | None) -> None:
        self.heard_at = monotonic()
        notifies = self._pg.notifies
        hear = self.hear
        while notify is not None:
            try:
                hear(*notify)
            except Exception as bug:
                self._report(bug, "a notification's reader failed")
            except BaseException:  # what ends a program goes on its way; the rest is read all the same
                self._loop.call_soon(self._resume)
                raise
            if self.dead is not None:
                return
            notify = notifies()

    def _resume(self) -> None:
        if self.dead is None:
            self._readable()

    def _die(self, reason: str) -> None:
        if self.dead is not None:
            return
        self.dead = reason
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._pg.notice_handler = None
        _finish(self._pg)
        close_copy(self._fd)
        lost = [*(reply for reply, _ in self._in_flight), *(reply for _, reply in self._unsent)]
        self._in_flight, self._unsent = deque(), deque()
        self.lost_answers = len(lost)
        owner, self.owner = self.owner, None
        for reply in lost:
            try:
                reply(_NO_ROWS, LinkLost(reason))
            except Exception as bug:
                self._report(bug, "a lost answer's reader failed")
        if owner is not None:
            owner.link_lost(self, reason)

    def _noticed(self, notice: pq.abc.PGresult) -> None:
        if notice.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC"):
            self._last_notice = _failure(notice).args[0]
        elif b"NOTIFY" in (notice.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b""):
            # above half full, whoever notifies is told by the server which session is the last to read
            found = _NUMBER.search(notice.error_field(pq.DiagnosticField.MESSAGE_DETAIL) or b"")
            self.queue_held_by = (int(found[0]), monotonic()) if found else None

    def _report(self, error: Exception, what: str) -> None:
        self._loop.call_exception_handler({"message": f"pgconcert: {what}", "exception": error})

    def __repr__(self) -> str:
        return f"<Link backend {self.pid} {'dead: ' + self.dead if self.dead else 'open'}>"


_open_connections: set[pq.abc.PGconn] = set()


def _finish(connection: pq.abc.PGconn) -> None:
    _open_connections.discard(connection)
    connection.finish()


def _after_fork_in_child() -> None:
    # connections that are still being made count as well: an inherited socket would keep the parent's session alive
    for connection in _open_connections:
        with contextlib.suppress(OSError, OperationalError):
            os.close(connection.socket)
    _open_connections.clear()  # a child of the child must not close the same numbers again


os.register_at_fork(after_in_child=_after_fork_in_child)


def _server(connection: pq.abc.PGconn) -> str:
    host = connection.host.decode(errors="replace")
    return host if host.startswith(("/", "@")) else f"{host}:{connection.port.decode()}"


def _rows(result: pq.abc.PGresult) -> Rows:
    value = result.get_value
    if result.ntuples == 1 and result.nfields == 1:
        return [(value(0, 0),)]
    columns = range(result.nfields)
    return [tuple([value(row, column) for column in columns]) for row in range(result.ntuples)]


def _failure(result: pq.abc.PGresult) -> StatementFailed:
    text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
    return StatementFailed(_one_line(text.decode(errors="replace")), state.decode(errors="replace"))


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "the connection ended without a word"
