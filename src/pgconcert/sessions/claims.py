"""What the engine of sessions is asked for: ``SessionKey``, a name with all that a take needs, and ``SessionClaim``.

They are a ``LockKey`` and a ``Claim``, so everything that can wait for a lock can wait for a name that hangs on a
session. What a claim has besides: the token, and the *trust*. A session is trusted only until a certain time, so a
claim counts as lost from that instant on, whether or not anybody has noticed: a process that was stopped finds it so in
the first line that it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..backend import Claim
from ..hold import Grant, Waiter
from ..keys import BEYOND, KeySpace, LockKey
from ..store import Subject
from .timing import Timing

if TYPE_CHECKING:
    from .session import Session

__all__ = ["SessionClaim", "SessionKey", "session_key"]

_APART: Final = 2 * BEYOND
"""What is added to the value of a name of a session, so that it equals no lock's and no semaphore's."""


class SessionKey(LockKey):
    """A name that hangs on a session: what it is for the store, and how it is to be taken."""

    __slots__ = ("data", "hold_at_least", "preferred", "subject", "timing")

    def __init__(
        self,
        shown: str,
        value: int,
        subject: Subject,
        timing: Timing,
        *,
        data: str | None = None,
        preferred: bool = False,
        hold_at_least: float = 0.0,
    ) -> None:
        """``shown`` is the name in messages, ``data`` a JSON text."""
        super().__init__(shown, value)
        self.subject = subject
        self.timing = timing
        self.data = data
        self.preferred = preferred
        self.hold_at_least = hold_at_least


def session_key(
    keys: KeySpace,
    subject: Subject,
    timing: Timing,
    *,
    data: str | None = None,
    preferred: bool = False,
    hold_at_least: float = 0.0,
) -> SessionKey:
    """The key of a subject whose texts were checked."""
    value = subject_value(keys, subject) + _APART
    return SessionKey(
        subject.member or subject.name,
        value,
        subject,
        timing,
        data=data,
        preferred=preferred,
        hold_at_least=hold_at_least,
    )


class SessionClaim(Claim):
    """One attempt to get one name for one of our sessions, and after it is granted the engine's side of the hold."""

    __slots__ = ("_lost", "data", "how", "release_requested", "request_watchers", "session", "taken_at", "token")

    key: SessionKey

    def __init__(self, key: LockKey, waiter: Waiter, *, wait: bool, shared: bool = False) -> None:
        self._lost: str | None = None
        self.session: Session | None = None
        super().__init__(key, waiter, wait=wait, shared=shared)
        assert isinstance(key, SessionKey)
        self.token: int | None = None
        """The fencing token; there once it is granted."""
        self.taken_at: float | None = None
        """When it was taken, by the server's clock, in seconds since 1970."""
        self.data = key.data
        self.how = "released"
        """What the store notes when it is given back."""
        self.release_requested = False
        self.request_watchers: list[Callable[[], None]] = []

    @property
    def reason(self) -> str | None:
        """Why it was lost. A session that is trusted no longer is reason enough, noticed or not."""
        if self._lost is None and self.session is not None and not self.over:
            return self.session.distrust()
        return self._lost

    @reason.setter
    def reason(self, reason: str | None) -> None:
        self._lost = reason

    def lose(self, reason: str, noted: Callable[[], None] | None = None) -> bool:
        """As ``Grant.lose``; the first reason that was given stays, and at no instant is there none."""
        if self.over or self._lost is not None:
            return False
        self._lost = reason
        self._tell_loss(noted)
        return True

    def request_release(self) -> None:
        """Somebody wants it given back. Called by the engine; tells once."""
        if not self.release_requested:
            self.release_requested = True
            for watcher in [*self.request_watchers]:
                watcher()


def subject_value(keys: KeySpace, subject: Subject) -> int:
    """64 bits of a subject, for the bookkeeping of one process."""
    kind, _, name, member = subject
    return keys.digest(b"session\0" + kind.encode() + b"\0" + name.encode() + b"\0" + member.encode())


def of_session(grant: Grant) -> SessionClaim:
    """The grant of a hold that hangs on a session."""
    assert isinstance(grant, SessionClaim)
    return grant
