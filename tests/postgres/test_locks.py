"""The exclusive lock as its users see it, on a real server, on both engines where the engine could matter.

Here live exclusion, order, keys, errors, holds and their end. Waiting between processes stands in `test_waiting.py`,
cancellation in `test_locks_cancel.py`, broken connections in `test_locks_failures.py`. Theory: two coordinators in one
process are two processes to the server; a third party looks at `pg_locks`.
"""

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from pgconcert import (
    AcquireTimeout,
    AsyncCoordinator,
    ConfigurationError,
    CoordinatorClosed,
    KeyInvalid,
    LockBudgetExceeded,
    LockLost,
    NotHeld,
    WouldDeadlock,
)
from pgconcert.testing import eventually_async
from tests.postgres.scenes import (
    QUIET,
    Engine,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    marks_on_server,
    raw,
    role_pids,
    statements,
    until_free,
    waiting_for,
)


@asynccontextmanager
async def two(url: str, engine: Engine = "loop") -> AsyncGenerator[tuple[AsyncCoordinator, AsyncCoordinator]]:
    """Two coordinators, as two processes would have them."""
    async with (
        AsyncCoordinator(url, name="one", engine=engine) as one,
        AsyncCoordinator(url, name="two", engine=engine) as other,
    ):
        yield one, other


@both_engines
async def test_exclusion_between_coordinators(database: str, engine: Engine) -> None:
    """What one holds, another cannot have; what one gave back, another gets."""
    async with two(database, engine) as (one, other):
        async with one.lock("shared") as hold:
            assert not hold.lost
            assert await other.lock("shared").try_acquire() is None
            assert keys_on_server(database) == {key_of("shared"): lock_pid(one)}
        taken = await other.lock("shared").try_acquire()
        assert taken is not None
        assert await one.lock("shared").try_acquire() is None
        await taken.release()
        assert keys_on_server(database) == {}


@both_engines
async def test_never_two_holders(database: str, engine: Engine) -> None:
    """Under contention within and between processes there is one holder at a time."""
    async with two(database, engine) as pair:
        inside = 0
        entries = 0

        async def work(c: AsyncCoordinator) -> None:
            nonlocal inside, entries
            for _ in range(10):
                async with c.lock("contended"):
                    inside += 1
                    entries += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

        await asyncio.gather(*(work(pair[n % 2]) for n in range(20)))
        assert entries == 200
    await until_free(database)


@both_engines
async def test_two_objects_in_one_process(database: str, engine: Engine) -> None:
    """Two lock objects of one name exclude each other, and only the hold releases (A2)."""
    async with AsyncCoordinator(database, engine=engine) as c:
        mine = await c.lock("same").acquire()
        assert await c.lock("same").try_acquire() is None
        with pytest.raises(NotHeld):
            await c.release_lock("same")
        assert key_of("same") in keys_on_server(database)
        await mine.release()
        assert keys_on_server(database) == {}


async def test_same_task_twice(database: str) -> None:
    """Locks are not re-entrant: a task that would wait for itself is told, and still has its hold (A1)."""
    async with AsyncCoordinator(database) as c:
        lock = c.lock("again")
        async with lock as hold:
            for attempt in (lock.acquire, c.lock("again").acquire, lock.__aenter__):
                with pytest.raises(WouldDeadlock):
                    await attempt()
            assert await lock.try_acquire() is None
            hold.check()
        async with lock:
            assert key_of("again") in keys_on_server(database)


@both_engines
async def test_fifo_inside_a_process(database: str, engine: Engine) -> None:
    """Tasks of one process get the lock in the order in which they asked."""
    async with AsyncCoordinator(database, engine=engine) as c:
        order: list[int] = []

        async def work(number: int) -> None:
            async with c.lock("queue"):
                order.append(number)

        async with c.lock("queue"):
            tasks = []
            for number in range(50):
                tasks.append(asyncio.create_task(work(number)))
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == list(range(50))


@both_engines
async def test_zero_timeout_tries_once(database: str, engine: Engine) -> None:
    """`timeout=0` takes a free lock and reports a taken one."""
    async with two(database, engine) as (one, other):
        hold = await one.lock("zero").acquire(timeout=0)
        with pytest.raises(AcquireTimeout, match="zero"):
            await other.lock("zero").acquire(timeout=0)
        with pytest.raises(TimeoutError):
            async with other.lock("zero", timeout=0):
                pytest.fail("entered")
        await hold.release()
        assert marks_on_server(database) == 0


@both_engines
async def test_timeout_names_the_holder(database: str, engine: Engine) -> None:
    """A wait that ends says who has the lock, and leaves nothing on the server (A9)."""
    async with two(database, engine) as (one, other):
        async with one.lock("named"):
            assert await other.lock("named").try_acquire() is None  # it is connected
            with pytest.raises(AcquireTimeout) as failed:
                await other.lock("named").acquire(timeout=0.1)
            assert "'named' was not acquired within 0.1 s" in str(failed.value)
            assert f"(pid {lock_pid(one)})" in str(failed.value)
            assert "one@" in str(failed.value)
            await eventually_async(lambda: marks_on_server(database) == 0)
        async with other.lock("named", timeout=30):
            pass


async def test_timeout_names_a_stranger(database: str) -> None:
    """The holder is named too when it is another program."""
    async with AsyncCoordinator(database) as c:
        with raw(database) as stranger:
            stranger.execute("select pg_advisory_lock(77)")
            assert await c.lock(77).try_acquire() is None  # it is connected
            with pytest.raises(AcquireTimeout, match=rf"somebody else \(pid {stranger.info.backend_pid}\)"):
                await c.lock(77).acquire(timeout=0.05)


@both_engines
async def test_dropped_hold(database: str, engine: Engine) -> None:
    """A hold that its owner drops is released, with a warning that names it."""
    async with two(database, engine) as (one, other):
        holder = [await one.lock("dropped").acquire()]
        with pytest.warns(ResourceWarning, match="'dropped' was dropped without release"):
            holder.clear()
        async with other.lock("dropped", timeout=30):
            pass


@both_engines
async def test_hold_dropped_in_a_cycle(database: str, engine: Engine) -> None:
    """The same through the garbage collector."""
    async with two(database, engine) as (one, other):
        cycle: list[object] = [await one.lock("cycle").acquire()]
        cycle.append(cycle)
        del cycle
        with pytest.warns(ResourceWarning, match="'cycle'"):
            gc.collect()
        async with other.lock("cycle", timeout=30):
            pass


@both_engines
async def test_hold_dropped_in_another_thread(database: str, engine: Engine) -> None:
    """The same from a thread that has nothing to do with the loop."""
    async with two(database, engine) as (one, other):
        holder = [await one.lock("thread").acquire()]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            thread = threading.Thread(target=holder.clear)
            thread.start()
            await eventually_async(lambda: not thread.is_alive())
        assert [warning.category for warning in caught] == [ResourceWarning]
        async with other.lock("thread", timeout=30):
            pass


@both_engines
async def test_acquire_lock_and_release_lock(database: str, engine: Engine) -> None:
    """The neutral words: a bool, and only the coordinator that took a key gives it back."""
    async with two(database, engine) as (one, other):
        assert await one.acquire_lock("neutral")
        assert not await one.acquire_lock("neutral")
        assert not await other.acquire_lock("neutral")
        with pytest.raises(NotHeld):
            await other.release_lock("neutral")
        await one.release_lock("neutral")
        with pytest.raises(NotHeld):
            await one.release_lock("neutral")
        assert await other.acquire_lock("neutral")
        await other.release_lock("neutral")


@pytest.mark.parametrize("key", [42, 0, -1, -42, 2**63 - 1, -(2**63), 2**32, -(2**31)])
async def test_int_keys_are_the_servers(database: str, key: int) -> None:
    """An int is the server's bigint: another program and we exclude each other over the whole range."""
    async with AsyncCoordinator(database) as c:
        with raw(database) as stranger:
            async with c.lock(key):
                assert stranger.execute("select pg_try_advisory_lock(%s::int8)", (key,)).fetchone() == (False,)
                assert keys_on_server(database) == {key: lock_pid(c)}
            stranger.execute("select pg_advisory_lock(%s::int8)", (key,))
            assert await c.lock(key).try_acquire() is None
            stranger.execute("select pg_advisory_unlock(%s::int8)", (key,))
            async with c.lock(key, timeout=30):
                pass


@pytest.mark.parametrize(
    "key", ["", "a\0b", "x" * 1001, "é" * 501, "\ud800", 2**63, -(2**63) - 1, True, 1.5, b"x", None]
)
async def test_bad_keys(key: object) -> None:
    """What cannot be a key is refused before anything is sent (A7)."""
    async with AsyncCoordinator("postgresql://nowhere.invalid/x") as c:
        with pytest.raises(KeyInvalid):
            c.lock(key)  # type: ignore[arg-type]
        with pytest.raises(KeyInvalid):
            await c.acquire_lock(key)  # type: ignore[arg-type]
        assert c.health().locks_waited_for == 0


async def test_long_and_foreign_texts(database: str) -> None:
    """Texts of any length up to the limit are told apart to their last byte (A7)."""
    names = ["x" * 63, "x" * 64, "x" * 999 + "a", "x" * 999 + "b", "é" * 500, "😀", "e\u0301", "\u00e9", " a", "a "]
    async with AsyncCoordinator(database) as c:
        holds = [await c.lock(name).acquire() for name in names]
        assert set(keys_on_server(database)) == {key_of(name) for name in names}
        assert len(keys_on_server(database)) == len(names)
        for hold in holds:
            await hold.release()


async def test_namespaces(database: str) -> None:
    """Text keys of different namespaces are different locks; int keys are the server's everywhere."""
    async with AsyncCoordinator(database, namespace="a") as a, AsyncCoordinator(database, namespace="b") as b:
        async with a.lock("name"), b.lock("name"):
            assert set(keys_on_server(database)) == {key_of("name", "a"), key_of("name", "b")}
        async with a.lock(5):
            assert await b.lock(5).try_acquire() is None


async def test_two_statements_per_cycle(database: str) -> None:
    """An uncontended cycle costs exactly two statements, and nobody is notified."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        async with c.lock("warm"):
            pass
        before = statements(c)
        for n in range(200):
            async with c.lock(f"cycle {n % 3}"):
                pass
        assert statements(c) - before == 400
        assert role_pids(c, "listen") == role_pids(c, "publish") == []


async def test_many_tasks_share_statements(database: str) -> None:
    """A thousand tasks with names of their own need at most one statement for a hundred cycles."""
    async with AsyncCoordinator(database, network_timeout=QUIET) as c:
        async with c.lock("warm"):
            pass

        async def work(number: int) -> None:
            for _ in range(5):
                async with c.lock(f"own {number}"):
                    pass

        before = statements(c)
        await asyncio.gather(*(work(n) for n in range(1000)))
        assert statements(c) - before <= 50
    await until_free(database)


@both_engines
@pytest.mark.parametrize(("count", "links"), [(1000, 1), (2500, 3)])
async def test_many_locks_on_few_links(database: str, engine: Engine, count: int, links: int) -> None:
    """A thousand locks are held on one connection, 2,500 on three; all are real, and all go."""
    async with AsyncCoordinator(database, engine=engine) as c:
        holds = await asyncio.gather(*(c.lock(f"held {n}").acquire() for n in range(count)))
        assert len(role_pids(c, "lock")) == links
        held = keys_on_server(database)
        assert set(held) == {key_of(f"held {n}") for n in range(count)}
        assert set(held.values()) == set(role_pids(c, "lock"))
        assert c.health().locks_held == count
        await asyncio.gather(*(hold.release() for hold in holds))
        assert keys_on_server(database) == {}


@both_engines
async def test_budget_of_our_own(database: str, engine: Engine) -> None:
    """One lock more than `max_locks` is refused at once, with the numbers, and the server is not asked."""
    async with AsyncCoordinator(database, max_locks=3, network_timeout=QUIET, engine=engine) as c:
        holds = [await c.lock(n).acquire() for n in range(3)]
        before = statements(c)
        for refused in (c.lock("more").acquire(), c.lock("more").try_acquire()):
            with pytest.raises(LockBudgetExceeded, match=r"3 locks .* budget is 3; .*max_locks"):
                await refused
        assert statements(c) == before
        await holds.pop().release()
        holds.append(await c.lock("more").acquire())
        assert c.health().lock_budget == 3
        for hold in holds:
            await hold.release()


@both_engines
async def test_close(database: str, engine: Engine) -> None:
    """Closing frees everything at once for others, tells holders and waiters, and may be repeated."""
    async with AsyncCoordinator(database) as outside:
        c = AsyncCoordinator(database, engine=engine)
        await c.open()
        hold = await c.lock("mine").acquire()
        stranger = await outside.lock("theirs").acquire()
        wants_ours = await waiting_for(outside, "mine", database)
        ours_wait = [await waiting_for(c, "theirs", database)]
        ours_wait += [asyncio.create_task(c.lock(key).acquire()) for key in ("mine", "theirs")]
        await asyncio.sleep(0)
        await asyncio.gather(c.close(), c.close())
        assert (hold.lost, hold.reason) == (True, "the coordinator was closed")
        for task in ours_wait:
            with pytest.raises(CoordinatorClosed):
                await task
        taken = await asyncio.wait_for(wants_ours, 30)
        with pytest.raises(LockLost):
            hold.check()
        await hold.release()
        await c.close()
        with pytest.raises(CoordinatorClosed, match="closed"):
            c.lock("x")
        with pytest.raises(CoordinatorClosed):
            await c.open()
        await taken.release()
        await stranger.release()
    await until_free(database)


async def test_not_opened(database: str) -> None:
    """Before `open` nothing can be asked, and the error says what to do; opening twice is an error; closing is not."""
    c = AsyncCoordinator(database)
    with pytest.raises(CoordinatorClosed, match="open"):
        c.lock("early")
    async with c:
        with pytest.raises(CoordinatorClosed):
            await c.open()
        async with c.lock("works still"):
            pass
    unused = AsyncCoordinator(database)
    await unused.close()
    with pytest.raises(CoordinatorClosed):
        await unused.open()


@pytest.mark.parametrize("timeout", [-1, float("nan"), True, "5"])
async def test_bad_timeout(database: str, timeout: object) -> None:
    """A timeout that is not a number of seconds is refused before anything is sent."""
    async with AsyncCoordinator(database) as c:
        with pytest.raises(ConfigurationError, match="timeout"):
            c.lock("x", timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="timeout"):
            await c.lock("x").acquire(timeout=timeout)  # type: ignore[arg-type]
