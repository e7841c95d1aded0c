"""The engine of sessions on the engine thread, as a coordinator on another loop sees it. See ``pgconcert.crossed``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ..clock import Clock
from ..crossed import CrossedLocker, CrossedWaiter
from ..crossing import Crossing
from ..errors import CoordinatorClosed
from ..messenger import Answer
from ..store import Request, Subject

if TYPE_CHECKING:
    from .engine import Sessions

__all__ = ["CrossedSessions", "crossed_sessions"]

T = TypeVar("T")


class _Watch:
    """One watch: its handle there, once it is made, and whether it still concerns anybody here."""

    __slots__ = ("handle", "over")

    def __init__(self) -> None:
        self.handle: object = None
        self.over = False


class CrossedSessions(CrossedLocker):
    """What ``Sessions`` can do, from the caller's loop."""

    def __init__(self, sessions: Sessions, there: Crossing, back: Crossing) -> None:
        super().__init__(sessions, there, back)
        self._sessions = sessions

    @property
    def identity(self) -> str:
        """Who we are: a uuid and the host."""
        return self._sessions.identity

    @property
    def clock(self) -> Clock:
        """The clock by which sessions are kept."""
        return self._sessions.clock

    def ask(self, request: Request[T], answer: Answer[T]) -> None:
        """Ask the store."""
        crossed: CrossedWaiter[T] = CrossedWaiter(answer, self._back)
        if self.closed or not self._there.post(lambda: self._sessions.ask(request, crossed)):
            answer.set_exception(CoordinatorClosed("the coordinator is closed"))

    def watch(self, subject: Subject, told: Callable[[], None]) -> object:
        """Call ``told``, here, whenever something about a subject may have changed."""
        watch = _Watch()

        def tell() -> None:
            if not watch.over:
                told()

        def pass_on() -> None:
            self._back.post(tell)

        def begin() -> None:
            watch.handle = self._sessions.watch(subject, pass_on)

        if not self.closed:
            self._there.post(begin)
        return watch

    def unwatch(self, handle: object) -> None:
        """Call it no more."""
        assert isinstance(handle, _Watch)
        handle.over = True

        def end() -> None:
            if handle.handle is not None:
                self._sessions.unwatch(handle.handle)

        self._there.post(end)


def crossed_sessions(sessions: Sessions | None, there: Crossing, back: Crossing) -> CrossedSessions | None:
    """What stands for an engine here; for none, nothing does."""
    return None if sessions is None else CrossedSessions(sessions, there, back)
