"""A process that publishes numbers, or that subscribes to them, and writes what it does into a shared history.

It gets its orders as JSON in its first argument and says "ready" when everybody in it is at work. A publisher ends when
it is told "end"; a subscriber when the word `LAST` has come on each of its channels, or when it is told "end". Then it
says "done". An error that no fault explains ends it with a traceback, and the test with it.

Theory: a publisher hands in one message after the other and mixes all that can travel: plain text, ids, headers, bytes
with NUL, JSON, payloads that are too large for a notification, several at once. A subscriber takes a message and writes
it down at once; a slow one takes its time behind that, so that its queue runs over.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pgconcert import AsyncCoordinator, Gap, Message, PublishManyFailed, PublishUncertain, Unavailable
from pgconcert.events import ActiveChanged
from pgconcert.postgres import waiting
from tests.faults.message_history import Fate, Log

PROGRAM = Path(__file__)
LAST = "the last word"

_LARGE = 9_000


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told. `tasks` is how many publish, or how many subscriptions there are; every third of them is
    slow, and has a small queue, if `slow`. `pause` is the longest pause between two messages, in seconds. `recheck`
    replaces the re-check of those who wait for a lock."""

    url: str
    history: str
    role: Literal["publisher", "subscriber"]
    channels: tuple[str, ...]
    tasks: int = 3
    engine: Literal["loop", "thread"] = "loop"
    delivery: Literal["all", "one-process", "one-each"] = "all"
    pause: float = 0.004
    large: bool = True
    ids: bool = False
    slow: bool = False
    recheck: float | None = None
    network_timeout: float = 5.0

    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class Publisher:
    """One sequence of numbers on one channel."""

    def __init__(self, c: AsyncCoordinator, log: Log, orders: Orders, name: str, channel: str) -> None:
        self._c = c
        self._log = log
        self._orders = orders
        self._name = name
        self._channel = channel
        self._number = 0

    async def run(self, ending: asyncio.Event) -> None:
        """Publish, until the end."""
        while not ending.is_set():
            if self._orders.ids:
                await self._one({"payload": self._next(), "id": True})
            elif random.random() < 0.1:
                await self._several()
            else:
                await self._one(random.choices(self._kinds(), [6, 1, 1, 1, 1, 1 if self._orders.large else 0])[0])
            await asyncio.sleep(random.uniform(0, self._orders.pause))

    def _kinds(self) -> list[dict[str, Any]]:
        text = self._next()
        return [
            {"payload": text},
            {"payload": text, "headers": {"kind": "with headers"}},
            {"payload": text, "id": True},
            {"payload": text.encode() + b" \0\xff"},
            {"json": text + " ü" * random.randint(0, 1000)},
            {"payload": text + " " + "x" * random.randint(_LARGE, 5 * _LARGE)},
        ]

    def _next(self) -> str:
        return f"{self._name} {self._number + 1}"

    def _begin(self) -> int:
        self._number += 1
        self._log.begin(self._name, self._channel, self._number)
        return self._number

    async def _one(self, message: dict[str, Any]) -> None:
        number = self._begin()
        try:
            await self._c.publish(self._channel, **message)
        except (PublishUncertain, Unavailable) as error:
            self._log.fate(self._name, number, fate_of(error))
            await asyncio.sleep(0.02)
        else:
            self._log.fate(self._name, number, "sent")

    async def _several(self) -> None:
        numbers = [self._begin() for _ in range(5)]
        failures: dict[int, Exception] = {}
        try:
            await self._c.publish_many([(self._channel, f"{self._name} {number}") for number in numbers])
        except PublishManyFailed as error:
            failures = error.failures
        for place, number in enumerate(numbers):
            self._log.fate(self._name, number, fate_of(failures[place]) if place in failures else "sent")


def fate_of(error: Exception) -> Fate:
    """What an error says about a message; others are no fate, but a defect."""
    if isinstance(error, PublishUncertain):
        return "uncertain"
    if isinstance(error, Unavailable):
        return "refused"
    raise error


def number_of(message: Message) -> tuple[str, int]:
    """Who sent it, and which one it is."""
    words = message.payload.strip(b'"').split(b" ", 2)
    return words[0].decode(), int(words[1])


class Subscriber:
    """One subscription."""

    def __init__(self, c: AsyncCoordinator, log: Log, orders: Orders, name: str, slow: bool) -> None:
        self._log = log
        self._name = name
        self._slow = slow
        self._left = set(orders.channels)
        self._channels = orders.channels
        self._subscription = c.subscribe(
            *orders.channels,
            gaps="yield",
            delivery=orders.delivery,
            capacity=32 if slow else 100_000,
            overflow=random.choice(["drop_newest", "drop_oldest"]) if slow else "drop_newest",
        )

    async def run(self, entered: Callable[[], None]) -> None:
        """Take messages until the last word."""
        async with self._subscription as messages:
            self._log.entered(self._name, self._channels)
            entered()
            async for item in messages:
                if isinstance(item, Gap):
                    self._log.gap(self._name, item.reason, item.count, item.channels)
                elif item.payload == LAST.encode():
                    self._left.discard(item.channel)
                    if not self._left:
                        self._log.finished(self._name)
                        return
                else:
                    self._log.got(self._name, *number_of(item))
                    if self._slow and random.random() < 0.05:
                        await asyncio.sleep(0.1)


async def main(orders: Orders) -> None:
    """Do what the orders say."""
    if orders.recheck is not None:
        name = "_RECHECK"
        assert hasattr(waiting, name)
        setattr(waiting, name, orders.recheck)
    log = Log(orders.history)
    me = f"{orders.role}-{os.getpid()}"
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def told() -> None:
        said = os.read(sys.stdin.fileno(), 4096)
        if not said or b"end" in said:
            loop.remove_reader(sys.stdin.fileno())
            ending.set()

    def active(event: ActiveChanged) -> None:
        log.write("active" if event.active else "standby", os.getpid(), event.channel)

    async with AsyncCoordinator(orders.url, engine=orders.engine, name=me, network_timeout=orders.network_timeout) as c:
        c.events.subscribe(active, ActiveChanged)
        loop.add_reader(sys.stdin.fileno(), told)
        if orders.role == "publisher":
            print("ready", flush=True)
            async with asyncio.TaskGroup() as group:
                for place in range(orders.tasks):
                    channel = orders.channels[place % len(orders.channels)]
                    group.create_task(Publisher(c, log, orders, f"{me}.{place}", channel).run(ending))
        else:
            await subscribe(orders, c, log, me, ending)
    print("done", flush=True)


async def all_of(tasks: list[asyncio.Task[None]]) -> None:
    """Wait for all; the first error ends it, and a cancel ends them."""
    await asyncio.gather(*tasks)


async def subscribe(orders: Orders, c: AsyncCoordinator, log: Log, me: str, ending: asyncio.Event) -> None:
    """Run the subscriptions until they have ended, or are told to."""
    count = 0

    def entered() -> None:
        nonlocal count
        count += 1
        if count == orders.tasks:
            print("ready", flush=True)

    running = [
        asyncio.create_task(Subscriber(c, log, orders, f"{me}.{place}", orders.slow and place % 3 == 2).run(entered))
        for place in range(orders.tasks)
    ]
    everybody: asyncio.Task[object] = asyncio.create_task(all_of(running))
    told: asyncio.Task[object] = asyncio.create_task(ending.wait())
    await asyncio.wait([everybody, told], return_when=asyncio.FIRST_COMPLETED)
    left = [task for task in (everybody, told) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    if not everybody.cancelled():
        everybody.result()


if __name__ == "__main__":
    asyncio.run(main(Orders(**{**json.loads(sys.argv[1]), "channels": tuple(json.loads(sys.argv[1])["channels"])})))
