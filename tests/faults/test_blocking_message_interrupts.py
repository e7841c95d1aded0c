"""Ctrl-C at any instant while a thread publishes, receives, asks, or opens and closes what listens.

Theory. As with locks (``test_blocking_interrupts.py``), whatever must not be left half done is done on the engine.
Taking a message is done by the thread itself, by steps between which no handler of a signal can run; so a message is
either still in hand, for whoever asks next, or with the caller. Two holes are Python's own: between an entry and its
block, and before an exit begins. What was entered there is left when it is dropped.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import secrets
import sys
from collections.abc import Callable, Iterator

import pytest

from pgconcert.blocking import Coordinator
from pgconcert.blocking import coordinator as exits
from pgconcert.enginethread import EngineThread
from pgconcert.pubsub.message import Message
from pgconcert.testing import eventually
from tests.faults.blocking_interrupted_messages import PROGRAM
from tests.faults.interrupts import Injector, everywhere
from tests.postgres.threads import Running, engines
from tests.processes import Worker
from tests.unit.threadmessages import handler_threads, nobody_listens

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:.* was dropped without close:ResourceWarning"),
]

every_step = pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on sys.settrace leaves opcodes out")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What an interrupt drops is reported, hundreds of times."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


@pytest.fixture
def world() -> str:
    """A world of one process."""
    return f"memory://{secrets.token_hex(8)}"


def subscribe(c: Coordinator) -> None:
    with c.subscribe("x", "y"):
        pass


def receive(c: Coordinator) -> None:
    with c.subscribe("x") as messages:
        c.publish("x", "1")
        for message in messages:
            assert message.text == "1"
            break
        c.publish("x", json=2)
        assert messages.get(timeout=5).json() == 2


def listen(c: Coordinator) -> None:
    with c.listen({"x": lambda message: None}):
        c.publish("x")


def ask(c: Coordinator) -> None:
    assert c.request("echo", "text").text == "text"


def send(c: Coordinator) -> None:
    c.publish_many([("x", "1"), ("x", b"\0")])
    c.publish("x", "t" * 8000)


def fan_out(c: Coordinator) -> None:
    fanout = c.fanout("f", str)
    with fanout.subscribe() as values:
        fanout.notify("1")
        assert values.get() == "1"


def hook(c: Coordinator) -> None:
    c.on_reconnect(lambda reconnected: None)()


@every_step
@pytest.mark.parametrize("work", [subscribe, receive, listen, ask, send, fan_out, hook], ids=lambda work: work.__name__)
def test_an_interrupt_at_every_step(world: str, work: Callable[[Coordinator], object]) -> None:
    """Wherever it comes, nobody is left who listens, and no thread; and the work can be done."""
    with Coordinator(world) as c, Coordinator(world) as other, other.listen({"echo": lambda message: message.payload}):
        places = 0
        for where in everywhere(lambda: work(c)):
            places += 1
            eventually(lambda: nobody_listens(c), what=f"nobody listens after an interrupt in {where}")
        assert places > 10
        threads = c._open_messages.threads if c._open_messages else None
        assert threads is not None
        if work is not hook:  # its stop may be what was interrupted
            assert not threads._users


@every_step
@pytest.mark.parametrize("how", ["get", "next"])
@pytest.mark.parametrize("capacity", [1, 1024])
def test_no_message_is_lost(world: str, how: str, capacity: int) -> None:
    """Interrupted at every step of taking it, the message is there for the next one, in its order."""
    with Coordinator(world) as c, Coordinator(world) as other, c.subscribe("x", capacity=capacity) as messages:
        take: Callable[[], Message] = messages.get if how == "get" else messages.__next__
        taken: list[Message] = []
        sent = 0
        interrupted = True
        while interrupted:
            injector = Injector(sent + 1)
            other.publish("x", str(sent))
            sent += 1
            injector.run(lambda: taken.append(take()))
            interrupted = injector.where is not None
            while capacity == 1 and len(taken) < sent:
                taken.append(messages.get(timeout=5))
        while len(taken) < sent:
            taken.append(messages.get(timeout=5))
    assert [int(message.text) for message in taken] == list(range(sent))
    assert sent > 5


@every_step
@pytest.mark.parametrize("capacity", [16, 1024])
def test_another_thread_gets_what_was_not_taken(world: str, capacity: int) -> None:
    """It sleeps, and nobody but the interrupted one was told; and it is told all the same."""
    with Coordinator(world) as c, Coordinator(world) as other, c.subscribe("x", capacity=capacity) as messages:
        mine: list[Message] = []
        theirs: list[Message] = []
        taker = Running(lambda: theirs.extend(messages))
        sent = 0

        def attempt() -> None:
            with contextlib.suppress(TimeoutError):
                mine.append(messages.get(timeout=0.001))

        def all_came() -> bool:
            return len(mine) + len(theirs) == sent

        interrupted = True
        at = 0
        while interrupted:
            at += 1
            injector = Injector(at)
            other.publish_many([("x", str(number)) for number in (sent, sent + 1)])
            sent += 2
            injector.run(attempt)
            interrupted = injector.where is not None
            eventually(all_came, what=f"all came after an interrupt in {injector.where}")
    taker.result()
    assert sorted(int(message.text) for message in mine + theirs) == list(range(sent))
    assert at > 5


@every_step
@pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")
@pytest.mark.long
def test_an_interrupt_at_every_step_of_a_life(world: str) -> None:
    """Opened, used and closed: whatever is interrupted, what the exit of the interpreter does ends it."""

    def life() -> None:
        with Coordinator(world) as c, c.listen({"x": lambda message: None}), c.subscribe("x") as messages:
            c.publish("x", "1")
            next(messages)

    gc.disable()  # the interpreter cannot bear an injected interrupt in a finaliser that the collector calls
    places = 0
    for where in everywhere(life):
        places += 1
        exits._close_all()
        if where.startswith("EngineThread.join") and EngineThread._current is not None:
            EngineThread._current.leave()  # it was joined, and nobody knows it: an idle thread, and nothing else
        eventually(lambda: engines() + handler_threads() == 0, what=f"all ended after an interrupt in {where}")
        if not places % 50:
            gc.collect()  # loops of engines that were never begun
    assert places > 200
    gc.collect()


def random_interrupts(database: str, process: Worker, count: int, limit: float) -> None:
    met = json.loads(process.expect("nothing is lost", limit))
    assert sum(met.values()) >= count
    assert len(met) == 6, met
    process.send("go on")
    assert process.expect("closed") == "0"
    assert process.wait() == 0


def test_random_interrupts(database: str, worker: Callable[..., Worker]) -> None:
    random_interrupts(database, worker(PROGRAM, database, "200"), 200, 50)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_many_random_interrupts(database: str, worker: Callable[..., Worker]) -> None:
    random_interrupts(database, worker(PROGRAM, database, "4000"), 4000, 500)
