"""The port for messages across the engine thread: what crosses, in which order, and what never reaches an ear."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

import pytest

from pgconcert import crossed
from pgconcert.enginethread import ThreadedBackend
from pgconcert.errors import BrokerClosed, PublishUncertain, Unavailable
from pgconcert.events import EventStream
from pgconcert.memory import MemoryBackend, World
from pgconcert.memory.null import NullBackend
from pgconcert.messenger import Messenger
from pgconcert.testing import eventually, eventually_async
from tests.unit.ears import Diary, claiming, complaints, fetching, proving, publishing, say, spilling

NAME = "pgconcert-engine"


class Threaded:
    """A backend on the engine thread, and its messenger."""

    def __init__(self, world: World) -> None:
        self.inner = MemoryBackend(world)
        self.backend = ThreadedBackend(self.inner)

    async def __aenter__(self) -> Self:
        await self.backend.open(EventStream())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.backend.close()

    @property
    def messenger(self) -> Messenger:
        assert self.backend.messenger is not None
        return self.backend.messenger


class Here(Diary):
    """An ear that knows its thread."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def heard(self, payload: bytes, pid: int, own: bool) -> None:
        self.threads.add(threading.current_thread().name)
        super().heard(payload, pid, own)


async def listening(one: Threaded, channel: str = "c") -> Here:
    """An ear that hears by now. Its diary is empty."""
    ear = Here()
    one.messenger.listen(channel, ear)
    await proving(one.messenger)
    assert ear.told == ["ready"]
    ear.told.clear()
    return ear


async def test_everything_crosses_and_comes_back_to_the_caller_s_loop(unique: str) -> None:
    world, here = World.named(unique), threading.current_thread().name
    async with Threaded(world) as a, Threaded(world) as b:
        ear, other = await listening(a), await listening(b)
        for number in range(100):
            assert await publishing(a.messenger, b"%d" % number)
        assert await proving(a.messenger) >= 0
        await proving(b.messenger)
        assert ear.told == other.told == [b"%d" % number for number in range(100)]
        assert ear.threads == other.threads == {here}
        assert {own for _, own in ear.senders} == {True}
        assert {own for _, own in other.senders} == {False}
        number = await spilling(a.messenger, b"x" * 10_000)
        assert await fetching(b.messenger, number) == b"x" * 10_000
        assert [await claiming(one.messenger, "s", "1") for one in (a, b)] == [True, False]
        hearing = b.messenger.hearing()
        assert (hearing.proven, hearing.connects) == (True, 1)
        assert hearing == b.inner.messenger.hearing()
        a.messenger.bounce("a test")
        await publishing(b.messenger, b"after")
        await proving(a.messenger)
        assert ear.told[100:] == ["deaf: a test", "ready", b"after"]
        a.inner.lose_connection("pulled", reconnect=False)
        await eventually_async(lambda: len(ear.told) == 105)
        with pytest.raises(Unavailable, match="pulled"):
            await publishing(a.messenger, b"never")
        assert ear.told[103] == "deaf: pulled"
        assert str(ear.told[104]).startswith("failed: Unavailable")
    assert world.empty


async def test_a_proof_is_answered_behind_what_was_heard(unique: str) -> None:
    async with Threaded(World.named(unique)) as a:
        ear = await listening(a)
        for number in range(5000):
            say(a.messenger, b"%d" % number)
        await proving(a.messenger)
        assert len(ear.told) == 5000


async def test_nothing_reaches_an_ear_that_has_left(unique: str) -> None:
    """Even if it has been heard on the engine, and its call waits for the loop."""
    async with Threaded(World.named(unique)) as a, Threaded(World.named(unique)) as b:
        ear, other = await listening(a), await listening(a)
        say(b.messenger, b"1")
        # this loop stands still meanwhile: the call is on its way
        eventually(lambda: a.messenger.hearing().others_at is not None)
        a.messenger.unlisten("c", ear)
        a.messenger.unlisten("c", ear)
        await proving(a.messenger)
        assert (ear.told, other.told) == ([], [b"1"])
        a.messenger.listen("c", ear)
        a.messenger.listen("c", ear)
        await publishing(b.messenger, b"2")
        await proving(a.messenger)
        assert (ear.told, other.told) == (["ready", b"2"], [b"1", b"2"])


async def test_an_ear_that_raises_harms_nobody(unique: str) -> None:
    class Broken(Diary):
        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            raise ValueError("broken ear")

    async with Threaded(World.named(unique)) as a:
        a.messenger.listen("c", Broken())
        ear = await listening(a)
        with complaints() as seen:
            await publishing(a.messenger, b"1")
            await proving(a.messenger)
        assert (ear.told, seen) == ([b"1"], ["broken ear"])


async def test_a_loop_that_stands_still_is_told_what_it_missed(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes beyond the limit is thrown away, and the ear is deaf from the last before to the first after."""
    monkeypatch.setattr(crossed, "MOST_ON_THE_WAY", 10)
    async with Threaded(World.named(unique)) as a:
        ear, other = await listening(a), await listening(a, "other")
        done = threading.Event()
        for number in range(25):
            say(a.messenger, b"%d" % number)
        ask_on_engine(a, done.set)
        assert done.wait(30)
        await proving(a.messenger)
        say(a.messenger, b"after")
        await proving(a.messenger)
        assert ear.told == [
            *(b"%d" % number for number in range(10)),
            "deaf: the event loop stood still while 10 notifications came",
            "ready",
            b"after",
        ]
        assert other.told == []


def ask_on_engine(one: Threaded, told: Callable[[], None]) -> None:
    """Have ``told`` called on the engine, behind all that was published before."""

    class Note:
        def done(self) -> bool:
            return False

        def set_result(self, result: object, /) -> None:
            told()

        def set_exception(self, exception: Exception, /) -> None:
            raise exception

    assert one.backend._engine is not None
    one.backend._engine.crossing.post(lambda: one.inner.messenger.prove(Note()))


async def test_a_burst_crosses_in_few_wake_ups(unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, rings = asyncio.get_running_loop(), 0
    ring = loop.call_soon_threadsafe

    def counted(*arguments: Any, **options: Any) -> asyncio.Handle:
        nonlocal rings
        rings += threading.current_thread().name == NAME
        return ring(*arguments, **options)

    async with Threaded(World.named(unique)) as a:
        ear = await listening(a)
        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        done = threading.Event()
        for number in range(10_000):
            say(a.messenger, b"%d" % number)
        ask_on_engine(a, done.set)
        assert done.wait(30)
        assert rings == 1
        await proving(a.messenger)
        assert len(ear.told) == 10_000
        monkeypatch.undo()


async def test_closing(unique: str) -> None:
    world = World.named(unique)
    async with Threaded(world) as a:
        ear = await listening(a)
        a.inner.partition()
        kept = publishing(a.messenger, b"kept")
        fetch = fetching(a.messenger, 1)
        messenger = a.messenger
    assert ear.told == ["deaf: the coordinator was closed"]
    with pytest.raises(PublishUncertain, match="the coordinator was closed"):
        await kept
    with pytest.raises(BrokerClosed):
        await fetch
    for ask in (
        lambda: publishing(messenger, b"1"),
        lambda: proving(messenger),
        lambda: spilling(messenger, b"1"),
        lambda: fetching(messenger, 1),
        lambda: claiming(messenger, "s", "1"),
    ):
        with pytest.raises(BrokerClosed, match="the coordinator is closed"):
            await ask()
    late = Diary()
    messenger.listen("c", late)
    messenger.unlisten("c", ear)
    messenger.bounce("nothing")
    assert late.told == ["failed: BrokerClosed: the coordinator is closed"]
    assert not messenger.hearing().proven
    assert world.empty


async def test_whoever_has_left_is_not_answered(unique: str) -> None:
    async with Threaded(World.named(unique)) as a:
        asked = publishing(a.messenger, b"1")
        asked.cancel()
        with complaints() as seen:
            await proving(a.messenger)
        assert asked.cancelled()
        assert seen == []


async def test_a_backend_without_messages() -> None:
    backend = ThreadedBackend(NullBackend())
    await backend.open(EventStream())
    assert backend.messenger is None
    await backend.close()
