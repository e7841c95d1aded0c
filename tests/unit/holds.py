"""What the tests of holds share: a hold with a port that we play ourselves, and a look at a task after its block.

The release callable is the whole port of an ``AsyncHold``: it records what is handed in and settles the waiter, at
once on the next turn of the loop or when the test says so.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from pgconcert.hold import AsyncHold, Grant, OnLost, Waiter
from tests.coroutines import LoopFactory


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - the name is unknown to the oldest typing we check
    return loop


def _uvloop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


_LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": _uvloop}
if sys.version_info >= (3, 12):
    _LOOPS["eager"] = _eager


@pytest.fixture(params=_LOOPS)
def loops(request: pytest.FixtureRequest) -> LoopFactory:
    """asyncio's loop, uvloop's, and asyncio's with eager tasks (Python 3.12 and later)."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="needs uvloop")
    return _LOOPS[request.param]


class Scene:
    """A hold, and the engine's side of it in the hands of the test."""

    def __init__(self, key: str = "key", on_lost: OnLost = "cancel", *, hold_back: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.grant = Grant(key)
        self.hold = AsyncHold(self.grant, self.loop, self.release, self.drop, on_lost)
        self.hold_back = hold_back
        self.released: list[Grant] = []
        self.dropped: list[Grant] = []
        self.waiting: list[Waiter] = []
        self._checks: list[Callable[[], bool]] = []
        self._task: asyncio.Task[Any] | None = None

    def release(self, grant: Grant, waiter: Waiter | None) -> None:
        """The port: what ``AsyncHold`` calls to give something back."""
        self.released.append(grant)
        if waiter is not None and self.hold_back:
            self.waiting.append(waiter)
        elif waiter is not None:
            self.loop.call_soon(_settle, waiter)

    def drop(self, grant: Grant) -> None:
        """The port: what the finaliser calls."""
        self.dropped.append(grant)

    def settle(self) -> None:
        """Answer the releases that were held back."""
        waiting, self.waiting = self.waiting, []
        for waiter in waiting:
            _settle(waiter)

    def lose(self) -> None:
        """The engine loses it."""
        self.grant.lose("test")

    def soon(self, *acts: Callable[[], object], turns: int = 1) -> None:
        """Do it all in one callback, after ``turns`` turns of the loop. `cancel_task` means the task that asked."""
        self._task = asyncio.current_task()
        self._later(acts, turns)

    def _later(self, acts: tuple[Callable[[], object], ...], turns: int) -> None:
        def act() -> None:
            if turns > 1:
                self._later(acts, turns - 1)
                return
            for one in acts:
                one()

        self.loop.call_soon(act)

    def cancel_task(self) -> None:
        """Somebody else cancels the task of the case."""
        task = self._task or asyncio.current_task()
        assert task is not None
        task.cancel("theirs")

    def future(self) -> asyncio.Future[None]:
        """A future of this loop."""
        return self.loop.create_future()

    def finally_(self, check: Callable[[], bool]) -> None:
        """Must be true when the case is over."""
        self._checks.append(check)

    def check(self) -> None:
        """Ask everything given to `finally_`."""
        assert all(check() for check in self._checks)


def _settle(waiter: Waiter) -> None:
    if not waiter.done():
        waiter.set_result(True)


@dataclass(frozen=True)
class Aftermath:
    """How a block ended, and what the task saw in the turns behind it."""

    error: BaseException | None
    cancelling: int
    stray: bool


async def aftermath(body: Callable[[], Awaitable[object]]) -> Aftermath:
    """Run ``body`` in a task of its own and go on in that task, as the code behind a block does."""

    async def whole() -> Aftermath:
        task = asyncio.current_task()
        assert task is not None
        error: BaseException | None = None
        try:
            await body()
        except (Exception, asyncio.CancelledError) as caught:
            error = caught
        cancelling = task.cancelling()
        stray = False
        for _ in range(3):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                stray = True
        return Aftermath(error, cancelling, stray)

    return await asyncio.create_task(whole())
