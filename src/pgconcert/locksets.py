"""Several locks at once, all or nothing. No backend stands here.

Theory. A *round* tries all keys at once, in the order of their 64 bits, without waiting; they leave in one statement.
If all are granted, that is it. If not, everything is given back, and the first key that was refused is waited for
alone: then the next round tries the others. So whoever waits holds nothing, and cannot be part of a deadlock, whatever
the rest of the program does. But with much traffic a set of many keys could go round and round; hence after a few
rounds in vain it keeps what comes *before* the refused key in the order while it waits. Those who keep something all
wait upwards, so they cannot wait for each other in a circle either.

A set is lost as soon as one of its locks is; the others are kept to the end of its scope, and given back then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from .acquiring import Acquirable, Register
from .backend import Claim, Locker
from .deadlock import Actor, Scopes
from .errors import ConfigurationError, Unavailable, given
from .hold import AsyncHold, Grant, OnLost, Waiter
from .keys import LockKey

__all__ = ["AsyncLockSet", "Together", "in_order", "take_all", "try_all"]

_ROUNDS: Final = 3


class AsyncLockSet(Acquirable):
    """Several locks that are acquired together or not at all. Made by ``AsyncCoordinator.lock_all``.

    ``async with`` them in any order and any overlap: such sets never wait for each other in a circle. While it waits
    it holds nothing; only after three vain rounds it keeps those locks that come before the missing one in the common
    order, so that a large set gets its turn too. ``hold.key`` is the tuple of keys in that order. It is lost as one.
    """

    __slots__ = ("_keys", "_shared")

    def __init__(
        self, register: Register, keys: Sequence[LockKey], timeout: float | None, on_lost: OnLost, shared: bool
    ) -> None:
        super().__init__(register, timeout, on_lost)
        self._keys = keys
        self._shared = shared

    @property
    def key(self) -> tuple[int | str, ...]:
        """The keys, as the caller wrote them, in the order in which they are taken; each once."""
        return tuple(key.name for key in self._keys)

    @property
    def shared(self) -> bool:
        """Whether all of them are shared with other readers."""
        return self._shared

    async def try_acquire(self) -> AsyncHold | None:
        """Return an ``AsyncHold`` of all, or ``None`` at once if somebody else has one of them: then nothing is held.
        Raises what ``acquire`` raises, and ``Unavailable`` while there is no connection."""
        together = await try_all(self._register, self._keys, self._shared)
        return None if together is None else self._hold(together)

    async def _acquire(self, timeout: float | None) -> AsyncHold:
        return self._hold(await take_all(self._register, self._keys, self._shared, timeout))

    def _hold(self, together: Together) -> AsyncHold:
        register = self._register
        locker = register.locker
        hold = AsyncHold(
            together,
            register.loop,
            lambda grant, waiter: together.release(locker, waiter),
            lambda grant: together.drop(locker),
            self._on_lost,
            lambda grant, task, inside: together.scoped(register.scopes, task, inside),
        )
        if together.reason is not None:
            together.over = True
            together.release(locker, None)
            hold.check()
        return hold

    def _kind(self) -> str:
        return "set of locks"


async def try_all(register: Register, keys: Sequence[LockKey], shared: bool, who: Actor = None) -> Together | None:
    """Take all of them, or nothing, without waiting."""
    attempt = _Attempt(register, keys, shared, who)
    try:
        if await attempt.round() is not None:
            await attempt.give_back(attempt.granted)
            return None
    except BaseException:
        attempt.abandon()
        raise
    return attempt.together()


async def take_all(
    register: Register, keys: Sequence[LockKey], shared: bool, timeout: float | None, who: Actor = None
) -> Together:
    """Wait for all of them. Raises ``AcquireTimeout``; whatever it raises, nothing stays locked."""
    loop = register.loop
    deadline = None if timeout is None else loop.time() + timeout
    attempt = _Attempt(register, keys, shared, who)
    try:
        missing = await attempt.round(timeout or None, patient=timeout != 0)
        while missing is not None:
            await attempt.give_back(attempt.not_to_keep(missing))
            left = None if deadline is None else max(deadline - loop.time(), 0)
            if left == 0 or not await attempt.wait(missing, left):
                await attempt.give_back(attempt.granted)
                assert timeout is not None
                what = f"{missing.name!r}, one of {len(keys)} locks," if len(keys) > 1 else repr(missing.name)
                raise await register.timed_out(missing, what, timeout)
            left = None if deadline is None else max(deadline - loop.time(), 0)
            missing = await attempt.round(left, patient=True)
    except BaseException:
        attempt.abandon()
        raise
    return attempt.together()


class _Attempt:
    """What one caller has of its set so far."""

    def __init__(self, register: Register, keys: Sequence[LockKey], shared: bool, who: Actor) -> None:
        register.here()
        self._register = register
        self._keys = keys
        self._shared = shared
        self._who = who or asyncio.current_task(register.loop)
        self._rounds = 0
        self._asked: list[tuple[Claim, asyncio.Future[bool]]] = []
        self._kept: list[Claim] = []
        self.granted: dict[LockKey, Claim] = {}

    async def round(self, timeout: float | None = None, *, patient: bool = False) -> LockKey | None:
        """Try all that is missing, at once. The first key that was refused, or None when everything is granted.

        For a ``patient`` caller a key that could not be asked for counts as refused: it is waited for next, and that
        wait rides through a lost connection, or says what is wrong if there never was one.
        """
        self._rounds += 1
        self.granted = {key: claim for key, claim in self.granted.items() if claim.reason is None}
        loop = self._register.loop
        missing = [key for key in self._keys if key not in self.granted]
        for key in missing:
            future: asyncio.Future[bool] = loop.create_future()
            self._asked.append((Claim(key, future, wait=False, shared=self._shared), future))
        if missing:
            self._register.locker.acquire_all([claim for claim, _ in self._asked])
            await asyncio.wait([future for _, future in self._asked], timeout=timeout)
        refused: LockKey | None = None
        failure: BaseException | None = None
        for claim, future in self._asked:
            if not future.done():
                # no answer in time: there is not even a link that answers
                future.cancel()
                self._register.locker.withdraw(claim)
                refused = refused or claim.key
                continue
            error = future.exception()
            if error is not None and not (patient and isinstance(error, Unavailable)):
                failure = failure or error
            if error is None and future.result():
                self.granted[claim.key] = claim
            else:
                refused = refused or claim.key
        self._asked = []
        if failure is not None:
            raise failure
        return refused

    async def wait(self, key: LockKey, timeout: float | None) -> bool:
        """Wait for one key. False when the time is over."""
        granted = await self._register.claim(key, self._shared, timeout, self._granted_alone, _expired, self._who)
        self._unkeep()
        return granted

    def _granted_alone(self, claim: Claim) -> bool:
        self.granted[claim.key] = claim
        return True

    def not_to_keep(self, missing: LockKey) -> dict[LockKey, Claim]:
        """What is given back before waiting for ``missing``."""
        if self._rounds <= _ROUNDS:
            return self.granted
        away = {key: claim for key, claim in self.granted.items() if key.value > missing.value}
        for key, claim in self.granted.items():
            if key not in away:
                self._register.scopes.enter(claim, self._who)
                self._kept.append(claim)
        return away

    def together(self) -> Together:
        """The grant of all of them."""
        return Together(tuple(key.name for key in self._keys), [self.granted[key] for key in self._keys])

    async def give_back(self, claims: dict[LockKey, Claim]) -> None:
        """Release some of what was granted; they are free when this returns."""
        if not claims:
            return
        given = [*claims.values()]
        self.granted = {key: claim for key, claim in self.granted.items() if key not in claims}
        waiter: asyncio.Future[bool] = self._register.loop.create_future()
        self._end(given, waiter)
        await waiter

    def abandon(self) -> None:
        """The caller leaves: nothing stays locked."""
        self._unkeep()
        for claim, future in self._asked:
            future.cancel()  # or its error would be told to nobody
            if future.done() and not future.cancelled():
                future.exception()
            self._register.locker.withdraw(claim)
        self._end([*self.granted.values()], None)
        self.granted = {}

    def _end(self, claims: Iterable[Claim], waiter: Waiter | None) -> None:
        held = [claim for claim in claims if claim.reason is None]
        for claim in held:
            claim.over = True
        self._register.locker.release_all(held, waiter)

    def _unkeep(self) -> None:
        for claim in self._kept:
            self._register.scopes.leave(claim, self._who)
        self._kept = []


class Together(Grant):
    """The grant of a set: lost when one of its claims is."""

    __slots__ = ("claims",)

    def __init__(self, name: tuple[int | str, ...], claims: Sequence[Claim]) -> None:
        super().__init__(name)
        self.claims = claims
        self.shared = claims[0].shared
        for claim in claims:
            claim.watch(self.a_part_is_lost)

    @property
    def remains(self) -> bool:
        return any(claim.reason is None and not claim.over for claim in self.claims)

    def release(self, locker: Locker, waiter: Waiter | None) -> None:
        """Give back what is left of it."""
        locker.release_all(self._left(), waiter)

    def drop(self, locker: Locker) -> None:
        """The same for a hold that was thrown away, from any thread."""
        for claim in self._left():
            locker.drop(claim)

    def scoped(self, scopes: Scopes, who: Actor, inside: bool) -> None:
        """Somebody enters the scope of its hold, or leaves it."""
        for claim in self.claims:
            if inside:
                scopes.enter(claim, who)
            else:
                scopes.leave(claim, who)

    def _left(self) -> list[Claim]:
        held = [claim for claim in self.claims if claim.reason is None and not claim.over]
        for claim in held:
            claim.over = True
        return held

    def a_part_is_lost(self) -> None:
        """One of the claims was lost, and so is the set."""
        lost = next((claim for claim in self.claims if claim.reason is not None), None)
        if lost is not None:
            self.lose(f"{lost.name!r}: {lost.reason}")


def in_order(keys: object, checked: Callable[[int | str], LockKey]) -> list[LockKey]:
    """Check the keys of a set, and bring them into the common order, each once. Raises ``ConfigurationError``."""
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise ConfigurationError(f"lock_all() takes several keys, such as ['a', 'b'], not {given(keys)}")
    found = {key.value: key for key in map(checked, keys)}
    if not found:
        raise ConfigurationError("lock_all() takes at least one key, and was given none")
    return [found[value] for value in sorted(found)]


async def _expired(timeout: float) -> bool:
    return False
