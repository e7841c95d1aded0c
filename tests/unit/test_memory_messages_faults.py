"""Messages in a world when its links break: lost, cut off, healed, bounced, and a queue that is full."""

from __future__ import annotations

import asyncio
import re

import pytest

from pgconcert.clock import FakeClock
from pgconcert.errors import NotifyQueueFull, PublishUncertain, Unavailable
from pgconcert.events import ListenerBounced, ListenerReady, QueueFilling
from pgconcert.memory import MemoryBackend, World
from tests.unit.ears import (
    Diary,
    claiming,
    fetching,
    left,
    listening,
    opened,
    proving,
    publishing,
    say,
    spilling,
    turns,
    with_story,
)

SILENCE = 5.0


# a broken link


async def test_a_lost_connection_makes_deaf_at_once_and_what_comes_meanwhile_is_missed(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    ear, early = await listening(a), Diary()
    say(b.messenger, b"written, not read")
    a.messenger.listen("c", early)
    a.lose_connection("pulled", reconnect=False)
    assert ear.told == ["deaf: pulled"]
    assert not a.messenger.hearing().proven
    await publishing(b.messenger, b"meanwhile")
    late = Diary()
    a.messenger.listen("c", late)
    with pytest.raises(Unavailable, match=rf"^there is no connection to {re.escape(str(world))} now: pulled$"):
        await publishing(a.messenger, b"never")
    for ask in (
        lambda: proving(a.messenger),
        lambda: spilling(a.messenger, b"x"),
        lambda: claiming(a.messenger, "s", "1"),
    ):
        with pytest.raises(Unavailable, match="pulled"):
            await ask()
    a.messenger.bounce("nothing to replace")
    await turns()
    a.reconnect()
    await publishing(b.messenger, b"after")
    await turns()
    failed = f"failed: Unavailable: there is no connection to {world} now: pulled"
    assert ear.told == ["deaf: pulled", failed, "ready", b"after"]
    assert early.told == late.told == [failed, "ready", b"after"]
    await left(a, b)


async def test_a_connection_that_comes_back_at_once_fails_nobody(unique: str) -> None:
    a = await opened(World.named(unique))
    ear = await listening(a)
    a.lose_connection("pulled")
    await turns()
    assert ear.told == ["deaf: pulled", "ready"]
    assert a.messenger.hearing().connects == 2
    await left(a)


async def test_a_partition_that_heals_in_time_loses_nothing(unique: str) -> None:
    world = World.named(unique, clock=FakeClock())
    a, b = await opened(world), await opened(world)
    ears = [await listening(a), await listening(b)]
    await publishing(b.messenger, b"1")
    with a.partition():
        await turns()
        assert [ear.told for ear in ears] == [[b"1"], [b"1"]]
        await publishing(b.messenger, b"2")
        kept, proof = publishing(a.messenger, b"4"), proving(a.messenger)
        number = spilling(a.messenger, b"large")
        late = Diary()
        a.messenger.listen("c", late)
        await publishing(b.messenger, b"3")
        await turns()
        assert [ear.told for ear in ears] == [[b"1"], [b"1", b"2", b"3"]]
        assert not kept.done()
        assert not proof.done()
    assert await kept
    await proof
    assert [ear.told for ear in ears] == [[b"1", b"2", b"3", b"4"]] * 2
    await turns()
    assert late.told == ["ready"]
    assert await fetching(b.messenger, await number) == b"large"
    await left(a, b)


async def test_a_partition_that_lasts_loses_what_is_on_both_sides(unique: str) -> None:
    world = World.named(unique, clock=(clock := FakeClock()))
    a, b = await opened(world), await opened(world)
    ears = [await listening(a), await listening(b)]
    cut = a.partition()
    await publishing(b.messenger, b"outside")
    kept, proof, number = publishing(a.messenger, b"inside"), proving(a.messenger), spilling(a.messenger, b"large")
    fetch = fetching(a.messenger, 1)
    clock.advance(SILENCE - 0.1)
    await turns()
    assert ears[0].told == []
    clock.advance(0.1)
    reason = f"no answer from {world} within network_timeout=5 s"
    assert ears[0].told == [f"deaf: {reason}"]
    with pytest.raises(PublishUncertain, match=f"may have been published: {re.escape(reason)}"):
        await kept
    for lost in (proof, number, fetch):
        with pytest.raises(Unavailable, match=re.escape(reason)):
            await lost
    with pytest.raises(Unavailable, match=re.escape(reason)):
        await publishing(a.messenger, b"not even sent")
    await turns()
    cut.heal()
    await publishing(b.messenger, b"after")
    await turns()
    assert ears[0].told == [
        f"deaf: {reason}",
        f"failed: Unavailable: there is no connection to {world} now: {reason}",
        "ready",
        b"after",
    ]
    assert ears[1].told == [b"outside", b"after"]
    await left(a, b)


async def test_a_bounce_touches_the_ears_and_nothing_else(unique: str) -> None:
    world = World.named(unique, clock=(clock := FakeClock()))
    a, story = await with_story(world, "a", ListenerReady, ListenerBounced)
    b = await opened(world)
    a.messenger.bounce("nothing listens yet")
    ear, pid = await listening(a), a.health().links[0].server_pid
    say(b.messenger, b"missed")
    proof = proving(a.messenger)
    a.messenger.bounce("a test")
    a.messenger.bounce("one is being made")
    with pytest.raises(Unavailable, match="the proof of listening did not come back: a test"):
        await proof
    clock.advance(1.5)
    say(b.messenger, b"heard")
    await proving(a.messenger)
    assert ear.told == ["deaf: a test", "ready", b"heard"]
    assert a.health().links[0].server_pid == pid
    assert [str(event) for event in story] == [
        "listening to 1 channels",
        "the listen link is replaced: a test",
        "listening to 1 channels, after 1.500 s in which nothing was heard",
    ]
    assert [event.initial for event in story if isinstance(event, ListenerReady)] == [True, False]
    await left(a, b)


async def test_a_bounce_during_a_partition(unique: str) -> None:
    world = World.named(unique, clock=FakeClock())
    a, b = await opened(world), await opened(world)
    ear = await listening(a)
    with a.partition():
        await publishing(b.messenger, b"missed")
        a.messenger.bounce("a test")
        await publishing(b.messenger, b"missed as well")
        await turns()
        assert ear.told == ["deaf: a test"]
    await publishing(b.messenger, b"heard")
    await turns()
    assert ear.told == ["deaf: a test", "ready", b"heard"]
    await left(a, b)


async def test_what_is_known_about_hearing(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    known = a.messenger.hearing()
    assert (known.proven, known.own_at, known.others_at, known.latency, known.connects) == (False, None, None, None, 0)
    await listening(a)
    known = a.messenger.hearing()
    assert (known.proven, known.others_at, known.connects) == (True, None, 1)
    assert known.own_at is not None
    assert known.latency is not None
    await publishing(b.messenger, b"1")
    latency = await proving(a.messenger)
    after = a.messenger.hearing()
    assert after.latency == latency >= 0
    assert after.own_at is not None
    assert after.others_at is not None
    assert known.own_at <= after.others_at <= after.own_at
    assert a.health().hearing == after
    await left(a, b)


async def test_a_proof_comes_after_everything_that_was_published_before(unique: str) -> None:
    a, b = await opened(World.named(unique)), await opened(World.named(unique))
    ear = await listening(a)
    for number in range(2500):
        say(b.messenger, b"%d" % number)
    proof = proving(a.messenger)
    say(b.messenger, b"later")
    told: list[int] = []
    proof.add_done_callback(lambda proof: told.append(len(ear.told)))
    await proof
    await turns()
    assert told[0] in (2500, 2501)
    assert ear.told[2500:] == [b"later"]
    await left(a, b)


# a queue that is full


async def test_a_full_queue_names_who_does_not_read(unique: str) -> None:
    world = World.named(unique, clock=FakeClock())
    world.queue_limit = 8
    a, b = await opened(world, "sleeper"), await opened(world)
    c, story = await with_story(world, "writer", QueueFilling)
    ear, other = await listening(a), await listening(b)
    pid = a.health().links[0].server_pid
    with a.partition():
        for number in range(8):
            await publishing(c.messenger, b"%d" % number)
            await turns()
        for channel in ("c", "nobody listens"):
            with pytest.raises(NotifyQueueFull, match=rf"sleeper \(pid {pid}\) has 8 notifications .* no more than 8"):
                await publishing(c.messenger, b"too many", channel)
    await turns()
    assert ear.told == other.told == [b"%d" % number for number in range(8)]
    assert [str(event) for event in story] == [
        f"the server's notification queue is 50% full; held up by sleeper (pid {pid})"
    ]
    await publishing(c.messenger, b"again")
    with a.partition():
        for _ in range(4):
            await publishing(c.messenger, b"x")
            await turns()
    assert len(story) == 2
    await left(a, b, c)


async def test_a_listener_that_leaves_holds_up_nobody(unique: str) -> None:
    world = World.named(unique)
    world.queue_limit = 4
    a, b = await opened(world), await opened(world)
    await listening(a)
    cut = a.partition()
    for _ in range(4):
        await publishing(b.messenger, b"x")
    with pytest.raises(NotifyQueueFull):
        await publishing(b.messenger, b"x")
    a.lose_connection()
    assert await publishing(b.messenger, b"x")
    cut.heal()
    await left(a, b)


def test_a_listener_whose_loop_has_ended_holds_up_nobody(unique: str) -> None:
    world = World.named(unique)

    async def begin_to_listen() -> MemoryBackend:
        backend = await opened(world)
        await listening(backend)
        return backend

    async def after() -> None:
        b = await opened(world)
        for _ in range(4):
            await publishing(b.messenger, b"x")
        await b.close()

    world.queue_limit = 2
    gone = asyncio.new_event_loop()
    sleeper = gone.run_until_complete(begin_to_listen())
    gone.close()
    assert not world.empty
    asyncio.run(after())
    assert world.empty
    assert sleeper.world is world
