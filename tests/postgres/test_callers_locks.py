"""`transaction.lock` and `try_lock` on connections of every kind: whom they exclude, when they are free, and what a
wait leaves behind.

Here live tests of `transaction/locking.py` and of its statements. Theory: who waits is seen on the server, so each test
goes on when somebody waits there, and not after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, ConfigurationError
from pgconcert.testing import advisory_locks, eventually_async
from pgconcert.transaction import connections, lock, locking, try_lock
from pgconcert.transaction.flow import Query
from pgconcert.transaction.locking import Key
from tests.postgres.callers import AWAITED, KINDS, Caller, caller, kinds
from tests.postgres.scenes import key_of, raw
from tests.postgres.session_scenes import rows

every_kind = pytest.mark.parametrize("kind", KINDS)
some_kinds = kinds("psycopg", "asyncpg", "sqlalchemy-pg8000")

SETTINGS = "select string_agg(name || '=' || setting, ' ' order by name) from pg_settings where name !~ '^transaction_'"


async def waits(url: str, pid: int | None = None) -> None:
    """Until somebody waits for an advisory lock."""
    await eventually_async(
        lambda: any(not one.granted and pid in (None, one.pid) for one in advisory_locks(url)), what="somebody waits"
    )


def held(url: str) -> set[Any]:
    """The keys that somebody has."""
    return {one.key for one in advisory_locks(url) if one.granted}


@contextlib.contextmanager
def holding(url: str, key: Key, **options: Any) -> Iterator[psycopg.Connection[Any]]:
    """A lock that another transaction has, of an application that is called `the holder`."""
    with psycopg.connect(url, application_name="the holder") as holder:
        lock(holder, key, **options)
        yield holder


# whom they exclude, and when they are free


@some_kinds
async def test_both_ways_against_a_coordinator(database: str, kind: str) -> None:
    """The same text is the same lock, in the same namespace; it is free after the commit, and after the rollback."""
    async with AsyncCoordinator(database, namespace="ours") as c, caller(kind, database) as conn:
        for end in (conn.commit, conn.rollback):
            hold = await c.lock("invoice:42").acquire()
            await conn.begin()
            assert await conn.say(try_lock, "invoice:42", namespace="ours") is False
            assert await conn.say(try_lock, "invoice:42") is True
            waiting = asyncio.create_task(conn.say(lock, "invoice:42", namespace="ours"))
            await waits(database)
            await hold.release()
            await waiting
            assert await c.lock("invoice:42").try_acquire() is None
            assert held(database) == {key_of("invoice:42", "ours"), key_of("invoice:42")}
            await end()
            assert held(database) == set()


async def test_a_coordinator_that_waits(database: str) -> None:
    """Nobody tells it of the commit; it looks again, and has the lock."""
    async with AsyncCoordinator(database) as c:
        with holding(database, "a") as holder:
            waiting = asyncio.create_task(c.lock("a").acquire(timeout=30))
            await eventually_async(lambda: len(held(database)) == 2, what="it waits: there is a mark of interest")
            holder.commit()
            assert (await waiting).key == "a"


@every_kind
async def test_a_savepoint_frees_what_is_younger(database: str, kind: str) -> None:
    """Numbers, texts, pairs; shared, exclusive and again; what the transaction had before the savepoint stays."""
    with raw(database) as other:
        shared = "select pg_try_advisory_xact_lock_shared(%s)"
        async with caller(kind, database) as conn:
            await conn.begin()
            await conn.say(lock, -(2**63))
            await conn.savepoint("here")
            for key in (7, "text", (2**31 - 1, -(2**31))):
                await conn.say(lock, key, shared=True)
                assert await conn.say(try_lock, key, shared=True) is True
            assert other.execute(shared, [7]).fetchone() == (True,)
            await conn.say(lock, 7, timeout=1)
            assert other.execute(shared, [7]).fetchone() == (False,)
            assert held(database) == {-(2**63), 7, key_of("text"), (2**31 - 1, -(2**31))}
            await conn.rollback_to("here")
            assert held(database) == {-(2**63)}
            await conn.rollback()
            assert held(database) == set()


@some_kinds
async def test_without_a_transaction(database: str, kind: str) -> None:
    """The lock would be free with the statement: it is refused, and nothing is said."""
    async with caller(kind, database, autocommit=True) as conn:
        for verb in (lock, try_lock):
            with pytest.raises(ConfigurationError, match=rf"^transaction\.{verb.__name__} needs an open transaction"):
                await conn.say(verb, "a")


# a wait with a limit


@kinds("psycopg-async", "asyncpg", "sqlalchemy-psycopg2", "sqlalchemy-async-session", "django")
async def test_a_timeout_changes_nothing(emptied: str, kind: str) -> None:
    """What was written before stays, and so do the settings, inside and after; the holder is named; the transaction
    goes on, and the next lock works, with a wait and without. Nothing is left on the connection (A8)."""
    async with caller(kind, emptied) as conn:
        with holding(emptied, "a") as holder:
            before = await conn.value(SETTINGS)
            if kind not in ("asyncpg", "django", "django-alias"):
                await conn.rollback()
            await conn.begin()
            await conn.execute("create table mine (n int)")
            await conn.execute("set local lock_timeout = '1234ms'")
            await conn.savepoint("here")
            for timeout in (0, 0.02):
                who = rf"the holder \(pid {holder.info.backend_pid}\)"
                with pytest.raises(
                    AcquireTimeout, match=rf"^'a' was not acquired within {timeout} s; it is held by {who}$"
                ):
                    await conn.say(lock, "a", timeout=timeout)
                assert await conn.value("show lock_timeout") == "1234ms"
            await conn.say(lock, "b", timeout=0.02)
            waiting = asyncio.create_task(conn.say(lock, "a", timeout=60))
            await waits(emptied)
            holder.commit()
            await waiting
        assert await conn.value("show lock_timeout") == "1234ms"
        await conn.execute("insert into mine values (1)")
        assert held(emptied) == {key_of("a"), key_of("b")}
        await conn.rollback_to("here")
        assert held(emptied) == set()
        assert await conn.value("show lock_timeout") == "1234ms"
        await conn.commit()
        assert rows(emptied, "select count(*) from mine") == [(0,)]
        assert await conn.value(SETTINGS) == before


SET = {
    "nothing": (),
    "in the session": ("set lock_timeout = '7s'",),
    "in this transaction": ("set local lock_timeout = '7s'",),
    "both": ("set lock_timeout = '9s'", "set local lock_timeout = '7s'"),
    "shorter than the wait": ("set lock_timeout = '5ms'",),
    "before and inside a savepoint": ("set lock_timeout = '9s'", "savepoint mine", "set local lock_timeout = '7001ms'"),
}


@pytest.mark.parametrize("granted", [True, False])
async def test_the_callers_own_setting(database: str, granted: bool) -> None:
    """It is as it was: now, after our caller's savepoint, after the commit; the limit of this wait is ours alone."""
    for said in SET.values():
        async with caller("psycopg", database) as conn, caller("psycopg", database) as twin:
            for statement in said:
                await conn.execute(statement)
                await twin.execute(statement)
            await _contended(database, conn, granted)
            for ends in ("select 1", "rollback to savepoint mine", "commit"):
                if "mine" not in ends or "savepoint mine" in said:
                    await conn.execute(ends)
                    await twin.execute(ends)
                assert await conn.value("show lock_timeout") == await twin.value("show lock_timeout")
            await conn.rollback()
            assert await conn.value(SETTINGS) == await twin.value(SETTINGS)


@pytest.mark.parametrize(("key", "shared"), [(5, True), ("a", False), ((5, -6), True), ((5, -6), False)])
def test_who_is_named(database: str, key: Key, shared: bool) -> None:
    """Whoever has it, and that they share it; not ourselves, and not who has a pair of the same bits."""
    with holding(database, key, shared=shared), holding(database, (0, 5)), psycopg.connect(database) as conn:
        if shared:
            lock(conn, key, shared=True, timeout=0)
        with pytest.raises(AcquireTimeout) as caught:
            lock(conn, key, timeout=0)
        how = "held shared" if shared else "held"
        assert f"{key!r} was not acquired within 0 s; it is {how} by the holder (pid " in str(caught.value)
        assert str(caught.value).count("pid") == 1


class Counted:
    """A driver that counts what it is asked."""

    blocks = True

    def __init__(self, driver: Any, said: list[str]) -> None:
        self._driver = driver
        self._said = said

    def one(self, query: Query) -> Any:
        self._said.append(query.sql)
        return self._driver.one(query)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


async def test_how_many_statements(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, for what is free; four for a wait, two or six for one in vain."""
    said: list[str] = []
    monkeypatch.setattr(locking, "driver_of", lambda conn, verb: Counted(connections.driver_of(conn, verb), said))

    async def count(timeout: float | None = None) -> int:
        said.clear()
        with contextlib.suppress(AcquireTimeout):
            await conn.say(lock, "a", timeout=timeout)
        return len(said)

    async with caller("psycopg", database) as conn:
        assert [await count(timeout) for timeout in (None, 0, 60)] == [1, 1, 1]
        await conn.rollback()
        with holding(database, "a"):
            assert [await count(timeout) for timeout in (0, 0.001)] == [2, 6]
            said.clear()
            assert not await conn.say(try_lock, "a")
            assert len(said) == 1
        with holding(database, "a") as holder:
            waiting = asyncio.create_task(count(60))
            await waits(database)
            holder.rollback()
            assert await waiting == 4


@pytest.mark.parametrize("granted", [True, False])
async def test_no_savepoint_of_ours_stays(database: str, granted: bool) -> None:
    async with caller("psycopg", database) as conn:
        await _contended(database, conn, granted)
        with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
            await conn.execute("release savepoint pgconcert_lock")
        await conn.rollback()


def test_in_a_pipeline(database: str) -> None:
    """What is refused in a pipeline of psycopg's leaves the transaction sound all the same."""
    with holding(database, "a") as holder, psycopg.connect(database) as conn, conn.pipeline():
        conn.execute("create temporary table mine (n int)")
        with pytest.raises(AcquireTimeout):
            lock(conn, "a", timeout=0.01)
        holder.commit()
        lock(conn, "a", timeout=30)
        conn.execute("insert into mine values (1)")
        conn.commit()
        assert conn.execute("select count(*) from mine").fetchone() == (1,)


# trouble in a wait


@kinds("psycopg", "sqlalchemy-asyncpg")
async def test_another_error_in_the_wait(emptied: str, kind: str) -> None:
    """The driver's own error; the transaction goes on, and so do its settings."""
    async with caller(kind, emptied) as conn:
        with holding(emptied, "a"):
            await conn.begin()
            await conn.execute("create table mine (n int)")
            pid = await conn.pid()
            waiting = asyncio.create_task(conn.say(lock, "a", timeout=60))
            await waits(emptied, pid)
            with raw(emptied) as other:
                other.execute("select pg_cancel_backend(%s)", [pid])
            with pytest.raises(Exception, match="canceling statement due to user request"):
                await waiting
            assert await conn.value("show lock_timeout") == "0"
            await conn.execute("insert into mine values (1)")
            await conn.commit()
    assert rows(emptied, "select n from mine") == [(1,)]


async def test_a_deadlock_is_found(database: str) -> None:
    """The server tells one of two transactions, which can go on or, better, roll back; then the other one has it."""
    async with caller("psycopg", database) as one, caller("asyncpg", database) as two:
        await two.begin()
        for conn, key in ((one, "a"), (two, "b")):
            await conn.execute("set deadlock_timeout = '10ms'")
            await conn.say(lock, key)
        crossed = {
            asyncio.create_task(one.say(lock, "b", timeout=60)): one,
            asyncio.create_task(two.say(lock, "a", timeout=60)): two,
        }
        done, waiting = await asyncio.wait(crossed, return_when=asyncio.FIRST_COMPLETED)
        (loser,) = done
        assert "deadlock detected" in str(loser.exception())
        assert await crossed[loser].value("show lock_timeout") == "0"
        await crossed[loser].rollback()
        await asyncio.gather(*waiting)
        for winner in waiting:
            await crossed[winner].rollback()
    assert held(database) == set()


@kinds("psycopg", "sqlalchemy-asyncpg")
async def test_the_connection_dies_in_the_wait(database: str, kind: str) -> None:
    """The error is the driver's, not one of ours, and says what has happened."""
    with holding(database, "a"):
        async with caller(kind, database) as conn:
            await conn.begin()
            pid = await conn.pid()
            waiting = asyncio.create_task(conn.say(lock, "a", timeout=60))
            await waits(database, pid)
            with raw(database) as other:
                other.execute("select pg_terminate_backend(%s, 60000)", [pid])
            with pytest.raises(Exception, match=r"terminating connection|network error|closed") as caught:
                await waiting
            assert type(caught.value).__module__.split(".")[0] != "pgconcert"
            with contextlib.suppress(Exception):
                await conn.rollback()


@pytest.mark.parametrize("timeout", [None, 60])
@kinds("psycopg-async", "sqlalchemy-asyncpg", among=AWAITED)
async def test_a_cancelled_wait(database: str, kind: str, timeout: float | None) -> None:
    """After the rollback the server has nothing left."""
    async with caller(kind, database) as conn:
        with holding(database, "a"):
            await conn.begin()
            await conn.say(lock, "b")
            waiting = asyncio.create_task(conn.say(lock, "a", timeout=timeout))
            await waits(database)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await conn.rollback()
            await eventually_async(lambda: held(database) == {key_of("a")}, what="only the holder has something")
        await conn.begin()
        await conn.say(lock, "a", timeout=30)
        assert await conn.value("show lock_timeout") == "0"
        await conn.rollback()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_at_higher_levels_of_isolation(emptied: str, level: str) -> None:
    """It excludes all the same; what is read is as old as the first statement."""
    with raw(emptied) as owner:
        owner.execute("create table mine (n int)")
    with holding(emptied, "a") as holder, psycopg.connect(emptied) as conn:
        conn.execute(f"set transaction isolation level {level}".encode())
        with pytest.raises(AcquireTimeout):
            lock(conn, "a", timeout=0.01)
        holder.execute("insert into mine values (1)")
        holder.commit()
        lock(conn, "a", timeout=30)
        assert conn.execute("select count(*) from mine").fetchone() == (0,)
        conn.rollback()
        assert conn.execute("select count(*) from mine").fetchone() == (1,)


async def test_the_savepoints_of_others_are_undisturbed(emptied: str) -> None:
    """SQLAlchemy's and Django's own, nested around a wait: each ends as they think."""
    for kind in ("sqlalchemy", "sqlalchemy-async-session", "django"):
        async with caller(kind, emptied) as conn:
            await conn.begin()
            await conn.execute("create table if not exists mine (n int)")
            await conn.savepoint("outer_one")
            await conn.execute("insert into mine values (1)")
            await conn.savepoint("inner_one")
            await conn.execute("insert into mine values (2)")
            await _contended(emptied, conn, granted=True)
            await _contended(emptied, conn, granted=False)
            await conn.rollback_to("inner_one")
            assert await conn.value("select sum(n) from mine") == 1
            await conn.rollback_to("outer_one")
            assert await conn.value("select count(*) from mine") == 0
            await conn.commit()
            assert rows(emptied, "select count(*) from mine") == [(0,)]


async def _contended(url: str, conn: Caller, granted: bool) -> None:
    """A wait that ends in one of the two ways."""
    with holding(url, "a" if granted else "b") as holder:
        waiting = asyncio.create_task(conn.say(lock, "a" if granted else "b", timeout=60 if granted else 0.02))
        if granted:
            await waits(url)
            holder.commit()
            await waiting
        else:
            with pytest.raises(AcquireTimeout):
                await waiting
