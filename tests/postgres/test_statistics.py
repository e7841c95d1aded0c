"""``c.statistics()`` and ``c.health()`` after real work, with killed backends, and while the server is away."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, Coordinator, Gap, HoldLost, TableTasks, Unavailable
from pgconcert.events import ConnectFailed, HeartbeatFailed, LinkOpened, SessionLost
from pgconcert.postgres import outage, slotowner
from pgconcert.testing import FaultProxy, eventually, eventually_async
from tests.postgres.scenes import (
    Engine,
    both_engines,
    lock_pid,
    marks_on_server,
    raw,
    role_pids,
    seen,
    statements,
    until_free,
    waiting_for,
)
from tests.servers import Server


def kill(url: str, pids: list[int]) -> None:
    with raw(url) as other:
        for pid in pids:
            other.execute("select pg_terminate_backend(%s)", (pid,))


@both_engines
async def test_only_who_meets_others_has_waited(
    database: str, unique: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A free lock is no wait, though it costs a round trip; behind another process, and behind ourselves, it is."""
    monkeypatch.setattr(slotowner, "_LINGER", 0.05)  # what lingers would be counted among the marks
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database) as two:
        for _ in range(3):
            async with one.lock(unique), one.semaphore(unique, 2):
                pass
        told = one.statistics().locks
        assert (told.acquired, told.released, told.waited, told.seconds_waited) == (6, 6, 0, 0.0)
        held = await two.lock(unique).acquire()
        with pytest.raises(AcquireTimeout):
            await one.lock(unique).acquire(0.05)
        assert await one.lock(unique).try_acquire() is None
        await eventually_async(lambda: not marks_on_server(database), what="nothing is left of those that left")
        waiting = await waiting_for(one, unique, database)
        await held.release()
        hold = await waiting
        behind = asyncio.create_task(one.lock(unique).acquire())
        await eventually_async(lambda: one.health().locks_waited_for == 1)
        await hold.release()
        await (await behind).release()
        told = one.statistics().locks
        assert (told.acquired, told.released, told.lost, told.waited, told.timed_out) == (8, 8, 0, 2, 1)
        assert told.seconds_waited > 0
        assert two.statistics().locks.waited == 0


async def test_readers_and_permits(database: str, unique: str) -> None:
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        readers = [await one.lock(unique, shared=True).acquire() for _ in range(3)]
        writer = await waiting_for(two, unique, database)
        for reader in readers:
            await reader.release()
        await (await writer).release()
        permits = [await one.semaphore(unique, 1).acquire()]
        waiting = asyncio.create_task(two.semaphore(unique, 1).acquire())
        await eventually_async(lambda: two.health().locks_waited_for == 1)
        backend: Any = two.backend
        # its first try must have been refused: a grant at once would be no wait
        await eventually_async(lambda: any(owner.taken_at for owner in backend.locker._owners.values()))
        await permits[0].release()
        await (await waiting).release()
        assert (one.statistics().locks.acquired, one.statistics().locks.released) == (4, 4)
        assert (two.statistics().locks.acquired, two.statistics().locks.released) == (2, 2)
        assert (one.statistics().locks.waited, two.statistics().locks.waited) == (0, 2)


@both_engines
async def test_a_killed_backend_in_numbers(tables: str, unique: str, engine: Engine) -> None:
    """What was held is lost, subscribers have a gap, the links are opened anew, and no count goes back."""
    async with AsyncCoordinator(tables, engine=engine) as c:
        opened = seen(c, LinkOpened)
        async with c.subscribe(unique, gaps="yield") as messages:
            async with c.job_lock(unique):
                hold = await c.lock(unique).acquire()
                await c.publish(unique, "1")
                before = c.statistics()
                assert all(event.down_for is None for event in opened)
                kill(tables, [lock_pid(c), *role_pids(c, "listen")])
                await hold.wait_lost()
                await eventually_async(lambda: bool(c.statistics().messages.gaps))
                await eventually_async(lambda: c.health().ready)
                await c.publish(unique, "2")
            told = [await anext(messages) for _ in range(3)]
            assert [isinstance(item, Gap) for item in told] == [False, True, False]
            await hold.release()
        least = statements(c)
        after = c.statistics()
        assert least <= after.statements <= statements(c), "with a thread, heartbeats go on between two looks"
        assert (after.locks.acquired, after.locks.released, after.locks.lost) == (1, 0, 1)
        assert (after.names.acquired, after.names.released, after.names.lost) == (1, 1, 0)
        assert (after.messages.published, after.messages.received, after.messages.gaps) == (2, 2, {"reconnect": 1})
        assert after.events["LinkLost"] == 2
        assert after.events["HoldBroken"] == 1
        assert after.events["LinkOpened"] == before.events["LinkOpened"] + 2
        assert sorted(event.role for event in opened if event.down_for is not None) == ["listen", "lock"]
        assert after.statements > before.statements
    assert c.statistics().statements >= after.statements
    assert c.statistics().locks == after.locks


async def test_statements_of_links_that_are_forgotten_are_counted(tables: str, unique: str) -> None:
    """The link of a table is gone with the coordinator; what it has sent is not."""
    with raw(tables) as other:
        other.execute("create table mine (id int primary key, session_id bigint)")
        other.execute("create index on mine (session_id)")
        other.execute("insert into mine select generate_series(1, 5)")
    c = AsyncCoordinator(tables)
    async with c, c.runner(unique, lambda tasks: None, TableTasks("mine", finish="delete"), tick=0.05):
        await eventually_async(lambda: c.statistics().runners[0].completed == 5)
        sent = c.statistics().statements
    assert c.statistics().statements >= sent
    assert [one.completed for one in c.statistics().runners] == [5]


async def test_not_ready_while_the_server_refuses(
    server: Server,
    tables: str,
    proxy: FaultProxy,
    unique: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a lock, a subscription and a session, and the server away for longer than the session is trusted: not ready
    from the first loss to the last link, and one line of the log for the beginning of each link's outage."""
    monkeypatch.setattr(outage, "_STEPS", (1e6,))  # on a busy machine it may last until it is told again
    async with AsyncCoordinator(proxy.url(server.over_tcp(tables)), name="away") as c:
        hold = await c.lock(unique, on_lost="report").acquire()
        async with c.subscribe(unique):
            job = await c.job_lock(unique, ttl=4.0, on_lost="report").acquire()
            assert c.health().ready
            assert c.health().troubles == ()
            failed, lost, opened = seen(c, ConnectFailed), seen(c, SessionLost), seen(c, LinkOpened)
            with caplog.at_level(logging.INFO, "pgconcert"):
                proxy.refuse()
                proxy.cut()
                await hold.wait_lost()
                assert not c.health().ready
                await eventually_async(lambda: {event.role for event in failed} == {"lock", "listen", "work"})
                health = c.health()
                assert sorted(word for trouble in health.troubles for word in trouble.split()[1:2]) == [
                    "listen", "lock", "work",
                ]  # fmt: skip
                between = "not ready: the lock link is not up (waiting): "
                await eventually_async(
                    lambda: str(c.health()).startswith(between), what="it rests between two attempts"
                )
                await job.wait_lost()
                await eventually_async(lambda: len(failed) > 9)
                assert not c.health().ready
            told = [record for record in caplog.records if isinstance(getattr(record, "event", None), ConnectFailed)]
            assert sorted(record.event.role for record in told) == ["listen", "lock", "work"]  # type: ignore[attr-defined]
            assert sum(not event.repeats for event in failed) == 3
            assert c.statistics().events["ConnectFailed"] == len(failed)
            proxy.accept()
            await eventually_async(lambda: c.health().ready, 20)
            assert lost[0].holds == 1
            assert min(event.down_for or 0.0 for event in opened) > 0
            assert all("s without one" in str(event) for event in opened)
        with pytest.raises(HoldLost):
            job.check()
        told_names = c.statistics().names
        assert (told_names.acquired, told_names.lost) == (1, 1)
        await job.release()
        await hold.release()
    await until_free(tables)


async def test_not_ready_while_only_heartbeats_need_the_server(
    server: Server, tables: str, proxy: FaultProxy, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that is wanted only now and then, for a heartbeat, is a trouble between the attempts too; they belong to
    one outage, whose length is told at its end."""
    monkeypatch.setattr(outage, "_STEPS", (1e6,))
    async with AsyncCoordinator(proxy.url(server.over_tcp(tables))) as c:
        job = await c.job_lock(unique, ttl=20.0, interval=0.5).acquire()
        assert c.health().ready
        beats, failed, opened = seen(c, HeartbeatFailed), seen(c, ConnectFailed), seen(c, LinkOpened)
        proxy.refuse()
        proxy.cut()
        await eventually_async(lambda: bool(failed))
        while len(beats) < 3:
            assert not c.health().ready
            await asyncio.sleep(0.01)
        assert [event.repeats for event in failed] == [False] + [True] * (len(failed) - 1)
        assert [event.down_for for event in failed] == sorted(event.down_for for event in failed)
        proxy.accept()
        await eventually_async(lambda: c.health().ready, 20)
        assert (opened[-1].down_for or 0.0) > failed[-1].down_for
        await job.release()


async def test_a_publisher_that_found_no_server_is_a_trouble(server: Server, database: str, proxy: FaultProxy) -> None:
    """Nobody needs the link when the publisher has been told; that it could not be opened is still true."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as c:
        assert c.health().ready
        proxy.refuse()
        with pytest.raises(Unavailable):
            await c.publish("news")
        assert str(c.health()).startswith("not ready: the publish link could not be opened: ")
        assert c.statistics().messages.failed == 1
        proxy.accept()
        await c.publish("news")
        assert c.health().ready


@pytest.mark.long
async def test_an_outage_escalates(server: Server, database: str, proxy: FaultProxy, unique: str) -> None:
    """After ten seconds without a link it is an error, told once, while attempts go on."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as c:
        hold = await c.lock(unique, on_lost="report").acquire()
        waiting = asyncio.create_task(c.lock(unique).acquire())
        failed = seen(c, ConnectFailed)
        proxy.refuse()
        proxy.cut()
        await eventually_async(lambda: any(event.down_for > 16 for event in failed), 40)
        proxy.accept()
        await hold.release()
        await (await waiting).release()
        loud = [event for event in failed if not event.repeats]
        assert [event.level for event in loud] == [logging.WARNING, logging.ERROR]
        assert len(failed) > len(loud)


def test_the_twin_in_numbers(tables: str, unique: str) -> None:
    """The same, for threads: counts of what a killed backend has cost, read by the thread that asks."""
    with Coordinator(tables) as c:
        with c.job_lock(unique), c.lock(unique):
            c.publish(unique, "1")
        eventually(lambda: c.statistics().names.released == 1)
        hold = c.lock(unique).acquire()
        kill(tables, [link.server_pid or 0 for link in c.health().links if link.role == "lock"])
        hold.wait_lost()
        eventually(lambda: c.health().ready)
        told = c.statistics()
        assert (told.locks.acquired, told.locks.released, told.locks.lost) == (2, 1, 1)
        assert (told.names.acquired, told.names.released, told.names.lost) == (1, 1, 0)
        assert told.messages.published == 1
        hold.release()
    assert not c.health().ready
