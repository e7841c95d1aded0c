"""What every way of acquiring has in common: the wait, its end by time or cancel, the ``async with``. Internal.

Acquiring is handing in claims and waiting on futures of our own. Whoever is cancelled or runs out of time withdraws
the claims and leaves at once; the backend releases what it may have granted.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import CoroutineType, TracebackType
from typing import Any, Final, TypeGuard, TypeVar

from .backend import Claim, Holder, Locker
from .deadlock import Actor, Scopes
from .errors import AcquireTimeout, ConfigurationError, WouldDeadlock, given, shown
from .hold import AsyncHold, Grant, Name, OnLost
from .keys import LockKey
from .statistics import HoldCounts

__all__ = ["Acquirable", "Register", "check_timeout", "in_the_way", "is_number"]

T = TypeVar("T")

_ASK_HOLDER: Final = 0.25
_NAMED: Final = 3
_FOR_EVER: Final = 10**9


class Register:
    """What the locks of one coordinator share: the port, the loop, and which task is inside the scope of what."""

    __slots__ = ("counts", "locker", "loop", "make", "scopes", "state")

    def __init__(
        self,
        locker: Locker,
        loop: asyncio.AbstractEventLoop,
        state: Callable[[], str],
        scopes: Scopes | None = None,
        make: type[Claim] = Claim,
        counts: HoldCounts | None = None,
    ) -> None:
        self.counts = counts or HoldCounts()
        """Where waits are counted that came to no end in time."""
        self.locker = locker
        self.loop = loop
        self.state = state
        self.scopes = scopes or Scopes("task", asyncio.Task.get_name)
        self.make = make
        """What a claim is, for this locker."""

    def here(self) -> None:
        """Raise unless this is the event loop of the coordinator: messages do not cross between loops by themselves."""
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this coordinator was opened on another event loop; use it there, or open one here")

    def scoped(self, grant: Grant, task: asyncio.Task[object], inside: bool) -> None:
        """A task enters the scope of a hold, or leaves it."""
        assert isinstance(grant, Claim)
        if inside:
            self.scopes.enter(grant, task)
        else:
            self.scopes.leave(grant, task)

    async def claim(
        self,
        key: LockKey,
        shared: bool,
        timeout: float | None,
        granted: Callable[[Claim], T],
        expired: Callable[[float], Awaitable[T]],
        who: Actor = None,
    ) -> T:
        """Wait for one lock: what ``granted`` makes of the claim, or ``expired`` of the time that is over.

        ``who`` waits; the running task, if nobody is named.
        """
        self.here()
        loop = self.loop
        scopes = self.scopes
        waits: Actor = None
        if scopes.held and timeout != 0:
            who = who or asyncio.current_task(loop)
            if scopes.concerns(who, key):
                scopes.begin_wait(who, key, shared)
                waits = who
        future: asyncio.Future[bool] = loop.create_future()
        claim = self.make(key, future, wait=timeout != 0, shared=shared)
        self.locker.acquire(claim)
        timer = loop.call_later(timeout, _expire, future) if timeout else None
        try:
            if await future:
                return granted(claim)
        except BaseException:
            self.locker.withdraw(claim)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if waits is not None:
                scopes.end_wait(waits)
        self.locker.withdraw(claim)
        assert timeout is not None
        return await expired(timeout)

    async def timed_out(self, key: LockKey, what: str, timeout: float) -> AcquireTimeout:
        """The error of a wait whose time is over, with whoever is known to be in the way."""
        self.counts.timed_out += 1
        known: asyncio.Future[Sequence[Holder]] = self.loop.create_future()
        self.locker.describe(key, known)
        await asyncio.wait([known], timeout=_ASK_HOLDER)
        if not known.done():
            known.cancel()
            return in_the_way(key, what, timeout, None, self.state)
        return in_the_way(key, what, timeout, known.result(), self.state)


class Acquirable:
    """Something that can be acquired: by ``async with``, ``acquire`` or ``try_acquire``. It holds nothing itself, so it
    may be shared by tasks and used again and again."""

    __slots__ = ("_entered", "_on_lost", "_register", "_timeout")

    def __init__(self, register: Register, timeout: float | None, on_lost: OnLost) -> None:
        self._register = register
        self._timeout = timeout
        self._on_lost: OnLost = on_lost
        self._entered: list[AsyncHold] | None = None

    @property
    @abstractmethod
    def key(self) -> Name:
        """What is acquired, as the caller wrote it."""

    @property
    def timeout(self) -> float | None:
        """How long ``async with`` and ``acquire`` wait by default, in seconds; ``None`` is for ever."""
        return self._timeout

    async def acquire(self, timeout: float | None = None) -> AsyncHold:
        """Wait for it and return the ``AsyncHold``.

        ``timeout`` in seconds overrides the object's own; 0 tries once, ``math.inf`` waits for ever. Raises
        ``AcquireTimeout`` (which names the holder), ``WouldDeadlock``, ``LockBudgetExceeded``, ``Unavailable`` (no
        connection was ever made), ``PermitsDisagree`` (semaphores), ``ConfigurationError`` (a transaction pooler, say),
        or ``CoordinatorClosed``. Cancelled, it leaves at once and nothing stays locked.
        """
        return await self._acquire(self._timeout if timeout is None else check_timeout(timeout))

    @abstractmethod
    async def try_acquire(self) -> AsyncHold | None:
        """Return an ``AsyncHold``, or ``None`` at once if somebody else has it. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""

    @abstractmethod
    def _acquire(self, timeout: float | None) -> Coroutine[Any, Any, AsyncHold]:
        """Wait for it, by the rules of ``acquire``."""

    async def __aenter__(self) -> AsyncHold:
        self._register.here()
        task = asyncio.current_task(self._register.loop)
        assert task is not None
        entered = self._entered
        if entered is None:
            entered = self._entered = []
        elif any(hold.task is task for hold in entered):
            raise WouldDeadlock(
                f"this task has entered this {self._kind()} of {self.key!r} already; locks are not re-entrant"
            )
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
                raise RuntimeError(f"the {self._kind()} of {self.key!r} was not entered by this task")
            hold = mine
            entered.remove(hold)
        # not awaited here, which saves a coroutine; mypy knows it only as the wider Coroutine
        return hold.__aexit__(kind, error, traceback)  # type: ignore[return-value]

    def _kind(self) -> str:
        return "lock"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown(self.key)}>"


def check_timeout(timeout: object) -> float | None:
    """Check a caller's ``timeout``: ``None``, or seconds of at least 0."""
    if timeout is None:
        return None
    if not is_number(timeout) or not timeout >= 0:
        raise ConfigurationError(
            f"timeout must be a number of seconds >= 0, or None to wait for ever, not {given(timeout)}"
        )
    return None if timeout > _FOR_EVER else float(timeout)


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a number, of seconds say; ``True`` is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _expire(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)


def in_the_way(
    key: LockKey, what: str, timeout: float, holders: Sequence[Holder] | None, state: Callable[[], str]
) -> AcquireTimeout:
    """The error of a wait whose time is over. ``holders`` is None if that could not be found out."""
    if holders:
        why = _held_by(key, holders)
    elif holders is None:
        why = state() or "who holds it could not be found out in time"
    else:
        why = state() or "it is not held by anybody at this instant"
    return AcquireTimeout(f"{what} was not acquired within {timeout:g} s; {why}")


def _held_by(key: LockKey, holders: Sequence[Holder]) -> str:
    names = [str(holder) for holder in holders[:_NAMED]]
    if len(holders) > _NAMED:
        names.append(f"{len(holders) - _NAMED} more")
    known = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    if key.permits:
        return f"its {key.permits} permits are held by {known}" if key.permits > 1 else f"its permit is held by {known}"
    return f"it is held {'shared ' if holders[0].shared else ''}by {known}"
