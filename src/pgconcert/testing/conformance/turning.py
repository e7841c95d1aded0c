"""Cases of tasks: what a session gets, starts and reports. At the port ``Store``, for queues."""

from __future__ import annotations

from ...taskstore import Pick
from .desks import LONG, desks
from .suite import Stage, case
from .taskdesks import ALL, NONSENSE, crew, enqueue, failures, hand, hands, ids, info, queue, shown


@case("tasks")
async def everybody_gets_the_share(stage: Stage) -> None:
    """A pick-up gives what is outstanding divided by the sessions that live, rounded up; together they get every task,
    and none twice."""
    for count, others in ((0, 1), (1, 2), (7, 3), (12, 3)):
        place = queue()
        some = await hands(stage, place, others)
        put = await enqueue(some[0].desk, place, count)
        got: list[str] = []
        for one in some:
            turned = await one.turn(ALL)
            share = -(-count // others)
            assert (turned.sessions, turned.outstanding, turned.share) == (others, count, share)
            assert len(turned.started) == min(share, count - len(got))
            got += ids(turned.started)
        assert got == put


@case("tasks")
async def only_runners_of_the_name_that_live_share(stage: Stage) -> None:
    """Sessions that are over, and runners of other names and namespaces, are not counted; who comes later is."""
    place = queue()
    a, b = await desks(stage)
    mine, elsewhere = await hand(a, place), queue()
    ended = await hand(b, place)
    await hand(b, place, name="another")
    await hand(b, elsewhere)
    await ended.end()
    await enqueue(a, place, 8)
    turned = await mine.turn(Pick(None, 0))
    assert (turned.sessions, len(turned.assigned)) == (1, 8)
    late = await hand(b, place)
    turned = await late.turn(ALL)
    assert (turned.sessions, turned.outstanding, turned.share, turned.started) == (2, 8, 4, ())


@case("tasks")
async def a_cap_bounds_what_a_session_has(stage: Stage) -> None:
    """Nobody has more than its cap, however much is outstanding; with a cap of nothing it gets nothing."""
    place = queue()
    a, one = await crew(stage, place)
    await enqueue(a, place, 10)
    turned = await one.turn(Pick(3, 2))
    assert (turned.outstanding, turned.share) == (3, 3)
    assert (len(turned.started), len(turned.assigned)) == (2, 1)
    turned = await one.turn(Pick(3, 3))
    assert (turned.started, turned.assigned) == ((), ())
    turned = await one.turn(Pick(0, 0))
    assert (turned.outstanding, turned.share, turned.started, turned.assigned) == (0, 0, (), ())
    assert (await info(a, place)).waiting == 7


@case("tasks")
async def what_it_has_counts(stage: Stage) -> None:
    """A pick-up gives what the session lacks to its share: what it has already counts, started or not, unless it
    rests."""
    place = queue()
    one, _other = await hands(stage, place)
    put = await enqueue(one.desk, place, 4)
    assert await one.take(1, 0) == put[:1]
    assert ids((await one.turn(ALL)).started) == put[1:2]
    assert (await one.turn(ALL)).started == ()
    assert ids((await one.turn(Pick(None, 5, resting=1))).started) == put[2:3]
    assert (await one.turn(Pick(None, 5, resting=1))).started == ()


@case("tasks")
async def assigned_is_not_started(stage: Stage) -> None:
    """What was picked up and not started is the session's, and nobody else's; only it can start it, in the order in
    which it asks, and once. Starting counts an attempt."""
    place = queue()
    one, other = await hands(stage, place)
    put = await enqueue(one.desk, place, 4)
    turned = await one.turn(Pick(None, 1))
    assert ids(turned.started) == put[:1]
    assert turned.assigned == (put[1],)
    assert ids((await other.turn(ALL, start=(put[1],))).started) == put[2:]
    turned = await one.turn(start=(*NONSENSE, put[2], put[1], put[0]))
    assert [(row.id, row.attempt, row.payload) for row in turned.started] == [(put[1], 1, b"1")]
    assert (await one.turn(start=(put[1],))).started == ()
    more = await enqueue(one.desk, place, 4)
    await one.turn(finished=tuple(put[:2]))
    mine = await one.take(4, 0)
    assert mine == more[:3]
    assert ids((await one.turn(start=tuple(reversed(mine)))).started) == mine[::-1]


@case("tasks")
async def only_its_owner_finishes(stage: Stage) -> None:
    """A task is finished by the session that has started it, once. Whoever has it not, or not yet started, is refused,
    and changes nothing."""
    place, elsewhere = queue(), queue()
    one, other = await hands(stage, place)
    stranger = await hand(other.desk, elsewhere)
    put = await enqueue(one.desk, place, 4)
    started, assigned = await one.take(2, 1)
    for who in (other, stranger):
        assert (await who.turn(finished=(started,))).refused == (started,)
        assert (await who.turn(failed=failures((started,)))).refused == (started,)
        assert (await who.turn(released=(started,))).refused == (started,)
    turned = await one.turn(finished=(started,), place=elsewhere)
    assert turned.refused == (started,)
    wrong = (assigned, *NONSENSE, put[2])
    assert (await one.turn(finished=wrong)).refused == wrong
    assert (await one.turn(released=wrong)).refused == wrong
    turned = await one.turn(failed=failures(wrong))
    assert turned.refused == wrong
    assert (turned.died, turned.started, turned.assigned) == ((), (), ())
    there = await info(one.desk, place)
    assert (there.waiting, there.assigned, there.started) == (2, 1, 1)
    assert (await one.turn(finished=(started,))).refused == ()
    assert (await one.turn(finished=(started,))).refused == (started,)
    assert [*await shown(one.desk, place)] == put[1:]


@case("tasks")
async def all_is_said_in_one_turn(stage: Stage) -> None:
    """One turn finishes, fails, releases, starts and picks up. What it reports is gone for its share, and is not picked
    up by the same turn."""
    place = queue()
    a, one = await crew(stage, place)
    put = await enqueue(a, place, 8)
    await one.turn(Pick(5, 4))
    turned = await one.turn(
        Pick(4, 2),
        finished=(put[0], put[7]),
        failed=failures((put[1],), 0.0),
        released=(put[2],),
        start=(put[4],),
    )
    assert turned.refused == (put[7],)
    assert ids(turned.started) == [put[4], *put[5:7]]
    assert turned.assigned == ()
    assert (turned.outstanding, turned.share) == (4, 4)
    assert await one.take_in_time(put[1], put[2], put[7]) == {put[1]: 2, put[2]: 1, put[7]: 1}


@case("tasks")
async def what_failed_rests(stage: Stage) -> None:
    """A task that failed is free, for anybody, and not before its rest is over; its next attempt is counted."""
    place = queue()
    one, other = await hands(stage, place)
    rests, again = await enqueue(one.desk, place, 2)
    await one.take(1)
    await other.take(1)
    await one.turn(failed=failures((rests,)))
    await other.turn(failed=failures((again,), 0.0))
    assert await one.take_in_time(again) == {again: 2}
    turned = await other.turn(ALL)
    assert (turned.started, turned.outstanding) == ((), 1)
    assert turned.next_in is not None
    assert LONG - 60 < turned.next_in <= LONG
    there = await shown(one.desk, place)
    assert (there[rests].state, there[rests].attempt, there[rests].error) == ("scheduled", 1, f"error of {rests}")


@case("tasks")
async def what_is_released_is_as_before(stage: Stage) -> None:
    """A task that was released is free at once, and its attempt is not counted."""
    place = queue()
    one, other = await hands(stage, place)
    (task,) = await enqueue(one.desk, place, 1, attempts=1)
    for who in (one, other, one):
        turned = await who.turn(ALL)
        assert [(row.id, row.attempt) for row in turned.started] == [(task, 1)]
        turned = await who.turn(released=(task,))
        assert (turned.refused, turned.died) == ((), ())


@case("tasks")
async def the_last_attempt_kills(stage: Stage) -> None:
    """A task whose attempts are used up is dead, and told as such; nobody gets it any more."""
    place = queue()
    a, one = await crew(stage, place)
    poor, rich = await enqueue(a, place, 1, attempts=2), await enqueue(a, place, 1, attempts=3)
    await one.take()
    assert (await one.turn(failed=failures((*poor, *rich), 0.0))).died == ()
    assert await one.take_in_time(*poor, *rich) == dict.fromkeys((*poor, *rich), 2)
    assert (await one.turn(failed=failures((*poor, *rich), 0.0))).died == tuple(poor)
    assert await one.take_in_time(*rich) == {rich[0]: 3}
    there = (await shown(a, place))[poor[0]]
    assert (there.state, there.attempt, there.attempts, there.session) == ("dead", 2, 2, None)
