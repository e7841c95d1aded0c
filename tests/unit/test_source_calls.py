"""How the methods of a `TaskSource` are called, and what is said of those that do not keep their promise."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from pgconcert.clock import FakeClock
from pgconcert.errors import ConfigurationError, SessionLost
from pgconcert.tasks.shift import Report
from pgconcert.tasks.task import Task
from pgconcert.testing import FakeSource, eventually_async
from tests.unit.source_scenes import NOTHING, Scene, fake, ids, methods, settle

# plain sources


class Plain:
    """A source whose methods are plain; it notes where and when they run."""

    ttl = 40.0

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        self.fake = FakeSource([*tasks])
        self.threads: list[threading.Thread] = []
        self.inside = 0
        self.most_inside = 0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def run(self, coroutine: Any) -> Any:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        self.threads.append(threading.current_thread())
        self.entered.release()
        try:
            assert self.gate.wait(30)
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        finally:
            self.inside -= 1
            coroutine.close()
        raise AssertionError("it waits for nothing")

    def start_session(self) -> int:
        number: int = self.run(self.fake.start_session())
        return number

    def bump_session(self, session: int) -> None:
        self.run(self.fake.bump_session(session))

    def end_session(self, session: int) -> None:
        self.run(self.fake.end_session(session))

    def get_work(self, session: int, most: int | None) -> Iterable[Task]:
        yield from self.run(self.fake.get_work(session, most))

    def finish_tasks(self, session: int, tasks: Sequence[Task]) -> None:
        self.run(self.fake.finish_tasks(session, tasks))


async def test_plain_methods_run_in_threads() -> None:
    source = Plain("ab")
    scene = Scene(source)
    shift = await scene.begin()
    a, _ = (await shift.turn(NOTHING, 2, pick=True)).tasks
    assert (await shift.turn(Report(finished=(a,)), 0, pick=False)).refused == ()
    await shift.end(NOTHING)
    assert source.fake.finished == ["a"]
    assert len(source.threads) == 4
    assert threading.main_thread() not in source.threads


async def entered(source: Plain) -> None:
    await eventually_async(lambda: source.entered.acquire(blocking=False), what="a method of the source runs")


async def test_plain_methods_run_one_at_a_time_also_when_a_turn_was_cancelled() -> None:
    source, clock = Plain("ab"), FakeClock()
    scene = Scene(source, clock)
    shift = await scene.begin()
    await entered(source)
    source.gate.clear()
    turn = asyncio.create_task(shift.turn(NOTHING, 1, pick=True))
    await entered(source)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    clock.advance(10)
    again = asyncio.create_task(shift.turn(NOTHING, 1, pick=True))
    await settle()
    assert len(source.threads) == 2
    source.gate.set()
    assert ids((await again).tasks) == ["a"]
    await eventually_async(lambda: "bump_session" in methods(source.fake))
    await shift.end(NOTHING)
    assert source.most_inside == 1
    assert source.fake.sessions == ()


async def test_a_session_that_a_thread_starts_after_its_caller_has_left_is_ended() -> None:
    source = Plain()
    source.gate.clear()
    beginning = asyncio.create_task(Scene(source).begin())
    await entered(source)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    source.gate.set()
    await eventually_async(lambda: methods(source.fake) == ["start_session", "end_session"])


async def test_a_plain_method_may_return_what_is_to_be_awaited() -> None:
    source = FakeSource(["a"])

    class Wrapped:
        ttl = 40.0

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def method(*arguments: Any) -> Any:
                return getattr(source, name)(*arguments)

            return method

    wrapped: Any = Wrapped()
    shift = await Scene(wrapped).begin()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks
    await shift.end(Report(finished=(a,)))
    assert source.finished == ["a"]


async def test_a_method_that_hangs_in_its_thread_loses_the_shift_by_time_alone() -> None:
    source, clock = Plain("a"), FakeClock()
    shift = await Scene(source, clock).begin()
    await entered(source)
    told: list[str] = []
    shift.when_lost(told.append)
    source.gate.clear()
    turn = asyncio.create_task(shift.turn(NOTHING, 1, pick=True))
    await entered(source)
    clock.advance(38)
    await eventually_async(lambda: bool(told))
    assert not turn.done()
    source.gate.set()
    with pytest.raises(SessionLost):
        await turn
    await shift.end(NOTHING)


# sources that do not keep their promise


@pytest.mark.parametrize(
    ("method", "returned", "words"),
    [
        ("get_work", None, "get_work of a source returns Task objects, not None"),
        ("get_work", ["a"], "Task objects, not"),
        ("finish_tasks", [1], "tasks or ids"),
        ("finish_tasks", "a", "tasks or ids"),
    ],
)
async def test_what_a_source_must_not_return_is_named(method: str, returned: Any, words: str) -> None:
    source, _, scene = fake("a")
    shift = await scene.begin()
    (a,) = (await shift.turn(NOTHING, 1, pick=True)).tasks

    async def wrong(*_: Any) -> Any:
        return returned

    setattr(source, method, wrong)
    with pytest.raises(TypeError, match=words):
        await shift.turn(Report(finished=(a,)), 1, pick=True)
    delattr(source, method)
    await shift.end(NOTHING)
    assert source.finished == ["a"]


@pytest.mark.parametrize("number", ["1", None, True, 1.0])
async def test_a_session_is_a_whole_number(number: Any) -> None:
    source, _, scene = fake()

    async def wrong() -> Any:
        return number

    source.start_session = wrong  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="whole number"):
        await scene.begin()


@pytest.mark.parametrize("ttl", [0, -1, "40", float("nan"), 90_000])
async def test_a_ttl_is_checked(ttl: Any) -> None:
    source, _, scene = fake()
    source._ttl = ttl
    with pytest.raises(ConfigurationError, match="the ttl of FakeSource"):
        await scene.begin()
    assert source.calls == []


async def test_a_cancellation_inside_the_source_is_an_error_and_not_ours() -> None:
    source, _, scene = fake("a")
    shift = await scene.begin()

    async def cancelled(session: int, most: int | None) -> Any:
        inner = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner

    source.get_work = cancelled  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a cancellation of its own"):
        await shift.turn(NOTHING, 1, pick=True)
    await shift.end(NOTHING)


async def test_stop_iteration_of_a_plain_method_is_an_error() -> None:
    source = Plain()
    shift = await Scene(source).begin()
    source.bump_session = source.get_work = lambda *_: next(iter(()))  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="StopIteration"):
        await shift.turn(NOTHING, 1, pick=True)
    await shift.end(NOTHING)
