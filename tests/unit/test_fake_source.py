"""`FakeSource` keeps the promise of `TaskSource`, and disturbs when a test says so.

Theory: whoever tests with it must be able to believe it, so its rules are tried one by one.
"""

import asyncio
from typing import Any

import pytest

from pgconcert import SessionNotFound
from pgconcert.clock import FakeClock
from pgconcert.errors import ConfigurationError
from pgconcert.tasks.sources import TaskSource
from pgconcert.tasks.task import Task
from pgconcert.testing import FakeSource
from tests.unit.source_scenes import ids

EVERY_WITH_A_SESSION = ["bump_session", "get_work", "finish_tasks"]


async def call(source: FakeSource, method: str, session: int) -> Any:
    arguments: dict[str, tuple[Any, ...]] = {"get_work": (None,), "finish_tasks": ((),)}
    return await getattr(source, method)(session, *arguments.get(method, ()))


def test_it_is_a_task_source() -> None:
    assert isinstance(FakeSource(), TaskSource)


async def test_sessions_have_numbers_that_are_never_used_again() -> None:
    source = FakeSource()
    first = await source.start_session()
    await source.end_session(first)
    second = await source.start_session()
    assert second != first
    assert source.sessions == (second,)


@pytest.mark.parametrize("method", EVERY_WITH_A_SESSION)
async def test_a_session_that_is_over_is_not_found(method: str) -> None:
    source = FakeSource(["a"])
    ended, expired = await source.start_session(), await source.start_session()
    await source.end_session(ended)
    source.expire(expired)
    for session in (ended, expired, 99):
        with pytest.raises(SessionNotFound, match=f"session {session} "):
            await call(source, method, session)
    await source.end_session(ended)


async def test_a_session_lives_for_its_ttl_and_each_bump_for_another() -> None:
    clock = FakeClock()
    source = FakeSource(ttl=10.0, clock=clock)
    session = await source.start_session()
    clock.advance(9)
    await source.bump_session(session)
    clock.advance(9)
    assert source.sessions == (session,)
    clock.advance(1)
    assert not source.sessions
    with pytest.raises(SessionNotFound):
        await source.bump_session(session)


@pytest.mark.parametrize(("most", "shares"), [(None, [4, 4, 2]), (3, [3, 3, 3]), (0, [0, 0, 0])])
async def test_shares_follow_the_ceil_rule(most: int | None, shares: list[int]) -> None:
    source = FakeSource(map(str, range(10)))
    sessions = [await source.start_session() for _ in shares]
    assert [len(await source.get_work(session, most)) for session in sessions] == shares
    assert [len(source.held(session)) for session in sessions] == shares


async def test_get_work_returns_all_that_the_session_has_in_order() -> None:
    source = FakeSource({"b": 1, "a": 2})
    session = await source.start_session()
    for _ in range(2):
        first, second = await source.get_work(session, None)
        assert [(task.id, task.payload) for task in (first, second)] == [("b", 1), ("a", 2)]
    source.add(["c"])
    assert ids(await source.get_work(session, None)) == ["b", "a", "c"]
    assert ids(await source.get_work(session, 1)) == ["b", "a", "c"]  # what it has, it keeps


async def test_what_a_session_has_is_for_others_when_it_is_over() -> None:
    source = FakeSource(["a", "b"])
    first, second = await source.start_session(), await source.start_session()
    await source.get_work(first, None)
    source.expire(first)
    assert source.held(first) == ()
    assert ids(await source.get_work(second, None)) == ["a", "b"]


async def test_only_what_is_the_sessions_own_is_finished() -> None:
    source = FakeSource(["a", "b"])
    first, second = await source.start_session(), await source.start_session()
    (a,) = await source.get_work(first, None)
    (b,) = await source.get_work(second, None)
    assert await source.finish_tasks(first, [a, b, Task("c")]) == ("a",)
    assert (source.finished, source.refused, source.outstanding) == (["a"], ["b", "c"], ("b",))
    source.expire(second)
    with pytest.raises(SessionNotFound):
        await source.finish_tasks(second, [b])
    assert (source.finished, source.refused) == (["a"], ["b", "c", "b"])
    source.add(["a"])
    assert source.outstanding == ("b", "a")


async def test_the_next_calls_fail_as_a_test_says_and_do_nothing() -> None:
    source = FakeSource(["a"])
    session = await source.start_session()
    lost, refused = ConnectionError("lost"), PermissionError("refused")
    source.fail_next("get_work", lost, times=2)
    source.fail_next("get_work", refused)
    for error in (lost, lost, refused):
        with pytest.raises(type(error)):
            await source.get_work(session, None)
    assert source.held(session) == ()
    assert ids(await source.get_work(session, None)) == ["a"]
    assert [(one.method, one.session, one.tasks, one.error) for one in source.calls] == [
        ("start_session", 1, (), None),
        ("get_work", 1, (), lost),
        ("get_work", 1, (), lost),
        ("get_work", 1, (), refused),
        ("get_work", 1, ("a",), None),
    ]


@pytest.mark.parametrize("method", ["start_session", "end_session", *EVERY_WITH_A_SESSION])
async def test_every_method_can_fail(method: Any) -> None:
    source = FakeSource()
    session = await source.start_session()
    source.fail_next(method, ConnectionError("no way there"))
    with pytest.raises(ConnectionError):
        await (source.start_session() if method == "start_session" else call(source, method, session))
    assert source.sessions == (session,)


def test_mistakes_are_told() -> None:
    source = FakeSource()
    with pytest.raises(ConfigurationError, match="'finish'"):
        source.fail_next("finish", ValueError())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="several ids"):
        source.add("abc")


async def test_it_may_be_shared_between_threads() -> None:
    source = FakeSource(map(str, range(200)))

    async def work() -> None:
        session = await source.start_session()
        while tasks := await source.get_work(session, 10):
            await source.finish_tasks(session, tasks)

    await asyncio.gather(*(asyncio.to_thread(asyncio.run, work()) for _ in range(4)))
    assert sorted(source.finished, key=int) == [*map(str, range(200))]
    assert source.refused == []
