"""Hot standbys: refused for locks, passed over in a list of hosts, and usable once they have been promoted.

Theory: a standby grants advisory locks, but they exclude nobody on the primary, so a lock from there would be a lie.
"""

from __future__ import annotations

import asyncio

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgconcert import AsyncCoordinator, LockLost, StandbyRefused
from pgconcert.events import LinkOpened
from pgconcert.testing import advisory_locks, rewrite
from tests.faults.scenes import down, holders, seen, session_of, until_free, waiter
from tests.servers import Cluster, OwnServer, Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]


def both(standby: Cluster, server: Server, database: str) -> str:
    """An address that names the standby first."""
    place = conninfo_to_dict(server.over_tcp(database))
    return rewrite(database, host="127.0.0.1,127.0.0.1", hostaddr=None, port=f"{standby.port},{place['port']}")


async def test_a_standby_is_refused_and_passed_over(
    server: Server, database: str, standby: Cluster, unique: str
) -> None:
    standby.catch_up()
    port = conninfo_to_dict(server.over_tcp(database))["port"]
    async with AsyncCoordinator(standby.over_tcp(database)) as c:
        with pytest.raises(StandbyRefused, match=r"hot standby.*target_session_attrs"):
            await c.lock(unique).acquire()
        with pytest.raises(StandbyRefused):
            await c.lock(unique).try_acquire()
        assert advisory_locks(standby.over_tcp(database)) == []
    for attributes in (None, "read-write", "primary"):
        address = rewrite(both(standby, server, database), target_session_attrs=attributes)
        async with AsyncCoordinator(address) as c, AsyncCoordinator(database) as near:
            opened = seen(c, LinkOpened)
            async with c.lock(unique):
                assert [event.server for event in opened] == [f"127.0.0.1:{port}"]
                assert holders(database, unique) == [session_of(c)]
                assert await near.lock(unique).try_acquire() is None
    await until_free(database)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_failover(own_server: OwnServer, database: str, standby: Cluster, unique: str, mode: str) -> None:
    """The old hold is lost before the new primary gives the lock to the one who waits."""
    address, promoted = both(standby, own_server, database), standby.over_tcp(database)
    standby.catch_up()
    async with AsyncCoordinator(address) as one, AsyncCoordinator(address) as two:
        hold = await one.lock(unique).acquire()
        async with waiter(two, unique, database) as waiting, down(own_server, mode):
            await hold.wait_lost()
            assert not waiting.done()
            with pytest.raises(LockLost):
                hold.check()
            await asyncio.to_thread(standby.promote)
            mine = await waiting
            assert not mine.lost
            assert holders(promoted, unique) == [session_of(two)]
            await hold.release()  # the old handle has no power over the new lock
            assert holders(promoted, unique) == [session_of(two)]
            async with one.lock("are you there?"):
                pass
            assert await one.lock(unique).try_acquire() is None
        # the old primary is back, and answers too; both stay with the first that is fit
        async with one.lock(unique):
            assert holders(promoted, unique) == [session_of(one)]
        assert holders(database, unique) == []
    await until_free(promoted)
