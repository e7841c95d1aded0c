"""What a name gives back, and what it looks for before that: the second half of ``names.py``, which has the theory.

Here lives ``Giver`` and nothing else: the state of a name that concerns the store, and what is owed to a session that
is not the next one's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

from ..errors import Unavailable
from ..events import NameGiveFailed, NameReleased
from ..hold import Waiter
from ..store import Give, Given, Own, Owned, Request, Subject, Unmark
from .answers import settle
from .claims import SessionClaim
from .debts import Debt
from .office import Office
from .queue import Queue
from .session import Session

__all__ = ["Giver"]

T = TypeVar("T")

_COURTESY: Final = 0.3
_SHORT_COURTESY: Final = 0.002, 0.05
_NOT_OURS: Final = "it was not ours any more when it was released: somebody has taken it away, or its session was over"


class Giver:
    """See the module."""

    __slots__ = (
        "_again",
        "_asking",
        "_courteous",
        "_debt",
        "_marked",
        "_office",
        "_preferred",
        "_queue",
        "_sure",
        "_taken_at",
        "_uncertain",
        "subject",
    )

    def __init__(self, office: Office, subject: Subject) -> None:
        self.subject = subject
        self._office = office
        self._queue = Queue()
        self._asking = False
        """Whether something is under way."""
        self._again = False
        """Whether there was a wake-up meanwhile."""
        self._courteous = False
        """Whether others have their chance now."""
        self._debt: Debt[Any] | None = None
        self._marked: Session | None = None
        """Whose mark may be there."""
        self._preferred = False
        """Whether that mark keeps others away."""
        self._sure = False
        """Whether that mark was seen in the store."""
        self._uncertain: Session | None = None
        """Which session may have it, unknown to us."""
        self._taken_at = 0.0
        """When it was last known to be taken, by somebody or by us: claims that are older have waited."""

    @abstractmethod
    def _rest(self) -> None:
        """Nothing is under way: go on."""

    @abstractmethod
    def _pause(self, seconds: float) -> None:
        """Go on later."""

    def _pays_back(self, next_one: Session | None) -> bool:
        """Whether something is under way that a session other than the next owes."""
        uncertain, marked = self._uncertain, self._marked
        if uncertain is not None and uncertain is not next_one:
            self._uncertain = None
            self._owe(uncertain, Own(uncertain.id or 0), lambda owned, _: self._looked(uncertain, owned))
            return True
        if marked is not None and marked is not next_one:
            preferred = self._preferred
            self._unmark()
            self._owe(marked, Unmark(self.subject, marked.id or 0), lambda *_: self._unmarked(preferred))
            return True
        return False

    def _looked(self, session: Session, owned: tuple[Owned, ...] | None) -> None:
        token = next((own.token for own in owned or () if own.subject == self.subject), None)
        if token is None:
            self._rest()
        else:
            self._give(session, None, None, token)

    def _give(self, session: Session, claim: SessionClaim | None, waiter: Waiter | None, token: int | None) -> None:
        how = "released" if claim is None else claim.how
        give = Give(subject=self.subject, session=session.id or 0, token=token, how=how)
        began = self._office.clock.now()
        self._owe(session, give, lambda answer, again: self._gave(claim, waiter, began, answer, again))

    def _gave(
        self, claim: SessionClaim | None, waiter: Waiter | None, began: float, answer: Given | None, again: bool
    ) -> None:
        office = self._office
        waited = answer is not None and answer.waited
        if answer is not None:
            if claim is not None:
                office.events.tally.names.released += 1
                if office.events.wants(NameReleased):
                    office.events.emit(NameReleased(kind=self.subject.kind, name=self.subject.name, wanted=waited))
            if answer.ours or again:
                office.wakes.changed(self.subject, wake=waited)
            elif claim is not None:
                claim.reason = _NOT_OURS  # before its release is answered, so that whoever waits for that says so
                if claim.session is not None:
                    claim.session.suspect()  # a Take may have been carried out late, and has it by another token
        settle(waiter)
        first = self._queue.first
        self._taken_at = monotonic()
        if waited and not office.closed and not (first is not None and first.key.preferred):
            self._queue.refuse_tries()
            self._courteous = True
            # who has no mark is not woken by the next release, so it is silent no longer than others need
            least, most = _SHORT_COURTESY
            short = min(max(2 * (office.clock.now() - began), least), most)
            self._pause(_COURTESY if self._sure else short)
        self._rest()

    def _unmarked(self, preferred: bool) -> None:
        if preferred:
            self._office.wakes.changed(self.subject)  # it is free for others, too, from now on
        self._rest()

    def _owe(self, session: Session, request: Request[T], told: Callable[[T | None, bool], None]) -> None:
        def paid(answer: T | None, again: bool) -> None:
            self._asking = False
            self._debt = None
            self._unuse(session)
            told(answer, again)

        def failed(error: Exception) -> None:
            self._queue.fail_tries(error)
            if isinstance(request, Give) and not isinstance(error, Unavailable):
                told_of = NameGiveFailed(kind=self.subject.kind, name=self.subject.name, error=str(error))
                self._office.events.emit(told_of)

        self._asking = True
        self._again = False
        if session.state != "alive":
            paid(None, False)  # its end has undone it, or will
            return
        session.users.add(self)
        self._debt = debt = Debt(self._office, session, request, paid, failed)
        debt.ask()

    def _unmark(self) -> None:
        self._marked = None
        self._preferred = self._sure = False

    def _unuse(self, session: Session) -> None:
        if self._marked is session or self._uncertain is session:
            session.users.add(self)
        else:
            session.users.discard(self)
