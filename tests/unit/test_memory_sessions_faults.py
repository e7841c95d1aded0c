"""Sessions in a world when links break: lost, cut off, healed, bounced, closed, moved elsewhere; threads; `fork`."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from pgconcert import AsyncCoordinator, CoordinatorClosed, LockLost, Unavailable
from pgconcert.events import LinkLost, LinkOpened
from pgconcert.memory import MemoryBackend, World
from pgconcert.store import EndSession, Give, LookAtSessions, Own, Refused, Renew, Take, Taken
from pgconcert.testing import eventually_async
from tests.processes import Worker
from tests.unit.ears import left, opened, turns
from tests.unit.memoryworld import Story, handles, still_world
from tests.unit.test_memory_sessions import JOB, ask, living, refused, start, taken
from tests.unit.test_memory_threads import THREADS, in_threads

SILENCE = 5.0


async def test_a_session_outlives_its_connection(unique: str) -> None:
    world = World.named(unique)
    a, b = await opened(world), await opened(world)
    session, other = await start(a), await start(b)
    token = (await taken(a, session)).token
    a.lose_connection("pulled", reconnect=False)
    with pytest.raises(Unavailable, match=rf"^there is no connection to {re.escape(str(world))} now: pulled$"):
        await ask(a, Renew((session,)))
    a.store.bounce("nothing to replace")
    assert (await refused(b, other)).holder is not None
    a.reconnect()
    assert await ask(a, Renew((session,))) == {session: 0}
    assert [owned.token for owned in await ask(a, Own(session))] == [token]
    await left(a, b)


async def test_a_partition_that_heals_in_time_answers_in_order(unique: str) -> None:
    world, clock = still_world(unique)
    a, b = await opened(world), await opened(world)
    session, other = await start(a), await start(b)
    with a.partition():
        asked = [
            asyncio.ensure_future(ask(a, request))
            for request in (
                Take(subject=JOB, session=session),
                Give(subject=JOB, session=session),
                Take(subject=JOB, session=session),
            )
        ]
        await turns()
        clock.advance(SILENCE - 0.1)
        await turns()
        assert not any(one.done() for one in asked)
        await taken(b, other)
        await ask(b, Give(subject=JOB, session=other))
    first, given, second = [await one for one in asked]
    assert isinstance(first, Taken)
    assert isinstance(second, Taken)
    assert second.token == first.token + 1
    assert not isinstance(given, Taken)
    await left(a, b)


async def test_a_partition_that_lasts_leaves_everybody_without_an_answer(unique: str) -> None:
    world, clock = still_world(unique)
    a, b = await opened(world), await opened(world)
    session = await start(a)
    with a.partition():
        renewal = asyncio.ensure_future(ask(a, Renew((session,))))
        await turns()
        clock.advance(SILENCE)
        with pytest.raises(
            Unavailable, match=r"before the answer: no answer from memory:.* within network_timeout=5 s"
        ):
            await renewal
        with pytest.raises(Unavailable, match="there is no connection"):
            await ask(a, Renew((session,)))
        assert await living(b) == {session: 40 - SILENCE}
    assert await ask(a, Renew((session,))) == {session: 0}
    await left(a, b)


async def test_bounce_gives_up_what_is_under_way_and_keeps_the_locks(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c, c.lock("k") as hold:
        a = handles(c)
        session = await start(a)
        with a.partition():
            renewal = asyncio.ensure_future(ask(a, Renew((session,))))
            await turns()
            a.store.bounce("no answer in time")
            with pytest.raises(Unavailable, match="no answer in time"):
                await renewal
        assert await ask(a, Renew((session,))) == {session: 0}
        assert not hold.lost


async def test_an_answer_that_nobody_waits_for_any_more(unique: str) -> None:
    world = World.named(unique)
    a = await opened(world)
    session = await start(a)
    for end in (a.store.bounce, a.lose_connection):
        with a.partition():
            answers = [asyncio.get_running_loop().create_future() for _ in range(2)]
            for answer in answers:
                a.store.ask(Renew((session,)), answer)
            answers[0].cancel()
            end("pulled")
            assert isinstance(answers[1].exception(), Unavailable)
    with a.partition():
        late: asyncio.Future[Taken | Refused] = asyncio.get_running_loop().create_future()
        a.store.ask(Take(subject=JOB, session=session), late)
        late.cancel()
    # carried out all the same; so whoever does not want it gives it back
    assert (await ask(a, Give(subject=JOB, session=session))).ours
    await left(a)


async def test_close_answers_what_is_under_way(unique: str) -> None:
    world = World.named(unique)
    a = await opened(world)
    session = await start(a)
    with a.partition():
        renewal = asyncio.ensure_future(ask(a, Renew((session,))))
        await turns()
        store = a.store
        await a.close()
        with pytest.raises(Unavailable, match="the coordinator was closed"):
            await renewal
    store.bounce("nothing")
    store.close("again")
    for request in (Renew((session,)), EndSession(session), LookAtSessions()):
        with pytest.raises(CoordinatorClosed, match="the coordinator is closed"):
            await ask(a, request)
    assert world.empty


async def test_the_sessions_of_a_program_that_ends_without_closing_end_by_their_time(unique: str) -> None:
    world, clock = still_world(unique)
    backends: list[MemoryBackend] = []

    async def program() -> None:
        backends.append(await opened(world))
        await taken(backends[0], await start(backends[0]))

    b = await opened(world)
    await asyncio.to_thread(asyncio.run, program())
    other = await start(b)
    assert (await refused(b, other)).holder is not None
    with pytest.raises(CoordinatorClosed):
        backends[0].expire_session()
    clock.advance(30)
    assert await ask(b, Renew((other,))) == {other: 0}
    assert (await refused(b, other)).retry_in == 10
    clock.advance(10)
    await taken(b, other)
    await left(b)


async def test_a_failover_costs_locks_and_connections_and_no_session(unique: str) -> None:
    world = World.named(unique)
    async with AsyncCoordinator(f"memory://{unique}") as c, AsyncCoordinator(f"memory://{unique}") as d:
        story = Story(d, LinkLost, LinkOpened)
        session = await start(handles(c))
        await taken(handles(c), session)
        hold = await c.lock("k").acquire()
        waiting = asyncio.create_task(d.lock("k").acquire())
        await turns()
        world.fail_over("promoted")
        assert hold.reason == "promoted"
        with pytest.raises(LockLost, match="promoted"):
            hold.check()
        await (await waiting).release()
        assert story.kinds() == ["LinkLost", "LinkOpened"]
        assert await ask(handles(c), Renew((session,))) == {session: 1}
        assert len(await ask(handles(c), Own(session))) == 1
        assert (await taken(handles(c), session)).token >> 48 == 2


async def test_a_failover_reaches_coordinators_on_other_loops(unique: str) -> None:
    world = World.named(unique)
    async with AsyncCoordinator(f"memory://{unique}", engine="thread") as c:
        hold = await c.lock("k", on_lost="report").acquire()
        world.fail_over()
        assert "failed over" in await hold.wait_lost()
        await eventually_async(lambda: c.health().ready, what="it is connected again")


def test_threads_that_take_one_name(unique: str) -> None:
    world, counts, tokens = World.named(unique), Counter[str](), list[int]()
    start_together = threading.Barrier(THREADS)

    async def work(number: int) -> None:
        backend = await opened(world)
        session = await start(backend)
        await asyncio.to_thread(start_together.wait)
        taken_so_far = 0
        while taken_so_far < 25:
            answer = await ask(backend, Take(subject=JOB, session=session))
            if isinstance(answer, Taken):
                seen = counts["taken"]
                tokens.append(answer.token)
                await asyncio.sleep(0)
                counts["taken"] = seen + 1
                taken_so_far += 1
                assert (await ask(backend, Give(subject=JOB, session=session, token=answer.token))).ours
            await asyncio.sleep(0)
        await asyncio.to_thread(start_together.wait)
        await backend.close()

    in_threads(work)
    assert counts["taken"] == 25 * THREADS
    assert tokens == sorted(set(tokens))
    assert world.empty


CHILD = """
import asyncio, os, sys
from pgconcert import CoordinatorClosed
from pgconcert.events import EventStream
from pgconcert.memory import MemoryBackend, World
from pgconcert.store import LookAtSessions, Renew, StartSession

world = World.named("w")
backend = MemoryBackend(world)
runner = asyncio.Runner()

async def ask(backend, request):
    answer = asyncio.get_running_loop().create_future()
    backend.store.ask(request, answer)
    return await answer

async def open_it():
    await backend.open(EventStream())
    return await ask(backend, StartSession(uuid="u", ttl=100, host="h", pid=1, application="a"))

session = runner.run(open_it())
pid = os.fork()
if not pid:
    try:
        async def child():
            assert world.empty
            try:
                await ask(backend, Renew((session,)))
            except CoordinatorClosed as error:
                assert "the parent" in str(error), error
            else:
                raise AssertionError("a child may not use it")
            backend.store.bounce("nothing")
            mine = MemoryBackend(world)
            await mine.open(EventStream())
            assert await ask(mine, LookAtSessions()) == ()
            assert await ask(mine, Renew((session,))) == {session: None}
            await mine.close()
        asyncio.run(child())
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert runner.run(ask(backend, Renew((session,)))) == {session: 0}
runner.run(backend.close())
runner.close()
assert world.empty
print("done", flush=True)
"""


def test_a_child_has_no_sessions(worker: Callable[..., Worker]) -> None:
    process = worker(CHILD)
    process.expect("done", 50.0)
    assert process.wait() == 0
