"""Ctrl-C at any instant: the wait ends at once, and nothing stays held.

Theory. Signals reach the main thread only, and their handlers run between two of its steps; the engine thread is never
interrupted. So whatever must not be left half done is done there, and the main thread only posts messages. Here every
step of the library at which a handler can run is tried in turn, in a world of one process; and thousands of interrupts
at random instants hit a process that works on a server.

The hole that Python leaves: between the end of ``__enter__`` and the block, and between the block and ``__exit__``, an
exception meets no code of ours. What is held then hangs on the lock object alone. An object that nobody keeps takes it
along (``with c.lock(...)``); one that is kept keeps it, which a test here names.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from pgconcert import AcquireTimeout, CoordinatorClosed
from pgconcert.blocking import Coordinator
from pgconcert.blocking import coordinator as exits
from pgconcert.enginethread import EngineThread
from pgconcert.keys import KeySpace
from pgconcert.testing import advisory_locks, eventually
from tests.faults.blocking_interrupted import PROGRAM
from tests.faults.interrupts import Injector, everywhere
from tests.faults.scenes import holders
from tests.postgres.threads import Running, engines, until_waiting
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

dropped = pytest.mark.filterwarnings("ignore:the hold of .* was dropped without release:ResourceWarning")

every_step = pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on sys.settrace leaves opcodes out")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Holds that an interrupt drops are reported, hundreds of them. And no collector: the interpreter cannot bear an
    injected interrupt in a finaliser that it calls."""
    logging.disable(logging.WARNING)
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


@pytest.fixture
def world() -> str:
    """A world of one process."""
    return f"memory://{secrets.token_hex(8)}"


def nothing_is_held(other: Coordinator) -> bool:
    """Whether another process can have everything."""
    for wanted in (other.lock_all(["x", "y"]), other.semaphore("s", 1)):
        hold = wanted.try_acquire()
        if hold is None:
            return False
        hold.release()
    return True


def nothing_is_left(mine: Coordinator, other: Coordinator) -> bool:
    """The same, and no thread is noted as being inside or waiting."""
    register = mine._register
    assert register is not None
    return nothing_is_held(other) and not (register.scopes.held or register.scopes._inside or register.scopes._waits)


def in_vain(c: Coordinator) -> None:
    """A wait that ends by its time limit."""
    with pytest.raises(AcquireTimeout):
        c.lock("theirs").acquire(timeout=0.001)


def with_each(c: Coordinator) -> None:
    with c.lock("y"):
        with c.lock("x") as hold:
            hold.check()


def with_all(c: Coordinator) -> None:
    with c.lock_all(["x", "y"]):
        pass


def with_permit(c: Coordinator) -> None:
    with c.semaphore("s", 1):
        pass


def with_hold(c: Coordinator) -> None:
    hold = c.lock("x").acquire(timeout=30)
    with hold:
        pass


def attempt(c: Coordinator) -> None:
    hold = c.lock("x").try_acquire()
    assert hold is not None
    hold.release()


@dropped
@every_step
@pytest.mark.parametrize(
    "work", [with_each, with_all, with_permit, with_hold, attempt, in_vain], ids=lambda work: work.__name__
)
def test_an_interrupt_at_every_step(world: str, work: Callable[[Coordinator], object]) -> None:
    """Wherever it comes, nothing stays held; the lock objects are not kept."""
    with Coordinator(world) as c, Coordinator(world) as other, other.lock("theirs"):
        places = 0
        for where in everywhere(lambda: work(c)):
            places += 1
            eventually(lambda: nothing_is_left(c, other), what=f"nothing is left after an interrupt in {where}")
        assert places > 30


@dropped
@every_step
@pytest.mark.parametrize("work", [with_each, with_permit], ids=lambda work: work.__name__)
def test_what_is_left_to_the_finaliser(world: str, work: Callable[[Coordinator], object]) -> None:
    """While somebody keeps the interrupt, and with it every frame, only the hole has left something held."""
    with Coordinator(world) as c, Coordinator(world) as other:
        kept: list[KeyboardInterrupt] = []

        def keeping() -> None:
            try:
                work(c)
            except KeyboardInterrupt as interrupt:
                kept.append(interrupt)
                raise

        holes = set()
        for where in everywhere(keeping):
            c.lock("whatever was handed in before").acquire().release()
            if not nothing_is_held(other):
                holes.add(where)
            kept.clear()
            eventually(lambda: nothing_is_left(c, other), what=f"nothing is left after an interrupt in {where}")
        assert holes <= {"Acquirable.__exit__, RESUME", "Acquirable.__exit__, CALL", "Hold.__exit__, RESUME"}, holes
        assert holes


@dropped
@every_step
def test_the_hole_that_python_leaves(world: str) -> None:
    """A lock object that is kept keeps its hold if an interrupt falls between the block and the first step of
    ``__exit__``; nowhere else. Dropping the object frees it."""
    with Coordinator(world) as c, Coordinator(world) as other:
        kept = c.lock("x")

        def work() -> None:
            with kept:
                pass

        holes = []
        for where in everywhere(work):
            if kept._entered:
                holes.append(where)
                assert other.lock("x").try_acquire() is None
                kept = c.lock("x")
            eventually(lambda: nothing_is_left(c, other), what=f"nothing is left after an interrupt in {where}")
        assert holes == ["Acquirable.__exit__, RESUME"]


@dropped
@every_step
@pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")
def test_an_interrupt_at_every_step_of_a_life(world: str) -> None:
    """Opened, used and closed: whatever is interrupted, what the exit of the interpreter does ends it."""

    def life() -> None:
        with Coordinator(world) as c, c.lock("x"):
            pass

    places = 0
    for where in everywhere(life):
        places += 1
        exits._close_all()
        if where.startswith("EngineThread.join") and EngineThread._current is not None:
            EngineThread._current.leave()  # it was joined, and nobody knows it: an idle thread, and nothing else
        eventually(lambda: engines() == 0, what=f"the engine has ended after an interrupt in {where}")
    assert places > 100
    gc.collect()  # loops of engines that were never begun


@dropped
@every_step
def test_an_interrupted_close_goes_on(world: str) -> None:
    """Whoever waits is told all the same, and closing again waits for the end."""
    at = 0
    interrupted = True
    while interrupted:
        at += 1
        injector = Injector(at)
        with Coordinator(world) as other, other.lock("x"):
            c = Coordinator(world)
            c.open()
            waiting = Running(c.lock("x").acquire)
            until_waiting(c)
            injector.run(c.close)
            interrupted = injector.where is not None
            c.close()
            assert isinstance(waiting.error(), CoordinatorClosed)
        assert engines() == 0
    assert at > 10


def random_interrupts(database: str, process: Worker, count: int, limit: float) -> None:
    met = json.loads(process.expect("holds nothing", limit))
    assert sum(met.values()) >= count
    assert len(met) == 8, met
    names = {KeySpace("").key(name).value: name for name in ("a", "b", "d", "kept", "theirs", "handed over")}

    def left() -> list[object]:
        return [names.get(lock.key, lock) if isinstance(lock.key, int) else lock for lock in advisory_locks(database)]

    try:
        eventually(lambda: not left())
    except AssertionError:
        raise AssertionError(f"left in pg_locks: {left()}") from None
    process.send("go on")
    assert process.expect("closed") == "0"
    assert process.wait() == 0


@pytest.mark.long
@pytest.mark.timeout(180)
def test_random_interrupts(database: str, worker: Callable[..., Worker]) -> None:
    random_interrupts(database, worker(PROGRAM, database, "300"), 300, 120)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_random_interrupts(database: str, worker: Callable[..., Worker]) -> None:
    random_interrupts(database, worker(PROGRAM, database, "5000"), 5000, 500)


WAITS = """
import sys, time
from pgconcert.blocking import Coordinator

url, what = sys.argv[1:]
with Coordinator(url) as c:
    wanted = {"lock": c.lock("wanted"), "set": c.lock_all(["wanted", "more"]), "permit": c.semaphore("s", 1)}[what]
    c.lock("before").acquire().release()
    while c.health().locks_held:
        time.sleep(0.001)  # a release looks who waits, which can be seen on the server
    print("waits", flush=True)
    try:
        with wanted:
            print("got it", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    sys.stdin.readline()
    with c.lock("after"):
        print("works", flush=True)
"""


@pytest.mark.parametrize("what", ["lock", "set", "permit"])
def test_an_interrupt_ends_a_wait(server: Server, database: str, worker: Callable[..., Worker], what: str) -> None:
    """A wait without a time limit; it leaves no mark on the server, and the coordinator works on."""
    with Coordinator(database) as c, c.lock("wanted"), c.semaphore("s", 1):
        process = worker(WAITS, database, what)
        process.expect("waits")
        eventually(lambda: sum(isinstance(lock.key, tuple) for lock in advisory_locks(database)) > 2, what="it waits")
        ours = len(advisory_locks(database))
        os.kill(process.pid, signal.SIGINT)
        process.expect("interrupted")
        eventually(lambda: len(advisory_locks(database)) < ours, what="its mark is gone")
        assert len(holders(database, "wanted")) == 1
        process.send("go on")
        process.expect("works")
        assert process.wait() == 0


ELSEWHERE = """
import signal, sys, threading
from pgconcert.blocking import Coordinator

def interrupt():
    # the kernel may choose any thread; here it is this one, after the wait has begun
    while not other.health().locks_waited_for:
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

with Coordinator(sys.argv[1]) as c, Coordinator(sys.argv[1]) as other, c.lock("wanted"):
    threading.Thread(target=interrupt).start()
    try:
        other.lock("wanted").acquire(timeout=float(sys.argv[2]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("timeout", ["inf", "1000"])
def test_an_interrupt_that_another_thread_receives(database: str, worker: Callable[..., Worker], timeout: str) -> None:
    """It ends the wait of the main thread all the same."""
    process = worker(ELSEWHERE, database, timeout)
    process.expect("interrupted")
    assert process.wait() == 0
