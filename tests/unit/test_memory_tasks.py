"""Tasks in a world whose clock a test moves: when exactly they are due and gone, and what is no place there.

What does not depend on the time is in the conformance suite.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import pytest

from pgconcert import ConfigurationError
from pgconcert.clock import FakeClock
from pgconcert.events import EventStream
from pgconcert.memory import MemoryBackend
from pgconcert.store import Renew, Request, StartSession, Subject, Take
from pgconcert.taskstore import (
    CheckPlace,
    Enqueue,
    Failure,
    FunctionPlace,
    LookAtQueues,
    LookAtTasks,
    NewTask,
    Pick,
    Place,
    QueuePlace,
    ReleaseTasks,
    StartWork,
    TablePlace,
    Turn,
    Turned,
)
from tests.unit.ears import left, opened
from tests.unit.memoryworld import still_world

T = TypeVar("T")

QUEUE = QueuePlace("", "queue")
TTL = 40.0


async def ask(backend: MemoryBackend, request: Request[T]) -> T:
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    backend.store.ask(request, answer)
    return await answer


async def runner(backend: MemoryBackend) -> int:
    session = await ask(backend, StartSession(uuid="u", ttl=TTL, host="h", pid=1, application="a"))
    await ask(backend, Take(subject=Subject("runner", "", "name", str(session)), session=session))
    return session


async def turn(backend: MemoryBackend, session: int, pick: Pick | None = None, **what: Any) -> Turned:
    who = Subject("runner", "", "name", str(session))
    return await ask(backend, Turn(**{"place": QUEUE, "runner": who, "session": session, "pick": pick, **what}))


async def started(backend: MemoryBackend, session: int) -> list[str]:
    return [row.id for row in (await turn(backend, session, Pick(None, 100))).started]


async def test_a_task_is_due_exactly_when_its_time_has_come() -> None:
    world, clock = still_world("tasks/due")
    a = await opened(world)
    one = await runner(a)
    (task,) = await ask(a, Enqueue(place=QUEUE, tasks=(NewTask(b"", run_in=10.0),)))
    (shown,) = await ask(a, LookAtTasks(place=QUEUE))
    assert shown.run_at is not None
    assert shown.run_at == shown.created + 10.0
    (same,) = await ask(a, Enqueue(place=QUEUE, tasks=(NewTask(b"", run_at=shown.run_at + 1.0),)))
    clock.advance(9.5)
    turned = await turn(a, one, Pick(None, 1))
    assert (turned.started, turned.next_in) == ((), 0.5)
    clock.advance(0.5)
    assert await started(a, one) == [task]
    await turn(a, one, failed=(Failure(task, "no", 20.0),))
    clock.advance(1.5)  # the wall is a large number, so the one that was given by it is due within its precision
    assert await started(a, one) == [same]
    clock.advance(18.0)
    assert await started(a, one) == []
    clock.advance(0.5)
    assert await started(a, one) == [task]
    await left(a)


async def test_what_is_kept_is_gone_exactly_when_its_time_is_over() -> None:
    world, clock = still_world("tasks/kept")
    a = await opened(world)
    one = await runner(a)
    (task,) = await ask(a, Enqueue(place=QUEUE, tasks=(NewTask(b""),)))
    await started(a, one)
    await turn(a, one, finished=(task,), place=QUEUE._replace(retention=10.0))
    clock.advance(9.5)
    (info,) = await ask(a, LookAtQueues())
    assert info.finished == 1
    clock.advance(0.5)
    assert await ask(a, LookAtQueues()) == ()
    await left(a)


async def test_who_was_ended_for_his_tasks_has_no_grace() -> None:
    """A take-over ends the session: after a failover, too, its tasks are not its own again."""
    world, clock = still_world("tasks/grace")
    a, b = await opened(world), await opened(world)
    late, spared, heir = await runner(a), await runner(a), await runner(b)
    put = await ask(b, Enqueue(place=QUEUE, tasks=(NewTask(b""), NewTask(b""))))
    await turn(a, late, Pick(1, 1))
    clock.advance(30.0)
    assert await ask(b, Renew((heir,))) == {heir: 0}
    clock.advance(10.0)
    assert {*await started(b, heir)} == {*put}
    world.fail_over()
    for backend in (a, b):
        backend.reconnect()
    await asyncio.sleep(0)
    answer = await ask(a, Renew((late, spared)))
    assert answer[late] is None
    assert answer[spared] is not None  # nobody took anything from it, so it has its ttl of grace
    assert (await turn(a, late, finished=(put[0],))).over
    assert (await turn(b, heir, finished=put)).refused == ()
    await left(a, b)


async def test_tasks_stay_while_a_coordinator_does() -> None:
    world, _ = still_world("tasks/stay")
    a, b = await opened(world), await opened(world)
    await ask(a, Enqueue(place=QUEUE, tasks=(NewTask(b""),)))
    await a.close()
    assert not world.empty
    assert len(await ask(b, LookAtTasks(place=QUEUE))) == 1
    await b.close()
    assert world.empty
    c = await opened(world)
    assert await ask(c, LookAtQueues()) == ()
    await left(c)


@pytest.mark.parametrize(
    ("place", "parts"),
    [
        (TablePlace("app.job", "id", "true", "", "delete"), ["TableTasks", "'app.job'"]),
        (FunctionPlace("jobs"), ["FunctionTasks", "'jobs'"]),
    ],
)
async def test_a_world_has_neither_tables_nor_functions(place: Place | FunctionPlace, parts: list[str]) -> None:
    backend = MemoryBackend(f"queues/{type(place).__name__}", clock=FakeClock())
    await backend.open(EventStream())
    requests: list[Request[Any]] = [CheckPlace(place)]
    if isinstance(place, FunctionPlace):
        requests.append(StartWork(place))
    else:
        requests.append(ReleaseTasks(place=place, session=1))
    for request in requests:
        with pytest.raises(ConfigurationError) as raised:
            await ask(backend, request)
        for part in ["memory://queues", *parts, "QueueTasks", "embedded://"]:
            assert part in str(raised.value)
    await backend.close()
