"""The shift over a `TaskSource`: its session, how long it is trusted, and where the source is found."""

import asyncio

import pytest

from pgconcert.clock import RealClock
from pgconcert.errors import SessionLost, SessionNotFound, Unavailable
from pgconcert.tasks.shift import Report
from pgconcert.testing import FakeSource, eventually_async
from tests.unit.source_scenes import NOTHING, Scene, fake, ids, methods, settle

# sessions and trust


async def test_a_session_is_started_bumped_and_ended() -> None:
    source, clock, scene = fake()
    shift = await scene.begin()
    assert [*source.sessions] == [shift.session]
    clock.advance(10)
    await settle()
    assert methods(source) == ["start_session", "bump_session"]
    await shift.end(NOTHING)
    assert not source.sessions
    await shift.end(NOTHING)
    assert methods(source) == ["start_session", "bump_session", "end_session"]


async def test_a_heartbeat_keeps_the_session_of_a_long_task() -> None:
    source, clock, scene = fake(["long"])
    shift = await scene.begin()
    (task,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    for _ in range(40):
        clock.advance(10)
        await settle()
        assert shift.lost is None
    assert methods(source).count("bump_session") == 40
    await shift.turn(Report(finished=(task,)), 0, pick=False)
    assert source.finished == ["long"]
    await shift.end(NOTHING)


async def test_a_heartbeat_that_finds_no_session_loses_the_shift_at_once() -> None:
    source, clock, scene = fake(["a"])
    shift = await scene.begin()
    (task,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    told: list[str] = []
    shift.when_lost(told.append)
    source.expire(shift.session)
    clock.advance(10)
    await settle()
    assert len(told) == 1
    assert "is over" in told[0]
    assert task.lost
    with pytest.raises(SessionLost, match="task a"):
        task.check()
    with pytest.raises(SessionLost):
        await shift.turn(Report(finished=(task,)), 1, pick=True)
    assert (await shift.end(NOTHING)).refused == (task,)
    assert source.finished == []
    assert len(told) == 1


async def test_get_work_that_finds_no_session_loses_the_shift_and_another_begins() -> None:
    source, _, scene = fake(["a"])
    shift = await scene.begin()
    source.expire(shift.session)
    told: list[str] = []
    shift.when_lost(told.append)
    with pytest.raises(SessionLost, match=f"session {shift.session}"):
        await shift.turn(NOTHING, 1, pick=True)
    assert len(told) == 1
    await shift.end(NOTHING)
    second = await scene.begin()
    assert second.session != shift.session
    assert ids((await second.turn(NOTHING, 1, pick=True)).tasks) == ["a"]
    await second.end(NOTHING)


async def test_a_process_that_was_stopped_finds_it_lost_in_its_first_line() -> None:
    source, clock, scene = fake(["a"])
    shift = await scene.begin()
    (task,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    before = len(source.calls)
    clock.advance(37.9)
    assert not task.lost
    clock.advance(0.2)  # the margin of 40 s is 2 s
    assert task.lost
    assert shift.lost is not None
    assert "not renewed for 38.1 s" in shift.lost
    with pytest.raises(SessionLost):
        await shift.turn(Report(finished=(task,)), 1, pick=True)
    assert (await shift.end(NOTHING)).refused == (task,)
    await settle()
    assert "finish_tasks" not in methods(source)
    assert "end_session" not in methods(source)[before:]


async def test_who_asks_when_it_is_lost_is_told_at_once() -> None:
    _, clock, scene = fake()
    shift = await scene.begin()
    clock.advance(39)
    told: list[str] = []
    shift.when_lost(told.append)
    assert len(told) == 1
    await shift.end(NOTHING)


async def test_heartbeats_that_fail_are_told_and_tried_again_until_the_trust_ends() -> None:
    source, clock, scene = fake()
    shift = await scene.begin()
    told: list[str] = []
    shift.when_lost(told.append)
    source.fail_next("bump_session", ConnectionError("no way there"), times=1000)
    clock.advance(10)
    await settle()
    assert [(event.code, event.error, event.session) for event in scene.failed] == [
        ("bump session", "no way there", shift.session)
    ]
    assert shift.lost is None
    for _ in range(300):
        clock.advance(0.1)
        await settle()
    assert len(told) == 1
    # a try every quarter of the pause between heartbeats, jittered down to half of that, for 28 s
    assert 11 <= len(scene.failed) <= 24
    bumps = methods(source).count("bump_session")
    clock.advance(100)
    await settle()
    assert methods(source).count("bump_session") == bumps
    await shift.end(NOTHING)


async def test_one_heartbeat_that_is_answered_makes_good_all_that_failed() -> None:
    source, clock, scene = fake()
    shift = await scene.begin()
    source.fail_next("bump_session", ConnectionError("no way there"), times=3)
    for _ in range(200):
        clock.advance(0.5)
        await settle()
    assert len(scene.failed) == 3
    assert shift.lost is None
    await shift.end(NOTHING)


async def test_an_answer_after_the_trust_has_ended_revives_nothing() -> None:
    _, clock, scene = fake()
    answer = asyncio.Event()

    class Late(FakeSource):
        async def bump_session(self, session: int) -> None:
            await answer.wait()

    scene.source = Late(ttl=40.0, clock=clock)
    shift = await scene.begin()
    clock.advance(10)
    await settle()
    clock.advance(28)
    answer.set()
    await settle()
    assert shift.lost is not None
    with pytest.raises(SessionLost):
        await shift.turn(NOTHING, 1, pick=True)
    await shift.end(NOTHING)


async def test_a_heartbeat_without_an_answer_is_given_up_and_sent_again() -> None:
    class Deaf(FakeSource):
        asked = 0

        async def bump_session(self, session: int) -> None:
            self.asked += 1
            if self.asked == 1:
                await asyncio.Event().wait()
            await super().bump_session(session)

    source = Deaf(ttl=6.0)
    scene = Scene(source, RealClock())
    shift = await scene.begin()
    await eventually_async(lambda: "bump_session" in methods(source), 30)
    assert [event.error for event in scene.failed] == ["no answer within 0.75 s"]
    assert shift.lost is None
    await shift.end(NOTHING)


async def test_after_the_end_was_asked_no_heartbeat_leaves_even_if_it_failed() -> None:
    source, clock, scene = fake()
    shift = await scene.begin()
    source.fail_next("end_session", ConnectionError("no way there"))
    with pytest.raises(ConnectionError):
        await shift.end(NOTHING)
    assert shift.step == "end session"
    clock.advance(30)
    await settle()
    assert "bump_session" not in methods(source)
    await shift.end(NOTHING)
    assert methods(source) == ["start_session", "end_session", "end_session"]


async def test_a_session_that_is_over_when_it_is_to_be_ended_is_no_loss() -> None:
    source, _, scene = fake()
    shift = await scene.begin()
    told: list[str] = []
    shift.when_lost(told.append)
    source.fail_next("end_session", SessionNotFound("gone"))
    await shift.end(NOTHING)
    await shift.end(NOTHING)
    assert methods(source).count("end_session") == 1
    assert told == []


async def test_a_start_that_takes_longer_than_the_trust_is_no_start() -> None:
    _, clock, scene = fake()

    class Slow(FakeSource):
        async def start_session(self) -> int:
            session = await super().start_session()
            clock.advance(39)
            return session

    source = scene.source = Slow(ttl=40.0, clock=clock)
    with pytest.raises(Unavailable, match="took 39"):
        await scene.begin()
    assert source.sessions == ()


async def test_a_start_that_fails_raises_what_the_source_says() -> None:
    source, clock, scene = fake()
    source.fail_next("start_session", ConnectionError("no way there"))
    with pytest.raises(ConnectionError, match="no way there"):
        await scene.begin()
    scene.trouble = LookupError("nowhere")
    with pytest.raises(LookupError):
        await scene.begin()
    assert clock.waiting() == 0


async def test_session_not_found_without_words_has_a_reason_all_the_same() -> None:
    source, _, scene = fake()
    shift = await scene.begin()
    source.fail_next("get_work", SessionNotFound())
    with pytest.raises(SessionLost, match="never there"):
        await shift.turn(NOTHING, 1, pick=True)
    await shift.end(NOTHING)


# the finder


async def test_the_finder_is_asked_anew_for_each_turn_and_each_heartbeat() -> None:
    source, clock, scene = fake(["a"])
    shift = await scene.begin()
    assert scene.found == 1
    await shift.turn(NOTHING, 1, pick=True)
    assert scene.found == 2
    clock.advance(10)
    await settle()
    assert scene.found == 3
    await shift.turn(NOTHING, 1, pick=False)  # nothing to ask
    assert scene.found == 3
    await shift.end(NOTHING)
    assert source.sessions == ()


async def test_tasks_that_have_moved_to_another_database_are_found_there() -> None:
    _, clock, scene = fake(["a"])
    shift = await scene.begin()
    elsewhere = scene.source = FakeSource(["b"], ttl=40.0, clock=clock)
    with pytest.raises(SessionLost):
        await shift.turn(NOTHING, 1, pick=True)
    await shift.end(NOTHING)
    second = await scene.begin()
    assert ids((await second.turn(NOTHING, 1, pick=True)).tasks) == ["b"]
    await second.end(NOTHING)
    assert elsewhere.sessions == ()


async def test_a_finder_that_fails_is_told_and_costs_nothing_of_the_trust_before_its_time() -> None:
    source, clock, scene = fake(["a"])
    shift = await scene.begin()
    scene.trouble = LookupError("nowhere")
    clock.advance(10)
    await settle()
    assert [event.code for event in scene.failed] == ["find source"]
    with pytest.raises(LookupError):
        await shift.turn(NOTHING, 1, pick=True)
    assert shift.step == "find source"
    scene.trouble = None
    assert ids((await shift.turn(NOTHING, 1, pick=True)).tasks) == ["a"]
    clock.advance(5)
    await settle()
    assert "bump_session" in methods(source)
    await shift.end(NOTHING)


async def test_a_session_is_not_taken_to_a_source_of_another_kind() -> None:
    """Its number may be that of somebody else's session there."""
    source, clock, scene = fake(["a"])
    shift = await scene.begin()
    (task,) = (await shift.turn(NOTHING, 1, pick=True)).tasks

    class Other(FakeSource):
        pass

    elsewhere = scene.source = Other(["b"], ttl=40.0, clock=clock)
    assert await elsewhere.start_session() == shift.session
    clock.advance(10)
    await settle()
    assert shift.lost is not None
    assert "elsewhere" in shift.lost
    assert (await shift.end(Report(finished=(task,)))).refused == (task,)
    assert methods(elsewhere) == ["start_session"]
    assert source.finished == []
