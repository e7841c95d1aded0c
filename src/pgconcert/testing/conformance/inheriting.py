"""Cases of tasks: what becomes of those of the dead; a task has one owner. At the port ``Store``, for queues."""

from __future__ import annotations

import asyncio
from functools import partial

from ... import CoordinatorClosed, Unavailable
from ...store import Renew
from ...taskstore import Held, LookAtShares, Move, Pick, Recall, ReleaseTasks, Turned
from ..leaks import eventually_async
from .desks import desks
from .reading import insist
from .suite import Stage, case, turns
from .taskdesks import (
    ALL,
    NONSENSE,
    crew,
    dying_hand,
    enqueue,
    failures,
    hand,
    hands,
    held,
    ids,
    info,
    queue,
    shown,
)


@case("tasks")
async def the_dead_leave_their_tasks(stage: Stage) -> None:
    """When the time of a session is over, all it had is picked up by others, what it had started as a new attempt; what
    it says then is not heard."""
    place = queue()
    a, b = await desks(stage)
    put = await enqueue(a, place, 4)
    dead, taken = await dying_hand(a, place, 4, 2)
    assert taken == put
    heir = await hand(b, place)
    got = await heir.take_in_time(*put)
    assert got == dict.fromkeys(put[:2], 2) | dict.fromkeys(put[2:], 1)
    turned = await dead.tried(ALL, finished=tuple(put[:2]), failed=failures(put[:1]), start=tuple(put[2:]))
    assert turned.over
    assert (turned.started, turned.assigned, turned.refused) == ((), (), ())
    assert await a.ask(Recall(place=place, session=dead.session)) == ()
    assert await a.ask(Move(place=place, session=dead.session, moves=((heir.session, 4),))) == ()
    assert await a.ask(ReleaseTasks(place=place, session=dead.session)) == 0
    assert await a.ask(Renew((dead.session,))) == {dead.session: None}
    await heir.finish(*put)


@case("tasks")
async def who_crashed_with_the_last_attempt_kills(stage: Stage) -> None:
    """A task that was started as often as it may be, by sessions that were over before it ended, is dead; what was only
    assigned is not."""
    place = queue()
    a, b = await desks(stage)
    put = await enqueue(a, place, 2, attempts=1)
    _, (started, assigned) = await dying_hand(a, place, 2, 1)
    heir = await hand(b, place)
    died: list[str] = []
    got: list[str] = []

    async def told() -> bool:
        turned = await heir.turn(ALL)
        died.extend(turned.died)
        got.extend(ids(turned.started))
        return len(died) + len(got) == 2

    await eventually_async(told, 20, what=f"of {put} one is dead and the other picked up")
    assert (died, got) == ([started], [assigned])
    dead = (await shown(b, place, "dead"))[started]
    assert (dead.attempt, dead.session) == (1, None)
    assert dead.error


@case("tasks")
async def nobody_overtakes_the_living(stage: Stage) -> None:
    """As long as a session is renewed nobody gets what it has; not renewed it loses it, and comes back no more."""
    place = queue()
    a, b = await desks(stage)
    heir = await hand(b, place)
    await enqueue(a, place, 2)
    dying, taken = await dying_hand(a, place, 2, 1)
    witness = await a.start((await a.living())[dying.session].ttl)
    renewed = True
    got: list[str] = []
    while renewed and witness in await a.living():
        turned = await heir.turn(ALL)
        got += ids(turned.started)
        renewed = await a.seen(dying.session) is not None
        if renewed:
            assert (turned.started, turned.died) == ((), ())
            assert turned.outstanding == 2
    got += await heir.take_in_time(*({*taken} - {*got}))
    assert sorted(got) == sorted(taken)
    assert await a.seen(dying.session) is None


@case("tasks")
async def an_ended_session_leaves_all_at_once(stage: Stage) -> None:
    """What a session had when it was ended can be picked up at once, whatever it still said of it; of a session that
    was never there, nothing."""
    place = queue()
    one, other = await hands(stage, place)
    put = await enqueue(one.desk, place, 2)
    await one.take(1)
    await one.end()
    assert (await one.tried(finished=(put[0],), start=(put[1],))).over
    assert await other.take_in_time(*put) == {put[0]: 2, put[1]: 1}
    assert (await one.tried(ALL, finished=(put[0],))).over
    assert (await other.tried(ALL, session=other.session + 10**9)).over
    assert (await other.turn(finished=tuple(put))).refused == ()


@case("tasks")
async def all_is_released_at_the_end(stage: Stage) -> None:
    """Everything that a session has of a queue is released at once, assigned or started, the attempts not counted, also
    when it is over; what it has elsewhere stays."""
    place, elsewhere = queue(), queue()
    one, other = await hands(stage, place)
    put, kept = await enqueue(one.desk, place, 3, attempts=1), await enqueue(one.desk, elsewhere, 1)
    await one.turn(ALL, place=elsewhere)
    await one.take(2, 1)
    assert await other.desk.ask(ReleaseTasks(place=place, session=one.session)) == 2
    assert await other.desk.ask(ReleaseTasks(place=place, session=one.session)) == 0
    assert (await info(one.desk, place)).waiting == 3
    assert (await one.turn(finished=(put[0], kept[0]))).refused == (put[0], kept[0])
    assert (await one.turn(finished=(kept[0],), place=elsewhere)).refused == ()
    await one.take(2, 1)
    await one.end()
    assert await one.desk.ask(ReleaseTasks(place=place, session=one.session)) == 2
    assert await other.take_in_time(*put) == dict.fromkeys(put, 1)


@case("tasks")
async def what_nobody_knows_of_is_recalled(stage: Stage) -> None:
    """A session recalls what it has besides what it knows: what was started of it is assigned again, and its attempt
    not counted."""
    place = queue()
    a, one = await crew(stage, place)
    put = await enqueue(a, place, 5, attempts=1)
    await one.take(4, 3)
    assert await a.ask(Recall(place=place, session=one.session, keep=(put[1], *NONSENSE))) == (put[0], *put[2:4])
    assert (await one.turn(finished=tuple(put[:2]))).refused == (put[0],)
    turned = await one.turn(start=(put[0], *put[2:]))
    assert [(row.id, row.attempt) for row in turned.started] == [(task, 1) for task in (put[0], *put[2:4])]
    assert await a.ask(Recall(place=queue(), session=one.session)) == ()
    assert await a.ask(Recall(place=place, session=one.session, keep=(put[0], *put[2:4]))) == ()
    await one.end()
    assert await a.ask(Recall(place=place, session=one.session)) == ()


@case("tasks")
async def shares_are_shown(stage: Stage) -> None:
    """Each living runner of a name is shown with what it has, assigned and started, also nothing."""
    place = queue()
    one, two, three = await hands(stage, place, 3)
    gone = await hand(three.desk, place)
    await enqueue(one.desk, place, 12)
    await one.take(3, 1)
    await two.take(2, 2)
    await gone.take(2, 2)
    await gone.end()
    await hand(three.desk, place, name="another")
    seen = await three.desk.ask(LookAtShares(place=place, runner=three.runner))
    assert sorted(seen) == sorted([Held(one.session, 2, 1), Held(two.session, 0, 2), Held(three.session, 0, 0)])
    seen = await three.desk.ask(LookAtShares(place=queue(), runner=three.runner))
    assert sorted(seen) == sorted(Held(who.session, 0, 0) for who in (one, two, three))


@case("tasks")
async def what_is_not_begun_moves(stage: Stage) -> None:
    """Assigned tasks move to the session that asks for them, of each other at most so many, the last first; what is
    started stays, and so does what others of no name in the request have."""
    place = queue()
    one, two, three = await hands(stage, place, 3)
    at = three.desk
    put = await enqueue(at, place, 12)
    for who in (one, two, three):
        await who.take(4, 2)
    moves = ((two.session, 1), (one.session, 9), (three.session, 1), (three.session + 10**9, 1))
    assert await at.ask(Move(place=place, session=three.session, moves=moves)) == (put[2], put[3], put[7])
    assert await held(at, place, one, two, three) == [put[:2], put[4:7], [*put[2:4], *put[7:]]]
    assert (await one.turn(start=(put[2],))).started == ()
    assert ids((await three.turn(start=(put[7], put[2]))).started) == [put[7], put[2]]
    back = ((three.session, 2), (two.session, 0))
    assert await at.ask(Move(place=place, session=one.session, moves=back)) == tuple(put[10:])
    assert await at.ask(Move(place=queue(), session=two.session, moves=((three.session, 9),))) == ()
    assert await at.ask(Move(place=place, session=two.session, moves=())) == ()
    await two.end()
    assert await at.ask(Move(place=place, session=two.session, moves=((three.session, 9),))) == ()


@case("tasks")
async def a_task_has_one_owner(stage: Stage) -> None:
    """When many pick up, start and finish at once, each task is started once, and finished by who has it."""
    place = queue()
    some = [await hand(at, place) for at in await desks(stage, 3) for _ in range(3)]
    put = await enqueue(some[0].desk, place, 100)
    started: dict[str, int] = {}
    done: list[str] = []
    mine: list[tuple[tuple[str, ...], tuple[str, ...]]] = [((), ()) for _ in some]

    async def all_done() -> bool:
        for which, (one, turned) in enumerate(
            zip(
                some,
                await asyncio.gather(
                    *(
                        one.turn(Pick(6, 2), finished=begun, start=kept)
                        for one, (begun, kept) in zip(some, mine, strict=True)
                    )
                ),
                strict=True,
            )
        ):
            assert turned.refused == ()
            done.extend(mine[which][0])
            for row in turned.started:
                assert row.attempt == 1
                assert started.setdefault(row.id, one.session) == one.session
            mine[which] = (tuple(ids(turned.started)), turned.assigned)
        return len(done) == len(put)

    await eventually_async(all_done, 20, what="all is done")
    assert sorted(done) == sorted(put)
    assert sorted(started) == sorted(put)


@case("tasks")
async def who_starts_and_who_moves_exclude_each_other(stage: Stage) -> None:
    """When the owner starts a task while another moves it, one of the two has it."""
    place = queue()
    one, other = await hands(stage, place)
    for _ in range(30):
        (task,) = await enqueue(one.desk, place, 1)
        assert await one.take(1, 0) == [task]
        turned, moved = await asyncio.gather(
            one.turn(start=(task,)),
            other.desk.ask(Move(place=place, session=other.session, moves=((one.session, 1),))),
        )
        assert [*ids(turned.started), *moved] == [task]
        if moved:
            assert ids((await other.turn(start=moved)).started) == [task]
        await (other if moved else one).finish(task)


@case("tasks")
async def who_finishes_and_who_inherits_exclude_each_other(stage: Stage) -> None:
    """A task of a session whose time runs out is finished by it, or picked up by another; never both."""
    place = queue()
    a, b = await desks(stage)
    heir = await hand(b, place)
    put = await enqueue(a, place, 40)
    dying, taken = await dying_hand(a, place, 40, 40)
    assert taken == put
    done: list[str] = []
    got: list[str] = []
    for task in put:
        ours, theirs = await asyncio.gather(dying.tried(finished=(task,)), heir.turn(ALL))
        got += ids(theirs.started)
        if ours.over:
            break
        assert ours.refused == ()
        done.append(task)
    left = {*put} - {*done, *got}
    got += await heir.take_in_time(*left)
    assert sorted([*done, *got]) == sorted(put)


@case("tasks", "lose")
async def a_lost_answer_is_repaired(stage: Stage) -> None:
    """Who got no answer recalls what it has and does not know of: then it knows everything, and no attempt is counted
    for what it never saw."""
    one, other = await hands(stage, queue())
    for number in range(4):
        place = queue()
        put = await enqueue(other.desk, place, 20)
        asked = asyncio.create_task(one.turn(Pick(10, 5), place=place))
        await turns(number)
        await stage.lose(one.desk.coordinator)
        await asyncio.wait([asked])
        error = asked.exception()
        assert error is None or isinstance(error, Unavailable)
        recalled = await insist(partial(one.desk.ask, Recall(place=place, session=one.session)))
        assert len(recalled) in ((10,) if error is None else (0, 10))
        assert [[*recalled]] == await held(other.desk, place, one)
        turned = await one.turn(Pick(10, 10), place=place, start=recalled)
        assert [(row.id, row.attempt) for row in turned.started] == [(task, 1) for task in put[:10]]


@case("tasks")
async def a_close_answers_every_turn(stage: Stage) -> None:
    """Whoever asks while the coordinator is closed gets an answer or an error; what its session has, it keeps."""
    place = queue()
    one, other = await hands(stage, place)
    put = await enqueue(one.desk, place, 20)
    await one.take(5, 5)
    asked = [asyncio.create_task(one.turn(finished=(task,))) for task in put[:5]]
    closing = asyncio.create_task(one.desk.coordinator.close())
    found = await asyncio.gather(*asked, return_exceptions=True)
    await closing
    assert all(isinstance(answer, Turned | CoordinatorClosed | Unavailable) for answer in found), found
    assert {*(await held(other.desk, place, one))[0]} <= {*put[:5]}
    assert not {*ids((await other.turn(ALL)).started)} & {*put[:5]}
