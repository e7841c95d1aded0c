"""Several locks at once for threads: the twin of ``pgconcert.locksets``, whose rounds run on the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from ..keys import LockKey
from ..locksets import Together, take_all, try_all
from .acquiring import Acquirable, Register
from .engine import not_in_a_loop
from .hold import Hold

__all__ = ["LockSet"]

T = TypeVar("T", Together, Together | None)
V = TypeVar("V")


class LockSet(Acquirable):
    """Several locks that are acquired together or not at all. Made by ``Coordinator.lock_all``.

    ``with`` them in any order and any overlap: such sets never wait for each other in a circle. While it waits
    it holds nothing; only after three vain rounds it keeps those locks that come before the missing one in the common
    order, so that a large set gets its turn too. ``hold.key`` is the tuple of keys in that order. It is lost as one.
    """

    __slots__ = ("_keys", "_shared")

    def __init__(self, register: Register, keys: Sequence[LockKey], timeout: float | None, shared: bool) -> None:
        super().__init__(register, timeout)
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

    def try_acquire(self) -> Hold | None:
        """Return a ``Hold`` of all, or ``None`` at once if somebody else has one of them: then nothing is held. Raises
        what ``acquire`` raises, and ``Unavailable`` while there is no connection."""
        who = threading.current_thread()
        register = self._register.on_engine
        return self._run(
            lambda: try_all(register, self._keys, self._shared, who),
            lambda together: None if together is None else self._hold(together),
        )

    def _acquire(self, timeout: float | None) -> Hold:
        who = threading.current_thread()
        register = self._register.on_engine
        return self._run(lambda: take_all(register, self._keys, self._shared, timeout, who), self._hold)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]], then: Callable[[T], V]) -> V:
        not_in_a_loop("AsyncCoordinator")
        locker = self._register.locker

        def undo(together: T) -> None:
            if together is not None:
                together.over = True
                together.release(locker, None)

        return self._register.engine.run(work, undo=undo, then=then)

    def _hold(self, together: Together) -> Hold:
        register = self._register
        locker = register.locker
        post = register.crossing.post
        hold = Hold(
            together,
            lambda grant, waiter: post(lambda: together.release(locker, waiter)),
            lambda grant: post(lambda: together.drop(locker)),
            lambda grant, thread, inside: register.note(
                lambda whole, who: whole.scoped(register.scopes, who, inside), together, thread
            ),
        )
        if together.reason is not None:
            hold.release()
            hold.check()
        return hold

    def _kind(self) -> str:
        return "set of locks"
