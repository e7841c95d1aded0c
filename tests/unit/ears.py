"""Helpers of the tests of messengers: an ear that writes down what it is told, and requests that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pgconcert.clock import FakeClock
from pgconcert.events import Event, EventStream
from pgconcert.memory import MemoryBackend, World
from pgconcert.messenger import Answer, Messenger

T = TypeVar("T")


class Diary:
    """An ear. Payloads stand in ``told`` as they came, ``ready`` and ``deaf`` as words."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.senders: list[tuple[int, bool]] = []

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.told.append(payload)
        self.senders.append((pid, own))

    def ready(self) -> None:
        self.told.append("ready")

    def deaf(self, reason: str) -> None:
        self.told.append(f"deaf: {reason}")

    def failed(self, error: Exception) -> None:
        self.told.append(f"failed: {type(error).__name__}: {error}")

    def payloads(self) -> list[bytes]:
        return [one for one in self.told if isinstance(one, bytes)]


def begin(ask: Callable[[Answer[Any]], None]) -> asyncio.Future[Any]:
    """Ask; the answer is to come."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ask(answer)
    return answer


def publishing(messenger: Messenger, payload: bytes, channel: str = "c") -> asyncio.Future[bool]:
    return begin(lambda answer: messenger.publish(channel.encode(), payload, answer))


def say(messenger: Messenger, payload: bytes, channel: str = "c") -> None:
    """Publish, and never mind."""
    messenger.publish(channel.encode(), payload, asyncio.get_running_loop().create_future())


def proving(messenger: Messenger) -> asyncio.Future[float]:
    return begin(messenger.prove)


def spilling(messenger: Messenger, payload: bytes, ttl: float = 60.0) -> asyncio.Future[int]:
    return begin(lambda answer: messenger.spill(payload, ttl, answer))


def fetching(messenger: Messenger, number: int) -> asyncio.Future[bytes | None]:
    return begin(lambda answer: messenger.fetch(number, answer))


def claiming(messenger: Messenger, scope: str, message_id: str) -> asyncio.Future[bool]:
    return begin(lambda answer: messenger.claim(scope, message_id, answer))


async def opened(world: World, name: str | None = None, **options: Any) -> MemoryBackend:
    """The backend of a coordinator that has just been opened."""
    backend = MemoryBackend(world, name=name, **options)
    await backend.open(EventStream())
    return backend


async def with_story(world: World, name: str, *kinds: type[Event]) -> tuple[MemoryBackend, list[Event]]:
    """The same, with the events that it emits."""
    events, story = EventStream(), list[Event]()
    events.subscribe(story.append, *kinds)
    backend = MemoryBackend(world, name=name)
    await backend.open(events)
    return backend, story


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What the running loop is told of errors that nobody caught."""
    loop, seen = asyncio.get_running_loop(), list[str]()
    loop.set_exception_handler(lambda loop, context: seen.append(str(context.get("exception"))))
    try:
        yield seen
    finally:
        loop.set_exception_handler(None)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def listening(backend: MemoryBackend, channel: str = "c") -> Diary:
    """An ear that hears by now. Its diary is empty."""
    ear = Diary()
    backend.messenger.listen(channel, ear)
    await proving(backend.messenger)
    assert ear.told == ["ready"]
    ear.told.clear()
    return ear


async def left(*backends: MemoryBackend) -> None:
    """Everybody closes, and nothing is left."""
    for backend in backends:
        await backend.close()
    world = backends[0].world
    assert (world.empty, world.members) == (True, set())
    assert not isinstance(world.clock, FakeClock) or not world.clock.waiting()
