"""Statements on a connection of the caller's own, inside a transaction of the caller's own.

``guard`` lets a transaction commit only what a holder may still write: a holder that was stopped for too long, or cut
off, finds out inside the transaction, where it cannot come too late any more. ``enqueue`` puts a task into a queue
if, and only if, the transaction commits, and ``publish`` sends a message in the same way. ``lock`` and ``try_lock``
exclude others until the transaction ends. ``run`` begins a transaction, commits it, or rolls it back.

Each verb is a flow (``flow.py``) in a file of its own; each driver has a file that runs queries on its connections
(``connections.py`` says which).
"""

from .enqueueing import enqueue
from .guarding import guard
from .locking import lock, try_lock
from .publishing import publish
from .running import rollback_quietly, run
from .servererrors import is_constraint_error

__all__ = ["enqueue", "guard", "is_constraint_error", "lock", "publish", "rollback_quietly", "run", "try_lock"]
