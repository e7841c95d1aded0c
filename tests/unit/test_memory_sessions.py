"""Sessions in a world whose clock a test moves: when exactly they are over, and what is kept for how long.

What does not depend on the time is in the conformance suite.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, TypeVar

import pytest

from pgconcert import CoordinatorClosed
from pgconcert.clock import FakeClock
from pgconcert.events import EventStream
from pgconcert.memory import MemoryBackend, World
from pgconcert.store import (
    COUNTER_BITS,
    EndSession,
    Give,
    Look,
    LookAtSessions,
    Own,
    Refused,
    Renew,
    Request,
    StartSession,
    Subject,
    Take,
    Taken,
    Terms,
)
from tests.unit.ears import left, opened
from tests.unit.memoryworld import still_world

T = TypeVar("T")

JOB = Subject("job", "", "report")
ELECTION = Subject("election", "", "chief")
MEMBER = Subject("member", "", "workers", "1")
TTL = 40.0


async def ask(backend: MemoryBackend, request: Request[T]) -> T:
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    backend.store.ask(request, answer)
    return await answer


async def start(backend: MemoryBackend, ttl: float = TTL) -> int:
    return await ask(backend, StartSession(uuid="u", ttl=ttl, host="h", pid=1, application="a"))


async def taken(backend: MemoryBackend, session: int, subject: Subject = JOB, **how: Any) -> Taken:
    answer = await ask(backend, Take(subject=subject, session=session, **how))
    assert isinstance(answer, Taken), answer
    return answer


async def refused(backend: MemoryBackend, session: int, subject: Subject = JOB, **how: Any) -> Refused:
    answer = await ask(backend, Take(subject=subject, session=session, **how))
    assert isinstance(answer, Refused), answer
    return answer


async def living(backend: MemoryBackend) -> dict[int, float]:
    return {info.id: info.expires_in for info in await ask(backend, LookAtSessions())}


async def test_a_session_is_over_exactly_when_its_time_is(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    first, heir = await start(a), await start(a, 1000)
    await taken(a, first)
    clock.advance(TTL - 1)
    assert (await refused(a, heir)).retry_in == 1
    assert await ask(a, Renew((first,))) == {first: 0}
    clock.advance(TTL - 0.5)
    assert await living(a) == {first: 0.5, heir: 1000 - 2 * TTL + 1.5}
    assert (await refused(a, heir)).retry_in == 0.5
    clock.advance(0.5)
    assert await living(a) == {heir: 1000 - 2 * TTL + 1}
    assert await ask(a, Renew((first,))) == {first: None}
    await taken(a, heir)
    await ask(a, EndSession(heir))
    await left(a)


async def test_what_is_over_and_not_taken_is_over_all_the_same(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    session = await start(a)
    token = (await taken(a, session, ELECTION)).token
    assert not world.empty
    clock.advance(TTL)
    assert world.empty
    assert await ask(a, Own(session)) == ()
    assert not (await ask(a, Give(subject=ELECTION, session=session, token=token))).ours
    assert not await ask(a, EndSession(session))
    (term,) = await ask(a, Terms(subject=ELECTION))
    assert (term.how, term.until, term.leader.expires_in) == ("lost", term.since + TTL, 0)
    await left(a)


async def test_a_name_is_kept_for_its_least_time_and_not_longer(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    session = await start(a, 1000)
    await taken(a, session, hold_at_least=10)
    clock.advance(4)
    assert (await ask(a, Give(subject=JOB, session=session))).ours
    assert (await refused(a, session)).retry_in == 6
    clock.advance(6)
    await taken(a, session, hold_at_least=10)
    clock.advance(11)
    await ask(a, Give(subject=JOB, session=session))
    await taken(a, session)
    await left(a)


async def test_the_others_lead_when_the_last_preferred_is_over(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    leader, short, long, other = await start(a, 1000), await start(a, 20), await start(a, 30), await start(a, 1000)
    await taken(a, leader, ELECTION)
    for session in (short, long):
        await refused(a, session, ELECTION, preferred=True, mark=True)
    await ask(a, Give(subject=ELECTION, session=leader))
    assert await refused(a, other, ELECTION) == Refused(retry_in=30)
    clock.advance(20)
    assert await refused(a, other, ELECTION, mark=True) == Refused(retry_in=10)
    clock.advance(10)
    await taken(a, other, ELECTION)
    await left(a)


async def test_preference_is_a_matter_of_elections(unique: str) -> None:
    world = World.named(unique)
    a = await opened(world)
    holder, preferred, other = await start(a), await start(a), await start(a)
    await taken(a, holder)
    await refused(a, preferred, preferred=True, mark=True)
    assert await ask(a, Renew((holder,))) == {holder: 0}
    await ask(a, Give(subject=JOB, session=holder))
    await taken(a, other)
    await left(a)


async def test_a_leader_that_takes_again_begins_a_term(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    session = await start(a)
    first = await taken(a, session, ELECTION)
    clock.advance(1)
    second = await taken(a, session, ELECTION)
    terms = await ask(a, Terms(subject=ELECTION, after=0))
    assert [(term.token, term.how, term.until) for term in terms] == [
        (first.token, "released", first.since + 1),
        (second.token, None, None),
    ]
    await left(a)


# another incarnation


async def test_after_a_failover_everybody_has_one_ttl_of_grace(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    holder, renewed, heir = await start(a), await start(a), await start(a, 1000)
    before = await taken(a, holder)
    clock.advance(TTL - 1)
    world.fail_over()
    late = await start(a)
    assert await living(a) == {holder: TTL + 1, renewed: TTL + 1, heir: 2000 - (TTL - 1), late: TTL}
    assert (await refused(a, heir)).retry_in == TTL + 1
    # who comes from before looks at what it has
    assert await ask(a, Renew((renewed,))) == {renewed: 1}
    assert await ask(a, Renew((renewed,))) == {renewed: 1}
    assert (await living(a))[renewed] == TTL
    clock.advance(TTL)
    assert (await refused(a, heir)).retry_in == 1
    clock.advance(1)
    assert await ask(a, Renew((holder, heir))) == {holder: None, heir: 1}
    after = await taken(a, heir)
    assert (before.token >> COUNTER_BITS, after.token >> COUNTER_BITS) == (1, 2)
    await ask(a, EndSession(heir))
    await left(a)


async def test_grace_is_counted_from_the_failover_for_what_was_over_before(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    session, ended, heir = await start(a), await start(a), await start(a, 1000)
    await taken(a, session)
    await ask(a, EndSession(ended))
    clock.advance(TTL + 10)
    world.fail_over()
    # the renewals that the new server has not seen may have been many
    assert (await refused(a, heir)).retry_in == TTL
    assert await ask(a, Renew((session, ended))) == {session: 1, ended: None}
    await left(a)


# expire_session


async def test_expire_session_is_about_the_sessions_of_this_coordinator(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    ours, also, theirs = await start(a), await start(a), await start(b)
    await taken(a, ours)
    assert (await refused(b, theirs)).holder is not None
    a.expire_session()
    assert [*await living(a)] == [theirs]
    assert await ask(a, Renew((ours, also))) == {ours: None, also: None}
    await taken(b, theirs)
    assert [*await living(a)] == [theirs]
    fresh = await start(a)
    assert [*await living(a)] == [theirs, fresh]
    await left(a, b)


async def test_expire_session_from_another_thread_and_through_a_partition(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    ours, theirs = await start(a), await start(b)
    await taken(a, ours)
    with a.partition():
        thread = threading.Thread(target=a.expire_session)
        thread.start()
        thread.join()
        await taken(b, theirs)
        renewal = asyncio.ensure_future(ask(a, Renew((ours,))))
    assert await renewal == {ours: None}
    await left(a, b)


async def test_a_closed_coordinator_has_no_sessions_to_expire(unique: str) -> None:
    a = MemoryBackend(World.named(unique))
    with pytest.raises(CoordinatorClosed, match="not open"):
        a.expire_session()
    with pytest.raises(CoordinatorClosed, match="not open"):
        _ = a.store
    await a.open(EventStream())
    await a.close()
    with pytest.raises(CoordinatorClosed, match="is closed"):
        a.expire_session()


# what is kept


async def test_what_nobody_needs_is_forgotten(unique: str) -> None:
    world, clock = still_world(unique)
    a = await opened(world)
    session, member = await start(a, 100_000), await start(a)
    lost = MEMBER._replace(member="2")
    await taken(a, session, MEMBER)
    await taken(a, member, lost)
    await ask(a, Give(subject=MEMBER, session=session))
    tokens = [(await taken(a, session, ELECTION)).token]
    await ask(a, Give(subject=ELECTION, session=session))
    clock.advance(100)
    tokens.append((await taken(a, session, ELECTION)).token)
    await ask(a, Give(subject=ELECTION, session=session))
    assert len(await ask(a, Look(kind="member"))) == 2
    clock.advance(510)
    assert [entry.subject for entry in await ask(a, Look(kind="member"))] == [lost]
    clock.advance(61)
    assert await ask(a, Look(kind="member")) == ()
    assert len(await ask(a, Terms(subject=ELECTION, after=0))) == 2
    clock.advance(3000)
    assert [term.token for term in await ask(a, Terms(subject=ELECTION, after=0))] == tokens[1:]
    clock.advance(10_000)
    assert [term.token for term in await ask(a, Terms(subject=ELECTION, after=0))] == tokens[1:]
    assert (await taken(a, session, MEMBER)).token > tokens[1]
    await left(a)


async def test_the_last_to_leave_takes_everything_along_but_the_tokens(unique: str) -> None:
    world = World.named(unique)
    a = await opened(world)
    session = await start(a)
    first = await taken(a, session)
    b = await opened(world)
    await a.close()
    assert not world.empty
    assert (await refused(b, await start(b))).holder is not None
    await b.close()
    assert world.empty
    c = await opened(world)
    assert await ask(c, Look()) == ()
    heir = await start(c)
    assert heir > session
    assert (await taken(c, heir)).token > first.token
    await left(c)


async def test_times_are_those_of_the_wall(unique: str) -> None:
    for world in (World.named(f"{unique}.real"), World.named(f"{unique}.fake", clock=FakeClock(5))):
        a = await opened(world)
        earliest = time.time()
        session = await start(a)
        got = await taken(a, session)
        (info,) = await ask(a, LookAtSessions())
        # the offset of the clock was measured when the world began
        assert earliest - 5 < info.started <= got.since < time.time() + 5
        if isinstance(world.clock, FakeClock):
            world.clock.advance(7)
            assert (await taken(a, session)).since == got.since + 7
        await left(a)
