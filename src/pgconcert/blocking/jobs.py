"""Job locks for threads: the twins of those in ``pgconcert.jobs``.

Theory. What ``stop`` needs to know is noted on the engine, in the order in which it was posted, as with all that is
shared here. A body in a thread cannot be cancelled: ``stop`` and a loss make ``hold.check`` raise, and what was stopped
stays ours on the server until the body has ended. ``run_in_job_lock`` can be ended by an event, which cannot tell
anybody that it was set; so the engine looks at it several times a second, and then stops the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

from ..acquiring import check_timeout
from ..backend import Claim
from ..errors import CoordinatorClosed, SessionLost, Stopped
from ..events import JobFailed
from ..jobs import PASSES, JobHolder, JobLockState, check_job, holder_of, job_key, look_at, noted, state_of, was_stopped
from ..sessions.pace import Pace
from ..sessions.register import SessionRegister
from ..sessions.stopping import Stoppable, StoppableClaim
from ..sessions.timing import Timing
from ..store import Request, RequestRelease, Revoke
from .acquiring import Acquirable, Register
from .engine import not_in_a_loop
from .sessionhold import SessionHold

__all__ = ["JobHold", "JobLock", "StopEvent", "run_in_job_lock"]

T = TypeVar("T")

_TWIN: Final = "AsyncCoordinator"
_LOOK: Final = 0.1


class StopEvent(Protocol):
    """What ends ``run_in_job_lock``; ``threading.Event`` is one."""

    def is_set(self) -> bool: ...


class JobHold(SessionHold):
    """A job lock that you hold. Only this object releases it, from any thread.

    Use it as ``with hold:`` to have the hold released at the end of the block, and ``SessionLost`` raised there if it
    was lost meanwhile. A thread cannot be interrupted, so a loss does not stop the body: it asks with ``check`` before
    every side effect, or waits with ``wait_lost``. A hold that is dropped unreleased is released with a
    ``ResourceWarning``.
    """

    __slots__ = ()


class JobLock(Acquirable):
    """A lock by name that hangs on a session of this process. Made by ``Coordinator.job_lock``.

    ``with lock as hold:`` waits, runs the body while the lock is held, and releases it; if the session is not renewed
    in time, or the lock is revoked, ``hold.check()`` raises ``SessionLost``, and so does the end of the block. It
    survives reconnects, works through any pooler, and gives ``hold.token``, a number that grows with every holder: let
    it guard whatever must not be written by a holder that was stopped for too long.

    The object itself holds nothing: it may be shared by threads and used again until ``stop``, and two such objects
    with one name exclude each other. It is not re-entrant. A lock of the same name has nothing to do with it.
    """

    __slots__ = ("_key", "_latest", "_of", "_stops")

    def __init__(
        self,
        of: SessionRegister[Register],
        name: str,
        timing: Timing,
        *,
        hold_at_least: float = 0.0,
        data: Any = None,
    ) -> None:
        register = of.register
        self._stops = Stoppable(of.sessions, register.engine.loop, register.scopes, "job lock")
        super().__init__(
            Register(register.engine, self._stops, register.state, register.scopes, StoppableClaim, register.counts),
            None,
        )
        self._of = of
        self._key = job_key(of.keys, name, timing, hold_at_least, data)
        self._latest: StoppableClaim | None = None

    @property
    def key(self) -> str:
        """The name, as the caller wrote it."""
        return self._key.subject.name

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._key.subject.name

    @property
    def ttl(self) -> float:
        """For how many seconds the session lives without a heartbeat."""
        return self._key.timing.ttl

    @property
    def interval(self) -> float:
        """How many seconds lie between heartbeats."""
        return self._key.timing.interval

    @property
    def check(self) -> float:
        """After how many seconds a waiter looks again, at the latest, if nothing wakes it."""
        return self._key.timing.check

    @property
    def timeout(self) -> float:
        """After how many seconds without an answer a heartbeat has failed. ``with`` waits for ever."""
        return self._key.timing.timeout

    @property
    def hold_at_least(self) -> float:
        """For how many seconds it is ours at least: given back earlier, it is free for others only then."""
        return self._key.hold_at_least

    @property
    def identity(self) -> str:
        """Who we are: the uuid of this coordinator, and the host."""
        return self._of.sessions.identity

    @property
    def state(self) -> JobLockState:
        """How it is with the latest hold that was acquired through this object."""
        return state_of(self._latest)

    def acquire(self, timeout: float | None = None) -> JobHold:
        """Wait for it and return the ``JobHold``.

        ``timeout`` in seconds; without it, it waits for ever; 0 tries once. Raises ``AcquireTimeout`` (which names the
        holder), ``WouldDeadlock``, ``Unavailable`` (no connection was ever made), ``SchemaMissing``,
        ``ConfigurationError``, ``Stopped``, or ``CoordinatorClosed``. Interrupted, it leaves at once and nothing stays
        held.
        """
        return self._acquire(None if timeout is None else check_timeout(timeout))

    def try_acquire(self) -> JobHold | None:
        """Return a ``JobHold``, or ``None`` at once if somebody else has it. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""
        return self._register.claim(self._key, False, 0, self._hold, _refused)

    def run(self, fn: Callable[[JobHold], T]) -> T | None:
        """Wait for the lock, run ``fn(hold)`` in this thread while it is held, and return its result.

        ``fn`` asks ``hold.check()`` before every side effect: when the lock is lost, that raises ``SessionLost``, and
        so does the end of ``run``. An error of ``fn`` passes through. When this returns or raises, the server has freed
        the lock, or, while it cannot be reached, the time of our session is over. ``stop`` ends it: while it waits, it
        returns ``None``; while ``fn`` runs, ``hold.check()`` raises, and the result of ``fn``, if it had one all the
        same, is returned, else ``None``. Raises besides what ``acquire`` raises, except ``Stopped``.
        """
        try:
            hold = self._acquire(None)
        except Stopped:
            return None
        result = None
        try:
            with _answered(self, hold):
                result = fn(hold)
        except SessionLost as lost:
            if not was_stopped(hold, lost):
                raise
        return result

    def stop(self, timeout: float | None = None) -> bool:
        """End whatever goes on with this object, for good: waits raise ``Stopped``, in bodies of ``with`` and ``run``
        ``hold.check()`` raises as if the lock was lost, holds are released. Idempotent, in any state, from any thread.

        When this returns True, everything is released; only a body that calls it itself is not waited for. False:
        after ``timeout`` seconds bodies still run. If the caller is interrupted, the rest goes on.
        """
        me = threading.current_thread()
        seconds = check_timeout(timeout)

        async def stop() -> bool:
            try:
                async with asyncio.timeout(seconds):
                    await self._stops.stop(me)
            except TimeoutError:
                return False
            return True

        try:
            return self._on_engine(stop)
        except CoordinatorClosed:
            self._stops.stopped = True
            return True

    def holder(self) -> JobHolder | None:
        """Who holds it now; ``None`` if nobody does. Raises ``Unavailable`` while there is no connection."""
        entries = self._ask(look_at(self._key))
        return holder_of(entries, self.identity)

    def request_release(self) -> bool:
        """Ask whoever holds it to give it back: its ``release_requested`` becomes true, within a heartbeat at the
        latest. Whether it does is its own business. False if nobody holds it."""
        return self._ask(RequestRelease(self._key.subject))

    def revoke(self) -> bool:
        """Take it away from whoever holds it; it is free at once. False if nobody held it.

        The holder learns of it within a heartbeat, and may work on until then: what must not be written twice is
        guarded by the token. Raises ``Unavailable`` while there is no connection, or while a guarded transaction of
        the holder is under way."""
        return self._ask(Revoke(self._key.subject))

    def __enter__(self) -> JobHold:
        hold = super().__enter__()
        assert isinstance(hold, JobHold)
        return hold

    def _acquire(self, timeout: float | None) -> JobHold:
        return self._register.claim(self._key, False, timeout, self._hold, self._expired)

    def _expired(self, timeout: float) -> JobHold:
        raise self._register.timed_out(self._key, f"the job lock {self.name!r}", timeout)

    def _hold(self, claim: Claim) -> JobHold:
        self._stops.check()
        assert isinstance(claim, StoppableClaim)
        self._latest = claim
        register = self._register
        hold = JobHold(claim, register.release, register.drop, register.scoped)
        hold.check()
        return hold

    def _ask(self, request: Request[T]) -> T:
        async def ask() -> T:
            answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._of.sessions.ask(request, answer)
            return await answer

        return self._on_engine(ask)

    def _on_engine(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        not_in_a_loop(_TWIN)
        return self._register.engine.run(work)

    def _kind(self) -> str:
        return "job lock"

    def __repr__(self) -> str:
        state = "stopped" if self._stops.stopped else self.state or "not acquired yet"
        return f"<{type(self).__name__} {self.name!r} {state}>"


def run_in_job_lock(
    of: SessionRegister[Register],
    name: str,
    fn: Callable[[JobHold], object],
    timing: Timing,
    *,
    service: str | None = None,
    hold_at_least: float = 0.0,
    data: Any = None,
    stop: StopEvent | None = None,
) -> None:
    """Keep ``fn(hold)`` running in at most one process at a time. See ``Coordinator.run_in_job_lock``."""
    check_job(fn)
    lock = JobLock(of, name, timing, hold_at_least=hold_at_least, data=noted(service, data))
    pace = Pace(timing)
    with _stopped_by(lock, stop):
        while stop is None or not stop.is_set():
            ran = 0.0
            failure: BaseException | None = None
            try:
                hold = lock.acquire()
            except Stopped:
                return
            except PASSES as error:
                failure = error
            else:
                began = time.monotonic()
                try:
                    with _answered(lock, hold):
                        failure = _outcome(fn, hold)
                except SessionLost:
                    pass  # an event of its own
                ran = time.monotonic() - began
                if isinstance(failure, SessionLost) and hold.reason is not None:
                    failure = None
            pause = pace.after(ran)
            if failure is not None:
                of.events.emit(JobFailed(name=name, error=failure, retry_in=pause))
            _pause(lock, pause)


@contextmanager
def _answered(lock: JobLock, hold: JobHold) -> Iterator[None]:
    """The scope of a hold, and the answer of the server to its release."""
    try:
        with hold:
            yield
    finally:
        hold.release()  # an interrupt may have come before the scope began, or before its exit
        claim = hold._grant
        assert isinstance(claim, StoppableClaim)
        with contextlib.suppress(CoordinatorClosed):
            lock._on_engine(lambda: lock._stops.ended(claim))


@contextmanager
def _stopped_by(lock: JobLock, event: StopEvent | None) -> Iterator[None]:
    """While in the block, the lock is stopped when the event is set."""
    if event is None:
        yield
        return
    crossing = lock._register.crossing
    looking: list[asyncio.Task[None]] = []

    async def look() -> None:
        while not event.is_set():  # noqa: ASYNC110  it belongs to threads
            await asyncio.sleep(_LOOK)
        # by the way of all others: who has entered the lock before is noted then
        crossing.post(lambda: looking.append(asyncio.ensure_future(lock._stops.stop(None))))

    def leave() -> None:
        for task in looking:
            task.cancel()

    crossing.post(lambda: looking.append(asyncio.ensure_future(look())))
    try:
        yield
    finally:
        crossing.post(leave)


def _pause(lock: JobLock, seconds: float) -> None:
    """Wait, unless it is stopped meanwhile. Raises ``CoordinatorClosed`` if the engine ends."""
    end = time.monotonic() + seconds

    async def pause() -> None:
        while not lock._stops.stopped and (left := end - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left, _LOOK))

    lock._on_engine(pause)


def _outcome(fn: Callable[[JobHold], object], hold: JobHold) -> BaseException | None:
    """What a job has raised, if that is its own affair. What ends threads and programs goes on."""
    try:
        fn(hold)
    except (Exception, asyncio.CancelledError) as error:
        return error
    return None


def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""
    return
