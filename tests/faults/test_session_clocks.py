"""Clocks that are wrong and processes that stand still, while something hangs on a session.

The promises, one by one:

* the clock of a client may say anything: it is never asked (see also ``test_job_locks.py``, which moves that of a whole
  process);
* the clock of the server is set ahead: what hangs on sessions may be taken over at once, while its holder still trusts
  its session, for less than a ttl; what that holder then writes under ``transaction.guard`` is refused;
* the clock of the server is set back: nobody loses anything; a holder that dies is replaced later;
* a process that stood still for longer than the ttl finds its hold lost in the first line that it runs, and writes
  nothing: neither the guard nor the server itself lets it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from pgconcert import AsyncCoordinator, transaction
from pgconcert.errors import GuardRefused, SessionLost
from pgconcert.jobs import AsyncJobHold
from pgconcert.testing import eventually_async
from tests.faults.test_job_locks import HOLDER, said, stop
from tests.postgres.jobscenes import expires, make_tables, row, until_marked, until_renewed
from tests.postgres.scenes import raw
from tests.postgres.session_clusters import WrongClock, programs_of
from tests.processes import Worker
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

AHEAD = 300.0
TTL = 2.0
SHORT = 1.0

SLEEPER = """
import asyncio, sys
import psycopg
from pgconcert import AsyncCoordinator, transaction
from pgconcert.blocking import Coordinator
from pgconcert.errors import GuardRefused, SessionLost
from pgconcert.postgres.guard import guard_sql

url, name, ttl, kind = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]

def stand_still():
    print("stop me", flush=True)
    sys.stdin.readline()

def write(connection, hold, session):
    try:
        with connection.transaction():
            transaction.guard(connection, hold)
            connection.execute("insert into written values (%s, %s)", [name, hold.token])
    except GuardRefused:
        print("refused", flush=True)
    # whoever does not ask the guard, but the server, is told the same
    with connection.transaction():
        asked = psycopg.RawCursor(connection)
        found = asked.execute(guard_sql("pgconcert"), ["job", "", name, "", session, hold.token]).fetchone()
    print("server", found, flush=True)

async def in_a_loop(connection):
    async with AsyncCoordinator(url) as c:
        hold = await c.job_lock(name, ttl=ttl).acquire()
        session = hold.session_id
        print("holds", hold.token, session, flush=True)
        stand_still()
        print("lost", hold.lost, flush=True)
        write(connection, hold, session)
        await hold.release()
        try:
            hold.check()
        except SessionLost as lost:
            print("told", lost, flush=True)

def in_a_thread(connection):
    with Coordinator(url) as c:
        hold = c.job_lock(name, ttl=ttl).acquire()
        session = hold.session_id
        print("holds", hold.token, session, flush=True)
        stand_still()
        print("lost", hold.lost, flush=True)
        write(connection, hold, session)
        hold.release()
        try:
            hold.check()
        except SessionLost as lost:
            print("told", lost, flush=True)

with psycopg.connect(url, autocommit=True) as connection:
    if kind == "loop":
        asyncio.run(in_a_loop(connection))
    else:
        in_a_thread(connection)
"""


@pytest.fixture(scope="module")
def tables(database: str) -> str:
    """A database with our tables, and one that holders write."""
    make_tables(database)
    with raw(database) as owner:
        owner.execute("create table written (name text, token bigint)")
    return database


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_whoever_stood_still_writes_nothing(
    tables: str, worker: Callable[..., Worker], unique: str, kind: str
) -> None:
    process = worker(SLEEPER, tables, unique, str(SHORT), kind)
    token, session = await said(process, "holds")
    async with AsyncCoordinator(tables) as c:
        await said(process, "stop me")
        await stop(process)
        async with c.job_lock(unique, ttl=60, check=SHORT) as mine:
            assert mine.token > int(token)
            assert mine.since >= expires(tables, int(session))
            process.send("the line that it has waited for")
            process.cont()
            assert await said(process, "lost") == ["True"]
            await said(process, "refused")
            assert await said(process, "server") == ["None"]
            await said(process, "told")
            assert await asyncio.to_thread(process.wait) == 0
            assert not mine.lost
            found = row(tables, unique)
            assert (found.session, found.token) == (mine.session_id, mine.token)
    with raw(tables) as look:
        assert look.execute("select from written where name = %s", [unique]).fetchall() == []


@pytest.mark.parametrize("name", ["time", "time_ns"])
async def test_the_wall_clock_is_not_asked(
    tables: str, unique: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It jumps by five minutes with every look at it, both ways, and beats, waits and takes go on."""
    right, steps = getattr(time, name), 0

    def wrong() -> float:
        nonlocal steps
        steps += 1
        ahead = AHEAD if steps % 2 else -AHEAD
        return right() + (ahead if name == "time" else int(ahead * 1e9))  # type: ignore[no-any-return]

    async with AsyncCoordinator(tables) as c, AsyncCoordinator(tables) as other:
        monkeypatch.setattr(time, name, wrong)
        async with c.job_lock(unique, ttl=60, interval=0.2) as hold:
            waits = asyncio.create_task(other.job_lock(unique, ttl=60, interval=0.2, check=0.2).acquire())
            await until_marked(tables, unique)
            for _ in range(3):
                await until_renewed(tables, hold.session_id)
                (session,) = c.health().sessions
                low = session.trusted_for
                await eventually_async(lambda: c.health().sessions[0].trusted_for > low, 20, what="it is trusted")  # noqa: B023
            assert not hold.lost
            assert not waits.done()
        await (await waits).release()


@pytest.fixture
def clock(server: Server) -> Iterator[WrongClock]:
    """A server of this test's own, whose clock can be set."""
    with closing(WrongClock("wrong clock", programs_of(server))) as running:
        make_tables(running.url)
        with raw(running.url) as owner:
            owner.execute("create table written (name text, token bigint)")
        yield running


async def write(url: str, hold: AsyncJobHold) -> None:
    """What a careful holder does."""
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        connection.transaction(),
    ):
        await transaction.guard(connection, hold)
        await connection.execute("insert into written values (%s, %s)", [hold.key, hold.token])


@pytest.mark.long
@pytest.mark.needs("faketime")
async def test_the_server_is_set_ahead(clock: WrongClock, unique: str) -> None:
    async with AsyncCoordinator(clock.url) as c, AsyncCoordinator(clock.url) as other:
        hold = await c.job_lock(unique, ttl=20, interval=5).acquire()
        await write(clock.url, hold)
        clock.set_clock(AHEAD)
        mine = await other.job_lock(unique, ttl=20).try_acquire()
        assert mine is not None
        assert mine.token > hold.token
        # both believe in it; only one of them can write
        assert not hold.lost
        with pytest.raises(GuardRefused):
            await write(clock.url, hold)
        await write(clock.url, mine)
        # and that does not take longer than until the next heartbeat
        async with asyncio.timeout(20):
            assert "time is over" in await hold.wait_lost()
        await hold.release()
        with pytest.raises(SessionLost):
            hold.check()
        assert not mine.lost
        with raw(clock.url) as look:
            written = look.execute(b"select token from written order by token").fetchall()
        assert written == [(hold.token,), (mine.token,)]
        await mine.release()
        # later holders are as safe as ever
        async with c.job_lock(unique, ttl=20) as again:
            await write(clock.url, again)
            assert again.token > mine.token


@pytest.mark.long
@pytest.mark.needs("faketime")
async def test_the_server_is_set_ahead_and_the_holder_hears_nothing(
    clock: WrongClock, worker: Callable[..., Worker], unique: str
) -> None:
    """Then the overlap lasts until its trust is over, which is less than a ttl after its last heartbeat."""
    process = worker(SLEEPER, clock.url, unique, str(TTL), "loop")
    token, _ = await said(process, "holds")
    await said(process, "stop me")
    await stop(process)
    clock.set_clock(AHEAD)
    async with AsyncCoordinator(clock.url) as c, c.job_lock(unique, ttl=TTL) as mine:
        assert mine.token > int(token)
        await asyncio.sleep(TTL)  # the overlap at its longest
        process.send("the line that it has waited for")
        process.cont()
        assert await said(process, "lost") == ["True"]
        await said(process, "refused")
        assert await asyncio.to_thread(process.wait) == 0
        assert not mine.lost


@pytest.mark.long
@pytest.mark.needs("faketime")
async def test_the_server_is_set_back(clock: WrongClock, worker: Callable[..., Worker], unique: str) -> None:
    process = worker(HOLDER, clock.url, unique, str(TTL))
    token, session = await said(process, "holds")
    async with AsyncCoordinator(clock.url) as c, AsyncCoordinator(clock.url) as quiet:
        late = await quiet.job_lock(f"{unique}:late", ttl=60, interval=29).acquire()
        before = expires(clock.url, int(session))
        clock.set_clock(-AHEAD)
        await eventually_async(lambda: expires(clock.url, int(session)) < before - AHEAD / 2, what="it is renewed")
        waits = asyncio.create_task(c.job_lock(unique, ttl=TTL, check=0.1).acquire())
        await until_marked(clock.url, unique)
        await until_renewed(clock.url, int(session), TTL)
        assert not waits.done()
        found = row(clock.url, unique)
        assert (found.session, found.token) == (int(session), int(token))
        # one that has renewed since is replaced a ttl after its end
        process.kill()
        mine = await waits
        assert mine.since >= expires(clock.url, int(session))
        assert mine.token > int(token)
        await write(clock.url, mine)
        await write(clock.url, late)
        # one that has not is there for as long as the clock was set back
        async with AsyncCoordinator(clock.url) as other:
            refused = await other.job_lock(f"{unique}:late").try_acquire()
            assert refused is None
            assert expires(clock.url, late.session_id) - mine.since > AHEAD - 60
        assert not late.lost
        await mine.release()
        await late.release()
