"""A program that exercises one link and one pair of coordinators, for runs in a process of its own.

Here lives what must hold under either implementation of psycopg: `test_link.py` runs it with `PSYCOPG_IMPL=python`,
whose libpq may be older than the one inside the compiled package. It prints `ok` at its end, or dies with a traceback.
"""

import asyncio
import sys
from typing import Final

from psycopg import pq

from pgconcert import AsyncCoordinator, LockLost
from pgconcert.errors import StatementFailed
from pgconcert.postgres.link import statement
from pgconcert.testing import eventually_async
from tests.postgres.scenes import ask, link_to, lock_pid, raw

_BURST: Final = 80


async def errors_are_isolated(url: str) -> None:
    """Of nine pipelined statements each gets its own answer or its own error."""
    link, _ = await link_to(url)
    answers = [link.execute(statement("select 60 / $1::int4"), [b"%d" % (n % 3)]) for n in range(9)]
    for n, answer in enumerate(answers):
        try:
            outcome: object = await answer
        except StatementFailed as error:
            outcome = error.sqlstate
        assert outcome == ([(b"%d" % (60 // (n % 3)),)] if n % 3 else "22012")
    link.close()


async def bursts_arrive(through: str, url: str, bursts: int, size: int, count: int = _BURST) -> None:
    """Bursts of notifications arrive whole although nothing else happens on the link."""
    link, ear = await link_to(through)
    await ask(link, "listen burst")
    with raw(url) as sender:
        for burst in range(bursts):
            ear.notifications.clear()
            sender.execute(
                "select count(pg_notify('burst', %s || '/' || n || rpad('', %s, '.'))) from generate_series(1, %s) n",
                (str(burst), size, count),
            )
            await eventually_async(lambda: len(ear.notifications) == count, 60.0, what=f"burst {burst} is here")
            numbers = [int(n.payload.partition(b"/")[2].rstrip(b".")) for n in ear.notifications]
            assert numbers == list(range(1, count + 1)), "notifications keep their order"
    assert link.dead is None
    link.close()


async def a_lock_excludes(url: str) -> None:
    """A lock excludes, is handed over, and its loss is told."""
    async with AsyncCoordinator(url) as one, AsyncCoordinator(url) as two:
        async with one.lock("smoke"):
            assert await two.lock("smoke").try_acquire() is None
            waiting = asyncio.create_task(two.lock("smoke").acquire(timeout=30))
            await asyncio.sleep(0)
        hold = await waiting
        with raw(url) as admin:
            admin.execute("select pg_terminate_backend(%s)", (lock_pid(two),))
        await hold.wait_lost()
        try:
            hold.check()
        except LockLost:
            return
    raise AssertionError("the loss was not told")


async def main(url: str, through: str) -> None:
    """All of it."""
    await errors_are_isolated(url)
    await a_lock_excludes(url)
    await bursts_arrive(through, url, bursts=40, size=3000)
    print(f"ok {pq.__impl__}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
