"""Job locks when processes die or stand still, clocks are wrong, and the server is busy or away.

Theory. Three things must hold whatever happens: a holder that others may replace has been told before; what is taken
over is taken at the end of the old session's time, never before it, by the server's clock; and whoever lost nothing
goes on. The one bound in seconds is each test's own time limit. The network: `test_job_locks_network.py`.

Only what is to be lost has a short ``ttl``, and on a busy machine it may be lost before its time. What is to stay has a
long one.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.events import HeartbeatFailed, HeartbeatLate, JobFailed
from pgconcert.jobs import AsyncJobHold
from pgconcert.testing import eventually_async
from tests.faults.scenes import down, seen
from tests.postgres.jobscenes import expires, make_tables, marks, row, until_marked, until_renewed
from tests.postgres.scenes import raw
from tests.processes import Worker
from tests.servers import OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])

TTL = 2.0
LASTING = 60.0

HOLDER = """
import asyncio, sys, time
from pgconcert import AsyncCoordinator
from pgconcert.errors import SessionLost

interval = float(sys.argv[4]) if sys.argv[4:] else None

async def main():
    async with AsyncCoordinator(sys.argv[1]) as c:
        try:
            async with c.job_lock(sys.argv[2], ttl=float(sys.argv[3]), interval=interval) as hold:
                print("holds", hold.token, hold.session_id, flush=True)
                clock = began = time.time()
                while not hold.lost:
                    await asyncio.sleep(0.02)
                    before, clock = clock, time.time()
                    if abs(clock - before) > 200:
                        print("clock", round(clock - began), flush=True)
                print("found it", flush=True)
                await asyncio.sleep(60)
        except SessionLost as lost:
            print("told", lost, flush=True)
        async with c.job_lock(sys.argv[2], ttl=float(sys.argv[3])) as hold:
            print("again", hold.token, flush=True)

asyncio.run(main())
"""

KEEPER = """
import asyncio, sys
from pgconcert import AsyncCoordinator

async def job(hold):
    print("runs", hold.token, flush=True)
    await asyncio.sleep(60)

async def main():
    async with AsyncCoordinator(sys.argv[1]) as c:
        print("begins", flush=True)
        await c.run_in_job_lock(sys.argv[2], job, ttl=float(sys.argv[3]))

asyncio.run(main())
"""

THREAD = """
import sys
from pgconcert.blocking import Coordinator

def job(hold):
    print("runs", hold.token, flush=True)
    hold.wait_lost()

with Coordinator(sys.argv[1]) as c:
    try:
        c.run_in_job_lock(sys.argv[2], job, ttl=float(sys.argv[3]))
    except KeyboardInterrupt:
        print("interrupted", c.job_lock(sys.argv[2]).holder(), flush=True)
"""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables."""
    make_tables(database)
    return database


async def said(process: Worker, word: str) -> list[str]:
    """What a worker says next."""
    return (await asyncio.to_thread(process.expect, word, 30)).split()


async def stop(process: Worker) -> None:
    """SIGSTOP, and wait until it stands still."""
    process.stop_signal()
    status = Path(f"/proc/{process.pid}/stat")
    await eventually_async(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")


async def stopped(worker: Callable[..., Worker], tables: str, unique: str) -> tuple[Worker, int, int]:
    """A process that stands still while it holds, with its token and session; one that lost it before is replaced."""
    while True:
        process = worker(HOLDER, tables, unique, str(TTL))
        token, session = map(int, await said(process, "holds"))
        await stop(process)
        if row(tables, unique).session == session:
            return process, token, session
        process.kill()


async def until_it_waits(tables: str, unique: str, waits: asyncio.Task[AsyncJobHold]) -> None:
    """Wait until it waits; or has it, if whoever had it lost it before its time."""
    await eventually_async(lambda: waits.done() or marks(tables, unique), what="it waits")


def had_lost(process: Worker) -> bool:
    """Whether one that was killed had lost the lock before."""
    try:
        process.expect("told")
    except AssertionError:
        return False
    return True


async def test_the_lock_of_a_killed_process_is_taken_over_when_its_time_is_over(
    tables: str, worker: Callable[..., Worker], unique: str
) -> None:
    async with AsyncCoordinator(tables) as c:
        while True:
            process = worker(HOLDER, tables, unique, str(TTL))
            token, session = await said(process, "holds")
            waits = asyncio.create_task(c.job_lock(unique, ttl=LASTING).acquire())
            await until_it_waits(tables, unique, waits)
            process.kill()
            mine = await waits
            assert mine.token > int(token)
            await mine.release()
            if not had_lost(process):
                break
        assert mine.since >= expires(tables, int(session))


async def test_whoever_has_been_stopped_for_too_long_knows_it_at_once(
    tables: str, worker: Callable[..., Worker], unique: str
) -> None:
    async with AsyncCoordinator(tables) as c:
        process, token, session = await stopped(worker, tables, unique)
        async with c.job_lock(unique, ttl=LASTING) as mine:
            assert mine.since >= expires(tables, session)
            assert mine.token > token
            process.cont()
            await said(process, "told")
            assert not mine.lost
            found = row(tables, unique)
            assert (found.session, found.token) == (mine.session_id, mine.token)
        (again,) = await said(process, "again")
        assert int(again) > mine.token
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_short_stop_loses_nothing(tables: str, worker: Callable[..., Worker], unique: str) -> None:
    process = worker(HOLDER, tables, unique, "20", "1")
    token, session = await said(process, "holds")
    await stop(process)
    async with AsyncCoordinator(tables) as c:
        assert await c.job_lock(unique).try_acquire() is None
        process.cont()
        await until_renewed(tables, int(session))
        found = row(tables, unique)
        assert (found.session, found.token) == (int(session), int(token))


async def test_a_lock_on_the_table_is_no_hot_loop(tables: str, unique: str) -> None:
    """Nobody can renew for longer than the ttl: few tries, the loss in time, and then it goes on for all."""
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        failed, late = seen(c, HeartbeatFailed), seen(c, HeartbeatLate)
        hold = await c.job_lock(unique, ttl=TTL, on_lost="report").acquire()
        waits = asyncio.create_task(other.job_lock(unique, ttl=TTL).acquire())
        known: list[bool] = []
        waits.add_done_callback(lambda _: known.append(hold.lost))
        await until_it_waits(tables, unique, waits)
        with raw(tables) as owner, owner.transaction():
            owner.execute("lock table pgconcert.session in access exclusive mode")
            reason = await hold.wait_lost()
        assert "no heartbeat" in reason
        assert failed or late
        assert len(failed) < 25
        mine = await waits
        assert known == [True]
        assert mine.token > hold.token
        await mine.release()
        await hold.release()


async def test_a_restart_of_the_server_loses_nothing(own_server: OwnServer, tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        async with c.job_lock(unique, ttl=60, interval=1) as hold:
            waits = asyncio.create_task(other.job_lock(unique, ttl=60, interval=1, check=1).acquire())
            await until_marked(tables, unique)
            before = expires(tables, hold.session_id)
            async with down(own_server, "immediate"):
                pass
            await eventually_async(
                lambda: expires(tables, hold.session_id) > before, 20.0, what="its heart beats again"
            )
            assert not hold.lost
            assert not waits.done()
        mine = await waits
        assert mine.token > hold.token
        await mine.release()


async def test_a_release_waits_no_longer_than_the_session_lasts(
    own_server: OwnServer, tables: str, unique: str
) -> None:
    """While the server is away nobody can be told; when the time of the session is over it is free anyway."""
    async with AsyncCoordinator(tables) as c:
        hold = await c.job_lock(unique, ttl=TTL).acquire()
        async with down(own_server, "immediate"):
            releasing = asyncio.create_task(hold.release())
            await asyncio.wait([releasing], timeout=30)
            assert releasing.done()
        async with c.job_lock(unique, ttl=LASTING) as again:
            assert again.token > hold.token


@both_engines
async def test_the_end_of_all_its_connections_loses_nothing(
    server: Server, tables: str, unique: str, engine: Engine
) -> None:
    async with AsyncCoordinator(tables, engine=engine) as c:
        async with c.job_lock(unique, ttl=20, interval=0.5) as hold:
            for _ in range(3):
                for link in c.health().links:
                    if link.server_pid:
                        server.kill_backend(link.server_pid)
                await until_renewed(tables, hold.session_id)
            assert not hold.lost
        found = row(tables, unique)
        assert found.session is None


@pytest.mark.long
@pytest.mark.needs("faketime")
async def test_the_clock_of_the_client_is_not_asked(
    tables: str, worker: Callable[..., Worker], unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is set five minutes ahead, then five minutes back, while it holds and while it waits."""
    wrong = tmp_path / "offset"
    wrong.write_text("+0")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert libraries, "faketime has its library elsewhere"
    with monkeypatch.context() as environment:
        environment.setenv("LD_PRELOAD", str(libraries[0]))
        environment.setenv("FAKETIME_TIMESTAMP_FILE", str(wrong))
        environment.setenv("FAKETIME_NO_CACHE", "1")
        environment.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        process = worker(HOLDER, tables, unique, "6")
        token, session = await said(process, "holds")
    async with AsyncCoordinator(tables) as c:
        waits = asyncio.create_task(c.job_lock(unique, ttl=LASTING).acquire())
        await until_marked(tables, unique)
        for offset in (300, -300):
            wrong.write_text(f"{offset:+d}")
            (by,) = await said(process, "clock")
            assert int(by) == pytest.approx(offset, abs=60)
            await until_renewed(tables, int(session), 6.0)
            assert not waits.done()
            found = row(tables, unique)
            assert (found.session, found.token) == (int(session), int(token))
        assert [line.split()[0] for line in process.heard] == ["holds", "clock", "clock"]
        process.kill()
        mine = await waits
        assert mine.since >= expires(tables, int(session))
        await mine.release()


async def runs(keeper: Worker, token: int) -> int:
    """Wait until the job runs there with that token, or with a later one."""
    while (found := int((await said(keeper, "runs"))[0])) < token:
        pass
    return found


async def test_a_job_goes_on_in_another_process(tables: str, worker: Callable[..., Worker], unique: str) -> None:
    keepers = [worker(KEEPER, tables, unique, str(TTL)) for _ in range(2)]
    for keeper in keepers:
        await said(keeper, "begins")
    async with AsyncCoordinator(tables) as c:
        lock = c.job_lock(unique)
        first: Any = await eventually_async(lock.holder)
        running, other = sorted(keepers, key=lambda keeper: keeper.pid != first.pid)
        assert await runs(running, first.token) == first.token
        running.kill()
        assert await runs(other, first.token + 1) > first.token


async def test_an_interrupt_ends_a_job_that_is_kept_running(
    tables: str, worker: Callable[..., Worker], unique: str
) -> None:
    process = worker(THREAD, tables, unique, "20")
    await said(process, "runs")
    process._process.send_signal(signal.SIGINT)
    assert await said(process, "interrupted") == ["None"]
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_kept_job_survives_the_loss_of_the_server(own_server: OwnServer, tables: str, unique: str) -> None:
    async with AsyncCoordinator(tables) as c:
        failures = seen(c, JobFailed)
        tokens: list[int] = []
        cancelled = 0

        async def job(hold: AsyncJobHold) -> Any:
            nonlocal cancelled
            tokens.append(hold.token)
            try:
                return await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                raise

        keeping = asyncio.create_task(c.run_in_job_lock(unique, job, ttl=1.0))
        await eventually_async(lambda: tokens)
        async with down(own_server, "immediate"):
            await eventually_async(lambda: cancelled == len(tokens), what="it is cancelled, as its session is lost")
            ran = len(tokens)
        await eventually_async(lambda: len(tokens) > ran, 30.0, what="it runs again")
        assert tokens == sorted(set(tokens))
        assert not failures
        keeping.cancel()
        await asyncio.wait([keeping])
