"""Tools for testing code that talks to PostgreSQL, usable by pgconcert's own tests and by anybody else's.

Here live names only: what is public in ``pgconcert.testing``. Nothing in ``pgconcert`` imports this package.
"""

from __future__ import annotations

from .fakesource import FakeSource
from .leaks import (
    AdvisoryLock,
    ServerSession,
    Snapshot,
    advisory_locks,
    eventually,
    eventually_async,
    sessions,
)
from .proxy import FaultProxy
from .urls import rewrite

__all__ = [
    "AdvisoryLock",
    "FakeSource",
    "FaultProxy",
    "ServerSession",
    "Snapshot",
    "advisory_locks",
    "eventually",
    "eventually_async",
    "rewrite",
    "sessions",
]
