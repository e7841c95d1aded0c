"""What every process of the demo does, whatever its part is: it reads its orders, writes its diary, and ends in time.

It is told what to do by one line of JSON on its standard input (there an address with a password stays among us), and
to end by the end of that input, which also comes when the director dies, however that happens. What it does it writes,
record by record, to a pipe that all processes share; a record is written in one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ..errors import PgconcertError
from .demo_history import Kind, Record

__all__ = ["Diary", "follow_orders"]

_FAREWELL: Final = 10.0
"""Seconds for coming to an end, once it is told to."""

TakePart = Callable[[dict[str, Any], "Diary", asyncio.Event], Coroutine[Any, Any, None]]


class Diary:
    """Writes this process's records. ``pipe`` is a file descriptor."""

    def __init__(self, pipe: int, worker: int) -> None:
        self._pipe, self._worker = pipe, worker
        self.begun = False

    def write(self, kind: Kind, waited: int = 0, backend: int = 0, number: int = 0, peer: int = 0) -> None:
        self.begun = True
        record = Record(kind, self._worker, os.getpid(), time.monotonic_ns(), waited, backend, number, peer)
        os.write(self._pipe, record.pack())


def follow_orders(take_part: TakePart) -> None:
    """Read the orders and follow them. The event is set when it is time to end. Exit code 1 and a line on standard
    error if the server will not have us."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as said:
        line = said.readline()
    if not line:
        return
    try:
        asyncio.run(_until_told(take_part, json.loads(line)))
    except PgconcertError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except BrokenPipeError:
        pass  # nobody reads our records any more


async def _until_told(take_part: TakePart, orders: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    diary = Diary(orders["pipe"], orders["worker"])
    part = asyncio.create_task(take_part(orders, diary, told))

    def tell() -> None:
        # Nothing more is said on this input, so what can be read is its end, and it can be read for ever.
        loop.remove_reader(sys.stdin.fileno())
        told.set()
        # the server may be gone with the director, so what is left to do may never be done
        loop.call_later(_FAREWELL if diary.begun else 0, part.cancel)

    loop.add_reader(sys.stdin.fileno(), tell)
    try:
        await part
    except asyncio.CancelledError:
        pass
