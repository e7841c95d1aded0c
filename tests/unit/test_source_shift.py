"""The shift over a `TaskSource`: what is handed out, what is reported and how often, in whatever order."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.clock import FakeClock
from pgconcert.errors import SessionLost
from pgconcert.tasks.shift import NotDone, Report
from pgconcert.tasks.task import Task
from pgconcert.testing import FakeSource
from tests.postgres.scenes import disturbed
from tests.unit.source_scenes import NOTHING, Scene, fake, ids, methods, not_done, settle

# what is handed out


async def test_a_turn_hands_out_at_most_the_room_and_nothing_twice() -> None:
    _, _, scene = fake("abcde")
    shift = await scene.begin()
    first = await shift.turn(NOTHING, 2, pick=True)
    assert (ids(first.tasks), first.more) == (["a", "b"], True)
    second = await shift.turn(NOTHING, 2, pick=True)
    assert (ids(second.tasks), second.more) == (["c", "d"], True)
    third = await shift.turn(NOTHING, 2, pick=False)
    assert (ids(third.tasks), third.more) == (["e"], False)
    fourth = await shift.turn(NOTHING, 2, pick=True)
    assert (ids(fourth.tasks), fourth.more, fourth.next_in) == ([], False, None)
    await shift.end(NOTHING)


async def test_the_cap_goes_to_the_source() -> None:
    _, _, scene = fake("abcde", most=3)
    shift = await scene.begin()
    assert ids((await shift.turn(NOTHING, 10, pick=True)).tasks) == ["a", "b", "c"]
    await shift.end(NOTHING)
    scene.most = 0
    idle = await scene.begin()
    assert (await idle.turn(NOTHING, 10, pick=True)).tasks == ()
    await idle.end(NOTHING)


async def test_without_picking_nothing_is_asked_and_nothing_new_comes() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    assert (await shift.turn(NOTHING, 5, pick=False)).tasks == ()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    source.add(["c"])
    assert methods(source) == ["start_session", "get_work"]
    assert ids((await shift.turn(Report(finished=(a,)), 5, pick=False)).tasks) == ["b"]
    assert methods(source) == ["start_session", "get_work", "finish_tasks"]
    await shift.end(NOTHING)


async def test_only_what_is_reported_as_finished_is_finished() -> None:
    source, clock, scene = fake("abc")
    shift = await scene.begin()
    a, b, c = (await shift.turn(NOTHING, 3, pick=True)).tasks
    report = Report(finished=(a,), failed=(NotDone(b, "no", 5.0),), released=(c,))
    handed = await shift.turn(report, 3, pick=True)
    assert source.finished == ["a"]
    assert ids(handed.tasks) == ["c"]
    assert handed.tasks[0].attempt == 1
    assert handed.next_in == 5.0
    clock.advance(4)
    waiting = await shift.turn(NOTHING, 3, pick=True)
    assert (waiting.tasks, waiting.next_in) == ((), 1.0)
    clock.advance(1)
    again = await shift.turn(NOTHING, 3, pick=True)
    assert ids(again.tasks) == ["b"]
    assert again.tasks[0].attempt == 2
    await shift.end(Report(released=(*again.tasks, *handed.tasks)))
    assert source.finished == ["a"]
    assert source.outstanding == ("b", "c")


async def test_what_rests_does_not_stop_what_does_not() -> None:
    _, _, scene = fake("abcd")
    shift = await scene.begin()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    handed = await shift.turn(not_done(a), 2, pick=True)
    assert (ids(handed.tasks), handed.more) == (["b", "c"], True)
    rest = await shift.turn(NOTHING, 2, pick=False)
    assert (ids(rest.tasks), rest.more, rest.next_in) == (["d"], False, 5.0)
    await shift.end(NOTHING)


async def test_what_the_source_does_not_name_any_more_is_forgotten() -> None:
    _, clock, scene = fake()

    class Changing(FakeSource):
        now: tuple[str, ...] = ("a", "b", "b")

        async def get_work(self, session: int, most: int | None) -> tuple[Task, ...]:
            return tuple(Task(name, attempt=7) for name in self.now)

    source = scene.source = Changing(ttl=40.0, clock=clock)
    shift = await scene.begin()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    assert a.attempt == 7  # what the source counts counts
    source.now = ("c",)
    handed = await shift.turn(not_done(a), 5, pick=True)
    assert ids(handed.tasks) == ["c"]
    assert handed.next_in is None
    await shift.end(NOTHING)


async def test_a_task_that_was_reported_twice_or_never_handed_out_is_not_finished() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    await shift.turn(Report(released=(a,)), 0, pick=False)
    await shift.turn(Report(finished=(a, Task("b"), Task("z"))), 0, pick=False)
    assert source.finished == []
    await shift.end(NOTHING)


# what is reported


async def test_a_late_finish_of_what_others_have_is_refused_and_told() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, b = (await shift.turn(NOTHING, 2, pick=True)).tasks
    await source.finish_tasks(shift.session, [a])  # as if somebody had done it for us
    handed = await shift.turn(Report(finished=(a, b)), 2, pick=True)
    assert handed.refused == (a,)
    assert source.finished == ["a", "b"]
    assert (await shift.turn(NOTHING, 2, pick=True)).refused == ()
    await shift.end(NOTHING)


async def test_a_report_that_was_not_answered_is_said_again() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, b = (await shift.turn(NOTHING, 2, pick=True)).tasks
    source.fail_next("finish_tasks", ConnectionError("no way there"))
    with pytest.raises(ConnectionError):
        await shift.turn(Report(finished=(a,)), 2, pick=True)
    assert shift.step == "finish tasks"
    # it is not ours to do, whatever the source says that we have
    handed = await shift.turn(Report(finished=(b,)), 2, pick=True)
    assert (handed.tasks, handed.refused) == ((), ())
    assert source.finished == ["a", "b"]
    assert [call.tasks for call in source.calls if call.method == "finish_tasks"] == [("a",), ("a", "b")]
    await shift.end(NOTHING)


async def test_a_report_that_was_heard_and_not_answered_counts_as_finished() -> None:
    class Mute(FakeSource):
        mute = True

        async def finish_tasks(self, session: int, tasks: Sequence[Task]) -> tuple[str, ...]:
            done = await super().finish_tasks(session, tasks)
            if self.mute:
                self.mute = False
                raise ConnectionError("the answer was lost")
            return done

    _, clock, scene = fake()
    source = scene.source = Mute([*"abc"], ttl=40.0, clock=clock)
    shift = await scene.begin()
    a, b, c = (await shift.turn(NOTHING, 3, pick=True)).tasks
    with pytest.raises(ConnectionError):
        await shift.turn(Report(finished=(a,)), 0, pick=False)
    del source._tasks["c"]  # somebody has deleted it, and it is reported for the first time
    assert (await shift.turn(Report(finished=(b, c)), 0, pick=False)).refused == (c,)
    assert source.finished == ["a", "b"]
    await shift.end(NOTHING)


async def test_what_was_refused_is_told_even_if_the_rest_of_the_turn_fails() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, _ = (await shift.turn(NOTHING, 2, pick=True)).tasks
    await source.finish_tasks(shift.session, [a])
    source.fail_next("get_work", ConnectionError("no way there"))
    with pytest.raises(ConnectionError):
        await shift.turn(Report(finished=(a,)), 2, pick=True)
    assert shift.step == "get work"
    assert (await shift.turn(NOTHING, 0, pick=False)).refused == (a,)
    await shift.end(NOTHING)


async def test_the_end_reports_what_came_last() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, b = (await shift.turn(NOTHING, 2, pick=True)).tasks
    source.fail_next("finish_tasks", ConnectionError("no way there"))
    assert (await shift.end(Report(finished=(a,), released=(b,)))).refused == ()
    assert (await shift.end(NOTHING)).refused == ()
    assert source.finished == ["a"]
    assert source.sessions == ()
    assert a.lost
    assert b.lost
    with pytest.raises(SessionLost):
        await shift.turn(NOTHING, 1, pick=True)


async def test_a_report_that_cannot_be_said_does_not_keep_the_session() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, _ = (await shift.turn(NOTHING, 2, pick=True)).tasks
    source.fail_next("finish_tasks", ConnectionError("no way there"), 2)
    assert (await shift.end(Report(finished=(a,)))).refused == (a,)
    assert source.sessions == ()
    assert source.finished == []
    (told,) = scene.failed
    assert (told.code, told.error) == ("finish tasks", "ConnectionError: no way there")


async def test_the_end_of_a_session_that_is_over_tells_what_is_refused() -> None:
    source, _, scene = fake("ab")
    shift = await scene.begin()
    a, _ = (await shift.turn(NOTHING, 2, pick=True)).tasks
    source.expire(shift.session)
    assert (await shift.end(Report(finished=(a,)))).refused == (a,)
    assert source.refused == ["a"]


# cancelled anywhere


class Slow(FakeSource):
    """Suspends before and after it does something."""

    async def get_work(self, session: int, most: int | None) -> tuple[Task, ...]:
        await asyncio.sleep(0)
        got = await super().get_work(session, most)
        await asyncio.sleep(0)
        return got

    async def finish_tasks(self, session: int, tasks: Sequence[Task]) -> tuple[str, ...]:
        await asyncio.sleep(0)
        done = await super().finish_tasks(session, tasks)
        await asyncio.sleep(0)
        return done


def cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()


@pytest.mark.parametrize("at", range(1, 6))
async def test_a_turn_cancelled_anywhere_loses_no_report_and_no_task(at: int) -> None:
    clock = FakeClock()
    source = Slow([*"abcd"], ttl=40.0, clock=clock)
    shift = await Scene(source, clock).begin()
    a, b = (await shift.turn(NOTHING, 2, pick=True)).tasks

    async def turn() -> list[Task]:
        return [*(await shift.turn(Report(finished=(a,)), 1, pick=True)).tasks]

    async def cancelled() -> list[Task]:
        me = asyncio.current_task()
        assert me is not None
        return await disturbed(turn(), at, lambda _: cancel(me))

    got: list[Task] = []
    try:
        got += await asyncio.create_task(cancelled())
    except asyncio.CancelledError:
        pass
    handed = await shift.turn(NOTHING, 4, pick=True)
    assert handed.refused == ()
    assert ids([b, *got, *handed.tasks]) == ["b", "c", "d"]
    await shift.end(Report(finished=(b, *got, *handed.tasks)))
    assert source.finished == ["a", "b", "c", "d"]


# any order of anything


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 3))
async def test_whatever_happens_each_task_is_finished_once_and_never_with_two(
    seed: int, tasks: int, runners: int
) -> None:
    """Runners that take, finish, fail, give back, lose their sessions and are cut off, in any order."""
    chance = random.Random(seed)
    clock = FakeClock()
    names = [str(number) for number in range(tasks)]
    source = FakeSource(names, ttl=40.0, clock=clock)
    scene = Scene(source, clock)
    shifts = [await scene.begin() for _ in range(runners)]
    hands: list[dict[str, Task]] = [{} for _ in shifts]
    refused: list[str] = []

    for step in range(1000):
        calm = step > 60
        if calm and not source.outstanding:
            break
        which = chance.randrange(runners)
        shift, hand = shifts[which], hands[which]
        event = chance.random()
        if event < 0.1 and not calm:
            source.expire(shift.session)
        elif event < 0.2 and not calm:
            source.fail_next(chance.choice(["get_work", "finish_tasks", "bump_session"]), ConnectionError("cut"))
        elif event < 0.4:
            clock.advance(chance.uniform(0, 20))
            await settle()
        groups: list[list[Task]] = [[], [], [], []]
        for task in hand.values():
            groups[3 if calm else chance.randrange(4)].append(task)
        keep, failed, released, finished = groups
        report = Report(
            tuple(finished), tuple(NotDone(task, "no", chance.uniform(0, 5)) for task in failed), tuple(released)
        )
        hands[which] = {task.id: task for task in keep}
        try:
            handed = await shift.turn(report, chance.randrange(5), pick=chance.random() < 0.8)
        except SessionLost:
            refused += ids((await shift.end(NOTHING)).refused)
            hands[which] = {}
            shifts[which] = await scene.begin()
            continue
        except ConnectionError:
            continue
        refused += ids(handed.refused)
        for task in handed.tasks:
            assert task.id not in hands[which]
            hands[which][task.id] = task
        having = [
            name for one, its in zip(shifts, hands, strict=True) if one.session in source.sessions for name in its
        ]
        assert len(having) == len(set(having))
        assert {name for name in hands[which] if not hands[which][name].lost} <= {*source.held(shift.session)} or (
            shift.session not in source.sessions
        )
    assert source.outstanding == ()
    assert sorted(source.finished, key=int) == names
    assert {*source.refused} <= {*refused}
    for shift in shifts:
        await shift.end(NOTHING)
