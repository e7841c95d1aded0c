"""Publishing by threads in a world of one process; fan-out; and where messages are refused: in a loop, in a child.

Theory: two coordinators of one world are two processes to it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator

import pytest

from pgconcert import ConfigurationError, CoordinatorClosed
from pgconcert.blocking import Coordinator
from pgconcert.errors import (
    BrokerClosed,
    ChannelInvalid,
    DecodeFailed,
    ListenerOverflow,
    PayloadInvalid,
    PayloadTooLarge,
)
from pgconcert.testing import eventually
from tests.postgres.threads import engines
from tests.unit.threadmessages import many


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


def test_wrong_messages_are_refused_before_anything_is_sent(c: Coordinator, other: Coordinator) -> None:
    with other.subscribe("x") as messages:
        for channel in ("", "y" * 64, "pgconcert:x", "a\0b", 5):
            with pytest.raises(ChannelInvalid):
                c.publish(channel, "x")  # type: ignore[arg-type]
        for payload in (5, None, "\ud800"):
            with pytest.raises(PayloadInvalid):
                c.publish("x", payload)  # type: ignore[arg-type]
        with pytest.raises(PayloadInvalid):
            c.publish("x", headers={"h": "x" * 2001})
        with pytest.raises(ConfigurationError):
            c.publish("x", "y", json=1)
        with pytest.raises(ChannelInvalid):
            c.publish_many([("x", "1"), ("", "2")])
        c.publish("x", "right")
        assert messages.get(timeout=30).text == "right"


def test_large_payloads(c: Coordinator, other: Coordinator) -> None:
    with other.subscribe("x") as messages:
        large = os.urandom(20_000)
        c.publish("x", large, headers={"a": "b"})
        c.publish_many([("x", b"small"), ("x", "t" * 8000)])
        got = [messages.get(timeout=30) for _ in range(3)]
        assert [each.payload for each in got] == [large, b"small", b"t" * 8000]
        assert got[0].headers == {"a": "b"}
        with pytest.raises(PayloadTooLarge, match="largest of all"):
            c.publish("x", bytes(64 * 2**20 + 1))


def test_where_an_event_loop_runs(c: Coordinator) -> None:
    """Whatever would stop it refuses, and tells whom to ask; what waits for nobody works."""
    open_one = c.subscribe("open").__enter__()

    async def inside() -> None:
        for wait in (
            lambda: c.publish("x", "y"),
            lambda: c.publish_many([("x", "y")]),
            lambda: c.notify("x", "y"),
            lambda: c.request("x"),
            lambda: c.subscribe("x").__enter__(),
            open_one.get,
            lambda: next(open_one),
            open_one.close,
            lambda: c.listen({"x": print}).open(),
            lambda: c.fanout("x", str).publish("y"),
        ):
            with pytest.raises(ConfigurationError, match="use AsyncCoordinator there"):
                wait()
        c.bounce()
        c.on_reconnect(print, initial=False)()
        assert c.listening in ("solitary", "connected", "isolated")
        assert open_one.statistics.received == 0

    asyncio.run(inside())
    open_one.close()


def test_fan_out(c: Coordinator, other: Coordinator) -> None:
    mine, theirs = c.fanout("f", dict), other.fanout("f", dict)
    assert mine.channel == "f"
    with mine.subscribe() as every, mine.subscribe(lambda value: value["n"] > 1, gaps="yield") as some:
        theirs.publish({"n": 1})
        mine.notify({"n": 2})
        mine.deliver(b'{"n": 3}')
        assert [every.get(timeout=30) for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert [some.get(timeout=30) for _ in range(2)] == [{"n": 2}, {"n": 3}]
        with pytest.raises(DecodeFailed):
            mine.deliver(b"{")
        with pytest.raises(PayloadInvalid):
            mine.publish({"n": object()})
        assert (mine.statistics.listeners, mine.statistics.undecodable, mine.statistics.delivered) == (2, 1, 5)
        assert repr(mine) == "<FanOut 'f', 2 listeners>"
        assert repr(every) == "<FanOutSubscription 'f' open, 0 queued>"
        assert every.statistics.received == 3
    assert mine.statistics.listeners == 0


def test_null_is_a_value(c: Coordinator) -> None:
    fanout = c.fanout("f", object)
    with fanout.subscribe() as values:
        fanout.publish(None)
        assert next(values) is None
        fanout.publish(None)
        assert values.get(timeout=30) is None


def test_fan_out_tells_of_the_end_of_a_listener(c: Coordinator) -> None:
    fanout = c.fanout("f", str, overflow="error")
    with fanout.subscribe(capacity=1) as slow, fanout.subscribe() as quick:
        fanout.notify("1")
        with pytest.raises(ListenerOverflow):
            fanout.notify("2")
        fanout.notify("3")
        assert [quick.get() for _ in range(3)] == ["1", "2", "3"]
        assert slow.get() == "1"
        with pytest.raises(ListenerOverflow):
            slow.get()


def test_recovery(c: Coordinator) -> None:
    fanout = c.fanout("f", str)
    bounced: list[int] = []
    assert not fanout.polled(1)
    fanout.enable_recovery(2, bounce=lambda: bounced.append(1))
    assert [fanout.polled(found) for found in (3, 0, 4, 1)] == [False, False, True, False]
    fanout.deliver("by the wire")
    assert not fanout.polled(1)
    assert (fanout.statistics.saved, fanout.statistics.streak, bounced) == (9, 1, [1])
    fanout.enable_recovery(1, bounce=c.bounce)
    assert fanout.polled(1)


def test_a_closed_coordinator_has_no_fan_out(world: str) -> None:
    with Coordinator(world) as c:
        fanout = c.fanout("f", str)
    for late in (
        lambda: fanout.publish("x"),
        lambda: fanout.notify("x"),
        lambda: fanout.deliver("x"),
        lambda: fanout.polled(1),
        fanout.subscribe,
    ):
        with pytest.raises(BrokerClosed):
            late()
    assert fanout.statistics.listeners == 0


def test_a_forked_child_has_no_messages(c: Coordinator, other: Coordinator) -> None:
    """What the parent has in hand is the parent's."""
    with c.subscribe("x") as messages:
        many(other, "x", 100)
        eventually(lambda: messages.statistics.queued == 100)
        assert next(messages).text == "0"
        child = os.fork()
        if not child:
            verdict = 1
            try:
                refused = 0
                for use in (
                    lambda: next(messages),
                    lambda: messages.get(0),
                    lambda: c.publish("x"),
                    lambda: c.subscribe("x"),
                    lambda: c.listening,
                ):
                    try:
                        use()
                    except CoordinatorClosed as error:
                        refused += "fork" in str(error)
                messages.close()
                verdict = 0 if refused == 5 else 2
            finally:
                os._exit(verdict)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [int(messages.get(timeout=30).text) for _ in range(99)] == list(range(1, 100))


def test_what_the_backend_lacks_is_refused() -> None:
    with Coordinator("null://") as c:
        for use in (lambda: c.publish("x"), lambda: c.subscribe("x"), lambda: c.listening):
            with pytest.raises(ConfigurationError, match="no messages"):
                use()


def test_the_engine_ends_with_its_last_coordinator(world: str) -> None:
    with Coordinator(world) as c, c.subscribe("x"), c.listen({"y": print}):
        pass
    assert engines() == 0
