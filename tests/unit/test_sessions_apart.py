"""Sessions that somebody wants apart, and ends himself; and wake-ups for queues, which are said now and then."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from pgconcert.events import EventStream, SessionEnded, SessionLost
from pgconcert.messenger import Answer
from pgconcert.sessions.wakes import Wakes, wake_channel, wake_mark
from pgconcert.store import EndSession, LookAtSessions, Renew, Subject
from pgconcert.testing import eventually
from tests.unit.ears import turns
from tests.unit.memoryworld import still_world
from tests.unit.session_scenes import TEN, left, opened, pass_time

QUEUE = Subject("queue", "", "q")


async def test_a_session_apart_is_nobody_elses_and_renewed_with_the_others(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    shared = await house.acquire("a")
    mine = await house.acquire("b", timing=replace(TEN, apart="mine"))
    yours = await house.acquire("c", timing=replace(TEN, apart="yours"))
    again = await house.acquire("d", timing=replace(TEN, apart="mine"))
    assert len({shared.session_id, mine.session_id, yours.session_id}) == 3
    assert again.session_id == mine.session_id
    await pass_time(clock, 10.0)
    assert all(not hold.lost for hold in (shared, mine, yours, again))
    renewals = [request for request in house.store.asked if isinstance(request, Renew)]
    assert all(len(renewal.sessions) == 3 for renewal in renewals)
    await left(house)


async def test_whoever_ends_a_session_has_nothing_on_it_any_more(unique: str) -> None:
    world, clock = still_world(unique)
    house = await opened(world)
    kept = await house.acquire("a")
    mine = await house.acquire("b", timing=replace(TEN, apart="mine"))
    ended: asyncio.Future[bool] = house.engine.loop.create_future()
    house.engine.ask(EndSession(mine.session_id), ended)
    assert mine.reason == "its owner has ended it"
    assert await ended is True
    assert [info.id for info in await house.look(LookAtSessions())] == [kept.session_id]
    assert [str(event) for event in house.told(SessionEnded, SessionLost)] == [f"session {mine.session_id} ended"]
    house.store.asked.clear()
    await pass_time(clock, 5.0)
    assert {request.sessions for request in house.store.asked if isinstance(request, Renew)} == {(kept.session_id,)}
    assert not kept.lost
    await left(house)


class Voice:
    """A messenger that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[bytes, bytes]] = []

    def publish(self, channel: bytes, payload: bytes, answer: Answer[bool]) -> None:
        self.said.append((channel, payload))
        answer.set_result(True)


async def test_new_tasks_are_told_at_once_and_then_now_and_then(unique: str) -> None:
    voice = Voice()
    _, clock = still_world(unique)
    loop = asyncio.get_running_loop()
    wakes = Wakes(voice, clock, loop, EventStream(), "", lambda mark: None)  # type: ignore[arg-type]
    here: list[str] = []
    wakes._watches[wake_mark(QUEUE)] = {object(): lambda: here.append("told")}
    for _ in range(100):
        wakes.changed(QUEUE, wake=True)
    one = (wake_channel("").encode(), wake_mark(QUEUE))
    assert voice.said == [one]
    assert len(here) == 100
    await asyncio.to_thread(eventually, lambda: len(voice.said) == 2 and not wakes._said)
    wakes.changed(QUEUE, wake=True)
    wakes.changed(QUEUE, wake=True)
    assert voice.said == [one] * 3
    wakes.close()
    assert voice.said == [one] * 4, "what was kept back is said before the end"
    wakes.end()
    await turns()
    await asyncio.to_thread(eventually, lambda: not wakes._said)
    assert voice.said == [one] * 4
