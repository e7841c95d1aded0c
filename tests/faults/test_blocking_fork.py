"""A process that uses the blocking twin forks: the child has nothing, says so, and harms nobody; the parent goes on.

Theory. Only the forking thread lives on in the child. Whatever another thread was in the middle of stays as it was: a
mutex that it had is never free again. So nothing that the child may touch waits for one, the engine of the parent is
never asked again, and what the child opens is new. Each test is a program of its own; what a child finds it tells by
what it prints and by its exit code.

From Python 3.12 on ``os.fork`` warns of every process that has several threads (DeprecationWarning). A program that
turns warnings into errors closes its coordinator before it forks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pgconcert.testing import advisory_locks, eventually
from tests.faults.scenes import holders
from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150)]

START = """
import gc, os, sys, threading, time, traceback
from pgconcert import CoordinatorClosed, LockLost
from pgconcert.blocking import Coordinator

url, how = sys.argv[1:3]
key = "forked"

def in_a_child(work, leave=os._exit):
    # Run work there; whatever it prints or raises comes back as text with its exit code.
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 0
        try:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            work()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        leave(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return said.strip(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def backends(c):
    return [link.server_pid for link in c.health().links if link.server_pid]

def opened(kind):
    # What this process has open of one kind: numbers of descriptors by what they lead to.
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            if kind in os.readlink(f"/proc/self/fd/{number}"):
                found.add(int(number))
        except OSError:
            pass
    return found

def refused(call):
    try:
        call()
    except CoordinatorClosed:
        return
    raise AssertionError("the child may use what is its parent's")

c = Coordinator(url, name="parent")
c.open()
"""

END = """
assert not hold.lost
print("alive", flush=True)
sys.stdin.readline()
hold.release()
with c.lock("after"):
    pass
c.close()
print("done", flush=True)
"""

NOTHING = (
    START
    + """
lock, several, permit = c.lock(key), c.lock_all(["a", "b"]), c.semaphore("s", 2)
hold = lock.acquire()
reader, slot = c.lock("r", shared=True).acquire(), permit.acquire()
before = backends(c)

def child():
    for one in (hold, reader, slot):
        assert (one.lost, one.reason) == (True, "forked"), one
        assert one.wait_lost() == "forked"
        one.release()
        try:
            one.check()
        except LockLost:
            pass
        else:
            raise AssertionError("a child has a lock")
    for call in (lock.acquire, lock.try_acquire, lock.__enter__, several.acquire, several.try_acquire, permit.acquire):
        refused(call)
    for call in (lambda: c.lock("x"), lambda: c.lock_all(["x"]), c.open, lambda: c.acquire_lock("x")):
        refused(call)
    assert not c.health().ready and "before fork()" in str(c.health()), c.health()
    c.close()
    gc.collect()
    print("checked")

def leave(code):
    if how == "_exit":
        os._exit(code)
    sys.exit(code)

said, code = in_a_child(child, leave)
assert (said, code) == ("checked", 0), (said, code)
assert backends(c) == before
reader.release()
slot.release()
"""
    + END
)

SET = (
    START
    + """
hold = c.lock(key).acquire()
several = c.lock_all(["a", "b"]).acquire()

def child():
    assert (several.lost, several.reason is not None) == (True, True), several
    several.release()
    print("checked")

said, code = in_a_child(child)
assert (said, code) == ("checked", 0), (said, code)
several.release()
"""
    + END
)

BLOCK = (
    START
    + """
hold = c.lock(key).acquire()
pid = None
try:
    with c.lock("block"):
        pid = os.fork()
except LockLost as error:
    assert not pid and error.reason == "forked", error
    os._exit(7)
if not pid:
    os._exit(5)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert code == 7, code
"""
    + END
)

NEW_ONE = (
    START
    + """
hold = c.lock(key).acquire()

kept = []

def child():
    with Coordinator(url, name="child") as mine:
        assert mine.lock(key).try_acquire() is None, "the parent's lock does not count"
        with mine.lock("the child's own") as own, mine.lock_all(["a", "b"]), mine.semaphore("s", 2):
            own.check()
        assert sum(thread.name == "pgconcert-engine" for thread in threading.enumerate()) == 1
    left_open = Coordinator(url, name="child")
    left_open.open()
    kept.append(left_open.lock("left to the exit").acquire())
    print("worked")

def leave(code):
    if how == "_exit":
        os._exit(code)
    sys.exit(code)

for _ in range(2):
    said, code = in_a_child(child, leave)
    assert (said.splitlines()[:1], code) == (["worked"], 0), (said, code)
"""
    + END
)

DESCRIPTORS = (
    START
    + """
# the engine's loop wakes itself by a pair of sockets, which lead nowhere else
pair = opened("socket:")
other = Coordinator(url, name="other")
other.open()
hold = c.lock(key).acquire()
theirs = other.lock("wanted").acquire()
waiting = threading.Thread(target=lambda: c.lock("wanted").acquire().release())
waiting.start()
while not any(link.role == "listen" and link.state == "ready" for link in c.health().links):
    time.sleep(0.01)
assert len(opened("socket:")) >= len(pair) + 3 and len(opened("eventfd")) == 1

def child():
    assert opened("socket:") == pair
    assert not opened("eventfd"), "the bell of the parent's engine"
    print("checked")

said, code = in_a_child(child)
assert (said, code) == ("checked", 0), (said, code)
theirs.release()
waiting.join(30)
assert not waiting.is_alive()
other.close()
"""
    + END
)

LOAD = (
    START
    + """
forks = int(how)
hold = c.lock(key).acquire()
before = backends(c)
end, counts = threading.Event(), [0] * 5

def load(number):
    # Inside blocks, waiting and noted as waiting, in every part of the library, at every fork.
    while not end.is_set():
        with c.lock(f"load {number}"), c.lock("common"), c.semaphore("s", 2), c.lock_all(["d", "e"]):
            counts[number] += 1

threads = [threading.Thread(target=load, args=(number,)) for number in range(len(counts))]
for thread in threads:
    thread.start()
while not all(counts):
    time.sleep(0.001)
own = c.lock("never")
children = []
for number in range(forks):
    done = sum(counts)
    while sum(counts) < done + 3:
        time.sleep(0)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            assert hold.lost and hold.reason == "forked", hold
            refused(own.acquire)
            refused(own.__enter__)
            hold.release()
            gc.collect()
            if number % 10 == 0:
                with Coordinator(url, name="child") as mine, mine.lock(f"child {number}"):
                    assert mine.lock(key).try_acquire() is None
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    children.append(pid)
    if len(children) >= 4:
        assert os.waitstatus_to_exitcode(os.waitpid(children.pop(0), 0)[1]) == 0
for pid in children:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
end.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
assert backends(c)[: len(before)] == before, (backends(c), before)
"""
    + END
)


def unharmed(database: str, process: Worker, limit: float = 90) -> None:
    """The parent lives and the server agrees that it holds; then it ends in order."""
    process.expect("alive", limit)
    assert len(holders(database, "forked")) == 1
    process.send("go on")
    process.expect("done", 30)
    assert process.wait() == 0
    eventually(lambda: not advisory_locks(database), what="nothing is left in pg_locks")


@pytest.mark.parametrize("how", ["_exit", "exit"])
def test_a_child_has_nothing_and_harms_nobody(database: str, worker: Callable[..., Worker], how: str) -> None:
    unharmed(database, worker(NOTHING, database, how))


def test_a_set_is_lost_in_the_child(database: str, worker: Callable[..., Worker]) -> None:
    unharmed(database, worker(SET, database, ""))


def test_a_fork_inside_a_block(database: str, worker: Callable[..., Worker]) -> None:
    """The block ends in the child with LockLost, and in the parent as if nothing had happened."""
    unharmed(database, worker(BLOCK, database, ""))


@pytest.mark.parametrize("how", ["_exit", "exit"])
def test_a_child_may_open_its_own(database: str, worker: Callable[..., Worker], how: str) -> None:
    unharmed(database, worker(NEW_ONE, database, how))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc/self/fd")
def test_a_child_has_no_descriptor_of_its_parents_engine(database: str, worker: Callable[..., Worker]) -> None:
    unharmed(database, worker(DESCRIPTORS, database, ""))


def test_forks_under_load(database: str, worker: Callable[..., Worker]) -> None:
    unharmed(database, worker(LOAD, database, "10"))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_two_hundred_forks_under_load(database: str, worker: Callable[..., Worker]) -> None:
    unharmed(database, worker(LOAD, database, "200"), 250)
