"""The cases of `test_hold_scope.py`: what happens to a hold in a block, and how the block must end.

Here lives the table and nothing else. A case is a coroutine function of a `Scene`, declared with how it ends, how many
cancels of other people the task still knows afterwards, and whether the error carries a note about the loss (`None`:
either).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import pytest

from pgconcert.errors import LockLost
from tests.unit.holds import Scene, aftermath

Body = Callable[[Scene], Awaitable[object]]
LONG = 30.0


@dataclass(frozen=True)
class Case:
    """``ends`` is how the block ended; ``cancelling`` how many cancels of others the task still knows afterwards."""

    body: Body
    ends: type[BaseException] | None
    cancelling: int
    note: bool | None
    lost: bool


CASES: dict[str, Case] = {}


def case(
    ends: type[BaseException] | None,
    *,
    cancelling: int = 0,
    note: bool | None = False,
    lost: bool = True,
) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CASES[body.__name__] = Case(body, ends, cancelling, note, lost)
        return body

    return add


async def failing_group() -> None:
    async def child() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async with asyncio.TaskGroup() as group:
        group.create_task(child())


def _cancels_left_by_a_failed_group() -> int:
    return asyncio.run(aftermath(failing_group)).cancelling


# Python 3.11 and 3.12 forget to take back the cancel of a task group whose child failed while it waited.
GROUP: Final = _cancels_left_by_a_failed_group()


@case(None, lost=False)
async def nothing_happens(scene: Scene) -> None:
    async with scene.hold as entered:
        assert entered is scene.hold
        await asyncio.sleep(0)


@case(ValueError, lost=False)
async def body_fails_without_loss(scene: Scene) -> None:
    async with scene.hold:
        raise ValueError


# when the loss comes


@case(LockLost)
async def loss_in_a_wait(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        await asyncio.sleep(LONG)


@case(LockLost)
async def loss_before_the_body(scene: Scene) -> None:
    scene.lose()
    async with scene.hold:
        pytest.fail("the body ran")


@case(LockLost)
async def loss_before_the_first_await(scene: Scene) -> None:
    async with scene.hold:
        scene.lose()
        await asyncio.sleep(0)
        pytest.fail("the body went on after its first await")


@case(LockLost)
async def loss_without_any_await(scene: Scene) -> None:
    async with scene.hold:
        scene.lose()


@case(LockLost, note=None)
async def loss_found_by_check(scene: Scene) -> None:
    async with scene.hold:
        scene.lose()
        scene.hold.check()


@case(LockLost)
async def loss_just_after_what_the_body_waited_for(scene: Scene) -> None:
    ready = scene.future()
    scene.soon(lambda: ready.set_result(None), scene.lose)
    async with scene.hold:
        await ready


@case(LockLost)
async def loss_just_before_what_the_body_waited_for(scene: Scene) -> None:
    ready = scene.future()
    scene.soon(scene.lose, lambda: ready.set_result(None))
    async with scene.hold:
        await ready


@case(LockLost)
async def loss_from_another_thread(scene: Scene) -> None:
    thread = threading.Thread(target=scene.lose)
    async with scene.hold:
        thread.start()
        try:
            await asyncio.sleep(LONG)
        finally:
            thread.join()


@case(LockLost)
async def loss_told_twice(scene: Scene) -> None:
    async with scene.hold:
        scene.lose()
        assert not scene.grant.lose("again")
        await asyncio.sleep(LONG)


@case(None, lost=False)
async def loss_while_releasing(scene: Scene) -> None:
    scene.hold_back = True
    async with scene.hold:
        scene.soon(scene.lose, scene.settle, turns=2)


@case(None, lost=False)
async def loss_after_the_body_released(scene: Scene) -> None:
    async with scene.hold:
        await scene.hold.release()
        scene.lose()
        await asyncio.sleep(0)


# what the body does with it


@case(LockLost)
async def body_swallows_the_cancel(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            pass


@case(LockLost)
async def body_swallows_the_cancel_and_awaits_on(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            await asyncio.sleep(0)


@case(ValueError, note=True)
async def body_fails_at_the_same_instant(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        try:
            await asyncio.sleep(LONG)
        finally:
            raise ValueError


@case(ValueError, note=True)
async def body_fails_just_before_the_cancel(scene: Scene) -> None:
    broken = scene.future()
    scene.soon(lambda: broken.set_exception(ValueError()), scene.lose)
    async with scene.hold:
        await broken


@case(KeyError, note=True)
async def body_fails_by_itself_after_a_loss(scene: Scene) -> None:
    async with scene.hold:
        scene.lose()
        raise KeyError


# cancels of others


@case(asyncio.CancelledError, cancelling=1)
async def outer_cancel_then_loss(scene: Scene) -> None:
    scene.soon(scene.cancel_task, scene.lose)
    async with scene.hold:
        await asyncio.sleep(LONG)


@case(asyncio.CancelledError, cancelling=1)
async def loss_then_outer_cancel(scene: Scene) -> None:
    scene.soon(scene.lose, scene.cancel_task)
    async with scene.hold:
        await asyncio.sleep(LONG)


@case(asyncio.CancelledError, cancelling=1)
async def loss_delivered_then_outer_cancel(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        try:
            await asyncio.sleep(LONG)
        finally:
            scene.soon(scene.cancel_task)
            await asyncio.sleep(LONG)


@case(asyncio.CancelledError, cancelling=1, lost=False)
async def outer_cancel_alone(scene: Scene) -> None:
    scene.soon(scene.cancel_task)
    async with scene.hold:
        await asyncio.sleep(LONG)


@case(asyncio.CancelledError, cancelling=1, lost=False)
async def outer_cancel_asked_before_the_block(scene: Scene) -> None:
    scene.cancel_task()
    async with scene.hold:
        await asyncio.sleep(LONG)
