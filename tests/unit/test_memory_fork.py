"""`memory://` and `fork`: the child finds its worlds empty and owns nothing, and the parent does not notice it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.processes import Worker

CHILD = """
import asyncio, gc, os, sys
from pgconcert import AsyncCoordinator, CoordinatorClosed
from pgconcert.clock import FakeClock
from pgconcert.memory import World

engine = sys.argv[1]
clock = FakeClock()
world = World.named("w", clock=clock)
runner = asyncio.Runner()
c = AsyncCoordinator("memory://w", engine=engine)
runner.run(c.open())
hold = runner.run(c.lock("k", on_lost="report").acquire())
lock = c.lock("k")
partition = c.backend.partition()
partition.heal()

def child():
    assert hold.reason == "forked", hold
    assert world.empty and not world.members
    try:
        c.lock("k")
    except CoordinatorClosed as error:
        assert "before fork()" in str(error), error
    else:
        raise AssertionError("a child may not use it")
    assert not c.health().ready and "before fork()" in str(c.health()), c.health()
    clock.advance(100)

    async def work():
        async with AsyncCoordinator("memory://w", engine=engine) as mine, mine.lock("k", timeout=0):
            assert mine.backend.world is world
    asyncio.run(work())
    gc.collect()
    assert world.empty

pid = os.fork()
if not pid:
    try:
        child()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not hold.lost and not world.empty
runner.run(hold.release())
assert world.empty
runner.run(c.close())
runner.close()
print("done", flush=True)
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_child_has_an_empty_world(worker: Callable[..., Worker], engine: str) -> None:
    process = worker(CHILD, engine)
    process.expect("done", 50.0)
    assert process.wait() == 0
