"""Work off the loop: what was made for somebody who has left meanwhile is given back.

Here live tests of the one function that starts threads for blocking work. Theory: an embedded server that is started
for nobody would run for ever, so at every instant a result belongs either to the caller or to the hook for what nobody
claims, and to exactly one of them.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue

import pytest

from pgconcert.offloop import off_loop
from pgconcert.testing import eventually, eventually_async

NAME = "pgconcert-off-loop"


def working() -> bool:
    return any(thread.name == NAME for thread in threading.enumerate())


class Work:
    """Makes one thing when told to, and knows who got it."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.back: SimpleQueue[str] = SimpleQueue()

    def make(self) -> str:
        assert self.go.wait(30)
        return "made"

    def fail(self) -> str:
        assert self.go.wait(30)
        raise OSError("not made")


async def test_who_waits_gets_it() -> None:
    work = Work()
    work.go.set()
    assert await off_loop(work.make, work.back.put) == "made"
    assert work.back.empty()


async def test_the_caller_left() -> None:
    work = Work()
    task = asyncio.create_task(off_loop(work.make, work.back.put))
    await eventually_async(working)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.back.empty()
    work.go.set()
    await eventually_async(lambda: not work.back.empty())
    assert work.back.get() == "made"


async def test_the_caller_leaves_just_when_it_is_made() -> None:
    """The answer is in the future, and the caller is cancelled before it has looked."""
    work = Work()
    task = asyncio.create_task(off_loop(work.make, work.back.put))
    await eventually_async(working)
    work.go.set()
    eventually(lambda: not working())  # the loop stands still: the answer lies in its queue
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually_async(lambda: not work.back.empty())
    assert work.back.get() == "made"


async def test_nothing_was_made() -> None:
    """A failure is nothing to give back."""
    work = Work()
    task = asyncio.create_task(off_loop(work.fail, work.back.put))
    await eventually_async(working)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    work.go.set()
    await eventually_async(lambda: not working())
    await asyncio.sleep(0)
    assert work.back.empty()


def test_the_loop_has_ended() -> None:
    work = Work()

    async def leave() -> None:
        task = asyncio.create_task(off_loop(work.make, work.back.put))
        await eventually_async(working)
        task.cancel()

    asyncio.run(leave())
    assert work.back.empty()
    work.go.set()
    assert work.back.get(timeout=30) == "made"
    eventually(lambda: not working())


async def test_when_no_thread_begins_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the end of the main thread, others may still need a link: the work is done where it is asked for."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await off_loop(threading.current_thread) is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        await off_loop(lambda: 1 // 0)
