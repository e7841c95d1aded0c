"""One process of the demo: takes the lock, holds it for a moment, gives it back, again and again.

It is told what to do by one line of JSON on its standard input (there an address with a password stays among us), and
to end by the end of that input, which also comes when the director dies, however that happens. What it does it writes,
record by record, to a pipe that all workers share; a record is written in one piece.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass

from .. import AsyncCoordinator, LockLost, PgconcertError
from .demo_history import Kind, Record

__all__ = ["Orders", "main"]


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told. ``shortest`` and ``longest`` hold are in seconds; ``pipe`` is a file descriptor."""

    url: str
    namespace: str
    worker: int
    shortest: float
    longest: float
    pipe: int

    def line(self) -> bytes:
        """For the worker's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"


class _Diary:
    """Writes this process's records."""

    def __init__(self, orders: Orders) -> None:
        self._pipe = orders.pipe
        self._worker = orders.worker

    def write(self, kind: Kind, waited: int = 0, backend: int = 0) -> None:
        record = Record(kind, self._worker, os.getpid(), time.monotonic_ns(), waited, backend)
        os.write(self._pipe, record.pack())


async def _compete(orders: Orders, diary: _Diary) -> None:
    async with AsyncCoordinator(orders.url, name=f"worker-{orders.worker}", namespace=orders.namespace) as c:
        diary.write(Kind.READY)
        while True:
            asked = time.monotonic_ns()
            try:
                async with c.lock("demo") as hold:
                    backend = next((link.server_pid or 0 for link in c.health().links if link.role == "lock"), 0)
                    diary.write(Kind.ENTERED, time.monotonic_ns() - asked, backend)
                    try:
                        await asyncio.sleep(random.uniform(orders.shortest, orders.longest))
                    finally:
                        diary.write(Kind.LOST if hold.lost else Kind.LEFT)
            except LockLost:
                continue  # the connection died, the body was cancelled; the next attempt gets a new connection


async def _until_told(orders: Orders) -> None:
    loop = asyncio.get_running_loop()
    competing = asyncio.ensure_future(_compete(orders, _Diary(orders)))

    def told() -> None:
        # Nothing more is said on this input, so what can be read is its end, and it can be read for ever.
        loop.remove_reader(sys.stdin.fileno())
        competing.cancel()

    loop.add_reader(sys.stdin.fileno(), told)
    try:
        await competing
    except asyncio.CancelledError:
        pass


def main() -> None:
    """Read the orders and follow them. Exit code 1 and a line on standard error if the server will not have us."""
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as orders:
        line = orders.readline()
    if not line:
        return
    try:
        asyncio.run(_until_told(Orders(**json.loads(line))))
    except PgconcertError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except BrokenPipeError:
        pass  # nobody reads our records any more


if __name__ == "__main__":
    main()
