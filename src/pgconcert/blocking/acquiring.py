"""What every way of acquiring has in common in the blocking twin: the wait, its end by time or Ctrl-C, the ``with``.

Theory. Which thread is inside what and waits for what (``deadlock.py``) is noted on the engine alone, by messages in
the order in which they were posted. So it needs no mutex: none that a forked child would find locked for ever, that a
finaliser or a signal handler would wait for in the very thread that has it, or whose owner an exception could leave
half done.

Python leaves two holes. An exception of a signal handler may come between the end of ``__enter__`` and the block, or
between the block and ``__exit__``: then no code of ours runs. The hold is kept by the lock object, so it is given back
with a ``ResourceWarning`` when that is dropped, which for ``with c.lock(...)`` is at once. A lock object that is kept
keeps the hold.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, TypeVar

from .. import acquiring
from ..acquiring import check_timeout, in_the_way
from ..backend import Claim, Holder, Locker
from ..deadlock import Scopes
from ..errors import AcquireTimeout, CoordinatorClosed, WouldDeadlock, shown
from ..hold import Grant, Name, Waiter
from ..keys import LockKey
from ..statistics import HoldCounts
from .engine import Call, Engine, not_in_a_loop
from .hold import Hold

__all__ = ["Acquirable", "Register"]

T = TypeVar("T")

_ASK_HOLDER: Final = 0.25
_TWIN: Final = "AsyncCoordinator"


class _Wait(Call[bool]):
    """Waits for one claim. ``noted`` tells whether the scopes know of it."""

    __slots__ = ("noted",)

    def __init__(self) -> None:
        super().__init__()
        self.noted = False


class Register:
    """What the locks of one coordinator share: the way to the engine, the port, and which thread is inside what."""

    __slots__ = ("counts", "crossing", "engine", "locker", "make", "on_engine", "scopes", "state")

    def __init__(
        self,
        engine: Engine,
        locker: Locker,
        state: Callable[[], str],
        scopes: Scopes | None = None,
        make: type[Claim] = Claim,
        counts: HoldCounts | None = None,
    ) -> None:
        self.counts = counts or HoldCounts()
        """Where waits are counted that came to no end in time."""
        self.engine = engine
        self.crossing = engine.crossing
        self.locker = locker
        self.state = state
        self.make = make
        """What a claim is, for this locker."""
        self.scopes = scopes or Scopes("thread", _name)
        """Touched on the engine only."""
        self.on_engine = acquiring.Register(locker, engine.loop, state, self.scopes, make, self.counts)
        """For what takes several steps, and runs on the engine."""

    def scoped(self, grant: Grant, thread: threading.Thread, inside: bool) -> None:
        """A thread enters the block of a hold, or leaves it: noted before anything that is asked from now on."""
        assert isinstance(grant, Claim)
        self.note(self.scopes.enter if inside else self.scopes.leave, grant, thread)

    def note(self, what: Callable[[T, threading.Thread], None], grant: T, thread: threading.Thread) -> None:
        """Tell the scopes, on the engine. Whoever was interrupted may leave what it has not entered."""

        def tell() -> None:
            with contextlib.suppress(KeyError, ValueError):
                what(grant, thread)

        self.crossing.later(tell)

    def release(self, grant: Grant, waiter: Waiter | None) -> None:
        """Hand in a release."""
        self.crossing.post(lambda: self.locker.release(grant, waiter))

    def drop(self, grant: Grant) -> None:
        """Hand in the release of a hold that was thrown away."""
        self.crossing.post(lambda: self.locker.drop(grant))

    def claim(
        self,
        key: LockKey,
        shared: bool,
        timeout: float | None,
        granted: Callable[[Claim], T],
        expired: Callable[[float], T],
    ) -> T:
        """Wait for one lock: what ``granted`` makes of the claim, or ``expired`` of the time that is over."""
        not_in_a_loop(_TWIN)
        thread = threading.current_thread()
        wait = _Wait()
        claim = self.make(key, wait, wait=timeout != 0, shared=shared)
        post = self.crossing.post
        try:
            if not post(lambda: self._ask(claim, wait, thread)):
                raise _closed()
            if not wait.wait(timeout or None):
                post(lambda: self._take_back(claim, wait, thread))
            elif wait.answer():
                if wait.noted:
                    self.crossing.later(lambda: self.scopes.end_wait(thread))
                return granted(claim)
        except BaseException:
            claim.over = True  # so that a hold which is there already leaves it to us
            post(lambda: self._take_back(claim, wait, thread))
            raise
        assert timeout is not None
        return expired(timeout)

    def _ask(self, claim: Claim, wait: _Wait, thread: threading.Thread) -> None:
        scopes = self.scopes
        if scopes.held and claim.wait and scopes.concerns(thread, claim.key):
            try:
                scopes.begin_wait(thread, claim.key, claim.shared)
            except WouldDeadlock as error:
                claim.fail(error)
                return
            wait.noted = True
        self.locker.acquire(claim)

    def _take_back(self, claim: Claim, wait: _Wait, thread: threading.Thread) -> None:
        if wait.noted:
            self.scopes.end_wait(thread)
        self.locker.withdraw(claim)

    def timed_out(self, key: LockKey, what: str, timeout: float) -> AcquireTimeout:
        """The error of a wait whose time is over, with whoever is known to be in the way."""
        self.counts.timed_out += 1
        known: Call[Sequence[Holder]] = Call()
        self.crossing.post(lambda: self.locker.describe(key, known))
        holders = known.answer() if known.wait(_ASK_HOLDER) else None
        return in_the_way(key, what, timeout, holders, self.state)


class Acquirable:
    """Something that can be acquired: by ``with``, ``acquire`` or ``try_acquire``. It holds nothing itself, so it
    may be shared by threads and used again and again."""

    __slots__ = ("_entered", "_register", "_timeout")

    def __init__(self, register: Register, timeout: float | None) -> None:
        self._register = register
        self._timeout = timeout
        self._entered: dict[int, Hold] = {}

    @property
    @abstractmethod
    def key(self) -> Name:
        """What is acquired, as the caller wrote it."""

    @property
    def timeout(self) -> float | None:
        """How long ``with`` and ``acquire`` wait by default, in seconds; ``None`` is for ever."""
        return self._timeout

    def acquire(self, timeout: float | None = None) -> Hold:
        """Wait for it and return the ``Hold``.

        ``timeout`` in seconds overrides the object's own; 0 tries once, ``math.inf`` waits for ever. Raises
        ``AcquireTimeout`` (which names the holder), ``WouldDeadlock``, ``LockBudgetExceeded``, ``Unavailable`` (no
        connection was ever made), ``PermitsDisagree`` (semaphores), ``ConfigurationError`` (a transaction pooler, say),
        or ``CoordinatorClosed``. Interrupted, it leaves at once and nothing stays locked.
        """
        return self._acquire(self._timeout if timeout is None else check_timeout(timeout))

    @abstractmethod
    def try_acquire(self) -> Hold | None:
        """Return a ``Hold``, or ``None`` at once if somebody else has it. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""

    @abstractmethod
    def _acquire(self, timeout: float | None) -> Hold:
        """Wait for it, by the rules of ``acquire``."""

    def __enter__(self) -> Hold:
        me = threading.get_ident()
        if me in self._entered:
            raise WouldDeadlock(
                f"this thread has entered this {self._kind()} of {self.key!r} already; locks are not re-entrant"
            )
        hold = self._acquire(self._timeout)
        try:
            self._entered[me] = hold
            hold.enter(threading.current_thread())
        except BaseException:
            self._entered.pop(me, None)
            hold.release()
            raise
        return hold

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        entered = self._entered
        try:
            me = threading.get_ident()
            if me not in entered and len(entered) == 1:
                me = next(iter(entered))  # the one there is, even if another thread entered it (an exit stack)
            hold = entered.pop(me, None)
        except BaseException:
            entered.pop(threading.get_ident(), None)  # interrupted: who drops it releases it
            raise
        if hold is None:
            raise RuntimeError(f"the {self._kind()} of {self.key!r} was not entered by this thread")
        hold.__exit__(kind, error, traceback)

    def _kind(self) -> str:
        return "lock"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {shown(self.key)}>"


def _closed() -> CoordinatorClosed:
    return CoordinatorClosed("the coordinator of this lock is closed, or belongs to the process that was forked")


def _name(thread: threading.Thread) -> str:
    return thread.name
