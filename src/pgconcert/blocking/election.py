"""Elections for threads: the twins of those in ``pgconcert.election``.

Theory. A body in a thread cannot be cancelled: when its leadership is lost, stopped or resigned elsewhere,
``leadership.check`` raises. What was stopped or resigned stays ours on the server until the body has ended.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

from ..acquiring import check_timeout
from ..backend import Claim
from ..election import RESIGNED, TermClaim, candidate_key, look_at, term_of
from ..errors import CoordinatorClosed
from ..sessions.claims import SessionKey
from ..sessions.register import SessionRegister, subject_of
from ..sessions.stopping import Stoppable
from ..sessions.timing import Timing
from ..store import RequestRelease, Revoke
from ..terms import Leader, LeaderChange, TermView, leader_in
from ..watching import AsyncChanges
from .acquiring import Acquirable, Register
from .sessionhold import SessionHold
from .watching import Changes, ask, on_engine, run

__all__ = ["Candidacy", "Election", "Leadership"]


class Leadership(SessionHold):
    """What a leader has. ``token`` is that of the term: hand it to whatever must refuse the late writes of an earlier
    leader.

    Use it as ``with leadership:`` to have the leadership given back at the end, and ``SessionLost`` raised there if it
    was lost meanwhile. A thread cannot be interrupted, so a loss does not stop the body: it asks with ``check`` before
    every side effect, or waits with ``wait_lost``. A leadership that is dropped unreleased is given back with a
    ``ResourceWarning``.
    """

    __slots__ = ("_identity",)

    def __init__(self, claim: TermClaim, register: Register, identity: str) -> None:
        self._identity = identity
        super().__init__(claim, register.release, register.drop, register.scoped)

    @property
    def identity(self) -> str:
        """Who leads: the uuid of this coordinator, and the host."""
        return self._identity

    def resign(self) -> None:
        """Give it back, as ``release`` does; observers are told that it was resigned. Who waits leads at once."""
        if self._to_be_given_back:
            term_of(self).how = "resigned"
        self.release()


class Candidacy(Acquirable):
    """The wish to lead. Made by ``Election.lead``.

    ``with candidacy as leadership:`` waits until nobody else leads, runs the body while we lead, and gives the
    leadership back; if it is lost meanwhile ``leadership.check()`` raises ``SessionLost``, and so does the end of the
    block. The object itself holds nothing: it may be shared by threads, and used again.
    """

    __slots__ = ("_election", "_key")

    def __init__(self, election: Election, key: SessionKey, timeout: float | None) -> None:
        super().__init__(election._register, timeout)
        self._election = election
        self._key = key

    @property
    def key(self) -> str:
        """The name of the election."""
        return self._key.subject.name

    def acquire(self, timeout: float | None = None) -> Leadership:
        """Wait until nobody else leads and return the ``Leadership``.

        ``timeout`` in seconds overrides the object's own; 0 tries once, ``math.inf`` waits for ever. Raises
        ``AcquireTimeout`` (which names the leader), ``WouldDeadlock``, ``Unavailable`` (no connection was ever made),
        ``SchemaMissing``, ``Stopped`` (``stop`` of the election), or ``CoordinatorClosed``. Interrupted, it leaves at
        once and leads nothing.
        """
        return self._acquire(self._timeout if timeout is None else check_timeout(timeout))

    def try_acquire(self) -> Leadership | None:
        """Return a ``Leadership``, or ``None`` at once if somebody else leads. Raises what ``acquire`` raises,
        and ``Unavailable`` while there is no connection."""
        return self._register.claim(self._key, False, 0, self._election._lead, _refused)

    def __enter__(self) -> Leadership:
        leadership = super().__enter__()
        assert isinstance(leadership, Leadership)
        return leadership

    def _acquire(self, timeout: float | None) -> Leadership:
        return self._register.claim(self._key, False, timeout, self._election._lead, self._expired)

    def _expired(self, timeout: float) -> Leadership:
        raise self._register.timed_out(self._key, f"the leadership of {self.key!r}", timeout)

    def _kind(self) -> str:
        return "candidacy"


class Election:
    """An election by name, for all processes that use the same database. Made by ``Coordinator.election``.

    At most one leads at a time, by the server's clock. A leader that is stopped for too long may act as one until it
    goes on: what it must not write then is guarded by the ``token`` of its leadership. The object itself holds nothing:
    it may be shared by threads, and two objects with one name compete.
    """

    def __init__(self, of: SessionRegister[Register], name: str, timing: Timing) -> None:
        register = of.register
        self._of = of
        self._subject = subject_of("election", of.keys, name)
        self._timing = timing
        self._stops = Stoppable(of.sessions, register.engine.loop, register.scopes, "election")
        self._register = Register(
            register.engine, self._stops, register.state, register.scopes, TermClaim, register.counts
        )
        self._led: weakref.ref[Leadership] | None = None

    @property
    def name(self) -> str:
        """The name, as the caller wrote it."""
        return self._subject.name

    @property
    def identity(self) -> str:
        """Who we are: the uuid of this coordinator, and the host."""
        return self._of.sessions.identity

    def lead(self, *, preferred: bool = False, timeout: float | None = None, data: Any = None) -> Candidacy:
        """The wish to lead. Nothing is sent before it is entered or acquired.

        :param preferred: come before those that are not. When nobody leads, a preferred candidate that waits is the
            next; and a leader that is not preferred is asked to give way, once, as by ``request_release``. It remains
            the leader until it does: it should come to an end with its work soon, and leave the block or ``resign``.
        :param timeout: how long ``with`` waits, in seconds; ``None`` waits for ever.
        :param data: anything with a JSON form, shown to all as ``Leader.data``: an address, say.
        """
        key = candidate_key(self._of.keys, self._subject, self._timing, preferred, data)
        return Candidacy(self, key, check_timeout(timeout))

    def leader(self) -> Leader | None:
        """Who leads now; ``None`` if nobody does. Raises ``Unavailable`` while there is no connection."""
        return leader_in(ask(self._of, look_at(self._subject)), self.identity)

    def observe(self) -> Changes[LeaderChange]:
        """Every change of the leader, in order, each once; also for who is no candidate. Entered, it has looked:

            with election.observe() as changes:
                for change in changes: ...

        The present state comes first. Changes of other processes are told at once by notification, and ``check``
        seconds later without; the end of a leader that died, exactly when its time is over. Terms that have ended are
        known for about an hour: who cannot look for longer is told what comes after. A connection that is lost is no
        change. A slow consumer gets everything.
        """
        view = TermView(self._subject, self.identity)
        inner = AsyncChanges(on_engine(self._of), self._subject, self._timing.check, view)
        return Changes(self._register.engine, inner)

    def resign(self) -> bool:
        """Give back what this object leads; whoever waits leads at once. False if it leads nothing.

        If another thread is in a block, ``leadership.check()`` raises there as if the leadership was lost, and it is
        given back when that body has ended. A body that calls this itself goes on, and leads nothing any more.
        """
        leadership = None if self._led is None else self._led()
        if leadership is None or leadership.lost or leadership.released:
            return False
        if leadership.thread is None or leadership.thread is threading.current_thread():
            leadership.resign()
        else:
            claim = term_of(leadership)

            async def give_back() -> None:
                claim.stop(RESIGNED)
                await self._stops.ended(claim)

            run(self._of, give_back)
        return True

    def request_release(self) -> bool:
        """Ask whoever leads to give way: its ``release_requested`` becomes true, within a heartbeat at the latest.

        Whether it does is its own business. False if nobody leads."""
        return ask(self._of, RequestRelease(self._subject))

    def revoke(self) -> bool:
        """Take the leadership away from whoever has it; whoever waits leads at once. False if nobody led.

        The leader learns of it within a heartbeat, and may act as one until then: what must not be written twice is
        guarded by the token. Raises ``Unavailable`` while there is no connection, or while a guarded transaction of
        the leader is under way."""
        return ask(self._of, Revoke(self._subject))

    def stop(self, timeout: float | None = None) -> bool:
        """Be no candidate of this object any more: waits raise ``Stopped``, in bodies ``leadership.check()`` raises as
        if the leadership was lost, leaderships are given back. Idempotent, in any state, from any thread; who observes
        goes on.

        When this returns True, everything is given back; only a body that calls it itself is not waited for. False:
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
            return run(self._of, stop)
        except CoordinatorClosed:
            self._stops.stopped = True
            return True

    def _lead(self, claim: Claim) -> Leadership:
        self._stops.check()
        assert isinstance(claim, TermClaim)
        leadership = Leadership(claim, self._register, self.identity)
        leadership.check()
        self._led = weakref.ref(leadership)
        return leadership

    def __repr__(self) -> str:
        leadership = None if self._led is None else self._led()
        leads = leadership is not None and not (leadership.lost or leadership.released)
        state = "stopped" if self._stops.stopped else "leading" if leads else "not leading"
        return f"<{type(self).__name__} {self.name!r} {state}>"


def _refused(timeout: float) -> None:
    """What a try makes of a refusal."""
