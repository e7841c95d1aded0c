"""Cases of jobs: ``run`` and ``stop`` of a job lock, and ``run_in_job_lock``, which keeps a job running."""

from __future__ import annotations

import asyncio

from ... import AsyncCoordinator, CoordinatorClosed
from ...errors import SessionLost, Stopped
from ...events import JobFailed
from ...jobs import AsyncJobHold
from ..leaks import eventually_async
from .jobs import QUICK, taken
from .suite import Stage, case, raises, turns


@case("sessions")
async def run_runs_while_it_holds(stage: Stage) -> None:
    """``run`` waits, hands the hold to the job, returns its result, and has released the lock then."""
    a, b = await stage.open(), await stage.open()
    hold = await taken(b)

    async def job(hold: AsyncJobHold) -> int:
        assert await b.job_lock("job").try_acquire() is None
        return hold.token

    lock = a.job_lock("job")
    for _ in range(2):
        running = await stage.waiting(lock.run(job))
        await hold.release()
        token = await running
        assert lock.state == "released"
        hold = await taken(b)
        assert token is not None
        assert token < hold.token
    await hold.release()


@case("sessions")
async def an_error_of_the_job_passes_through(stage: Stage) -> None:
    """What the job raises ``run`` raises, with the lock released."""
    a, b = await stage.open(), await stage.open()

    async def job(hold: AsyncJobHold) -> None:
        raise ValueError("the job")

    with raises(ValueError, "the job"):
        await a.job_lock("job").run(job)
    await (await taken(b)).release()


@case("sessions")
async def a_job_is_cancelled_on_loss(stage: Stage) -> None:
    """When the lock is lost the job is cancelled and ``run`` raises ``SessionLost``; other errors get a note."""
    a, b = await stage.open(), await stage.open()
    for failing in (False, True):
        entered = asyncio.Event()

        async def job(_: AsyncJobHold, entered: asyncio.Event = entered, failing: bool = failing) -> None:
            try:
                entered.set()
                await asyncio.Event().wait()
            finally:
                if failing:
                    raise ValueError("while it was cleaned up")

        running = asyncio.create_task(a.job_lock("job", **QUICK, on_lost="report").run(job))
        await entered.wait()
        await b.job_lock("job").revoke()
        if failing:
            with raises(ValueError, "while it was cleaned up") as caught:
                await running
            assert "the hold was lost" in caught.error.__notes__[0]
        else:
            with raises(SessionLost, "'job'"):
                await running
        assert not running.cancelled()


@case("sessions")
async def a_cancelled_run_releases(stage: Stage) -> None:
    """Whoever cancels ``run`` cancels the job, and finds the lock free."""
    a, b = await stage.open(), await stage.open()
    entered = asyncio.Event()

    async def job(_: AsyncJobHold) -> None:
        entered.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(a.job_lock("job").run(job))
    await entered.wait()
    running.cancel()
    with raises(asyncio.CancelledError):
        await running
    await (await taken(b)).release()


@case("sessions")
async def stop_ends_waits(stage: Stage) -> None:
    """``stop`` ends the waits of its object with ``Stopped``, its ``run`` without a result, and leaves others alone."""
    a, b = await stage.open(), await stage.open()
    hold = await taken(b)
    lock = a.job_lock("job")

    async def never(_: AsyncJobHold) -> int:
        raise AssertionError("it ran, though it was stopped")

    waits = await stage.waiting(lock.acquire())
    runs = await stage.waiting(lock.run(never))
    stays = await stage.waiting(a.job_lock("job").acquire())
    await lock.stop()
    with raises(Stopped):
        await waits
    assert await runs is None
    await lock.stop()
    await hold.release()
    await (await stays).release()


@case("sessions")
async def stop_is_for_good(stage: Stage) -> None:
    """An object that was stopped, before it was ever used or later, cannot be used any more; stopping again is fine."""
    a, b = await stage.open(), await stage.open()
    lock = a.job_lock("job")

    async def never(_: AsyncJobHold) -> int:
        raise AssertionError("it ran, though it was stopped")

    for _ in range(2):
        await lock.stop()
        for wait in (lock.acquire, lock.try_acquire):
            with raises(Stopped):
                await wait()
        with raises(Stopped):
            async with lock:
                raise AssertionError("entered, though it was stopped")
        assert await lock.run(never) is None
    assert await lock.holder() is None
    await (await taken(b)).release()


@case("sessions")
async def stop_releases_holds(stage: Stage) -> None:
    """When ``stop`` returns, the holds of its object are released, and nobody relies on them any more."""
    a, b = await stage.open(), await stage.open()
    lock = a.job_lock("job")
    hold = await lock.acquire()
    other = await taken(a, "other")
    await lock.stop()
    assert hold.lost
    assert lock.state == "released"
    mine = await taken(b)
    assert mine.token > hold.token
    await hold.release()
    with raises(SessionLost, "stop()"):
        async with hold:
            raise AssertionError("entered, though it was stopped")
    assert not mine.lost
    assert not other.lost
    await mine.release()
    await other.release()


@case("sessions")
async def stop_cancels_bodies(stage: Stage) -> None:
    """``stop`` cancels the body of a block and of ``run``, and returns when they have ended and the lock is free."""
    a, b = await stage.open(), await stage.open()
    for result in (None, "a result"):
        lock = a.job_lock("job")
        entered, free = asyncio.Event(), False

        async def job(_: AsyncJobHold, entered: asyncio.Event = entered, result: str | None = result) -> str | None:
            nonlocal free
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                free = await b.job_lock("job").try_acquire() is not None
                if result is None:
                    raise
            return result

        running = asyncio.create_task(lock.run(job))
        await entered.wait()
        await lock.stop()
        await (await taken(b)).release()
        assert await running == result
        assert not free

    lock = a.job_lock("job")
    entered = asyncio.Event()

    async def block() -> None:
        async with lock:
            entered.set()
            await asyncio.Event().wait()

    running = asyncio.create_task(block())
    await entered.wait()
    await lock.stop()
    await (await taken(b)).release()
    with raises(SessionLost, "stop()"):
        await running


@case("sessions")
async def a_job_may_stop_itself(stage: Stage) -> None:
    """A job that calls ``stop`` of its own lock does not wait for itself."""
    c = await stage.open()
    lock = c.job_lock("job")

    async def job(hold: AsyncJobHold) -> bool:
        await lock.stop()
        assert hold.lost
        return await asyncio.Event().wait()

    assert await lock.run(job) is None
    await (await taken(c)).release()


@case("sessions")
async def a_job_is_kept_running(stage: Stage) -> None:
    """``run_in_job_lock`` runs a job again and again, after every return, error and loss, and tells of the errors."""
    a, b = await stage.open(), await stage.open()
    failures: list[JobFailed] = []
    a.events.subscribe(failures.append, JobFailed)
    tokens: list[int] = []

    async def job(hold: AsyncJobHold) -> None:
        tokens.append(hold.token)
        match len(tokens):
            case 2:
                raise ValueError("the job")
            case 3:
                await b.job_lock("job").revoke()
                await asyncio.Event().wait()
            case 4:
                raise asyncio.CancelledError  # of something inside of it
            case 5:
                await asyncio.Event().wait()

    running = asyncio.create_task(a.run_in_job_lock("job", job, **QUICK, service="mails", data={"x": 1}))
    await eventually_async(lambda: len(tokens) == 5, what="the job runs for the fifth time")
    assert tokens == sorted(set(tokens))
    assert [type(failure.error) for failure in failures] == [ValueError, asyncio.CancelledError]
    holder = await b.job_lock("job").holder()
    assert holder is not None
    assert holder.data == {"service": "mails", "x": 1}
    running.cancel()
    with raises(asyncio.CancelledError):
        await running
    await (await taken(b)).release()


@case("sessions")
async def a_kept_job_runs_in_one_place(stage: Stage) -> None:
    """Of several that keep one job running at most one does at a time, and each gets its turn."""
    inside = 0
    turn: list[int] = []

    async def keep(number: int, c: AsyncCoordinator) -> None:
        async def job(hold: AsyncJobHold) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            await turns(3)
            inside -= 1
            turn.append(number)

        await c.run_in_job_lock("job", job, **QUICK)

    keepers = [asyncio.create_task(keep(number, await stage.open())) for number in range(3)]
    await eventually_async(lambda: {*turn} == {0, 1, 2}, what="each has had its turn")
    for keeper in keepers:
        keeper.cancel()
    await asyncio.wait(keepers)
    assert all(keeper.cancelled() for keeper in keepers)


@case("sessions")
async def keeping_a_job_ends_with_the_coordinator(stage: Stage) -> None:
    """A coordinator that is closed cancels the job that it keeps running, and the keeping ends with the news."""
    a, b = await stage.open(), await stage.open()
    entered = asyncio.Event()
    cancelled = False

    async def job(_: AsyncJobHold) -> None:
        nonlocal cancelled
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    running = asyncio.create_task(a.run_in_job_lock("job", job))
    await entered.wait()
    await a.close()
    with raises(CoordinatorClosed):
        await running
    assert cancelled
    await (await taken(b)).release()


@case("sessions")
async def a_job_that_swallows_its_cancel_ends_all_the_same(stage: Stage) -> None:
    """Whoever cancels ``run_in_job_lock`` ends it, also when the job keeps the cancel to itself or fails of it."""
    c = await stage.open()
    for failing in (False, True):
        entered = asyncio.Event()

        async def job(_: AsyncJobHold, entered: asyncio.Event = entered, failing: bool = failing) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if failing:
                    raise ValueError("of the cancel") from None

        running = asyncio.create_task(c.run_in_job_lock("job", job))
        await entered.wait()
        running.cancel()
        with raises(asyncio.CancelledError):
            await running
        await (await taken(c)).release()
