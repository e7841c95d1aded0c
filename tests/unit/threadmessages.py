"""Helpers of the tests of messages for threads: who listens, which threads there are, how a connection is lost."""

from __future__ import annotations

import threading
from typing import cast

from pgconcert.blocking import Coordinator
from pgconcert.memory import MemoryBackend

HANDLER = "pgconcert-handler"


def handler_threads() -> int:
    """How many threads of handlers there are in this process."""
    return sum(thread.name == HANDLER for thread in threading.enumerate())


def lose_connection(c: Coordinator) -> None:
    """Cut it, and let it come back."""
    backend = cast(MemoryBackend, c.backend)
    backend.lose_connection()


def many(other: Coordinator, channel: str, count: int) -> None:
    other.publish_many([(channel, str(number)) for number in range(count)])


def nobody_listens(c: Coordinator) -> bool:
    """Whether the broker hears nothing for anybody, not even a reply."""
    messages = c._open_messages
    assert messages is not None
    return not messages.broker._routes and not messages.requests._users and not messages._feeds
