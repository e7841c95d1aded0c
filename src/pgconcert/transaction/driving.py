"""Begin, function, commit, rollback: the two loops of ``transaction.run``, for connections that block and for those
that are awaited. No driver stands here, and nothing is said that a driver does not say.

Theory. A transaction is *begun*, then *left*, then *over*. Only the loop moves it. Whatever leaves the function (an
error, Ctrl-C, a cancellation) rolls it back before it goes on. Whoever cannot tell that it is over, because the
rollback failed or had no answer, or was interrupted, closes the connection: the server rolls back what it finds open
there, and no pool lends it again. The first error is the one that is raised; that of the rollback is kept with it
(``failing.py``).

On connections that are awaited, begin, commit and rollback run in tasks of their own. A cancellation waits there for
the answer, at most ``ANSWER_LIMIT`` seconds, so no answer is left half read, and whoever cancels again and again (as
some frameworks do at every turn of the loop) does not keep the rollback from being done. It is never swallowed. Inside
the function a cancellation is the function's own business first. A coroutine that is thrown away, rather than
cancelled, can await nothing any more: its connection is closed.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from ..errors import ConfigurationError, given
from .failing import Attempts, report
from .flow import AsyncDriver, BlockingDriver, Isolation
from .lending import AsyncLender, BlockingLender

__all__ = ["ANSWER_LIMIT", "not_fitting", "roll_back", "roll_back_awaited", "run_awaited", "run_blocking"]

R = TypeVar("R")

ANSWER_LIMIT: Final = 5.0
"""Seconds that an awaited connection has for its answer to a rollback, or, after a cancellation, to a begin or commit.
When they are over it is closed."""

_NOT_BEGUN: Final = object()


# --- connections that block ---


def run_blocking(
    lender: BlockingLender,
    fn: Callable[[Any], R],
    isolation: Isolation | None,
    retries: int,
    pause: Callable[[float], object] = time.sleep,
) -> R:
    """``run``, with what waits between two tries."""
    attempts = Attempts(retries, sys.exception())
    while True:
        try:
            with lender.lend() as (connection, driver):
                return _transaction(driver, partial(fn, connection), isolation, attempts)
        except Exception as error:
            if not attempts.again(error):
                raise
        pause(attempts.pause())


def _transaction(driver: BlockingDriver, work: Callable[[], R], isolation: Isolation | None, attempts: Attempts) -> R:
    begun: object = _NOT_BEGUN
    try:
        begun = driver.begin(isolation)
        attempts.begun(nested=driver.nested(begun))
        value = work()
        if inspect.isawaitable(value):
            if inspect.iscoroutine(value):
                value.close()
            raise not_fitting(value, blocks=True)
        driver.commit(begun)
    except BaseException as error:
        try:
            if begun is not _NOT_BEGUN:
                attempts.left(roll_back(driver, partial(driver.rollback, begun), error))
            elif not isinstance(error, Exception):
                driver.discard()  # interrupted: it may have begun
        except BaseException:
            driver.discard()  # interrupted in the rollback
            raise
        raise
    return value


def roll_back(driver: BlockingDriver, rollback: Callable[[], None], error: BaseException | None) -> bool:
    """Roll back, and keep what fails with ``error``. Whether it went well."""
    try:
        rollback()
    except Exception as failed:
        driver.discard()
        report(error, failed)
        return False
    return True


# --- connections that are awaited ---


async def run_awaited(
    lender: AsyncLender,
    fn: Callable[[Any], Awaitable[R]],
    isolation: Isolation | None,
    retries: int,
    pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> R:
    """``run``, with what waits between two tries."""
    attempts = Attempts(retries, sys.exception())
    while True:
        try:
            async with lender.lend() as (connection, driver):
                work = _transaction_awaited(driver, partial(fn, connection), isolation, attempts)
                return await _kept(driver, work)
        except Exception as error:
            if not attempts.again(error):
                raise
        await pause(attempts.pause())


async def _transaction_awaited(
    driver: AsyncDriver, work: Callable[[], Awaitable[R]], isolation: Isolation | None, attempts: Attempts
) -> R:
    begin = step = _step(driver.begin(isolation))
    try:
        await _answered(begin)
        begun = begin.result()
        attempts.begun(nested=driver.nested(begun))
        awaitable: object = work()
        if not inspect.isawaitable(awaitable):
            raise not_fitting(awaitable, blocks=False)
        value: R = await awaitable
        step = _step(driver.commit(begun))
        await _answered(step)
        step.result()
    except GeneratorExit:
        raise
    except BaseException as error:
        if step.cancelled() or not step.done():
            await _discard(driver, step)
        elif (step is begin) == (step.exception() is None):  # it was begun and nothing more, or its commit failed
            attempts.left(await _roll_back_awaited(driver, driver.rollback(begin.result()), error))
        raise
    return value


async def roll_back_awaited(driver: AsyncDriver, error: BaseException | None) -> None:
    """Roll back everything, and keep what fails with ``error``."""
    await _kept(driver, _roll_back_awaited(driver, driver.rollback_all(), error))


async def _roll_back_awaited(driver: AsyncDriver, rollback: Awaitable[None], error: BaseException | None) -> bool:
    step = _step(rollback)
    try:
        await _answered(step, ANSWER_LIMIT)
    except asyncio.CancelledError:
        await _look(driver, step, error)
        raise
    return await _look(driver, step, error)


async def _look(driver: AsyncDriver, step: asyncio.Task[None], error: BaseException | None) -> bool:
    """What has become of a rollback: whether it went well."""
    failed = _failure(step)
    if failed is None:
        return True
    report(error, failed)
    await _discard(driver, step)
    return False


def _failure(step: asyncio.Task[Any]) -> BaseException | None:
    if not step.done():
        return TimeoutError(f"no answer within {ANSWER_LIMIT:g} s")
    return asyncio.CancelledError() if step.cancelled() else step.exception()


async def _answered(step: asyncio.Task[Any], limit: float | None = None) -> None:
    """Wait until a step has ended, or for ``limit`` seconds. Whoever is cancelled meanwhile waits on, until
    ``ANSWER_LIMIT`` seconds are over, and is cancelled then."""
    now = asyncio.get_running_loop().time
    deadline = None if limit is None else now() + limit
    cancelled: asyncio.CancelledError | None = None
    while not step.done() and (deadline is None or now() < deadline):
        try:
            await asyncio.wait((step,), timeout=None if deadline is None else deadline - now())
        except asyncio.CancelledError as error:
            cancelled = error
            deadline = now() + ANSWER_LIMIT if deadline is None else deadline
    if cancelled is not None:
        raise cancelled


async def _discard(driver: AsyncDriver, step: asyncio.Task[Any]) -> None:
    """Close the connection on which a step has failed, or goes on and will not be heard any more."""
    if step.cancel():
        _unheard.add(step)
        step.add_done_callback(_end_unheard)
    await _answered(_step(driver.discard()), ANSWER_LIMIT)


async def _kept(driver: AsyncDriver, work: Coroutine[Any, Any, R]) -> R:
    """Do work on a connection that is closed if the coroutine is thrown away meanwhile."""
    try:
        return await work
    except GeneratorExit:
        closing = _coroutine(driver.discard())
        try:
            closing.send(None)  # as far as that goes without waiting
        except StopIteration:
            pass
        else:
            closing.close()
        raise


def _step(awaitable: Awaitable[R]) -> asyncio.Task[R]:
    return asyncio.create_task(_coroutine(awaitable))


async def _coroutine(awaitable: Awaitable[R]) -> R:
    return await awaitable


_unheard: Final[set[asyncio.Task[Any]]] = set()
"""Steps that were given up and have not ended yet; a loop keeps no task alive by itself."""


def _end_unheard(step: asyncio.Task[Any]) -> None:
    _unheard.discard(step)
    if not step.cancelled():
        step.exception()  # its connection was closed under it: that was heard of already


def not_fitting(what: object, *, blocks: bool) -> ConfigurationError:
    """A function, or what it returned, that is not for connections of this kind."""
    if blocks:
        return ConfigurationError(
            f"transaction.run was given a connection that blocks and an async function ({given(what)}): nobody would "
            "await it. Give it a function that blocks, or an async connection, pool, engine or sessionmaker"
        )
    return ConfigurationError(
        f"transaction.run was given a connection that is awaited and a function that blocks (it gave {given(what)}): "
        "write it as `async def`. Nothing was committed"
    )
