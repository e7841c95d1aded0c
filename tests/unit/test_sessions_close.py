"""The end of an engine, in any state: what is free then, what was told, and for how long that may take."""

from __future__ import annotations

import asyncio

from pgconcert.events import NameGiveFailed
from pgconcert.messenger import Answer
from pgconcert.sessions.timing import timing
from pgconcert.store import (
    Give,
    LookAtSessions,
    StartSession,
    Subject,
)
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import fails, left, moved_on, opened

JOB = Subject("job", "", "n")
ELECTION = Subject("election", "", "n")


async def test_names_that_are_held_are_free_at_once_for_others_when_it_closes(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world), await opened(world)
    holds = [await house.acquire(f"n{number}") for number in range(1000)]
    theirs = [other.ask(f"n{number}", timing=timing(1000.0)) for number in range(1000)]
    waits = house.ask("n0")
    await turns(20)
    await house.close()
    assert all(hold.reason == "the coordinator was closed" for hold in holds)
    assert type(await fails(waits.future)).__name__ == "CoordinatorClosed"
    await turns(20)
    assert all(one.held for one in theirs)
    assert [info.id for info in await other.look(LookAtSessions())] == [session.id for session in other.sessions]
    for one in theirs:
        one.give()
    await left(house, other)


async def test_a_release_that_nobody_hears_does_not_outlive_the_end(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world, limit=0.05)
    hold = await house.acquire()
    house.backend.lose_connection(reconnect=False)
    released = asyncio.ensure_future(hold.release())
    await turns()
    await house.engine.close()
    await released
    assert clock.waiting() == 0
    await house.close()


async def test_what_could_not_be_freed_is_told_once(unique: str) -> None:
    world, _ = still_world(unique)
    house = await opened(world, limit=0.05)
    holds = [await house.acquire(f"n{number}") for number in range(1001)]
    house.backend.lose_connection(reconnect=False)
    await house.close()
    assert all(hold.lost for hold in holds)
    (told,) = house.told(NameGiveFailed)
    assert isinstance(told, NameGiveFailed)
    assert told.name == "n0 and 1,000 more"
    assert "the connection was lost, because a test wanted it" in told.error


async def test_what_the_end_of_the_session_has_freed_is_no_reason_for_alarm(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world, limit=0.2), await opened(world)
    holds = [await house.acquire(f"n{number}") for number in range(10)]
    house.store.keeps = {Give}
    await house.engine.close()
    assert all(hold.lost for hold in holds)
    assert await other.look(LookAtSessions()) == ()
    house.store.lose()
    assert not house.told(NameGiveFailed)
    await left(house, other)


async def test_the_end_waits_no_longer_than_the_network_may_take(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world, limit=0.05)
    holds = [await house.acquire(f"n{number}") for number in range(10)]
    house.store.deaf = True
    await house.engine.close()
    assert all(hold.lost for hold in holds)
    await house.engine.close()
    assert clock.waiting() == 0
    house.store.lose()
    await house.close()


async def test_the_end_during_a_give_and_during_a_start(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    hold = await house.acquire()
    house.store.keeps = {Give, StartSession}
    released = asyncio.ensure_future(hold.release())
    starting = house.ask("other", timing=timing(20.0))
    await turns()
    closing = asyncio.ensure_future(house.engine.close())
    await turns()
    assert type(await fails(starting.future)).__name__ == "CoordinatorClosed"
    assert not closing.done()  # a session whose start is under way is ended, too
    house.store.deliver()
    await closing
    await released
    assert not await house.look(LookAtSessions())
    assert clock.waiting() == 0
    await left(house)


async def test_the_end_of_one_that_waits(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await other.acquire()
    waits, tries = house.ask(), house.ask(wait=False)
    await turns(20)
    assert tries.outcome() is False
    await house.engine.close()
    assert type(await fails(waits.future)).__name__ == "CoordinatorClosed"
    late = house.ask()
    assert type(await fails(late.future)).__name__ == "CoordinatorClosed"
    assert await other.marks() == 0
    await hold.release()
    await left(house, other)


async def test_a_wake_up_of_the_last_release_is_on_its_way_before_it_closes(unique: str) -> None:
    world, _ = still_world(unique)
    house, other = await opened(world), await opened(world)
    hold = await house.acquire()
    waits = other.ask(timing=timing(1000.0))
    await turns(20)
    releasing = asyncio.ensure_future(hold.release())
    await asyncio.gather(releasing, house.close())
    await turns(20)
    assert waits.held
    waits.give()
    await left(house, other)


async def test_it_does_not_close_before_its_wake_ups_have_left(unique: str) -> None:
    world, _ = still_world(unique)
    other, mouth = await opened(world), SlowMouth()
    house = await opened(world, messenger=mouth)
    hold = await house.acquire()
    other.ask(timing=timing(1000.0))
    await turns(20)
    await hold.release()
    assert len(mouth.said) == 1
    closing = asyncio.ensure_future(house.engine.close())
    await turns(20)
    assert not closing.done()
    mouth.said.pop().set_result(True)
    await closing
    await left(house, other)


class SlowMouth:
    """A messenger of which only the voice matters: whatever is said is on its way until the test says otherwise."""

    def __init__(self) -> None:
        self.said: list[Answer[bool]] = []

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        self.said.append(answer)

    def listen(self, channel: str, ear: object) -> None: ...
    def unlisten(self, channel: str, ear: object) -> None: ...


async def test_given_back_together_all_are_free_when_it_is_told(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    asked = [house.ask(f"n{number}") for number in range(3)]
    await turns()
    house.store.keeps = {Give}
    given: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    house.engine.release_all([one.claim for one in asked], given)
    first, *others = house.store.kept
    house.store.kept = others
    house.store.deliver()
    assert not given.done()
    first[1]()
    assert await given
    none: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    house.engine.release_all([], none)
    assert await none
    house.store.keeps.clear()
    await moved_on([house], clock)
    await left(house)
