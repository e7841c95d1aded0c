"""Holds that leave their task: generators, foreign exits, release, the finaliser, and loss that is only reported.

Here lives what is not one block in one task; that is the table of `test_hold_scope.py`.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator

import pytest

from pgconcert.errors import LockLost
from pgconcert.hold import AsyncHold, Grant
from tests.unit.holds import Scene, aftermath, loops

pytestmark = pytest.mark.usefixtures("loop_factory")
loop_factory = loops

LONG = 30.0


async def turns(count: int = 4) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# loss that is only reported


async def test_report_disturbs_nothing_and_raises_at_the_end() -> None:
    scene = Scene(on_lost="report")
    ran: list[str] = []

    async def body() -> None:
        async with scene.hold:
            scene.lose()
            await turns()
            ran.append("to the end")

    seen = await aftermath(body)
    assert ran == ["to the end"]
    assert isinstance(seen.error, LockLost)
    assert (seen.cancelling, seen.stray) == (0, False)


async def test_report_adds_a_note_to_the_bodys_error() -> None:
    scene = Scene(on_lost="report")
    with pytest.raises(KeyError) as caught:  # noqa: PT012 - the block is what is tested
        async with scene.hold:
            scene.lose()
            raise KeyError
    assert "the hold was lost: 'key' was lost: test" in caught.value.__notes__[0]


async def test_report_lets_an_outer_cancel_through() -> None:
    scene = Scene(on_lost="report")

    async def body() -> None:
        scene.soon(scene.lose, scene.cancel_task)
        async with scene.hold:
            await asyncio.sleep(LONG)

    seen = await aftermath(body)
    assert isinstance(seen.error, asyncio.CancelledError)
    assert (seen.cancelling, seen.stray) == (1, False)


async def test_wait_lost_gives_the_reason_and_forgets_its_watcher() -> None:
    scene = Scene(on_lost="report")
    watching = asyncio.create_task(scene.hold.wait_lost())
    leaving = asyncio.create_task(scene.hold.wait_lost())
    await turns()
    assert scene.grant.watchers is not None
    assert len(scene.grant.watchers) == 2
    leaving.cancel()
    await turns()
    assert len(scene.grant.watchers) == 1
    scene.lose()
    assert await watching == "test"
    assert scene.grant.watchers == []


async def test_wait_lost_after_the_loss_returns() -> None:
    scene = Scene()
    scene.lose()
    assert await scene.hold.wait_lost() == "test"


async def test_check_raises_only_when_lost() -> None:
    scene = Scene("invoice")
    scene.hold.check()
    scene.lose()
    with pytest.raises(LockLost) as caught:
        scene.hold.check()
    assert (caught.value.key, caught.value.reason) == ("invoice", "test")
    assert "lost: test" in repr(scene.hold)


async def test_an_outer_cancel_that_comes_while_the_block_ends_is_not_eaten() -> None:
    scene = Scene()

    async def body() -> None:
        scene.soon(scene.lose)
        async with scene.hold:
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                scene.soon(scene.cancel_task)

    after = await aftermath(body)
    assert isinstance(after.error, asyncio.CancelledError) or (isinstance(after.error, LockLost) and after.stray)
    assert after.cancelling + after.stray >= 1


# generators


async def rows(hold: AsyncHold) -> AsyncIterator[int]:
    async with hold:
        for number in range(3):
            yield number


async def test_generator_with_report_tells_its_consumer_at_the_end() -> None:
    scene = Scene(on_lost="report")
    seen: list[int] = []

    async def consume() -> None:
        async for number in rows(scene.hold):
            seen.append(number)
            scene.lose()
            await turns()

    after = await aftermath(consume)
    assert seen == [0, 1, 2]
    assert isinstance(after.error, LockLost)
    assert (after.cancelling, after.stray) == (0, False)


async def test_generator_with_cancel_hits_its_consumer_and_leaves_it_clean() -> None:
    # the price that the docstring names: the cancel lands where the task is, which is outside the block
    scene = Scene()

    async def consume() -> None:
        source = rows(scene.hold)
        try:
            async for _ in source:
                scene.lose()
                await asyncio.sleep(LONG)
        finally:
            await source.aclose()  # type: ignore[attr-defined]

    after = await aftermath(consume)
    assert isinstance(after.error, asyncio.CancelledError)
    assert (after.cancelling, after.stray) == (0, False)


async def test_generator_closed_early_releases() -> None:
    scene = Scene(on_lost="report")
    source = rows(scene.hold)
    assert await anext(source) == 0
    await source.aclose()  # type: ignore[attr-defined]
    assert scene.released == [scene.grant]


# entered here, left there


async def test_exit_in_another_task_releases() -> None:
    scene = Scene()
    await asyncio.create_task(scene.hold.__aenter__())
    await asyncio.create_task(scene.hold.__aexit__(None, None, None))
    assert scene.released == [scene.grant]


async def test_exit_in_another_task_after_the_first_has_ended_raises() -> None:
    scene = Scene()
    await asyncio.create_task(scene.hold.__aenter__())
    scene.lose()
    await turns()
    after = await aftermath(lambda: scene.hold.__aexit__(None, None, None))
    assert isinstance(after.error, LockLost)
    assert (after.cancelling, after.stray) == (0, False)


async def test_exit_in_another_task_takes_the_cancel_of_the_first_back() -> None:
    scene = Scene()
    entered = asyncio.Event()

    async def enter_and_stay() -> int:
        await scene.hold.__aenter__()
        entered.set()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            await left.wait()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    left = asyncio.Event()
    first = asyncio.create_task(enter_and_stay())
    await entered.wait()
    scene.lose()
    await turns()
    after = await aftermath(lambda: scene.hold.__aexit__(None, None, None))
    left.set()
    assert isinstance(after.error, LockLost)
    assert (after.cancelling, after.stray) == (0, False)
    assert await first == 0


async def test_exit_in_another_task_leaves_that_tasks_cancel_alone() -> None:
    scene = Scene()
    await asyncio.create_task(scene.hold.__aenter__())
    scene.lose()

    async def leave() -> None:
        scene.cancel_task()
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError as error:
            await scene.hold.__aexit__(type(error), error, None)
            raise

    after = await aftermath(leave)
    assert isinstance(after.error, asyncio.CancelledError)
    assert (after.cancelling, after.stray) == (1, False)


# entering what cannot be entered


async def test_a_hold_is_entered_once_at_a_time() -> None:
    scene = Scene()
    async with scene.hold:
        with pytest.raises(RuntimeError, match="'key' is entered already"):
            await scene.hold.__aenter__()


async def test_a_released_hold_cannot_be_entered() -> None:
    scene = Scene()
    await scene.hold.release()
    with pytest.raises(RuntimeError, match="'key' was released already"):
        async with scene.hold:
            pytest.fail("the body ran")
    assert scene.released == [scene.grant]


async def test_a_hold_of_another_loop_cannot_be_entered() -> None:
    other = asyncio.new_event_loop()
    grant = Grant("key")
    hold = AsyncHold(grant, other, lambda grant, waiter: None, lambda grant: None)
    with pytest.raises(RuntimeError, match="another event loop"):
        await hold.__aenter__()
    grant.over = True
    other.close()


# release


async def test_release_waits_for_the_answer_and_is_done_once() -> None:
    scene = Scene(hold_back=True)
    releasing = asyncio.create_task(scene.hold.release())
    await turns()
    assert not releasing.done()
    assert scene.hold.released
    await scene.hold.release()  # the second one has nothing to do
    scene.settle()
    await releasing
    assert scene.released == [scene.grant]


async def test_release_after_a_loss_hands_nothing_in() -> None:
    scene = Scene()
    scene.lose()
    await scene.hold.release()
    assert scene.released == []


async def test_a_cancelled_release_goes_on() -> None:
    scene = Scene(hold_back=True)
    releasing = asyncio.create_task(scene.hold.release())
    await turns()
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    assert scene.released == [scene.grant]
    assert not scene.grant.lose("too late")
    scene.settle()


async def test_a_cancel_while_the_block_releases_goes_on_and_so_does_the_release() -> None:
    scene = Scene(hold_back=True)

    async def body() -> None:
        async with scene.hold:
            scene.soon(scene.cancel_task, turns=2)

    after = await aftermath(body)
    assert isinstance(after.error, asyncio.CancelledError)
    assert (after.cancelling, after.stray) == (1, False)
    assert scene.released == [scene.grant]
    scene.settle()


# loss


async def test_lose_before_and_after_the_end_of_a_hold() -> None:
    scene = Scene()
    assert scene.grant.lose("first")
    assert not scene.grant.lose("second")
    assert scene.hold.reason == "first"
    other = Scene()
    await other.hold.release()
    assert not other.grant.lose("too late")
    assert not other.hold.lost


async def test_a_watcher_added_after_the_loss_is_called_at_once() -> None:
    scene = Scene()
    calls: list[str] = []
    scene.lose()
    scene.grant.watch(lambda: calls.append("told"))
    assert calls == ["told"]


async def test_loss_of_a_hold_whose_loop_has_ended_reaches_the_next() -> None:
    """The engine thread outlives loops that were closed with a block still open."""
    ended = asyncio.new_event_loop()
    orphan = Grant("orphan")
    hold = AsyncHold(orphan, ended, lambda grant, waiter: None, lambda grant: None)
    task = asyncio.current_task()
    assert task is not None
    hold.enter(task)
    ended.close()
    try:
        orphan.lose("test")
    finally:
        orphan.over = True


# the finaliser


async def test_a_dropped_hold_is_handed_in_with_a_warning() -> None:
    scene = Scene()
    hold = AsyncHold(scene.grant, scene.loop, scene.release, scene.drop)
    known = weakref.ref(hold)
    with pytest.warns(ResourceWarning, match="'key' was dropped without release"):  # noqa: PT031
        del hold
        gc.collect()
    assert known() is None
    await turns()
    assert scene.dropped == [scene.grant]
    assert scene.grant.over


async def test_a_released_or_lost_hold_is_dropped_in_silence() -> None:
    scene, other = Scene(), Scene()
    await scene.hold.release()
    other.lose()
    dropped, also_dropped = scene.dropped, other.dropped
    del scene, other
    gc.collect()
    await turns()
    assert dropped == also_dropped == []
