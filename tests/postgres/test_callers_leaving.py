"""`transaction.run` that is cancelled, interrupted, thrown away or left without an answer, and wrong calls of it.

Here live tests of `transaction/driving.py` on connections of psycopg and asyncpg: what differs by driver otherwise
stands in `test_callers_run.py`. Theory: a cancellation may come at every suspension, and Ctrl-C at every instant, so
all of them are tried in turn; afterwards the one connection of the pool is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgconcert import ConfigurationError
from pgconcert.testing import FaultProxy
from pgconcert.transaction import driving, rollback_quietly, run
from tests.faults.interrupts import everywhere
from tests.postgres.callers import AWAITED, caller, kinds
from tests.postgres.scenes import disturbed, raw
from tests.postgres.test_callers_lenders import awaited, nothing_is_open
from tests.postgres.test_callers_run import Said, killed, ran, sql, written
from tests.servers import Server


@pytest.fixture(scope="module")
def mine(server: Server) -> Iterator[str]:
    """The URL of a database with a table."""
    with server.fresh_database() as url:
        with raw(url) as conn:
            conn.execute("create table mine (n int primary key)")
        yield url


@pytest.fixture
def url(mine: str) -> str:
    """The same, with nothing in it."""
    with raw(mine) as conn:
        conn.execute("truncate mine")
    return mine


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
@pytest.mark.parametrize("ends", ["returns", "raises"])
@pytest.mark.parametrize("often", ["once", "again and again"])
async def test_cancelled_at_every_await(url: str, kind: str, ends: str, often: str) -> None:
    """Committed whole or not at all, and the connection is in the pool again, with nothing open on the server."""
    async with awaited(kind, url) as pool:
        number = 0

        async def work(conn: Any) -> None:
            await sql(conn, f"insert into mine values ({number})")
            await sql(conn, f"insert into mine values ({-number})")
            if ends == "raises":
                raise Said

        async def attempt(at: int) -> tuple[bool, object]:
            """Whether it was cancelled, and what has become of it."""
            reached = False

            def cancel(awaited: object) -> None:
                nonlocal reached
                reached = True
                asyncio.get_running_loop().call_soon(task.cancel)

            async def cancelled() -> None:
                await disturbed(run(pool, work, isolation="serializable"), at, cancel)

            task = asyncio.create_task(cancelled())
            while often == "again and again" and not task.done():
                await asyncio.sleep(0)
                if reached:
                    task.cancel()
            (done,) = await asyncio.gather(task, return_exceptions=True)
            return reached, done

        while True:
            number += 1
            reached, done = await attempt(number)
            expected: tuple[type[BaseException], ...] = (Said,) if ends == "raises" else ()
            if not reached:
                assert ends == "raises" or done is None
                break
            # a cancellation that came after the last await is for whoever awaits next
            assert isinstance(done, (asyncio.CancelledError, *expected)) or done is None
            both = {number, -number} & set(written(url))
            assert both in ((set(), {number, -number}) if ends == "returns" else (set(),))
            nothing_is_open(url)
        assert number > 3


def test_interrupted_everywhere(url: str) -> None:
    """Ctrl-C at every instant: of a caller's own connection nothing is left open that was not open before."""
    with psycopg.connect(url, autocommit=True) as keeper:
        conn = keeper
        number = 0

        def work(lent: psycopg.Connection[Any]) -> None:
            lent.execute(f"insert into mine values ({number})".encode())
            lent.execute(f"insert into mine values ({-number})".encode())
            if number % 2:
                raise Said

        def once() -> None:
            nonlocal number, conn
            number += 1
            if conn.closed:
                conn = psycopg.connect(url, autocommit=True)
            with pytest.raises(Said) if number % 2 else contextlib.nullcontext():
                run(conn, work, isolation="repeatable read")

        closed = 0
        for _ in (1, 2):
            for where in everywhere(once):
                assert conn.closed or conn.info.transaction_status == TransactionStatus.IDLE, where
                closed += conn.closed
            number += 1  # those that raised return now, and the other way round
        conn.close()
    assert closed
    found = written(url)
    assert all(-n in found for n in found)


@pytest.mark.parametrize("kind", ["psycopg", "asyncpg"])
async def test_thrown_away(url: str, kind: str) -> None:
    """A coroutine that is closed, not cancelled, can await nothing: its connection is closed, and the server rolls
    back."""
    async with awaited(kind, url) as pool:
        inside = asyncio.Event()

        async def work(conn: Any) -> None:
            await sql(conn, "insert into mine values (1)")
            inside.set()
            await asyncio.sleep(3600)

        coroutine = run(pool, work)
        while True:  # as a task does it, until it waits where nothing will come any more
            future = coroutine.send(None)
            if inside.is_set():
                break
            await (asyncio.sleep(0) if future is None else asyncio.wait((future,)))
        coroutine.close()
        await run(pool, functools.partial(sql, text="insert into mine values (1)"))
    assert written(url) == [1]


async def test_a_second_cancellation_waits_for_the_rollback(url: str) -> None:
    """It is raised when the rollback is done, with the first error behind it, and the connection is sound."""
    async with awaited("psycopg", url) as pool:
        pid = 0

        async def work(conn: psycopg.AsyncConnection[Any]) -> None:
            nonlocal pid
            pid = conn.info.backend_pid
            await conn.execute("insert into mine values (1)")
            asyncio.get_running_loop().call_soon(task.cancel)
            raise Said

        task = asyncio.create_task(run(pool, work))
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        behind: BaseException | None = raised.value
        while behind is not None and not isinstance(behind, Said):
            behind = behind.__context__
        assert isinstance(behind, Said)
        async with pool.connection() as conn:
            assert conn.info.backend_pid == pid
    assert written(url) == []


@kinds("psycopg-async", "asyncpg", among=AWAITED)
async def test_cancelled_while_the_savepoint_is_released(url: str, kind: str) -> None:
    """What was released cannot be rolled back to: the cancellation is raised alone, and the transaction around it is
    as good as before."""
    async with caller(kind, url) as one:

        async def inside(conn: Any) -> None:
            await sql(conn, "insert into mine values (2)")
            asyncio.get_running_loop().call_soon(task.cancel)

        await one.begin()
        await one.execute("insert into mine values (1)")
        task = asyncio.create_task(run(one.conn, inside))
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert not hasattr(raised.value, "__notes__")
        await one.execute("insert into mine values (3)")
        await one.commit()
    assert written(url) == [1, 2, 3]


@kinds("psycopg-async", "asyncpg", among=AWAITED[:2])
async def test_no_answer_to_the_rollback(
    server: Server, url: str, proxy: FaultProxy, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a frozen network the rollback is given up, the connection closed, and the first error raised."""
    monkeypatch.setattr(driving, "ANSWER_LIMIT", 0.1)
    async with caller(kind, proxy.url(server.over_tcp(url))) as one:

        async def work(conn: Any) -> None:
            await sql(conn, "insert into mine values (1)")
            proxy.pause()
            raise Said

        with pytest.raises(Said) as raised:
            await run(one.conn, work)
        assert raised.value.__notes__ == [
            "the rollback failed too, and the connection was closed: TimeoutError: no answer within 0.1 s"
        ]
        assert one.conn.closed if kind == "psycopg-async" else one.conn.is_closed()
        proxy.resume()
        await asyncio.gather(*driving._unheard, return_exceptions=True)
    assert written(url) == []


@kinds("psycopg", "psycopg-async", among=("psycopg", "psycopg-async"))
async def test_a_savepoint_that_is_gone(url: str, kind: str) -> None:
    """A function that ends the transaction around it and begins another leaves nothing that can be rolled back to: its
    own error is raised, with that of the rollback, and the connection is closed."""
    async with caller(kind, url) as one:
        await one.begin()
        await one.execute("insert into mine values (1)")
        with pytest.raises(Said) as raised:
            await ran(one, "commit", "insert into mine values (2)", Said(), retries=3)
        (note,) = raised.value.__notes__
        assert "InvalidSavepointSpecification" in note
        assert one.conn.closed
    assert written(url) == [1]


class LateInterrupt(psycopg.Connection[Any]):
    """A connection on which Ctrl-C is pressed just as the first answer has come."""

    late = False

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        answer = super().wait(*args, **kwargs)
        if self.late:
            self.late = False
            raise KeyboardInterrupt
        return answer


def test_interrupted_when_it_has_begun(url: str) -> None:
    """Nobody knows that the transaction is open: the connection is closed."""
    with LateInterrupt.connect(url, autocommit=True) as conn:
        conn.late = True
        with pytest.raises(KeyboardInterrupt):
            run(conn, lambda conn: conn.execute("select 1"))
        assert conn.closed


async def test_quietly_and_cancelled(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Only a cancellation passes, after the rollback; what fails without an error to keep it is logged."""
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.execute("insert into mine values (1)")
        task = asyncio.create_task(rollback_quietly(conn))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert conn.info.transaction_status == TransactionStatus.IDLE
        await conn.execute("insert into mine values (2)")
        killed(url)
        await rollback_quietly(conn)
        assert conn.closed
    (record,) = [record for record in caplog.records if record.name == "pgconcert"]
    assert record.levelno == logging.WARNING
    assert "terminating connection" in record.getMessage()
    with pytest.raises(ConfigurationError, match=r"transaction\.rollback_quietly"):
        rollback_quietly(7)  # type: ignore[call-overload]
    assert written(url) == []


async def test_wrong_calls(url: str) -> None:
    """Each is told at once, and what cannot be seen before the function has run is rolled back."""

    async def later(conn: Any) -> None:
        raise AssertionError

    def works(conn: Any) -> int:
        conn.execute("insert into mine values (1)")
        return 1

    def gives_later(conn: Any) -> Any:
        works(conn)
        return later(conn)

    with psycopg.connect(url) as conn:
        wrongs: list[tuple[Any, dict[str, Any], str]] = [
            (None, {}, "None is none"),
            (later, {}, "an async function"),
            (functools.partial(later), {}, "an async function"),
            (gives_later, {}, "an async function"),
            (works, {"retries": -1}, "not -1"),
            (works, {"retries": True}, "not True"),
            (works, {"retries": 1.5}, "not 1.5"),
            (works, {"isolation": "SERIALIZABLE"}, "'read committed', 'repeatable read' or 'serializable', not 'SERIA"),
        ]
        for fn, options, message in wrongs:
            with pytest.raises(ConfigurationError, match=message):
                run(conn, fn, **options)
        assert conn.info.transaction_status == TransactionStatus.IDLE
        with pytest.raises(ConfigurationError, match=r"transaction\.run"):
            run(conn.cursor(), works)  # type: ignore[call-overload]
    async with await psycopg.AsyncConnection.connect(url) as other:
        with pytest.raises(ConfigurationError, match="a function that blocks"):
            await run(other, lambda conn: 7)  # type: ignore[arg-type,return-value]
        assert await run(other, lambda conn: asyncio.sleep(0, "any awaitable")) == "any awaitable"
    assert written(url) == []
