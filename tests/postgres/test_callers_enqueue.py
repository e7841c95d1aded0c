"""`transaction.enqueue` on connections of every kind: what is in the queue when, and who is woken.

Here live tests of the files of drivers in `transaction/`, as a verb that writes needs them.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert import AsyncCoordinator, QueueTasks, Task
from pgconcert.transaction import enqueue
from tests.postgres.callers import KINDS, caller, kinds
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import rows

WAITING = "select id::text, queue, payload from pgconcert.task t order by t.id"
ODD = "ü'\"\\%s %(x)s $1 :name ::text {} ?"
BYTES = bytes(range(256))


@pytest.mark.parametrize("kind", KINDS)
async def test_commit_and_rollback(emptied: str, kind: str) -> None:
    """It is there at the commit, and never after a rollback, of all or to a savepoint; every byte arrives."""
    async with caller(kind, emptied) as one:
        await one.begin()
        first = await one.say(enqueue, ODD, BYTES)
        await one.savepoint("here")
        await one.say(enqueue, ODD, "gone with the savepoint")
        await one.rollback_to("here")
        second = await one.say(enqueue, "q", json={"to": ODD}, run_in=3600, attempts=3)
        assert rows(emptied, WAITING) == []
        await one.commit()
        await one.begin()
        await one.say(enqueue, ODD, "gone with the transaction")
        await one.rollback()
        found = rows(emptied, WAITING)
        assert [row[:2] for row in found] == [(first, ODD), (second, "q")]
        assert found[0][2] == BYTES
        later = "select attempts, run_at > now() + interval '59 min' from pgconcert.task where queue = 'q'"
        assert rows(emptied, later) == [(3, True)]


@kinds("sqlalchemy-asyncpg", "sqlalchemy-psycopg2", "django-alias")
async def test_autocommit(emptied: str, kind: str) -> None:
    """Without a transaction it is one by itself."""
    async with caller(kind, emptied, autocommit=True) as one:
        task = await one.say(enqueue, "q", "a")
        assert rows(emptied, WAITING) == [(task, "q", b"a")]


@kinds("asyncpg", "sqlalchemy-psycopg2", "sqlalchemy-pg8000")
async def test_an_odd_schema(tables: str, kind: str) -> None:
    """No name of a schema is taken for a parameter, by whichever driver."""
    odd = 'we "ird"; x\'y %s %% %(a)s :b ::c $1 ? {}'
    with raw(tables) as owner:
        owner.execute(f'alter schema pgconcert rename to "{odd.replace(chr(34), chr(34) * 2)}"'.encode())
    async with caller(kind, tables) as one:
        await one.begin()
        task = await one.say(enqueue, "q", "a", schema=odd)
        await one.commit()
        with raw(tables) as owner:
            owner.execute(f'alter schema "{odd.replace(chr(34), chr(34) * 2)}" rename to pgconcert'.encode())
        assert rows(tables, WAITING) == [(task, "q", b"a")]


@kinds("django")
async def test_a_runner_is_woken(emptied: str, kind: str) -> None:
    """A runner that looks every hour has the task at the commit."""
    done: asyncio.Queue[bytes] = asyncio.Queue()

    async def work(tasks: list[Task]) -> None:
        done.put_nowait(tasks[0].payload)

    async with AsyncCoordinator(emptied) as c, c.runner("crew", work, QueueTasks("q"), tick=3600.0):
        async with caller(kind, emptied) as one:
            for payload in (b"0", b"1"):  # the first may be found by the look of one that begins to listen
                await one.begin()
                await one.say(enqueue, "q", payload)
                await one.commit()
                assert await asyncio.wait_for(done.get(), 20) == payload
