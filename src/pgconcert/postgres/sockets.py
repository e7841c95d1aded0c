"""Descriptors that an event loop may watch: copies of libpq's, which are closed by us and by nobody else.

Theory. When a connection fails, libpq closes its socket by itself, inside whatever call finds out. The number of the
descriptor may belong to another socket of the program at once, long before the loop is told to let go of it: it would
then take the other's events for ours, or take away the other's reader; uvloop ends the process with an abort. So the
loop watches a copy (``dup``). For the peer a connection ends when its last descriptor is closed, hence the copy is
closed as soon as libpq's own is finished. A forked child closes the copies that it has inherited.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import socket
import termios
from typing import Final

__all__ = ["bytes_waiting", "close_copy", "copy_of", "socket_ready"]

_copies: set[int] = set()
_UNSENT: Final = 65536


def copy_of(fd: int) -> int:
    """A descriptor of our own for the same socket. Raises ``OSError`` when there is none left."""
    copy = os.dup(fd)
    _copies.add(copy)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # else megabytes leave without a sign, and a slow network looks like a frozen one
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as again:
            again.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    return copy


def close_copy(copy: int) -> None:
    """Close it; the loop has let go of it before. After a fork it may be closed already."""
    if copy in _copies:
        _copies.discard(copy)
        os.close(copy)


def bytes_waiting(fd: int) -> int:
    """How much has arrived that nobody has read."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


async def socket_ready(loop: asyncio.AbstractEventLoop, fd: int, reading: bool) -> None:
    """Wait until a socket that libpq is still connecting can be read, or written. Raises ``OSError``."""
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not ready.done():
            ready.set_result(None)

    copy = copy_of(fd)
    try:
        if reading:
            loop.add_reader(copy, tell)
        else:
            loop.add_writer(copy, tell)
        try:
            await ready
        finally:
            if reading:
                loop.remove_reader(copy)
            else:
                loop.remove_writer(copy)
    finally:
        close_copy(copy)


def _after_fork_in_child() -> None:
    for copy in _copies:
        with contextlib.suppress(OSError):
            os.close(copy)
    _copies.clear()  # a child of the child must not close the same numbers again


os.register_at_fork(after_in_child=_after_fork_in_child)
