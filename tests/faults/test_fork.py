"""A process forks while it holds locks: the child has none, says so, and harms nobody; the parent goes on.

Theory: parent and child share sockets and the kernel's set of watched descriptors, so whatever the child did to them
would reach the parent. Each test is a program of its own: it forks where its event loop does not run, as `Runner`
allows, and the parent then works on with the same loop. What the child finds it writes to a pipe.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgconcert.testing import advisory_locks, eventually
from tests.faults.scenes import holders
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(150)]

START = """
import asyncio, gc, os, sys, traceback
from pgconcert import AsyncCoordinator, CoordinatorClosed

url, engine, how = sys.argv[1:4]
key = "forked"

def in_a_child(work, leave):
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

runner = asyncio.Runner()
c = AsyncCoordinator(url, engine=engine)
runner.run(c.open())

async def backends():
    return [link.server_pid for link in c.health().links if link.server_pid]

async def wake_up_is_heard(other):
    # We wait for a key that another coordinator has, and are woken over our listen link.
    theirs = await other.lock("wake").acquire()
    waiting = asyncio.create_task(c.lock("wake").acquire())
    while not any(link.role == "listen" and link.state == "ready" for link in c.health().links):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await theirs.release()
    await (await waiting).release()
"""

CHILD = (
    START
    + """
other = AsyncCoordinator(url)
runner.run(other.open())
hold = runner.run(c.lock(key).acquire())
runner.run(wake_up_is_heard(other))
before = runner.run(backends())
assert len(before) == 2, before

def child():
    assert hold.lost
    assert hold.reason == "forked", hold.reason
    try:
        c.lock(key)
    except CoordinatorClosed as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("the child may use it")
    gc.collect()
    print("checked")

def leave(code):
    if how == "_exit":
        os._exit(code)
    global hold, runner, c, other
    # An event loop that was inherited must not be closed by whoever did not make it.
    kept.append(runner)
    sys.exit(code)

kept = []
said, code = in_a_child(child, leave)
assert (said, code) == ("checked", 0), (said, code)

assert not hold.lost
assert runner.run(backends()) == before, "the links are the same"
runner.run(wake_up_is_heard(other))
assert not hold.lost
print("alive", flush=True)
sys.stdin.readline()
runner.run(hold.release())
runner.run(other.close())
runner.run(c.close())
runner.close()
print("done", flush=True)
"""
)

NEW_ONE = (
    START
    + """
hold = runner.run(c.lock(key).acquire())

def child():
    async def work():
        async with AsyncCoordinator(url, engine=engine) as mine:
            assert await mine.lock(key).try_acquire() is None, "the parent's lock does not count"
            async with mine.lock("the child's own") as own:
                gc.collect()
                await asyncio.sleep(0.1)
                assert not own.lost
        print("worked")
    asyncio.run(work())

for _ in range(2):
    said, code = in_a_child(child, os._exit)
    assert (said, code) == ("worked", 0), (said, code)
assert not hold.lost
print("alive", flush=True)
sys.stdin.readline()
runner.run(hold.release())
runner.run(c.close())
runner.close()
print("done", flush=True)
"""
)

MANY = (
    START
    + """
hold = runner.run(c.lock(key).acquire())
before = runner.run(backends())
forks = int(how)

async def load(stop):
    async def cycle(name):
        count = 0
        while not stop.is_set():
            async with c.lock(name):
                count += 1
        return count
    cycling = [asyncio.create_task(cycle(f"load {n}")) for n in range(20)]
    children = []
    for _ in range(forks):
        for _ in range(5):
            await asyncio.sleep(0)
        # forked inside the running loop, with statements under way
        pid = os.fork()
        if not pid:
            fine = hold.lost and hold.reason == "forked"
            gc.collect()
            os._exit(0 if fine else 1)
        children.append(pid)
    stop.set()
    counts = await asyncio.gather(*cycling)
    assert min(counts) > 0, counts
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]

async def main():
    return await load(asyncio.Event())

codes = runner.run(main())
assert codes == [0] * forks, codes
assert not hold.lost
assert runner.run(backends()) == before
print("alive", flush=True)
sys.stdin.readline()
runner.run(hold.release())
runner.run(c.close())
runner.close()
print("done", flush=True)
"""
)


def unharmed(server: Server, database: str, process: Worker) -> None:
    """The parent lives and the server agrees that it holds; then it ends in order."""
    process.expect("alive", 90)
    assert len(holders(database, "forked")) == 1
    process.send("go on")
    process.expect("done")
    assert process.wait() == 0
    eventually(lambda: not advisory_locks(database), what="nothing is left in pg_locks")


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.parametrize("how", ["_exit", "exit"])
def test_a_child_has_nothing_and_harms_nobody(
    server: Server, database: str, worker: Callable[..., Worker], engine: str, how: str
) -> None:
    unharmed(server, database, worker(CHILD, database, engine, how))


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_child_may_open_its_own(server: Server, database: str, worker: Callable[..., Worker], engine: str) -> None:
    unharmed(server, database, worker(NEW_ONE, database, engine, ""))


def test_forks_under_load(server: Server, database: str, worker: Callable[..., Worker]) -> None:
    unharmed(server, database, worker(MANY, database, "loop", "5"))


@pytest.mark.long
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_fifty_forks_under_load(server: Server, database: str, worker: Callable[..., Worker], engine: str) -> None:
    unharmed(server, database, worker(MANY, database, engine, "50"))
