"""The lock primitive: what is said to a ``Locker``, and how its answer becomes a ``Hold``. No backend stands here.

Acquiring is handing in a claim and waiting on a future of our own. Whoever is cancelled or runs out of time withdraws
the claim and leaves at once; the backend releases what it may have granted. A task that waits for a lock which it holds
itself would wait for ever, so that is an error instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import CoroutineType, TracebackType
from typing import Any, Final

from .backend import Claim, Holder, Locker
from .errors import AcquireTimeout, ConfigurationError, WouldDeadlock
from .hold import Grant, Hold, OnLost
from .keys import LockKey

__all__ = ["AsyncLock", "LockRegister"]

_ASK_HOLDER: Final = 0.25


class LockRegister:
    """What the locks of one coordinator share: the port, and which task is inside the scope of what."""

    __slots__ = ("inside", "locker", "loop", "state")

    def __init__(self, locker: Locker, loop: asyncio.AbstractEventLoop, state: Callable[[], str]) -> None:
        self.locker = locker
        self.loop = loop
        self.state = state
        self.inside: dict[int | str, tuple[Grant, asyncio.Task[object]]] = {}

    def scoped(self, claim: Grant, task: asyncio.Task[object], inside: bool) -> None:
        """A task enters the scope of a hold, or leaves it (a lost one perhaps, while another task has the key)."""
        if inside:
            self.inside[claim.name] = claim, task
        elif self.inside.get(claim.name, (None,))[0] is claim:
            del self.inside[claim.name]

    def holds(self, key: int | str, task: asyncio.Task[object] | None) -> bool:
        """Whether a task is inside the scope of a hold that is still held."""
        claim, holder = self.inside.get(key, (None, None))
        return claim is not None and holder is task and not claim.over and claim.reason is None


class AsyncLock:
    """An exclusive lock by name, for all processes that use the same database. Made by ``AsyncCoordinator.lock``.

    ``async with lock as hold:`` waits, runs the body while the lock is held, and releases it; if the lock is lost
    meanwhile the body is cancelled and ``LockLost`` raised. The object itself holds nothing: it may be shared by tasks,
    and two lock objects with one name exclude each other. It is not re-entrant.
    """

    __slots__ = ("_entered", "_key", "_on_lost", "_register", "_timeout")

    def __init__(self, register: LockRegister, key: LockKey, timeout: float | None, on_lost: OnLost) -> None:
        self._register = register
        self._key = key
        self._timeout = timeout
        self._on_lost: OnLost = on_lost
        self._entered: list[Hold] | None = None

    @property
    def key(self) -> int | str:
        """The key, as the caller wrote it."""
        return self._key.name

    @property
    def timeout(self) -> float | None:
        """How long ``async with`` and ``acquire`` wait by default, in seconds; ``None`` is for ever."""
        return self._timeout

    async def acquire(self, timeout: float | None = None) -> Hold:
        """Wait for the lock and return the ``Hold``.

        ``timeout`` in seconds overrides the lock's own; 0 tries once. Raises ``AcquireTimeout`` (which names the
        holder), ``WouldDeadlock``, ``LockBudgetExceeded``, ``Unavailable`` (no connection was ever made), or
        ``ConfigurationError`` (a transaction pooler, say). Cancelled, it leaves at once and nothing stays locked.
        """
        return await self._acquire(self._timeout if timeout is None else check_timeout(timeout))

    async def try_acquire(self) -> Hold | None:
        """Return a ``Hold``, or ``None`` at once if somebody else has the lock. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""
        register = self._register
        future: asyncio.Future[bool] = register.loop.create_future()
        claim = Claim(self._key, future, wait=False)
        register.locker.acquire(claim)
        try:
            granted = await future
        except BaseException:
            register.locker.withdraw(claim)
            raise
        return self._hold(claim) if granted else None

    async def _acquire(self, timeout: float | None) -> Hold:
        register = self._register
        loop = register.loop
        if self._key.name in register.inside and register.holds(self._key.name, asyncio.current_task(loop)):
            raise WouldDeadlock(
                f"this task holds {self._key.name!r} already and would wait for itself for ever; locks are not "
                "re-entrant: pass the hold on, or use try_acquire()"
            )
        future: asyncio.Future[bool] = loop.create_future()
        claim = Claim(self._key, future, wait=timeout != 0)
        register.locker.acquire(claim)
        timer = loop.call_later(timeout, _expire, future) if timeout else None
        try:
            granted = await future
        except BaseException:
            register.locker.withdraw(claim)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if not granted:
            register.locker.withdraw(claim)
            assert timeout is not None
            raise AcquireTimeout(await self._who_has_it(timeout))
        return self._hold(claim)

    def _hold(self, claim: Claim) -> Hold:
        register = self._register
        locker = register.locker
        hold = Hold(claim, register.loop, locker.release, locker.drop, self._on_lost, register.scoped)
        if claim.reason is not None:
            hold.check()
        return hold

    async def _who_has_it(self, timeout: float) -> str:
        register = self._register
        text = f"{self._key.name!r} was not acquired within {timeout:g} s"
        known: asyncio.Future[Holder | None] = register.loop.create_future()
        register.locker.describe(self._key, known)
        await asyncio.wait([known], timeout=_ASK_HOLDER)
        if not known.done():
            known.cancel()
            return f"{text}; {register.state() or 'who holds it could not be found out in time'}"
        holder = known.result()
        if holder is not None:
            return f"{text}; it is held by {holder}"
        return f"{text}; {register.state() or 'it is not held by anybody at this instant'}"

    async def __aenter__(self) -> Hold:
        task = asyncio.current_task(self._register.loop)
        if task is None:
            raise RuntimeError("this lock belongs to a coordinator that was opened on another event loop")
        entered = self._entered
        if entered is None:
            entered = self._entered = []
        elif any(hold.task is task for hold in entered):
            raise WouldDeadlock(f"this task has entered this lock of {self.key!r} already; locks are not re-entrant")
        hold = await self._acquire(self._timeout)
        entered.append(hold)
        hold.enter(task)
        return hold

    def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> CoroutineType[Any, Any, None]:
        entered = self._entered
        assert entered is not None
        if len(entered) == 1:
            # the one there is, even if another task entered it (a fixture, an exit stack)
            hold = entered.pop()
        else:
            task = asyncio.current_task(self._register.loop)
            mine = next((hold for hold in entered if hold.task is task), None)
            if mine is None:
                raise RuntimeError(f"the lock of {self.key!r} was not entered by this task")
            hold = mine
            entered.remove(hold)
        # not awaited here, which saves a coroutine; mypy knows it only as the wider Coroutine
        return hold.__aexit__(kind, error, traceback)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"<AsyncLock {self.key!r}>"


def check_timeout(timeout: object) -> float | None:
    """Check a caller's ``timeout``: ``None``, or seconds of at least 0."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ConfigurationError(f"timeout must be a number of seconds >= 0, or None to wait for ever, not {timeout!r}")
    return None if timeout == float("inf") else float(timeout)


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
