"""Processes that fork, end, or are told to end, with subscriptions and handlers open.

Theory: each test is a program of its own, run with every warning shown. A child that was forked has nothing and harms
nobody; an end does not hang and says nothing that is not the program's own; a shutdown handles what was queued.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from pgconcert.testing import eventually, sessions
from tests.processes import Worker, importing_tests, spawn
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Start = Callable[..., Worker]
LOOPS = ["asyncio", "uvloop"]
ENGINES = ["loop", "thread"]

BEGIN = """
import asyncio, gc, os, sys, traceback
from pgconcert import AsyncCoordinator, Coordinator, CoordinatorClosed, Gap
url, engine, loop = sys.argv[1:4]

def runner():
    if loop == "uvloop":
        import uvloop
        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()
"""

FORK = (
    BEGIN
    + """
def refused(call):
    try:
        call()
    except CoordinatorClosed as error:
        return "fork" in str(error)
    return False

def in_a_child():
    pid = os.fork()
    if not pid:
        code = 0
        try:
            async def use():
                await c.publish("forked", "by the child")
            def run(work):
                try:
                    work.send(None)
                except StopIteration:
                    pass
            assert refused(lambda: run(use()))
            assert refused(lambda: c.subscribe("forked"))
            assert refused(lambda: c.listen({"forked": print}))
            gc.collect()
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

with runner() as work:
    c = AsyncCoordinator(url, engine=engine, network_timeout=60)
    work.run(c.open())
    handled = []

    async def begin():
        messages = c.subscribe("forked", gaps="yield")
        await messages.__aenter__()
        return messages, await c.listen({"forked": lambda message: handled.append(message.text)})

    messages, handling = work.run(begin())

    async def hear(text):
        await c.publish("forked", text)
        return (await messages.get(20)).text

    assert work.run(hear("before")) == "before"
    before = [link.server_pid for link in c.health().links]
    for number in range(3):
        assert in_a_child() == 0
        assert work.run(hear(str(number))) == str(number)
    assert [link.server_pid for link in c.health().links] == before
    assert messages.statistics.gaps == {}
    work.run(handling.close())
    assert handled == ["before", "0", "1", "2"], handled

    def of_its_own():
        # a child may open its own, and hears what the parent says
        pid = os.fork()
        if not pid:
            async def hear_the_parent():
                async with AsyncCoordinator(url, engine=engine) as mine, mine.subscribe("forked") as own:
                    await mine.publish("forked", "by the child")
                    assert (await own.get(20)).text == "by the child"
            code = 0
            try:
                asyncio.run(hear_the_parent())
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert of_its_own() == 0
    async def get():
        return await messages.get(20)
    heard = work.run(get())
    assert (heard.text, heard.own) == ("by the child", False)
    work.run(messages.close())
    work.run(c.close())
print("done", flush=True)
"""
)

ENDS = {
    # what the body does, exit code, last line of standard error
    "return": ("return", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "error": ("raise RuntimeError('of the program')", 1, "RuntimeError: of the program"),
    "os._exit": ("os._exit(4)", 4, ""),
    "interrupt": ("os.kill(os.getpid(), 2); await asyncio.sleep(60)", -2, "KeyboardInterrupt"),
}

OPEN = (
    BEGIN
    + """
async def main():
    c = AsyncCoordinator(url, engine=engine)
    await c.open()
    kept = c.subscribe("open", "more")
    await kept.__aenter__()
    async def handler(message):
        await asyncio.sleep(60)
    handling = await c.listen({"open": handler})
    async def take():
        async with c.subscribe("open") as messages:
            async for message in messages:
                pass
    async def ask():
        await c.request("nobody", "x", timeout=60)
    tasks = [asyncio.create_task(take()) for _ in range(3)] + [asyncio.create_task(ask())]
    await c.publish("open", "x")
    await kept.get(20)
    print("open", flush=True)
    END

with runner() as work:
    work.run(main())
"""
)

BLOCKING = """
import os, sys, threading
from pgconcert import BrokerClosed, Coordinator

c = Coordinator(sys.argv[1])
c.open()
kept = c.subscribe("open")
kept.__enter__()
handling = c.listen({"open": lambda message: print("handled", flush=True)})
handling.__enter__()
def take():
    try:
        with c.subscribe("open") as messages:
            for message in messages:
                pass
    except BrokerClosed:
        pass
threading.Thread(target=take, daemon=True).start()
c.publish("open", "x")
kept.get(20)
END
"""


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """It runs with every warning shown, those of finalisers too."""
    command = [sys.executable, "-u", "-W", "default", "-c", source, *arguments]
    process = spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=importing_tests())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def own_words(errors: bytes) -> str:
    """Without the reports of what the program left open, each with a line of source: they are a promise, not noise."""
    return re.sub(r".*was dropped without close\n(  .*\n)?", "", errors.decode())


def last_line(words: str) -> str:
    return (words.strip().splitlines() or [""])[-1]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fork_while_subscribed(server: Server, database: str, worker: Start, engine: str, loop: str) -> None:
    """The child is refused, and may open its own; the parent misses nothing."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    process = worker(FORK, database, engine, loop)
    process.expect("done", 60)
    assert process.wait() == 0
    eventually(lambda: not sessions(database))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.long
def test_the_end_of_a_program(server: Server, database: str, end: str, engine: str, loop: str) -> None:
    """It does not hang, and has one traceback at most: its own."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    statement, code, last = ENDS[end]
    with program(OPEN.replace("END", statement), database, engine, loop) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors.decode()
    assert said == b"open\n"
    assert last_line(own_words(errors)) == last, errors.decode()
    assert errors.count(b"Traceback") <= (2 if end == "interrupt" else 1 if last else 0), errors.decode()
    assert b"never" not in errors, errors.decode()
    assert b"destroyed" not in errors, errors.decode()
    eventually(lambda: not sessions(database))


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os._exit(4)", "raise RuntimeError('of the program')"])
def test_the_end_of_a_program_with_threads(server: Server, database: str, end: str) -> None:
    with program(BLOCKING.replace("END", end), database) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == {"": 0, "sys": 3, "os": 4, "raise": 1}[end.partition(".")[0].partition(" ")[0]]
    assert last_line(own_words(errors)) == ("RuntimeError: of the program" if "raise" in end else ""), errors.decode()
    eventually(lambda: not sessions(database))


DRAIN = (
    BEGIN
    + """
from pgconcert.shutdown import graceful_shutdown

async def main():
    handled = []
    async def handler(message):
        await asyncio.sleep(0.01)
        handled.append(int(message.text))
    c = AsyncCoordinator(url, engine=engine)
    await c.open()
    async with c.subscribe("drained") as marker:
        handling = await c.listen({"drained": handler})
        async with graceful_shutdown(handling, c, timeout=30):
            print("ready", flush=True)
            for _ in range(50):
                await marker.get(20)
            print("queued", flush=True)
            await asyncio.Event().wait()
    print("handled", len(handled), handled == sorted(handled), flush=True)

with runner() as work:
    work.run(main())
"""
)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.long
def test_a_shutdown_drains(
    server: Server, database: str, worker: Start, engine: str, loop: str, number: signal.Signals
) -> None:
    """What was queued when the signal came is handled before the program ends."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    process = worker(DRAIN, database, engine, loop)
    process.expect("ready", 30)
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("select count(pg_notify('drained', n::text)) from generate_series(1, 50) n")
    process.expect("queued", 30)
    os.kill(process.pid, number)
    assert process.expect("handled", 30) == "50 True"
    assert process.wait() == 0
    eventually(lambda: not sessions(database))
