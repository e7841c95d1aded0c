"""Broken connections, a full server, statements that fail half-way: who holds what is known at every moment.

Here live tests of loss and recovery of the exclusive lock. Theory: after every failure three accounts must agree, the
server's `pg_locks`, the engine's health, and what callers were told; a hold is believed only if all three name it.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

import psycopg
import pytest

from pgconcert import AsyncCoordinator, HoldLost, LockBudgetExceeded, LockLost, StatementFailed, Unavailable
from pgconcert.events import (
    BatchReconciled,
    ConnectFailed,
    HoldBroken,
    LinkLost,
    LinkOpened,
    ReleaseRefused,
    WakeFailed,
)
from pgconcert.hold import AsyncHold
from pgconcert.postgres.link import statement
from pgconcert.testing import FaultProxy, advisory_locks, eventually_async, rewrite
from tests.postgres.scenes import (
    QUIET,
    Engine,
    SmallServer,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    raw,
    seen,
    until_free,
    waiting_for,
)
from tests.servers import OwnServer, Server

_ADMINISTRATOR = "terminating connection due to administrator command"


@contextmanager
def _small(server: OwnServer) -> Generator[SmallServer]:
    small = SmallServer(f"small {server.name}", server.programs, server.major)  # type: ignore[attr-defined]
    try:
        yield small
    finally:
        small.close()


@both_engines
async def test_killed_while_held(database: str, server: Server, engine: Engine) -> None:
    """The holder is told: the hold is lost with the server's words, its body cancelled, the exit raises (A3)."""
    async with AsyncCoordinator(database, engine=engine) as c:
        broken = seen(c, HoldBroken)
        reached = False
        hold: AsyncHold | None = None

        async def body() -> None:
            nonlocal hold, reached
            async with c.lock("body") as hold:
                server.kill_backend(lock_pid(c))
                await asyncio.sleep(30)
                reached = True

        with pytest.raises(LockLost, match=_ADMINISTRATOR) as failed:
            await body()
        assert not reached
        assert hold is not None
        assert hold.lost
        assert failed.value.key == "body"
        assert _ADMINISTRATOR in (hold.reason or "")
        assert await hold.wait_lost() == hold.reason
        await eventually_async(lambda: [event.key for event in broken] == ["body"])
        with pytest.raises(HoldLost):
            hold.check()
        await hold.release()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0


@both_engines
async def test_reported_loss(database: str, server: Server, engine: Engine) -> None:
    """With `on_lost="report"` the body runs to its end, and the exit raises."""
    async with AsyncCoordinator(database, engine=engine) as c:
        finished = False

        async def body() -> None:
            nonlocal finished
            async with c.lock("report", on_lost="report") as hold:
                server.kill_backend(lock_pid(c))
                await hold.wait_lost()
                await asyncio.sleep(0)
                finished = True

        with pytest.raises(LockLost):
            await body()
        assert finished


async def test_loss_is_told_before_anything_else(database: str, server: Server) -> None:
    """Every hold of a dead connection is lost before the engine connects again or anybody acquires anything."""
    async with AsyncCoordinator(database) as c:
        story: list[str] = []
        c.events.subscribe(lambda event: story.append(type(event).__name__), HoldBroken, LinkLost, LinkOpened)
        holds = [await c.lock(n).acquire() for n in range(3)]
        story.clear()
        server.kill_backend(lock_pid(c))
        await holds[0].wait_lost()
        assert all(hold.lost for hold in holds)
        async with c.lock(0, timeout=30):
            assert all(hold.lost for hold in holds)
        assert story == ["LinkLost", *["HoldBroken"] * 3, "LinkOpened"]


async def test_first_use_after_an_unseen_death(database: str, server: Server) -> None:
    """A session killed while the loop is busy: the first request afterwards neither fails nor believes in the past."""
    async with AsyncCoordinator(database) as c:
        hold = await c.lock("before").acquire()
        server.kill_backend(lock_pid(c))
        # the loop has not turned since: nobody here can know
        async with c.lock("after", timeout=30):
            assert hold.lost
            assert set(keys_on_server(database)) == {key_of("after")}


@both_engines
async def test_old_hold_cannot_release_the_new_lock(database: str, server: Server, engine: Engine) -> None:
    """After a loss the same object acquires anew, and the old hold has no power over it (A4)."""
    async with AsyncCoordinator(database, engine=engine) as c:
        lock = c.lock("phoenix", timeout=30)
        old = await lock.acquire()
        server.kill_backend(lock_pid(c))
        await old.wait_lost()
        new = await lock.acquire()
        await old.release()
        del old
        assert not new.lost
        assert keys_on_server(database) == {key_of("phoenix"): lock_pid(c)}
        await new.release()
        assert keys_on_server(database) == {}


async def test_old_hold_of_the_neutral_words(database: str, server: Server) -> None:
    """`release_lock` of a lost lock says so, and the key can be acquired again."""
    async with AsyncCoordinator(database) as c:
        assert await c.acquire_lock("neutral")
        server.kill_backend(lock_pid(c))
        await eventually_async(lambda: c.health().locks_held == 0)
        with pytest.raises(LockLost):
            await c.release_lock("neutral")
        hold = await c.lock("neutral", timeout=30).acquire()
        await hold.release()


@both_engines
async def test_killed_while_waiting(database: str, server: Server, engine: Engine) -> None:
    """A waiter whose connection dies goes on waiting on the next one, and gets the lock."""
    async with (
        AsyncCoordinator(database) as one,
        AsyncCoordinator(database, engine=engine) as other,
    ):
        hold = await one.lock("patient").acquire()
        task = await waiting_for(other, "patient", database)
        for role in ("lock", "listen"):
            opened = seen(other, LinkOpened)
            (pid,) = [link.server_pid for link in other.health().links if link.role == role]
            assert pid is not None
            server.kill_backend(pid)
            await eventually_async(opened.copy)
        assert not task.done()
        await hold.release()
        await (await asyncio.wait_for(task, 30)).release()
    await until_free(database)


@both_engines
async def test_killed_during_release(proxy: FaultProxy, server: Server, database: str, engine: Engine) -> None:
    """A connection that dies while the unlock is under way: the release returns, and the lock is free."""
    url = proxy.url(server.over_tcp(database))
    async with AsyncCoordinator(url, engine=engine) as c:
        hold = await c.lock("leaving").acquire()
        proxy.pause()
        release = asyncio.create_task(hold.release())
        await asyncio.sleep(0)
        server.kill_backend(lock_pid(c))
        proxy.cut()
        proxy.resume()
        await asyncio.wait_for(release, 30)
        await until_free(database)
        async with c.lock("leaving", timeout=30):
            pass


async def test_unlocked_behind_our_back(database: str, server: Server) -> None:
    """A release that the server refuses is an alarm, and no error for the caller."""
    async with AsyncCoordinator(database) as c:
        refused = seen(c, ReleaseRefused)
        hold = await c.lock(5).acquire()
        link = c._backend.locker.shards[0].keeper.link  # type: ignore[attr-defined]
        await link.execute(statement("select pg_advisory_unlock_all()"))
        await hold.release()
        assert [event.key for event in refused] == [5]


async def test_frozen_network(proxy: FaultProxy, server: Server, database: str) -> None:
    """A network that only falls silent is found dead within `network_timeout`, and the hold is lost."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database)), network_timeout=0.5) as c:
        hold = await c.lock("frozen").acquire()
        proxy.pause()
        assert "network_timeout=0.5" in await hold.wait_lost()
        proxy.cut()
        proxy.resume()
    await until_free(database)


_DAWDLES = """
    alter function pg_catalog.pg_try_advisory_lock(bigint) rename to try_in_earnest;
    create function pg_catalog.pg_try_advisory_lock(bigint) returns bool language sql as
        'select pg_catalog.pg_sleep(0.002); select pg_catalog.try_in_earnest($1)';
"""
_CANCEL = """
    select count(pg_cancel_backend(pid)), pg_sleep(0.01) from pg_stat_activity
     where pid = %s and state = 'active' and query like '%%pg_try_advisory_lock(%%'
"""


async def test_cancelled_statements(server: Server) -> None:
    """Statements cancelled by an administrator at their work cost nobody a lock, an answer or an error."""
    with server.fresh_database() as database, raw(database) as admin:
        admin.execute(_DAWDLES.encode())  # a statement that takes no time cannot be met at its work
        async with AsyncCoordinator(database, network_timeout=QUIET) as c:
            reconciled = seen(c, BatchReconciled)
            async with c.lock("warm"):
                pass
            pid = lock_pid(c)
            stop = False

            async def work(number: int) -> None:
                while not stop:
                    async with c.lock(f"own {number}"):
                        await asyncio.sleep(0)

            async def cancelled() -> bool:
                await asyncio.to_thread(admin.execute, _CANCEL.encode(), (pid,))
                return len(reconciled) >= 2

            tasks = [asyncio.create_task(work(n)) for n in range(100)]
            await eventually_async(cancelled, 60, what="two batches were cancelled")
            stop = True
            await asyncio.gather(*tasks)
            assert lock_pid(c) == pid
            await until_free(database)


@pytest.mark.faults
async def test_full_lock_table(own_server: OwnServer) -> None:
    """When the server's lock table is full in the middle of a batch, callers get what the server granted and the
    others an error; what is held on the server is exactly what callers hold, and nobody loses what he had."""
    with _small(own_server) as small, raw(small.url) as admin:
        async with (
            AsyncCoordinator(small.url, max_locks=100_000) as before,
            AsyncCoordinator(small.url, max_locks=100_000) as c,
        ):
            old = await before.lock("old").acquire()
            first = await c.lock(1_000_000).acquire()
            reconciled = seen(c, BatchReconciled)
            pid = lock_pid(c)
            outcomes = await asyncio.gather(*(c.lock(n).acquire() for n in range(999)), return_exceptions=True)
            holds = {first.key: first} | {hold.key: hold for hold in outcomes if isinstance(hold, AsyncHold)}
            errors = [outcome for outcome in outcomes if not isinstance(outcome, AsyncHold)]
            assert {type(error) for error in errors} == {LockBudgetExceeded}
            assert reconciled
            assert lock_pid(c) == pid
            assert not any(hold.lost for hold in [old, *holds.values()])
            # no look at other sessions: that would need room in the table
            mine = "select objid::int8 from pg_locks where locktype = 'advisory' and objsubid = 1 and pid = %s"
            assert {row[0] for row in admin.execute(mine, (pid,))} == set(holds)
            await asyncio.gather(*(hold.release() for hold in holds.values()))
            async with c.lock("room again", timeout=30):
                pass
            await old.release()
        await until_free(small.url)


@pytest.mark.faults
async def test_default_budget(own_server: OwnServer) -> None:
    """Without `max_locks` a process stops at half of the lock table, before the server has any trouble."""
    with _small(own_server) as small:
        table = small.LOCKS_PER_TRANSACTION * small.CONNECTIONS
        async with AsyncCoordinator(small.url) as c:
            outcomes = await asyncio.gather(*(c.lock(n).acquire() for n in range(table)), return_exceptions=True)
            holds = [hold for hold in outcomes if isinstance(hold, AsyncHold)]
            assert len(holds) == c.health().lock_budget == table // 2
            assert {type(error) for error in outcomes if not isinstance(error, AsyncHold)} == {LockBudgetExceeded}
            assert len(keys_on_server(small.url)) == table // 2
            for hold in holds:
                await hold.release()


def _fill(filler: psycopg.Connection[object]) -> None:
    while True:
        filler.execute("select count(pg_notify('x', n || repeat('.', 7000))) from generate_series(1, 20) n")


@pytest.mark.faults
async def test_full_notify_queue(own_server: OwnServer) -> None:
    """When the server's notification queue is full, a release succeeds; waiters find the lock by looking again."""
    if own_server.major < 17:
        pytest.skip("before PostgreSQL 17 the notification queue has 8 GB")
    with _small(own_server) as small:
        async with AsyncCoordinator(small.url) as one, AsyncCoordinator(small.url) as other:
            failed = seen(one, WakeFailed)
            hold = await one.lock("full").acquire()
            task = await waiting_for(other, "full", small.url)
            with psycopg.connect(small.url) as sleeper, raw(small.url) as filler:
                sleeper.execute("listen anything")
                sleeper.commit()
                sleeper.execute("select 1")
                with pytest.raises(psycopg.OperationalError, match="too many notifications"):
                    _fill(filler)
                await hold.release()
                await (await asyncio.wait_for(task, 30)).release()
                await eventually_async(lambda: failed)
                # a listener that comes while the queue is full hears all that can be said
                async with AsyncCoordinator(small.url) as late:
                    hold = await one.lock("late").acquire()
                    task = asyncio.create_task(late.lock("late").acquire(timeout=30))
                    await eventually_async(
                        lambda: any(isinstance(lock.key, tuple) for lock in advisory_locks(small.url))
                    )
                    await hold.release()
                    await (await task).release()


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("seconds", [1.0, pytest.param(10.0, marks=pytest.mark.long)])
async def test_server_restart(own_server: OwnServer, database: str, mode: str, seconds: float) -> None:
    """Over a restart of the server, or its crash, holders lose and waiters wait on; a try says there is no server."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as other:
        failed = seen(other, ConnectFailed)
        hold = await one.lock("restart").acquire()
        task = await waiting_for(other, "restart", database)
        with own_server.down(mode):
            await hold.wait_lost()
            await eventually_async(lambda: failed)
            with pytest.raises(Unavailable):
                await other.lock("something else").try_acquire()
            await asyncio.sleep(seconds)
            assert not task.done()
        taken = await asyncio.wait_for(task, 60)
        assert not taken.lost
        assert set(keys_on_server(database)) == {key_of("restart")}
        await taken.release()


async def test_statement_errors_reach_the_caller(database: str, server: Server) -> None:
    """A lock statement that the server refuses for good is told with its code, and leaves nothing behind."""
    server.execute("create role powerless login password 'x'")
    try:
        with raw(database) as admin:
            admin.execute("revoke execute on function pg_try_advisory_lock(bigint) from public")
        async with AsyncCoordinator(rewrite(server.over_tcp(database), user="powerless", password="x")) as c:
            with pytest.raises(StatementFailed, match="permission denied") as failed:
                await c.lock("x").acquire()
            assert failed.value.sqlstate == "42501"
            with pytest.raises(StatementFailed):
                await c.lock("x").try_acquire()
            assert c.health().locks_waited_for == 0
    finally:
        with raw(database) as admin:
            admin.execute("grant execute on function pg_try_advisory_lock(bigint) to public")
        server.execute("drop role powerless")
