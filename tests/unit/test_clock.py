"""The clocks: what is due comes in its order, once, and nothing comes early."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from pgconcert.clock import FakeClock, RealClock, SuspendClock
from pgconcert.errors import ConfigurationError
from pgconcert.testing import eventually_async


def test_what_is_due_comes_in_its_order_at_its_time() -> None:
    clock, seen = FakeClock(100.0), list[tuple[str, float]]()
    for name, when in (("c", 103.0), ("a", 101.0), ("b1", 102.0), ("b2", 102.0), ("late", 104.5)):
        clock.call_at(when, lambda name=name: seen.append((name, clock.now())))  # type: ignore[misc]
    clock.advance(0.5)
    assert seen == []
    clock.advance(3.5)
    assert seen == [("a", 101.0), ("b1", 102.0), ("b2", 102.0), ("c", 103.0)]
    assert (clock.now(), clock.waiting()) == (104.0, 1)


def test_a_cancelled_call_never_comes() -> None:
    clock, seen = FakeClock(), list[str]()

    def cancel_the_second() -> None:
        seen.append("first")
        second.cancel()

    first = clock.call_at(1, cancel_the_second)
    second = clock.call_at(2, lambda: seen.append("second"))
    clock.advance(3)
    first.cancel()
    assert (seen, clock.waiting()) == (["first"], 0)


def test_what_a_call_asks_for_comes_in_the_same_advance_if_it_is_due() -> None:
    clock, seen = FakeClock(), list[float]()

    def tick() -> None:
        seen.append(clock.now())
        clock.call_at(clock.now() + 1, tick)

    clock.call_at(1, tick)
    clock.advance(3.5)
    assert (seen, clock.now(), clock.waiting()) == ([1, 2, 3], 3.5, 1)


def test_what_is_past_comes_at_once() -> None:
    clock, seen = FakeClock(5), list[str]()
    clock.call_at(5, lambda: seen.append("now"))
    clock.call_at(4, lambda: seen.append("past"))
    assert (seen, clock.waiting()) == (["now", "past"], 0)


def test_a_call_may_advance_the_clock_itself() -> None:
    clock, seen = FakeClock(), list[tuple[str, float]]()
    clock.call_at(1, lambda: clock.advance(5))
    clock.call_at(4, lambda: seen.append(("inner", clock.now())))
    clock.advance(2)
    assert (seen, clock.now()) == ([("inner", 4)], 6)


def test_an_error_is_raised_and_the_rest_stays_due() -> None:
    clock, seen = FakeClock(), list[str]()

    def fail() -> None:
        raise KeyError("here")

    clock.call_at(1, fail)
    clock.call_at(2, lambda: seen.append("rest"))
    with pytest.raises(KeyError, match="here"):
        clock.advance(3)
    assert (seen, clock.now()) == ([], 1)
    clock.advance(1)
    assert seen == ["rest"]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_clock_never_goes_back(seconds: float) -> None:
    with pytest.raises(ConfigurationError, match=r"goes forward by a number of seconds >= 0, not by (-1|nan|inf)"):
        FakeClock().advance(seconds)


def test_many_threads_advance_one_clock() -> None:
    clock, seen = FakeClock(), list[int]()
    for when in range(400):
        clock.call_at(when + 0.5, lambda when=when: seen.append(when))  # type: ignore[misc]

    def advance() -> None:
        for _ in range(100):
            clock.advance(1)

    threads = [threading.Thread(target=advance) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [*range(400)]
    assert clock.now() == 400


@pytest.mark.both_loops
async def test_the_real_clock_calls_on_the_loop_that_asked() -> None:
    clock, seen = RealClock(), list[tuple[str, bool]]()
    loop, before = asyncio.get_running_loop(), time.monotonic()
    assert before <= clock.now() <= time.monotonic()

    def note(name: str) -> None:
        seen.append((name, asyncio.get_running_loop() is loop and clock.now() >= due))

    due = clock.now() + 0.02
    clock.call_at(due, lambda: note("due"))
    clock.call_at(due, lambda: note("cancelled")).cancel()
    await eventually_async(lambda: bool(seen))
    due = clock.now() - 10
    clock.call_at(due, lambda: note("past"))
    await eventually_async(lambda: len(seen) == 2)
    assert seen == [("due", True), ("past", True)]


suspended = pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock here counts suspend")


@suspended
def test_a_suspension_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, right = SuspendClock(), time.clock_gettime
    before = clock.now()
    monkeypatch.setattr(time, "clock_gettime", lambda which: right(which) + 3600 * (which == time.CLOCK_BOOTTIME))
    assert before + 3600 <= clock.now() <= right(time.CLOCK_BOOTTIME) + 3600


@suspended
async def test_a_call_that_fell_due_during_a_suspension_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, right, came = SuspendClock(), time.clock_gettime, asyncio.Event()
    due = clock.now() + 3600
    clock.call_at(due, came.set).cancel()
    await asyncio.sleep(0)
    assert not came.is_set()
    monkeypatch.setattr(time, "clock_gettime", lambda which: right(which) + 3600 * (which == time.CLOCK_BOOTTIME))
    clock.call_at(due, came.set)
    await came.wait()
