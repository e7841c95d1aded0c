"""A process has no file descriptor left: the engine thread cannot be started, and whoever asks is told so at once.

Theory: a thread that fails while it starts tells nobody, and whoever waits for it waits for ever; therefore everything
that can fail is made by the one who asks. A program of its own uses up its descriptors, tries, and gives them back.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.processes import Worker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

PROGRAM = """
import asyncio, gc, os, resource, sys, threading
from pgconcert import AsyncCoordinator, Unavailable

url, spare = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

async def main():
    async with AsyncCoordinator(url, engine="thread") as c, c.lock("before"):
        pass
    taken = []
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for _ in range(spare):
        os.close(taken.pop())
    for _ in range(3):
        c = AsyncCoordinator(url, engine="thread")
        try:
            await asyncio.wait_for(c.open(), 30)
        except Unavailable as error:
            assert "engine thread" in str(error), error
        else:
            raise AssertionError("opened without a descriptor")
        await c.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "pgconcert-engine"]
    gc.collect()  # a loop that was made by half is a cycle
    free = os.dup(0) if spare else None
    for number in taken:
        os.close(number)
    if free is not None:
        os.close(free)
    async with AsyncCoordinator(url, engine="thread") as c, c.lock("after") as hold:
        assert not hold.lost
    print("worked", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_the_engine_thread_cannot_be_started(database: str, worker: Callable[..., Worker], spare: int) -> None:
    """With no descriptor left, or too few: `Unavailable` each time, and nothing is lost for the time after."""
    program = worker(PROGRAM, database, str(spare))
    program.expect("worked", 30)
    assert program.wait() == 0
