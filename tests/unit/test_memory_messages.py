"""Messages in a world, sentence by sentence of the port: who hears what, in which order, and what a loss costs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgconcert.clock import FakeClock
from pgconcert.errors import BrokerClosed, CoordinatorClosed, PublishUncertain, Unavailable
from pgconcert.memory import MemoryBackend, World
from pgconcert.memory.null import NullBackend
from pgconcert.messenger import MAX_NOTIFICATION
from tests.unit.ears import (
    Diary,
    begin,
    claiming,
    complaints,
    fetching,
    left,
    listening,
    opened,
    proving,
    publishing,
    say,
    spilling,
    turns,
)

SILENCE = 5.0


# who hears


async def test_everybody_hears_everything_in_one_order(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    ears = [await listening(a), await listening(b), await listening(b)]
    other = await listening(a, "other")
    for number in range(50):
        assert await publishing((a, b)[number % 2].messenger, b"%d" % number)
    await proving(a.messenger)
    await proving(b.messenger)
    assert [ear.told for ear in ears] == [[b"%d" % number for number in range(50)]] * 3
    assert other.told == []
    pids = [backend.health().links[0].server_pid for backend in (a, b)]
    assert ears[0].senders[:2] == [(pids[0], True), (pids[1], False)]
    assert ears[1].senders[:2] == [(pids[0], False), (pids[1], True)]
    await left(a, b)


async def test_equal_messages_are_all_delivered(unique: str) -> None:
    a = await opened(World.named(unique))
    ear = await listening(a)
    for _ in range(3):
        await publishing(a.messenger, b"same")
    await proving(a.messenger)
    assert ear.told == [b"same"] * 3
    await left(a)


async def test_nobody_is_called_within_the_call_of_whoever_publishes(unique: str) -> None:
    """Not even on the same loop; and ``ready`` does not come within ``listen``."""
    a = await opened(World.named(unique))
    ear = Diary()
    a.messenger.listen("c", ear)
    published = publishing(a.messenger, b"1")
    assert (published.done(), ear.told) == (True, [])
    await proving(a.messenger)
    assert ear.told == ["ready", b"1"]
    await left(a)


async def test_an_ear_that_publishes_hears_it_later(unique: str) -> None:
    class Talker(Diary):
        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            self.told.append(b"begin " + payload)
            if payload == b"1":
                say(a.messenger, b"3")
            self.told.append(b"end " + payload)

    a = await opened(World.named(unique))
    ear = Talker()
    a.messenger.listen("c", ear)
    say(a.messenger, b"1")
    say(a.messenger, b"2")
    await turns()
    assert ear.told == ["ready", b"begin 1", b"end 1", b"begin 2", b"end 2", b"begin 3", b"end 3"]
    await left(a)


async def test_publishing_with_nobody_listening(unique: str) -> None:
    a = await opened(World.named(unique))
    assert await publishing(a.messenger, b"") is True
    await left(a)


async def test_limits_are_those_of_the_server(unique: str) -> None:
    a = await opened(World.named(unique))
    ear = await listening(a, "c" * 63)
    assert await publishing(a.messenger, b"x" * MAX_NOTIFICATION, "c" * 63)
    await proving(a.messenger)
    assert ear.payloads() == [b"x" * MAX_NOTIFICATION]
    for channel, payload in (("c" * 64, b""), ("", b""), ("c\0", b""), ("c", b"\0"), ("c", b"x" * 8000)):
        with pytest.raises(AssertionError):
            say(a.messenger, payload, channel)
    with pytest.raises(AssertionError):
        a.messenger.listen("c" * 64, Diary())
    await left(a)


async def test_an_ear_that_leaves_hears_nothing_any_more(unique: str) -> None:
    a, b = await opened(World.named(unique)), await opened(World.named(unique))
    first, second = await listening(a), await listening(a)
    say(b.messenger, b"missed by the first")
    a.messenger.unlisten("c", first)
    a.messenger.unlisten("c", first)
    a.messenger.unlisten("never heard", first)
    await publishing(b.messenger, b"2")
    await turns()
    assert (first.told, second.told) == ([], [b"missed by the first", b"2"])
    a.messenger.unlisten("c", second)
    assert a.world.empty
    a.messenger.listen("c", first)
    a.messenger.listen("c", first)
    await publishing(b.messenger, b"3")
    await turns()
    assert (first.told, len(second.told)) == (["ready", b"3"], 2)
    await left(a, b)


async def test_who_leaves_while_others_are_told_is_not_told(unique: str) -> None:
    class Bouncer(Diary):
        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            a.messenger.unlisten("c", guest)

    a = await opened(World.named(unique))
    bouncer, guest = Bouncer(), Diary()
    a.messenger.listen("c", bouncer)
    a.messenger.listen("c", guest)
    await publishing(a.messenger, b"1")
    await turns()
    assert guest.told == ["ready"]
    await left(a)


async def test_an_ear_that_raises_harms_nobody(unique: str) -> None:
    class Broken(Diary):
        def heard(self, payload: bytes, pid: int, own: bool) -> None:
            raise ValueError("broken ear")

    a = await opened(World.named(unique))
    a.messenger.listen("c", Broken())
    ear = await listening(a)
    with complaints() as seen:
        await publishing(a.messenger, b"1")
        await turns()
    assert (ear.told, seen) == ([b"1"], ["broken ear"])
    await left(a)


async def test_a_burst_leaves_the_loop_time_for_others(unique: str) -> None:
    a = await opened(World.named(unique))
    ear = await listening(a)
    for number in range(3500):
        say(a.messenger, b"%d" % number)
    seen: list[int] = []
    while len(ear.told) < 3500:
        await asyncio.sleep(0)
        seen.append(len(ear.told))
    assert seen == [1000, 2000, 3000, 3500]
    assert ear.told == [b"%d" % number for number in range(3500)]
    await left(a)


# what is kept


async def test_a_payload_is_kept_for_its_time(unique: str) -> None:
    world = World.named(unique, clock=(clock := FakeClock()))
    a, b = await opened(world), await opened(world)
    first, second = await spilling(a.messenger, b"x" * 100_000, 10.0), await spilling(b.messenger, b"", 20.0)
    assert first != second
    clock.advance(9.9)
    assert [await fetching(b.messenger, number) for number in (first, second, 99)] == [b"x" * 100_000, b"", None]
    clock.advance(0.1)
    assert [await fetching(b.messenger, number) for number in (first, second)] == [None, b""]
    assert not world.empty
    clock.advance(10)
    assert world.empty
    await left(a, b)


async def test_one_claim_is_granted_within_an_hour(unique: str) -> None:
    world = World.named(unique, clock=(clock := FakeClock()))
    a, b = await opened(world), await opened(world)
    assert await claiming(a.messenger, "s", "1")
    assert not await claiming(b.messenger, "s", "1")
    assert await claiming(b.messenger, "s", "2")
    assert await claiming(b.messenger, "t", "1")
    clock.advance(3599)
    assert not await claiming(a.messenger, "s", "1")
    clock.advance(1)
    assert world.empty
    assert await claiming(b.messenger, "s", "1")
    await left(a, b)


async def test_the_last_to_leave_takes_everything_along(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    number = await spilling(a.messenger, b"kept")
    await claiming(a.messenger, "s", "1")
    await a.close()
    assert await fetching(b.messenger, number) == b"kept"
    assert not await claiming(b.messenger, "s", "1")
    await left(b)
    again = await opened(world)
    assert await fetching(again.messenger, number) is None
    assert await claiming(again.messenger, "s", "1")
    await left(again)


async def test_a_fetch_rides_through_a_lost_connection(unique: str) -> None:
    world = World.named(unique, clock=(clock := FakeClock()))
    a, b = await opened(world), await opened(world)
    number = await spilling(b.messenger, b"kept")
    a.lose_connection(reconnect=False)
    first = fetching(a.messenger, number)
    clock.advance(3)
    second = fetching(a.messenger, number)
    clock.advance(SILENCE - 3)
    with pytest.raises(Unavailable):
        await first
    assert not second.done()
    a.reconnect()
    assert await second == b"kept"
    cut = a.partition()
    third = fetching(a.messenger, number)
    a.lose_connection()
    assert not third.done()
    cut.heal()
    assert await third == b"kept"
    assert not clock.waiting()
    await left(a, b)


# the end


async def test_closing_ends_everything(unique: str) -> None:
    world = World.named(unique, clock=FakeClock())
    a = await opened(world)
    ear = await listening(a)
    a.partition()
    kept, proof, claim = publishing(a.messenger, b"1"), proving(a.messenger), claiming(a.messenger, "s", "1")
    fetch = fetching(a.messenger, 1)
    await left(a)
    assert ear.told == ["deaf: the coordinator was closed"]
    with pytest.raises(PublishUncertain, match="the coordinator was closed"):
        await kept
    for lost in (proof, claim):
        with pytest.raises(Unavailable, match="the coordinator was closed"):
            await lost
    with pytest.raises(BrokerClosed):
        await fetch
    late = Diary()
    a.messenger.listen("c", late)
    a.messenger.unlisten("c", ear)
    a.messenger.bounce("nothing")
    assert late.told == ["failed: BrokerClosed: the coordinator is closed"]
    for ask in (
        lambda: publishing(a.messenger, b"1"),
        lambda: proving(a.messenger),
        lambda: spilling(a.messenger, b"1"),
        lambda: fetching(a.messenger, 1),
        lambda: claiming(a.messenger, "s", "1"),
    ):
        with pytest.raises(BrokerClosed):
            await ask()
    await turns()
    assert len(ear.told) == 1


async def test_whoever_has_left_is_not_answered(unique: str) -> None:
    world = World.named(unique, clock=FakeClock())
    a = await opened(world)
    with a.partition():
        asked: list[asyncio.Future[Any]] = [
            publishing(a.messenger, b"1"),
            proving(a.messenger),
            fetching(a.messenger, 1),
        ]
        for answer in asked:
            answer.cancel()
    lost = publishing(a.messenger, b"2")
    await turns()
    assert lost.done()
    assert all(answer.cancelled() for answer in asked)
    await left(a)


async def test_before_it_is_open_and_in_a_world_without_messages(unique: str) -> None:
    backend = MemoryBackend(unique)
    assert {"messages", "payloads", "claims"} <= backend.capabilities
    with pytest.raises(CoordinatorClosed):
        backend.messenger  # noqa: B018
    nothing = NullBackend()
    assert nothing.messenger is None
    assert not {"messages", "payloads", "claims"} & nothing.capabilities


async def test_an_answer_that_is_no_future(unique: str) -> None:
    class Note:
        told: object = None

        def done(self) -> bool:
            return False

        def set_result(self, result: object, /) -> None:
            self.told = result

        def set_exception(self, exception: Exception, /) -> None:
            self.told = exception

    a, note = await opened(World.named(unique)), Note()
    a.messenger.publish(b"c", b"1", note)
    assert note.told is True
    assert await begin(a.messenger.prove) >= 0
    await left(a)
