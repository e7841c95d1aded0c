"""A network that is silent, or swallows notifications only, and processes that stand still: told, and over again.

Theory: a black hole gives no sign. What must hold is the order: what was sent meanwhile comes, or a gap stands where it
should have come; and a publisher whose message is on its way when the network freezes learns that its fate is unknown.
Events are waited for and counted; the one bound in seconds is each test's own limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from pgconcert import AsyncCoordinator, Gap, Message, PublishUncertain, Unavailable
from pgconcert.events import LinkLost, ListenerDeaf, ListenerReady, MessagesMissed
from pgconcert.testing import FaultProxy, eventually, eventually_async
from tests.faults.message_history import Tail, judge
from tests.faults.message_worker import LAST, PROGRAM, Orders
from tests.faults.scenes import seen
from tests.faults.silence import PATIENCE, Haste
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(90)]

Engine = Literal["loop", "thread"]
Way = Literal["to_server", "to_client"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

FAR = "far"


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> Haste:
    """Silence is found out at once, where a test says so."""
    return Haste(monkeypatch)


@contextlib.asynccontextmanager
async def through(
    proxy: FaultProxy, server: Server, url: str, engine: Engine = "loop", connect_timeout: float = PATIENCE
) -> AsyncIterator[AsyncCoordinator]:
    """A coordinator that reaches the server by way of the proxy."""
    async with AsyncCoordinator(
        proxy.url(server.over_tcp(url)),
        name=FAR,
        network_timeout=PATIENCE,
        connect_timeout=connect_timeout,
        engine=engine,
    ) as c:
        yield c
        proxy.cut()  # what is frozen would take its time to say good-bye


async def item_of(messages: object) -> Message | Gap:
    item = await messages.get(30)  # type: ignore[attr-defined]
    assert isinstance(item, (Message, Gap))
    return item


@pytest.mark.parametrize("way", [None, "to_server", "to_client"])
@both_engines
async def test_a_frozen_network(
    server: Server, database: str, proxy: FaultProxy, haste: Haste, unique: str, way: Way | None, engine: Engine
) -> None:
    """The subscriber gets a gap in the place of what it missed, and the publisher learns that it cannot know."""
    channel = unique[:60]
    async with through(proxy, server, database, engine) as far, AsyncCoordinator(database) as near:
        lost = seen(far, LinkLost)
        async with far.subscribe(channel, gaps="yield") as messages:
            await far.publish(channel, "before")
            assert (await messages.get(30)).text == "before"  # type: ignore[union-attr]
            proxy.pause(way)
            await near.publish(channel, "missed, perhaps")
            with haste.of(FAR):
                with pytest.raises(PublishUncertain, match="no answer"):
                    await far.publish(channel, "uncertain")
                await eventually_async(lambda: {"listen", "publish"} <= {event.role for event in lost})
            proxy.cut()  # so that what was kept back does not arrive after all
            proxy.resume(way)
            gap = await item_of(messages)
            if isinstance(gap, Message):  # only what the server was told was frozen, and the rest flowed
                assert way == "to_server"
                assert gap.text == "missed, perhaps"
                gap = await item_of(messages)
            assert isinstance(gap, Gap)
            assert (gap.reason, gap.count, gap.channels) == ("reconnect", None, (channel,))
            await near.publish(channel, "after")
            await far.publish(channel, "and again")
            assert [(await messages.get(30)).text for _ in range(2)] == ["after", "and again"]  # type: ignore[union-attr]
            assert messages.statistics.gaps == {"reconnect": 1}


async def test_frozen_at_the_entry(server: Server, database: str, proxy: FaultProxy) -> None:
    """An entry with a limit gives up and leaves nothing; one without waits until the network is back."""
    async with through(proxy, server, database, connect_timeout=2.0) as c:
        proxy.pause()
        with pytest.raises(Unavailable, match=r"could not be proven within 0\.2 s"):
            async with c.subscribe("entry", timeout=0.2):
                pass
        entering = asyncio.create_task(c.subscribe("entry").__aenter__())
        missed = seen(c, MessagesMissed)
        with pytest.raises(Unavailable, match="no answer"):
            await c.publish("entry", "never sent")
        assert not entering.done()
        proxy.cut()
        proxy.resume()
        messages = await entering

        async def sent() -> bool:
            try:
                await c.publish("entry", "sent")
            except Unavailable:  # never sent: a connection took its time
                return False
            return True

        await eventually_async(sent, 30)
        assert (await messages.get(30)).text == "sent"
        assert messages.statistics.gaps == {}
        assert missed == []
        await messages.close()


def swallow(url: str, wanted: bool) -> None:
    """Let the server of one database lose what its sessions notify, while everything else works; or no more."""
    with psycopg.connect(url, autocommit=True) as admin:
        if wanted:
            admin.execute("alter function pg_catalog.pg_notify(text, text) rename to pg_notify_in_earnest")
            admin.execute("create function pg_catalog.pg_notify(text, text) returns void language sql as 'select'")
        else:
            admin.execute("drop function pg_catalog.pg_notify(text, text)")
            admin.execute("alter function pg_catalog.pg_notify_in_earnest(text, text) rename to pg_notify")


@both_engines
async def test_only_notifications_are_swallowed(server: Server, haste: Haste, engine: Engine) -> None:
    """The link answers, and yet it is deaf: found out by our own proof, replaced again and again, and told."""
    with server.fresh_database() as url:
        async with AsyncCoordinator(url, name=FAR, network_timeout=PATIENCE, engine=engine) as c:
            deaf, ready = seen(c, ListenerDeaf), seen(c, ListenerReady)
            async with c.subscribe("swallowed", gaps="yield") as messages:
                await asyncio.to_thread(swallow, url, True)
                with haste.of(FAR):
                    c.bounce("a test wants to prove it anew")
                    await eventually_async(lambda: len(deaf) >= 2, 30)
                    assert len(ready) == 1
                    assert c.listening == "isolated"
                    with pytest.raises(Unavailable):
                        async with c.subscribe("another", timeout=0.1):
                            pass
                    await asyncio.to_thread(swallow, url, False)
                    gap = await item_of(messages)
                assert isinstance(gap, Gap)
                await c.publish("swallowed", "heard")
                assert (await messages.get(30)).text == "heard"  # type: ignore[union-attr]


# processes that stand still


def stop(process: Worker) -> None:
    """SIGSTOP, and wait until it stands still."""
    process.stop_signal()
    status = Path(f"/proc/{process.pid}/stat")
    eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")


@both_engines
@pytest.mark.parametrize("cut", [False, True], ids=["its session lives", "its session ends"])
@pytest.mark.long
def test_a_stopped_subscriber(
    server: Server, database: str, worker: Callable[..., Worker], tmp_path: Path, engine: Engine, cut: bool
) -> None:
    """When it goes on, everything arrives that was sent meanwhile, or a gap stands there."""
    path = tmp_path / "history"
    orders = Orders(
        database, str(path), "subscriber", ("still",), engine=engine, tasks=2, network_timeout=0.5, large=False
    )
    subscriber = worker(PROGRAM, orders.text())
    subscriber.expect("ready", 30)
    publisher = worker(PROGRAM, Orders(database, str(path), "publisher", ("still",), large=False).text())
    publisher.expect("ready", 30)
    tail = Tail(path)
    eventually(lambda: tail.given().total() > 20, 30)
    stop(subscriber)
    sent = sum(line[0] == "fate" for line in tail.lines())
    if cut:
        (listening,) = [one.pid for one in server.sessions() if f"subscriber-{subscriber.pid}" in one.application_name]
        assert server.kill_backend(listening)
        eventually(lambda: listening not in {one.pid for one in server.sessions()})
    eventually(lambda: sum(line[0] == "fate" for line in tail.lines()) > sent + 300, 30)
    subscriber.cont()
    given = tail.given().total()
    eventually(lambda: tail.given().total() > given + 50, 30, what="it receives again")
    publisher.send("end")
    publisher.expect("done", 30)
    assert publisher.wait() == 0

    def finished() -> bool:
        server_says = f"notify still, '{LAST}'"
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(server_says.encode())
        return subscriber.returncode is not None

    eventually(finished, 30)
    verdict = judge(tail.lines())
    assert verdict.wrong == []
    assert bool(verdict.gaps["reconnect"]) is cut


@pytest.mark.parametrize("engine", ["loop", pytest.param("thread", marks=pytest.mark.long)])
async def test_a_blocked_loop_misses_nothing(database: str, unique: str, engine: Engine) -> None:
    """It stands still for longer than any time-out; the messages wait in the socket, and no link is given up."""
    channel = unique[:60]
    async with AsyncCoordinator(database, network_timeout=2.5, engine=engine) as c:
        lost = seen(c, LinkLost)
        async with c.subscribe(channel, gaps="yield", capacity=10_000) as messages:
            with psycopg.connect(database, autocommit=True) as other:
                for number in range(100):
                    other.execute("select pg_notify(%s, %s)", (channel, str(number)))
                    time.sleep(0.03)  # the event loop stands still: nothing of it runs
            assert [int((await messages.get(30)).text) for _ in range(100)] == [*range(100)]  # type: ignore[union-attr]
            assert messages.statistics.gaps == {}
        assert lost == []


@both_engines
async def test_a_link_that_dies_while_the_loop_is_blocked(
    server: Server, database: str, unique: str, engine: Engine
) -> None:
    """What was heard before comes, then the gap, then what comes after it."""
    channel = unique[:60]
    async with AsyncCoordinator(database, engine=engine) as c:
        async with c.subscribe(channel, gaps="yield") as messages:
            (link,) = [link for link in c.health().links if link.role == "listen"]
            assert link.server_pid
            with psycopg.connect(database, autocommit=True) as other:
                other.execute("select pg_notify(%s, 'before')", (channel,))
                server.kill_backend(link.server_pid)
                eventually(lambda: link.server_pid not in {one.pid for one in server.sessions()})
                other.execute("select pg_notify(%s, 'missed')", (channel,))
            first = await item_of(messages)
            if isinstance(first, Message):
                assert first.text == "before"
                first = await item_of(messages)
            assert isinstance(first, Gap)
            await c.publish(channel, "after")
            second = await item_of(messages)
            if isinstance(second, Message) and second.text == "missed":  # the engine's thread was back so soon
                assert engine == "thread"
                second = await item_of(messages)
            assert isinstance(second, Message)
            assert second.text == "after"
