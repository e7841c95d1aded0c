"""What the store must hear of a name, sooner or later: a Give, or an Unmark. Nothing else.

Theory. A Give that is not carried out keeps a name from everybody for as long as our session lives, and so does the
mark of a preferred candidate that nobody stands behind. So neither may be dropped for want of a connection: it is asked
again, after longer and longer pauses, until it is answered or its session is over, whose end undoes both.

States: *asked*, *resting* until it is asked again, and *over*, when ``paid`` was called.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ..errors import Unavailable
from ..store import Request
from .alarm import Alarm
from .answers import Told
from .office import Office
from .session import Session

__all__ = ["Debt"]

T = TypeVar("T")

_RETRY: Final = 0.2
_MOST_DOUBLINGS: Final = 4


class Debt(Generic[T]):
    """One such request. ``paid`` gets the answer and whether it was asked for more than once; ``None`` is the answer of
    one that need not be paid any more, or cannot. ``failed`` learns each error before."""

    __slots__ = ("_alarm", "_failed", "_office", "_over", "_paid", "_request", "_tries", "session")

    def __init__(
        self,
        office: Office,
        session: Session,
        request: Request[T],
        paid: Callable[[T | None, bool], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self.session = session
        self._office = office
        self._request = request
        self._paid = paid
        self._failed = failed
        self._tries = 0
        self._over = False
        self._alarm = Alarm(office.clock, office.loop)

    @property
    def resting(self) -> bool:
        """Whether nothing is under way."""
        return self._alarm.due is not None

    def ask(self) -> None:
        """Ask the store."""
        self._tries += 1
        answer: Told[T] = Told(self._end, self._unanswered)
        self._office.store.ask(self._request, answer)

    def forgive(self) -> None:
        """It need not be paid: the end of the session undoes it."""
        self._alarm.stop()
        self._end(None)

    def _unanswered(self, error: Exception) -> None:
        if self._over:
            return
        self._failed(error)
        if not isinstance(error, Unavailable) or self.session.state != "alive" or self._office.closed:
            self._end(None)
            return
        pause = _RETRY * 2 ** min(self._tries - 1, _MOST_DOUBLINGS) * random.uniform(0.8, 1.0)
        self._alarm.set(self._office.clock.now() + pause, self.ask)

    def _end(self, answer: T | None) -> None:
        if not self._over:
            self._over = True
            self._paid(answer, self._tries > 1)
