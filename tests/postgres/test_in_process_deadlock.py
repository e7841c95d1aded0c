"""Deadlocks between tasks of one process, with real tasks and a real server: the wait that would close one is refused.

Here live tests of what a program sees. Theory: the refused task leaves what it was inside of, so all others go on; that
they do is the proof that nothing else was disturbed. Each wait is begun before the next one is asked for: the
coordinator counts them.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, LockLost, WouldDeadlock
from pgconcert.acquiring import Acquirable
from pgconcert.testing import advisory_locks, eventually_async
from tests.postgres.lockkinds import locks, still_waits
from tests.postgres.scenes import Engine, both_engines, lock_pid, until_free
from tests.servers import Server

Asks = Callable[[AsyncCoordinator], Acquirable]


class Nested:
    """A task that goes into one thing after the other, each when it is told to."""

    def __init__(self, name: str, *wanted: Acquirable) -> None:
        self._wanted = wanted
        self._go = asyncio.Semaphore(0)
        self.inside = 0
        self.asking = 0
        self.task = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            for wanted in self._wanted:
                await self._go.acquire()
                self.asking += 1
                await stack.enter_async_context(wanted)
                self.inside += 1
            await self._go.acquire()
        return self.inside

    async def step(self) -> None:
        """Let it ask for the next thing, or leave; return when it has got it, waits for it, or was refused."""
        before = self.asking
        self._go.release()
        if before < len(self._wanted):
            await eventually_async(lambda: self.asking > before)

    async def enter(self) -> None:
        """Let it get the next thing."""
        await self.step()
        await eventually_async(lambda: self.inside == self.asking, what="it is inside")

    async def end(self) -> int:
        """Let it leave, and wait for its end."""
        self._go.release()
        return await asyncio.wait_for(self.task, 30)


async def _until_waiting(c: AsyncCoordinator, keys: int) -> None:
    await eventually_async(lambda: c.health().locks_waited_for == keys, what=f"{keys} keys are waited for")


@both_engines
@pytest.mark.parametrize(
    ("outer", "inner", "words"),
    [
        (lambda c: c.lock("a"), lambda c: c.lock("a"), "holds 'a' already"),
        (lambda c: c.lock("a"), lambda c: c.lock("a", timeout=5), "holds 'a' already"),
        (lambda c: c.lock("a"), lambda c: c.lock("a", shared=True), "holds 'a' already"),
        (lambda c: c.lock("a", shared=True), lambda c: c.lock("a"), "holds 'a' shared .* cannot be upgraded"),
        (lambda c: c.lock_all(["a", "b"]), lambda c: c.lock("b"), "holds 'b' already"),
        (lambda c: c.lock("b"), lambda c: c.lock_all(["a", "b", "c"]), "holds 'b' already"),
        (lambda c: c.lock_all(["a", "b"]), lambda c: c.lock_all(["b", "c"], timeout=5), "holds 'b' already"),
        (lambda c: c.semaphore("a", 1), lambda c: c.semaphore("a", 1), "a permit of 'a' .* by this task"),
    ],
)
async def test_waiting_for_oneself(database: str, engine: Engine, outer: Asks, inner: Asks, words: str) -> None:
    """A task that asks for what it is inside of is told so at once; what it has stays held, nothing else is."""
    async with AsyncCoordinator(database, engine=engine) as c:
        async with outer(c) as hold:
            before = {lock.key for lock in advisory_locks(database)}
            with pytest.raises(WouldDeadlock, match=words):
                async with inner(c):
                    pytest.fail("it is inside twice")
            hold.check()
            assert await inner(c).try_acquire() is None
            with pytest.raises(AcquireTimeout):
                await inner(c).acquire(timeout=0)
            await eventually_async(lambda: {lock.key for lock in advisory_locks(database)} == before)
        async with inner(c):
            pass
    await until_free(database)


@both_engines
@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize("tasks", [2, 3, 5])
async def test_a_circle_of_tasks(database: str, engine: Engine, tasks: int, timeout: float | None) -> None:
    """Each of some tasks is inside one lock and wants that of the next; the last of them is refused, with the circle in
    words, and all others get what they want."""
    async with AsyncCoordinator(database, engine=engine) as c:
        circle = [
            Nested(f"task {n}", c.lock(f"k{n}"), c.lock(f"k{(n + 1) % tasks}", timeout=timeout)) for n in range(tasks)
        ]
        for member in circle:
            await member.enter()
        for n, member in enumerate(circle[:-1]):
            await member.step()
            await _until_waiting(c, n + 1)
        last = circle[-1]
        await last.step()
        with pytest.raises(WouldDeadlock) as told:
            await asyncio.wait_for(last.task, 30)
        text = str(told.value)
        assert text.startswith(
            "this task would wait for 'k0' for ever: 'k0' is held by task 'task 0', which waits for 'k1'"
        )
        assert f"'k{tasks - 1}' is held by this task" in text
        for n in range(1, tasks - 1):
            assert f"'k{n}' is held by task 'task {n}', which waits for 'k{n + 1}'" in text
        assert [await member.end() for member in reversed(circle[:-1])] == [2] * (tasks - 1)
    await until_free(database)


@both_engines
async def test_a_circle_through_sets(database: str, engine: Engine) -> None:
    """Sets are looked at key by key; the refused set leaves nothing behind."""
    async with AsyncCoordinator(database, engine=engine) as c:
        one = Nested("one", c.lock_all(["a", "b"]), c.lock("c"))
        two = Nested("two", c.lock("c"), c.lock_all(["b", "d"]))
        await one.enter()
        await two.enter()
        await one.step()
        await _until_waiting(c, 1)
        await two.step()
        with pytest.raises(WouldDeadlock, match="'b' is held by task 'one', which waits for 'c'; 'c' is held by this"):
            await asyncio.wait_for(two.task, 30)
        assert await one.end() == 2
        await eventually_async(lambda: locks(database) == [], what="the refused set has left nothing")
    await until_free(database)


async def test_sets_in_one_another_go_on(database: str) -> None:
    """Sets that overlap and are not nested are never refused, in whatever order they name their keys."""
    async with AsyncCoordinator(database) as c:

        async def work(keys: Sequence[str]) -> None:
            for _ in range(20):
                async with c.lock_all(keys):
                    await asyncio.sleep(0)

        await asyncio.gather(*(work(keys) for keys in (["a", "b"], ["b", "c"], ["c", "a"], ["c", "b", "a"])))
    await until_free(database)


@both_engines
async def test_a_circle_through_permits(database: str, engine: Engine) -> None:
    """A permit is waited for in vain only when all who have one are stuck; as long as one is not, there is hope."""
    async with AsyncCoordinator(database, engine=engine) as c:
        one = Nested("one", c.semaphore("s", 2), c.lock("x"))
        two = Nested("two", c.semaphore("s", 2), c.lock("x"))
        three = Nested("three", c.lock("x"), c.semaphore("s", 2))
        for member in (one, two, three):
            await member.enter()
        await one.step()
        await _until_waiting(c, 1)
        await three.step()
        await _until_waiting(c, 2)
        assert await still_waits(three.task, c)
        await two.step()
        with pytest.raises(WouldDeadlock, match="'x' is held by task 'three', which waits for a permit of 's'"):
            await asyncio.wait_for(two.task, 30)
        assert await three.end() == 2
        assert await one.end() == 2
    await until_free(database)


async def test_all_permits_are_stuck(database: str) -> None:
    """The same with the permit as the last wait."""
    async with AsyncCoordinator(database) as c:
        one = Nested("one", c.semaphore("s", 2), c.lock("x"))
        two = Nested("two", c.semaphore("s", 2), c.lock("x"))
        three = Nested("three", c.lock("x"), c.semaphore("s", 2))
        for member in (one, two, three):
            await member.enter()
        for member in (one, two):
            await member.step()
        await _until_waiting(c, 1)
        await three.step()
        with pytest.raises(WouldDeadlock, match=r"a permit of 's' \(none is free\) is held by task '(one|two)'"):
            await asyncio.wait_for(three.task, 30)
        assert [await one.end(), await two.end()] == [2, 2]
    await until_free(database)


async def test_two_permits_in_one_task(database: str) -> None:
    """A task may be inside a semaphore as often as there are permits, and once more it is refused."""
    async with AsyncCoordinator(database) as c:
        async with c.semaphore("s", 2) as one, c.semaphore("s", 2) as two:
            assert {one.permit, two.permit} == {0, 1}
            with pytest.raises(WouldDeadlock, match="a permit of 's'"):
                await c.semaphore("s", 2).acquire()
    await until_free(database)


@both_engines
async def test_a_circle_through_a_writer_that_keeps_a_reader_outside(database: str, engine: Engine) -> None:
    """A reader behind a waiting writer waits for the readers inside, although readers alone would not exclude it."""
    async with AsyncCoordinator(database, engine=engine) as c:
        inside = Nested("inside", c.lock("b", shared=True), c.lock("a"))
        late = Nested("late", c.lock("a"), c.lock("b", shared=True))
        writer = Nested("writer", c.lock("b"))
        await inside.enter()
        await late.enter()
        await writer.step()
        await _until_waiting(c, 1)
        await late.step()
        assert await still_waits(late.task, c)
        await inside.step()
        with pytest.raises(WouldDeadlock, match="'a' is held by task 'late', which waits for 'b'"):
            await asyncio.wait_for(inside.task, 30)
        assert await writer.end() == 1
        assert await late.end() == 2
    await until_free(database)


async def test_readers_do_not_wait_for_each_other(database: str) -> None:
    """Readers nested crosswise are no circle while no writer waits."""
    async with AsyncCoordinator(database) as c:
        one = Nested("one", c.lock("a", shared=True), c.lock("b", shared=True))
        two = Nested("two", c.lock("b", shared=True), c.lock("a", shared=True))
        for member in (one, two, one, two):
            await member.enter()
        assert [await one.end(), await two.end()] == [2, 2]
    await until_free(database)


async def test_what_is_not_in_a_scope_is_not_looked_at(database: str) -> None:
    """Of a hold that was acquired by hand nobody knows who will give it back: its waiter waits."""
    async with AsyncCoordinator(database) as c:
        hold = await c.lock("by hand").acquire()
        other = Nested("other", c.lock("x"), c.lock("by hand"))
        await other.enter()
        await other.step()
        async with c.lock("y"):
            waiter = asyncio.create_task(c.lock("by hand").acquire())
            assert await still_waits(other.task, c)
        await hold.release()
        assert await other.end() == 2
        await (await asyncio.wait_for(waiter, 30)).release()
    await until_free(database)


async def test_the_circle_is_gone_with_the_one_that_left(database: str) -> None:
    """A wait that ended by time or cancel closes no circle any more."""
    async with AsyncCoordinator(database) as c:
        for how in ("cancel", "timeout"):
            one = Nested("one", c.lock("a"), c.lock("b", timeout=0.05 if how == "timeout" else None))
            async with c.lock("b"):
                await one.enter()
                await one.step()
                if how == "cancel":
                    await _until_waiting(c, 1)
                    one.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, AcquireTimeout):
                    await asyncio.wait_for(one.task, 30)
                async with c.lock("a", timeout=30):
                    pass
    await until_free(database)


@both_engines
async def test_a_lost_hold_is_nobodys(database: str, server: Server, engine: Engine) -> None:
    """In the scope of a hold that was lost the lock may be waited for again: the server has freed it."""
    async with AsyncCoordinator(database, engine=engine) as c:

        async def again() -> None:
            async with c.lock("lost", on_lost="report") as hold:
                server.kill_backend(lock_pid(c))
                await asyncio.wait_for(hold.wait_lost(), 30)
                async with c.lock("lost", timeout=30):
                    assert len(locks(database)) == 1

        with pytest.raises(LockLost):
            await again()
    await until_free(database)


async def test_other_coordinators_are_other_processes(database: str) -> None:
    """A circle over two coordinators is not refused, but bounded by the time limit of one of them."""
    async with AsyncCoordinator(database) as c, AsyncCoordinator(database) as other:
        one = Nested("one", c.lock("a"), other.lock("b", timeout=0.2))
        two = Nested("two", other.lock("b"), c.lock("a"))
        for member in (one, two):
            await member.enter()
        await two.step()
        await one.step()
        with pytest.raises(AcquireTimeout):
            await asyncio.wait_for(one.task, 30)
        assert await two.end() == 2
    await until_free(database)
