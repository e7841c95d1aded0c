"""A child of a forked child: it closes no descriptor that its own parent has opened.

Theory: a child closes the sockets that it inherits from connections, by number. Those numbers are free afterwards and
the child's own files get them; if the child still had them on its list, its own child would close those files. Each
test is a program of its own, which forks where no event loop runs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

FAMILY = """
import asyncio, os, sys
from pgconcert import AsyncCoordinator

url, engine, generations = sys.argv[1], sys.argv[2], int(sys.argv[3])

def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True

def descend(levels, inherited):
    # One generation: look at what was inherited, open files of our own, have a child.
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    shut = [number for number in inherited if not is_open(number)]
    if shut:
        os.write(1, b"shut %r\\n" % shut)
        os._exit(3)
    own = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    if levels == 1:
        os._exit(0)
    code = descend(levels - 1, inherited + own)
    os._exit(code)

runner = asyncio.Runner()
c = AsyncCoordinator(url, engine=engine)
runner.run(c.open())
hold = runner.run(c.lock("ancestor").acquire())
print("family", descend(generations, []), flush=True)
assert not hold.lost
runner.run(hold.release())
runner.run(c.close())
runner.close()
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
@pytest.mark.parametrize("generations", [2, 3])
def test_grandchildren_close_nothing(
    database: str, worker: Callable[..., Worker], engine: str, generations: int
) -> None:
    """The parent connects, the child opens files, and every later generation finds open what it inherits."""
    parent = worker(FAMILY, database, engine, str(generations))
    assert parent.expect("family", 30) == "0"
    assert parent.wait() == 0


ANOTHER = """
import asyncio, os, sys
from pgconcert import AsyncCoordinator

url, engine = sys.argv[1:3]

async def once(name):
    async with AsyncCoordinator(url, engine=engine) as c, c.lock(name):
        pass

runner = asyncio.Runner()
c = AsyncCoordinator(url, engine=engine)
runner.run(c.open())
hold = runner.run(c.lock("ancestor").acquire())
child = os.fork()
if not child:
    asyncio.set_event_loop(None)
    with asyncio.Runner() as own:
        mine = AsyncCoordinator(url, engine=engine)
        own.run(mine.open())
        held = own.run(mine.lock("child").acquire())
        grandchild = os.fork()
        if not grandchild:
            assert held.lost and hold.lost
            asyncio.run(once("grandchild"))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        assert not held.lost
        own.run(held.release())
        own.run(mine.close())
    os._exit(code)
print("family", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
assert not hold.lost
runner.run(hold.release())
runner.run(c.close())
runner.close()
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_every_generation_has_its_own(database: str, worker: Callable[..., Worker], engine: str) -> None:
    """Parent, child and grandchild each lock with a coordinator of their own, and disturb nobody."""
    parent = worker(ANOTHER, database, engine)
    assert parent.expect("family", 30) == "0"
    assert parent.wait() == 0
