"""What a coordinator tells about itself: health, events, log, repr.

Here live tests of what people and monitoring read. Theory: one stream of facts feeds all of them, so the tests compare
it with what was done to the server, and look for what must not be in it: a secret.
"""

import asyncio
import logging
import threading

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import (
    ConnectFailed,
    Event,
    HoldBroken,
    HoldDropped,
    LinkClosed,
    LinkLost,
    LinkOpened,
    LockAcquired,
    LockReleased,
)
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.scenes import QUIET, Engine, both_engines, lock_pid, seen, statements, waiting_for
from tests.servers import Server


@both_engines
async def test_health_tells_links_and_locks(database: str, server: Server, engine: Engine) -> None:
    """Health names every link with its session, and counts what is held and waited for, without sending anything."""
    async with (
        AsyncCoordinator(database) as other,
        AsyncCoordinator(database, engine=engine, network_timeout=QUIET) as c,
    ):
        idle = c.health()
        assert idle.ready
        assert {(link.role, link.state) for link in idle.links} == {
            ("lock", "idle"),
            ("listen", "idle"),
            ("publish", "idle"),
            ("work", "idle"),
            ("payload", "idle"),
            ("tasks", "idle"),
        }
        hold = await c.lock("mine").acquire()
        stranger = await other.lock("theirs").acquire()
        task = await waiting_for(c, "theirs", database)
        health = c.health()
        assert (health.ready, health.locks_held, health.locks_waited_for) == (True, 1, 1)
        links = {link.role: link for link in health.links}
        assert {role: link.state for role, link in links.items()} == {
            "lock": "ready",
            "listen": "ready",
            "publish": "idle",
            "work": "idle",
            "payload": "idle",
            "tasks": "idle",
        }
        assert links["lock"].server_pid in {session.pid for session in server.sessions()}
        assert links["lock"].through == "direct"
        assert links["lock"].server
        assert 0 < (links["lock"].round_trip or 0) < 60

        def asks_nobody() -> bool:
            before = statements(c)
            for _ in range(100):
                c.health()
            return statements(c) == before

        # whoever waits looks again now and then, and not every time just now
        await eventually_async(asks_nobody, what="health sends nothing")
        await stranger.release()
        await (await task).release()
        await hold.release()
        await eventually_async(lambda: c.health().locks_held == c.health().locks_waited_for == 0)


async def test_health_from_any_thread(database: str) -> None:
    """Another thread may ask while locks come and go."""
    async with AsyncCoordinator(database) as c:
        stop = threading.Event()
        answers: list[object] = []

        def ask() -> None:
            while not stop.is_set():
                try:
                    answers.append(c.health().locks_held)
                except Exception as error:
                    answers.append(error)
                    return

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for _ in range(20):
                holds = await asyncio.gather(*(c.lock(n).acquire() for n in range(50)))
                await asyncio.gather(*(hold.release() for hold in holds))
        finally:
            stop.set()
            thread.join()
        assert answers
        assert all(isinstance(answer, int) for answer in answers), answers[-1]


@both_engines
async def test_health_without_a_server(proxy: FaultProxy, server: Server, database: str, engine: Engine) -> None:
    """While there is no connection health says so, with the last error and the attempts; then it recovers."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database)), engine=engine) as c:
        hold = await c.lock("down").acquire()
        proxy.refuse()
        proxy.cut()
        await hold.wait_lost()
        task = asyncio.create_task(c.lock("down").acquire())
        await eventually_async(lambda: any(link.attempts >= 2 for link in c.health().links if link.role == "lock"))
        health = c.health()
        (link,) = [link for link in health.links if link.role == "lock"]
        assert not health.ready
        assert link.state in ("waiting", "connecting")
        assert f"127.0.0.1:{proxy.port}" in (link.last_error or "")
        assert (link.server_pid, health.locks_waited_for, health.locks_held) == (None, 1, 0)
        proxy.accept()
        await (await asyncio.wait_for(task, 60)).release()
        (link,) = [link for link in c.health().links if link.role == "lock"]
        assert (link.state, link.attempts, link.last_error) == ("ready", 0, None)


async def test_statement_counter_survives_a_reconnect(database: str, server: Server) -> None:
    """The count of statements never goes down."""
    async with AsyncCoordinator(database) as c:
        hold = await c.lock("count").acquire()
        before = statements(c)
        server.kill_backend(lock_pid(c))
        await hold.wait_lost()
        async with c.lock("count", timeout=30):
            assert statements(c) > before


@both_engines
async def test_story_of_a_life(database: str, server: Server, engine: Engine) -> None:
    """Opening, acquiring, releasing, losing and closing are told once each, in order, with their numbers."""
    c = AsyncCoordinator(database, engine=engine)
    story: list[Event] = []
    c.events.subscribe(story.append)
    async with c:
        async with c.lock("a"):
            first = lock_pid(c)
        hold = await c.lock("b").acquire()
        server.kill_backend(first)
        await hold.wait_lost()
        async with c.lock("c", timeout=30):
            second = lock_pid(c)
    told = [event for event in story if not isinstance(event, LockReleased)]
    kinds = [type(event) for event in told]
    wanted = [LinkOpened, LockAcquired, LockAcquired, LinkLost, HoldBroken, LinkOpened, LockAcquired, LinkClosed]
    assert kinds == wanted
    opened = [event for event in told if isinstance(event, LinkOpened)]
    assert [event.server_pid for event in opened] == [first, second]
    assert {(event.role, event.through) for event in opened} == {("lock", "direct")}
    assert {event.version // 10000 for event in opened} == {server.major}
    (broken,) = [event for event in told if isinstance(event, HoldBroken)]
    assert broken.key == "b"
    assert [event.key for event in told if isinstance(event, LockAcquired)] == ["a", "b", "c"]


async def test_log(database: str, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The log says the same: connections as information, losses as errors, and nothing about ordinary cycles."""
    caplog.set_level(logging.INFO, "pgconcert")
    async with AsyncCoordinator(database) as c:
        for _ in range(3):
            async with c.lock("quiet"):
                pass
        assert [record.levelname for record in caplog.records] == ["INFO"]
        hold = await c.lock("loud").acquire()
        server.kill_backend(lock_pid(c))
        await hold.wait_lost()
    levels = {type(record.event).__name__: record.levelname for record in caplog.records}  # type: ignore[attr-defined]
    assert levels["HoldBroken"] == "ERROR"
    assert levels["LinkLost"] == "WARNING"
    assert "'loud' was lost" in caplog.text
    assert "administrator command" in caplog.text


async def test_dropped_hold_is_told(database: str) -> None:
    """A hold thrown away is an event as well as a warning."""
    async with AsyncCoordinator(database) as c:
        dropped = seen(c, HoldDropped)
        holder = [await c.lock("thrown").acquire()]
        with pytest.warns(ResourceWarning):
            holder.clear()
        await eventually_async(lambda: [event.key for event in dropped] == ["thrown"])


async def test_bad_reader(database: str, caplog: pytest.LogCaptureFixture) -> None:
    """A reader that fails disturbs neither the locks nor the other readers; one that unsubscribed hears no more."""
    async with AsyncCoordinator(database) as c:

        def bad(event: Event) -> None:
            raise RuntimeError("reader")

        c.events.subscribe(bad, LockAcquired)
        heard = seen(c, LockAcquired)
        short: list[Event] = []
        stop = c.events.subscribe(short.append, LockAcquired)
        for _ in range(2):
            async with c.lock("read"):
                pass
            stop()
        assert (len(heard), len(short)) == (2, 1)
        assert "a reader of events failed" in caplog.text


async def test_no_secret_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither events, health, log, repr nor errors contain the password."""
    caplog.set_level(logging.DEBUG)
    url = "postgresql://ann:hunter2@127.0.0.1:1/app"
    async with AsyncCoordinator(url, direct_url=url) as c:
        failed = seen(c, ConnectFailed)
        with pytest.raises(ConnectionError) as error:
            await c.lock("x").acquire()
        assert failed
        shown = [repr(c), repr(c.lock("x")), repr(c.health()), repr(error.value), str(failed), caplog.text]
        assert not [text for text in shown if "hunter2" in text]
        assert "127.0.0.1:1" in caplog.text
