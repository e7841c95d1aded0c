"""One world, many threads, each with an event loop of its own: exclusion, and no message that is lost on the way.

Theory: what the threads share besides the world has no lock of its own, and between reading and writing it every thread
lets its loop turn; so it comes out right only if the world keeps them apart. That nothing is lost shows in everybody's
coming to an end: there is no re-check that would find what was.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, AsyncHold, CoordinatorClosed, LockLost, Unavailable
from pgconcert.memory import MemoryBackend, World
from tests.unit.memoryworld import handles

THREADS = 4


def in_threads(work: Callable[[int], Awaitable[None]], count: int = THREADS) -> None:
    """Run a coroutine in each of several threads; the first error is raised."""

    async def run(number: int) -> None:
        await work(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(asyncio.run, run(number)) for number in range(count)]:
            done.result()


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_counter_without_a_lock_of_its_own(unique: str, engine: Any) -> None:
    world, counts = World.named(unique), Counter[str]()
    rounds, tasks = 25, 4

    async def work(number: int) -> None:
        async with AsyncCoordinator(f"memory://{unique}", engine=engine) as c:

            async def count() -> None:
                for _ in range(rounds):
                    async with c.lock("k"):
                        seen = counts["locked"]
                        await asyncio.sleep(0)
                        counts["locked"] = seen + 1
                    async with c.semaphore("s", 2) as hold:
                        name = f"permit {hold.permit}"
                        seen = counts[name]
                        await asyncio.sleep(0)
                        counts[name] = seen + 1
                    async with c.lock("r", shared=True):
                        seen = counts["written"]
                        await asyncio.sleep(0)
                        assert counts["written"] == seen
                    async with c.lock_all(["r", "k"]):
                        seen = counts["written"]
                        await asyncio.sleep(0)
                        counts["written"] = seen + 1

            await asyncio.gather(*(count() for _ in range(tasks)))

    in_threads(work)
    total = THREADS * rounds * tasks
    assert counts["locked"] == counts["written"] == counts["permit 0"] + counts["permit 1"] == total
    assert set(counts) <= {"locked", "written", "permit 0", "permit 1"}
    assert (world.empty, world.members) == (True, set())


@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_a_storm_leaves_nothing(unique: str, engine: Any) -> None:
    """Time-outs, cancels, losses, cuts from other threads, closing in the middle: at the end nobody has anything."""
    world, living, inside = World.named(unique), list[MemoryBackend](), Counter[str]()
    rounds, tasks = 8, 6

    def break_one(chance: random.Random) -> None:
        """Somebody else's, most of the time; it may be closing just now."""
        try:
            backend = chance.choice([*living])
            if chance.random() < 0.1:
                with backend.partition():
                    backend.lose_connection(reconnect=False)
                    backend.reconnect()
            elif chance.random() < 0.2:
                backend.lose_connection()
        except (CoordinatorClosed, IndexError):
            pass

    async def work(number: int) -> None:
        chance = random.Random(number)

        async def once(c: AsyncCoordinator) -> None:
            name = chance.choice("abc")
            lock = chance.choice(
                (c.lock(name), c.lock(name, shared=True), c.semaphore(name, 2), c.lock_all([name, "a"]))
            )
            try:
                async with asyncio.timeout(chance.choice((0.001, 0.01, 1))):
                    hold = await lock.acquire(timeout=chance.choice((0, 0.001, 0.5)))
                    async with hold:
                        inside[name] += 1
                        await asyncio.sleep(0)
            except (AcquireTimeout, TimeoutError, LockLost, Unavailable):
                pass
            break_one(chance)

        for _ in range(rounds):
            async with AsyncCoordinator(f"memory://{unique}", engine=engine) as c:
                living.append(handles(c))
                try:
                    await asyncio.gather(*(once(c) for _ in range(tasks)))
                finally:
                    living.remove(handles(c))

    in_threads(work)
    assert sum(inside.values()) > 0
    assert (world.empty, world.members) == (True, set())


def test_a_grant_that_comes_too_late(unique: str) -> None:
    """The world grants on one thread while the connection is lost on another: the late letter is not a lock."""

    async def release(c: AsyncCoordinator, hold: AsyncHold) -> None:
        await hold.release()
        assert world.table.having(key) != ()  # the world has handed it over
        await c.close()

    def release_there() -> None:
        other.run(release(holder, held))

    async def work() -> None:
        async with AsyncCoordinator(f"memory://{unique}") as c:
            wait = asyncio.create_task(c.lock(key).acquire())
            await asyncio.sleep(0)
            thread = threading.Thread(target=release_there)
            thread.start()
            thread.join()  # this loop stands still, and the letter lies before it
            handles(c).lose_connection(reconnect=False)
            for _ in range(20):
                await asyncio.sleep(0)
            assert not wait.done()
            assert c.health().locks_waited_for == 1
            assert world.empty
            handles(c).reconnect()
            await (await wait).release()

    key, world = 7, World.named(unique)
    other = asyncio.Runner()
    holder = AsyncCoordinator(f"memory://{unique}")
    other.run(holder.open())
    held = other.run(holder.lock(key).acquire())
    asyncio.run(work())
    other.close()
    assert world.empty


def test_nobody_waits_for_the_world(unique: str) -> None:
    """What is said while the world is busy is done by whoever is at it, in the order in which it was said."""
    world, done = World.named(unique), list[str]()

    def first() -> None:
        world.send(lambda: done.append("said by the one that is carried out"))
        thread = threading.Thread(target=world.send, args=(lambda: done.append("said by another thread"),))
        thread.start()
        thread.join()
        done.append("first")

    world.send(first)
    assert done == ["first", "said by the one that is carried out", "said by another thread"]
