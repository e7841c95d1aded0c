"""Job locks for threads, in a world of one process: holds, loss, `run`, `stop`, and a job that is kept running."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pgconcert import AcquireTimeout, CoordinatorClosed, WouldDeadlock
from pgconcert.blocking import Coordinator
from pgconcert.blocking.jobs import JobHold, run_in_job_lock
from pgconcert.errors import SessionLost, Stopped
from pgconcert.events import JobFailed
from pgconcert.jobs import JobHolder, JobLockState
from pgconcert.sessions.timing import timing
from pgconcert.testing import eventually
from tests.postgres.threads import Running


class Two(NamedTuple):
    """Two processes of one world."""

    mine: Coordinator
    theirs: Coordinator

    def holder(self) -> JobHolder | None:
        return self.theirs.job_lock("job").holder()

    def free(self) -> None:
        """Show that it is free now."""
        lock = self.theirs.job_lock("job")
        hold = lock.try_acquire()
        assert hold is not None
        hold.release()
        lock.acquire(10).release()  # after the release was carried out


@pytest.fixture
def two() -> Iterator[Two]:
    world = f"memory://{secrets.token_hex(8)}"
    with Coordinator(world, name="mine") as mine, Coordinator(world, name="theirs") as theirs:
        yield Two(mine, theirs)


def test_threads_exclude_each_other(two: Two) -> None:
    lock = two.mine.job_lock("job", ttl=8, hold_at_least=0, data=[1])
    assert (lock.state, lock.ttl, lock.interval, lock.check, lock.timeout) == ("", 8, 2, 4, 1)
    assert (lock.name, lock.key, lock.hold_at_least, lock.identity) == ("job", "job", 0, two.mine.identity)
    with lock as hold:
        assert lock.state == JobLockState.HELD.value
        assert repr(lock) == "<JobLock 'job' held>"
        assert two.theirs.job_lock("job").try_acquire() is None
        holder = two.holder()
        assert holder is not None
        assert (holder.application, holder.data, holder.token, holder.mine) == ("mine", [1], hold.token, False)
        with pytest.raises(AcquireTimeout, match=r"job lock 'job'.*mine"):
            two.theirs.job_lock("job").acquire(0.01)
        with pytest.raises(WouldDeadlock):
            lock.acquire()
        with pytest.raises(WouldDeadlock), lock:
            pass
    assert lock.state == "released"
    eventually(lambda: two.holder() is None)


def test_a_waiting_thread_takes_over(two: Two) -> None:
    hold = two.theirs.job_lock("job").acquire()
    waits = Running(two.mine.job_lock("job").acquire)
    hold.release()
    taken = waits.result()
    assert taken.token > hold.token
    taken.release()


def test_a_release_may_be_requested(two: Two) -> None:
    with two.mine.job_lock("job", ttl=60.0, interval=0.5) as hold:
        assert not hold.wait_release_requested(0.01)
        waits = Running(hold.wait_release_requested)
        assert two.theirs.job_lock("job").request_release()
        assert waits.result()
        assert hold.release_requested
        assert hold.wait_release_requested(0)
        assert not hold.lost
    eventually(lambda: two.holder() is None)
    assert not two.theirs.job_lock("job").request_release()


def test_a_loss_is_found_by_asking(two: Two) -> None:
    lock = two.mine.job_lock("job", ttl=60.0, interval=0.5)

    def block() -> None:
        with lock as hold:
            assert two.theirs.job_lock("job").revoke()
            assert "revoked" in (hold.wait_lost(10) or "")
            with pytest.raises(SessionLost):
                hold.check()
            assert lock.state == "lost"

    with pytest.raises(SessionLost, match="'job'"):
        block()
    two.free()


def test_run_runs_in_this_thread_and_has_released(two: Two) -> None:
    def job(hold: JobHold) -> tuple[int, threading.Thread]:
        assert two.theirs.job_lock("job").try_acquire() is None
        return hold.token, threading.current_thread()

    for _ in range(20):
        result = two.mine.job_lock("job").run(job)
        assert result is not None
        assert result[1] is threading.current_thread()
        two.free()


def test_an_error_passes_through_run(two: Two) -> None:
    def job(hold: JobHold) -> None:
        raise ValueError("the job")

    with pytest.raises(ValueError, match="the job"):
        two.mine.job_lock("job").run(job)
    two.free()


def test_run_raises_on_loss(two: Two) -> None:
    def asks(hold: JobHold) -> None:
        two.theirs.job_lock("job").revoke()
        hold.wait_lost()
        hold.check()
        raise AssertionError("it was lost")

    def asks_not(hold: JobHold) -> None:
        two.theirs.job_lock("job").revoke()
        hold.wait_lost()

    for job in (asks, asks_not):
        with pytest.raises(SessionLost):
            two.mine.job_lock("job", ttl=60.0, interval=0.5).run(job)


def test_stop_ends_waits_of_other_threads(two: Two) -> None:
    hold = two.theirs.job_lock("job").acquire()
    lock = two.mine.job_lock("job")
    waits, runs = Running(lock.acquire), Running(lambda: lock.run(lambda hold: "it ran"))
    eventually(lambda: len(lock._stops._claims) == 2)
    assert lock.stop()
    assert isinstance(waits.error(), Stopped)
    assert runs.result() is None
    assert lock.stop()
    with pytest.raises(Stopped):
        lock.try_acquire()
    with pytest.raises(Stopped), lock:
        pass
    assert lock.run(lambda hold: "it ran") is None
    hold.release()
    eventually(lambda: two.holder() is None)


def test_stop_ends_a_job_that_asks(two: Two) -> None:
    lock = two.mine.job_lock("job")
    entered, excluded = threading.Event(), []

    def job(hold: JobHold) -> None:
        entered.set()
        hold.wait_lost()
        excluded.append(two.theirs.job_lock("job").try_acquire() is None)
        hold.check()

    running = Running(lambda: lock.run(job))
    assert entered.wait(30)
    assert lock.stop()
    two.free()
    assert running.result() is None
    assert excluded == [True]


def test_stop_waits_no_longer_than_it_may(two: Two) -> None:
    lock = two.mine.job_lock("job")
    entered, go_on = threading.Event(), threading.Event()

    def job(hold: JobHold) -> str:
        entered.set()
        go_on.wait(30)
        return "a result"

    running = Running(lambda: lock.run(job))
    assert entered.wait(30)
    assert not lock.stop(0.01)
    assert two.theirs.job_lock("job").try_acquire() is None
    go_on.set()
    assert lock.stop(10)
    assert running.result() == "a result"
    two.free()


def test_stop_releases_what_was_acquired(two: Two) -> None:
    lock = two.mine.job_lock("job")
    hold = lock.acquire()
    assert lock.stop()
    two.free()
    with pytest.raises(SessionLost, match=r"stop\(\)"):
        hold.check()
    hold.release()
    assert lock.state == "released"


def test_a_job_may_stop_itself(two: Two) -> None:
    lock = two.mine.job_lock("job")

    def job(hold: JobHold) -> None:
        assert lock.stop()
        hold.check()

    assert lock.run(job) is None
    two.free()


def test_stop_after_the_end() -> None:
    with Coordinator(f"memory://{secrets.token_hex(8)}") as c:
        lock = c.job_lock("job")
    assert lock.stop()
    with pytest.raises((Stopped, CoordinatorClosed)):
        lock.acquire()


def test_a_job_is_kept_running_until_the_event(two: Two) -> None:
    failures: list[JobFailed] = []
    two.mine.events.subscribe(failures.append, JobFailed)
    stop, tokens, threads = threading.Event(), list[int](), set[threading.Thread]()

    def job(hold: JobHold) -> None:
        tokens.append(hold.token)
        threads.add(threading.current_thread())
        match len(tokens):
            case 2:
                raise ValueError("the job")
            case 3:
                two.theirs.job_lock("job").revoke()
                hold.wait_lost()
                hold.check()
            case 5:
                stop.set()
                hold.wait_lost()
                hold.check()

    keep(two.mine, job, stop)
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 5
    assert threads == {threading.current_thread()}
    assert [str(failure.error) for failure in failures] == ["the job"]
    two.free()


def test_an_event_ends_the_wait_and_the_pause(two: Two) -> None:
    hold = two.theirs.job_lock("job").acquire()
    stop = threading.Event()
    waits = Running(lambda: keep(two.mine, lambda hold: None, stop))
    stop.set()
    waits.result()
    hold.release()
    stop, runs = threading.Event(), []
    pauses = Running(lambda: keep(two.mine, lambda hold: runs.append(hold.token), stop))
    eventually(lambda: len(runs) >= 3)
    stop.set()
    pauses.result()
    keep(two.mine, lambda hold: runs.append(0), stop)
    assert 0 not in runs


def test_closing_ends_what_is_kept_running() -> None:
    world = f"memory://{secrets.token_hex(8)}"
    entered = threading.Event()

    def job(hold: JobHold) -> None:
        entered.set()
        hold.wait_lost()

    with Coordinator(world) as c:
        running = Running(lambda: keep(c, job, None))
        assert entered.wait(30)
    assert isinstance(running.error(), CoordinatorClosed)


def test_what_ends_a_program_ends_what_is_kept_running(two: Two) -> None:
    def job(hold: JobHold) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(two.mine, job, None)
    two.free()


def keep(c: Coordinator, job: object, stop: threading.Event | None) -> None:
    run_in_job_lock(c._holding(), "job", job, timing(60.0, 0.5, 1.0), stop=stop)  # type: ignore[arg-type]
