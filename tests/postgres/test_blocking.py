"""The words of the blocking twin: what each verb does, on a real server and in a world of one process.

Here lives what one thread sees, and what several see who wait for each other. Close, loss and the engine's own life
stand in `test_blocking_life.py`. Theory: two coordinators in one process are two processes to the backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import secrets
import threading
import warnings
from collections.abc import Iterator

import pytest

from pgconcert import (
    AcquireTimeout,
    ConfigurationError,
    CoordinatorClosed,
    NotHeld,
    PermitsDisagree,
    WouldDeadlock,
)
from pgconcert.blocking import Coordinator, Hold
from pgconcert.testing import eventually
from tests.postgres.threads import Running, scopes, until_idle, until_waiting


@pytest.fixture(params=["server", "memory"])
def address(request: pytest.FixtureRequest, database: str) -> str:
    """Where to coordinate."""
    return database if request.param == "server" else f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def two(address: str) -> Iterator[tuple[Coordinator, Coordinator]]:
    """Two coordinators, as two processes would have them."""
    with Coordinator(address, name="one") as one, Coordinator(address, name="other") as other:
        yield one, other


def free(coordinator: Coordinator, key: str) -> bool:
    """Whether it can be had, now or when a release that was handed in has been carried out."""

    def taken() -> bool:
        hold = coordinator.lock(key).try_acquire()
        if hold is not None:
            hold.release()
        return hold is not None

    return eventually(taken, what=f"{key!r} is free")


def test_with(two: tuple[Coordinator, Coordinator]) -> None:
    """What one holds, another cannot have; what one gave back, another gets, and again."""
    one, other = two
    lock = one.lock("with")
    for _ in range(3):
        with lock as hold:
            assert isinstance(hold, Hold)
            assert (hold.key, hold.lost, hold.released, hold.shared, hold.permit) == ("with", False, False, False, None)
            assert other.lock("with").try_acquire() is None
        assert hold.released
        assert free(other, "with")


def test_acquire_and_try(two: tuple[Coordinator, Coordinator]) -> None:
    one, other = two
    hold = one.lock("x").acquire()
    assert repr(hold) == "<Hold 'x' held>"
    assert one.lock("x").try_acquire() is None
    assert other.lock("x").try_acquire() is None
    hold.release()
    hold.release()
    assert repr(hold) == "<Hold 'x' released>"
    again = other.lock("x").acquire(timeout=30)
    with again as entered:
        assert entered is again
        with pytest.raises(RuntimeError, match="entered already"), again:
            pass
    with pytest.raises(RuntimeError, match="released already"), again:
        pass


def test_acquire_lock_and_release_lock(two: tuple[Coordinator, Coordinator]) -> None:
    one, other = two
    assert one.acquire_lock("x")
    assert not one.acquire_lock("x")
    assert not other.acquire_lock("x")
    with pytest.raises(NotHeld):
        other.release_lock("x")
    one.release_lock("x")
    with pytest.raises(NotHeld):
        one.release_lock("x")
    assert free(other, "x")


def test_a_bounded_wait_names_the_holder(two: tuple[Coordinator, Coordinator]) -> None:
    one, other = two
    with one.lock("x"):
        for timeout in (0, 0.05):
            with pytest.raises(AcquireTimeout, match=rf"'x' was not acquired within {timeout:g} s; it is held by one"):
                other.lock("x").acquire(timeout=timeout)
        with pytest.raises(AcquireTimeout, match="it is held by one"), other.lock("x", timeout=0.05):
            pass
        for timeout in (0.05, 0.5, 5.0):  # longer, if it was over before a busy server had answered
            with pytest.raises(AcquireTimeout) as told:
                other.lock_all(["x", "y"]).acquire(timeout=timeout)
            named = re.match(r"'x', one of 2 locks, .*held by one", str(told.value))
            assert named or timeout < 5, told.value
            if named:
                break
    with one.semaphore("s", 1), pytest.raises(AcquireTimeout, match="its permit is held by one"):
        other.semaphore("s", 1, timeout=0.05).acquire()
    until_idle(other)
    assert free(other, "y")


def test_wrong_words_are_refused_at_once(two: tuple[Coordinator, Coordinator]) -> None:
    one, _ = two
    for wrong in (-1, "5", float("nan"), True):
        with pytest.raises(ConfigurationError, match="timeout"):
            one.lock("x", timeout=wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="timeout"):
            one.lock("x").acquire(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="at least one key"):
        one.lock_all([])


def test_a_wait_ends_with_the_release(two: tuple[Coordinator, Coordinator]) -> None:
    """Within a process and between two of them."""
    one, other = two
    hold = one.lock("x").acquire()
    near, far = Running(one.lock("x").acquire), Running(other.lock("x").acquire)
    until_waiting(one)
    until_waiting(other)
    hold.release()
    eventually(lambda: near.ended or far.ended)
    first, second = (near, far) if near.ended else (far, near)
    assert not second.ended
    first.result().release()
    second.result().release()


def test_shared(two: tuple[Coordinator, Coordinator]) -> None:
    one, other = two
    with one.lock("x", shared=True) as hold, other.lock("x", shared=True) as also:
        assert hold.shared
        assert also.shared
        assert one.lock("x").try_acquire() is None
    with one.lock("x"):
        assert other.lock("x", shared=True).try_acquire() is None
    reading = one.lock("x", shared=True)
    assert reading.shared
    assert reading.key == "x"
    assert reading.timeout is None


def test_lock_all(two: tuple[Coordinator, Coordinator]) -> None:
    """All or nothing, in the common order, each once."""
    one, other = two
    everything = one.lock_all(["a", "b", "c", "a"])
    with everything as hold:
        assert sorted(map(str, everything.key)) == ["a", "b", "c"]
        assert hold.key == everything.key
        assert other.lock("b").try_acquire() is None
        assert other.lock_all(["b", "d"]).try_acquire() is None
        assert free(other, "d")
    taken = other.lock_all(["c", "b"]).acquire(timeout=20)
    waiting = Running(lambda: one.lock_all(["a", "b"]).acquire(timeout=20))
    until_waiting(one)
    taken.release()
    waiting.result().release()
    until_idle(one)


def test_semaphore(two: tuple[Coordinator, Coordinator]) -> None:
    one, other = two
    with one.semaphore("s", 2) as first, other.semaphore("s", 2) as second:
        assert {first.permit, second.permit} == {0, 1}
        assert one.semaphore("s", 2).try_acquire() is None
        waiting = Running(one.semaphore("s", 2).acquire)
        until_waiting(one)
    with waiting.result() as third:
        assert third.permit in (0, 1)
        with pytest.raises(PermitsDisagree):
            other.semaphore("s", 3).acquire()


def test_waiting_for_oneself(two: tuple[Coordinator, Coordinator]) -> None:
    """A thread that would wait for itself is told, and keeps what it has."""
    one, _ = two
    lock = one.lock("x")
    with lock as hold:
        with pytest.raises(WouldDeadlock, match="this thread has entered this lock of 'x' already"):
            lock.__enter__()
        with pytest.raises(WouldDeadlock, match="this thread holds 'x' already"):
            one.lock("x").acquire()
        with pytest.raises(WouldDeadlock, match="this thread holds 'x' already"), one.lock_all(["w", "x"]):
            pass
        assert lock.try_acquire() is None
        hold.check()
    with (
        one.lock("y", shared=True),
        pytest.raises(WouldDeadlock, match="cannot be upgraded"),
        one.lock("y"),
    ):
        pass
    with one.semaphore("s", 1), pytest.raises(WouldDeadlock, match=r"a permit of 's' \(none is free\)"):
        one.semaphore("s", 1).acquire()
    until_idle(one)
    assert free(one, "w")
    assert not scopes(one)


@pytest.mark.parametrize("length", [2, 3])
def test_a_cycle_of_threads(address: str, length: int) -> None:
    """The last of the threads whose wait would close the circle is told who holds what; the others go on."""
    names = ["anna", "bert", "carl"][:length]
    keys = [f"key of {name}" for name in names]
    inside, go_on = threading.Barrier(length + 1), threading.Event()
    with Coordinator(address) as c:

        def work(position: int) -> None:
            with c.lock(keys[position]):
                inside.wait(30)
                if position == length - 1:
                    assert go_on.wait(30)
                with c.lock(keys[(position + 1) % length]):
                    pass

        threads = [Running(lambda position=position: work(position), names[position]) for position in range(length)]  # type: ignore[misc]
        inside.wait(30)
        until_waiting(c, length - 1)
        go_on.set()
        error = threads[-1].error()
        assert isinstance(error, WouldDeadlock)
        for name, key in zip(names[:-1], keys, strict=False):
            assert f"{key!r} is held by thread {name!r}, which waits for" in str(error)
        assert f"{keys[-1]!r} is held by this thread" in str(error)
        for thread in threads[:-1]:
            thread.result()
        until_idle(c)
        assert not scopes(c)


def test_many_threads_and_one_lock_object(two: tuple[Coordinator, Coordinator]) -> None:
    """One object serves many threads, of two processes, one at a time."""
    locks = [c.lock("x") for c in two]
    inside = entries = 0

    def work(number: int) -> None:
        nonlocal inside, entries
        for _ in range(10):
            with locks[number % 2]:
                inside += 1
                entries += 1
                assert inside == 1
                inside -= 1

    for thread in [Running(lambda number=number: work(number)) for number in range(16)]:  # type: ignore[misc]
        thread.result(60)
    assert entries == 160


def test_many_threads_and_one_coordinator(two: tuple[Coordinator, Coordinator]) -> None:
    """Everything at once: no thread gets the answer of another."""
    one, other = two

    def work(number: int) -> int:
        done = 0
        for turn in range(10):
            with one.lock(f"own {number}") as hold:
                assert hold.key == f"own {number}"
                assert other.lock(f"own {number}").try_acquire() is None
            with one.lock_all([f"own {number}", "common"]) as both:
                assert len(both.key) == 2  # type: ignore[arg-type]
            with one.semaphore("s", 3, timeout=20) as permit:
                assert permit.permit in (0, 1, 2)
            done += turn
        return done

    threads = [Running(lambda number=number: work(number)) for number in range(12)]  # type: ignore[misc]
    assert [thread.result(60) for thread in threads] == [45] * 12
    until_idle(one)


def test_a_hold_belongs_to_no_thread(two: tuple[Coordinator, Coordinator]) -> None:
    """Another thread may release it, or leave its block."""
    one, other = two
    hold = one.lock("x").acquire()
    Running(hold.release).result()
    assert hold.released
    assert free(other, "x")
    stack = contextlib.ExitStack()
    stack.enter_context(one.lock("x"))
    stack.enter_context(one.lock_all(["y", "z"]))
    Running(stack.close).result()
    assert free(other, "x")
    assert free(other, "z")
    eventually(lambda: not scopes(one), what="nobody is inside of anything")
    with pytest.raises(RuntimeError, match="not entered by this thread"):
        one.lock("x").__exit__(None, None, None)


@pytest.mark.parametrize("inside", [False, True], ids=["bare", "inside its block"])
@pytest.mark.parametrize("where", ["here", "in a thread", "by the collector"])
def test_a_dropped_hold_is_released(two: tuple[Coordinator, Coordinator], where: str, inside: bool) -> None:
    """With a warning, from whatever thread; and it no longer counts as a block somebody is in."""
    one, other = two

    def drop() -> None:
        lock = one.lock("x")
        hold = lock.__enter__() if inside else lock.acquire()
        if where == "by the collector":
            circle: list[object] = [hold, lock]
            circle.append(circle)
            del circle
        del hold, lock
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if where == "in a thread":
            Running(drop).result()
        else:
            drop()
    told = [warning for warning in caught if "was dropped" in str(warning.message)]  # the collector finds others' too
    assert [str(warning.message) for warning in told] == ["the hold of 'x' was dropped without release"]
    assert told[0].category is ResourceWarning
    assert free(other, "x")
    assert free(one, "y")  # whatever was noted has been told to the engine now
    assert not scopes(one)


async def test_called_from_a_running_loop(address: str) -> None:
    """It would stop the loop, so it is an error that tells what to use; a release does not wait and is allowed."""
    c = Coordinator(address)
    with pytest.raises(ConfigurationError, match="AsyncCoordinator"):
        c.open()
    await asyncio.to_thread(c.open)
    hold = await asyncio.to_thread(c.lock("x").acquire)
    for call in (
        c.lock("x").acquire,
        c.lock("x").try_acquire,
        c.lock_all(["x", "y"]).acquire,
        c.lock_all(["x", "y"]).try_acquire,
        c.semaphore("s", 2).acquire,
        c.semaphore("s", 2).__enter__,
        hold.wait_lost,
        lambda: c.acquire_lock("x"),
        c.close,
    ):
        with pytest.raises(ConfigurationError, match="AsyncCoordinator"):
            call()
    hold.release()
    assert await asyncio.to_thread(free, c, "x")
    await asyncio.to_thread(c.close)
    with pytest.raises(CoordinatorClosed):
        c.lock("x")
