"""Job locks: a name that hangs on a session, and a job that runs while it is ours. No backend stands here.

Here live ``AsyncJobLock``, its hold, what is told of a holder, and ``run_in_job_lock``.

Theory. A job lock is acquired like every lock (``acquiring.py``); between it and the engine of sessions stands a
``Stoppable``, which knows what this object has out and can end it. The ``state`` is that of the latest hold::

    "" --acquired--> held --given back, or stopped--> released
                       \\--its session is over or not trusted, or somebody has revoked it--> lost

``run`` is a wait, a scope, and the release that was answered: so whoever comes after it finds the lock free.

*Keeping a job running.* ``run_in_job_lock`` goes round: wait for the lock, run, release, pause. The lock is released
before every pause, so whoever waits in another process has it at once; the pauses grow while runs are short
(``sessions/pace.py``). A wait that fails for lack of a connection counts as a short run. Only what cannot get better
ends the round: wrong use, a missing schema, a coordinator that is closed.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from .acquiring import Acquirable, Register, check_timeout, is_number
from .backend import Claim
from .errors import ConfigurationError, HoldLost, SessionLost, StatementFailed, Stopped, Unavailable, given
from .events import JobFailed
from .events.stream import GOES_ON
from .hold import OnLost
from .keys import KeySpace
from .sessions.claims import SessionKey, session_key
from .sessions.hold import AsyncSessionHold, SessionHeld
from .sessions.pace import Pace
from .sessions.register import SessionRegister, as_json, from_json, subject_of
from .sessions.stopping import STOPPED, Stoppable, StoppableClaim
from .sessions.timing import Timing
from .store import Entry, Look, Request, RequestRelease, Revoke

__all__ = ["AsyncJobHold", "AsyncJobLock", "JobHolder", "JobLockState", "run_in_job_lock"]

T = TypeVar("T")

_DAY: Final = 86400.0

PASSES: Final = (Unavailable, StatementFailed, HoldLost)
"""What may be better the next time that the lock is waited for."""


class JobLockState(enum.StrEnum):
    """How it is with the latest hold of a job lock object; the text is empty before the first."""

    NEW = ""
    HELD = "held"
    LOST = "lost"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHolder:
    """Who holds a job lock. ``identity`` is the uuid and host of its coordinator; ``since`` the server's clock, in
    seconds since 1970; ``data`` what the holder gave to ``job_lock``; ``mine``: it is held by the coordinator that was
    asked."""

    identity: str
    host: str
    pid: int
    application: str
    since: float
    data: Any
    token: int
    mine: bool

    def __str__(self) -> str:
        return f"{self.application or 'an unnamed program'} (pid {self.pid} on {self.host})"


class AsyncJobHold(AsyncSessionHold):
    """A job lock that you hold. Only this object releases it.

    Use it as ``async with hold:`` to have the body cancelled on loss and the hold released at the end. A hold may be
    released from any task of its event loop. A hold that is dropped unreleased is released with a ``ResourceWarning``.
    """

    __slots__ = ()


class AsyncJobLock(Acquirable):
    """A lock by name that hangs on a session of this process. Made by ``AsyncCoordinator.job_lock``.

    ``async with lock as hold:`` waits, runs the body while the lock is held, and releases it; if the session is not
    renewed in time, or the lock is revoked, the body is cancelled and ``SessionLost`` raised. It survives reconnects,
    works through any pooler, and gives ``hold.token``, a number that grows with every holder: let it guard whatever
    must not be written by a holder that was stopped for too long.

    The object itself holds nothing: it may be shared by tasks and used again until ``stop``, and two such objects with
    one name exclude each other. It is not re-entrant. A lock of the same name has nothing to do with it.
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
        on_lost: OnLost = "cancel",
    ) -> None:
        mode: object = on_lost
        if mode != "cancel" and mode != "report":
            raise ConfigurationError(f"on_lost must be 'cancel' or 'report', not {given(mode)}")
        register = of.register
        self._stops = Stoppable(of.sessions, register.loop, register.scopes, "job lock")
        loop, counts = register.loop, register.counts
        waits = Register(self._stops, loop, register.state, register.scopes, StoppableClaim, counts)
        super().__init__(waits, None, on_lost)
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
        """After how many seconds without an answer a heartbeat has failed. ``async with`` waits for ever."""
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

    async def acquire(self, timeout: float | None = None) -> AsyncJobHold:
        """Wait for it and return the ``AsyncJobHold``.

        ``timeout`` in seconds; without it, it waits for ever; 0 tries once. Raises ``AcquireTimeout`` (which names the
        holder), ``WouldDeadlock``, ``Unavailable`` (no connection was ever made), ``SchemaMissing``,
        ``ConfigurationError``, ``Stopped``, or ``CoordinatorClosed``. Cancelled, it leaves at once and nothing stays
        held.
        """
        return await self._acquire(None if timeout is None else check_timeout(timeout))

    async def try_acquire(self) -> AsyncJobHold | None:
        """Return an ``AsyncJobHold``, or ``None`` at once if somebody else has it. Raises what ``acquire`` raises, and
        ``Unavailable`` while there is no connection."""
        return await self._register.claim(self._key, False, 0, self._hold, _refused)

    async def run(self, fn: Callable[[AsyncJobHold], Awaitable[T]]) -> T | None:
        """Wait for the lock, run ``await fn(hold)`` while it is held, and return its result.

        If the lock is lost, ``fn`` is cancelled and ``SessionLost`` raised. An error of ``fn`` passes through. When
        this returns or raises, the server has freed the lock, or, while it cannot be reached, the time of our session
        is over. ``stop`` ends it: while it waits, it returns ``None``; while ``fn`` runs, that is cancelled, and its
        result, if it had one all the same, is returned, else ``None``. Raises besides what ``acquire`` raises, except
        ``Stopped``.
        """
        try:
            hold = await self._register.claim(self._key, False, None, self._hold_to_run, _never)
        except Stopped:
            return None
        result = None
        try:
            async with hold:
                result = await fn(hold)
        except SessionLost as lost:
            if not was_stopped(hold, lost):
                raise
        return result

    async def stop(self) -> None:
        """End whatever goes on with this object, for good: waits raise ``Stopped``, bodies of ``async with`` and
        ``run`` are cancelled as if the lock was lost, holds are released. Idempotent, in any state.

        When this returns, everything is released; only a body that calls it itself is not waited for. With
        ``on_lost="report"`` a body is not cancelled, but waited for. If the caller is cancelled, the rest goes on.
        """
        self._register.here()
        await self._stops.stop(asyncio.current_task())

    async def holder(self) -> JobHolder | None:
        """Who holds it now; ``None`` if nobody does. Raises ``Unavailable`` while there is no connection."""
        entries = await self._ask(look_at(self._key))
        return holder_of(entries, self.identity)

    async def request_release(self) -> bool:
        """Ask whoever holds it to give it back: its ``release_requested`` becomes true, within a heartbeat at the
        latest. Whether it does is its own business. False if nobody holds it."""
        return await self._ask(RequestRelease(self._key.subject))

    async def revoke(self) -> bool:
        """Take it away from whoever holds it; it is free at once. False if nobody held it.

        The holder learns of it within a heartbeat, and may work on until then: what must not be written twice is
        guarded by the token. Raises ``Unavailable`` while there is no connection, or while a guarded transaction of
        the holder is under way."""
        return await self._ask(Revoke(self._key.subject))

    async def __aenter__(self) -> AsyncJobHold:
        hold = await super().__aenter__()
        assert isinstance(hold, AsyncJobHold)
        return hold

    def _acquire(self, timeout: float | None) -> Coroutine[Any, Any, AsyncJobHold]:
        return self._register.claim(self._key, False, timeout, self._hold, self._expired)

    async def _expired(self, timeout: float) -> AsyncJobHold:
        raise await self._register.timed_out(self._key, f"the job lock {self.name!r}", timeout)

    def _hold(self, claim: Claim) -> AsyncJobHold:
        return self._hold_with(claim, self._on_lost)

    def _hold_to_run(self, claim: Claim) -> AsyncJobHold:
        return self._hold_with(claim, "cancel")

    def _hold_with(self, claim: Claim, on_lost: OnLost) -> AsyncJobHold:
        self._stops.check()
        assert isinstance(claim, StoppableClaim)
        self._latest = claim
        register = self._register
        stops = self._stops
        hold = AsyncJobHold(claim, register.loop, stops.release, stops.drop, on_lost, register.scoped)
        hold.check()
        return hold

    async def _ask(self, request: Request[T]) -> T:
        self._register.here()
        answer: asyncio.Future[T] = self._register.loop.create_future()
        self._of.sessions.ask(request, answer)
        return await answer

    def _kind(self) -> str:
        return "job lock"

    def __repr__(self) -> str:
        state = "stopped" if self._stops.stopped else self.state or "not acquired yet"
        return f"<{type(self).__name__} {self.name!r} {state}>"


async def run_in_job_lock(
    of: SessionRegister[Register],
    name: str,
    fn: Callable[[AsyncJobHold], Awaitable[object]],
    timing: Timing,
    *,
    service: str | None = None,
    hold_at_least: float = 0.0,
    data: Any = None,
) -> NoReturn:
    """Keep ``await fn(hold)`` running in at most one process at a time. See ``AsyncCoordinator.run_in_job_lock``."""
    check_job(fn)
    lock = AsyncJobLock(of, name, timing, hold_at_least=hold_at_least, data=noted(service, data))
    loop = of.register.loop
    pace = Pace(timing)
    task = asyncio.current_task()
    assert task is not None
    cancels = task.cancelling()
    while True:
        ran = 0.0
        failure: BaseException | None = None
        try:
            hold = await lock.acquire()
        except PASSES as error:
            failure = error
        else:
            began = loop.time()
            try:
                async with hold:
                    failure = await _outcome(fn, hold, cancels)
            except SessionLost:
                pass  # an event of its own
            ran = loop.time() - began
            if isinstance(failure, SessionLost) and hold.lost:
                failure = None
        if task.cancelling() > cancels:
            # the job has kept the cancel to itself
            raise asyncio.CancelledError from failure
        pause = pace.after(ran)
        if failure is not None:
            of.events.emit(JobFailed(name=name, error=failure, retry_in=pause))
        await asyncio.sleep(pause)


async def _outcome(
    fn: Callable[[AsyncJobHold], Awaitable[object]], hold: AsyncJobHold, cancels: int
) -> BaseException | None:
    """What a job has raised, if that is its own affair."""
    try:
        running = fn(hold)
        if inspect.isawaitable(running):
            await running
            return None
    except GOES_ON:
        raise
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling() > cancels:
            raise
        return error
    except BaseException as error:
        return error
    raise ConfigurationError(f"{given(fn)} is no async function: it returned {given(running)}, not an awaitable")


def check_job(fn: object) -> None:
    """Raise unless it can be called."""
    if not callable(fn):
        raise ConfigurationError(f"what runs under a job lock is a function of its hold, not {given(fn)}")


def noted(service: object, data: Any) -> Any:
    """The data of a job that a service keeps running: an object gets one member more, what is none becomes one."""
    if service is None:
        return data
    if not isinstance(service, str):
        raise ConfigurationError(f"service must be a text, or None, not {given(service)}")
    if data is None or isinstance(data, dict):
        return {**(data or {}), "service": service}
    return {"service": service, "data": data}


def job_key(keys: KeySpace, name: str, timing: Timing, hold_at_least: float, data: Any) -> SessionKey:
    """Check what a job lock is made of."""
    if not is_number(hold_at_least) or not 0 <= hold_at_least <= _DAY:
        raise ConfigurationError(
            f"hold_at_least must be a number of seconds from 0 to {_DAY:g}, not {given(hold_at_least)}"
        )
    return session_key(
        keys,
        subject_of("job", keys, name),
        timing,
        data=as_json(data, "the data of a job lock"),
        hold_at_least=float(hold_at_least),
    )


def look_at(key: SessionKey) -> Look:
    """The question who holds it."""
    kind, namespace, name, member = key.subject
    return Look(kind=kind, namespace=namespace, name=name, member=member)


def holder_of(entries: tuple[Entry, ...], identity: str) -> JobHolder | None:
    """Who holds it, from the entries of one name."""
    for entry in entries:
        session = entry.session
        if session is not None and entry.since is not None:
            return JobHolder(
                identity=session.identity,
                host=session.host,
                pid=session.pid,
                application=session.application,
                since=entry.since,
                data=from_json(entry.data),
                token=entry.token,
                mine=session.identity == identity,
            )
    return None


def state_of(claim: StoppableClaim | None) -> JobLockState:
    """The state of the latest hold."""
    if claim is None:
        return JobLockState.NEW
    reason = claim.reason
    if claim.over and reason in (None, STOPPED):
        return JobLockState.RELEASED
    return JobLockState.HELD if reason is None else JobLockState.LOST


def was_stopped(hold: SessionHeld, lost: SessionLost) -> bool:
    """Whether an error says that this hold was ended by ``stop``."""
    return lost.reason == hold.reason == STOPPED and lost.key == hold.key


async def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""


async def _never(timeout: float) -> NoReturn:
    raise AssertionError("a wait without a time limit has expired")
