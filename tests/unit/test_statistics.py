"""``c.statistics()`` and ``c.health()`` in one process: what counts as what, and every way of not being ready."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from pgconcert import (
    AcquireTimeout,
    AsyncCoordinator,
    Coordinator,
    CoordinatorClosed,
    Gap,
    LockLost,
    PublishManyFailed,
    Unavailable,
)
from pgconcert.backend import Health
from pgconcert.clock import FakeClock
from pgconcert.events import HoldBroken, LockAcquired
from pgconcert.memory import MemoryBackend
from pgconcert.memory.null import NullBackend
from pgconcert.postgres.taskstore import PostgresTaskStore
from pgconcert.statistics import HoldStatistics, MessageStatistics, RecoveryStatistics, Statistics
from pgconcert.testing import FakeSource, eventually, eventually_async

ENGINES: tuple[Literal["loop", "thread"], ...] = ("loop", "thread")

_worlds = itertools.count()

NOTHING = HoldStatistics(acquired=0, released=0, lost=0, waited=0, seconds_waited=0.0, timed_out=0)
SILENCE = MessageStatistics(published=0, failed=0, received=0, dropped=0, gaps={})
ZERO = Statistics(events={}, statements=0, locks=NOTHING, names=NOTHING, messages=SILENCE, recoveries=(), runners=())


def whole(holds: HoldStatistics) -> tuple[int, int, int, int, int]:
    """Everything but the seconds."""
    return holds.acquired, holds.released, holds.lost, holds.waited, holds.timed_out


def backend(clock: FakeClock | None = None) -> MemoryBackend:
    return MemoryBackend(f"statistics-{next(_worlds)}", clock=clock)


@asynccontextmanager
async def opened(backend: MemoryBackend, engine: Literal["loop", "thread"] = "loop") -> AsyncIterator[AsyncCoordinator]:
    async with AsyncCoordinator(backend=backend, engine=engine) as c:
        yield c


@pytest.mark.parametrize("engine", ENGINES)
async def test_locks_are_counted(engine: Literal["loop", "thread"]) -> None:
    """One that is free, one that is waited for, a try that is refused, a wait that runs out, one that is lost."""
    one = backend()
    async with opened(one, engine) as c:
        assert c.statistics().locks == NOTHING
        first = await c.lock("k").acquire()
        assert await c.lock("k").try_acquire() is None
        with pytest.raises(AcquireTimeout):
            await c.lock("k").acquire(0.01)
        waiting = asyncio.create_task(c.lock("k").acquire())
        await eventually_async(lambda: c.health().locks_waited_for == 1)
        await first.release()
        hold = await waiting
        assert whole(c.statistics().locks) == (2, 1, 0, 1, 1)
        assert c.statistics().locks.seconds_waited > 0
        one.lose_connection()
        await hold.wait_lost()
        with pytest.raises(LockLost):
            hold.check()
        await hold.release()
        assert whole(c.statistics().locks) == (2, 1, 1, 1, 1)
        async with c.lock_all(["a", "b"]), c.semaphore("s", 2):
            pass
    assert whole(c.statistics().locks) == (5, 4, 1, 1, 1)
    assert c.statistics().events["HoldBroken"] == 1


async def test_what_is_held_at_the_end_is_lost_and_not_released() -> None:
    c = AsyncCoordinator("memory://the-end")
    await c.open()
    hold = await c.lock("k", on_lost="report").acquire()
    job = await c.job_lock("j", on_lost="report").acquire()
    await c.close()
    assert hold.lost
    assert job.lost
    assert whole(c.statistics().locks) == whole(c.statistics().names) == (1, 0, 1, 0, 0)


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_hangs_on_sessions_is_counted_together(engine: Literal["loop", "thread"]) -> None:
    async with opened(backend(), engine) as c:
        async with c.election("e").lead(), c.group("g").join():
            first = await c.job_lock("j").acquire()
            assert c.statistics().names.acquired == 3
            with pytest.raises(AcquireTimeout):
                await c.job_lock("j").acquire(0.05)
            await first.release()
            first = await c.job_lock("k").acquire()
            waiting = asyncio.create_task(c.job_lock("k").acquire(5))
            await asyncio.sleep(0)
            await first.release()
            await (await waiting).release()
        assert whole(c.statistics().names) == (5, 5, 0, 1, 1)
        assert c.statistics().names.seconds_waited > 0
        assert c.statistics().locks == NOTHING


async def test_messages_are_counted() -> None:
    """Published and received, dropped for each who was too slow, a gap where they are missing, and what fails."""
    one = backend()
    async with opened(one) as c:
        async with c.subscribe("news", capacity=1) as slow, c.subscribe("news", gaps="yield") as quick:
            await c.publish("news", "1")
            await c.publish("news", "2", headers={"a": "b"})
            await c.publish_many([("news", "3"), ("elsewhere", "4")])
            await eventually_async(lambda: c.statistics().messages.received == 3)
            assert c.statistics().messages == MessageStatistics(published=4, failed=0, received=3, dropped=2, gaps={})
            assert (await anext(aiter(slow))).payload == b"1"
            one.lose_connection()
            async for item in quick:
                if isinstance(item, Gap):
                    break
        assert c.statistics().messages.gaps["reconnect"] == 2
        one.lose_connection(reconnect=False)
        with pytest.raises(Unavailable):
            await c.publish("news", "5")
        with pytest.raises(Unavailable):
            await c.publish("news", "6", headers={"a": "b"})
        with pytest.raises(PublishManyFailed):
            await c.publish_many([("news", "7"), ("news", "8")])
        assert (c.statistics().messages.published, c.statistics().messages.failed) == (4, 4)


def test_what_threads_could_not_publish_is_counted() -> None:
    one = backend()
    with Coordinator(backend=one) as c:
        one.lose_connection(reconnect=False)
        with pytest.raises(Unavailable):
            c.publish("news", "1")
        with pytest.raises(Unavailable):
            c.publish("news", "2", headers={"a": "b"})
        assert (c.statistics().messages.published, c.statistics().messages.failed) == (0, 2)


async def test_the_connection_that_is_down_is_nobody_in_the_way() -> None:
    """Who waits for the connection alone has not waited for a lock; its time is in the event."""
    one = backend()
    async with opened(one) as c:
        one.lose_connection(reconnect=False)
        waiting = asyncio.create_task(c.lock("k").acquire())
        await eventually_async(lambda: c.health().locks_waited_for == 1)
        one.reconnect()
        await (await waiting).release()
        assert whole(c.statistics().locks) == (1, 1, 0, 0, 0)


async def test_what_polls_find_is_counted_by_channel() -> None:
    """Fan-outs of one channel count together, and what was found stays when they are gone."""
    async with opened(backend()) as c:
        silent, orders, again = (c.fanout(channel, str) for channel in ("silent", "orders", "orders"))
        for fanout in (orders, again):
            fanout.enable_recovery(3)
        silent.polled(4)
        orders.polled(2)
        orders.polled(3)
        again.polled(7)
        assert c.statistics().recoveries == (RecoveryStatistics(channel="orders", saved=12, streak=1),)
        orders.polled(1)
        assert c.statistics().recoveries == (RecoveryStatistics(channel="orders", saved=13, streak=0),)
        again.polled(1)
        again.deliver("by the wire")
        del orders, again, fanout
        assert c.statistics().recoveries == (RecoveryStatistics(channel="orders", saved=14, streak=0),)


@pytest.mark.parametrize("engine", ENGINES)
async def test_runners_are_told_by_name(engine: Literal["loop", "thread"]) -> None:
    async with opened(backend(), engine) as c:
        later = c.runner("work", lambda tasks: None, FakeSource({"a": 1, "b": 2}), tick=0.05)
        first = c.runner("mail", lambda tasks: None, FakeSource({}))
        async with later:
            await eventually_async(lambda: c.statistics().runners[1].completed == 2)
        assert [(one.name, one.completed) for one in c.statistics().runners] == [("mail", 0), ("work", 2)]
        assert first.statistics() == c.statistics().runners[0]


def test_the_twin_counts_the_same_from_any_thread() -> None:
    with Coordinator("memory://statistics-twin") as c:
        with c.lock("k"), c.job_lock("j"):
            c.publish("news", "1")
        c.publish("news", "2", headers={"a": "b"})
        runner = c.runner("mail", lambda tasks: None, FakeSource({}))
        hold = c.lock("k").acquire()
        with pytest.raises(AcquireTimeout):
            c.lock_all(["k"]).acquire(0.01)
        hold.release()
        eventually(lambda: c.statistics().locks.released == 2 and c.statistics().names.released == 1)
        seen: list[Statistics] = []
        thread = threading.Thread(target=lambda: seen.append(c.statistics()))
        thread.start()
        thread.join()
        (told,) = seen
        assert whole(told.locks) == (2, 2, 0, 0, 1)
        assert whole(told.names) == (1, 1, 0, 0, 0)
        assert told.messages.published == 2
        assert [one.name for one in told.runners] == [runner.name]
    assert c.statistics().locks == told.locks


@pytest.mark.parametrize("make", [AsyncCoordinator, Coordinator])
def test_before_open_there_is_nothing(make: type[AsyncCoordinator | Coordinator]) -> None:
    c = make("memory://unopened")
    assert c.statistics() == ZERO
    assert (c.health().ready, c.health().troubles) == (False, ("the coordinator is not open yet",))


@pytest.mark.parametrize("make", [AsyncCoordinator, Coordinator])
def test_who_it_is(make: type[AsyncCoordinator | Coordinator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/srv/shop/importer.py"])
    assert (make("null://").name, make("null://", name="shop").name) == ("importer", "shop")


async def test_null_counts_its_locks() -> None:
    async with AsyncCoordinator("null://") as c:
        async with c.lock("k"), c.lock("m"):
            pass
        assert whole(c.statistics().locks) == (2, 2, 0, 0, 0)
        assert c.statistics().statements == 0
        assert c.health().ready


async def test_a_backend_that_counts_nothing_and_is_silent_after_its_end() -> None:
    """Somebody else's backend owes us neither counts nor an answer after ``close``."""

    class Silent(NullBackend):
        over = False

        async def close(self) -> None:
            await super().close()
            self.over = True

        def health(self) -> Health:
            if self.over:
                raise CoordinatorClosed("over")
            return Health(ready=False, links=(), locks_held=0, locks_waited_for=0, lock_budget=None)

    async with AsyncCoordinator(backend=Silent()) as c:
        assert c.statistics() == ZERO
        assert str(c.health()) == "not ready: the backend says that it is not"
    assert c.statistics() == ZERO
    assert not c.health().ready


async def test_statements_never_become_fewer() -> None:
    one = backend()
    async with opened(one) as c:
        async with c.lock("k"):
            pass
        before = c.statistics().statements
        assert before >= 2
        one.lose_connection()
        assert c.statistics().statements >= before
        last = c.statistics().statements
    assert c.statistics().statements >= last


async def test_statistics_have_a_json_form() -> None:
    one = backend()
    async with opened(one) as c:
        hold = await c.lock("k", on_lost="report").acquire()
        async with c.job_lock("j"), c.subscribe("news"):
            one.lose_connection()
            told = json.loads(json.dumps(dataclasses.asdict(c.statistics())))
            assert told["locks"]["acquired"] == 1
            assert json.loads(json.dumps(dataclasses.asdict(c.health())))["sessions"][0]["holds"] == 1
        await hold.release()


async def test_a_reader_alone_changes_no_count() -> None:
    async with opened(backend()) as c:
        c.events.subscribe(lambda event: None, LockAcquired, HoldBroken)
        async with c.lock("k"):
            pass
        assert "LockAcquired" not in c.statistics().events


# readiness


async def test_ready_in_a_line() -> None:
    async with opened(backend()) as c, c.lock("k"), c.job_lock("j"), c.subscribe("news"):
        assert str(c.health()) == "ready: 1 links up, 1 locks held, 0 waited for, 1 sessions"


async def test_not_ready_while_it_opens_and_closes() -> None:
    seen: list[tuple[str, Health]] = []

    class Slow(MemoryBackend):
        async def open(self, events: object) -> None:
            seen.append(("open", c.health()))
            await super().open(events)  # type: ignore[arg-type]

        async def close(self) -> None:
            seen.append(("close", c.health()))
            await super().close()

    c = AsyncCoordinator(backend=Slow(f"statistics-{next(_worlds)}"))
    async with c:
        assert c.health().ready

        async def handler(message: object) -> None:
            closing.set_result(asyncio.create_task(c.close()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            seen.append(("handler", c.health()))

        closing: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()
        listening = await c.listen({"news": handler})
        assert listening is not None
        await c.publish("news")
        await (await closing)
    assert [(place, health.ready, health.troubles[0]) for place, health in seen] == [
        ("open", False, "the coordinator is being opened"),
        ("handler", False, "the coordinator is being closed"),
        ("close", False, "the coordinator is closed"),
    ]
    assert not c.health().ready


async def test_not_ready_while_its_connection_is_down() -> None:
    one = backend()
    async with opened(one) as c:
        one.lose_connection("the plug was pulled", reconnect=False)
        assert str(c.health()) == "not ready: the lock link is not up (waiting): the plug was pulled"
        one.reconnect()
        assert c.health().ready


async def test_not_ready_while_listening_is_not_proven() -> None:
    """Somebody wants to hear, and the answer of the world is held up; when nobody wants to, that is no trouble."""
    one = backend()
    async with opened(one) as c:
        assert c.health().ready
        with one.partition():
            entering = asyncio.create_task(c.subscribe("news").__aenter__())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert c.health().troubles == ("listening is not proven",)
        await entering
        assert c.health().ready


async def test_not_ready_while_a_session_is_started_or_untrusted() -> None:
    clock = FakeClock()
    one = backend(clock)
    async with opened(one) as c:
        cut = one.partition()
        starting = asyncio.create_task(c.job_lock("j", ttl=2, on_lost="report").acquire())
        await eventually_async(lambda: len(c.health().sessions) == 1)
        assert c.health().troubles == ("a session is being started",)
        cut.heal()
        hold = await starting
        assert c.health().ready
        number = c.health().sessions[0].id
        with one.partition():
            clock._now += 3  # nobody is told: the alarms of the heart have not rung yet
            assert c.health().troubles == (f"session {number} is trusted no longer",)
        await hold.release()


def test_links_for_tasks_are_told_while_another_is_made() -> None:
    """Whoever asks for the health stands on a thread of its own, while the engine makes the link of one more table."""
    store = PostgresTaskStore.__new__(PostgresTaskStore)
    places: Any = iter(range(100))

    class Owner:
        @property
        def keeper(self) -> Any:
            store._others[next(places)] = made
            return "its keeper"

    made: Any = Owner()
    store.queues = made
    store._others = {next(places): made}
    told: list[Any] = store.keepers
    assert told == ["its keeper"] * 3
