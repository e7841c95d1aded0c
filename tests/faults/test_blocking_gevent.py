"""The blocking twin in a program that gevent has patched: all of it works, and whoever waits lets the others run.

Theory. In such a program threads are greenlets of one thread, and so is the engine: its event loop waits in gevent's
selector, and the lock on which a caller waits is gevent's. Each test is a program of its own, because a patched
interpreter stays patched. What it has to show is that a greenlet which only ticks goes on ticking while others wait.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from pgconcert.testing import advisory_locks, eventually
from tests.faults.scenes import holders
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

START = """
from gevent import monkey
monkey.patch_all()
import asyncio, sys, threading
import gevent
from pgconcert import AcquireTimeout, ConfigurationError, CoordinatorClosed, LockLost, WouldDeadlock
from pgconcert.blocking import Coordinator

url = sys.argv[1]
ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.001)

gevent.spawn(tick)

def until_ticked(more=20):
    # Let the others run until the ticking one has run so often: it is not blocked.
    end = ticks + more
    with gevent.Timeout(30):
        while ticks < end:
            gevent.sleep(0.001)
"""

WORDS = (
    START
    + """
def in_vain(lock):
    try:
        lock.acquire(timeout=0.2)
    except AcquireTimeout as error:
        return str(error)
    raise AssertionError("the lock of another was granted")

with Coordinator(url, name="one") as c, Coordinator(url, name="other") as other:
    with c.lock("x") as hold:
        assert other.lock("x").try_acquire() is None
        before = ticks
        # a busy server does not say in time who has it, and is asked again
        assert any("held by one" in in_vain(other.lock("x")) for _ in range(20))
        assert ticks > before, "a wait blocked every greenlet"
        waiting = gevent.spawn(other.lock("x").acquire)
        until_ticked()
        assert not waiting.dead
    waiting.get(timeout=30).release()
    with c.lock_all(["a", "b"]), c.semaphore("s", 2) as permit, c.lock("r", shared=True):
        assert permit.permit in (0, 1)
        assert other.lock("b").try_acquire() is None
    try:
        with c.lock("x"), c.lock("x"):
            raise AssertionError("it is not re-entrant")
    except WouldDeadlock as error:
        assert "already" in str(error), error

    inside = entries = 0
    def work(number):
        global inside, entries
        lock = (c, other)[number % 2].lock("contended")
        for _ in range(10):
            with lock:
                inside += 1
                entries += 1
                assert inside == 1
                gevent.sleep(0)
                inside -= 1
    gevent.joinall([gevent.spawn(work, number) for number in range(20)], timeout=80, raise_error=True)
    assert entries == 200, entries
    hold = c.lock("killed").acquire()
    victim = gevent.spawn(other.lock("killed").acquire)
    until_ticked()
    victim.kill(timeout=30)
    assert victim.dead
    hold.release()
    with other.lock("killed", timeout=30):
        pass
    print("worked", flush=True)
    sys.stdin.readline()
assert not any(thread.name == "pgconcert-engine" for thread in threading.enumerate())
print("closed", flush=True)
"""
)

LOSS = (
    START
    + """
with Coordinator(url) as c:
    hold = c.lock("x").acquire()
    assert hold.wait_lost(0.05) is None
    watching = gevent.spawn(hold.wait_lost)
    print("holds", flush=True)
    reason = watching.get(timeout=20)
    until_ticked()
    try:
        with hold:
            pass
    except LockLost:
        print("lost", reason, flush=True)
    with c.lock("x"):
        print("again", flush=True)
    sys.stdin.readline()
"""
)

EXIT = (
    START
    + """
c = Coordinator(url)
c.open()
hold = c.lock("x").acquire()
def wait():
    try:
        c.lock("x").acquire()
    except CoordinatorClosed:
        pass
gevent.spawn(wait)
until_ticked()
print("holds", flush=True)
"""
)


@pytest.fixture(autouse=True)
def _gevent(request: pytest.FixtureRequest) -> None:
    if importlib.util.find_spec("gevent") is None:
        message = "needs gevent: pip install gevent"
        if request.config.getoption("--require-all"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


def test_everything_works(database: str, worker: Callable[..., Worker]) -> None:
    program = worker(WORDS, database, fresh=True)
    program.expect("worked", 100)
    program.send("go on")
    program.expect("closed")
    assert program.wait() == 0
    eventually(lambda: not advisory_locks(database), what="nothing is left in pg_locks")


def test_a_loss_is_told(server: Server, database: str, worker: Callable[..., Worker]) -> None:
    program = worker(LOSS, database, fresh=True)
    program.expect("holds")
    (pid,) = holders(database, "x")
    assert server.kill_backend(pid)
    assert program.expect("lost")
    program.expect("again")
    program.send("go on")
    assert program.wait() == 0


def test_the_end_of_a_program(database: str, worker: Callable[..., Worker]) -> None:
    """With a hold out and a greenlet that waits."""
    program = worker(EXIT, database, fresh=True)
    program.expect("holds")
    assert program.wait(40) == 0
    eventually(lambda: not advisory_locks(database), what="nothing is left in pg_locks")
