"""``@c.exclusive``: one call at a time, over coordinators; what it waits for, skips, raises and refuses.

Here live tests of both twins over memory. Theory: the decorator is a block under a lock, so only what it adds is looked
at here: the key of each call, what is refused when it is decorated, and that nothing is needed before the first call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, assert_type

import pytest

from pgconcert import AcquireTimeout, AsyncCoordinator, ConfigurationError, CoordinatorClosed, KeyInvalid, WouldDeadlock
from pgconcert.blocking import Coordinator
from pgconcert.testing import eventually


async def test_one_call_at_a_time(unique: str) -> None:
    """Calls in two coordinators never overlap, and each gives back what its function returned."""
    async with AsyncCoordinator(f"memory://{unique}") as one, AsyncCoordinator(f"memory://{unique}") as two:
        inside = 0

        async def work(number: int, /, *, twice: bool) -> int:
            nonlocal inside
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1
            return number * (2 if twice else 1)

        calls = [c.exclusive("work")(work)(n, twice=True) for n in range(20) for c in (one, two)]
        assert await asyncio.gather(*calls) == [n * 2 for n in range(20) for _ in (one, two)]
        assert one.health().locks_held == two.health().locks_held == 0


async def test_the_key_of_a_call(unique: str) -> None:
    """Only calls for the same thing wait for each other, and the function that finds it gets what the call gets."""
    async with AsyncCoordinator(f"memory://{unique}") as c:

        @c.exclusive(lambda order, *, note="": f"order:{order}", timeout=0)
        async def ship(order: int, *, note: str = "") -> str:
            return f"{order}{note}"

        async with c.lock("order:1"):
            assert await ship(2, note="!") == "2!"
            with pytest.raises(AcquireTimeout, match="'order:1'"):
                await ship(1, note="?")
        assert await ship(1) == "1"


async def test_skip(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        called: list[int] = []

        @c.exclusive(7, if_held="skip")
        async def report(number: int) -> bool:
            called.append(number)
            return await c.lock(7).try_acquire() is None

        assert_type(await report(1), bool | None)
        async with c.lock(7):
            assert await report(2) is None
        assert await report(3) is True
        assert called == [1, 3]


async def test_what_it_raises_frees_the_lock(unique: str) -> None:
    """An error, a cancellation, and a call of itself: the error goes on, and the lock is free."""
    async with AsyncCoordinator(f"memory://{unique}") as c:
        entered = asyncio.Event()

        @c.exclusive("raises")
        async def work(how: str) -> None:
            if how == "error":
                raise LookupError(how)
            if how == "again":
                await work("error")
            entered.set()
            await asyncio.Event().wait()

        with pytest.raises(LookupError):
            await work("error")
        with pytest.raises(WouldDeadlock):
            await work("again")
        task = asyncio.create_task(work("cancelled"))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert c.health().locks_held == 0


async def test_a_module_may_decorate_before_anything_is_open(unique: str) -> None:
    c = AsyncCoordinator(f"memory://{unique}")

    @c.exclusive("early")
    async def work() -> str:
        """What it does."""
        return "done"

    assert (work.__name__, work.__doc__) == ("work", "What it does.")
    assert inspect.iscoroutinefunction(work)
    with pytest.raises(CoordinatorClosed, match="not open yet"):
        await work()
    async with c:
        assert await work() == "done"


async def test_a_method(unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:

        class Shop:
            name = "shop"

            @c.exclusive(lambda self, order: f"{self.name}:{order}")
            async def ship(self, order: int) -> tuple[str, int, int]:
                return self.name, order, c.health().locks_held

        assert await Shop().ship(4) == ("shop", 4, 1)


def test_threads(unique: str) -> None:
    """The twin for plain functions: one at a time, skips, errors, keys."""
    with Coordinator(f"memory://{unique}") as one, Coordinator(f"memory://{unique}") as two:
        inside: list[int] = []

        def work(number: int) -> int:
            inside.append(number)
            assert len(inside) == 1
            inside.clear()
            return number

        results: list[int] = []
        workers = [
            threading.Thread(target=lambda c=c, n=n: results.append(c.exclusive("work")(work)(n)))
            for n in range(8)
            for c in (one, two)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sorted(results) == sorted([*range(8)] * 2)

        @one.exclusive(lambda n: n, if_held="skip")
        def skips(n: int) -> int:
            if n < 0:
                raise LookupError(n)
            assert two.lock(n).try_acquire() is None
            return n

        assert_type(skips(1), int | None)
        with two.lock(5):
            assert skips(5) is None
            assert skips(6) == 6
        with pytest.raises(LookupError):
            skips(-1)
        eventually(lambda: one.health().locks_held == 0)  # a release is handed in


def plain() -> None: ...


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


async def echo(said: int) -> int:
    return said


class OfClass:
    @classmethod
    def made(cls) -> None: ...


class Echo:
    async def __call__(self, said: int) -> int:
        return said


@pytest.mark.parametrize(
    ("make", "fn", "said"),
    [
        (AsyncCoordinator, plain, "plain is a plain function.*Coordinator.exclusive"),
        (Coordinator, coroutine, "coroutine is an async function.*AsyncCoordinator.exclusive"),
        (Coordinator, Echo(), "is an async function"),
        (AsyncCoordinator, generator, "makes a generator"),
        (AsyncCoordinator, async_generator, "makes a generator"),
        (Coordinator, generator, "makes a generator"),
        (Coordinator, async_generator, "makes a generator"),
        (Coordinator, functools.partial(generator), "makes a generator"),
        (Coordinator, staticmethod(coroutine), "write @staticmethod above it"),
        (Coordinator, vars(OfClass)["made"], "write @classmethod above it"),
        (AsyncCoordinator, "name", "decorates a function, not"),
        (AsyncCoordinator, Echo, "decorates a function, not"),
    ],
)
def test_what_cannot_be_decorated(make: Callable[[str], Any], fn: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make("null://").exclusive("name")(fn)


@pytest.mark.parametrize("if_held", ["wait", "skip"])
def test_a_coroutine_that_another_decorator_hides(if_held: Any, unique: str) -> None:
    """It would run without the lock, so it does not run at all, and the lock is free."""

    def hiding(said: int) -> Any:
        return echo(said)

    with Coordinator(f"memory://{unique}") as c:
        decorate: Any = c.exclusive
        with pytest.raises(ConfigurationError, match="hiding returned a coroutine, which would run without the lock"):
            decorate("work", if_held=if_held)(hiding)(1)
        with c.lock("work", timeout=10):
            pass


@pytest.mark.parametrize("make", [AsyncCoordinator, Coordinator])
def test_wrong_arguments(make: Callable[[str], Any]) -> None:
    c = make("null://")
    for key in ("", True, None, 2**64, "a\0"):
        with pytest.raises(KeyInvalid):
            c.exclusive(key)
    with pytest.raises(ConfigurationError, match="if_held must be 'wait' or 'skip', not 'raise'"):
        c.exclusive("k", if_held="raise")
    with pytest.raises(ConfigurationError, match="waits for nothing"):
        c.exclusive("k", if_held="skip", timeout=1)
    with pytest.raises(ConfigurationError, match="timeout"):
        c.exclusive("k", timeout=-1)
    if make is AsyncCoordinator:
        with pytest.raises(ConfigurationError, match="on_lost must be"):
            c.exclusive("k", on_lost="ignore")


async def test_partials_and_callables() -> None:
    async with AsyncCoordinator("null://") as c:
        assert await c.exclusive("k")(functools.partial(echo, 3))() == 3
        assert await c.exclusive("k")(Echo())(4) == 4
