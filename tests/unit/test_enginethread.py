"""The engine thread: who starts it, who ends it, and what crosses to it and back.

Here lives what the crossing itself promises, with a backend of a few lines behind it; whole backends on the thread are
tested with their servers.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Sequence

import pytest

from pgconcert.backend import Capability, Claim, Describer, Health, Holder
from pgconcert.enginethread import EngineThread, ThreadedBackend
from pgconcert.errors import ConfigurationError
from pgconcert.events import EventStream
from pgconcert.hold import Grant, Waiter
from pgconcert.keys import KeySpace, LockKey
from pgconcert.testing import eventually_async

NAME = "pgconcert-engine"


def threads() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


async def from_thread(act: Callable[[], None]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    await eventually_async(lambda: not thread.is_alive())


class Locker:
    """Grants every claim when told to, and remembers on which thread it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.claims: list[Claim] = []

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def acquire(self, claim: Claim) -> None:
        self.note(f"acquire {claim.name}")
        self.claims.append(claim)
        if claim.wait:
            claim.waiter.set_result(True)
        else:
            claim.waiter.set_exception(ConfigurationError("refused"))

    def withdraw(self, claim: Claim) -> None:
        self.note(f"withdraw {claim.name}")

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        self.note(f"release {claim.name}")
        if waiter is not None:
            waiter.set_result(True)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.acquire(claim)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        self.note("release " + " ".join(str(claim.name) for claim in claims))
        if waiter is not None:
            waiter.set_result(True)

    def drop(self, claim: Grant) -> None:
        self.note(f"drop {claim.name}")

    def describe(self, key: LockKey, waiter: Describer) -> None:
        self.note(f"describe {key.name}")
        waiter.set_result((Holder(1, "app"),))


class OneBackend:
    """A backend that notes where it is opened and closed."""

    messenger = None
    store = None

    def __init__(self, error: Exception | None = None) -> None:
        self.one = Locker()
        self.error = error

    @property
    def locker(self) -> Locker:
        return self.one

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"exclusion"})

    async def open(self, events: EventStream) -> None:
        self.one.note("open")
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        self.one.note("close")

    def health(self) -> Health:
        return Health(ready=True, links=(), locks_held=0, locks_waited_for=0, lock_budget=None)


def test_the_last_to_leave_ends_the_thread() -> None:
    assert threads() == 0
    first, second = EngineThread.join(), EngineThread.join()
    assert first is second
    assert threads() == 1
    first.leave()
    assert threads() == 1
    second.leave()
    assert threads() == 0
    assert first.loop.is_closed()
    again = EngineThread.join()
    assert again is not first
    again.leave()
    assert threads() == 0


async def test_many_join_and_leave_at_once() -> None:
    def use() -> None:
        for _ in range(20):
            EngineThread.join().leave()

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    await eventually_async(lambda: not any(user.is_alive() for user in users))
    assert threads() == 0


async def test_posts_run_there_in_order_and_survive_a_failing_one() -> None:
    engine, seen = EngineThread.join(), list[object]()
    reported: list[object] = []
    engine.loop.call_soon_threadsafe(
        engine.loop.set_exception_handler, lambda loop, context: reported.append(context["exception"])
    )

    def broken() -> None:
        raise ValueError("broken")

    for number in range(100):
        engine.crossing.post(lambda number=number: seen.append(number))  # type: ignore[misc]
        if number == 50:
            engine.crossing.post(broken)
    engine.crossing.post(lambda: seen.append(threading.current_thread().name))
    await eventually_async(lambda: len(seen) == 101)
    assert seen == [*range(100), NAME]
    assert [str(error) for error in reported] == ["broken"]
    await from_thread(engine.leave)


async def test_run_crosses_results_errors_and_cancellation() -> None:
    engine = EngineThread.join()
    started, ended = threading.Event(), threading.Event()

    async def where() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise KeyError("there")

    async def wait() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert await engine.run(where()) == NAME
    with pytest.raises(KeyError, match="there"):
        await engine.run(fail())
    waiting = asyncio.create_task(engine.run(wait()))
    await eventually_async(started.is_set)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually_async(ended.is_set)
    await from_thread(engine.leave)
    assert threads() == 0


async def test_a_backend_on_the_thread() -> None:
    inner = OneBackend()
    backend = ThreadedBackend(inner)
    await backend.open(EventStream())
    loop, key = asyncio.get_running_loop(), KeySpace().key("k")
    granted: asyncio.Future[bool] = loop.create_future()
    claim = Claim(key, granted, wait=True)
    backend.locker.acquire(claim)
    assert await granted
    released: asyncio.Future[bool] = loop.create_future()
    backend.locker.release(claim, released)
    assert await released
    refused: asyncio.Future[bool] = loop.create_future()
    backend.locker.acquire(Claim(key, refused, wait=False))
    with pytest.raises(ConfigurationError, match="refused"):
        await refused
    known: asyncio.Future[Sequence[Holder]] = loop.create_future()
    backend.locker.describe(key, known)
    assert await known == (Holder(1, "app"),)
    two: list[asyncio.Future[bool]] = [loop.create_future(), loop.create_future()]
    both = [Claim(KeySpace().key(name), future, wait=True) for name, future in zip("lm", two, strict=True)]
    backend.locker.acquire_all(both)
    assert await asyncio.gather(*two) == [True, True]
    together: asyncio.Future[bool] = loop.create_future()
    backend.locker.release_all(both, together)
    assert await together
    backend.locker.drop(claim)
    assert backend.health().ready
    await backend.close()
    await backend.close()
    assert inner.one.threads == {NAME}
    assert inner.one.calls == [
        "open", "acquire k", "release k", "acquire k", "describe k", "acquire l", "acquire m",
        "release l m", "drop k", "close",
    ]  # fmt: skip
    assert threads() == 0


async def test_a_caller_that_has_left_is_not_told_and_its_withdrawal_crosses_after() -> None:
    inner = OneBackend()
    backend = ThreadedBackend(inner)
    await backend.open(EventStream())
    waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    claim = Claim(KeySpace().key("k"), waiter, wait=True)
    backend.locker.acquire(claim)
    waiter.cancel()
    backend.locker.withdraw(claim)
    await eventually_async(lambda: "withdraw k" in inner.one.calls)
    await backend.close()
    assert inner.one.calls == ["open", "acquire k", "withdraw k", "close"]
    assert waiter.cancelled()


async def test_a_backend_that_cannot_open_leaves_no_thread() -> None:
    backend = ThreadedBackend(OneBackend(ConfigurationError("wrong")))
    with pytest.raises(ConfigurationError, match="wrong"):
        await backend.open(EventStream())
    assert threads() == 0


class Call:
    def __call__(self) -> None:
        """Never run: its loop has ended."""


def test_posts_to_a_loop_that_has_ended_are_forgotten() -> None:
    engine = EngineThread.join()
    engine.leave()
    calls = [Call() for _ in range(3)]
    known = [weakref.ref(call) for call in calls]
    while calls:
        engine.crossing.post(calls.pop())
    assert [one() for one in known] == [None, None, None]
