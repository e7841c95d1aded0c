"""Handlers, requests and hooks in a world of one process: on which threads they run, and how all of it ends.

Theory: two coordinators of one world are two processes to it. A handler that has to wait waits for an event of the
test, and never for a time.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pgconcert import ConfigurationError
from pgconcert.blocking import Coordinator
from pgconcert.blocking.listening import Listening
from pgconcert.errors import (
    BrokerClosed,
    RequestFailed,
    RequestTimeout,
)
from pgconcert.events import DeliveryFailed, HandlerFailed, HandlersAbandoned, HookFailed
from pgconcert.pubsub.message import Gap, Message
from pgconcert.pubsub.pings import Reconnected
from pgconcert.testing import Snapshot, eventually
from tests.postgres.threads import Running, engines
from tests.unit.threadmessages import HANDLER, handler_threads, lose_connection, many, nobody_listens


@pytest.fixture
def world() -> str:
    """A world of one process."""
    return f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def c(world: str) -> Iterator[Coordinator]:
    with Coordinator(world, name="one") as coordinator:
        yield coordinator


@pytest.fixture
def other(world: str) -> Iterator[Coordinator]:
    with Coordinator(world, name="other") as coordinator:
        yield coordinator


def test_handlers_run_on_threads_in_order(c: Coordinator, other: Coordinator) -> None:
    seen: dict[str, list[int]] = {"x": [], "y": []}
    names = set()
    enough = threading.Semaphore(0)

    def handler(message: Message) -> None:
        names.add(threading.current_thread().name)
        seen[message.channel].append(int(message.text))
        enough.release()

    before = Snapshot.take()
    with c.listen({"x": handler, "y": handler}) as listening:
        assert listening.channels == ("x", "y")
        assert listening.active
        assert repr(listening) == "<Listening 'x', 'y' open>"
        for number in range(100):
            other.publish("x", str(number))
            other.publish("y", str(number))
        for _ in range(200):
            assert enough.acquire(timeout=30)
    assert seen == {"x": list(range(100)), "y": list(range(100))}
    assert names == {HANDLER}
    assert not listening.active
    before.check()
    assert handler_threads() == 0
    assert nobody_listens(c)


def test_concurrency(c: Coordinator, other: Coordinator) -> None:
    """So many at once for a channel, and no more; other channels are not concerned."""
    meet = threading.Barrier(3, timeout=20)
    inside = 0
    most = 0
    lock = threading.Lock()

    def handler(message: Message) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        meet.wait()
        with lock:
            inside -= 1

    done = threading.Semaphore(0)
    with c.listen({"x": handler}, concurrency=3), c.listen({"y": lambda message: done.release()}):
        many(other, "x", 9)
        many(other, "y", 3)
        for _ in range(3):
            assert done.acquire(timeout=30)
        eventually(lambda: handler_threads() >= 3)
    assert most == 3


def test_handler_threads_are_bounded(world: str, other: Coordinator) -> None:
    go = threading.Event()
    began = threading.Semaphore(0)

    def stuck(message: Message) -> None:
        began.release()
        go.wait(30)

    with Coordinator(world, handler_threads=2) as c:
        with c.listen({"x": stuck}, concurrency=5):
            many(other, "x", 5)
            for _ in range(2):
                assert began.acquire(timeout=30)
            assert handler_threads() == 2
            assert not began.acquire(blocking=False)
            go.set()
        eventually(lambda: handler_threads() == 0)
    for wrong in (0, 1001, True, "8"):
        with pytest.raises(ConfigurationError, match="handler_threads"):
            Coordinator(world, handler_threads=wrong)  # type: ignore[arg-type]


def test_a_handler_that_raises_is_contained(c: Coordinator, other: Coordinator) -> None:
    """Whatever it raises: the next message comes, and it is told."""
    failed: list[BaseException] = []
    c.events.subscribe(lambda event: failed.append(event.error), HandlerFailed)
    seen = threading.Semaphore(0)
    errors = {"0": ValueError("v"), "1": asyncio.CancelledError(), "2": SystemExit(3), "3": StopIteration()}

    def handler(message: Message) -> None:
        seen.release()
        if message.text in errors:
            raise errors[message.text]

    with c.listen({"x": handler}):
        many(other, "x", 5)
        for _ in range(5):
            assert seen.acquire(timeout=30)
    assert failed[0] is errors["0"]
    assert failed[1] is errors["1"]
    assert [type(error) for error in failed[2:]] == [RuntimeError, RuntimeError]
    assert engines() == 1


def test_coroutine_functions_are_refused(c: Coordinator, other: Coordinator) -> None:
    async def handler(message: object) -> None:
        raise AssertionError

    class Consumer:
        channel = "x"

        async def deliver(self, raw: bytes) -> None:
            raise AssertionError

    class Callable:
        async def __call__(self, message: object) -> None:
            raise AssertionError

    for wrong in (
        lambda: c.listen({"x": cast(Any, handler)}),
        lambda: c.listen({"x": cast(Any, Callable())}),
        lambda: c.listen({}, catch_all=cast(Any, handler)),
        lambda: c.listen({"x": print}, on_gap=handler),
        lambda: c.attach(Consumer()),
        lambda: c.on_reconnect(handler),
    ):
        with pytest.raises(ConfigurationError, match="AsyncCoordinator"):
            wrong()
    for nothing in (
        lambda: c.listen({}),
        lambda: c.listen({"x": 5}),  # type: ignore[dict-item]
        lambda: c.listen({"x": print}, concurrency=0),
        lambda: c.on_reconnect(5),  # type: ignore[arg-type]
        lambda: c.attach(object()),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigurationError):
            nothing()
    # one that hides behind a plain function is found when it is called
    with c.listen({"x": lambda message: cast(Any, handler(message))}):
        with pytest.raises(RequestFailed, match="nobody here awaits"):
            other.request("x")


def test_catch_all_and_gaps(c: Coordinator, other: Coordinator) -> None:
    every: list[str] = []
    gaps: list[Gap] = []
    with c.listen({"x": lambda message: None}, catch_all=lambda message: every.append(message.channel)):
        with c.listen({"y": lambda message: None}, on_gap=gaps.append), c.subscribe("z"):
            for channel in ("x", "y", "z", "nobody"):
                other.publish(channel, "1")
            eventually(lambda: len(every) == 3)
            lose_connection(c)
            eventually(lambda: gaps)
    assert sorted(every) == ["x", "y", "z"]
    assert [gap.reason for gap in gaps] == ["reconnect"]


def test_closing_handles_what_is_queued(c: Coordinator, other: Coordinator) -> None:
    seen: list[int] = []
    go = threading.Event()

    def handler(message: Message) -> None:
        go.wait(30)
        seen.append(int(message.text))

    with c.listen({"x": handler}) as listening:
        many(other, "x", 50)
        eventually(lambda: handler_threads() == 1)
        closing = Running(listening.close)
        assert not listening.wait_closed(timeout=0.01)
        go.set()
        closing.result()
        assert listening.wait_closed(timeout=0)
    assert seen == list(range(50))


def test_closing_is_bounded(c: Coordinator, other: Coordinator) -> None:
    """A handler that is stuck is left alone, and told; its thread ends when it does."""
    told: list[HandlersAbandoned] = []
    c.events.subscribe(told.append, HandlersAbandoned)
    go = threading.Event()
    began = threading.Event()

    def stuck(message: Message) -> str:
        began.set()
        go.wait(30)
        return "nobody wants it"

    listening = c.listen({"x": stuck}).open()
    many(other, "x", 3)
    assert began.wait(30)
    listening.close(timeout=0)
    assert [(event.running, event.queued) for event in told] == [(1, 2)]
    assert listening.wait_closed()
    assert handler_threads() == 1
    go.set()
    eventually(lambda: handler_threads() == 0)
    listening.close()


def test_a_handler_closes_its_own_listening(c: Coordinator, other: Coordinator) -> None:
    """It does not wait for itself; what is queued behind it is handled."""
    seen: list[str] = []
    listenings: list[Listening] = []

    def handler(message: Message) -> str:
        listenings[0].close()
        seen.append(message.text)
        return "closed"

    listenings.append(c.listen({"x": handler}, close_timeout=1000).open())
    assert other.request("x", "1").text == "closed"
    assert listenings[0].wait_closed(timeout=20)
    assert seen == ["1"]


@pytest.mark.filterwarnings("error")
def test_a_handler_closes_the_coordinator(world: str, other: Coordinator) -> None:
    c = Coordinator(world)
    c.open()
    closed = threading.Event()

    def handler(message: Message) -> None:
        c.close()
        closed.set()

    listening = c.listen({"x": handler}, close_timeout=1000).open()
    other.publish("x")
    assert closed.wait(30)
    assert listening.wait_closed(timeout=20)
    c.close()
    with pytest.raises(BrokerClosed):
        c.publish("x")
    eventually(lambda: handler_threads() == 0)


def test_closing_the_coordinator_ends_handlers(world: str, other: Coordinator) -> None:
    """In good order: what is queued is handled, and handlers may still use it."""
    seen: list[str] = []
    go = threading.Event()
    c = Coordinator(world)
    c.open()

    def handler(message: Message) -> None:
        go.wait(30)
        c.publish("done", message.text)
        seen.append(message.text)

    with other.subscribe("done") as done:
        listening = c.listen({"x": handler}).open()
        many(other, "x", 3)
        eventually(lambda: handler_threads() == 1)
        closing = Running(c.close)
        go.set()
        closing.result()
        assert seen == ["0", "1", "2"]
        assert [done.get(timeout=30).text for _ in range(3)] == seen
    assert listening.wait_closed()
    listening.close()
    eventually(lambda: handler_threads() == 0)


def test_attach(c: Coordinator, other: Coordinator) -> None:
    class Consumer:
        channel = "x"

        def __init__(self) -> None:
            self.got: list[bytes] = []

        def deliver(self, raw: bytes) -> None:
            self.got.append(raw)

    consumer = Consumer()
    with c.attach(consumer):
        other.publish("x", b"\0")
        eventually(lambda: consumer.got == [b"\0"])


def test_requests(c: Coordinator, other: Coordinator) -> None:
    answers: dict[str, Any] = {"upper": lambda m: m.text.upper(), "none": lambda m: None, "bytes": lambda m: b"\0"}

    def raising(message: Message) -> str:
        raise ValueError("of its own")

    with c.listen(answers | {"raises": raising, "number": lambda message: cast(Any, 5)}):
        assert other.request("upper", "text").text == "TEXT"
        assert other.request("none").payload == b""
        assert other.request("bytes", json=[1]).payload == b"\0"
        with pytest.raises(RequestFailed, match="ValueError: of its own"):
            other.request("raises")
        with pytest.raises(RequestFailed, match="could not be sent"):
            other.request("number")
        with pytest.raises(RequestTimeout, match=r"within 0\.05 s"):
            other.request("nobody", timeout=0.05)
        asking = [Running(lambda n=n: other.request("upper", f"a{n}").text) for n in range(20)]  # type: ignore[misc]
        assert [each.result() for each in asking] == [f"A{n}" for n in range(20)]
    assert nobody_listens(other)


def test_a_handler_may_ask_another(c: Coordinator, other: Coordinator) -> None:
    with (
        c.listen({"inner": lambda message: "in"}),
        c.listen({"outer": lambda message: c.request("inner").text + "out"}),
    ):
        assert other.request("outer").text == "inout"


def test_an_answer_that_nobody_asked_for(c: Coordinator, other: Coordinator) -> None:
    told: list[DeliveryFailed] = []
    c.events.subscribe(told.append, DeliveryFailed)
    with c.listen({"x": lambda message: "an answer"}):
        other.publish("x")
        eventually(lambda: told)


def test_hooks(c: Coordinator) -> None:
    """On a handler thread, at the beginning and after each reconnect; stopped, no more, and the thread ends."""
    told: list[tuple[Reconnected, str]] = []

    def hook(reconnected: Reconnected) -> None:
        told.append((reconnected, threading.current_thread().name))

    stop = c.on_reconnect(hook)
    later: list[Reconnected] = []
    stop_later = c.on_reconnect(later.append, initial=False)
    with c.subscribe("x"):
        eventually(lambda: len(told) == 1)
        assert told[0] == (Reconnected(initial=True, deaf_for=None), HANDLER)
        lose_connection(c)
        eventually(lambda: len(told) == 2 and later)
        assert told[1][0].deaf_for is not None
        stop()
        stop_later()
        stop()
        eventually(lambda: handler_threads() == 0)
        lose_connection(c)
    assert len(told) == 2
    assert len(later) == 1


def test_a_hook_that_raises_is_called_again(c: Coordinator) -> None:
    told: list[HookFailed] = []
    c.events.subscribe(told.append, HookFailed)
    calls = 0

    def load_state(reconnected: Reconnected) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("not yet")

    c.on_reconnect(load_state)
    with c.subscribe("x"):
        eventually(lambda: calls == 2, 10)
    assert "load_state raised ValueError: not yet" in str(told[0])
