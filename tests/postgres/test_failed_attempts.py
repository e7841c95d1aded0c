"""Attempts that end in an unusual way: addresses that raise, time-outs by the hundred, a server with room for some.

Here live tests of what callers are told when they get no lock. Theory: a caller learns the true reason, soon, and the
telling costs the server next to nothing, because it happens when the server has trouble already.
"""

import asyncio
import itertools
import re
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

import pytest

from pgconcert import (
    AcquireTimeout,
    AsyncCoordinator,
    AsyncHold,
    LockBudgetExceeded,
    PgconcertError,
    Unavailable,
    acquiring,
)
from pgconcert.testing import FaultProxy, eventually_async
from tests.postgres.scenes import (
    QUIET,
    Engine,
    SmallServer,
    both_engines,
    key_of,
    keys_on_server,
    lock_pid,
    raw,
    statements,
)
from tests.servers import OwnServer, Server

CROWD: Final = 200
PATIENCE: Final = (0.5, 2.0, 8.0, 32.0)
"""For so long each of a crowd waits: longer, if the first had left before all had come."""


def _cancelled() -> str:
    raise asyncio.CancelledError


async def _cancelled_later() -> str:
    await asyncio.sleep(0)
    raise asyncio.CancelledError


def _no_vault() -> str:
    raise OSError("no vault")


async def _no_vault_either() -> str:
    raise OSError("no vault")


@pytest.mark.parametrize("address", [_cancelled, _cancelled_later])
@both_engines
async def test_an_address_that_is_cancelled_is_a_failed_attempt(engine: Engine, address: Callable[[], Any]) -> None:
    """Something inside the callable was cancelled, not we: the claim hears that there is no connection."""
    async with AsyncCoordinator(address, engine=engine) as c:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(c.lock("nowhere").acquire(), 20)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(c.lock("nowhere").try_acquire(), 20)


@both_engines
async def test_after_an_address_was_cancelled_the_next_attempt_counts(database: str, engine: Engine) -> None:
    """The callable answers the second time."""
    attempts = itertools.count()

    def address() -> str:
        return database if next(attempts) else _cancelled()

    async with AsyncCoordinator(address, engine=engine) as c:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(c.lock("soon").acquire(), 20)
        async with asyncio.timeout(20), c.lock("soon") as hold:
            assert not hold.lost


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
@pytest.mark.parametrize("address", [_no_vault, _no_vault_either, "host=nowhere connect_timeout=abc"])
async def test_eager_tasks(address: Any) -> None:
    """A connection that fails before its task was ever suspended: the claim ends with an error, twice."""
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    asyncio.get_running_loop().set_task_factory(factory)
    async with AsyncCoordinator(address) as c:
        for _ in range(2):
            with pytest.raises(PgconcertError):
                await asyncio.wait_for(c.lock("eager").acquire(), 20)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are of Python 3.12")
async def test_eager_tasks_with_a_server(database: str) -> None:
    """Locks work where tasks start eagerly."""
    factory: Any = getattr(asyncio, "eager_task_factory", None)
    asyncio.get_running_loop().set_task_factory(factory)
    async with AsyncCoordinator(database) as c, asyncio.timeout(30):
        for _ in range(2):
            async with c.lock("eager"):
                assert key_of("eager") in keys_on_server(database)


@both_engines
async def test_a_silent_server_is_not_an_unheld_lock(
    proxy: FaultProxy, server: Server, database: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait ran out while the server said nothing: the error does not claim to know who holds the lock."""
    monkeypatch.setattr(acquiring, "_ASK_HOLDER", 0.25)
    async with (
        AsyncCoordinator(database) as other,
        AsyncCoordinator(proxy.url(server.over_tcp(database)), engine=engine, network_timeout=QUIET) as c,
        other.lock("silent"),
    ):
        async with c.lock("first"):
            pass
        proxy.pause()
        try:
            with pytest.raises(AcquireTimeout) as told:
                await c.lock("silent").acquire(timeout=0.1)
        finally:
            proxy.resume()
        assert "not held" not in str(told.value)
        assert "could not be found out" in str(told.value)


async def _crowd_times_out(c: AsyncCoordinator, key: str, waiting: Callable[[], bool]) -> tuple[int, set[str]]:
    """Many wait for one key; their time is up in one turn of the loop. Statements it took, and what they were told."""
    for patience in PATIENCE:
        claims = [asyncio.create_task(c.lock(key).acquire(timeout=patience)) for _ in range(CROWD)]
        await eventually_async(lambda: waiting() or any(claim.done() for claim in claims))  # noqa: B023 - at once
        all_wait, before = not any(claim.done() for claim in claims), statements(c, "lock")
        if all_wait:
            time.sleep(patience)  # a loop that is late finds every timer due at once
        outcomes = await asyncio.gather(*claims, return_exceptions=True)
        assert all(isinstance(outcome, AcquireTimeout) for outcome in outcomes)
        if all_wait:
            return statements(c, "lock") - before, {str(outcome) for outcome in outcomes}
    raise AssertionError("no crowd has ever come together")


@both_engines
async def test_a_crowd_that_times_out_asks_once(database: str, engine: Engine) -> None:
    """Two hundred waiters give up together: the server, which is busy enough, lists its locks a few times at most."""
    async with (
        AsyncCoordinator(database, name="the holder", network_timeout=QUIET) as other,
        AsyncCoordinator(database, engine=engine, network_timeout=QUIET) as c,
        other.lock("crowded"),
    ):
        async with c.lock("first"):
            pass
        # once in a while: between two threads on a busy machine the questions may be spread over several answers
        crowds: list[tuple[int, set[str]]] = []
        while len(crowds) < 10 and not (crowds and crowds[-1][0] <= 12):
            crowds.append(await _crowd_times_out(c, "crowded", lambda: c.health().locks_waited_for == 1))
        sent, told = crowds[-1]
        assert sent <= 12
        (sentence,) = told
        assert re.search(rf"it is held by the holder\b.*\(pid {lock_pid(other)}\)", sentence)


@both_engines
async def test_a_lock_held_here_is_named_without_asking(database: str, engine: Engine) -> None:
    """The holder is this process, which knows that: nothing is asked, and the error says which connection it is."""
    async with AsyncCoordinator(database, name="ourselves", engine=engine, network_timeout=QUIET) as c:
        hold = await c.lock("ours").acquire()
        sent, told = await _crowd_times_out(c, "ours", lambda: c.health().locks_waited_for == 1)
        assert sent == 0
        (sentence,) = told
        assert re.search(rf"it is held by ourselves\b.*\(pid {lock_pid(c)}\)", sentence)
        await hold.release()


@both_engines
@pytest.mark.long
async def test_room_for_some(own_server: OwnServer, engine: Engine) -> None:
    """Claims that arrive before the link does: as many as the server has room for are granted, the others refused."""
    spare, wanted = 10, 25
    small = SmallServer(f"small {own_server.name}", own_server.programs, own_server.major)  # type: ignore[attr-defined]
    with closing(small), raw(small.url) as admin:
        table = small.LOCKS_PER_TRANSACTION * small.CONNECTIONS
        taken = round(table * 0.75) - spare
        admin.execute("SELECT count(pg_advisory_lock(g)) FROM generate_series(1, %s) g", [taken])
        async with AsyncCoordinator(small.url, engine=engine) as c:
            claims = [asyncio.create_task(c.lock(f"room {n}").acquire()) for n in range(wanted)]
            outcomes = await asyncio.wait_for(asyncio.gather(*claims, return_exceptions=True), 30)
            assert [isinstance(outcome, AsyncHold) for outcome in outcomes] == [n < spare for n in range(wanted)]
            assert all(isinstance(outcome, LockBudgetExceeded) for outcome in outcomes[spare:])
            assert len(keys_on_server(small.url)) == taken + spare
            await asyncio.gather(*(outcome.release() for outcome in outcomes if isinstance(outcome, AsyncHold)))
