"""One process of the demo: takes the lock, holds it for a moment, gives it back, again and again; and all the while it
sends numbered messages, hears those of everybody, and is a candidate, who leads for some seconds and resigns.

It is told what to do by one line of JSON on its standard input (there an address with a password stays among us), and
to end by the end of that input, which also comes when the director dies, however that happens. What it does it writes,
record by record, to a pipe that all workers share; a record is written in one piece.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

from ..coordinator import AsyncCoordinator
from ..errors import LockLost, PgconcertError, PublishUncertain, SessionLost, Unavailable
from ..pubsub.message import Gap, Message
from ..pubsub.subscription import AsyncSubscription
from .demo_history import Kind, Record
from .demo_tables import ELECTION_NAME

__all__ = ["Orders", "main"]

_PAUSE: Final = 0.05
_TTL: Final = 2.0
"""How long after its death a leader is the leader still."""
_TERM: Final = (1.5, 3.0)
_FAREWELL: Final = 2.0
"""Seconds for hearing the rest, once it is told to end."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told. ``shortest`` and ``longest`` hold, and the mean ``pause`` between two messages, are in
    seconds; ``pipe`` is a file descriptor; ``schema`` has the tables for an election, if there is one."""

    url: str
    namespace: str
    worker: int
    shortest: float
    longest: float
    pause: float
    pipe: int
    schema: str | None

    def line(self) -> bytes:
        """For the worker's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"


class _Diary:
    """Writes this process's records."""

    def __init__(self, orders: Orders) -> None:
        self._pipe = orders.pipe
        self._worker = orders.worker
        self.begun = False

    def write(self, kind: Kind, waited: int = 0, backend: int = 0, number: int = 0, peer: int = 0) -> None:
        self.begun = True
        record = Record(kind, self._worker, os.getpid(), time.monotonic_ns(), waited, backend, number, peer)
        os.write(self._pipe, record.pack())


def _backend(c: AsyncCoordinator, role: str) -> int:
    """The server process of a link."""
    return next((link.server_pid or 0 for link in c.health().links if link.role == role), 0)


async def _compete(c: AsyncCoordinator, orders: Orders, diary: _Diary) -> None:
    while True:
        asked = time.monotonic_ns()
        try:
            async with c.lock("demo") as hold:
                diary.write(Kind.ENTERED, time.monotonic_ns() - asked, _backend(c, "lock"))
                try:
                    await asyncio.sleep(random.uniform(orders.shortest, orders.longest))
                finally:
                    diary.write(Kind.LOST if hold.lost else Kind.LEFT)
        except LockLost:
            continue  # the connection died, the body was cancelled; the next attempt gets a new connection


async def _lead(c: AsyncCoordinator, diary: _Diary) -> None:
    candidacy = c.election(ELECTION_NAME, ttl=_TTL).lead()
    while True:
        try:
            async with candidacy as leadership:
                diary.write(Kind.LEADS, round(leadership.since * 1e9), number=leadership.token)
                try:
                    await asyncio.sleep(random.uniform(*_TERM))
                finally:
                    diary.write(Kind.DEPOSED if leadership.lost else Kind.RESIGNED, number=leadership.token)
                await leadership.resign()
        except SessionLost:
            continue  # it was not renewed in time, on a busy machine; we are a candidate again


async def _talk(c: AsyncCoordinator, orders: Orders, diary: _Diary) -> None:
    for number in itertools.count(1):
        begun = time.monotonic_ns()
        try:
            await c.publish(orders.namespace, f"{os.getpid()} {number} {begun}")
            diary.write(Kind.SENT, time.monotonic_ns() - begun, number=number)
        except (Unavailable, PublishUncertain):
            pass  # the number is spent: nobody is owed this message, and whoever hears it may
        await asyncio.sleep(random.uniform(0.5, 1.5) * orders.pause)


def _note(diary: _Diary, item: Message | Gap) -> None:
    if isinstance(item, Gap):
        diary.write(Kind.GAP)
        return
    peer, number, begun = map(int, item.text.split())
    diary.write(Kind.HEARD, time.monotonic_ns() - begun, number=number, peer=peer)


async def _hear(messages: AsyncSubscription[Message | Gap], diary: _Diary) -> None:
    async for item in messages:
        _note(diary, item)


async def _hear_the_rest(c: AsyncCoordinator, messages: AsyncSubscription[Message | Gap], diary: _Diary) -> None:
    """All that was committed before now is heard before a notification to ourselves is."""
    messenger = c.backend.messenger
    assert messenger is not None
    while True:
        begun = time.monotonic_ns()
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        messenger.prove(answer)
        try:
            await answer
            break
        except Unavailable:
            await asyncio.sleep(_PAUSE)
    with suppress(TimeoutError):
        while True:
            _note(diary, await messages.get(0))
    diary.write(Kind.DONE, time.monotonic_ns() - begun)


async def _take_part(orders: Orders, diary: _Diary, told: asyncio.Event) -> None:
    called = f"worker-{orders.worker}"
    async with (
        AsyncCoordinator(orders.url, name=called, namespace=orders.namespace, schema=orders.schema or "pgconcert") as c,
        c.subscribe(orders.namespace, gaps="yield", capacity=100_000) as messages,
    ):
        c.on_reconnect(lambda again: diary.write(Kind.LISTENING, backend=_backend(c, "listen")), initial=False)
        diary.write(Kind.LISTENING, backend=_backend(c, "listen"))
        diary.write(Kind.READY)
        works = [told.wait(), _compete(c, orders, diary), _talk(c, orders, diary), _hear(messages, diary)]
        if orders.schema is not None:
            works.append(_lead(c, diary))
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        await _hear_the_rest(c, messages, diary)


async def _until_told(orders: Orders) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    diary = _Diary(orders)
    part = asyncio.create_task(_take_part(orders, diary, told))

    def tell() -> None:
        # Nothing more is said on this input, so what can be read is its end, and it can be read for ever.
        loop.remove_reader(sys.stdin.fileno())
        told.set()
        # the server may be gone with the director, so what is left of the messages may never come
        loop.call_later(_FAREWELL if diary.begun else 0, part.cancel)

    loop.add_reader(sys.stdin.fileno(), tell)
    try:
        await part
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
