"""The port for everything that hangs on a session: job locks, leadership, membership. No backend stands here.

A store keeps *sessions* (rows with a time to live) and *entries* (names that hang on them). It is asked by *requests*,
which are data: ``ask(request, answer)`` settles the answer once. A request may be withdrawn by nobody; whoever does not
want its outcome any more undoes it by another. No method waits, and none raises for what the server does. All calls
belong to the loop on which the backend was opened.

Every request is one transaction at read committed, and every time is the server's, read while it is carried out
(``clock_timestamp()``, never ``now()``). The rules, from which exclusion follows:

1. A session is *alive* while it is not ended and its ``expires`` is ahead. ``Renew`` moves ``expires`` of a session
   that is alive, and of no other: what is over never comes back.
2. An entry is *free* if it hangs on no session, or on one that has ended, or (dangling) on one that is not there though
   the entry's row says so in the same snapshot. "Looks expired" is not free.
3. ``Take`` of an entry that hangs on a session whose time is over first *ends* that session, under the lock of its row,
   with the time looked at again there. That lock decides between a late renewal and the take-over. Nothing waits for a
   lock: what is locked counts as alive this instant.
4. ``Take`` needs a session that is alive. What a session has already, it may take again: so a lost answer is repaired
   by asking again.
5. A *token* is drawn at every take from a counter that is never deleted, in a transaction that is flushed: for one
   entry it only grows, over restarts, crashes, promotions, dump and restore. High 15 bits: the epoch. Low 48: a count.
6. Whoever takes something from a session that lives (``Revoke``), or wants something of its holder
   (``RequestRelease``), raises the *revision* of that session; every ``Renew`` returns it.
7. A session last renewed under another *incarnation* of the server (identity, timeline) has one ttl of grace, counted
   from when that incarnation was first seen.
8. Who waits leaves a *mark* before it tries again; who gives looks at the marks after it has given. So either the one
   finds the entry free or the other finds the mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, NamedTuple, Protocol, TypeVar

from .clock import Clock
from .messenger import Answer

__all__ = [
    "COUNTER_BITS",
    "MAX_EPOCH",
    "CreateGroup",
    "DeleteGroup",
    "EndSession",
    "Entry",
    "Give",
    "Given",
    "Kind",
    "Look",
    "LookAtSessions",
    "Own",
    "Owned",
    "Refused",
    "Renew",
    "Request",
    "RequestRelease",
    "Revoke",
    "SessionInfo",
    "StartSession",
    "Store",
    "Subject",
    "Take",
    "Taken",
    "Term",
    "Terms",
    "Unmark",
    "Update",
]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

COUNTER_BITS: Final = 48
"""How many of a token's bits are the count; those above are the epoch."""

MAX_EPOCH: Final = 2**15 - 1

Kind = Literal["job", "election", "member", "group", "runner", "queue"]
"""What an entry is. A group hangs on nothing; it is there or it is not. A runner is a member of those that share tasks;
a queue is never an entry: whoever waits for its tasks is woken by its name."""


class Subject(NamedTuple):
    """The full name of an entry. ``member`` is the id of a member of the group ``name``, or of a runner; else empty."""

    kind: Kind
    namespace: str
    name: str
    member: str = ""


class Request(Generic[T_co]):
    """Something asked of a store; its parameter is the type of the answer.

    Any request may fail with ``Unavailable`` (not carried out, or nobody knows: ask again), ``SchemaMissing``,
    ``ConfigurationError`` (rights), ``StatementFailed``, or ``CoordinatorClosed``.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSession(Request[int]):
    """Start a session; the answer is its number, which is never used again. If the answer is lost, start another: the
    row expires by itself. ``ttl`` in seconds. ``data`` is a JSON text for people."""

    uuid: str
    ttl: float
    host: str
    pid: int
    application: str
    data: str | None = None


@dataclass(frozen=True, slots=True)
class Renew(Request[Mapping[int, int | None]]):
    """Let the sessions live for another ttl from now, all in one statement, in the order of their numbers.

    The answer has the revision of each that was renewed, and ``None`` for each that is over. A session that is missing
    in it was neither renewed nor found to be over (its row was locked this instant): ask again."""

    sessions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EndSession(Request[bool]):
    """End a session; all that hangs on it is free. True if it was not over before."""

    session: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Take(Request["Taken | Refused"]):
    """Take an entry for a session. ``mark``: leave a mark if it is refused (rule 8), which a later success removes.

    ``keep_mark``: leave the mark there also when it succeeds, because others of this session wait on. ``preferred``: an
    entry of kind *election* that is free is refused to all others while a session that is alive has a preferred mark
    there; a preferred take that is refused also asks for the release of a holder that took it without being preferred.
    ``hold_at_least`` in seconds: given back earlier, it is free only then. ``data``: a JSON text, shown to all."""

    subject: Subject
    session: int
    mark: bool = False
    keep_mark: bool = False
    preferred: bool = False
    hold_at_least: float = 0.0
    data: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """It is ours. ``since``: the server's clock, in seconds since 1970."""

    token: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Somebody has it, or it is not free yet, or it was locked this instant.

    ``over``: our own session is over, so nothing can be taken for it. ``retry_in``: seconds after which it may be free
    without anybody's doing (the holder's time will be over, ``hold_at_least`` is); ``0``: try again at once, for
    somebody was at it this instant, or nobody had it; ``None``: unknown. ``marked``: our mark was there before this
    statement began, so a later release will not be missed. ``holder``: who has it, if anybody."""

    holder: SessionInfo | None = None
    retry_in: float | None = None
    marked: bool = False
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Give(Request["Given"]):
    """Give an entry back, if it hangs on this session with this token (``None``: any). ``how`` is noted in the terms of
    an election. The row of a member that is given back stays for a while, so that watchers can tell leaving from loss.
    """

    subject: Subject
    session: int
    token: int | None = None
    how: str = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """``ours``: it was ours until now. ``waited``: sessions other than ours have marks there, seen after it was free;
    wake them."""

    ours: bool
    waited: bool


@dataclass(frozen=True, slots=True)
class Unmark(Request[bool]):
    """Take our mark away: nobody of this session waits for it any more."""

    subject: Subject
    session: int


@dataclass(frozen=True, slots=True)
class Own(Request["tuple[Owned, ...]"]):
    """All that hangs on a session now."""

    session: int


class Owned(NamedTuple):
    """Something that hangs on our session. ``release_requested``: somebody wants it given back."""

    subject: Subject
    token: int
    release_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Update(Request[bool]):
    """Replace the data of what we have, if it is still ours."""

    subject: Subject
    session: int
    token: int
    data: str | None


@dataclass(frozen=True, slots=True)
class RequestRelease(Request[bool]):
    """Ask whoever has it to give it back. True if somebody has it. The revision of its session is raised."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class Revoke(Request[bool]):
    """Take it away from whoever has it; it is free then, also before ``hold_at_least``. True if somebody had it.

    The revision of its session is raised in the same transaction. Where a row is locked this instant (a guarded
    transaction is under way) it fails with ``Unavailable``, after some tries."""

    subject: Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Look(Request["tuple[Entry, ...]"]):
    """Entries, in the order of kind, namespace, name, member. ``None`` means all. Groups without a row of their own are
    not among those of kind *group*, but their members are among those of kind *member*."""

    kind: Kind | None = None
    namespace: str | None = None
    name: str | None = None
    member: str | None = None


@dataclass(frozen=True, slots=True)
class LookAtSessions(Request["tuple[SessionInfo, ...]"]):
    """All sessions that are alive, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session, as anybody may see it. ``started``: the server's clock, in seconds since 1970. ``expires_in``: seconds
    until its time is over, with the grace of rule 7; not above 0: it is over. ``data``: a JSON text."""

    id: int
    uuid: str
    host: str
    pid: int
    application: str
    data: str | None
    ttl: float
    started: float
    expires_in: float

    @property
    def identity(self) -> str:
        """Who it is: the uuid and the host."""
        return f"{self.uuid}.{self.host}"

    def __str__(self) -> str:
        return f"{self.application or 'an unnamed program'} (pid {self.pid} on {self.host})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry, as anybody may see it. ``session``: on which it hangs, if that is alive; ``None``: nobody has it.

    ``since``: when it was taken last, by the server's clock in seconds since 1970; ``None``: never. ``given``: whether
    it was given back (else, with no session, its holder is lost). ``waiting``: how many sessions that live wait."""

    subject: Subject
    session: SessionInfo | None
    token: int
    since: float | None
    data: str | None
    given: bool
    release_requested: bool
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(Request["tuple[Term, ...]"]):
    """The terms of an election with tokens above ``after``, in their order; those that have ended, for about an hour
    after it. ``after=None``: only the latest."""

    subject: Subject
    after: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One leadership. ``until`` and ``how`` it ended: ``released``, ``resigned``, ``revoked`` or ``lost``; ``None``
    while it lasts. Times by the server's clock, in seconds since 1970. ``leader`` is the session as it was then, with
    ``expires_in`` 0 if the term is over. ``data`` as it was taken."""

    token: int
    leader: SessionInfo
    data: str | None
    since: float
    until: float | None
    how: str | None


@dataclass(frozen=True, slots=True)
class CreateGroup(Request[bool]):
    """Make a group; False if it was there."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class DeleteGroup(Request[Literal["deleted", "missing", "not empty"]]):
    """Remove a group that has no living member."""

    subject: Subject


class Store(Protocol):
    """Keeps sessions and entries. See the module."""

    @property
    def clock(self) -> Clock | None:
        """The clock of a world that has its own (tests); ``None``: that of the machine."""
        ...

    @property
    def schema(self) -> str | None:
        """Where its tables are, for ``transaction.guard``; ``None``: it has none."""
        ...

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Carry out a request. While there is no connection it waits for the attempt that is under way, and fails with
        ``Unavailable`` if that fails."""
        ...

    def bounce(self, reason: str) -> None:
        """Replace the connection by a fresh one, because no answer came in time. Does nothing while there is none."""
        ...
