"""The interpreter exits while the blocking twin is in use: nothing hangs, everything is free, and nobody is noisy.

Theory. At exit Python waits for the threads that are not daemons, then calls what was registered with ``atexit``, the
last one first, and then stops the daemons wherever they are. Ours, registered when the blocking twin is imported,
closes every coordinator that is still open, within a bounded time; whatever it does not reach in that time the kernel
does by closing the sockets. So a function that was registered after the import may still use its coordinator, and one
that was registered before is told that it is closed.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pgconcert.testing import FaultProxy, eventually, sessions
from tests.processes import importing_tests, spawn
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

LIMIT = 40.0

START = """
import atexit, os, sys, threading, time
{before}
from pgconcert import CoordinatorClosed, LockLost
from pgconcert.blocking import Coordinator

assert threading.active_count() == 1, "importing it starts a thread"
url = sys.argv[1]
c = Coordinator(url, name="leaves")
c.open()
other = Coordinator(url, name="other")
other.open()

def until_heard():
    # from Python 3.12 on no connection can be begun once the main thread has ended, for that needs a thread
    while not any(link.role == "listen" and link.state == "ready" for link in other.health().links):
        time.sleep(0.001)
"""

HOLDS = (
    START
    + """
hold = c.lock("one").acquire()
print("holds", flush=True)
"""
)

IN_A_BLOCK = (
    START
    + """
with c.lock("one"), c.lock_all(["two", "three"]), c.semaphore("s", 2):
    print("holds", flush=True)
    {end}
print("after", flush=True)
"""
)

DAEMONS = (
    START
    + """
hold = c.lock("one").acquire()
permit = c.semaphore("s", 1).acquire()

def wait(wanted):
    try:
        wanted.acquire()
    except (CoordinatorClosed, LockLost):  # or what the first one gave back at its end
        pass

for wanted in (c.lock("one"), other.lock("one"), other.lock_all(["one", "two"]), other.semaphore("s", 1)):
    threading.Thread(target=wait, args=(wanted,), daemon=True).start()
threading.Thread(target=hold.wait_lost, daemon=True).start()
while c.health().locks_waited_for < 1 or other.health().locks_waited_for < 2:
    time.sleep(0.001)
until_heard()
print("holds", flush=True)
"""
)

BUSY_DAEMONS = (
    START
    + """
def work(lock):
    try:
        while True:
            with lock:
                begun.append(lock)
    except (CoordinatorClosed, LockLost):
        pass

begun = []
for name in ("one", "two", "three"):
    threading.Thread(target=work, args=(c.lock(name),), daemon=True).start()
while len(begun) < 100:
    time.sleep(0.001)
print("holds", flush=True)
"""
)

THREAD = (
    START
    + """
def work(word):
    with c.lock("two"), other.lock("one"):
        print(word, flush=True)

def hand_over(word):
    hold = c.lock("one").acquire()
    thread = threading.Thread(target=work, args=(word,))
    thread.start()
    until_heard()
    return hold, thread

hold, thread = hand_over("before")
hold.release()
thread.join()
hold, thread = hand_over("worked")

def release_at_the_end():
    threading.main_thread().join()
    hold.release()

threading.Thread(target=release_at_the_end).start()
print("holds", flush=True)
"""
)

AT_EXIT = (
    START
    + """
def late():
    with c.lock("late") as hold, c.lock_all(["a", "b"]):
        print("late worked", hold.lost, flush=True)

atexit.register(late)
hold = c.lock("one").acquire()
print("holds", flush=True)
"""
)

EARLY = """
def early():
    try:
        c.lock("early")
    except CoordinatorClosed:
        print("early was told", flush=True)
    c.close()

atexit.register(early)
"""

FORGOTTEN = (
    START
    + """
import gc
kept = c.lock("one").acquire()
del c, kept
gc.collect()
print("holds", flush=True)
"""
)

FROZEN = (
    START
    + """
hold = c.lock("one").acquire()
print("holds", flush=True)
sys.stdin.readline()
"""
)


@contextmanager
def program(source: str, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """It runs with every warning shown, those of finalisers too."""
    command = [sys.executable, "-u", "-W", "default", "-c", source, url]
    pipe = subprocess.PIPE
    process = spawn(command, env=importing_tests(), stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def own_words(errors: bytes) -> str:
    """Standard error without the one line that reports a hold which was lost or dropped: that is a promise."""
    report = re.compile(r"^(.*was dropped without release.*|'(one|two|three|s)'.* was lost: .*|\s*warnings\.warn.*)?$")
    return "\n".join(line for line in errors.decode().splitlines() if not report.match(line))


def ends(source: str, url: str, said: list[str], code: int = 0, last: str = "") -> None:
    """It ends by itself, in time, with no more words than its own, and leaves nothing on the server."""
    with program(source, url) as process:
        out, errors = process.communicate(timeout=LIMIT)
    words = own_words(errors)
    assert process.returncode == code, words
    assert out.decode().splitlines() == said
    assert (words.splitlines() or [""])[-1] == last, words
    assert words.count("Traceback") == bool(last), words
    eventually(lambda: not sessions(url), what="no session is left")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        pytest.param(HOLDS, ["holds"], id="a hold is out"),
        pytest.param(DAEMONS, ["holds"], id="daemons wait"),
        pytest.param(BUSY_DAEMONS, ["holds"], id="daemons work"),
        pytest.param(THREAD, ["before", "holds", "worked"], id="a thread is waited for"),
        pytest.param(FORGOTTEN, ["holds"], id="nobody has it any more"),
    ],
)
def test_the_end_of_a_program(server: Server, database: str, source: str, said: list[str]) -> None:
    ends(source.format(before=""), database, said)


def test_functions_that_run_at_exit(server: Server, database: str) -> None:
    """What was registered after the import works; what was registered before is told, and may close again."""
    ends(AT_EXIT.format(before=EARLY), database, ["holds", "late worked False", "early was told"])


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        ("pass", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise RuntimeError('of the program')", 1, "RuntimeError: of the program"),
        ("os._exit(4)", 4, ""),
    ],
)
def test_an_end_inside_a_block(server: Server, database: str, end: str, code: int, last: str) -> None:
    source = IN_A_BLOCK.format(before="", end=end)
    ends(source, database, ["holds"] + (["after"] if end == "pass" else []), code, last)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("end", ["time.sleep(60)", "other.lock('one').acquire()"], ids=["working", "waiting"])
def test_a_signal(server: Server, database: str, how: signal.Signals, end: str) -> None:
    with program(IN_A_BLOCK.format(before="", end=end), database) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holds\n"
        process.send_signal(how)
        _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == -how
    words = own_words(errors)
    assert (words.splitlines() or [""])[-1] == ("KeyboardInterrupt" if how is signal.SIGINT else "")
    assert words.count("Traceback") == (how is signal.SIGINT), words
    eventually(lambda: not sessions(database), what="no session is left")


@pytest.mark.parametrize("freeze", ["pause", "refuse"])
def test_the_server_is_frozen(proxy: FaultProxy, database: str, freeze: str) -> None:
    """The exit waits for a while, and no longer; the kernel closes the sockets."""
    stop: Callable[[], None] = proxy.pause if freeze == "pause" else proxy.refuse
    with program(FROZEN.format(before=""), proxy.url(database)) as process:
        assert process.stdout
        assert process.stdout.readline() == b"holds\n"
        stop()
        if freeze == "refuse":
            proxy.cut()
        _, errors = process.communicate(b"end\n", timeout=LIMIT)
    assert process.returncode == 0
    assert "Traceback" not in own_words(errors)
    proxy.accept()
    proxy.resume()
    eventually(lambda: not sessions(database), what="no session is left")
