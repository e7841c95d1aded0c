"""How holds, coordinators and the engine thread of the blocking twin end; and what a cycle costs.

Here live loss, close, races against close, and counts. Theory: a thread that waits must always be told, whatever
happens to the engine that it waits for; so what races is raced many times, and every wait is bounded by the test.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, CoordinatorClosed, LockLost, Unavailable
from pgconcert.blocking import Coordinator
from pgconcert.blocking.engine import Call, Engine
from pgconcert.enginethread import EngineThread
from pgconcert.testing import FaultProxy, advisory_locks, eventually
from tests.postgres.scenes import QUIET, key_of, keys_on_server
from tests.postgres.threads import Running, engines, scopes, until_idle, until_waiting
from tests.servers import Server


@pytest.fixture(params=["server", "memory"])
def address(request: pytest.FixtureRequest, database: str) -> str:
    """Where to coordinate."""
    return database if request.param == "server" else f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def c(database: str) -> Iterator[Coordinator]:
    """A coordinator on the server, which says nothing of its own accord."""
    with Coordinator(database, name="one", network_timeout=QUIET) as one:
        yield one


def break_connection(server: Server, coordinator: Coordinator) -> None:
    """End the session of its lock link, as an administrator does."""
    (pid,) = [link.server_pid for link in coordinator.health().links if link.role == "lock" and link.server_pid]
    assert server.kill_backend(pid)


def statements(coordinator: Coordinator) -> int:
    """How many statements its lock links have sent."""
    return sum(link.statements for link in coordinator.health().links if link.role == "lock")


# loss


def test_a_hold_tells_its_loss(server: Server, c: Coordinator) -> None:
    """As a flag, as an error, to everybody who waits for it; with a time limit as nothing so far."""
    hold = c.lock("x").acquire()
    assert hold.wait_lost(0) is None
    assert hold.wait_lost(0.02) is None
    waiting = [Running(hold.wait_lost) for _ in range(3)]
    break_connection(server, c)
    (reason,) = {thread.result() for thread in waiting}
    assert reason
    assert (hold.lost, hold.reason) == (True, reason)
    assert hold.wait_lost() == hold.wait_lost(0) == reason
    with pytest.raises(LockLost) as caught:
        hold.check()
    assert (caught.value.key, caught.value.reason) == ("x", reason)
    hold.release()
    assert repr(hold) == f"<Hold 'x' lost: {reason}>"
    with pytest.raises(LockLost), hold:
        raise AssertionError("the block of a lost hold was entered")


def test_the_block_raises_at_its_end(server: Server, c: Coordinator) -> None:
    """A body cannot be stopped; if it ends as if nothing had happened, the loss is the error."""
    reached = False

    def body() -> None:
        nonlocal reached
        with c.lock("x") as hold:
            break_connection(server, c)
            assert hold.wait_lost(30)
            reached = True

    with pytest.raises(LockLost, match="'x'"):
        body()
    assert reached
    with c.lock("x") as again:
        again.check()
    assert not scopes(c)


def test_another_error_gets_a_note(server: Server, c: Coordinator) -> None:
    def body() -> None:
        with c.lock("x") as hold:
            break_connection(server, c)
            hold.wait_lost(30)
            raise ValueError("of the body")

    with pytest.raises(ValueError, match="of the body") as caught:
        body()
    assert "the hold was lost: " in caught.value.__notes__[0]


@pytest.mark.parametrize("what", ["lock_all", "semaphore"])
def test_what_else_is_lost(server: Server, c: Coordinator, what: str) -> None:
    """A set and a permit are lost like a lock, and can be had again."""
    wanted = c.lock_all(["a", "b"]) if what == "lock_all" else c.semaphore("s", 1)

    def body() -> None:
        with wanted as hold:
            break_connection(server, c)
            assert hold.wait_lost(30)

    with pytest.raises(LockLost):
        body()
    with wanted as again:
        assert not again.lost
    until_idle(c)


def test_who_waits_rides_through_a_lost_connection(server: Server, database: str, c: Coordinator) -> None:
    with Coordinator(database) as other:
        theirs = other.lock("x").acquire()
        waiting = Running(c.lock("x").acquire)
        eventually(lambda: any(isinstance(lock.key, tuple) for lock in advisory_locks(database)), what="it waits")
        break_connection(server, c)
        theirs.release()
        hold = waiting.result()
        assert not hold.lost
        hold.release()
        until_idle(c)


# close


def test_before_open_and_after_close(address: str) -> None:
    """Whoever uses it then is told; closing is idempotent, in any state, and a coordinator is opened once."""
    c = Coordinator(address)
    with pytest.raises(CoordinatorClosed, match="not open yet: use it as 'with'"):
        c.lock("x")
    with c:
        kept = [c.lock("x"), c.lock_all(["x", "y"]), c.semaphore("s", 2)]
        with kept[0]:
            pass
    c.close()
    with pytest.raises(CoordinatorClosed):
        c.lock("x")
    for one in kept:
        for call in (one.acquire, one.try_acquire, one.__enter__):
            with pytest.raises(CoordinatorClosed):
                call()
    with pytest.raises(CoordinatorClosed, match="can be opened once"):
        c.open()
    never = Coordinator(address)
    never.close()
    with pytest.raises(CoordinatorClosed):
        never.open()
    assert engines() == 0


def test_close_ends_waits_and_holds(address: str) -> None:
    """Who waits is told, who holds has lost; and their blocks end by it."""
    c = Coordinator(address)
    c.open()
    held, several, permit = c.lock("x").acquire(), c.lock_all(["y", "z"]).acquire(), c.semaphore("s", 1).acquire()
    watching = Running(held.wait_lost)
    waiting = [
        Running(c.lock("x").acquire),
        Running(c.lock("y").acquire),
        Running(c.lock_all(["w", "z"]).acquire),
        Running(lambda: c.semaphore("s", 1).acquire(timeout=60)),
    ]
    until_waiting(c, 4)
    go_on = threading.Event()
    entered = threading.Event()

    def body() -> None:
        with c.lock("inside"):
            entered.set()
            assert go_on.wait(30)

    inside = Running(body)
    assert entered.wait(30)
    c.close()
    for thread in waiting:
        assert isinstance(thread.error(), CoordinatorClosed)
    assert "the coordinator was closed" in (watching.result() or "")
    assert held.lost
    assert several.lost
    assert permit.lost
    go_on.set()
    assert isinstance(inside.error(), LockLost)
    assert engines() == 0


def race(address: str, rounds: int) -> None:
    """Threads use everything that they have of a coordinator until they are told that it is closed."""
    for number in range(rounds):
        c = Coordinator(address)
        c.open()
        wanted = [c.lock("x"), c.lock(f"own {number}"), c.lock_all(["x", "y"]), c.semaphore("s", 2)]
        begun = threading.Barrier(len(wanted) + 1)

        def use(one: int) -> None:
            begun.wait(30)  # noqa: B023  it ends within the round
            for _ in itertools.count():
                try:
                    with wanted[one]:  # noqa: B023
                        pass
                except (CoordinatorClosed, LockLost) as error:
                    if isinstance(error, CoordinatorClosed):
                        return

        threads = [Running(lambda one=one: use(one)) for one in range(len(wanted))]  # type: ignore[misc]
        begun.wait(30)
        if number % 2:
            c.lock("main").try_acquire()
        c.close()
        for thread in threads:
            thread.result()


@pytest.mark.filterwarnings("ignore:the hold of 'main' was dropped")
def test_close_against_acquire(address: str) -> None:
    """Nobody hangs, whatever was under way."""
    race(address, 10)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:the hold of 'main' was dropped")
def test_close_against_acquire_often(address: str) -> None:
    race(address, 300)


def test_two_threads_close_it(address: str) -> None:
    c = Coordinator(address)
    c.open()
    hold = c.lock("x").acquire()
    for thread in [Running(c.close) for _ in range(4)]:
        thread.result()
    eventually(lambda: engines() == 0)
    assert hold.lost


# the engine thread


async def test_both_twins_share_one_engine_thread(address: str) -> None:
    """A coordinator of asyncio on the engine thread, and two that block."""
    import asyncio

    assert engines() == 0
    async with AsyncCoordinator(address, engine="thread") as asynchronous:
        one, other = Coordinator(address), Coordinator(address)
        for c in (one, other):
            await asyncio.to_thread(c.open)
        assert engines() == 1
        async with asynchronous.lock("x"):
            assert await asyncio.to_thread(one.lock("x").try_acquire) is None
            waiting = Running(other.lock("x").acquire)
            until_waiting(other)
        (await asyncio.to_thread(waiting.result)).release()
        for c in (one, other):
            await asyncio.to_thread(c.close)
        assert engines() == 1
    assert engines() == 0


def test_the_engine_cannot_be_started(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no connection either, and what was begun is undone: later it works."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    c = Coordinator(address)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable, match="the engine thread cannot be started: can't start new thread"):
            c.open()
    assert engines() == 0
    with Coordinator(address) as another, another.lock("x"):
        assert engines() == 1


def test_what_comes_at_the_end_of_the_engine_is_told() -> None:
    """Work whose first step the end of the engine forestalls is an error of whoever waits for it, not a wait."""
    engine, started = Engine(), threading.Event()

    async def work() -> None:
        started.set()

    def end() -> None:
        engine.loop.stop()  # what is posted now meets a loop that takes no further turn
        ending.set()
        assert posted.wait(30)

    ending, posted = threading.Event(), threading.Event()
    assert engine.crossing.post(end)
    assert ending.wait(30)
    waiting: Running[None] = Running(lambda: engine.run(work))
    eventually(lambda: len(engine.crossing._calls) == 1, what="it is posted")
    posted.set()
    assert isinstance(waiting.error(), CoordinatorClosed)
    assert not started.is_set()
    eventually(lambda: engines() == 0)
    EngineThread._current = None


# what it costs


def test_a_cycle_is_two_statements(c: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one wait: that for the grant. The release is handed in."""
    waits = 0
    wait = Call.wait

    def counted(self: Call[object], timeout: float | None = None) -> bool:
        nonlocal waits
        waits += 1
        return wait(self, timeout)

    monkeypatch.setattr(Call, "wait", counted)
    lock = c.lock("x")
    with lock:
        pass
    until_idle(c)
    before, waits = statements(c), 0
    for _ in range(50):
        with lock:
            pass
    until_idle(c)
    assert statements(c) - before == 100
    assert waits == 50


def test_a_release_does_not_wait(proxy: FaultProxy, database: str) -> None:
    """The server does not answer, and whoever releases goes on all the same."""
    with Coordinator(proxy.url(database), network_timeout=QUIET) as c:
        hold = c.lock("x").acquire()
        with c.lock("y"), c.lock_all(["a", "b"]), c.semaphore("s", 1):
            proxy.pause()
            hold.release()
        assert hold.released
        assert key_of("x") in keys_on_server(database)
        proxy.resume()
        eventually(lambda: not advisory_locks(database), what="nothing is left in pg_locks")


@pytest.mark.parametrize("cycles", [200, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_what_is_asked_later_does_not_overtake_a_release(address: str, cycles: int) -> None:
    """A thread that has released can have it again, at once and always."""
    with Coordinator(address) as c:
        lock, several, semaphore = c.lock("x"), c.lock_all(["x", "y"]), c.semaphore("s", 1)
        for number in range(cycles):
            for one in (lock, semaphore, several) if number % 10 == 0 else (lock,):
                hold = one.try_acquire()
                assert hold is not None, number
                hold.release()
