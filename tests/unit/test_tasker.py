"""What the answer of a tasker means, and how it is called: the parts without a runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgconcert.offloop import off_loop
from pgconcert.tasks.shift import Shift
from pgconcert.tasks.task import Task
from pgconcert.tasks.tasker import MOST_ERROR, Call, Outcome, Work, completed, inside, shown
from tests.unit.runner_scenes import Script, ScriptedShift

T = TypeVar("T")


def tasks(*names: str) -> tuple[Task, ...]:
    return tuple(Task(name, name) for name in names)


def a_call(*names: str, shift: Shift | None = None, make: Any = None) -> Call:
    return Call(1, shift or ScriptedShift(Script(), 1), tasks(*names), make, 0.0)


@given(st.lists(st.text(min_size=1, max_size=3), unique=True), st.data())
def test_a_part_is_what_it_names_each_once(names: list[str], data: st.DataObject) -> None:
    handed = tasks(*names)
    chosen = data.draw(st.lists(st.sampled_from(handed))) if handed else []
    answer: Sequence[Task | str] = [one if index % 2 else one.id for index, one in enumerate(chosen)]
    done = completed(handed, answer, per_task=False)
    assert {task.id for task in done} == {task.id for task in chosen}
    assert len(done) == len({task.id for task in done})


def test_tasks_of_the_same_id_that_were_not_handed_out_are_found_by_their_id() -> None:
    handed = tasks("a", "b")
    assert completed(handed, tasks("b"), per_task=False) == (handed[1],)


@pytest.mark.parametrize("answer", ["x", 1, 0, [], (), b""])
def test_one_task_is_completed_or_not_and_nothing_else(answer: Any) -> None:
    with pytest.raises(TypeError, match="a tasker of one task"):
        completed(tasks("a"), answer, per_task=True)


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("x"), "ValueError: x"),
        (ValueError(), "ValueError"),
        (Silent(), "Silent"),
        (ValueError("a\0b\ud800"), "ValueError: a\\0b\\ud800"),
    ],
)
def test_errors_are_texts_that_a_store_can_keep(error: Exception, text: str) -> None:
    assert shown(error) == text


def test_long_errors_are_cut() -> None:
    assert len(shown(ValueError("x" * 10_000))) == MOST_ERROR


async def test_an_error_of_the_threads_is_the_outcome() -> None:
    def no_thread(work: Callable[[], T]) -> Any:
        raise RuntimeError("can't start new thread")

    outcome = await Work(lambda _: None, per_task=False, in_thread=no_thread).do(a_call("a"))
    assert isinstance(outcome.error, RuntimeError)
    assert [task.id for task, _ in outcome.failed] == ["a"]


@pytest.mark.parametrize("error", [ValueError("x"), StopIteration(1), KeyboardInterrupt(), asyncio.CancelledError()])
@pytest.mark.parametrize("how", ["plain", "async", "awaitable"])
async def test_whatever_is_raised_is_the_outcome(error: BaseException, how: str) -> None:
    def plain(_: Any) -> Any:
        raise error

    async def awaited(_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    tasker: Any = {"plain": plain, "async": awaited, "awaitable": lambda one: awaited([one])}[how]
    outcome = await Work(tasker, per_task=False, in_thread=off_loop).do(a_call("a"))
    assert outcome.completed == ()
    assert outcome.error is error or isinstance(outcome.error, RuntimeError)  # what a coroutine makes of StopIteration


async def test_a_generator_works_in_the_thread() -> None:
    import threading

    threads: list[str] = []

    def tasker(some: list[Task]) -> Any:
        for task in some:
            threads.append(threading.current_thread().name)
            yield task

    outcome = await Work(tasker, per_task=False, in_thread=off_loop).do(a_call("a"))
    assert [task.id for task in outcome.completed] == ["a"]
    assert threads != [threading.main_thread().name]


async def test_a_generator_that_raises_has_completed_nothing() -> None:
    def tasker(some: list[Task]) -> Any:
        yield some[0]
        raise ValueError("midway")

    outcome = await Work(tasker, per_task=False, in_thread=off_loop).do(a_call("a", "b"))
    assert outcome.completed == ()
    assert len(outcome.failed) == 2


async def test_a_call_that_was_told_to_end_before_its_thread_began_is_not_begun() -> None:
    called: list[object] = []
    call = a_call("a")

    async def late(work: Callable[[], T]) -> T:
        call.cancel("stopped")
        return work()

    outcome = await Work(called.append, per_task=False, in_thread=late).do(call)
    assert outcome == Outcome(cancelled=True)
    assert called == []


async def test_what_a_thread_returned_to_be_awaited_is_not_begun_for_a_call_that_is_to_end() -> None:
    ran: list[int] = []
    call = a_call("a")

    async def more() -> None:
        ran.append(1)

    def tasker(_: Any) -> Any:
        call.cancel("lost")
        return more()

    assert await Work(tasker, per_task=False, in_thread=off_loop).do(call) == Outcome(cancelled=True)
    assert ran == []


async def test_who_is_inside_is_known_to_threads_and_tasks_begun_there() -> None:
    call = a_call("a")
    seen: list[tuple[Call, ...]] = []

    async def deeper() -> None:
        seen.append(inside())

    async def tasker(_: Any) -> None:
        await asyncio.create_task(deeper())

    await asyncio.create_task(Work(tasker, per_task=False, in_thread=off_loop).do(call))
    await asyncio.create_task(Work(lambda _: seen.append(inside()), per_task=False, in_thread=off_loop).do(call))
    assert seen == [(call,), (call,)]
    assert inside() == ()


async def test_tasks_are_lost_with_their_shift_and_with_their_call() -> None:
    shift = ScriptedShift(Script(), 1)
    one, other = a_call("a", shift=shift), a_call("b", shift=shift)
    assert not one.tasks[0].lost
    one.cancel("stopped")
    assert one.tasks[0].lost
    assert not other.tasks[0].lost
    shift.lost = "gone"
    assert other.tasks[0].lost
    one.cancel("later")
    assert one.reason == "stopped"
