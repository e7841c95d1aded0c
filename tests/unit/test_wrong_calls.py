"""Calls that cannot be meant: what a coordinator, its locks and its holds refuse, and what they say.

Here live tests that read these messages, over backends inside this process; constructors stand in
`test_wrong_arguments.py`. Theory: whoever gets such a message has made a slip, so it names the thing and the next step,
and nothing was acquired: every test that could leave something shows that the lock is free.
"""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from examples.toy_backend import ToyBackend
from pgconcert import AsyncCoordinator, ConfigurationError, CoordinatorClosed, NotHeld
from pgconcert.acquiring import Acquirable
from tests.unit.memoryworld import handles

Make = Callable[..., Acquirable]

MAKERS: dict[str, Callable[[AsyncCoordinator], Make]] = {
    "lock": lambda c: lambda **options: c.lock("k", shared=True, **options),
    "set of locks": lambda c: lambda **options: c.lock_all(["k", "l"], shared=True, **options),
    "semaphore": lambda c: lambda **options: c.semaphore("k", 2, **options),
}
every_kind = pytest.mark.parametrize("kind", list(MAKERS))


# arguments of the verbs


@every_kind
@pytest.mark.parametrize("on_lost", ["ignore", "", None, True, ["cancel"]])
async def test_on_lost_is_one_of_two(kind: str, on_lost: Any) -> None:
    async with AsyncCoordinator("null://") as c:
        with pytest.raises(
            ConfigurationError, match=rf"^on_lost must be 'cancel' or 'report', not {re.escape(repr(on_lost))}$"
        ):
            MAKERS[kind](c)(on_lost=on_lost)


@every_kind
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf, "5", True, [5]])
async def test_a_timeout_is_seconds(kind: str, timeout: Any) -> None:
    said = rf"^timeout must be a number of seconds >= 0, or None to wait for ever, not {re.escape(repr(timeout))}$"
    async with AsyncCoordinator("null://") as c:
        with pytest.raises(ConfigurationError, match=said):
            MAKERS[kind](c)(timeout=timeout)
        with pytest.raises(ConfigurationError, match=said):
            await MAKERS[kind](c)().acquire(timeout)
        assert c.health().locks_held == 0


@every_kind
@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400])
async def test_a_huge_timeout_is_for_ever(kind: str, timeout: float, unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        thing = MAKERS[kind](c)(timeout=timeout)
        assert thing.timeout is None
        async with thing:
            pass
        await (await thing.acquire(timeout)).release()


@pytest.mark.parametrize("keys", ["abc", b"abc", 5, None])
async def test_one_key_is_not_several(keys: Any) -> None:
    """A text is the likely slip: its letters would be locked."""
    async with AsyncCoordinator("null://") as c:
        with pytest.raises(
            ConfigurationError,
            match=rf"^lock_all\(\) takes several keys, such as \['a', 'b'\], not {re.escape(repr(keys))}$",
        ):
            c.lock_all(keys)


@pytest.mark.parametrize("keys", [[], (), set(), iter([])])
async def test_no_key_is_none(keys: Any) -> None:
    async with AsyncCoordinator("null://") as c:
        with pytest.raises(ConfigurationError, match=r"^lock_all\(\) takes at least one key, and was given none$"):
            c.lock_all(keys)


@pytest.mark.parametrize("key", [None, True, 1.5, b"a", ("a",)])
async def test_a_set_with_a_key_that_is_none(key: Any) -> None:
    async with AsyncCoordinator("null://") as c:
        said = rf"^a lock key is an int or a text, not {type(key).__name__}: {re.escape(repr(key))}$"
        with pytest.raises(ConfigurationError, match=said):
            c.lock_all(["a", key])


@pytest.mark.parametrize(
    ("permits", "given"),
    [
        (0, "0"),
        (-1, "-1"),
        (1001, "1001"),
        (True, "True"),
        (2.0, "2.0"),
        ("3", "'3'"),
        pytest.param(10**5000, "an int of 16610 bits", id="huge"),
    ],
)
async def test_permits_that_are_none(permits: Any, given: str) -> None:
    async with AsyncCoordinator("null://") as c:
        with pytest.raises(ConfigurationError) as caught:
            c.semaphore("k", permits)
        assert str(caught.value) == f"the permits of a semaphore are a whole number from 1 to 1000, not {given}"


async def test_what_a_backend_cannot_do() -> None:
    async with AsyncCoordinator(backend=ToyBackend({})) as c:
        for make in (lambda: c.lock("k", shared=True), lambda: c.lock_all(["k"], shared=True)):
            with pytest.raises(ConfigurationError, match=r"^the backend ToyBackend has no shared locks$"):
                make()
        with pytest.raises(ConfigurationError, match=r"^the backend ToyBackend has no semaphores$"):
            c.semaphore("k", 2)


# the life of a coordinator


async def test_opened_once() -> None:
    said = "^this coordinator is {}, and can be opened once: make another$"
    c = AsyncCoordinator("null://")
    async with c:
        with pytest.raises(CoordinatorClosed, match=said.format("open")):
            await c.open()
    with pytest.raises(CoordinatorClosed, match=said.format("closed")):
        await c.open()


@every_kind
async def test_used_before_and_after(kind: str) -> None:
    c = AsyncCoordinator("null://")
    with pytest.raises(
        CoordinatorClosed, match=r"^this coordinator is not open yet: use it as 'async with', or await open\(\) first$"
    ):
        MAKERS[kind](c)()
    async with c:
        pass
    with pytest.raises(CoordinatorClosed, match=r"^this coordinator is closed$"):
        MAKERS[kind](c)()


async def test_released_by_name_without_having_it(unique: str) -> None:
    said = r"^'k' was not acquired with acquire_lock\(\) of this coordinator$"
    async with AsyncCoordinator(f"memory://{unique}") as c, AsyncCoordinator(f"memory://{unique}") as other:
        with pytest.raises(NotHeld, match=said):
            await c.release_lock("k")
        assert await other.acquire_lock("k")
        with pytest.raises(NotHeld, match=said):
            await c.release_lock("k")
        await other.release_lock("k")
        with pytest.raises(NotHeld, match=said):
            await other.release_lock("k")


@every_kind
async def test_left_by_a_task_that_did_not_enter(kind: str, unique: str) -> None:
    async with AsyncCoordinator(f"memory://{unique}") as c:
        thing = MAKERS[kind](c)()
        for _ in range(2):
            await asyncio.create_task(thing.__aenter__())
        names = {"lock": "'k'", "semaphore": "'k'"}.get(kind, repr(thing.key))
        with pytest.raises(RuntimeError, match=rf"^the {kind} of {re.escape(names)} was not entered by this task$"):
            await thing.__aexit__(None, None, None)
        assert c.health().locks_held == 2 * (2 if kind == "set of locks" else 1)


# another event loop


@pytest.fixture
def loops() -> Iterator[tuple[asyncio.Runner, asyncio.Runner]]:
    """Two event loops of this thread, which run in turn."""
    with asyncio.Runner() as one, asyncio.Runner() as other:
        yield one, other


ELSEWHERE = r"^this coordinator was opened on another event loop; use it there, or open one here$"


@every_kind
@pytest.mark.parametrize("engine", ["loop", "thread"])
def test_acquired_on_another_event_loop(
    kind: str, engine: Any, loops: tuple[asyncio.Runner, asyncio.Runner], unique: str
) -> None:
    home, abroad = loops
    c = AsyncCoordinator(f"memory://{unique}", engine=engine)
    home.run(c.open())
    thing = MAKERS[kind](c)()
    for way in (thing.acquire, lambda: thing.acquire(0), thing.try_acquire, thing.__aenter__):
        with pytest.raises(RuntimeError, match=ELSEWHERE):
            abroad.run(way())
    assert c.health().locks_held == 0
    assert c.health().locks_waited_for == 0
    home.run(c.close())


def test_acquired_by_name_on_another_event_loop(loops: tuple[asyncio.Runner, asyncio.Runner], unique: str) -> None:
    home, abroad = loops
    c = AsyncCoordinator(f"memory://{unique}")
    home.run(c.open())
    with pytest.raises(RuntimeError, match=ELSEWHERE):
        abroad.run(c.acquire_lock("k"))
    assert home.run(c.acquire_lock("k"))
    home.run(c.close())


# holds


@every_kind
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda way: way.__name__)
async def test_a_hold_is_one_object(kind: str, way: Callable[[object], object], unique: str) -> None:
    """The finaliser of a copy would give back what the original still holds."""
    async with AsyncCoordinator(f"memory://{unique}") as c:
        async with MAKERS[kind](c)() as hold:
            with pytest.raises(
                TypeError, match=r"^a hold cannot be copied or pickled: only one object can give it back$"
            ):
                way(hold)
            assert not hold.released
            assert not hold.lost


async def test_what_is_said_of_a_large_set_is_short(unique: str) -> None:
    few = "(0, 1, 2 and 997 more)"
    async with AsyncCoordinator(f"memory://{unique}") as c:
        thing = c.lock_all(range(1000))
        assert repr(thing) == f"<AsyncLockSet {few}>"
        hold = await thing.acquire()
        assert repr(hold) == f"<AsyncHold {few} held>"
        handles(c).lose_connection("the cable was pulled")
        assert repr(hold).startswith(f"<AsyncHold {few} lost: ")
        with pytest.raises(Exception, match=rf"^{re.escape(few)} was lost: \d+: the cable was pulled$"):
            hold.check()
