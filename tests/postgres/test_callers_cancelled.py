"""Verbs that are cancelled: at every await, in both ways, and what is left once the caller has rolled back.

Here live tests of cancellation of `transaction.*` on connections that are awaited. Theory: a flow leaves nothing behind
but what the caller's rollback undoes, so after that the server has no lock, row, savepoint or setting of ours, and the
same verb works again. A driver may close the connection of whoever is cancelled (psycopg does so when a refusal of the
server is there already): that leaves nothing either, and the caller connects again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import psycopg

from pgconcert import AcquireTimeout, AsyncCoordinator
from pgconcert.testing import advisory_locks, eventually_async
from pgconcert.transaction import enqueue, guard, lock, publish, try_lock
from tests.postgres.callers import AWAITED, Caller, caller, kinds
from tests.postgres.session_scenes import LONG, rows
from tests.postgres.test_locks_cancel import cancelled_at_every_suspension, ways_to_leave

LEFT = """
    select (select count(*) from pgconcert.task) + (select count(*) from pgconcert.message_payload)
         + (select count(*) from pg_stat_activity where datname = current_database() and state <> 'idle'
                   and pid <> pg_backend_pid() and application_name not like '%the holder%')
"""
FREE = "one that is free"

Say = Callable[[Caller, Any], Awaitable[Any]]


async def _in_vain(one: Caller, _: Any) -> None:
    with suppress(AcquireTimeout):
        await one.say(lock, "taken", timeout=0.005)


VERBS: dict[str, Say] = {
    "enqueue": lambda one, _: one.say(enqueue, "q", b"x"),
    "guard": lambda one, hold: one.say(guard, hold),
    "publish": lambda one, _: one.say(publish, "orders", "x" * 9000),
    "lock": lambda one, _: one.say(lock, FREE),
    "try_lock": lambda one, _: one.say(try_lock, FREE),
    "a wait in vain": _in_vain,
}


@kinds("psycopg-async", among=AWAITED)
@ways_to_leave
async def test_cancelled_at_every_await(emptied: str, kind: str, leave: Any) -> None:
    with psycopg.connect(emptied, application_name="the holder") as holder:
        lock(holder, "taken")
        ours = holder.info.backend_pid
        async with AsyncExitStack() as stack, AsyncCoordinator(emptied) as c, caller(kind, emptied) as one:
            hold = await c.job_lock("a", ttl=LONG).acquire()
            theirs = {found.pid for found in advisory_locks(emptied)} - {ours}

            def clean() -> bool:
                locks = {found.pid for found in advisory_locks(emptied)} - theirs
                return locks == {ours} and rows(emptied, LEFT) == [(0,)]

            async def afterwards() -> None:
                if kind == "psycopg-async" and one.conn.closed:
                    one.conn = await stack.enter_async_context(await psycopg.AsyncConnection.connect(emptied))
                await one.rollback()
                await eventually_async(clean, what="nothing is left")
                await one.begin()
                assert await one.value("show lock_timeout") == "0"

            await one.begin()
            for verb in VERBS.values():
                assert await cancelled_at_every_suspension(partial(verb, one, hold), leave, afterwards) >= 1
                await verb(one, hold)
                await one.rollback()
                await one.begin()
            await one.rollback()
