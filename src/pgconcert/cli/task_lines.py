"""Lines that become tasks, for ``pgconcert tasks enqueue --lines``.

What can be read at once is put into the queue at once, in one statement, all of it or nothing, while the next is read.
So a stream of lines costs one statement for many, and order is kept. The first line or statement that fails ends it;
all lines before it that were right are in the queue. A statement without an answer, because the connection died or
somebody wants an end, may have been carried out: its lines are counted apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from ..errors import LinkLost, PayloadInvalid
from ..tasks.queue import AsyncTaskQueue
from .messaging import read_chunk

__all__ = ["TaskLines"]

_AT_ONCE: Final = 1000
_LARGEST: Final = 64 * 2**20
_PATIENCE: Final = 1.0


class TaskLines:
    """Standard input on its way into a queue. ``check`` makes a payload of a line; ``how``: when it may be run."""

    def __init__(self, queue: AsyncTaskQueue, check: Callable[[bytes], bytes], how: dict[str, Any]) -> None:
        self._queue, self._check, self._how = queue, check, how
        self._read = 0
        self.put = 0
        """How many are in the queue."""
        self.perhaps = 0
        """Of how many nobody knows."""

    async def run(self) -> None:
        """All lines, to the end of standard input. Raises ``PayloadInvalid``, and what ``enqueue_many`` raises."""
        rest = bytearray()
        reading = asyncio.create_task(read_chunk())
        try:
            while chunk := await reading:
                reading = asyncio.create_task(read_chunk())
                rest += chunk
                if b"\n" in chunk:
                    *lines, rest = rest.split(b"\n")
                    await self._take(lines)
                elif len(rest) > _LARGEST:
                    raise PayloadInvalid(f"line {self._read + 1} is longer than {_LARGEST} bytes")
            if rest:
                await self._take([rest])
        finally:
            reading.cancel()

    async def _take(self, lines: Iterable[bytes | bytearray]) -> None:
        payloads: list[bytes] = []
        for line in lines:
            self._read += 1
            try:
                payloads.append(self._check(bytes(line)))
            except PayloadInvalid as error:
                await self._enqueue(payloads)
                raise PayloadInvalid(f"line {self._read}: {error}") from None
            if len(payloads) == _AT_ONCE:
                await self._enqueue(payloads)
                payloads = []
        await self._enqueue(payloads)

    async def _enqueue(self, payloads: list[bytes]) -> None:
        sending = asyncio.ensure_future(self._queue.enqueue_many(payloads, **self._how))
        try:
            await asyncio.shield(sending)
        finally:
            if not sending.done():  # told to end: a moment more, and it is known what became of them
                await asyncio.wait([sending], timeout=_PATIENCE)
            if not sending.done():
                sending.cancel()
                self.perhaps += len(payloads)
            elif (error := sending.exception()) is None:
                self.put += len(payloads)
            elif isinstance(error, LinkLost):
                self.perhaps += len(payloads)
