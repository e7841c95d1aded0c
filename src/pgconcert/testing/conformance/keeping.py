"""Cases of queues: what is put there, when it comes out, what is dead, kept and shown. At the port ``Store``."""

from __future__ import annotations

import asyncio

from ...taskstore import (
    CheckPlace,
    DiscardTasks,
    Enqueue,
    LookAtQueues,
    LookAtTasks,
    NewTask,
    Pick,
    QueuePlace,
    RetryTasks,
    TaskState,
)
from ..leaks import eventually_async
from .desks import LONG, desk, desks
from .suite import Stage, case
from .taskdesks import ALL, NONSENSE, Hand, crew, dying_hand, enqueue, failures, hand, hands, ids, info, queue, shown


@case("tasks")
async def tasks_are_kept_as_they_are(stage: Stage) -> None:
    """A task comes out as it was put in: any bytes, none, many; each has an id of its own, in the order of the request;
    nothing is put when nothing is given."""
    place = queue()
    a, one = await crew(stage, place)
    payloads = [b"", bytes(range(256)), b"\\x00'\"%s$1", "ü€😀".encode(), b"x" * 1_000_000]
    put = await a.ask(Enqueue(place=place, tasks=tuple(map(NewTask, payloads))))
    assert len({*put}) == len(payloads)
    assert await a.ask(Enqueue(place=place, tasks=())) == ()
    seen = await shown(a, place)
    assert [(task.id, task.payload) for task in seen.values()] == [*zip(put, payloads, strict=True)]
    started = (await one.turn(ALL)).started
    assert [(row.id, row.payload) for row in started] == [*zip(put, payloads, strict=True)]


@case("tasks")
async def many_are_put_at_once(stage: Stage) -> None:
    """From many sides at once, and many in one request: each of them is there once, those of one request in order."""
    place = queue()
    some = await desks(stage, 3)
    batches = await asyncio.gather(*(enqueue(at, place, 500) for at in some for _ in range(3)))
    assert (await info(some[0], place)).waiting == len({name for batch in batches for name in batch}) == 4500
    one = await hand(some[0], place)
    order = {name: number for number, name in enumerate(ids((await one.turn(Pick(None, 4500))).started))}
    assert len(order) == 4500
    for batch in batches:
        assert batch == sorted(batch, key=order.__getitem__)


@case("tasks")
async def first_come_first_served(stage: Stage) -> None:
    """Tasks come out in the order in which they are due, those of one instant in the order in which they were put."""
    place = queue()
    a, one = await crew(stage, place)
    put = await enqueue(a, place, 3)
    now = (await shown(a, place))[put[0]].created
    late, early = await a.ask(
        Enqueue(place=place, tasks=(NewTask(b"", run_at=now - 1.0), NewTask(b"", run_at=now - 100.0)))
    )
    more = await enqueue(a, place, 2)
    assert [*await shown(a, place)] == [early, late, *put, *more]
    assert await one.take(4, 2) == [early, late, *put[:2]]
    assert await one.take(7, 2) == [put[2], *more]


@case("tasks")
async def what_is_not_due_waits(stage: Stage) -> None:
    """A task is picked up when its time has come, and not before; who asks is told when that will be. It is not part of
    what is shared."""
    place = queue()
    a, one = await crew(stage, place)
    (soon,) = await enqueue(a, place, 1, run_in=0.3)
    (now,) = await enqueue(a, place, 1, run_in=0.0)
    created = (await shown(a, place))[soon].created
    (far,) = await enqueue(a, place, 1, run_at=created + LONG)
    there = await shown(a, place)
    assert (there[far].state, there[far].session) == ("scheduled", None)
    assert abs((there[far].run_at or 0.0) - created - LONG) < 0.001
    assert 0.299 < (there[soon].run_at or 0.0) - created < 5.0
    before = await one.turn(Pick(None, 9))
    got = ids(before.started)
    assert now in got
    assert before.next_in is not None
    assert before.next_in <= (0.3 if soon not in got else LONG)
    assert before.outstanding == len(got)
    if soon not in got:
        assert await one.take_in_time(soon) == {soon: 1}
    after = await one.turn(ALL)
    assert after.started == ()
    assert after.next_in is not None
    assert LONG - 60 < after.next_in <= LONG
    await one.finish(soon, now)
    assert [*await shown(a, place)] == [far]
    assert (await one.turn(ALL, place=queue())).next_in is None


@case("tasks")
async def every_state_is_shown(stage: Stage) -> None:
    """Anybody sees how many tasks are in which state, and which; a state that was asked for, at most so many, in their
    order."""
    place = queue(retention=LONG)
    a, one = await crew(stage, place)
    dies = await enqueue(a, place, 1, attempts=1)
    await one.take()
    await one.turn(failed=failures(dies))
    put = await enqueue(a, place, 7)
    assert await one.take(4, 2) == put[:4]
    await one.finish(put[0])
    (later,) = await enqueue(a, place, 1, run_in=LONG)
    there = await info(a, place)
    assert (there.namespace, there.name) == (place.namespace, place.name)
    assert (there.waiting, there.scheduled, there.assigned, there.started) == (3, 1, 2, 1)
    assert (there.dead, there.finished) == (1, 1)
    assert there.oldest is not None
    assert 0 <= there.oldest < 60
    tasks = await shown(a, place)
    assert [(name, task.state, task.session) for name, task in tasks.items() if name in put] == [
        (put[0], "finished", one.session),
        (put[1], "started", one.session),
        (put[2], "assigned", one.session),
        (put[3], "assigned", one.session),
        *((name, "waiting", None) for name in put[4:]),
    ]
    done = tasks[put[0]]
    assert (done.attempt, done.attempts, done.payload, done.error) == (1, 20, b"0", None)
    assert done.finished is not None
    assert done.created <= done.finished
    assert tasks[put[1]].finished is None
    by_state: dict[TaskState, list[str]] = {
        "finished": put[:1],
        "started": put[1:2],
        "assigned": put[2:4],
        "waiting": put[4:],
        "scheduled": [later],
        "dead": dies,
    }
    for state, names in by_state.items():
        assert [*await shown(a, place, state)] == names
    some = await a.ask(LookAtTasks(place=place, state="waiting", limit=2))
    assert [task.id for task in some] == put[4:6]
    assert [task.id for task in await a.ask(LookAtTasks(place=place, limit=8))] == [*tasks][:8]


@case("tasks")
async def what_the_dead_had_looks_as_it_was(stage: Stage) -> None:
    """The tasks of a session that is over look assigned or started until somebody picks them up; what it says of them
    then changes nothing."""
    place = queue()
    a, b = await desks(stage)
    await enqueue(a, place, 3)
    dead, (started, *assigned) = await dying_hand(a, place, 3, 1)
    await a.over(dead.session)
    assert (await dead.tried(finished=(started,))).over
    assert (await dead.tried(failed=failures((started,)))).over
    assert (await dead.tried(ALL, released=(started,), start=tuple(assigned))).over
    there = await shown(b, place)
    assert {name: (task.state, task.session) for name, task in there.items()} == {
        started: ("started", dead.session),
        **dict.fromkeys(assigned, ("assigned", dead.session)),
    }
    assert (await info(b, place)).started == 1


@case("tasks")
async def queues_are_told_apart(stage: Stage) -> None:
    """Tasks of queues with other names, or of other namespaces, are never mixed up; a queue is there while it has a
    task. Names are kept as they are."""
    a = await desk(stage)
    names = ["name", "Name", "name ", "ñame", "n" * 1000, "a'b\"c%s$1\\", "1"]
    places = [queue()._replace(name=name) for name in names]
    places += [places[0]._replace(name=name) for name in names[1:]]
    put = {place: await enqueue(a, place, 1) for place in places}
    for place in places:
        assert [*await shown(a, place)] == put[place]
        one = await hand(a, place)
        assert ids((await one.turn(ALL)).started) == put[place]
        await one.end()
    listed = await a.ask(LookAtQueues(namespace=places[0].namespace))
    assert [(one.namespace, one.name) for one in listed] == [
        (places[0].namespace, name) for name in sorted(names, key=str.encode)
    ]
    assert {(one.namespace, one.name) for one in await a.ask(LookAtQueues(name=names[4]))} >= {
        (place.namespace, place.name) for place in places if place.name == names[4]
    }
    assert {(one.namespace, one.name) for one in await a.ask(LookAtQueues())} >= {place[:2] for place in places}
    one = await hand(a, places[0])
    await one.take_in_time(*put[places[0]])
    await one.finish(*put[places[0]])
    assert names[0] not in [found.name for found in await a.ask(LookAtQueues(namespace=places[0].namespace))]
    assert await a.ask(LookAtQueues(namespace=queue().namespace)) == ()


@case("tasks")
async def the_dead_wait_for_people(stage: Stage) -> None:
    """Dead tasks are picked up by nobody until they are retried: then at once, with as many attempts as at first.
    Those that are discarded are gone. Named or all; what is not dead is let alone."""
    place, elsewhere = queue(), queue()
    a, one = await crew(stage, place)
    other = await hand(a, elsewhere)
    put = await _killed(one, 5)
    stays = await _killed(other, 1)
    alive = await enqueue(a, place, 1)
    assert (await one.turn(ALL)).outstanding == 1
    assert await a.ask(RetryTasks(place=place, ids=(put[1], put[1], *alive, *stays, *NONSENSE))) == 1
    assert await a.ask(DiscardTasks(place=place, ids=(put[3], put[3], *alive, *stays, *NONSENSE))) == 1
    assert await a.ask(RetryTasks(place=place, ids=())) == 0
    assert await a.ask(DiscardTasks(place=place, ids=())) == 0
    assert await one.take_in_time(put[1]) == {put[1]: 1}
    assert (await one.turn(failed=failures([put[1]], 0.0))).died == ()
    assert await one.take_in_time(put[1]) == {put[1]: 2}
    assert (await one.turn(failed=failures([put[1]]))).died == (put[1],)
    assert {*await shown(a, place, "dead")} == {put[0], put[1], put[2], put[4]}
    assert await a.ask(DiscardTasks(place=place, ids=(put[4],))) == 1
    assert await a.ask(RetryTasks(place=place)) == 3
    assert {*await one.take_in_time(*put[:3])} == {*put[:3]}
    assert await a.ask(DiscardTasks(place=elsewhere)) == 1
    assert await a.ask(DiscardTasks(place=elsewhere)) == 0
    assert await shown(a, elsewhere) == {}


async def _killed(one: Hand, count: int) -> list[str]:
    """Tasks that have failed twice, and are dead."""
    put = await enqueue(one.desk, one.place, count, attempts=2)
    await one.take_in_time(*put)
    assert (await one.turn(failed=failures(put, 0.0))).died == ()
    await one.take_in_time(*put)
    assert {*(await one.turn(failed=failures(put))).died} == {*put}
    return put


@case("tasks")
async def what_is_finished_goes_or_is_kept(stage: Stage) -> None:
    """A finished task is gone, or kept as long as its queue says, with who finished it; it is never handed out again
    and counts for nobody's share."""
    place = queue()
    one, other = await hands(stage, place)
    put = await enqueue(one.desk, place, 6)
    assert await one.take(3) == put[:3]
    assert (await one.turn(finished=(put[0],))).refused == ()
    assert (await one.turn(finished=(put[1],), place=place._replace(retention=LONG))).refused == ()
    assert (await one.turn(finished=(put[2],), place=place._replace(retention=0.2))).refused == ()
    finished = await shown(one.desk, place, "finished")
    assert [(task.session, task.attempt) for name, task in finished.items() if name == put[1]] == [(one.session, 1)]
    assert put[0] not in await shown(one.desk, place)
    assert (await one.turn(finished=(put[1],))).refused == (put[1],)
    assert (await one.turn(released=(put[1],))).refused == (put[1],)
    turned = await other.turn(ALL)
    assert (turned.outstanding, turned.share, len(turned.started)) == (3, 2, 2)
    assert not {*ids(turned.started)} & {*put[:3]}

    async def gone() -> bool:
        return put[2] not in await shown(one.desk, place)

    await eventually_async(gone, 20, what="what was kept for a moment is not shown any more")
    assert put[1] in await shown(one.desk, place, "finished")
    assert (await info(one.desk, place)).finished == 1


@case("tasks")
async def a_queue_needs_nothing(stage: Stage) -> None:
    """Tasks can be shared in any queue, also one that nobody has used yet."""
    a = await desk(stage)
    place = queue()
    assert await a.ask(CheckPlace(place)) == ()
    assert await a.ask(CheckPlace(QueuePlace("", "any"))) == ()
    assert await shown(a, place) == {}
    assert await a.ask(LookAtQueues(namespace=place.namespace)) == ()
    one = await hand(a, place)
    turned = await one.turn(ALL)
    assert (turned.sessions, turned.outstanding, turned.share, turned.next_in) == (1, 0, 0, None)
