"""``Sessions``: the engine of one coordinator for everything that hangs on its sessions. It is a ``Locker``.

It lives on the event loop on which the backend was opened, speaks to the ``Store``, and wakes and is woken through
the ``Messenger``, if the backend has one. Names (``names.py``) and the heartbeat (``heart.py``) do the work; here they
meet: a claim finds its name, a session that is over or has lost something finds its names, a notification finds who
waits.

*The end.* What is held is given back, so that whoever waits elsewhere is woken; then the sessions are ended, which
frees the rest; then the wake-ups are waited for. All that no longer than ``network_timeout``: what was not heard by
then is free by time.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import uuid4

from ..backend import DONE, GRANTED, WAITING, Claim, Describer, Holder, SessionHealth
from ..clock import Clock, SuspendClock
from ..errors import CoordinatorClosed
from ..events import EventStream, HoldDropped, NameGiveFailed, ReleaseRequested
from ..hold import Grant, Waiter
from ..keys import LockKey
from ..messenger import Answer, Messenger
from ..store import (
    CreateGroup,
    DeleteGroup,
    EndSession,
    Entry,
    Give,
    Given,
    Look,
    Owned,
    Request,
    RequestRelease,
    Revoke,
    Store,
    Subject,
    Update,
)
from ..taskstore import Enqueue, ReleaseTasks, RetryTasks, wake_subject
from .answers import ClosedStore, Gathering, Told, ignore
from .claims import SessionClaim, SessionKey, of_session
from .heart import Heart
from .names import Name
from .session import Session, Who
from .wakes import Wakes, wake_mark
from .watchdog import Watchdog

__all__ = ["SessionHolder", "Sessions"]

T = TypeVar("T")

_CHANGES: Final = (Revoke, RequestRelease, Update, CreateGroup, DeleteGroup)
_NEW_TASKS: Final = (Enqueue, ReleaseTasks, RetryTasks)
_REVOKED: Final = "it was taken away (revoked), though its session lives"


@dataclass(frozen=True, slots=True)
class SessionHolder(Holder):
    """Who holds something by a session. ``pid`` is that of the process on its ``host``."""

    host: str = ""

    def __str__(self) -> str:
        return f"{self.application or 'an unnamed program'} (pid {self.pid} on {self.host})"


class Sessions:
    """See the module."""

    def __init__(
        self,
        store: Store,
        messenger: Messenger | None,
        loop: asyncio.AbstractEventLoop,
        events: EventStream,
        *,
        namespace: str,
        application: str,
        data: str | None = None,
        watchdog: bool = False,
        network_timeout: float = 5.0,
    ) -> None:
        """``data``: a JSON text, shown beside our sessions. Make it on the thread of ``loop``."""
        self.store: Store = store
        self.loop = loop
        self.events = events
        self.clock: Clock = store.clock or SuspendClock()
        self.closed = False
        self.ever_answered = False
        """Whether the store has ever answered: until then nobody waits for it in vain."""
        self._network_timeout = network_timeout
        self._namespace = namespace
        self._who = Who(str(uuid4()), socket.gethostname(), os.getpid(), application, data)
        self.heart = Heart(store, self.clock, loop, events, self._who, self, Watchdog() if watchdog else None)
        self._names: dict[Subject, Name] = {}
        self._by_mark: dict[bytes, set[Name]] = {}
        self.wakes = Wakes(messenger, self.clock, loop, events, namespace, self._woken)

    @property
    def identity(self) -> str:
        """Who we are: a uuid and the host."""
        return f"{self._who.uuid}.{self._who.host}"

    def health(self) -> tuple[SessionHealth, ...]:
        """How the sessions are. Safe from any thread."""
        now = self.clock.now()
        return tuple(
            SessionHealth(
                id=session.id,
                ttl=session.timing.ttl,
                interval=session.timing.interval,
                holds=len(session.claims),
                trusted_for=session.trusted_until - now,
            )
            for session in self.heart.sessions
        )

    # the port Locker

    def acquire(self, claim: Claim) -> None:
        """See ``Locker``; the claim is a ``SessionClaim``."""
        if self.closed:
            claim.fail(CoordinatorClosed("the coordinator is closed"))
            return
        asked = of_session(claim)
        self._name(asked.key.subject).ask(asked)

    def acquire_all(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self.acquire(claim)

    def withdraw(self, claim: Claim) -> None:
        asked = of_session(claim)
        if asked.state == WAITING:
            claim.state = DONE
            name = self._names.get(asked.key.subject)
            if name is not None:
                name.withdraw(asked)
        elif asked.state == GRANTED:
            asked.over = True
            self.release(asked, None)  # goes by what is known here: to give back twice does no harm

    def release(self, claim: Grant, waiter: Waiter | None) -> None:
        given = of_session(claim)
        name = self._names.get(given.key.subject)
        if name is not None and name.holder is given:
            name.release(given, waiter)
        elif waiter is not None and not waiter.done():
            waiter.set_result(True)

    def release_all(self, claims: Sequence[Grant], waiter: Waiter | None) -> None:
        left = len(claims)

        def given(_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0 and waiter is not None and not waiter.done():
                waiter.set_result(True)

        if not claims:
            given(True)
        for claim in claims:
            self.release(claim, Told(given, given))

    def drop(self, claim: Grant) -> None:
        dropped = of_session(claim)

        def give() -> None:
            self.events.emit(HoldDropped(key=dropped.key.name))
            self.release(dropped, None)

        self._post(give)

    def describe(self, key: LockKey, waiter: Describer) -> None:
        assert isinstance(key, SessionKey)
        subject = key.subject

        def told(entries: tuple[Entry, ...]) -> None:
            if not waiter.done():
                waiter.set_result([_holder(entry) for entry in entries if entry.session is not None])

        def failed(error: Exception) -> None:
            if not waiter.done():
                waiter.set_result(())

        kind, namespace, name, member = subject
        self.ask(Look(kind=kind, namespace=namespace, name=name, member=member), Told(told, failed))

    # what else is asked

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Ask the store. What changes something for others wakes those who watch it."""
        if self.closed:
            answer.set_exception(CoordinatorClosed("the coordinator is closed"))
            return
        self._left_by(request)
        subject = self._changed_by(request)
        if subject is None:
            self.store.ask(request, answer)
            return

        def told(result: T) -> None:
            self.wakes.changed(subject, wake=True)
            if isinstance(request, Revoke | RequestRelease):
                self._woken(wake_mark(subject))  # perhaps it is ours
            if not answer.done():
                answer.set_result(result)

        def failed(error: Exception) -> None:
            if not answer.done():
                answer.set_exception(error)

        crossed: Told[T] = Told(told, failed)
        self.store.ask(request, crossed)

    def watch(self, subject: Subject, told: Callable[[], None]) -> object:
        """Call ``told`` whenever something about a subject may have changed; of a group, about any member."""
        return self.wakes.watch(subject, told)

    def unwatch(self, handle: object) -> None:
        """Call it no more."""
        self.wakes.unwatch(handle)

    async def close(self) -> None:
        """Give everything back and end the sessions: holds that are still out are lost, who waits is told."""
        if self.closed:
            return
        self.closed = True
        self.wakes.close()
        until = self.loop.time() + self._network_timeout
        error = CoordinatorClosed("the coordinator was closed while this was waited for")
        gives = Gathering()
        not_free: dict[Subject, None] = {}
        for name in [*self._names.values()]:
            name.close(error)
            holder = name.holder
            session = holder.session if holder is not None else None
            if holder is not None and session is not None and session.id is not None:
                name.taken_away("the coordinator was closed")
                not_free[name.subject] = None
                give = Give(subject=name.subject, session=session.id, token=holder.token)
                self._give_for_good(give, gives.one(), not_free)
        try:
            await gives.wait(self._network_timeout / 2)
        finally:
            ends = self.heart.close()
        for last in (ends, self.wakes.sent):
            await last.wait(max(0.0, until - self.loop.time()))
        if not_free and (ends.missing or ends.error is not None):
            self._not_freed(not_free, gives.error or ends.error)
        self._names.clear()
        self._by_mark.clear()
        self.wakes.end()
        self.store = self.heart.store = ClosedStore()  # so that we, who go round in circles, do not keep it alive

    # what the heart tells

    def session_over(self, session: Session, reason: str) -> None:
        """Everything that hangs on it is lost."""
        for claim in [*session.claims]:
            session.claims.discard(claim)
            name = self._names.get(of_session(claim).key.subject)
            if name is not None:
                name.session_over(session, reason)
        for user in [*session.users]:
            if isinstance(user, Name):
                user.session_over(session, reason)

    def session_read(self, session: Session, judged: frozenset[Claim], owned: tuple[Owned, ...]) -> None:
        """What hangs on it by the store: the rest is lost, and what nobody here has or wants is given back."""
        ours = {own.subject: own for own in owned}
        for claim in map(of_session, judged & session.claims):
            subject = claim.key.subject
            own = ours.get(subject)
            name = self._names.get(subject)
            if name is None or name.holder is not claim:
                continue
            if own is None or own.token != claim.token:
                name.taken_away(_REVOKED)
            elif own.release_requested and not claim.release_requested:
                self.request_release(claim)
        for own in owned:
            if (waits := self._names.get(own.subject)) is not None:
                waits.found(session)
            elif session.id is not None:
                self.store.ask(Give(subject=own.subject, session=session.id, token=own.token), Told(ignore, ignore))

    # what names tell

    def request_release(self, claim: SessionClaim) -> None:
        """Somebody wants what this claim has."""
        subject = claim.key.subject
        self.events.emit(ReleaseRequested(kind=subject.kind, name=subject.name))
        claim.request_release()

    def forget(self, name: object) -> None:
        """Nobody wants it any more."""
        assert isinstance(name, Name)
        if self._names.get(name.subject) is name:
            del self._names[name.subject]
            mark = wake_mark(name.subject)
            same = self._by_mark.get(mark)
            if same is not None:
                same.discard(name)
                if not same:
                    del self._by_mark[mark]
        self.wakes.unlisten(name)

    # what wake-ups tell

    def _woken(self, mark: bytes) -> None:
        held = False
        for name in [*self._by_mark.get(mark, ())]:
            held = held or name.holder is not None
            name.wake()
        if held:
            # somebody wants what is ours, or has taken it away: the next heartbeat tells
            self.heart.beat_soon()

    # helpers

    def _name(self, subject: Subject) -> Name:
        name = self._names.get(subject)
        if name is None:
            name = self._names[subject] = Name(self, subject)
            self._by_mark.setdefault(wake_mark(subject), set()).add(name)
        return name

    def _give_for_good(self, give: Give, one: Told[Any], not_free: dict[Subject, None]) -> None:
        def told(answer: Given) -> None:
            del not_free[give.subject]
            self.wakes.changed(give.subject, wake=answer.waited)
            one.set_result(answer)

        self.store.ask(give, Told(told, one.set_exception))

    def _not_freed(self, subjects: Collection[Subject], error: Exception | None) -> None:
        """Say it once, however many they are."""
        first = next(iter(subjects))
        name = first.name if len(subjects) == 1 else f"{first.name} and {len(subjects) - 1:,} more"
        why = str(error or f"no answer within network_timeout={self._network_timeout:g} s")
        self.events.emit(NameGiveFailed(kind=first.kind, name=name, error=why))

    def _left_by(self, request: Request[Any]) -> None:
        if isinstance(request, EndSession):
            self.heart.left(request.session)

    def _changed_by(self, request: Request[Any]) -> Subject | None:
        if isinstance(request, _CHANGES):
            return request.subject
        if isinstance(request, _NEW_TASKS):
            return wake_subject(request.place, self._namespace)
        return None

    def _post(self, call: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # the loop has ended, and our sessions will be over

    def __repr__(self) -> str:
        return f"<Sessions of {self._who.application!r}: {len(self.heart.sessions)}, {len(self._names)} names>"


def _holder(entry: Entry) -> SessionHolder:
    session = entry.session
    assert session is not None
    return SessionHolder(pid=session.pid, application=session.application, host=session.host)
