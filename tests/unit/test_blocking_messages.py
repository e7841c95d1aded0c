"""Subscriptions for threads in a world of one process: batches, wake-ups, and every end; publishing, forks.

Here lives what belongs to the blocking twin itself; what the words mean is the matter of the tests of asyncio and of
``tests/postgres/test_blocking_messages.py``. Theory: two coordinators of one world are two processes to it.
"""

from __future__ import annotations

import gc
import secrets
import threading
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest

from pgconcert import ConfigurationError, Unavailable
from pgconcert.blocking import Coordinator
from pgconcert.blocking.feed import batch
from pgconcert.errors import (
    BrokerClosed,
    ListenerOverflow,
    MessagesLost,
)
from pgconcert.events import HandlerFailed
from pgconcert.memory import MemoryBackend
from pgconcert.pubsub.message import Gap, Message
from pgconcert.testing import eventually
from tests.postgres.threads import Running
from tests.unit.threadmessages import lose_connection, many, nobody_listens


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


def test_what_is_in_hand_is_small_beside_the_capacity() -> None:
    assert [batch(capacity) for capacity in (1, 15, 16, 100, 1024, 10**6)] == [1, 1, 1, 6, 64, 64]


def test_a_batch_is_one_crossing(c: Coordinator, other: Coordinator) -> None:
    """The engine is asked once for each batch, and not for each message."""
    with c.subscribe("x") as messages:
        many(other, "x", 640)
        eventually(lambda: messages.statistics.queued == 640)
        asked = 0
        ask = messages._feed.ask

        def counting(call: Any, stay: bool) -> None:
            nonlocal asked
            asked += 1
            ask(call, stay)

        messages._feed.ask = counting  # type: ignore[method-assign]
        assert [int(messages.get().text) for _ in range(640)] == list(range(640))
        assert asked == 10


def test_overflow_is_honest(c: Coordinator, other: Coordinator) -> None:
    """What is in hand and what is queued is the capacity and a batch; everything else is a gap with a count."""
    with c.subscribe("x", capacity=32, gaps="yield") as messages:
        other.publish("x", "first")
        first = messages.get(timeout=30)
        assert isinstance(first, Message)
        many(other, "x", 3)
        assert messages.get(timeout=30)
        many(other, "x", 100)
        eventually(lambda: messages.statistics.received + messages.statistics.dropped == 104)
        queued = messages.statistics.queued
        assert 32 <= queued <= 32 + batch(32)
        got = [messages.get(timeout=30) for _ in range(queued + 1)]
        assert all(isinstance(each, Message) for each in got[:-1])
        gap = got[-1]
        assert isinstance(gap, Gap)
        assert (gap.reason, gap.count) == ("overflow", 102 - queued)
        with pytest.raises(TimeoutError):
            messages.get(timeout=0)


def test_overflow_of_the_oldest(c: Coordinator, other: Coordinator) -> None:
    with c.subscribe("x", capacity=2, overflow="drop_oldest", gaps="yield") as messages:
        many(other, "x", 5)
        eventually(lambda: messages.statistics.dropped == 3)
        gap = messages.get()
        assert isinstance(gap, Gap)
        assert gap.count == 3
        assert [cast(Message, messages.get()).text for _ in range(2)] == ["3", "4"]


def test_overflow_as_an_error(c: Coordinator, other: Coordinator) -> None:
    """It comes behind what is queued, and again whenever somebody asks, in every thread."""
    with c.subscribe("x", capacity=2, overflow="error") as messages:
        many(other, "x", 5)
        assert [messages.get(timeout=30).text for _ in range(2)] == ["0", "1"]
        errors = [Running(messages.get).error() for _ in range(3)]
        assert all(isinstance(error, ListenerOverflow) for error in errors)
        assert len({id(error) for error in errors}) == 3
        with pytest.raises(ListenerOverflow):
            next(messages)
        assert not messages.active


def test_gaps_raise_and_the_subscription_goes_on(c: Coordinator, other: Coordinator) -> None:
    with c.subscribe("x", gaps="raise") as messages:
        lose_connection(c)
        with pytest.raises(MessagesLost) as lost:
            next(messages)
        assert isinstance(lost.value.gap, Gap)
        assert lost.value.gap.reason == "reconnect"
        other.publish("x", "after")
        assert next(messages).text == "after"
        lose_connection(c)
        with pytest.raises(MessagesLost):
            messages.get(timeout=30)


def test_several_threads_share_one_subscription(c: Coordinator, other: Coordinator) -> None:
    """Each message goes to one of them, none is left behind, and each sees its own in order."""
    count, threads = 3000, 5
    with c.subscribe("x", capacity=count) as messages:
        enough = threading.Semaphore(0)

        def take() -> list[int]:
            mine = []
            for message in messages:
                mine.append(int(message.text))
                enough.release()
            return mine

        takers = [Running(take) for _ in range(threads)]
        for start in range(0, count, 10):
            other.publish_many([("x", str(number)) for number in range(start, start + 10)])
        for _ in range(count):
            assert enough.acquire(timeout=30)
    taken = [taker.result() for taker in takers]
    assert sorted(number for mine in taken for number in mine) == list(range(count))
    assert all(mine == sorted(mine) for mine in taken)


@pytest.mark.parametrize("capacity", [1, 16, 1024])
def test_whoever_gives_up_leaves_its_message_to_others(c: Coordinator, other: Coordinator, capacity: int) -> None:
    """Time limits run out all the time while messages come; whatever the order, nobody sleeps beside a message."""
    count = 400
    with c.subscribe("x", capacity=capacity, overflow="drop_newest", gaps="count") as messages:
        got: list[str] = []

        def impatient() -> None:
            while True:
                try:
                    got.append(messages.get(timeout=0.0005).text)
                except TimeoutError:
                    continue
                except BrokerClosed:
                    return

        def patient() -> None:
            got.extend(message.text for message in messages)

        takers = [Running(work) for work in (impatient, impatient, patient, patient)]
        for number in range(count):
            other.publish("x", str(number))
            eventually(lambda number=number: number + 1 - len(got) < capacity, 30)  # type: ignore[misc]
        eventually(lambda: len(got) + messages.statistics.dropped == count, 30, what="all have come")
        assert not messages.statistics.dropped
    for taker in takers:
        taker.result()
    assert len(set(got)) == len(got)


def test_get_waits_as_long_as_it_was_told(c: Coordinator, other: Coordinator) -> None:
    with c.subscribe("x") as messages:
        for timeout in (0, 0.02):
            with pytest.raises(TimeoutError, match=f"within {timeout:g} s"):
                messages.get(timeout)
        other.publish("x", "there")
        eventually(lambda: messages.statistics.queued)
        assert messages.get(0).text == "there"
        waiting = Running(messages.get)
        other.publish("x", "later")
        assert waiting.result().text == "later"
        for wrong in (-1, "1", True):
            with pytest.raises(ConfigurationError, match="timeout"):
                messages.get(wrong)  # type: ignore[arg-type]


def test_filters(c: Coordinator, other: Coordinator) -> None:
    """They run on the engine, and one that raises costs its message only."""
    failed: list[HandlerFailed] = []
    c.events.subscribe(failed.append, HandlerFailed)
    where = []

    def even(message: Message) -> bool:
        where.append(threading.current_thread().name)
        return int(message.text) % 2 == 0

    with c.subscribe("x", where=even, gaps="yield") as messages, c.subscribe("x", skip_own=True) as others:
        for text in ("0", "1", "no number", "2"):
            other.publish("x", text)
        c.publish("x", "4")
        got: list[Message | Gap] = [messages.get(timeout=30) for _ in range(4)]
        assert [each.reason if isinstance(each, Gap) else each.text for each in got] == ["0", "filter", "2", "4"]
        assert set(where) == {"pgconcert-engine"}
        assert [others.get(timeout=30).text for _ in range(4)] == ["0", "1", "no number", "2"]
        with pytest.raises(TimeoutError):
            others.get(timeout=0)
    assert len(failed) == 1


def test_close_ends_an_iteration_elsewhere(c: Coordinator, other: Coordinator) -> None:
    """Whoever iterates comes to the end, whoever gets gets an error; what was queued is dropped."""
    messages = c.subscribe("x").__enter__()
    takers = [Running(lambda: [message.text for message in messages]) for _ in range(3)]
    getter = Running(messages.get)
    eventually(lambda: len(messages._feed._getters) == 4, what="all wait")
    Running(messages.close).result()
    assert [taker.result() for taker in takers] == [[], [], []]
    assert isinstance(getter.error(), BrokerClosed)
    assert list(messages) == []
    assert not messages.active
    with pytest.raises(BrokerClosed, match="was closed"):
        messages.get()
    messages.close()
    assert nobody_listens(c)
    assert repr(messages) == "<Subscription 'x' closed, 0 queued>"


def test_what_is_in_hand_is_dropped_at_the_close(c: Coordinator, other: Coordinator) -> None:
    with c.subscribe("x") as messages:
        many(other, "x", 200)
        eventually(lambda: messages.statistics.queued == 200)
        next(messages)
        assert messages._feed.ready
    assert not messages._feed.ready
    assert messages.statistics.queued == 0
    assert list(messages) == []


def test_the_coordinator_is_closed(world: str, other: Coordinator) -> None:
    """Everything that is queued is still to be had, however much it is; then comes the error, for everybody."""
    c = Coordinator(world)
    c.open()
    with c.subscribe("x") as messages, c.subscribe("y") as idle:
        many(other, "x", 500)
        eventually(lambda: messages.statistics.queued == 500)
        assert next(messages).text == "0"
        waiting = [Running(idle.get), Running(lambda: next(idle))]
        eventually(lambda: len(idle._feed._getters) == 2)
        c.close()
        assert [type(each.error()) for each in waiting] == [BrokerClosed, BrokerClosed]
        assert [int(messages.get().text) for _ in range(499)] == list(range(1, 500))
        with pytest.raises(BrokerClosed, match="coordinator was closed"):
            next(messages)
        with pytest.raises(BrokerClosed, match="coordinator was closed"):
            messages.get(timeout=0)
        assert not messages.active
    assert list(messages) == []
    for late in (
        lambda: c.publish("x"),
        lambda: c.publish_many([]),
        lambda: c.subscribe("x"),
        lambda: c.listen({"x": print}),
        lambda: c.request("x"),
        lambda: c.fanout("x", str),
        c.bounce,
        lambda: c.on_reconnect(print),
        lambda: c.listening,
    ):
        with pytest.raises(BrokerClosed, match="this coordinator is closed"):
            late()
    assert Coordinator(world).__repr__() == "<Coordinator new>"


def test_a_subscription_is_entered_once_and_only_then_open(c: Coordinator) -> None:
    messages = c.subscribe("x")
    for early in (messages.get, lambda: iter(messages), lambda: next(messages)):
        with pytest.raises(RuntimeError, match="not open"):
            early()
    messages.close()
    with messages:
        with pytest.raises(RuntimeError, match="entered once"), messages:
            pass
        assert messages.active
    with pytest.raises(RuntimeError, match="entered once"), messages:
        pass


def test_a_dropped_subscription_is_left(c: Coordinator) -> None:
    """What an exception between the entry and the block leaves behind."""
    messages = c.subscribe("x").__enter__()
    assert not nobody_listens(c)
    with pytest.warns(ResourceWarning, match="'x' open, 0 queued> was dropped without close"):
        del messages
    eventually(lambda: nobody_listens(c))


def test_nothing_keeps_a_subscription_alive(c: Coordinator, other: Coordinator) -> None:
    """No cycle: after its block it goes at once."""
    gc.disable()
    try:
        with c.subscribe("x") as messages:
            other.publish("x", "1")
            assert messages.get().text == "1"
            with pytest.raises(TimeoutError):
                messages.get(timeout=0)
        gone = weakref.ref(messages)
        del messages
        assert gone() is None
    finally:
        gc.enable()


def test_an_entry_that_fails_leaves_nothing(c: Coordinator) -> None:
    """Too slow, too: the connection is away."""
    with cast(MemoryBackend, c.backend).partition():
        with pytest.raises(Unavailable), c.subscribe("x", timeout=0.05):
            pass
    eventually(lambda: nobody_listens(c))


def test_an_entry_that_fails_wakes_who_waits_already(c: Coordinator) -> None:
    with cast(MemoryBackend, c.backend).partition():
        messages = c.subscribe("x", timeout=0.2)
        entering = Running(messages.__enter__)
        eventually(lambda: messages._entered)
        waiting = Running(messages.get)
        assert isinstance(entering.error(), Unavailable)
        assert isinstance(waiting.error(), BrokerClosed)


def test_what_was_made_before_the_close_and_used_after_it(world: str) -> None:
    with Coordinator(world) as c:
        messages, listening = c.subscribe("x"), c.listen({"x": print})
    with pytest.raises(BrokerClosed), messages:
        pass
    with pytest.raises(BrokerClosed):
        listening.open()
    listening.close()
