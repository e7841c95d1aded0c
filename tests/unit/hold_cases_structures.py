"""Cases of `test_hold_scope.py` with structures: timeouts, tasks within tasks, task groups, holds within holds.

Here lives the second half of the table; what a case is stands in `hold_cases.py`.
"""

from __future__ import annotations

import asyncio

import pytest

from pgconcert.errors import LockLost
from tests.unit.hold_cases import GROUP, LONG, case, failing_group
from tests.unit.holds import Scene

__all__: list[str] = []


# timeouts


@case(TimeoutError, lost=False)
async def timeout_outside_alone(scene: Scene) -> None:
    async with asyncio.timeout(None) as limit:
        scene.soon(lambda: limit.reschedule(0))
        async with scene.hold:
            await asyncio.sleep(LONG)


@case(TimeoutError)
async def loss_then_timeout_outside(scene: Scene) -> None:
    async with asyncio.timeout(None) as limit:
        scene.soon(scene.lose, lambda: limit.reschedule(0))
        async with scene.hold:
            await asyncio.sleep(LONG)


@case(TimeoutError)
async def timeout_outside_then_loss(scene: Scene) -> None:
    async with asyncio.timeout(None) as limit:
        scene.soon(lambda: limit.reschedule(0), scene.lose)
        async with scene.hold:
            await asyncio.sleep(LONG)


@case(LockLost)
async def loss_within_a_timeout_outside(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with asyncio.timeout(LONG):
        async with scene.hold:
            await asyncio.sleep(LONG)


@case(LockLost)
async def loss_within_a_timeout_inside(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        async with asyncio.timeout(LONG):
            await asyncio.sleep(LONG)


@case(TimeoutError, lost=False)
async def timeout_inside_alone(scene: Scene) -> None:
    async with scene.hold:
        async with asyncio.timeout(0):
            await asyncio.sleep(LONG)


@case(LockLost)
async def loss_then_timeout_inside(scene: Scene) -> None:
    async with scene.hold:
        async with asyncio.timeout(None) as limit:
            scene.soon(scene.lose, lambda: limit.reschedule(0))
            await asyncio.sleep(LONG)


@case(LockLost)
async def timeout_inside_then_loss(scene: Scene) -> None:
    async with scene.hold:
        async with asyncio.timeout(None) as limit:
            scene.soon(lambda: limit.reschedule(0), scene.lose)
            await asyncio.sleep(LONG)


@case(TimeoutError, note=True)
async def timeout_inside_delivered_then_loss(scene: Scene) -> None:
    async with scene.hold:
        async with asyncio.timeout(0):
            try:
                await asyncio.sleep(LONG)
            finally:
                scene.lose()


# structures


@case(LockLost)
async def shielded_work_inside(scene: Scene) -> None:
    inner = scene.future()
    scene.soon(scene.lose)
    async with scene.hold:
        try:
            await asyncio.shield(inner)
        finally:
            assert not inner.cancelled()


@case(LockLost)
async def wait_for_inside(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        await asyncio.wait_for(asyncio.sleep(LONG), LONG)


@case(LockLost)
async def wait_for_that_is_ready_at_the_same_instant(scene: Scene) -> None:
    ready = scene.future()
    scene.soon(scene.lose, lambda: ready.set_result(None))
    async with scene.hold:
        await asyncio.wait_for(ready, LONG)


@case(LockLost)
async def task_group_inside(scene: Scene) -> None:
    scene.soon(scene.lose)
    async with scene.hold:
        async with asyncio.TaskGroup() as group:
            children = [group.create_task(asyncio.sleep(LONG)) for _ in range(2)]
            scene.finally_(lambda: [child.cancelled() for child in children] == [True, True])


@case(ExceptionGroup, note=True, cancelling=GROUP)
async def task_group_inside_whose_child_fails_in_the_same_tick(scene: Scene) -> None:
    broken = scene.future()

    async def child() -> None:
        scene.soon(lambda: broken.set_exception(ValueError()), scene.lose)
        await broken

    async with scene.hold:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())


@case(ExceptionGroup, note=True)
async def task_group_inside_whose_child_fails_just_after(scene: Scene) -> None:
    broken = scene.future()

    async def child() -> None:
        scene.soon(scene.lose, lambda: broken.set_exception(ValueError()))
        await broken

    async with scene.hold:
        async with asyncio.TaskGroup() as group:
            group.create_task(child())


@case(ExceptionGroup, cancelling=GROUP)
async def task_group_around(scene: Scene) -> None:
    async def holder() -> None:
        scene.soon(scene.lose)
        async with scene.hold:
            await asyncio.sleep(LONG)

    async with asyncio.TaskGroup() as group:
        group.create_task(holder())
        sibling = group.create_task(asyncio.sleep(LONG))
        scene.finally_(sibling.cancelled)


@case(asyncio.CancelledError if GROUP else LockLost, cancelling=GROUP)
async def loss_after_a_failed_task_group_was_handled(scene: Scene) -> None:
    # where Python leaves a cancel behind, the loss cannot be told from a cancel of somebody else
    async with scene.hold:
        try:
            await failing_group()
        except* ValueError:
            pass
        scene.soon(scene.lose)
        await asyncio.sleep(LONG)


# nested holds


@case(LockLost)
async def two_nested_lost_together(scene: Scene) -> None:
    other = Scene("inner")
    scene.soon(other.lose, scene.lose)
    async with scene.hold, other.hold:
        await asyncio.sleep(LONG)


@case(LockLost)
async def two_nested_lost_together_the_outer_first(scene: Scene) -> None:
    other = Scene("inner")
    scene.soon(scene.lose, other.lose)
    async with scene.hold, other.hold:
        await asyncio.sleep(LONG)


@case(LockLost)
async def outer_of_two_lost(scene: Scene) -> None:
    other = Scene("inner")
    scene.finally_(lambda: other.released == [other.grant])
    scene.soon(scene.lose)
    async with scene.hold, other.hold:
        await asyncio.sleep(LONG)


@case(LockLost, lost=False)
async def inner_of_two_lost(scene: Scene) -> None:
    other = Scene("inner")
    scene.soon(other.lose)
    async with scene.hold, other.hold:
        await asyncio.sleep(LONG)


@case(LockLost, note=True)
async def inner_lost_then_outer_while_it_leaves(scene: Scene) -> None:
    other = Scene("inner")
    scene.soon(other.lose)
    async with scene.hold:
        try:
            async with other.hold:
                await asyncio.sleep(LONG)
        finally:
            scene.lose()


@case(LockLost)
async def outer_lost_while_the_inner_is_being_released(scene: Scene) -> None:
    other = Scene("inner", hold_back=True)
    scene.finally_(lambda: other.released == [other.grant])
    async with scene.hold:
        async with other.hold:
            scene.soon(scene.lose, turns=2)
    pytest.fail("the cancel was not delivered")
