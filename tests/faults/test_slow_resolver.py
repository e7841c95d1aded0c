"""Name look-ups that take long, or for ever: the event loop, other links and the end of the process do not care.

Theory: look-ups go through Python's `socket.getaddrinfo`, in a thread of their own. So a process that replaces it sees
what a broken resolver would do. The slow one answers only when the loop has gone round some times since it was asked:
if the loop stood still meanwhile, it would never answer.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgconcert.testing import rewrite
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

SLOW = """
import asyncio, socket, sys, threading, time
from pgconcert import AsyncCoordinator

direct, named, engine, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
real, asked, went_round = socket.getaddrinfo, threading.Event(), threading.Event()

def slow(host, *args, **options):
    if host != "database.invalid":
        return real(host, *args, **options)
    asked.set()
    went_round.wait()
    return real("127.0.0.1", *args, **options)

socket.getaddrinfo = slow

async def main():
    async def tick(near):
        while not asked.is_set():
            await asyncio.sleep(0.01)
        end = time.monotonic() + seconds
        turns = 0
        while turns < 20 or time.monotonic() < end:
            async with near.lock("another"):
                turns += 1
            await asyncio.sleep(0.01)
        went_round.set()

    async with AsyncCoordinator(direct) as near, AsyncCoordinator(named, engine=engine, connect_timeout=60) as far:
        async with near.lock("near") as hold:
            ticking = asyncio.create_task(tick(near))
            async with far.lock("far"):
                assert went_round.is_set()
            await ticking
            assert not hold.lost
    print("done", flush=True)

asyncio.run(main())
"""

NEVER = """
import asyncio, socket, sys, threading
from pgconcert import AsyncCoordinator

socket.getaddrinfo = lambda *args, **options: (print("asked", flush=True), threading.Event().wait())

async def main():
    async with AsyncCoordinator(sys.argv[1], engine=sys.argv[2]) as c:
        try:
            await c.lock("never", timeout=0.5).acquire()
        except TimeoutError as error:
            print("told", error, flush=True)

asyncio.run(main())
print("over", flush=True)
"""


def named(server: Server, url: str) -> str:
    """The address with a name that no resolver knows, over TCP."""
    return rewrite(server.over_tcp(url), host="database.invalid", hostaddr=None)


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_slow_resolver_stops_nobody(
    server: Server, database: str, worker: Callable[..., Worker], engine: str
) -> None:
    process = worker(SLOW, database, named(server, database), engine, "1")
    process.expect("done", 60)
    assert process.wait() == 0


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_resolver_that_never_answers_does_not_hold_up_the_end(
    server: Server, database: str, worker: Callable[..., Worker], engine: str
) -> None:
    process = worker(NEVER, named(server, database), engine)
    process.expect("asked", 30)
    assert "'never' was not acquired within 0.5 s" in process.expect("told", 30)
    process.expect("over", 30)
    assert process.wait(30) == 0
