"""One process of the demo's first part: takes the lock, holds it for a moment, gives it back, again and again; and all
the while it sends numbered messages, hears those of everybody, and is a candidate, who leads for some seconds and
resigns. How it is told what to do, and to end, is said in ``demo_process.py``.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..coordinator import AsyncCoordinator
from ..errors import LockLost, PublishUncertain, SessionLost, Unavailable
from ..pubsub.message import Gap, Message
from ..pubsub.subscription import AsyncSubscription
from .demo_history import Kind
from .demo_process import Diary, follow_orders
from .demo_tables import ELECTION_NAME

__all__ = ["Orders"]

_PAUSE: Final = 0.05
_TTL: Final = 2.0
"""How long after its death a leader is the leader still."""
_TERM: Final = (1.5, 3.0)


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


def _backend(c: AsyncCoordinator, role: str) -> int:
    """The server process of a link."""
    return next((link.server_pid or 0 for link in c.health().links if link.role == role), 0)


async def _compete(c: AsyncCoordinator, orders: Orders, diary: Diary) -> None:
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


async def _lead(c: AsyncCoordinator, diary: Diary) -> None:
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


async def _talk(c: AsyncCoordinator, orders: Orders, diary: Diary) -> None:
    for number in itertools.count(1):
        begun = time.monotonic_ns()
        try:
            await c.publish(orders.namespace, f"{os.getpid()} {number} {begun}")
            diary.write(Kind.SENT, time.monotonic_ns() - begun, number=number)
        except (Unavailable, PublishUncertain):
            pass  # the number is spent: nobody is owed this message, and whoever hears it may
        await asyncio.sleep(random.uniform(0.5, 1.5) * orders.pause)


def _note(diary: Diary, item: Message | Gap) -> None:
    if isinstance(item, Gap):
        diary.write(Kind.GAP)
        return
    peer, number, begun = map(int, item.text.split())
    diary.write(Kind.HEARD, time.monotonic_ns() - begun, number=number, peer=peer)


async def _hear(messages: AsyncSubscription[Message | Gap], diary: Diary) -> None:
    async for item in messages:
        _note(diary, item)


async def _hear_the_rest(c: AsyncCoordinator, messages: AsyncSubscription[Message | Gap], diary: Diary) -> None:
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


async def _take_part(line: dict[str, Any], diary: Diary, told: asyncio.Event) -> None:
    orders = Orders(**line)
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


if __name__ == "__main__":
    follow_orders(_take_part)
