"""The words of messages in the blocking twin, on a real server and in a world of one process; exits and gevent too.

Here lives what a program with threads sees. Batches, wake-ups and the life of handlers stand in
``tests/unit/test_blocking_messages.py``, interrupts in ``tests/faults``. Theory: two coordinators in one process are
two processes to the backend.
"""

from __future__ import annotations

import importlib.util
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest

from pgconcert import Gap, Message, PayloadTooLarge, PublishError, Unavailable
from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually
from tests.postgres.threads import Running
from tests.processes import Worker
from tests.servers import Server


@pytest.fixture(params=["server", "memory"])
def address(request: pytest.FixtureRequest, database: str) -> str:
    """Where to coordinate."""
    return database if request.param == "server" else f"memory://{secrets.token_hex(8)}"


@pytest.fixture
def two(address: str) -> Iterator[tuple[Coordinator, Coordinator]]:
    """Two coordinators, as two processes would have them; with our tables."""
    with (
        Coordinator(address, name="one", migrate=True) as one,
        Coordinator(address, name="other", migrate=True) as other,
    ):
        yield one, other


Two = tuple[Coordinator, Coordinator]


def test_what_is_sent_is_received(two: Two) -> None:
    """Every form of a payload, in order, by everybody who listens, ourselves too."""
    one, other = two
    with one.subscribe("a", "b", "a") as mine, other.subscribe("a") as theirs:
        assert mine.channels == ("a", "b")
        one.publish("a", "text")
        one.publish("a", b"\0\xff")
        one.publish("a", bytearray(b"bytes"))
        one.publish("a", json={"ä": [1, None]}, headers={"h": "ü"}, id=True)
        one.publish("a", "pgconcert:1 no envelope", id="our-own")
        one.publish("a")
        one.notify("a", "notified")
        one.publish_many([("a", "many"), ("b", "other channel"), ("a", b"\1\0")])
        own = [mine.get(timeout=20) for _ in range(10)]
        heard = [theirs.get(timeout=20) for _ in range(9)]
    assert [message.payload for message in heard] == [
        b"text",
        b"\0\xff",
        b"bytes",
        '{"ä":[1,null]}'.encode(),
        b"pgconcert:1 no envelope",
        b"",
        b"notified",
        b"many",
        b"\1\0",
    ]
    assert [message.payload for message in own if message.channel == "a"] == [message.payload for message in heard]
    assert [message.text for message in own if message.channel == "b"] == ["other channel"]
    assert all(message.own for message in own)
    assert not any(message.own for message in heard)
    assert heard[3].json() == {"ä": [1, None]}
    assert heard[3].headers == {"h": "ü"}
    assert heard[3].id is not None
    assert heard[4].id == "our-own"


def test_large_payloads(two: Two) -> None:
    one, other = two
    with other.subscribe("x") as messages:
        one.publish("x", "t" * 100_000, headers={"h": "i"})
        one.publish_many([("x", "small"), ("x", b"\0" * 8000)])
        got = [messages.get(timeout=20) for _ in range(3)]
    assert [message.payload for message in got] == [b"t" * 100_000, b"small", b"\0" * 8000]
    assert got[0].headers == {"h": "i"}


def test_large_payloads_need_our_tables(server: Server) -> None:
    with server.fresh_database() as database, Coordinator(database) as c:
        with pytest.raises(PayloadTooLarge, match="pgconcert schema apply"):
            c.publish("x", "t" * 8000)
        c.publish("x", "t" * 7999)


def test_many_threads_publish(two: Two) -> None:
    """Equal messages as often as they were sent, and each thread's in its order."""
    one, other = two
    threads, count = 8, 50
    with other.subscribe("x", capacity=2 * threads * count) as messages:

        def send(number: int) -> None:
            for place in range(count):
                one.publish("x", "the same")
                one.publish("x", f"{number}:{place}")

        for running in [Running(lambda n=n: send(n)) for n in range(threads)]:  # type: ignore[misc]
            running.result()
        texts = [messages.get(timeout=20).text for _ in range(2 * threads * count)]
    assert texts.count("the same") == threads * count
    for number in range(threads):
        mine = [text for text in texts if text.startswith(f"{number}:")]
        assert mine == [f"{number}:{place}" for place in range(count)]


def test_one_link_listens_for_all(two: Two, address: str, server: Server) -> None:
    one, other = two
    with one.subscribe("a"), one.subscribe("b") as second, one.listen({"c": print}), one.fanout("d", str).subscribe():
        other.publish("b", "heard")
        assert second.get(timeout=20).text == "heard"
        assert one.listening == "connected"
        roles = [link.role for link in one.health().links]
    if address.startswith("postgresql"):
        assert roles.count("listen") == 1


def test_requests_and_replies(two: Two) -> None:
    one, other = two
    with one.listen({"upper": lambda message: message.text.upper()}, concurrency=4):
        asking = [Running(lambda n=n: other.request("upper", f"a{n}", timeout=20).text) for n in range(20)]  # type: ignore[misc]
        assert [each.result() for each in asking] == [f"A{n}" for n in range(20)]
    assert other._open_messages is not None
    assert not other._open_messages.requests._users


@dataclass
class Order:
    number: int
    items: list[str]


def test_fan_out(two: Two) -> None:
    one, other = two
    with one.fanout("orders", Order).subscribe(lambda order: order.number > 1) as orders:
        there = other.fanout("orders", Order)
        for number in (1, 2, 3):
            there.publish(Order(number, ["a"]))
        assert [orders.get(timeout=20) for _ in range(2)] == [Order(2, ["a"]), Order(3, ["a"])]


def test_fan_out_in_a_transaction(database: str) -> None:
    """On a blocking connection it goes with its transaction; an async one is refused, and nothing is sent."""
    with Coordinator(database) as c, psycopg.connect(database) as connection:
        values = c.fanout("values", dict)
        with values.subscribe() as heard:
            values.publish({"n": 1}, connection)
            connection.rollback()
            values.publish({"n": 2}, connection)
            values.publish({"n": 3})
            assert heard.get(timeout=20) == {"n": 3}
            connection.commit()
            assert heard.get(timeout=20) == {"n": 2}


def test_one_process_of_several(two: Two) -> None:
    """The second takes over when the first leaves, and really receives; what the first had in hand it alone had."""
    one, other = two
    first = one.subscribe("x", delivery="one-process").__enter__()
    with other.subscribe("x", delivery="one-process", gaps="yield") as standby:
        assert (first.active, standby.active) == (True, False)
        assert "standing by" in repr(standby)
        other.publish("x", "1")
        assert first.get(timeout=20).text == "1"
        first.close()
        eventually(lambda: standby.active)
        gap = standby.get(timeout=20)
        assert isinstance(gap, Gap)
        assert gap.reason == "takeover"
        one.publish("x", "2")
        second = standby.get(timeout=20)
        assert isinstance(second, Message)
        assert second.text == "2"


def test_one_of_all_handles_each(two: Two) -> None:
    one, other = two
    count = 40
    lock = threading.Lock()
    seen: list[str] = []

    def handler(message: Message) -> None:
        with lock:
            seen.append(message.text)

    with (
        one.listen({"x": handler}, delivery="one-each"),
        other.listen({"x": handler}, delivery="one-each"),
    ):
        for number in range(count):
            one.publish("x", str(number), id=True)
        eventually(lambda: len(seen) >= count)
    assert sorted(map(int, seen)) == list(range(count))


def test_a_killed_connection_is_a_gap(database: str, server: Server) -> None:
    """Every number comes or is covered by a gap, for whoever subscribes and for handlers; hooks are called again."""
    reconnected = threading.Semaphore(0)
    told: list[str] = []
    handled: list[Message | Gap] = []
    with Coordinator(database, name="one") as one, Coordinator(database, name="other") as other:
        one.on_reconnect(lambda event: reconnected.release())
        with (
            one.subscribe("x", gaps="yield") as messages,
            one.listen({"x": handled.append}, on_gap=handled.append),
        ):
            assert reconnected.acquire(timeout=20)
            for kill in range(3):
                other.publish("x", f"before {kill}")
                pids = [link.server_pid for link in one.health().links if link.role == "listen"]
                assert server.kill_backend(pids[0] or 0)
                assert reconnected.acquire(timeout=20)
                other.publish("x", f"after {kill}")
                while not told or told[-1] != f"after {kill}":
                    item = messages.get(timeout=20)
                    told.append(item.reason if isinstance(item, Gap) else item.text)
            eventually(lambda: [item.text for item in handled[-1:] if isinstance(item, Message)] == ["after 2"])
        assert messages.statistics.gaps == {"reconnect": 3}
    gaps = [place for place, item in enumerate(told) if item == "reconnect"]
    assert [told.index(f"after {kill}") > gaps[kill] for kill in range(3)] == [True] * 3
    assert [item for item in told if item.startswith("after")] == ["after 0", "after 1", "after 2"]
    assert [item.reason for item in handled if isinstance(item, Gap)] == ["reconnect"] * 3


def test_without_a_server_nothing_is_sent(unreachable: str) -> None:
    """Publishing tells; entering a subscription waits as long as it was told, and an interrupt is not needed."""
    with Coordinator(unreachable, connect_timeout=1) as c:
        with pytest.raises((Unavailable, PublishError)):
            c.publish("x")
        with pytest.raises(Unavailable, match=r"within 0\.2 s"), c.subscribe("x", timeout=0.2):
            pass
        with pytest.raises(Unavailable):
            c.listen({"x": print}, timeout=0.2).open()


@pytest.fixture
def unreachable() -> str:
    """Where nobody answers."""
    return "postgresql://nobody@127.0.0.1:9/none"


EXIT = """
import sys, threading
from pgconcert.blocking import Coordinator

c = Coordinator(sys.argv[1], name="leaves")
c.open()
messages = c.subscribe("x").__enter__()
values = c.fanout("f", str).subscribe().__enter__()
listening = c.listen({"y": lambda message: None}).open()
replying = c.listen({"r": lambda message: "here"}).open()
c.on_reconnect(lambda event: None)

def consume():
    for message in messages:
        pass

threading.Thread(target=consume, daemon=True).start()
assert c.request("r").text == "here"
print("ready", flush=True)
"""


def test_the_interpreter_exits(address: str, worker: Callable[..., Worker]) -> None:
    """With everything open: nothing hangs, and nobody is noisy."""
    process = worker(EXIT, address)
    process.expect("ready")
    assert process.wait() == 0


STUCK = """
import sys, threading
from pgconcert.blocking import Coordinator

c = Coordinator(sys.argv[1], name="leaves")
c.open()
began = threading.Event()

def stuck(message):
    began.set()
    threading.Event().wait()

listening = c.listen({"x": stuck}).open()
c.publish("x")
began.wait()
print("ready", flush=True)
"""


def test_a_handler_that_is_stuck_does_not_hold_up_the_exit(worker: Callable[..., Worker]) -> None:
    process = worker(STUCK, "memory://stuck")
    process.expect("ready")
    assert process.wait() == 0


GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from pgconcert.blocking import Coordinator

ticks = 0

def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.001)

gevent.spawn(tick)
with Coordinator(sys.argv[1], name="one") as c, Coordinator(sys.argv[1], name="other") as other:
    with c.subscribe("x") as messages, c.listen({"y": lambda message: message.payload}):
        taking = gevent.spawn(lambda: [messages.get(timeout=20).text for _ in range(100)])
        before = ticks
        while ticks < before + 3:  # else a wait has blocked every greenlet
            gevent.sleep(0.001)
        for number in range(100):
            other.publish("x", str(number))
        assert taking.get(timeout=20) == [str(number) for number in range(100)]
        asking = [gevent.spawn(lambda: other.request("y", "z", timeout=20).text) for _ in range(10)]
        assert [each.get(timeout=20) for each in asking] == ["z"] * 10
        try:
            messages.get(timeout=0.01)
        except TimeoutError:
            print("works", flush=True)
"""


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_gevent(address: str, worker: Callable[..., Worker]) -> None:
    process = worker(GEVENT, address, fresh=True)
    process.expect("works")
    assert process.wait() == 0
