"""What you have when something hangs on a session of yours, for threads."""

from __future__ import annotations

import threading

from ..sessions.claims import of_session
from ..sessions.hold import SessionHeld
from .engine import Call, not_in_a_loop
from .hold import Hold

__all__ = ["SessionHold"]


class SessionHold(SessionHeld, Hold):
    """What you hold while a session of this process lives. See ``Hold`` for what it is in a block."""

    __slots__ = ()

    def wait_release_requested(self, timeout: float | None = None) -> bool:
        """Wait until somebody asks for it to be given back; False after ``timeout`` seconds. Without a time limit it
        waits for ever if nobody does, or it is lost first."""
        grant = of_session(self._grant)
        if grant.release_requested:
            return True
        not_in_a_loop("AsyncCoordinator")
        call: Call[bool] = Call()
        once = threading.Lock()

        def told() -> None:
            if once.acquire(blocking=False):
                call.set_result(True)

        grant.request_watchers.append(told)
        if grant.release_requested:
            told()
        try:
            call.wait(timeout)
        finally:
            grant.request_watchers.remove(told)
        return grant.release_requested
