"""The gate of shared locks on a real server: a waiting writer closes it, and who is kept outside gets in at the end.

Here live tests of readers and writers that wait for each other over several processes. Theory: as in `test_shared.py`;
what opens a gate must also wake those who stand before it, so the re-check is off wherever somebody is there to wake.
"""

import asyncio
import contextlib
import random

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator
from pgconcert.hold import AsyncHold
from pgconcert.postgres import locks as locks_of_links
from pgconcert.postgres import messages, waiting
from pgconcert.testing import eventually_async
from tests.postgres.lockkinds import (
    GATE,
    INTEREST,
    NEVER,
    let_go,
    locks,
    pairs,
    started,
    still_waits,
    until_pairs,
)
from tests.postgres.scenes import (
    Engine,
    both_engines,
    lock_pid,
    until_free,
)
from tests.servers import Server


@pytest.fixture
def no_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself: only a wake-up helps."""
    monkeypatch.setattr(waiting, "_RECHECK", NEVER)


@pytest.fixture
def quick_recheck(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can wake, whoever waits looks again soon."""
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)


@both_engines
async def test_a_waiting_writer_keeps_new_readers_outside(database: str, engine: Engine) -> None:
    """Once a writer of any process waits, no new reader of any process gets in before it."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
        AsyncCoordinator(database, engine=engine) as three,
    ):
        reader = await one.lock("gate", shared=True).acquire()
        writer = await started(two.lock("gate").acquire(), database, GATE)
        for c in (one, two, three):
            assert await c.lock("gate", shared=True).try_acquire() is None
        late = await started(three.lock("gate", shared=True).acquire(), database)
        assert await still_waits(late, three, two)
        await reader.release()
        hold = await asyncio.wait_for(writer, 30)
        assert await still_waits(late, three)
        await until_pairs(database, GATE, 0)
        await hold.release()
        await (await asyncio.wait_for(late, 30)).release()
    await until_free(database)


async def test_a_waiting_writer_with_readers_of_its_own(database: str) -> None:
    """A writer behind readers of its own process closes the gate as well."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        reader = await one.lock("own", shared=True).acquire()
        other = await two.lock("own", shared=True).acquire()
        writer = await started(one.lock("own").acquire(), database, GATE)
        for c in (one, two):
            assert await c.lock("own", shared=True).try_acquire() is None
        await reader.release()
        assert await still_waits(writer, one)
        await other.release()
        await (await asyncio.wait_for(writer, 30)).release()
        async with one.lock("own", shared=True, timeout=30), two.lock("own", shared=True, timeout=30):
            assert pairs(database, GATE) == []
    await until_free(database)


async def test_writers_of_two_processes_behind_readers(database: str) -> None:
    """Only one of several waiting writers has the gate, and all get their turn."""
    async with (
        AsyncCoordinator(database) as one,
        AsyncCoordinator(database) as two,
        AsyncCoordinator(database) as three,
    ):
        reader = await one.lock("two writers", shared=True).acquire()
        writers = [await started(c.lock("two writers").acquire(), database) for c in (two, three)]
        await until_pairs(database, GATE, 1)
        await reader.release()
        for done in asyncio.as_completed(writers, timeout=30):
            await (await done).release()
        async with one.lock("two writers", shared=True, timeout=30):
            pass
    await until_free(database)


@both_engines
@pytest.mark.usefixtures("no_recheck")
@pytest.mark.parametrize("how", ["timeout", "cancel", "close"])
async def test_the_gate_opens_when_the_writer_gives_up(
    database: str, how: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that a writer kept outside are woken when it leaves, however it leaves."""
    for module in (locks_of_links, messages):
        monkeypatch.setattr(module, "_FAREWELL", 15.0)
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as three,
        contextlib.AsyncExitStack() as stack,
    ):
        two = await stack.enter_async_context(AsyncCoordinator(database, engine=engine))
        reader = await one.lock("gives up", shared=True).acquire()

        async def line_up(timeout: float | None) -> tuple[asyncio.Task[AsyncHold], asyncio.Task[AsyncHold]]:
            """A writer that closes the gate, and a reader that stands before it, or has got in because it took long."""
            writer = asyncio.create_task(two.lock("gives up").acquire(timeout))
            await eventually_async(lambda: writer.done() or len(pairs(database, GATE)) == 1)
            late = asyncio.create_task(three.lock("gives up", shared=True).acquire())
            await eventually_async(lambda: late.done() or len(pairs(database, INTEREST)) == 2)
            return writer, late

        # whoever gives up by time must not do so before the other waits: on a busy machine that takes its time
        patience = [1.0, 5.0, 20.0] if how == "timeout" else [None]
        writer, late = await line_up(patience.pop(0))
        while late.done() and patience:
            await asyncio.wait([writer])
            await late.result().release()
            writer, late = await line_up(patience.pop(0))
        if how == "cancel":
            writer.cancel()
        elif how == "close":
            await stack.aclose()
        await asyncio.wait([writer])
        if how == "timeout":
            assert isinstance(writer.exception(), AcquireTimeout)
            assert "it is held shared by" in str(writer.exception())
        elif how == "close":
            assert "closed" in str(writer.exception())
        hold = await asyncio.wait_for(late, 30)
        assert len(locks(database)) == 2
        await let_go(hold, reader)
    await until_free(database)


@pytest.mark.usefixtures("no_recheck")
async def test_readers_beside_readers_get_in_when_the_writer_gives_up(database: str) -> None:
    """A reader that would join readers of its own process is woken as well when the writer leaves."""
    async with AsyncCoordinator(database) as one, AsyncCoordinator(database) as two:
        reader = await one.lock("beside", shared=True).acquire()
        writer = await started(two.lock("beside").acquire(), database, GATE)
        late = asyncio.create_task(one.lock("beside", shared=True).acquire())
        assert await still_waits(late, one)
        writer.cancel()
        await asyncio.wait([writer])
        hold = await asyncio.wait_for(late, 30)
        await let_go(hold, reader)
    await until_free(database)


@pytest.mark.usefixtures("quick_recheck")
async def test_the_gate_opens_when_the_writer_is_killed(database: str, server: Server) -> None:
    """The gate of a writer whose session is gone is open; the writer itself goes on waiting on its next session."""
    async with (
        AsyncCoordinator(database) as one,
        AsyncCoordinator(database) as two,
        AsyncCoordinator(database) as three,
    ):
        reader = await one.lock("killed", shared=True).acquire()
        writer = await started(two.lock("killed").acquire(), database, GATE)
        late = await started(three.lock("killed", shared=True).acquire(), database)
        before = lock_pid(two)
        server.kill_backend(before)
        await eventually_async(lambda: before not in {lock.pid for lock in pairs(database, GATE)})
        await reader.release()
        for done in asyncio.as_completed([writer, late], timeout=30):
            await (await done).release()
    await until_free(database)


@both_engines
@pytest.mark.usefixtures("no_recheck")
async def test_the_last_reader_wakes_the_writer(database: str, engine: Engine) -> None:
    """The release of the last of several readers, and no other, lets the writer in; by its wake-up alone."""
    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
        AsyncCoordinator(database, engine=engine) as three,
    ):
        for _ in range(5):
            readers = [await c.lock("last", shared=True).acquire() for c in (one, one, two, two)]
            random.shuffle(readers)
            writer = await started(three.lock("last").acquire(), database, GATE)
            for reader in readers[:-1]:
                await reader.release()
                assert await still_waits(writer, three)
            await readers[-1].release()
            await (await asyncio.wait_for(writer, 30)).release()
            await until_pairs(database, INTEREST, 0)
    await until_free(database)


@both_engines
@pytest.mark.usefixtures("no_recheck")
async def test_readers_and_writers_without_lost_wake_ups(database: str, engine: Engine) -> None:
    """Readers and writers of three processes take turns six hundred times, woken by releases alone."""
    dice = random.Random(3)
    inside = {True: 0, False: 0}

    async def work(c: AsyncCoordinator) -> None:
        for _ in range(50):
            shared = dice.random() < 0.6
            async with c.lock("turns", shared=shared, timeout=30):
                inside[shared] += 1
                assert inside[False] == 0 or (inside[False], inside[True]) == (1, 0)
                await asyncio.sleep(0)
                inside[shared] -= 1

    async with (
        AsyncCoordinator(database, engine=engine) as one,
        AsyncCoordinator(database, engine=engine) as two,
        AsyncCoordinator(database, engine=engine) as three,
    ):
        await asyncio.gather(*(work(c) for c in (one, two, three) for _ in range(4)))
    await until_free(database)
