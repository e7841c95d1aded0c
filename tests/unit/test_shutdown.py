"""``graceful_shutdown`` with asyncio: what it cancels and closes, in which order, and what it leaves behind.

Theory: signals are raised in this very process, so those of the tests are two that nobody else uses; the second signal,
which ends a process, is the business of ``tests/faults/test_shutdown.py``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Iterator

import pytest

from pgconcert import AsyncCoordinator, CoordinatorClosed
from tests.unit.shutdowns import ONE, TWO, AsyncThing, Hanging, Thing, nobody, shutdown


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """They are there again after every test."""
    before = {number: signal.signal(number, nobody) for number in (ONE, TWO)}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert set(after.values()) == {nobody}


@pytest.mark.both_loops
async def test_a_signal_cancels_the_body_and_closes() -> None:
    story: list[str] = []
    async with shutdown(AsyncThing(story, "first"), Thing(story, "second"), lambda: story.append("third")) as stop:
        assert (stop.stopping, stop.cause) == (False, None)
        try:
            os.kill(os.getpid(), ONE)
            await asyncio.Event().wait()
        finally:
            story.append("body")
    assert story == ["body", "first", "second", "third"]
    assert (stop.stopping, stop.cause) == (True, ONE)
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_without_a_signal_it_closes_too() -> None:
    story: list[str] = []
    async with shutdown(AsyncThing(story, "closed")) as stop:
        pass
    assert story == ["closed"]
    assert not stop.stopping


async def test_an_error_of_the_body_goes_on() -> None:
    story: list[str] = []
    with pytest.raises(KeyError) as raised:
        async with shutdown(AsyncThing(story, "bad", OSError("no")), AsyncThing(story, "good")):
            raise KeyError("body")
    assert story == ["bad", "good"]
    assert raised.value.__notes__ == ["another failure, in closing: OSError: no"]


async def test_all_are_closed_and_the_first_error_is_raised() -> None:
    story: list[str] = []
    things = [Thing(story, "a", OSError("a")), AsyncThing(story, "b", OSError("b")), AsyncThing(story, "c")]

    async def work() -> None:
        async with shutdown(*things):
            os.kill(os.getpid(), ONE)
            await asyncio.Event().wait()

    with pytest.raises(OSError, match="a") as raised:
        await work()
    assert story == ["a", "b", "c"]
    assert raised.value.__notes__ == ["another failure, in closing: OSError: b"]


async def test_a_closing_that_hangs_is_left() -> None:
    story: list[str] = []
    hanging = Hanging()

    async def work() -> None:
        async with shutdown(hanging, Thing(story, "next"), timeout=0.05):
            os.kill(os.getpid(), ONE)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError, match=r"closing <Hanging> took longer than 0\.05 s"):
        await work()
    assert hanging.cancelled
    assert story == ["next"]


async def test_a_body_that_swallows_the_cancel() -> None:
    """It is cancelled once, and its own end is the end."""
    async with shutdown() as stop:
        os.kill(os.getpid(), ONE)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        stop.stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0


async def test_a_cancel_of_somebody_else_goes_on() -> None:
    story: list[str] = []
    inside = asyncio.Event()

    async def work() -> None:
        async with shutdown(AsyncThing(story, "closed")):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    os.kill(os.getpid(), ONE)
    await asyncio.wait([task])
    assert task.cancelled()
    assert story == ["closed"]


async def test_a_cancel_while_closing_waits_for_its_end() -> None:
    closing, end = asyncio.Event(), asyncio.Event()

    async def close() -> None:
        closing.set()
        await end.wait()

    story: list[str] = []

    async def work() -> None:
        async with shutdown(close, Thing(story, "next")):
            pass

    task = asyncio.create_task(work())
    await closing.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    end.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert story == ["next"]


async def test_waiting_instead_of_being_cancelled() -> None:
    story: list[str] = []
    async with shutdown(AsyncThing(story, "closed"), cancel=False) as stop:
        waiting = asyncio.create_task(stop.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        os.kill(os.getpid(), TWO)
        await waiting
        await stop.wait()
        story.append("body")
    assert story == ["body", "closed"]
    assert stop.cause is TWO


async def test_stop_from_a_thread() -> None:
    story: list[str] = []
    async with shutdown(AsyncThing(story, "closed")) as stop:
        await asyncio.to_thread(stop.stop)
        await asyncio.Event().wait()
    assert story == ["closed"]
    assert (stop.stopping, stop.cause) == (True, None)


async def test_stop_before_the_block() -> None:
    stop = shutdown()
    stop.stop()
    async with stop:
        await asyncio.Event().wait()
    assert stop.stopping


@pytest.mark.both_loops
async def test_nested_uses_end_together() -> None:
    story: list[str] = []
    outer, inner = shutdown(AsyncThing(story, "outer")), shutdown(AsyncThing(story, "inner"))
    async with outer:
        async with inner:
            os.kill(os.getpid(), ONE)
            await asyncio.Event().wait()
        story.append("between")
        await asyncio.Event().wait()
    assert story == ["inner", "outer"]
    assert (outer.cause, inner.cause) == (ONE, ONE)
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0


async def test_the_outer_one_goes_on_when_the_inner_one_has_ended() -> None:
    story: list[str] = []
    async with shutdown(AsyncThing(story, "outer")):
        async with shutdown(AsyncThing(story, "inner")):
            pass
        os.kill(os.getpid(), ONE)
        await asyncio.Event().wait()
    assert story == ["inner", "outer"]


async def test_a_coordinator() -> None:
    address = f"memory://{secrets.token_hex(8)}"
    async with AsyncCoordinator(address) as c, AsyncCoordinator(address) as other:
        kept = await c.lock("kept").acquire()
        async with shutdown(c):
            async with c.lock("x"):
                os.kill(os.getpid(), ONE)
                await asyncio.Event().wait()
        assert kept.lost
        for key in ("x", "kept"):
            hold = await other.lock(key).try_acquire()
            assert hold
            await hold.release()
        with pytest.raises(CoordinatorClosed):
            c.lock("x")
