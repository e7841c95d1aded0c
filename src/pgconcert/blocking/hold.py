"""``Hold`` for threads: what you have when you hold something. Its body cannot be cancelled, so it has to ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ..errors import shown
from ..hold import Grant, Held, Waiter
from .engine import Call, not_in_a_loop

__all__ = ["Hold"]


class Hold(Held):
    """What you hold. Only this object releases it, from any thread.

    Use it as ``with hold:`` to have the hold released at the end of the block, and ``LockLost`` raised there if it was
    lost meanwhile. A thread cannot be interrupted, so a loss does not stop the body: it asks with ``check`` before
    every side effect, or waits with ``wait_lost``. A hold that is dropped unreleased is released with a
    ``ResourceWarning``.
    """

    __slots__ = ("_scoped", "thread")

    def __init__(
        self,
        grant: Grant,
        release: Callable[[Grant, Waiter | None], object],
        dropped: Callable[[Grant], object],
        scoped: Callable[[Grant, threading.Thread, bool], None],
    ) -> None:
        self._scoped = scoped
        self.thread: threading.Thread | None = None
        """The thread inside the block, if any."""
        super().__init__(grant, release, dropped)

    def wait_lost(self, timeout: float | None = None) -> str | None:
        """Wait until it is lost and return the reason, or ``None`` after ``timeout`` seconds. Without a time limit it
        waits for ever on a hold that is released first."""
        if self._grant.reason is not None:
            return self._grant.reason
        not_in_a_loop("AsyncCoordinator")
        call: Call[bool] = Call()
        once = threading.Lock()

        def told() -> None:
            if once.acquire(blocking=False):
                call.set_result(True)

        self._grant.watch(told)
        try:
            call.wait(timeout)
        finally:
            self._grant.unwatch(told)
        return self._grant.reason

    def release(self) -> None:
        """Give it back. The release is handed in and not waited for; what this process asks later does not overtake it.

        Releasing again, or after a loss, does nothing.
        """
        if not self._to_be_given_back:
            return
        self._release(self._grant, None)
        self._grant.over = True

    def __enter__(self) -> Self:
        self.check()
        if self.thread is not None:
            raise RuntimeError(f"the hold of {shown(self.key)} is entered already")
        if self._grant.over:
            raise RuntimeError(f"the hold of {shown(self.key)} was released already")
        self.enter(threading.current_thread())
        return self

    def enter(self, thread: threading.Thread) -> None:
        """Begin the scope in ``thread``, the running one. For our own context managers; people write ``with``."""
        self.thread = thread
        self._scoped(self._grant, thread, True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        grant = self._grant
        thread = self.thread
        try:
            if thread is not None:
                self._scoped(grant, thread, False)
                self.thread = None
            if self._to_be_given_back:
                self._release(grant, None)
                grant.over = True
        except BaseException:
            # interrupted: once more does no harm
            self._release(grant, None)
            grant.over = True
            raise
        if grant.reason is None:
            return
        lost = self._lost_error(grant.name, grant.reason)
        if error is None:
            raise lost
        error.add_note(f"while this happened, the hold was lost: {lost}")

    def __del__(self) -> None:
        if not hasattr(self, "_dropped"):
            return  # interrupted while it was made
        if self.thread is not None:
            self._scoped(self._grant, self.thread, False)
        if not self._grant.over:
            super().__del__()
