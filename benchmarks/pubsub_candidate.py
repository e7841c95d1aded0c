"""What a candidate of the publish-and-subscribe benchmark is: the interfaces, and the shape of a message.

What may live here: base classes, payloads and how they are read, `Layout`, `Collected`. No driver, no clock of a turn.

Theory. Candidates come in three trades. A *publisher* is an ordinary candidate whose cycle publishes one payload and
returns when its fate is known. A *listener* subscribes and hands every payload to a sink, which only appends to a list:
what was lost or came twice is found out afterwards, by the numbers in the payloads. A *caller* sends a question to an
answerer in another process and waits for the answer.

Every payload is the same bytes for everybody: a JSON string (one candidate speaks nothing else) that begins with a
number, unique in its window, and in timed windows the nanoseconds of CLOCK_MONOTONIC at which it was sent.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from candidate import Address, AsyncCandidate, BlockingCandidate

Transport = Literal["postgres", "redis", "nats"]
Payload = str | bytes
Sink = Callable[[Payload], object]

CHANNEL = "bench"
DIGITS = 12
STAMP = 20
STAMPED = DIGITS + STAMP + 2
SMALLEST, LARGEST = 16, 7999
LOOK = 0.001
"""Seconds between looks at how much has arrived."""
QUIET = 2.0
"""Seconds without a message after which the rest is taken to be lost."""


def payload_maker(size: int, same: bool) -> Callable[[int], str]:
    """Payloads of `size` bytes: each with a number of its own, or all the same."""
    padding = "x" * (size - DIGITS - 2)
    if same:
        text = f'"{0:0{DIGITS}d}{padding}"'
        return lambda number: text
    return lambda number: f'"{number:012d}{padding}"'


def stamped(number: int, now: int, size: int) -> bytes:
    """A payload that says when it was sent."""
    return f'"{number:0{DIGITS}d}{now:0{STAMP}d}'.encode().ljust(size - 1, b"x") + b'"'


def number_of(payload: Payload) -> int:
    return int(payload[1 : 1 + DIGITS])


def stamp_of(payload: Payload) -> int:
    return int(payload[1 + DIGITS : 1 + DIGITS + STAMP])


@dataclass(frozen=True)
class Layout:
    """What a listener subscribes to: so many subscriptions, all on one channel or each on its own."""

    subscriptions: int = 1
    apart: bool = False
    capacity: int = 1024
    """The messages that one subscription must be able to keep; for candidates that have a limit."""
    timed: bool = False
    """Whether the payloads carry stamps."""

    def channel(self, number: int) -> str:
        return f"{CHANNEL}_{number}" if self.apart else CHANNEL


@dataclass(frozen=True)
class Collected:
    """What arrived in a window, over all subscriptions."""

    received: int
    distinct: int
    counted: int
    """The messages that arrived within `seconds`."""
    seconds: float
    latencies: array[int] = field(default_factory=lambda: array("q"))
    """In nanoseconds; only in timed windows."""

    @property
    def rate(self) -> float:
        return self.counted / self.seconds if self.seconds > 0 else 0.0


class Publisher(AsyncCandidate):
    """Publishes for `tasks` tasks at a time; `cycle` returns when the server has the message."""

    transport: Transport = "postgres"


class BlockingPublisher(BlockingCandidate):
    """As `Publisher`, for threads."""

    transport: Transport = "postgres"


class Listener:
    """Subscribes, and hands payloads to sinks in the order in which they come."""

    transport: Transport = "postgres"
    capacity = 1024

    async def open(self, address: Address) -> None:
        raise NotImplementedError

    async def subscribe(self, channel: str, sink: Sink) -> None:
        """Return when every later message will reach the sink."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def listen(self, layout: Layout) -> int:
        """Subscribe to everything; how many subscriptions there are. An error ends it, and is kept in `stopped`."""
        self.capacity = layout.capacity
        self.layout = layout
        self.heard: list[list[Any]] = []
        self.stopped: Exception | None = None
        for number in range(layout.subscriptions):
            arrived: list[Any] = []
            try:
                await self.subscribe(layout.channel(number), timing(arrived) if layout.timed else arrived.append)
            except Exception as error:
                self.stopped = error
                break
            self.heard.append(arrived)
        return len(self.heard)

    async def collect(self, expected: int, patience: float, since: float | None) -> Collected:
        """Wait until `expected` messages have arrived, or no more come. `since` (of `time.monotonic()`) is when they
        were sent; without it time is taken from the first look that finds any, and those it finds are not counted."""
        clock, heard = time.monotonic, self.heard
        begun = clock()
        first = last = begun
        at_first = arrived = 0
        while True:
            now, count = clock(), sum(map(len, heard))
            if count != arrived:
                if not arrived:
                    first, at_first = now, count
                arrived, last = count, now
            if count >= expected or now - begun > patience or (arrived and now - last > QUIET):
                break
            await asyncio.sleep(LOOK)
        found = judge(heard, self.layout.timed)
        for messages in heard:
            messages.clear()
        if since is not None:
            first, at_first = since, 0
        return Collected(found[0], found[1], arrived - at_first, last - first, found[2])


def timing(arrived: list[tuple[Payload, int]]) -> Sink:
    """A sink that keeps the time of arrival too."""
    clock, keep = time.monotonic_ns, arrived.append

    def sink(payload: Payload) -> None:
        keep((payload, clock()))

    return sink


def judge(heard: Iterable[Sequence[Any]], timed: bool) -> tuple[int, int, array[int]]:
    """Messages received, those of them that are not repetitions, and how long they took if they are timed."""
    received = distinct = 0
    latencies = array("q")
    for messages in heard:
        received += len(messages)
        payloads = [payload for payload, _ in messages] if timed else messages
        distinct += len({number_of(payload) for payload in payloads})
        if timed:
            latencies.extend(at - stamp_of(payload) for payload, at in messages)
    return received, distinct, latencies


class Caller:
    """Asks over a channel, and gets answers from an answerer in another process, of the same class."""

    transport: Transport = "postgres"

    async def open(self, address: Address) -> None:
        raise NotImplementedError

    async def answer(self) -> None:
        """Answer every question from now on; return when that is so."""
        raise NotImplementedError

    async def prepare(self) -> None:
        """Make ready to call."""

    async def call(self, payload: str) -> Payload:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError
