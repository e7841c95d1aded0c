"""Processes that end by ``graceful_shutdown``: their locks are free, and the exit status says how it went.

Theory. A program that has closed everything waits for a word before it ends: what is free until then was released, and
not freed by the kernel. A program that hangs is ended by the second signal, or by the limit, and the status says by
which signal. Nothing here is measured; a program that does not end fails its test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from pgconcert.testing import advisory_locks, eventually, sessions
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Start = Callable[..., Worker]

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGABRT]
each_signal = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)

WITH_ASYNCIO = """
import asyncio, signal, sys, time
from pgconcert import AsyncCoordinator
from pgconcert.shutdown import graceful_shutdown

async def forever():
    await asyncio.Event().wait()

def blocked():
    print("blocked", flush=True)
    time.sleep(600)

async def main(url):
    c = AsyncCoordinator(url)
    await c.open()
    async with graceful_shutdown({closing}, timeout={timeout}) as stop:
        kept = await c.lock("kept").acquire()
        async with c.lock("held"):
            print("holds", flush=True)
            {body}
    print("closed by", stop.cause and stop.cause.name, flush=True)
    sys.stdin.readline()
    {end}

{run}
"""

FOR_THREADS = """
import sys, threading, time
from pgconcert import Coordinator
from pgconcert.shutdown import graceful_shutdown

def blocked():
    print("blocked", flush=True)
    time.sleep(600)

c = Coordinator(sys.argv[1])
c.open()
with graceful_shutdown({closing}, timeout={timeout}) as stop:
    kept = c.lock("kept").acquire()
    with c.lock("held"):
        print("holds", flush=True)
        {body}
print("closed by", stop.cause and stop.cause.name, flush=True)
sys.stdin.readline()
{end}
"""

STUBBORN = """
            while True:
                try:
                    await forever()
                except asyncio.CancelledError:
                    pass
"""

LOOPS = {
    "asyncio": "asyncio.run(main(sys.argv[1]))",
    "uvloop": """
import uvloop
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main(sys.argv[1]))
""",
}


def with_asyncio(
    body: str = "await forever()", closing: str = "c", timeout: float = 600, end: str = "", loop: str = "asyncio"
) -> str:
    return WITH_ASYNCIO.format(body=body, closing=closing, timeout=timeout, end=end, run=LOOPS[loop])


def for_threads(
    body: str = "while True: time.sleep(0.1)", closing: str = "c", timeout: float = 600, end: str = "", loop: str = ""
) -> str:
    return FOR_THREADS.format(body=body, closing=closing, timeout=timeout, end=end)


PROGRAMS = {"asyncio": with_asyncio, "threads": for_threads}
both = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


def ends_by(worker: Worker, number: signal.Signals) -> bool:
    return worker.wait(30) == -number


@each_signal
@pytest.mark.parametrize(
    ("program", "loop"),
    [(with_asyncio, "asyncio"), (with_asyncio, "uvloop"), (for_threads, "")],
    ids=[*LOOPS, "threads"],
)
def test_locks_are_free_and_the_status_is_the_programs(
    server: Server, database: str, worker: Start, program: Callable[..., str], loop: str, number: signal.Signals
) -> None:
    """Released, and not by the death of the process; and it does not wait for the limit of ten minutes."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    running = worker(program(loop=loop), database)
    running.expect("holds")
    assert len(advisory_locks(database)) == 2
    os.kill(running.pid, number)
    assert running.expect("closed by") == number.name
    # the process is still there, and the server has only to notice the end of its sessions
    eventually(lambda: not sessions(database), what="no session is left")
    running.send("end")
    assert running.wait() == 0


@both
def test_another_status(server: Server, database: str, worker: Start, program: Callable[..., str]) -> None:
    running = worker(program(end="sys.exit(3)"), database)
    running.expect("holds")
    os.kill(running.pid, signal.SIGTERM)
    running.expect("closed by")
    running.send("end")
    assert running.wait() == 3


@both
def test_a_closing_that_fails(server: Server, database: str, worker: Start, program: Callable[..., str]) -> None:
    """The coordinator is closed all the same, and the status is not 0."""
    running = worker(program(closing="lambda: 1 / 0, c"), database)
    running.expect("holds")
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 1
    eventually(lambda: not sessions(database))


@each_signal
@pytest.mark.parametrize(
    ("program", "closing", "said"),
    [
        (with_asyncio, "lambda: print('waits', flush=True) or forever()", "waits"),
        (with_asyncio, "blocked", "blocked"),
        (for_threads, "blocked", "blocked"),
    ],
    ids=["waits", "blocks the loop", "threads"],
)
def test_the_second_signal_quits(
    server: Server,
    database: str,
    worker: Start,
    number: signal.Signals,
    program: Callable[..., str],
    closing: str,
    said: str,
) -> None:
    """At once, whatever hangs; the server frees the locks."""
    running = worker(program(closing=closing), database)
    running.expect("holds")
    os.kill(running.pid, signal.SIGTERM)
    running.expect(said)
    os.kill(running.pid, number)
    assert ends_by(running, number)
    eventually(lambda: not sessions(database))


@pytest.mark.parametrize(
    "source",
    [
        with_asyncio(body=STUBBORN, timeout=0.2),
        with_asyncio(body="time.sleep(600)", timeout=0.2),
        with_asyncio(closing="blocked", timeout=0.2),
        for_threads(closing="blocked", timeout=0.2),
    ],
    ids=["a stubborn body", "a body that blocks", "a closing that blocks", "a closing in threads"],
)
def test_the_limit(server: Server, database: str, worker: Start, source: str) -> None:
    """A program that does not leave is ended without a second signal."""
    running = worker(source, database)
    running.expect("holds")
    os.kill(running.pid, signal.SIGTERM)
    assert ends_by(running, signal.SIGTERM)
    eventually(lambda: not sessions(database))


def test_a_closing_that_waits_too_long(server: Server, database: str, worker: Start) -> None:
    """It is left, what comes after it is closed, and the status says that it went wrong."""
    # the limit after which the kernel ends it, a second later, is not for this test
    patient = "import pgconcert.shutdown; pgconcert.shutdown._GRACE = 600.0\n"
    running = worker(patient + with_asyncio(closing="lambda: forever(), c", timeout=0.2), database)
    running.expect("holds")
    os.kill(running.pid, signal.SIGTERM)
    assert running.wait() == 1
    eventually(lambda: not sessions(database))


def test_handlers_of_before_are_back(server: Server, database: str, worker: Start) -> None:
    """Behind the block a signal does what it did before it."""
    running = worker(with_asyncio(body="stop.stop(); await forever()"), database)
    running.expect("closed by")
    os.kill(running.pid, signal.SIGTERM)
    assert ends_by(running, signal.SIGTERM)


def test_abort_in_the_process(server: Server, database: str, worker: Start) -> None:
    """No handler written in Python runs for it; it ends the process, and the server frees the locks."""
    running = worker(with_asyncio(body="import ctypes; ctypes.CDLL(None).abort()"), database)
    running.expect("holds")
    assert ends_by(running, signal.SIGABRT)
    assert running.heard == ["holds"]
    eventually(lambda: not sessions(database))
