"""Elections: one leader at a time among all processes. No backend stands here.

Here live what candidates say and what a leader has; what is seen of an election stands in ``terms.py``.

Theory. Leading is a name that hangs on a session (``sessions/``), and is waited for like every lock (``acquiring.py``).
What an election adds is its terms, and ways to end one on purpose: ``stop`` and ``resign`` of the election, and a
request with ``on_request="cancel"``, make a leadership that is entered *lost on our side* (``sessions/stopping.py``).
Its body is cancelled, and the exit gives it back: so nobody else leads while that body still acts as a leader. What is
not entered is given back at once.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine
from typing import Any, Final, Literal

from .acquiring import Acquirable, Register, check_timeout
from .backend import Claim
from .errors import ConfigurationError, given
from .hold import Held, OnLost, Waiter
from .keys import KeySpace, LockKey
from .sessions.claims import SessionKey, session_key
from .sessions.hold import AsyncSessionHold
from .sessions.register import SessionRegister, as_json, subject_of
from .sessions.stopping import STOPPED, Stoppable, StoppableClaim
from .sessions.timing import Timing
from .store import Look, RequestRelease, Revoke, Subject
from .terms import Leader, LeaderChange, TermView, leader_in
from .watching import AsyncChanges, ask

__all__ = [
    "AsyncCandidacy",
    "AsyncElection",
    "AsyncLeadership",
    "OnRequest",
    "TermClaim",
    "candidate_key",
    "look_at",
    "term_of",
]

OnRequest = Literal["cancel", "report"]
"""What a block does when the release of its leadership is requested: cancel the body, or only report it."""

RESIGNED: Final = "its election's resign() was called here"
_REQUESTED: Final = "its release was requested, and on_request='cancel' ends the body then"


class TermClaim(StoppableClaim):
    """The claim of a candidate."""

    __slots__ = ("ends_on_request",)

    def __init__(self, key: LockKey, waiter: Waiter, *, wait: bool, shared: bool = False) -> None:
        self.ends_on_request = False
        """Whether a request for its release is to end the body."""
        super().__init__(key, waiter, wait=wait, shared=shared)

    def stop(self, reason: str = STOPPED) -> None:
        """As ``StoppableClaim.stop``, and noted as resigned."""
        if not self.over:
            self.how = "resigned"
        super().stop(reason)

    def request_release(self) -> None:
        """As ``SessionClaim.request_release``."""
        super().request_release()
        if self.ends_on_request:
            self.stop(_REQUESTED)


class AsyncLeadership(AsyncSessionHold):
    """What a leader has. ``token`` is that of the term: hand it to whatever must refuse the late writes of an earlier
    leader.

    Use it as ``async with leadership:`` to have the body cancelled on loss and the leadership given back at the end. A
    leadership that is dropped unreleased is given back with a ``ResourceWarning``.
    """

    __slots__ = ("_identity", "_on_request")

    def __init__(
        self, claim: TermClaim, register: Register, identity: str, on_lost: OnLost, on_request: OnRequest
    ) -> None:
        locker = register.locker
        super().__init__(claim, register.loop, locker.release, locker.drop, on_lost, register.scoped)
        self._identity = identity
        self._on_request: OnRequest = on_request

    @property
    def identity(self) -> str:
        """Who leads: the uuid of this coordinator, and the host."""
        return self._identity

    async def resign(self) -> None:
        """Give it back, as ``release`` does; observers are told that it was resigned. Who waits leads at once."""
        if self._to_be_given_back:
            term_of(self).how = "resigned"
        await self.release()

    def enter(self, task: asyncio.Task[object]) -> None:
        """Begin the scope in ``task``, the running one. For our own context managers; people write ``async with``."""
        super().enter(task)
        if self._on_request == "cancel":
            claim = term_of(self)
            claim.ends_on_request = True
            if claim.release_requested:
                claim.stop(_REQUESTED)


class AsyncCandidacy(Acquirable):
    """The wish to lead. Made by ``AsyncElection.lead``.

    ``async with candidacy as leadership:`` waits until nobody else leads, runs the body while we lead, and gives the
    leadership back; if it is lost meanwhile the body is cancelled and ``SessionLost`` raised. The object itself holds
    nothing: it may be shared by tasks, and used again.
    """

    __slots__ = ("_election", "_key", "_on_request")

    def __init__(
        self, election: AsyncElection, key: SessionKey, timeout: float | None, on_lost: OnLost, on_request: OnRequest
    ) -> None:
        super().__init__(election._register, timeout, on_lost)
        self._election = election
        self._key = key
        self._on_request: OnRequest = on_request

    @property
    def key(self) -> str:
        """The name of the election."""
        return self._key.subject.name

    async def acquire(self, timeout: float | None = None) -> AsyncLeadership:
        """Wait until nobody else leads and return the ``AsyncLeadership``.

        ``timeout`` in seconds overrides the object's own; 0 tries once, ``math.inf`` waits for ever. Raises
        ``AcquireTimeout`` (which names the leader), ``WouldDeadlock``, ``Unavailable`` (no connection was ever made),
        ``SchemaMissing``, ``Stopped`` (``stop`` of the election), or ``CoordinatorClosed``. Cancelled, it leaves at
        once and leads nothing.
        """
        return await self._acquire(self._timeout if timeout is None else check_timeout(timeout))

    async def try_acquire(self) -> AsyncLeadership | None:
        """Return an ``AsyncLeadership``, or ``None`` at once if somebody else leads. Raises what ``acquire`` raises,
        and ``Unavailable`` while there is no connection."""
        return await self._register.claim(self._key, False, 0, self._lead, _refused)

    async def __aenter__(self) -> AsyncLeadership:
        leadership = await super().__aenter__()
        assert isinstance(leadership, AsyncLeadership)
        return leadership

    def _acquire(self, timeout: float | None) -> Coroutine[Any, Any, AsyncLeadership]:
        return self._register.claim(self._key, False, timeout, self._lead, self._expired)

    async def _expired(self, timeout: float) -> AsyncLeadership:
        raise await self._register.timed_out(self._key, f"the leadership of {self.key!r}", timeout)

    def _lead(self, claim: Claim) -> AsyncLeadership:
        return self._election._lead(claim, self._on_lost, self._on_request)

    def _kind(self) -> str:
        return "candidacy"


class AsyncElection:
    """An election by name, for all processes that use the same database. Made by ``AsyncCoordinator.election``.

    At most one leads at a time, by the server's clock. A leader that is stopped for too long may act as one until it
    goes on: what it must not write then is guarded by the ``token`` of its leadership. The object itself holds nothing:
    it may be shared by tasks, and two objects with one name compete.
    """

    def __init__(self, of: SessionRegister[Register], name: str, timing: Timing) -> None:
        register = of.register
        self._of = of
        self._subject = subject_of("election", of.keys, name)
        self._timing = timing
        self._stops = Stoppable(of.sessions, register.loop, register.scopes, "election")
        self._register = Register(
            self._stops, register.loop, register.state, register.scopes, TermClaim, register.counts
        )
        self._led: weakref.ref[AsyncLeadership] | None = None

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._subject.name

    @property
    def identity(self) -> str:
        """Who we are: the uuid of this coordinator, and the host."""
        return self._of.sessions.identity

    def lead(
        self,
        *,
        preferred: bool = False,
        timeout: float | None = None,
        data: Any = None,
        on_lost: OnLost = "cancel",
        on_request: OnRequest = "report",
    ) -> AsyncCandidacy:
        """The wish to lead. Nothing is sent before it is entered or acquired.

        :param preferred: come before those that are not. When nobody leads, a preferred candidate that waits is the
            next; and a leader that is not preferred is asked to give way, once, as by ``request_release``. It remains
            the leader until it does: it should come to an end with its work soon, and leave the block or ``resign``.
        :param timeout: how long ``async with`` waits, in seconds; ``None`` waits for ever.
        :param data: anything with a JSON form, shown to all as ``Leader.data``: an address, say.
        :param on_lost: ``"cancel"`` cancels the body when the leadership is lost; ``"report"`` leaves it running. Both
            set ``leadership.lost`` and raise ``SessionLost`` at the end of the block.
        :param on_request: ``"report"`` only tells when the release is requested (``leadership.release_requested``,
            ``wait_release_requested``); ``"cancel"`` also ends the body of a block, as a loss does: it is cancelled,
            the leadership is given back when it has ended, and ``SessionLost`` is raised with that reason.
        """
        if on_lost not in ("cancel", "report"):
            raise ConfigurationError(f"on_lost must be 'cancel' or 'report', not {given(on_lost)}")
        if on_request not in ("cancel", "report"):
            raise ConfigurationError(f"on_request must be 'cancel' or 'report', not {given(on_request)}")
        if on_request == "cancel" and on_lost == "report":
            raise ConfigurationError("on_request='cancel' ends a body as a loss does: it needs on_lost='cancel'")
        key = candidate_key(self._of.keys, self._subject, self._timing, preferred, data)
        return AsyncCandidacy(self, key, check_timeout(timeout), on_lost, on_request)

    async def leader(self) -> Leader | None:
        """Who leads now; ``None`` if nobody does. Raises ``Unavailable`` while there is no connection."""
        return leader_in(await ask(self._of, look_at(self._subject)), self.identity)

    def observe(self) -> AsyncChanges[LeaderChange]:
        """Every change of the leader, in order, each once; also for who is no candidate. Entered, it has looked:

            async with election.observe() as changes:
                async for change in changes: ...

        The present state comes first. Changes of other processes are told at once by notification, and ``check``
        seconds later without; the end of a leader that died, exactly when its time is over. Terms that have ended are
        known for about an hour: who cannot look for longer is told what comes after. A connection that is lost is no
        change. A slow consumer gets everything.
        """
        view = TermView(self._subject, self.identity)
        return AsyncChanges(self._of, self._subject, self._timing.check, view)

    async def resign(self) -> bool:
        """Give back what this object leads; whoever waits leads at once. False if it leads nothing.

        A body in a block is cancelled first, as if the leadership was lost, and given back when it has ended; with
        ``on_lost="report"`` it is waited for. A body that calls this itself goes on, and leads nothing any more.
        """
        self._register.here()
        leadership = None if self._led is None else self._led()
        if leadership is None or leadership.lost or leadership.released:
            return False
        if leadership.task is None or leadership.task is asyncio.current_task():
            await leadership.resign()
        else:
            claim = term_of(leadership)
            claim.stop(RESIGNED)
            await self._stops.ended(claim)
        return True

    async def request_release(self) -> bool:
        """Ask whoever leads to give way: its ``release_requested`` becomes true, within a heartbeat at the latest.

        Whether it does is its own business. False if nobody leads."""
        return await ask(self._of, RequestRelease(self._subject))

    async def revoke(self) -> bool:
        """Take the leadership away from whoever has it; whoever waits leads at once. False if nobody led.

        The leader learns of it within a heartbeat, and may act as one until then: what must not be written twice is
        guarded by the token. Raises ``Unavailable`` while there is no connection, or while a guarded transaction of
        the leader is under way."""
        return await ask(self._of, Revoke(self._subject))

    async def stop(self) -> None:
        """Be no candidate of this object any more: waits raise ``Stopped``, bodies are cancelled as if the leadership
        was lost, leaderships are given back. Idempotent, in any state; who observes goes on.

        When this returns, everything is given back; only a body that calls it itself is not waited for. With
        ``on_lost="report"`` a body is not cancelled, but waited for. If the caller is cancelled, the rest goes on.
        """
        self._register.here()
        await self._stops.stop(asyncio.current_task())

    def _lead(self, claim: Claim, on_lost: OnLost, on_request: OnRequest) -> AsyncLeadership:
        self._stops.check()
        assert isinstance(claim, TermClaim)
        leadership = AsyncLeadership(claim, self._register, self.identity, on_lost, on_request)
        leadership.check()
        self._led = weakref.ref(leadership)
        return leadership

    def __repr__(self) -> str:
        leadership = None if self._led is None else self._led()
        leads = leadership is not None and not (leadership.lost or leadership.released)
        state = "stopped" if self._stops.stopped else "leading" if leads else "not leading"
        return f"<{type(self).__name__} {self.name!r} {state}>"


def candidate_key(keys: KeySpace, subject: Subject, timing: Timing, preferred: object, data: Any) -> SessionKey:
    """Check what a candidacy is made of."""
    if preferred is not True and preferred is not False:
        raise ConfigurationError(f"preferred must be True or False, not {given(preferred)}")
    return session_key(keys, subject, timing, data=as_json(data, "the data of a leader"), preferred=preferred)


def look_at(subject: Subject) -> Look:
    """The question who leads."""
    kind, namespace, name, member = subject
    return Look(kind=kind, namespace=namespace, name=name, member=member)


def term_of(held: Held) -> TermClaim:
    """The claim of a leadership."""
    claim = held._grant
    assert isinstance(claim, TermClaim)
    return claim


async def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""
