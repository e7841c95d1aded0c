"""Locks, shared locks, sets and semaphores of three coordinators against one small model, on both backends.

Theory. The model knows who has what and who waits for what, and of each only as much as is promised. After each step it
waits until nobody waits in vain (`saturated`), and says of each try what must come of it:

* who does not fit beside those who have it gets None, at once;
* who fits, and nobody waits for it, gets it;
* who would join readers while a writer waits gets None: the writer keeps new readers outside.

The last two hold as soon as what came before has reached everybody (a gate that opens, a session that has ended), so
such a try is made again for a while. Grants to those who wait come in any order between coordinators, and within one of
them first come, first served. No grant, whenever it comes, may fail to fit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pgconcert import AsyncCoordinator, AsyncHold
from pgconcert.acquiring import Acquirable
from pgconcert.memory import MemoryBackend
from pgconcert.postgres import keeper, waiting
from pgconcert.testing import eventually_async
from tests.servers import Server

T = TypeVar("T")

COORDINATORS: Final = 3
PERMITS: Final = 2
LOCKS: Final = ("a", "b")
SEMAPHORE: Final = "s"
WORLDS: Final = itertools.count()
ENGINES: Final[Sequence[Literal["loop", "thread"]]] = ("loop", "loop", "thread")

Make = Callable[[], Callable[[], AsyncCoordinator]]
"""Makes a new world: what makes coordinators in it."""
Lose = Callable[[AsyncCoordinator], None]
"""Breaks the connection of a coordinator."""


@dataclass(eq=False)
class Ask:
    """What one caller wants, or has."""

    c: int
    keys: Sequence[str]
    shared: bool
    task: asyncio.Task[AsyncHold] | None = None
    hold: AsyncHold | None = None


class Model(RuleBasedStateMachine):
    """The coordinators, who has what, and who waits in which order. No rule has a precondition, because who has got
    what is not the same each time, and a program must stay the same when it is run again."""

    def __init__(self, make: Make, lose: Lose) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self.lose_connection = lose
        self.held: list[Ask] = []
        self.waiting: list[Ask] = []
        coordinator = make()
        self.there = [coordinator() for _ in range(COORDINATORS)]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize()
    def open(self) -> None:
        for c in self.there:
            self.run(c.open())

    # the model

    def fits(self, key: str, shared: bool) -> bool:
        having = [ask for ask in self.held if key in ask.keys]
        if key == SEMAPHORE:
            return len(having) < PERMITS
        return not having or (shared and all(ask.shared for ask in having))

    def has_got(self, ask: Ask, hold: AsyncHold) -> None:
        assert all(self.fits(key, ask.shared) for key in ask.keys), f"granted, and does not fit: {ask}, {self.held}"
        ask.hold = hold
        self.held.append(ask)

    def collect(self) -> None:
        """Note who has got what he waited for."""
        for ask in [*self.waiting]:
            assert ask.task
            if ask.task.done():
                before = [one for one in self.waiting[: self.waiting.index(ask)] if one.c == ask.c]
                assert not any(one.keys == ask.keys for one in before), f"overtook others: {ask}"
                self.waiting.remove(ask)
                self.has_got(ask, ask.task.result())

    def saturated(self) -> bool:
        """Whether everybody who waits does so for a reason."""
        self.collect()
        for ask in self.waiting:
            (key,) = ask.keys
            writers = any(one.keys == ask.keys and not one.shared for one in self.waiting)
            having = any(key in one.keys for one in self.held)
            if self.fits(key, ask.shared) and not (ask.shared and writers and having):
                return False
        return True

    def counts_agree(self) -> bool:
        """Whether every coordinator says that it holds what we know of."""
        held = [sum(len(ask.keys) for ask in self.held if ask.c == number) for number in range(COORDINATORS)]
        return held == [c.health().locks_held for c in self.there]

    async def settle(self) -> None:
        # both at once, because more may have been granted than had to be
        await eventually_async(lambda: self.saturated() and self.counts_agree(), 30, what="nobody waits in vain")

    # what is done

    def wanted(self, ask: Ask) -> Acquirable:
        c = self.there[ask.c]
        if ask.keys == (SEMAPHORE,):
            return c.semaphore(SEMAPHORE, PERMITS)
        return c.lock_all(ask.keys, shared=ask.shared) if len(ask.keys) > 1 else c.lock(ask.keys[0], shared=ask.shared)

    async def attempt(self, ask: Ask) -> None:
        wanted = self.wanted(ask)
        if not all(self.fits(key, ask.shared) for key in ask.keys):
            assert await wanted.try_acquire() is None, f"does not fit: {ask}"
            return
        waited_for = any(one.keys[0] in ask.keys for one in self.waiting)

        async def as_expected() -> bool:
            hold = await wanted.try_acquire()
            if hold is not None and waited_for:
                await hold.release()
            elif hold is not None:
                self.has_got(ask, hold)
            return (hold is None) is waited_for

        await eventually_async(as_expected, 30, what="refused" if waited_for else "granted")
        await self.settle()

    which = st.integers(0, COORDINATORS - 1)
    keys = st.sampled_from([("a",), ("b",), LOCKS])

    @rule(c=which, keys=keys, shared=st.booleans())
    def try_locks(self, c: int, keys: Sequence[str], shared: bool) -> None:
        self.run(self.attempt(Ask(c, keys, shared)))

    @rule(c=which)
    def try_permit(self, c: int) -> None:
        self.run(self.attempt(Ask(c, (SEMAPHORE,), False)))

    @rule(c=which, key=st.sampled_from([*LOCKS, SEMAPHORE]), shared=st.booleans())
    def wait(self, c: int, key: str, shared: bool) -> None:
        async def begin() -> None:
            ask = Ask(c, (key,), shared and key != SEMAPHORE)
            ask.task = asyncio.create_task(self.wanted(ask).acquire())
            self.waiting.append(ask)
            await asyncio.sleep(0)
            await self.settle()

        self.run(begin())

    @rule(c=which, key=st.sampled_from(LOCKS), late=which)
    def come_behind_a_writer(self, c: int, key: str, late: int) -> None:
        """What chance alone seldom brings together: a reader inside, a writer that waits, and another reader."""
        self.try_locks(c, (key,), True)
        self.wait((c + 1) % COORDINATORS, key, False)
        self.try_locks(late, (key,), True)

    @rule(n=st.integers(0, 99))
    def cancel(self, n: int) -> None:
        async def leave() -> None:
            if not self.waiting:
                return
            ask = self.waiting[n % len(self.waiting)]
            assert ask.task
            ask.task.cancel()
            await asyncio.wait([ask.task])
            if ask.task.cancelled():
                self.waiting.remove(ask)
            await self.settle()

        self.run(leave())

    @rule(n=st.integers(0, 99))
    def release(self, n: int) -> None:
        async def give_back() -> None:
            if not self.held:
                return
            ask = self.held.pop(n % len(self.held))
            assert ask.hold
            await ask.hold.release()
            await self.settle()

        self.run(give_back())

    @rule(c=which)
    def lose(self, c: int) -> None:
        async def broken() -> None:
            if not self.held:
                return
            lock = self.there[c].lock("the connection")
            mine = [await lock.acquire(), *(ask.hold for ask in self.held if ask.c == c and ask.hold)]
            self.lose_connection(self.there[c])
            for hold in mine:
                await asyncio.wait_for(hold.wait_lost(), 30)
            # the next connection gets it once the last one is gone
            await (await lock.acquire()).release()
            self.held = [ask for ask in self.held if ask.c != c]
            await self.settle()

        self.run(broken())

    @invariant()
    def permits_are_distinct(self) -> None:
        permits = [ask.hold.permit for ask in self.held if ask.hold and ask.keys == (SEMAPHORE,)]
        assert len({*permits}) == len(permits)
        assert {*permits} <= {*range(PERMITS)}

    @invariant()
    def nothing_else_is_lost(self) -> None:
        assert not any(ask.hold.lost for ask in self.held if ask.hold)

    def teardown(self) -> None:
        async def end() -> None:
            for ask in self.waiting:
                assert ask.task
                ask.task.cancel()
                await asyncio.wait([ask.task])
            for ask in self.held:
                if ask.hold:
                    await ask.hold.release()
            for c in self.there:
                await c.close()

        self.run(end())
        self.runner.close()


def check(make: Make, lose: Lose, examples: int) -> None:
    """Run so many random programs against the model."""
    slow = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    run_state_machine_as_test(lambda: Model(make, lose), settings=slow)  # type: ignore[arg-type]


def on_postgres(server: Server, url: str, monkeypatch: pytest.MonkeyPatch, examples: int) -> None:
    # what an ended session has freed is found by looking again, which need not take its time here
    monkeypatch.setattr(waiting, "_RECHECK", 0.05)
    # and sessions end so often that the way to the next one would grow long
    monkeypatch.setattr(keeper, "_STABLE", 0.0)

    def lose(c: AsyncCoordinator) -> None:
        (pid,) = [link.server_pid for link in c.health().links if link.role == "lock" and link.server_pid]
        assert server.kill_backend(pid)

    def make() -> Callable[[], AsyncCoordinator]:
        engines = itertools.cycle(ENGINES)
        return lambda: AsyncCoordinator(url, engine=next(engines))

    check(make, lose, examples)


def in_memory(examples: int) -> None:
    def make() -> Callable[[], AsyncCoordinator]:
        name = f"conformance/{next(WORLDS)}"
        engines = itertools.cycle(ENGINES)
        return lambda: AsyncCoordinator(f"memory://{name}", engine=next(engines))

    def lose(c: AsyncCoordinator) -> None:
        assert isinstance(c.backend, MemoryBackend)
        c.backend.lose_connection()

    check(make, lose, examples)


def test_postgres(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_postgres(server, database, monkeypatch, 12)


def test_memory() -> None:
    in_memory(40)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_postgres_for_long(server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_postgres(server, database, monkeypatch, 400)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_memory_for_long() -> None:
    in_memory(2000)
