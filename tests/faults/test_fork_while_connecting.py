"""A process forks while it connects: the child keeps no socket of the connection that is being made.

Theory: a socket that a child inherits keeps the parent's session alive after the parent's death, and with the session
its locks. A proxy that says nothing holds the parent in the middle of connecting for as long as the test wants; the
parent is a program of its own and forks where its event loop does not run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pgconcert.testing import FaultProxy, eventually
from tests.faults.scenes import holders
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

PARENT = """
import asyncio, os, socket, sys, time
from pgconcert import AsyncCoordinator

url, engine, port = sys.argv[1], sys.argv[2], int(sys.argv[3])

def to_the_proxy():
    # How many of our descriptors are sockets whose other end is the proxy.
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.fromfd(int(name), socket.AF_INET, socket.SOCK_STREAM) as other:
                found += other.getpeername()[1] == port
        except (OSError, IndexError):
            pass  # no socket, or not one of this kind
    return found

runner = asyncio.Runner()
c = AsyncCoordinator(url, engine=engine, connect_timeout=60)
runner.run(c.open())

async def begin():
    claim = asyncio.create_task(c.lock("forked").acquire())
    while to_the_proxy() < 2:  # libpq's, and the copy that the loop watches
        await asyncio.sleep(0.01)
    return claim

claim = runner.run(begin())
said, says = os.pipe()
pid = os.fork()
if not pid:
    os.write(says, b"%d\\n" % to_the_proxy())
    time.sleep(50)
    os._exit(0)
print("child", pid, flush=True)
print("sockets", os.read(said, 100).decode().strip(), flush=True)
assert to_the_proxy() == 2
sys.stdin.readline()

async def finish():
    hold = await claim
    print("held", flush=True)
    await hold.wait_lost()

runner.run(finish())
"""


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_the_child_closes_the_socket_of_a_connection_being_made(
    server: Server, database: str, proxy: FaultProxy, worker: Callable[..., Worker], engine: str
) -> None:
    proxy.pause()
    parent = worker(PARENT, proxy.url(server.over_tcp(database)), engine, str(proxy.port))
    child = int(parent.expect("child"))
    try:
        assert parent.expect("sockets") == "0"
        proxy.resume()
        parent.send("go on")
        parent.expect("held")
        assert len(holders(database, "forked")) == 1
        parent.kill()
        # the child lives on; had it the socket, the server would believe that the parent does
        eventually(lambda: not holders(database, "forked"), 30, what="the lock of the dead parent is free")
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
