"""`transaction.guard` on connections of every kind: what commits, what is refused, and what of a connection's own
settings could be in the way.

Here live tests of the files of drivers in `transaction/`, as a guard needs them.
"""

from __future__ import annotations

import pytest

from pgconcert import AsyncCoordinator
from pgconcert.errors import ConfigurationError, GuardRefused
from pgconcert.transaction import guard
from tests.postgres.callers import KINDS, caller, kinds
from tests.postgres.scenes import raw
from tests.postgres.session_scenes import LONG, rows

REVOKE = b"update pgconcert.entry set session_id = null"


@pytest.mark.parametrize("kind", KINDS)
async def test_guard(emptied: str, kind: str) -> None:
    """Guarded writes commit; after a revocation the guard is refused, the transaction is sound, and can be rolled
    back; what was said before it is not there then. Other errors of the server are told apart."""
    with raw(emptied) as owner:
        owner.execute("create table mine (n int)")
        async with AsyncCoordinator(emptied) as c, caller(kind, emptied) as one:
            hold = await c.job_lock("a", ttl=LONG).acquire()
            await one.begin()
            await one.say(guard, hold)
            await one.execute("insert into mine values (1)")
            await one.say(guard, hold)
            await one.commit()
            owner.execute(REVOKE)
            await one.begin()
            await one.execute("insert into mine values (2)")
            with pytest.raises(GuardRefused, match="'a' was lost: somebody else has it, it was revoked"):
                await one.say(guard, hold)
            assert await one.value("select count(*) from mine") == 2
            await one.rollback()
            await one.begin()
            with pytest.raises(ConfigurationError, match="are missing or old in schema"):
                await one.say(guard, hold, schema="nowhere")
            # what is no refusal of ours is the driver's own error
            with pytest.raises(
                Exception, match=r"current transaction is aborted|in failed transaction block"
            ) as caught:
                await one.say(guard, hold)
            assert not type(caught.value).__module__.startswith("pgconcert")
            await one.rollback()
    assert rows(emptied, "select n from mine") == [(1,)]


@kinds("psycopg-async", "asyncpg", "sqlalchemy-psycopg2", "sqlalchemy-pg8000", "django")
async def test_autocommit(emptied: str, kind: str) -> None:
    """Without a transaction there is nothing to guard; inside one that was begun all the same there is."""
    async with AsyncCoordinator(emptied) as c, caller(kind, emptied, autocommit=True) as one:
        hold = await c.job_lock("a", ttl=LONG).acquire()
        with pytest.raises(ConfigurationError, match="needs an open transaction, and this connection has none"):
            await one.say(guard, hold)
        await one.execute("begin")
        await one.say(guard, hold)
        await one.execute("rollback")
