"""What the caller's code may raise on the engine thread of the process without ending it.

Here live tests of filters, codecs, readers of events and handlers of releases that want to end the program, with
``sys.exit()`` or otherwise. Theory: the engine thread belongs to everybody, so such a wish ends the call that had it,
and is told; every lock stays held, and every link goes on.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from pgconcert import ConfigurationError
from pgconcert.blocking import Coordinator, Hold
from pgconcert.enginethread import EngineThread
from pgconcert.events import Event, HandlerFailed
from pgconcert.testing import eventually
from tests.postgres.threads import Running, engines
from tests.unit.channellocks import blocking_lock_of, two_for_threads
from tests.unit.threadmessages import lose_connection

ENDS = [SystemExit, KeyboardInterrupt, GeneratorExit]


class Odd(BaseException):
    """Something that is no ``Exception``, and no wish to end the program."""


@pytest.fixture
def world(unique: str) -> str:
    """The address of a world of this test's own."""
    return f"memory://{unique}"


@pytest.fixture
def c(world: str) -> Iterator[Coordinator]:
    """A coordinator of threads."""
    with Coordinator(world) as c:
        yield c


@pytest.fixture
def other(world: str) -> Iterator[Coordinator]:
    """Another process, to the backend; both live on the one engine thread."""
    with Coordinator(world) as other:
        yield other


@pytest.fixture
def engine(c: Coordinator) -> Iterator[threading.Thread]:
    """The engine thread; it is the same at the end, and still runs."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "pgconcert-engine"]
    yield thread
    assert thread.is_alive()
    assert engines() == 1


def works(c: Coordinator, other: Coordinator, kept: Hold) -> None:
    """Locks are held, and messages go from one to the other."""

    def try_it() -> None:
        assert other.lock("kept").try_acquire() is None
        with c.subscribe("afterwards", timeout=10) as messages:
            other.publish("afterwards", "x")
            assert messages.get(10).text == "x"

    Running(try_it).result()
    assert not kept.lost


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.usefixtures("engine")
def test_a_filter(c: Coordinator, other: Coordinator, error: type[BaseException]) -> None:
    asked = threading.Event()

    def where(message: object) -> bool:
        asked.set()
        raise error

    with c.lock("kept").acquire() as kept, c.subscribe("x", where=where), c.subscribe("x") as beside:
        other.publish("x", "1")
        assert asked.wait(30)
        assert beside.get(10).text == "1"
        works(c, other, kept)


class Leaving:
    """A codec that cannot decode."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.asked = threading.Event()

    def encode(self, value: str) -> bytes:
        return value.encode()

    def decode(self, raw: bytes) -> str:
        self.asked.set()
        raise self.error


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.usefixtures("engine")
def test_a_codec(c: Coordinator, other: Coordinator, error: type[BaseException]) -> None:
    codec = Leaving(error)
    with c.lock("kept").acquire() as kept, c.fanout("x", str, codec=codec).subscribe():
        other.publish("x", "1")
        assert codec.asked.wait(30)
        works(c, other, kept)


@pytest.mark.parametrize("error", ENDS)
@pytest.mark.usefixtures("engine")
def test_a_reader_of_events(c: Coordinator, other: Coordinator, error: type[BaseException]) -> None:
    """It is asked about the loss of the lock, and the loss is known all the same."""
    asked = threading.Event()

    def read(event: Event) -> None:
        asked.set()
        raise error

    with other.lock("kept").acquire() as kept, c.subscribe("x"):
        lost = c.lock("lost").acquire()
        stop = c.events.subscribe(read)
        lose_connection(c)
        assert asked.wait(30)
        eventually(lambda: lost.lost)
        stop()
        works(other, c, kept)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Odd])
def test_a_handler_of_releases(world: str, error: type[BaseException]) -> None:
    """It runs on a thread of its own, and ends no other."""
    with two_for_threads(world) as (mine, theirs):
        failed: list[BaseException] = []
        theirs._lock._events.subscribe(lambda event: failed.append(event.error), HandlerFailed)

        def handler(channel: str) -> None:
            raise error(channel)

        assert mine.acquire()
        assert not theirs.acquire()
        theirs.on_release(handler)
        mine.release()
        eventually(lambda: failed)
        assert [type(one) for one in failed] == [error]
        assert Running(theirs.acquire).result()
        assert engines() == 1


def test_a_handler_of_releases_that_is_a_coroutine_function(c: Coordinator) -> None:
    """Nobody would await it."""

    async def handler(channel: str) -> None:
        raise AssertionError

    with blocking_lock_of(c) as lock, pytest.raises(ConfigurationError, match="handler"):
        lock.on_release(handler)


def test_what_was_posted_behind_it_is_run(caplog: pytest.LogCaptureFixture) -> None:
    """In its order, and the wish is told; to the engine's loop it makes no difference how it was asked."""
    engine = EngineThread.join()
    try:
        seen: list[int] = []
        done = threading.Event()
        gate = threading.Event()
        posts: list[Callable[[], object]] = [gate.wait, lambda: seen.append(1), sys.exit, lambda: seen.append(2)]
        with caplog.at_level(logging.ERROR, "asyncio"):
            for call in (*posts, sys.exit, lambda: seen.append(3), done.set):
                engine.crossing.post(call)
            gate.set()
            assert done.wait(30)
            done.clear()
            engine.loop.call_soon_threadsafe(sys.exit)
            engine.loop.call_soon_threadsafe(done.set)
            assert done.wait(30)
        assert seen == [1, 2, 3]
        assert caplog.text.count("wanted to end it") == 3
    finally:
        engine.leave()
