"""The server ends a session, of whichever link, at whichever moment.

Theory: only the lock link carries what is held. The others carry speed: without them a waiter is slower and nothing
else. Whoever lost a lock cannot hurt the next one who has it, whatever it still does with the old handle.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from pgconcert import AsyncCoordinator, LockLost
from pgconcert.events import HoldBroken, LinkLost, LinkOpened
from pgconcert.testing import FaultProxy, eventually, eventually_async, sessions
from tests.faults.scenes import holders, seen, session_of, until_free, waiter
from tests.servers import Server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

Engine = Literal["loop", "thread"]
both_engines = pytest.mark.parametrize("engine", ["loop", "thread"])


def kill(server: Server, coordinator: AsyncCoordinator, role: str) -> None:
    assert ended(server, coordinator, role)


def ended(server: Server, coordinator: AsyncCoordinator, role: str) -> bool:
    """End a session of a link; False if there was none."""
    pid = session_of(coordinator, role)
    return pid is not None and server.kill_backend(pid)


@both_engines
async def test_the_holder_is_told_and_its_work_cancelled(
    server: Server, database: str, unique: str, engine: Engine
) -> None:
    async with AsyncCoordinator(database, engine=engine) as c:
        broken, opened = seen(c, HoldBroken), seen(c, LinkOpened)
        steps: list[str] = []

        async def work() -> None:
            async with c.lock(unique) as hold:
                kill(server, c, "lock")
                try:
                    await asyncio.sleep(30)
                    steps.append("went on")
                except asyncio.CancelledError:
                    steps.append(f"cancelled, lost {hold.lost}")
                    await hold.release()  # of what is lost: nothing happens, nothing is raised
                    raise

        with pytest.raises(LockLost, match="terminating connection") as told:
            await work()
        assert steps == ["cancelled, lost True"]
        assert told.value.key == unique
        reported = [(unique, told.value.reason)]
        await eventually_async(lambda: [(event.key, event.reason) for event in broken] == reported)
        async with c.lock(unique):
            await eventually_async(lambda: [event.role for event in opened] == ["lock", "lock"])
            await eventually_async(lambda: len(sessions(database)) == 1, what="the old session has ended")
    await until_free(database)


async def test_a_grant_that_arrives_with_its_own_loss_is_never_entered(
    server: Server, database: str, proxy: FaultProxy, unique: str
) -> None:
    """A loop that stood still reads both at once: the answer that grants, and the end of the session."""
    async with AsyncCoordinator(proxy.url(server.over_tcp(database))) as c:
        async with c.lock(f"{unique}:warm"):
            pass
        proxy.pause("to_client")
        entered: list[bool] = []

        async def work() -> None:
            async with c.lock(unique) as hold:
                entered.append(hold.lost)

        task = asyncio.create_task(work())
        backend = session_of(c)
        await eventually_async(lambda: holders(database, unique) == [backend])
        kill(server, c, "lock")
        eventually(lambda: backend not in {session.pid for session in sessions(database)})
        before = proxy.bytes_to_client
        # from here on the loop stands still, until all that the server has said is there, which comes in one piece
        proxy.resume()
        eventually(lambda: proxy.bytes_to_client > before)
        with pytest.raises(LockLost, match="terminating connection"):
            await task
        assert entered == []
    await until_free(database)


@both_engines
async def test_an_old_handle_has_no_power_over_the_next_lock(
    server: Server, database: str, unique: str, engine: Engine
) -> None:
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database) as other:
        lock = c.lock(unique)
        old = await lock.acquire()
        kill(server, c, "lock")
        await old.wait_lost()
        new = await lock.acquire()
        await old.release()
        with pytest.raises(LockLost):
            async with old:
                pass
        assert (new.lost, new.released) == (False, False)
        assert await other.lock(unique).try_acquire() is None
        assert holders(database, unique) == [session_of(c)]
        await new.release()
    await until_free(database)


@both_engines
async def test_a_release_goes_on_without_its_caller(database: str, unique: str, engine: Engine) -> None:
    async with AsyncCoordinator(database, engine=engine) as c, AsyncCoordinator(database) as other:
        hold = await c.lock(unique).acquire()

        async def release() -> None:
            current = asyncio.current_task()
            assert current
            current.cancel()
            await hold.release()

        task = asyncio.create_task(release())
        await asyncio.wait([task])
        assert task.cancelled()
        assert hold.released
        async with other.lock(unique):
            assert holders(database, unique) == [session_of(other)]
    await until_free(database)


@both_engines
async def test_the_end_of_other_links_costs_no_lock(server: Server, database: str, unique: str, engine: Engine) -> None:
    """The waiter's listen link and the holder's publish link end again and again; the lock goes from hand to hand."""
    async with AsyncCoordinator(database, engine=engine) as one, AsyncCoordinator(database) as two:
        lost, broken = [seen(c, LinkLost) for c in (one, two)], [seen(c, HoldBroken) for c in (one, two)]
        holder, other = one, two
        hold = await holder.lock(unique).acquire()
        for _ in range(4):
            async with waiter(other, unique, database) as waiting:
                # one that has just ended may not know it yet
                await eventually_async(lambda: ended(server, other, "listen"))  # noqa: B023
                ended(server, holder, "publish")
                await hold.release()
                hold = await waiting
                holder, other = other, holder
                waiting_again = asyncio.create_task(other.lock(unique).acquire())
                await asyncio.wait([waiting_again], timeout=0)
                waiting_again.cancel()
                await asyncio.wait([waiting_again])
                assert holders(database, unique) == [session_of(holder)]
                await hold.release()
            hold = await holder.lock(unique).acquire()
        await hold.release()
        assert broken == [[], []]
        assert {event.role for events in lost for event in events} <= {"listen", "publish"}
        await eventually_async(lambda: lost[0] + lost[1])
    await until_free(database)


@both_engines
async def test_a_session_that_ends_during_acquire_and_release(
    server: Server, database: str, unique: str, engine: Engine
) -> None:
    """Many locks come and go while the lock session is ended again and again: each is granted or told, none stays."""
    async with AsyncCoordinator(database, engine=engine) as c:
        async with c.lock(unique):
            pass
        ending = asyncio.Event()
        counts = {"held": 0, "lost": 0}

        async def cycle(name: str) -> None:
            while not ending.is_set():
                try:
                    async with c.lock(name):
                        await asyncio.sleep(0)
                    counts["held"] += 1
                except LockLost:
                    counts["lost"] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(cycle(f"{unique}:{number % 10}"))
            opened = seen(c, LinkOpened)
            for cut in range(4):
                await eventually_async(lambda: len([e for e in opened if e.role == "lock"]) >= cut)  # noqa: B023
                held = counts["held"]
                await eventually_async(lambda: counts["held"] > held + 10)  # noqa: B023
                kill(server, c, "lock")
            ending.set()
        assert counts["held"] > 40
    await until_free(database)
