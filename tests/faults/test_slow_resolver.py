"""Name look-ups that take long, or for ever: the event loop, other links and the end of the process do not care.

Theory: look-ups go through Python's `socket.getaddrinfo`, in a thread of their own. So a process that replaces it sees
what a broken resolver would do, and a task that counts turns of the loop sees whether the loop stands still.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgconcert.testing import rewrite
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(40)]

SLOW = """
import asyncio, socket, sys, threading, time
from pgconcert import AsyncCoordinator

direct, named, engine, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
real, asked = socket.getaddrinfo, threading.Event()

def slow(host, *args, **options):
    if host != "database.invalid":
        return real(host, *args, **options)
    asked.set()
    time.sleep(seconds)
    return real("127.0.0.1", *args, **options)

socket.getaddrinfo = slow

async def main():
    longest = 0.0
    async def tick():
        nonlocal longest
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            now = time.monotonic()
            longest, last = max(longest, now - last), now

    async with AsyncCoordinator(direct, network_timeout=0.6) as near, AsyncCoordinator(named, engine=engine) as far:
        async with near.lock("near") as hold:
            ticking = asyncio.create_task(tick())
            began = time.monotonic()
            async with far.lock("far"):
                waited = time.monotonic() - began
            ticking.cancel()
            assert not hold.lost
    assert asked.is_set()
    print("done", waited, longest, flush=True)

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
    process = worker(SLOW, database, named(server, database), engine, "3" if engine == "loop" else "1")
    waited, longest = map(float, process.expect("done", 30).split())
    assert waited >= (3 if engine == "loop" else 1)
    assert longest < waited / 2, "the event loop stood still during the look-up"
    assert process.wait() == 0


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_resolver_that_never_answers_does_not_hold_up_the_end(
    server: Server, database: str, worker: Callable[..., Worker], engine: str
) -> None:
    process = worker(NEVER, named(server, database), engine)
    process.expect("asked")
    assert "'never' was not acquired within 0.5 s" in process.expect("told")
    process.expect("over", 10)
    assert process.wait(10) == 0
